"""The field of a suite: baselines, tuned with the same number of runs, and their rows.

`python -m baselines.field --suite smoke` tunes every baseline on every test instance, computes its
rows, and writes the board. What is there already is not computed again.

A baseline has one coordinate, such as a learning rate for all tensors. Its search has NUM_POINTS
points of TUNING_SEEDS runs each, on the probe loss. The best point has worse points on both sides.
Rates, decays and schedules are arguments of the plant, true at every step.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from baselines.schedules import (
    BASELINES,
    groups_of,
    hand_tuned_rates,
    nanochat_rates,
    schedule_free,
)
from baselines.trials import tuning_loss, tuning_seeds
from baselines.tuning import TOLERANCE, spend
from hpenv.arrays import BoolArray, FloatArray
from hpenv.benchmark.command_line import configuration, refusals
from hpenv.benchmark.executors import open_executor, run_all
from hpenv.benchmark.files import check_folder, write_text
from hpenv.benchmark.instances import Instance, Suite, load_suite
from hpenv.benchmark.methods import OFF, REFERENCE, Method
from hpenv.benchmark.progress import progress
from hpenv.benchmark.references import AtNeutral
from hpenv.benchmark.rows import is_done, line_of, read_rows
from hpenv.benchmark.scoring import FIELD as PUBLISHED
from hpenv.benchmark.scoring import (
    FOLDER,
    all_blocks,
    needs_reference,
    reference_method,
    run_methods,
    write_board,
)
from hpenv.policies.adaptive_rates import AdaLRS, Hypergradient, UpdateRatio
from hpenv.policies.controller import Columns, Controller, ControllerSpec, begin, teach

#: Size of the search of every baseline on an instance: points, and runs of each.
NUM_POINTS, TUNING_SEEDS = 8, 2
#: Published rows of this size are compressed [characters].
LARGE = 1_000_000
#: What was found: method -> digest of an instance -> point.
TUNED = Path(__file__).with_name("tuned")
#: First learning rate of a search over one rate for all tensors.
FIRST_LR = 0.01

Point = Mapping[str, float]


@dataclass(frozen=True)
class Baseline:
    """A baseline with one coordinate.

    Attributes:
        doc: what it is, with its source.
        start: coordinate -> first value.
        arguments: function from an instance and a point to the arguments that it changes.
        controller: function from an instance and a point to the controller that acts, or None.
    """

    doc: str
    start: Mapping[str, float]
    arguments: Callable[[Instance, Point], dict[str, Any]]
    controller: Callable[[Instance, Point], Controller] | None = None


def _one_rate(schedule: Any, instance: Instance, point: Point) -> dict[str, Any]:
    """Returns one learning rate for all tensors, under a schedule."""
    return {"base_lr": point["lr"], "schedule": schedule}


def _scaled(
    rates: Callable[[str], dict[str, dict[str, float]]], instance: Instance, point: Point
) -> dict[str, Any]:
    """Returns known rates of every group times one factor, under the paper's schedule."""
    found = rates("nano")
    groups = groups_of(str(instance.arguments["preset"]))
    return {
        "base_lr": {group: point["factor"] * found["base_lr"][group] for group in groups},
        "base_weight_decay": {group: found["base_weight_decay"][group] for group in groups},
        "schedule": "warmup_flat_warmdown",
    }


def _nanochat(instance: Instance, point: Point) -> dict[str, Any]:
    preset, num_steps = str(instance.arguments["preset"]), int(instance.arguments["num_steps"])
    given = BASELINES["nanochat"](num_steps, preset).env_kwargs
    rates = nanochat_rates(preset)["base_lr"]
    return given | {"base_lr": {group: point["factor"] * rate for group, rate in rates.items()}}


def _schedule_free(instance: Instance, point: Point) -> dict[str, Any]:
    preset, num_steps = str(instance.arguments["preset"]), int(instance.arguments["num_steps"])
    return schedule_free("adamw", point["lr"], 0.01, 16.0, num_steps, groups_of(preset))


