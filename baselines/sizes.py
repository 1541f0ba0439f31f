"""Rank correlation of methods between model sizes: `python -m baselines.sizes`.

Every baseline of the field with one coordinate, at the first point of its search, and the untouched
run train models of three sizes: `nano`, and models whose blocks have 4 and 16 times as many
weights. Everything else is the same: text, batch, steps and seeds. The result is Spearman's rank
correlation of the mean held-out score between the sizes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from baselines.methods import FIELD, ONE_COORDINATE
from hpenv.benchmark.command_line import check_counts, configuration, refusals
from hpenv.benchmark.evaluate import evaluate_controller
from hpenv.benchmark.executors import open_executor, run_all
from hpenv.benchmark.files import check_file
from hpenv.benchmark.generate import JEL, NANO
from hpenv.benchmark.instances import Instance, seed_of
from hpenv.benchmark.methods import OFF
from hpenv.benchmark.progress import progress
from hpenv.benchmark.results import write_result

#: Score of a run that diverged [bits per byte]: that of a guess.
DIVERGED = 8.0


@dataclass(frozen=True)
class SizesConfig:
    """Configuration of the comparison of sizes."""

    presets: tuple[str, ...] = ("nano", "nano-wide", "nano-16x")  # the smallest first
    methods: tuple[str, ...] = (OFF, *ONE_COORDINATE)  # keys of FIELD, or `off`
    num_steps: int = 100  # of a run [steps]
    batch_tokens: int = 128  # of a step [tokens]
    seeds: int = 3  # runs of every method and size, which train together
    executor: str = "processes"  # see hpenv.benchmark.executors
    out: Path = Path("results/benchmark/sizes.json")  # result file

    def __post_init__(self) -> None:
        """Checks counts and names."""
        check_counts(self, "num_steps", "batch_tokens", "seeds")
        if unknown := sorted(set(self.methods) - {OFF, *FIELD}):
            raise ValueError(f"methods must be of {sorted([OFF, *FIELD])}; got {unknown}")
        if len(self.presets) < 2 or len(self.methods) < 3:
            raise ValueError(
                "presets must be two at least, and methods three, for a rank correlation; got "
                f"{self.presets} and {self.methods}"
            )

    def instance(self, preset: str) -> Instance:
        """Returns the run of a size."""
        arguments = NANO | {
            "preset": preset,
            "num_steps": self.num_steps,
            "batch_tokens": self.batch_tokens,
            "eval_tokens": 16_384,
            "interval": 10,
        }
        return Instance(preset, JEL, arguments)


class Piece(NamedTuple):
    """Runs of one method at one size."""

    method: str
    instance: Instance
    seeds: tuple[int, ...]

    @property
    def label(self) -> str:
        """Name in messages."""
        return f"{self.method} on {self.instance.name}"


def run(piece: Piece) -> list[float]:
    """Returns the held-out score of every run [bits per byte]."""
    controller, changed = None, dict[str, Any]()
    if piece.method != OFF:
        baseline = FIELD[piece.method]
        changed = baseline.arguments(piece.instance, baseline.start)
        if baseline.controller is not None:
            controller = baseline.controller(piece.instance, baseline.start)

    arguments = dict(piece.instance.arguments) | changed
    if controller is not None:
        del arguments["interval"]  # the controller's own
    rows = evaluate_controller(
        controller,
        piece.instance.env_id,
        arguments,
        piece.seeds,
        curve=False,
        max_rows=len(piece.seeds),
    )
    return [DIVERGED if row["divergence_reason"] else min(row["bpb"], DIVERGED) for row in rows]


def correlations(
    scores: Mapping[str, Mapping[str, Sequence[float]]], smallest: str
) -> dict[str, float]:
    """Returns size -> Spearman's rank correlation of its mean scores with those of the smallest.

    Args:
        scores: size -> method -> score of every run.
        smallest: the size that the others are compared with.
    """
    means = {
        size: [float(np.mean(values)) for values in methods.values()]
        for size, methods in scores.items()
    }
    return {
        size: float(stats.spearmanr(means[smallest], values).statistic)
        for size, values in means.items()
        if size != smallest
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs all methods at all sizes, prints the correlations and writes the result."""
    config = configuration(SizesConfig, "baselines.sizes", __doc__, arguments)
    with refusals():
        check_file("out", config.out)

    smallest = config.instance(config.presets[0])
    seeds = tuple(seed_of("sizes", smallest.digest, i) for i in range(config.seeds))
    pieces = [
        Piece(method, config.instance(preset), seeds)
        for preset in reversed(config.presets)
        for method in config.methods
    ]
    scores: dict[str, dict[str, list[float]]] = {preset: {} for preset in config.presets}
    with (
        open_executor(config.executor) as executor,
        progress(len(pieces), "sizes") as advance,
    ):
        for piece, found in run_all(run, pieces, executor, name=lambda piece: piece.label):
            scores[piece.instance.name][piece.method] = found
            advance(1, piece.label)

    for preset, methods in scores.items():  # in one order, whatever was done first
        scores[preset] = {method: methods[method] for method in config.methods}
    found = correlations(scores, config.presets[0])
    rows = [
        {"preset": preset, "method": method, "bpb": values}
        for preset, methods in scores.items()
        for method, values in methods.items()
    ]
    write_result(config.out, "sizes", asdict(config), rows, {"rank_correlation": found})
    for preset, value in found.items():
        print(f"{config.presets[0]} and {preset}: rank correlation {value:.3f}")
    print(f"written: {config.out}")


if __name__ == "__main__":
    main()
