"""Programs that join agents, environments and baselines: train, evaluate, log, compare and draw."""
