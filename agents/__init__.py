"""Learning controllers. They see arrays, never an environment, and import only `hpenv.policies`."""
