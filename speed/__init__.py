"""Speed as ratios within one process. `make bench` writes results/benchmarks.json."""
