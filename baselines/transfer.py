"""Methods at one point for all instances: `python -m baselines.transfer --suite pretraining-v1`.

A baseline of the field has a tuned point on every test instance. A method here has one point, the
best over train instances of a suite, and is scored on test instances that its search has not seen.
The search minimizes the mean logarithm of the probe loss over every second train instance, with one
run of each. What was found before is not searched again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from baselines.boards import publish, rows_and_board, run_searches
from baselines.field import Tuned
from baselines.methods import FIELD, ONE_COORDINATE, Baseline, nanochat_base
from baselines.references import ADAMW_MATRIX_LR, WARMDOWN, arguments_of, start_of
from baselines.searches import NUM_POINTS
from baselines.trials import Point, tuning_loss, tuning_seeds
from baselines.tuning import TOLERANCE, closed_search, spend
from hpenv.benchmark.command_line import configuration, refusals
from hpenv.benchmark.files import check_folder, write_text
from hpenv.benchmark.instances import Instance, Suite, load_suite
from hpenv.benchmark.methods import Method
from hpenv.benchmark.scoring import FOLDER
from hpenv.policies.adaptive_rates import UpdateRatio

#: What was found: suite -> method -> point.
FOUND = Path(__file__).with_name("transferred")
#: Points of a search with more than one coordinate, if its best point has no untried side then.
MANY_POINTS = 24
#: A search runs every so many-th train instance.
STRIDE = 2
#: Steps per decision of the laws [steps].
INTERVAL = 5
#: Coordinate that `group_rates` leaves at nanochat's value.
DECAY = "weight_decay/matrix"
#: Coordinate of the matrices' rate under AdamW, for instances without Muon.
ADAMW_MATRIX = "lr/matrix_adamw"
#: Coordinate of the matrices' update-to-weight ratio under AdamW, whose updates have a lower rank.
ADAMW_RATIO = "ratio/matrix_adamw"


def _group_rates(instance: Instance, point: Point) -> dict[str, Any]:
    """Returns rates per group and a warmdown, with two rates of the matrices."""
    values = dict(point) | {DECAY: start_of(instance)[DECAY]}
    adamw = values.pop(ADAMW_MATRIX)
    if "muon" not in str(instance.arguments["optimizer"]):
        values["lr/matrix"] = adamw
    return arguments_of(instance, values)


def _law(instance: Instance, point: Point) -> UpdateRatio:
    targets = {
        name.removeprefix("ratio/"): value
        for name, value in point.items()
        if name.startswith("ratio/")
    }
    return UpdateRatio(targets, warmdown=min(1.0, point["warmdown"]), interval=INTERVAL)


def _law_by_optimizer(instance: Instance, point: Point) -> UpdateRatio:
    """Returns the law with one of two targets of the matrices."""
    values = dict(point)
    adamw = values.pop(ADAMW_RATIO)
    if "muon" not in str(instance.arguments["optimizer"]):
        values["ratio/matrix"] = adamw
    return _law(instance, values)


def _base_by_optimizer(instance: Instance, point: Point) -> dict[str, Any]:
    """Returns nanochat's rates, with the matrices' own under AdamW. Muon's is too high there."""
    changed = nanochat_base(instance, point)
    if "muon" not in str(instance.arguments["optimizer"]):
        changed["base_lr"] = changed["base_lr"] | {"matrix": ADAMW_MATRIX_LR}
    return changed


def _nothing(instance: Instance, point: Point) -> dict[str, Any]:
    """Leaves the instance's base rates and schedule: the law multiplies them."""
    return {}


_RATIOS = {
    "ratio/embedding": 0.02,
    "ratio/matrix": 0.02,
    "ratio/unembedding": 0.02,
    "warmdown": WARMDOWN,
}


def _first_rates() -> dict[str, float]:
    rates = start_of(load_suite("jel-nano").test[0]) | {ADAMW_MATRIX: ADAMW_MATRIX_LR}
    return {name: value for name, value in rates.items() if name != DECAY}


#: Methods with several coordinates: name -> method.
LAWS: dict[str, Baseline] = {
    "group_rates": Baseline(
        "one learning rate per group and one warmdown, with nanochat's weight decay",
        _first_rates(),
        _group_rates,
    ),
    "ratio_law": Baseline(
        "an update-to-weight ratio per group, held by feedback, from nanochat's rates",
        _RATIOS,
        nanochat_base,
        _law,
    ),
    "ratio_law_by_optimizer": Baseline(
        "the same law with two targets and two first rates of the matrices, for Muon and AdamW",
        _RATIOS | {ADAMW_RATIO: 0.02},
        _base_by_optimizer,
        _law_by_optimizer,
    ),
    "ratio_law_multiplier": Baseline(
        "the same law and targets, which multiplies the instance's rates by 0.01 to 100",
        _RATIOS,
        _nothing,
        _law,
    ),
}
#: Method -> the method whose search serves it too.
SHARED = {"ratio_law_multiplier": "ratio_law"}
#: Baselines of the field that are searched by default.
SINGLES = ("constant", "warmdown", "schedule_free", "prodigy")
#: Every method with one point: name -> method.
TRANSFERS: dict[str, Baseline] = {name: FIELD[name] for name in ONE_COORDINATE} | LAWS


