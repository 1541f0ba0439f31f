"""Sizes of the measurements of `python -m speed.run`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hpenv.benchmark.command_line import check_counts


@dataclass(frozen=True)
class BenchmarkConfig:
    """Sizes of the benchmarks."""

    out: Path = Path("results/benchmarks.json")  # JSON with every number
    rounds: int = 7  # alternating rounds per ratio; the median is reported
    num_steps: int = 100  # length of a timed run [steps]
    meta_tokens: int = 128  # batch of a step in meta-training [tokens]
    deployment_tokens: int = 512  # batch of a step of a deployed run [tokens]
    cell_rounds: int = 15  # alternating rounds of 4 steps of TrainLoop-Cell-v0
    price_rounds: int = 40  # alternating rounds of prices of a few percent of a short step
    update_rounds: int = 20  # alternating rounds of one update of TrainLoop-GRPOProjection-v0
    threads: tuple[int, ...] = (1, 2)  # torch threads, one pass over the benchmarks for each
    only: tuple[str, ...] = ()  # names of benchmarks; empty: all of them

    def __post_init__(self) -> None:
        """Checks that all counts are at least 1."""
        counts = (
            "rounds",
            "num_steps",
            "meta_tokens",
            "deployment_tokens",
            "cell_rounds",
            "price_rounds",
            "update_rounds",
        )
        check_counts(self, *counts)
        if not self.threads or min(self.threads) < 1:
            raise ValueError(f"threads must be numbers >= 1; got {self.threads}")
