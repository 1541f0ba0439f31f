"""ASHA and population-based training (PBT) through Ray Tune, on one machine.

Both advance runs in equal parts and compare their probe losses after each part. ASHA stops runs
that are behind. PBT replaces members of a population by copies of better ones, at another learning
rate. One trial trains at a time, so that a search is a function of its seed.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from baselines.sweeps import RandomStrategy
from baselines.trials import Bounds, Found, Parts, Point, Trials, point_at

#: Parts of a run under ASHA. Runs are compared after 1, 3 and 9 of them.
ASHA_PARTS, ASHA_FACTOR = 9, 3
#: Factor of a mutation of the learning rate, up or down.
MUTATION = 2.0
#: Fraction of a population that is replaced after a part.
REPLACED = 0.25


def search_asha(loss: Trials, start: Point, bounds: Bounds, budget: int, seed: int) -> Found:
    """Samples points at random, and stops those that are behind (ASHA, Li et al. 2020).

    It samples until the budget is spent. The best point is that of the best run that was not
    stopped.
    """
    tune, schedulers = _modules("ray.tune", "ray.tune.schedulers")
    most = budget * ASHA_PARTS
    positions = RandomStrategy(most, (len(start), 1), seed).ask()
    configs = [{"point": point_at(each, start, bounds), "multiplier": 1.0} for each in positions]
    scheduler = schedulers.ASHAScheduler(
        time_attr="training_iteration",
        max_t=ASHA_PARTS,
        grace_period=1,
        reduction_factor=ASHA_FACTOR,
    )
    share = len(loss.seeds) / ASHA_PARTS  # of the next part, in whole runs

    class Budget(tune.Stopper):  # type: ignore[name-defined]
        """Stops the search before a part that is no longer in the budget."""

        def __init__(self) -> None:
            self._spent: dict[str, float] = {}

        def __call__(self, trial_id: str, result: Mapping[str, Any]) -> bool:
            self._spent[trial_id] = result["spent"]
            return self.stop_all()

        def stop_all(self) -> bool:
            return sum(self._spent.values()) + share > budget * len(loss.seeds)

    results = _results(_trainable(tune, loss, ASHA_PARTS), configs, scheduler, Budget(), 1, seed)
    table: list[tuple[Point, float]] = [(each["config"]["point"], each["loss"]) for each in results]
    whole = [entry for entry, each in zip(table, results, strict=True) if each["is_whole"]]
    facts = {
        "runs": sum(each["spent"] for each in results),
        "fractions": [each["spent"] / len(loss.seeds) for each in results],
    }
    return Found(min(whole, key=lambda entry: entry[1])[0], table, facts)


def search_pbt(loss: Trials, start: Point, bounds: Bounds, budget: int, seed: int) -> Found:
    """Trains a population of `budget` members (PBT, Jaderberg et al. 2017).

    The first learning rates are log-uniform. After every part, the worst quarter of the members
    continues from snapshots of the best quarter, at twice or half their rate. A point is the
    lineage of a member: the rates of its parts, those of the members it descends from included.
    """
    tune, schedulers = _modules("ray.tune", "ray.tune.schedulers")
    center = next(iter(start.values()))
    low, high = (bound / center for bound in bounds)
    positions = RandomStrategy(budget, (1, 1), seed).ask()
    configs = [
        {"point": dict(start), **point_at(each, ["multiplier"], (low, high))} for each in positions
    ]
    scheduler = schedulers.PopulationBasedTraining(
        time_attr="training_iteration",
        perturbation_interval=1,
        hyperparam_mutations={"multiplier": tune.loguniform(low, high)},
        perturbation_factors=(MUTATION, 1.0 / MUTATION),
        resample_probability=0.0,
        quantile_fraction=REPLACED,
        synch=True,
    )
    member = _trainable(tune, loss, len(start), (low, high))
    results = _results(member, configs, scheduler, None, 0, seed)
    table: list[tuple[Point, float]] = [
        ({f"lr/{i}": center * each for i, each in enumerate(result["lineage"])}, result["loss"])
        for result in results
    ]
    runs = sum(result["spent"] for result in results)
    return Found(min(table, key=lambda entry: entry[1])[0], table, {"runs": runs})


def _modules(*names: str) -> list[Any]:
    """Returns modules of Ray.

    Raises:
        ModuleNotFoundError: naming the extra.
    """
    try:
        return [importlib.import_module(name) for name in names]
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"ASHA and PBT need Ray Tune ({error}); install it with: pip install 'hpenv[ray]'"
        ) from error


def _trainable(tune: Any, loss: Trials, count: int, bounds: Bounds | None = None) -> Any:
    """Returns the class of a trial of Ray Tune: the runs of a point, in `count` parts.

    Args:
        tune: the module `ray.tune`.
        loss: the runs.
        count: largest number of parts.
        bounds: of the multiplier of the learning rate. None: there is no multiplier.
    """

    class Trial(tune.Trainable):
        def setup(self, config: dict[str, Any]) -> None:
            torch.set_num_threads(1)
            self._point: Point = {}
            self._parts: Parts
            self.reset_config(config)

        def reset_config(self, config: dict[str, Any]) -> bool:
            if config["point"] == self._point:
                self._parts.begin()
            else:
                self._point = dict(config["point"])
                self._parts = loss.parts(self._point, count, bounds is not None)
            self._multiplier, self._lineage = config["multiplier"], list[float]()
            return True

        def step(self) -> dict[str, Any]:
            if bounds is not None:
                self._multiplier = min(max(self._multiplier, bounds[0]), bounds[1])
            found, spent = self._parts.advance(self._multiplier)
            self._lineage.append(self._multiplier)
            is_whole = len(self._lineage) == self._parts.count
            facts = {"spent": spent, "is_whole": is_whole, "lineage": list(self._lineage)}
            return {"loss": found, "done": is_whole, **facts}

        def save_checkpoint(self, folder: str) -> dict[str, Any]:
            return {"lineage": list(self._lineage), **self._parts.state()}

        def load_checkpoint(self, state: dict[str, Any]) -> None:
            self._lineage = list(state["lineage"])
            self._parts.set_state(state)

    return Trial


def _results(
    trainable: Any,
    configs: Sequence[Mapping[str, Any]],
    scheduler: Any,
    stop: Any,
    concurrent: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Runs the trials of configurations, and returns the last report of each that has begun."""
    ray, tune, variants = _modules("ray", "ray.tune", "ray.tune.search.basic_variant")
    with _cluster(ray), _seeded(seed), tempfile.TemporaryDirectory() as folder:
        tuner = tune.Tuner(
            tune.with_resources(trainable, {"cpu": 1}),
            param_space=tune.grid_search([dict(each) for each in configs]),
            tune_config=tune.TuneConfig(
                metric="loss",
                mode="min",
                scheduler=scheduler,
                search_alg=variants.BasicVariantGenerator(max_concurrent=concurrent),
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                storage_path=folder,
                stop=stop,
                verbose=0,
                checkpoint_config=tune.CheckpointConfig(num_to_keep=3),
            ),
        )
        logging.getLogger("ray.tune").setLevel(logging.ERROR)  # not a line for every copy
        with contextlib.redirect_stdout(io.StringIO()):  # its tables
            grid = tuner.fit()
        for error in grid.errors:
            raise error
        return [each.metrics for each in grid if each.metrics and "loss" in each.metrics]


@contextlib.contextmanager
def _cluster(ray: Any) -> Iterator[None]:
    """Starts Ray with one core on this machine, unless it runs already, and ends what it began."""
    is_ours = not ray.is_initialized()
    if is_ours:
        ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        yield
    finally:
        if is_ours:
            ray.shutdown()


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seeds Python's global generator, which PBT draws from, and restores it."""
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)
