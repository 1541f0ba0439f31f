"""Runs for tuning on an instance. They see the probe loss alone, never validation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from hpenv.arrays import BoolArray, FloatArray
from hpenv.benchmark.environments import columns_of, make_population
from hpenv.benchmark.evaluate import probe_loss
from hpenv.benchmark.instances import Instance, seed_of
from hpenv.branching import restore, snapshot
from hpenv.env import TrainLoopVectorEnv
from hpenv.policies.adaptive_rates import LARGEST
from hpenv.policies.controller import Controller, begin, teach

#: Loss of a run that diverged [nats per token].
DIVERGED = 1e3

Point = Mapping[str, float]
#: Smallest and largest value of every coordinate.
Bounds = tuple[float, float]


class Found(NamedTuple):
    """Result of a search.

    Attributes:
        best: the best point.
        table: point and mean probe loss of every trial [nats per token].
        facts: further facts for the file of the search, such as `neighbors` of the best point, or
            the `runs` that were spent if they are not the budget.
    """

    best: Point
    table: list[tuple[Point, float]]
    facts: Mapping[str, Any]


def point_at(positions: FloatArray, names: Iterable[str], bounds: Bounds) -> dict[str, float]:
    """Returns the point whose coordinates have these positions, in [-1, 1], between the bounds.

    A position is even in the logarithm: -1 is the lower bound, 1 the upper one.
    """
    low, high = bounds
    fractions = (np.asarray(positions, dtype=np.float64).ravel() + 1.0) / 2.0
    values = low * (high / low) ** fractions
    return dict(zip(names, values.tolist(), strict=True))


def tuning_seeds(instance: Instance, count: int) -> list[int]:
    """Returns the seeds of an instance's tuning, (count,). No scored run has them."""
    return [seed_of("tuning", instance.digest, i) for i in range(count)]


def tuning_loss(
    instance: Instance,
    changed: Mapping[str, Any],
    seeds: Sequence[int],
    controller: Controller | None = None,
) -> float:
    """Returns the mean probe loss at the end of an instance's runs [nats per token].

    Args:
        instance: the instance.
        changed: arguments that replace the instance's.
        seeds: one per run.
        controller: a controller, or None.
    """
    arguments = dict(instance.arguments) | dict(changed) | {"num_registers": 0}
    if controller is None:
        arguments |= {"channels": [], "interval": arguments["num_steps"]}
    else:
        arguments |= controller.spec.arguments()

    env = make_population(instance.env_id, len(seeds), arguments)
    observations, _ = env.reset(seed=list(seeds))
    begin(controller, columns_of(env))
    alive, diverged = np.ones(len(seeds), dtype=bool), np.zeros(len(seeds), dtype=bool)
    idle = np.zeros((len(seeds), len(env.action_names)), dtype=np.float32)

    for _ in range(env.num_decisions):
        positions = idle if controller is None else controller.act(observations)
        observations, rewards, terminated, truncated, infos = env.step(positions)
        teach(controller, rewards, alive)
        alive = alive & ~(terminated | truncated)
        diverged |= infos["divergence"] > 0

    return _mean_loss(env, diverged)


def _mean_loss(env: TrainLoopVectorEnv, diverged: BoolArray) -> float:
    """Returns the mean probe loss of the runs as they stand [nats per token]."""
    losses = np.where(diverged, DIVERGED, probe_loss(env))
    return float(np.nan_to_num(losses, nan=DIVERGED).mean())


class Parts:
    """Runs that advance in equal parts, for searches that stop runs early or copy them.

    Args:
        instance: the instance.
        changed: arguments that replace the instance's.
        seeds: one per run.
        count: largest number of parts.
        is_steered: True: every part has a multiplier of the learning rate.
    """

    def __init__(
        self,
        instance: Instance,
        changed: Mapping[str, Any],
        seeds: Sequence[int],
        count: int,
        is_steered: bool = False,
    ) -> None:
        num_steps = int(instance.arguments["num_steps"])
        channels = [["lr", "run"]] if is_steered else []
        parts = {"channels": channels, "interval": math.ceil(num_steps / count)}
        arguments = dict(instance.arguments) | dict(changed) | {"num_registers": 0} | parts
        self._env = make_population(instance.env_id, len(seeds), arguments)
        self._seeds, self._num_steps = list(seeds), num_steps
        self.begin()

    def begin(self) -> None:
        """Begins the runs again."""
        self._env.reset(seed=self._seeds)
        self._diverged = np.zeros(len(self._seeds), dtype=bool)

    @property
    def count(self) -> int:
        """The number of parts."""
        return self._env.num_decisions

    def advance(self, multiplier: float = 1.0) -> tuple[float, float]:
        """Advances by one part.

        Args:
            multiplier: of the learning rate, within the bounds of the channel `lr`.

        Returns:
            The mean probe loss [nats per token], and the steps so far over those of one whole run,
            summed over the runs.
        """
        shape = (len(self._seeds), len(self._env.action_names))
        positions = np.full(shape, math.log(multiplier) / LARGEST, dtype=np.float32)
        infos = self._env.step(positions)[-1]
        self._diverged |= infos["divergence"] > 0
        spent = float(np.sum(infos["step"])) / self._num_steps
        return _mean_loss(self._env, self._diverged), spent

    def state(self) -> dict[str, Any]:
        """Returns everything that the next part depends on."""
        return {"runs": snapshot(self._env), "diverged": self._diverged.copy()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continues from what `state` returned, bitwise."""
        restore(self._env, state["runs"])
        self._diverged = state["diverged"].copy()


@dataclass(frozen=True)
class Trials:
    """Runs of a baseline on an instance, as a function from a point to the mean probe loss.

    Attributes:
        instance: the instance.
        seeds: one per run of every point.
        arguments: function from the instance and a point to the arguments that it changes.
        controller: function from the instance and a point to the controller that acts, or None.
    """

    instance: Instance
    seeds: tuple[int, ...]
    arguments: Callable[[Instance, Point], dict[str, Any]]
    controller: Callable[[Instance, Point], Controller] | None = None

    def __call__(self, point: Point) -> float:
        """Returns the mean probe loss of the runs of a point [nats per token]."""
        acting = None if self.controller is None else self.controller(self.instance, point)
        changed = self.arguments(self.instance, point)
        return tuning_loss(self.instance, changed, self.seeds, acting)

    def parts(self, point: Point, count: int, is_steered: bool = False) -> Parts:
        """Returns the runs of a point in at most `count` parts. No controller acts on them."""
        changed = self.arguments(self.instance, point)
        return Parts(self.instance, changed, self.seeds, count, is_steered)
