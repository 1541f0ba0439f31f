"""What is trained: the protocol, the base class of populations, seeds and snapshots."""