def points_of(name: str) -> int:
    """Returns the number of points of a method's search."""
    return NUM_POINTS if len(TRANSFERS[name].start) == 1 else MANY_POINTS


class Transferred(Tuned):
    """A method at its point of the train instances, on any instance."""

    def __init__(self, name: str, suite: Suite, folder: Path = FOUND) -> None:
        """Reads the point.

        Raises:
            ValueError: it has not been searched.
        """
        super().__init__(name)
        file = Search(name, suite, folder).file
        if not file.is_file():
            raise ValueError(
                f"{name} must be searched on {suite.name}; there is no {file}; "
                f"run: python -m baselines.transfer --suite {suite.name} --methods {name}"
            )
        found = json.loads(file.read_text(encoding="utf-8"))
        self._point: Point = found["point"]
        self._points = {each.digest: dict(self._point) for each in suite.test}
        num_runs = len(found["points"]) * len(found["instances"])
        self._num_runs = float(num_runs)

    def costs_on(self, instances: Sequence[Instance]) -> dict[str, float]:
        """Returns the runs of the search in all, which serve every instance."""
        return {"meta_training": self._num_runs, "tuning": 0.0}

    @property
    def baseline(self) -> Baseline:
        """The method."""
        return TRANSFERS[self._name]

    def point(self, instance: Instance) -> Point:
        """Returns the point, which is the same for all instances."""
        return self._point


def method(name: str, suite: Suite, folder: Path = FOUND) -> Method:
    """Returns a method at its point of the train instances, as `<name>-train` of the board."""
    found = Transferred(name, suite, folder)
    return Method(f"{name}-train", found, found.digest(suite.test), found.costs_on(suite.test))


@dataclass(frozen=True)
class Search:
    """One search: a method on the train instances of a suite."""

    name: str
    suite: Suite
    folder: Path

    @property
    def file(self) -> Path:
        """Path of the result."""
        return self.folder / self.suite.name / f"{SHARED.get(self.name, self.name)}.json"

    @property
    def label(self) -> str:
        """Name in messages."""
        return f"{self.name} on the train instances of {self.suite.name}"


def _mean_log_loss(baseline: Baseline, instances: Sequence[Instance], point: Point) -> float:
    """Returns the mean over the instances of log(probe loss), with one run of each."""
    losses = [
        tuning_loss(
            instance,
            baseline.arguments(instance, point),
            tuning_seeds(instance, 1),
            None if baseline.controller is None else baseline.controller(instance, point),
        )
        for instance in instances
    ]
    return float(np.mean(np.log(losses)))


def search(one: Search) -> None:
    """Searches, and writes the point with the table of the search. A log makes it resumable."""
    baseline, train = TRANSFERS[one.name], one.suite.train[::STRIDE]
    log = one.file.with_suffix(".log.jsonl")
    description = {"instances": [each.digest for each in train], "method": baseline.doc}
    loss = partial(_mean_log_loss, baseline, train)
    best, table, around = closed_search(
        lambda count: spend(loss, baseline.start, count, log, description, TOLERANCE),
        points_of(one.name),
    )
    found: Mapping[str, Any] = {
        "point": best,
        "neighbors": around,
        "coordinates": list(best),
        "points": [[*entry["point"].values(), entry["score"]] for entry in table],
        "instances": [each.digest for each in train],
    }
    write_text(one.file, json.dumps(found) + "\n")
    log.unlink()


@dataclass(frozen=True)
class TransferConfig:
    """Configuration of the searches on train instances, and of the rows on test instances."""

    suite: str = "pretraining-v1"  # name of a suite with train instances
    methods: tuple[str, ...] = (*LAWS, *SINGLES)  # keys of TRANSFERS
    executor: str = "processes"  # see hpenv.benchmark.executors
    found: Path = FOUND  # folder of the points
    folder: Path = FOLDER  # folder of rows and boards
    rows: bool = True  # also compute the rows of the test instances, and write the board
    publish: bool = False  # also write all rows to the package, for the ranks of other controllers

    def __post_init__(self) -> None:
        """Checks the names."""
        if unknown := sorted(set(self.methods) - set(TRANSFERS)):
            raise ValueError(f"methods must be of {sorted(TRANSFERS)}; got {unknown}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Searches what has not been searched, computes the rows that are missing, and the board."""
    config = configuration(TransferConfig, "baselines.transfer", __doc__, arguments)
    with refusals():
        suite = load_suite(config.suite)
        if not suite.train:
            raise ValueError(f"suite must have train instances; {suite.name} has none")
        check_folder("found", config.found)
        check_folder("folder", config.folder / suite.name)

    names = dict.fromkeys(SHARED.get(name, name) for name in config.methods)
    searches = [Search(name, suite, config.found) for name in names]
    run_searches(search, searches, config.executor, "searches")
    for each in searches:
        print(f"{each.name}: {json.loads(each.file.read_text(encoding='utf-8'))['point']}")
    if config.rows:
        methods = [method(name, suite, config.found) for name in config.methods]
        rows_and_board(suite, methods, config.folder / suite.name, config.executor)
    if config.publish:
        publish(suite, config.folder / suite.name)


if __name__ == "__main__":
    main()
