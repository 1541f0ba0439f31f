"""Observations and rewards of a controller: features, reward terms, trajectory and registers."""
