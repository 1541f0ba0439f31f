"""Runs for tuning on an instance. They see the probe loss alone, never validation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hpenv.benchmark.environments import columns_of, make_population
from hpenv.benchmark.evaluate import probe_loss
from hpenv.benchmark.instances import Instance, seed_of
from hpenv.policies.controller import Controller, begin, teach

#: Loss of a run that diverged [nats per token].
DIVERGED = 1e3


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

    losses = np.where(diverged, DIVERGED, probe_loss(env))
    return float(np.nan_to_num(losses, nan=DIVERGED).mean())
