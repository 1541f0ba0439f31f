"""The field of a suite: baselines, tuned with the same number of runs, and their rows.

`python -m baselines.field --suite smoke` tunes every baseline on every test instance, computes its
rows, and writes the board. What is there already is not computed again.

Every search has RUNS runs on the probe loss of an instance. A baseline with one coordinate, such as
a learning rate for all tensors, has a best point with worse points on both sides. A schedule of
several rates is searched by random points, CMA-ES, TPE, ASHA or PBT. The last two need Ray, and are
searched if they are named.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from baselines.boards import publish, rows_and_board, run_searches
from baselines.methods import BOUNDS, FIELD, Baseline
from baselines.searches import RUNS, SEARCHES
from baselines.trials import Point, Trials, tuning_seeds
from hpenv.arrays import BoolArray, FloatArray
from hpenv.benchmark.command_line import configuration, refusals
from hpenv.benchmark.files import check_folder, write_text
from hpenv.benchmark.instances import Instance, load_suite, seed_of
from hpenv.benchmark.methods import Method
from hpenv.benchmark.references import AtNeutral
from hpenv.benchmark.scoring import FOLDER
from hpenv.policies.controller import Columns, Controller, ControllerSpec, begin, teach

#: What was found: method -> digest of an instance -> point.
TUNED = Path(__file__).with_name("tuned")
#: Baselines whose search needs no package that the lock leaves out.
DEFAULT = tuple(name for name, each in FIELD.items() if SEARCHES[each.search].extra != "ray")


class Tuned:
    """A baseline at its tuned point of every instance, as a controller."""

    def __init__(self, name: str, folder: Path = TUNED) -> None:
        searches = read_searches(name, folder)
        self._name, self._points = name, {key: each["point"] for key, each in searches.items()}
        self._runs = {key: float(each.get("runs", RUNS)) for key, each in searches.items()}
        self._acting: Controller = AtNeutral()

    def digest(self, instances: Sequence[Instance]) -> str:
        """Returns a hash of the tuned points of some instances and of what the baseline is."""
        points = {each.digest: self._points.get(each.digest) for each in instances}
        text = json.dumps([self._name, self.baseline.doc, points], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def costs_on(self, instances: Sequence[Instance]) -> dict[str, float]:
        """Returns the runs of an instance that were spent by tokens, their mean over instances."""
        runs = [self._runs.get(each.digest, float(RUNS)) for each in instances]
        return {"meta_training": 0.0, "tuning": float(np.mean(runs))}

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


def read_searches(name: str, folder: Path) -> dict[str, dict[str, Any]]:
    """Returns digest of an instance -> search of a baseline. Empty if there are none."""
    files = sorted((folder / name).glob("*.json"))
    searches = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    return {each["digest"]: each for each in searches}


def method(name: str, instances: Sequence[Instance], folder: Path = TUNED) -> Method:
    """Returns a baseline that is tuned on some instances as a method of the board."""
    tuned = Tuned(name, folder)
    return Method(name, tuned, tuned.digest(instances), tuned.costs_on(instances))


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
    baseline, instance = FIELD[search.name], search.instance
    kind = SEARCHES[baseline.search]
    seeds = tuning_seeds(instance, kind.seeds)
    loss = Trials(instance, tuple(seeds), baseline.arguments, baseline.controller)
    seed = seed_of(f"search/{search.name}", instance.digest, 0)
    best, table, facts = kind.find(loss, baseline.start, BOUNDS, RUNS // kind.seeds, seed)
    found = {
        "digest": instance.digest,
        "point": best,
        **facts,
        "points": [[*point.values(), score] for point, score in table],
        "seeds": seeds,
    }
    write_text(search.file, json.dumps(found) + "\n")


@dataclass(frozen=True)
class FieldConfig:
    """Configuration of the field's run."""

    suite: str = "smoke"  # name of a suite
    baselines: tuple[str, ...] = DEFAULT  # keys of FIELD; `asha` and `pbt` need Ray
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
        for each in searches:
            if not each.file.is_file():
                SEARCHES[FIELD[each.name].search].check_package()

    run_searches(tune, searches, config.executor, "tuning")
    methods = [method(name, suite.test, config.tuned) for name in config.baselines]
    rows_and_board(suite, methods, place, config.executor)
    if config.publish:
        publish(suite, place)


if __name__ == "__main__":
    main()