def _power(instance: Instance, point: Point) -> dict[str, Any]:
    flat = max(1, int(instance.arguments["num_steps"]) // 10)
    return {"base_lr": point["lr"], "schedule": {"name": "power_decay", "flat_steps": flat}}


def _parameter_free(optimizer: str, instance: Instance, point: Point) -> dict[str, Any]:
    """Returns a rule that estimates its rate, at a multiplier of the estimate, under a cosine."""
    return {"optimizer": optimizer, "base_lr": point["multiplier"], "schedule": "cosine"}


def _adapted(instance: Instance, point: Point) -> dict[str, Any]:
    """Returns the rate at which an adaptive controller begins, without a base schedule."""
    return {"base_lr": point["lr"], "schedule": "none"}


def nanochat_base(instance: Instance, point: Point) -> dict[str, Any]:
    """Returns nanochat's rates, from which the controller of the update ratio begins."""
    rates = nanochat_rates(str(instance.arguments["preset"]))["base_lr"]
    return {"base_lr": rates, "schedule": "none"}


def _rate(doc: str, schedule: Any) -> Baseline:
    return Baseline(doc, {"lr": FIRST_LR}, partial(_one_rate, schedule))


#: Name -> baseline.
FIELD: dict[str, Baseline] = {
    "constant": _rate("one constant rate for all tensors", "none"),
    "warmdown": _rate("one rate, 40 % linear warmdown (JEL, section 4.1)", "warmup_flat_warmdown"),
    "cosine": _rate("one rate, cosine to zero (Loshchilov & Hutter 2017)", "cosine"),
    "linear_decay": _rate("one rate, linear decay to zero", "linear_decay"),
    "wsd": _rate(
        "one rate, warmup, stable, 20 % linear decay (Hu et al. 2024)",
        {"name": "warmup_flat_warmdown", "warmdown_fraction": 0.2},
    ),
    "sqrt_cooldown": _rate(
        "one rate, stable, 1-sqrt cooldown (Haegele et al. 2024)", "sqrt_cooldown"
    ),
    "power": Baseline("one rate under a power law (Shen et al. 2024)", {"lr": FIRST_LR}, _power),
    "prodigy": Baseline(
        "Prodigy under a cosine (Mishchenko & Defazio 2023)",
        {"multiplier": 1.0},
        partial(_parameter_free, "prodigy"),
    ),
    "dadapt_adamw": Baseline(
        "D-Adaptation's AdamW under a cosine (Defazio & Mishchenko 2023)",
        {"multiplier": 1.0},
        partial(_parameter_free, "dadapt_adamw"),
    ),
    "update_ratio": Baseline(
        "a constant update-to-weight ratio per group, held by feedback",
        {"target": 0.01},
        nanochat_base,
        lambda instance, point: UpdateRatio(point["target"]),
    ),
    "hypergradient": Baseline(
        "hypergradient descent per group, from one rate (Baydin et al. 2018)",
        {"lr": FIRST_LR},
        _adapted,
        lambda instance, point: Hypergradient(),
    ),
    "adalrs": Baseline(
        "AdaLRS from one rate (Dong et al. 2025)",
        {"lr": FIRST_LR},
        _adapted,
        lambda instance, point: AdaLRS(),
    ),
    "schedule_free": Baseline(
        "schedule-free AdamW beside Muon at nanochat's rate (Defazio et al. 2024)",
        {"lr": 0.02},
        _schedule_free,
    ),
    "hand_tuned": Baseline(
        "per-group rates tuned on jel-nano times one factor",
        {"factor": 1.0},
        partial(_scaled, hand_tuned_rates),
    ),
    "nanochat": Baseline("nanochat's rates, schedules and Muon", {"factor": 1.0}, _nanochat),
}


class Tuned:
    """A baseline at its tuned point of every instance, as a controller."""

    #: Runs of the search of an instance.
    costs = {"meta_training": 0.0, "tuning": float(NUM_POINTS * TUNING_SEEDS)}

    def __init__(self, name: str, folder: Path = TUNED) -> None:
        self._name, self._points = name, read_points(name, folder)
        self._acting: Controller = AtNeutral()

    def digest(self, instances: Sequence[Instance]) -> str:
        """Returns a hash of the tuned points of some instances and of what the baseline is."""
        points = {each.digest: self._points.get(each.digest) for each in instances}
        text = json.dumps([self._name, self.baseline.doc, points], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def baseline(self) -> Baseline:
        """The baseline."""
        return FIELD[self._name]

    def point(self, instance: Instance) -> Point:
        """Returns the tuned point of an instance.

        Raises:
            ValueError: the baseline is not tuned on the instance.
        """
        if instance.digest not in self._points:
            raise ValueError(f"{instance.name} must be tuned; run: python -m baselines.field")
        return self._points[instance.digest]

    def arguments(self, instance: Instance) -> dict[str, Any]:
        """Returns the arguments of the instance at its tuned point, and takes its controller.

        Raises:
            ValueError: see `point`.
        """
        point, baseline = self.point(instance), self.baseline
        if baseline.controller is not None:
            self._acting = baseline.controller(instance, point)
        return baseline.arguments(instance, point)

    @property
    def spec(self) -> ControllerSpec:
        """The spec of the controller that acts."""
        return self._acting.spec

    def reset(self, columns: Columns) -> None:
        """Begins new runs."""
        begin(self._acting, columns)

    def act(self, observations: FloatArray) -> NDArray[np.float32]:
        """Returns positions, (N, A)."""
        return self._acting.act(observations)

    def learn(self, rewards: FloatArray, alive: BoolArray) -> dict[str, float]:
        """Gives the controller its rewards."""
        return teach(self._acting, rewards, alive)


def read_points(name: str, folder: Path) -> dict[str, dict[str, float]]:
    """Returns digest of an instance -> tuned point of a baseline. Empty if there are none."""
    found = {}
    for file in sorted((folder / name).glob("*.json")):
        values = json.loads(file.read_text(encoding="utf-8"))
        found[values["digest"]] = values["point"]
    return found


def method(name: str, instances: Sequence[Instance], folder: Path = TUNED) -> Method:
    """Returns a baseline that is tuned on some instances as a method of the board."""
    tuned = Tuned(name, folder)
    return Method(name, tuned, tuned.digest(instances), tuned.costs)


@dataclass(frozen=True)
class Search:
    """One search: a baseline on an instance, with the file of its result."""

    name: str
    instance: Instance
    folder: Path

    @property
    def file(self) -> Path:
        """Path of the result."""
        return self.folder / self.name / f"{self.instance.name}.{self.instance.digest}.json"

    @property
    def label(self) -> str:
        """Name in messages."""
        return f"tuning of {self.name} on {self.instance.name}"


def tune(search: Search) -> None:
    """Searches, and writes the tuned point with the table of the search."""
    baseline, seeds = FIELD[search.name], tuning_seeds(search.instance, TUNING_SEEDS)

    def loss(point: Point) -> float:
        changed = baseline.arguments(search.instance, point)
        make = baseline.controller
        acting = None if make is None else make(search.instance, point)
        return tuning_loss(search.instance, changed, seeds, acting)

    best, table, around = spend(loss, baseline.start, NUM_POINTS, tolerance=TOLERANCE)
    found = {
        "digest": search.instance.digest,
        "point": best,
        "neighbors": around,
        "points": [[*entry["point"].values(), entry["score"]] for entry in table],
        "seeds": seeds,
    }
    write_text(search.file, json.dumps(found) + "\n")


@dataclass(frozen=True)
class FieldConfig:
    """Configuration of the field's run."""

    suite: str = "smoke"  # name of a suite
    baselines: tuple[str, ...] = tuple(FIELD)  # keys of FIELD
    executor: str = "processes"  # see hpenv.benchmark.executors
    folder: Path = FOLDER  # folder of rows and boards
    tuned: Path = TUNED  # folder of the tuned points
    publish: bool = False  # also write all rows to the package, for the ranks of other controllers

    def __post_init__(self) -> None:
        """Checks the names."""
        if unknown := sorted(set(self.baselines) - set(FIELD)):
            raise ValueError(f"baselines must be of {sorted(FIELD)}; got {unknown}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Tunes what is not tuned, computes the rows that are missing, and writes the board."""
    config = configuration(FieldConfig, "baselines.field", __doc__, arguments)
    with refusals():
        suite = load_suite(config.suite)
        place = config.folder / suite.name
        check_folder("folder", place)
        check_folder("tuned", config.tuned)

    searches = [
        Search(name, instance, config.tuned)
        for name, instance in product(config.baselines, suite.test)
    ]
    left = [search for search in searches if not search.file.is_file()]
    with (
        open_executor(config.executor) as executor,
        progress(len(searches), "tuning", len(searches) - len(left)) as advance,
    ):
        for search, _ in run_all(tune, left, executor, name=lambda search: search.label):
            advance(1, search.label)

    methods = [method(name, suite.test, config.tuned) for name in config.baselines]
    rows_and_board(suite, methods, place, config.executor)
    if config.publish:
        publish(suite, place)


def publish(suite: Suite, place: Path) -> None:
    """Writes the rows of a suite to the package, compressed if they are many."""
    rows = [row for row in read_rows([place / "rows"]) if row["method"] != REFERENCE]
    text = "".join(map(line_of, rows))
    for file in PUBLISHED.glob(f"{suite.name}.jsonl*"):
        file.unlink()
    if len(text) < LARGE:
        write_text(PUBLISHED / f"{suite.name}.jsonl", text)
    else:
        packed = gzip.compress(text.encode(), mtime=0)
        (PUBLISHED / f"{suite.name}.jsonl.gz").write_bytes(packed)


def rows_and_board(suite: Suite, methods: Sequence[Method], place: Path, executor: str) -> None:
    """Computes the missing rows of methods and of `off`, writes the board, and prints it."""
    methods = [Method(OFF, None), *methods]
    with refusals():
        for block in all_blocks(suite, methods, place):
            is_done(block)
    run_methods(suite, methods, place, executor=executor)
    if needs_reference(suite, place):
        run_methods(suite, [reference_method(suite)], place, executor=executor)

    _, page = write_board(suite, place)
    print((place / "board.md").read_text(encoding="utf-8"), end="")
    print(f"page: {page}")


if __name__ == "__main__":
    main()
