"""Speed, as ratios measured in one run of one process; `make bench` writes results/benchmarks.json."""
