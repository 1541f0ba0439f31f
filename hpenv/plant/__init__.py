"""Training runs: the protocol of a plant, the base class of populations, seeds and snapshots."""
