"""Do the instances of a suite tell controllers apart? `python -m baselines.signal`.

On every test instance three methods are compared on the same seeds: the worst constant rate that
the search of the baseline `constant` tried, the best one, and the instance's reference, which has
tuned rates per group and a tuned schedule. The suite carries signal if each beats the one before.
Rows of the constant are the published ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baselines.field import TUNED, Tuned, read_searches
from baselines.trials import Point
from hpenv.benchmark.command_line import configuration, refusals
from hpenv.benchmark.files import check_file, check_folder
from hpenv.benchmark.instances import Instance, Suite, load_suite
from hpenv.benchmark.methods import REFERENCE, Method
from hpenv.benchmark.results import write_result
from hpenv.benchmark.rows import read_rows
from hpenv.benchmark.scoring import FIELD, FOLDER, reference_method, run_methods
from hpenv.benchmark.statistics import Interval, paired_interval

BEST, WORST = "constant", "constant_worst"
#: Score of a run that diverged, and of one that is worse [bits per byte]: that of a guess.
DIVERGED = 8.0


class WorstConstant(Tuned):
    """The baseline `constant` at the worst rate that its search tried, per instance."""

    def __init__(self, folder: Path = TUNED) -> None:
        super().__init__(BEST, folder)
        searches = read_searches(BEST, folder)
        self._points = {key: worst_point(each) for key, each in searches.items()}


def worst_point(search: Mapping[str, Any]) -> Point:
    """Returns the point of a search with the largest probe loss."""
    *values, _ = max(search["points"], key=lambda row: row[-1])
    return dict(zip(search["point"], values, strict=True))


@dataclass(frozen=True)
class SignalConfig:
    """Configuration of the comparison."""

    suite: str = "pretraining-v1"  # name of a suite
    executor: str = "processes"  # see hpenv.benchmark.executors
    folder: Path = FOLDER  # folder of rows, in <suite>/signal
    out: Path = Path("results/benchmark/signal.json")  # result file


def finals(rows: Sequence[Mapping[str, Any]], method: str, instance: Instance) -> dict[int, float]:
    """Returns seed -> held-out score of a method on an instance [bits per byte]."""
    return {
        row["seed"]: DIVERGED if row["divergence_reason"] else min(row["final"], DIVERGED)
        for row in rows
        if row["method"] == method and row["instance_digest"] == instance.digest
    }


def compare(suite: Suite, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns one row per test instance: worst minus best constant, best minus reference.

    Args:
        suite: the suite.
        rows: rows of the three methods, on the same seeds.

    Raises:
        ValueError: the methods have rows of different seeds.
    """
    found = []
    for instance in suite.test:
        worst, best, tuned = (finals(rows, name, instance) for name in (WORST, BEST, REFERENCE))
        if not worst.keys() == best.keys() == tuned.keys():
            raise ValueError(
                f"{instance.name} must have rows of {WORST}, {BEST} and {REFERENCE} on the same "
                f"seeds; got {len(worst)}, {len(best)} and {len(tuned)} rows"
            )
        seeds = sorted(best)
        values = [[each[seed] for seed in seeds] for each in (tuned, best, worst)]
        found.append(
            {
                "instance": instance.name,
                "worst_minus_best": [*paired_interval(values[1], values[2])],
                "best_minus_reference": [*paired_interval(values[0], values[1])],
            }
        )
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Computes the rows that are missing, prints the comparisons and writes the result."""
    config = configuration(SignalConfig, "baselines.signal", __doc__, arguments)
    with refusals():
        suite = load_suite(config.suite)
        place = config.folder / suite.name / "signal"
        check_folder("folder", place)
        check_file("out", config.out)

    worst = WorstConstant()
    digest, costs = worst.digest(suite.test), worst.costs_on(suite.test)
    methods = [Method(WORST, worst, digest, costs), reference_method(suite)]
    run_methods(suite, methods, place, executor=config.executor)
    published = read_rows(FIELD.glob(f"{suite.name}.jsonl*"))
    found = compare(suite, [*read_rows([place / "rows"]), *published])

    totals = {}
    for name in ("worst_minus_best", "best_minus_reference"):
        separated = sum(Interval(*each[name]).low > 0 for each in found)
        totals[name] = separated
        print(f"{name.replace('_', ' ')}: above 0 on {separated} of {len(found)} instances")
    points = {each.name: worst.point(each) for each in suite.test}
    extra = {"separated": totals, "worst_points": points}
    write_result(config.out, "signal", {"suite": suite.name}, found, extra)
    print(f"written: {config.out}")


if __name__ == "__main__":
    main()
