"""Tasks of updates: the training runs of one environment, or of the instances of a suite.

With a suite, the episodes of an update are runs of one of its train instances. All instances come
once in an order drawn from the seed, then again in another order. The base learning rate of an
update's runs may be drawn anew as well, so that a controller meets rates that no instance has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from hpenv.benchmark.instances import load_suite


class Task(NamedTuple):
    """Training runs of one kind.

    Attributes:
        name: name in logs.
        env_id: a registered id.
        arguments: keyword arguments of the env.
    """

    name: str
    env_id: str
    arguments: dict[str, Any]


class Tasks:
    """The task of every update, a pure function of the seed and the update's number.

    Args:
        suite: name of a suite with train instances.
        own: arguments of the controller, which replace those of an instance.
        decades: the base learning rate is multiplied by 10^u, u uniform in [-decades, decades].
        seed: seed of the order and of the rates.

    Raises:
        ValueError: the suite has no train instances, or their ids differ.
    """

    def __init__(self, suite: str, own: Mapping[str, Any], decades: float, seed: int) -> None:
        self._instances = load_suite(suite).train
        self._own, self._decades, self._seed = dict(own), decades, seed
        if not self._instances:
            raise ValueError(f"suite must have train instances; {suite} has none")
        if ids := {each.env_id for each in self._instances} - {self._instances[0].env_id}:
            raise ValueError(f"train instances must have one id; {suite} also has {sorted(ids)}")

    def __getitem__(self, update: int) -> Task:
        """Returns the task of an update, counted from 0."""
        count = len(self._instances)
        order = np.random.default_rng([self._seed, update // count]).permutation(count)
        instance = self._instances[order[update % count]]
        arguments = dict(instance.arguments) | self._own
        if self._decades:
            draw = np.random.default_rng([self._seed, update // count, update % count])
            factor = 10.0 ** float(draw.uniform(-self._decades, self._decades))
            arguments["base_lr"] = float(f"{arguments['base_lr'] * factor:.3g}")
        return Task(instance.name, instance.env_id, arguments)
