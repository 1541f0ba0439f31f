"""Controllers that learn. They see arrays, never an environment; of hpenv they import `hpenv.policies` alone."""
