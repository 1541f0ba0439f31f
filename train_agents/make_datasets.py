"""Writes data sets of Minari, one for each teacher: `python -m train_agents.make_datasets`.

A teacher is a controller that somebody might learn from. `constant`, `cosine`, `wsd` and `random`
act by the env's own controls, so that their data sets hold what they did. `hand_tuned` is a run of
tuned base rates at neutral, because its rates are out of the controls' reach. `trained` is a saved
policy, given by `--controller`.

The data sets stand where Minari keeps its own (MINARI_DATASETS_PATH), as
`<namespace>/<teacher>-v0`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from baselines.schedules import hand_tuned
from hpenv.benchmark.command_line import check_counts, configuration, refusals
from hpenv.benchmark.controllers import load_controller
from hpenv.benchmark.environments import make_population, parse_assignments
from hpenv.control.channels import CHANNELS
from hpenv.env import TrainLoopVectorEnv
from hpenv.integrations.minari import export
from hpenv.optim.schedules import Constant, Cosine, Schedule, WarmupFlatWarmdown
from hpenv.policies.controller import Columns, Controller, ControllerSpec

#: A controller and the arguments of the env that it needs.
Teacher = tuple[Controller, dict[str, Any]]


class Plan:
    """Open-loop controller: decision k sets row k of a table, in every run.

    Unlike ScheduleTable it counts decisions, so it needs no column of the observation.

    Args:
        positions: table, (K, A), in [-1, 1].
    """

    spec = ControllerSpec()

    def __init__(self, positions: np.ndarray) -> None:
        self.positions = np.asarray(positions, dtype=np.float32)
        self.decision = 0

    def reset(self, columns: Columns) -> None:
        """Goes back to the first row."""
        self.decision = 0

    def act(self, observations: np.ndarray) -> np.ndarray:
        """Returns the row of this decision for every run, (N, A)."""
        row = self.positions[min(self.decision, len(self.positions) - 1)]
        self.decision += 1
        return np.tile(row, (len(observations), 1))


class RandomPositions:
    """Controller of independent, uniform positions.

    Args:
        action_size: A.
        seed: seed of its generator. Each population begins with it anew.
    """

    spec = ControllerSpec()

    def __init__(self, action_size: int, seed: int = 0) -> None:
        self.action_size, self.seed = action_size, seed
        self._generator = np.random.default_rng(seed)
        self._population = 0

    def reset(self, columns: Columns) -> None:
        """Begins a stream of its own for each population."""
        self._generator = np.random.default_rng((self.seed, self._population))
        self._population += 1

    def act(self, observations: np.ndarray) -> np.ndarray:
        """Returns positions (N, A) within [-1, 1]."""
        size = (len(observations), self.action_size)
        return self._generator.uniform(-1.0, 1.0, size).astype(np.float32)


def plan_of(env: TrainLoopVectorEnv, schedule: Schedule, peak: float) -> Plan:
    """Returns the plan that multiplies the base rate by `peak` times a schedule.

    A decision holds one multiplier for its whole interval: that of its first step. Multipliers
    are clipped to the bounds of the channel.

    Args:
        env: population whose actions are positions, with a cell of `lr`.
        schedule: step -> multiplier.
        peak: multiplier where the schedule is 1.

    Raises:
        ValueError: the actions are moves, or none of them is a learning rate.
    """
    cells = [i for i, name in enumerate(env.action_names) if name.split("/")[0] == "lr"]
    if env.moves or not cells:
        raise ValueError(
            "the actions of env must be positions with a cell of lr, for a teacher that is a "
            f"schedule; got mapping {env.arguments['mapping']!r} and {list(env.action_names)}; "
            "give mapping=position, or channels with lr"
        )

    channel = CHANNELS["lr"]
    steps = np.arange(env.num_decisions) * env.interval
    multipliers = np.clip(peak * np.asarray(schedule(steps)), *channel.bounds)
    positions = np.zeros((env.num_decisions, len(env.action_names)))
    positions[:, cells] = [[channel.position(float(value))] for value in multipliers]
    return Plan(positions)


def _constant(env: TrainLoopVectorEnv, peak: float) -> Teacher:
    return plan_of(env, Constant(), peak), {}


def _cosine(env: TrainLoopVectorEnv, peak: float) -> Teacher:
    return plan_of(env, Cosine(env.num_steps), peak), {}


def _wsd(env: TrainLoopVectorEnv, peak: float) -> Teacher:
    warmup = round(0.02 * env.num_steps)
    schedule = WarmupFlatWarmdown(env.num_steps, warmup_steps=warmup, warmdown_fraction=0.2)
    return plan_of(env, schedule, peak), {}


def _hand_tuned(env: TrainLoopVectorEnv, peak: float) -> Teacher:
    zeros = np.zeros((env.num_decisions, len(env.action_names)))
    arguments = hand_tuned(env.num_steps).env_kwargs
    return Plan(zeros), arguments | {"schedule": "warmup_flat_warmdown"}  # JSON for Minari


def _random(env: TrainLoopVectorEnv, peak: float) -> Teacher:
    return RandomPositions(len(env.action_names)), {}


#: Name -> teacher for a population.
TEACHERS: dict[str, Callable[[TrainLoopVectorEnv, float], Teacher]] = {
    "constant": _constant,
    "cosine": _cosine,
    "wsd": _wsd,
    "hand_tuned": _hand_tuned,
    "random": _random,
}


@dataclass(frozen=True)
class DatasetsConfig:
    """Configuration of the data sets."""

    env: str = "TrainLoop-JEL-v0"  # a registered id
    env_kwargs: tuple[str, ...] = ()  # arguments of the env, key=value
    teachers: tuple[str, ...] = tuple(TEACHERS)  # keys of TEACHERS
    controller: str | None = None  # folder of a saved policy, for the data set `trained`
    peak: float = 10.0  # multiplier of the base rate where a schedule is 1
    episodes: int = 10  # of each teacher
    first_seed: int = 0  # the first of consecutive seeds
    max_rows: int = 10  # largest number of runs that train together
    namespace: str = "hpenv"  # of the data sets
    data_format: str = "arrow"  # of Minari: arrow or hdf5
    threads: int = 1  # torch threads

    def __post_init__(self) -> None:
        """Checks counts, seeds and teachers."""
        check_counts(self, "episodes", "max_rows", "threads")
        check_counts(self, "first_seed", least=0)
        unknown = sorted(set(self.teachers) - set(TEACHERS))
        if unknown:
            raise ValueError(f"unknown teachers {unknown}; expected some of {sorted(TEACHERS)}")


def make_datasets(config: DatasetsConfig, env_kwargs: Mapping[str, Any]) -> list[Any]:
    """Runs every teacher and returns its data sets.

    Raises:
        ValueError: a teacher does not fit the id, or a data set exists.
    """
    env = make_population(config.env, 1, env_kwargs)
    made = {name: TEACHERS[name](env, config.peak) for name in config.teachers}
    env.close()
    if config.controller is not None:
        made["trained"] = load_controller(config.controller), {}

    seeds = range(config.first_seed, config.first_seed + config.episodes)
    return [
        export(
            f"{config.namespace}/{name}-v0",
            controller,
            config.env,
            dict(env_kwargs) | own,
            seeds,
            name=name,
            description=f"{config.episodes} runs of {config.env} under the teacher {name}",
            max_rows=config.max_rows,
            data_format=config.data_format,
        )
        for name, (controller, own) in made.items()
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the data sets, and prints a line for each."""
    config = configuration(DatasetsConfig, "train_agents.make_datasets", __doc__, arguments)
    torch.set_num_threads(config.threads)
    with refusals():
        datasets = make_datasets(config, parse_assignments(config.env_kwargs))
    for dataset in datasets:
        returns = [float(np.sum(episode.rewards)) for episode in dataset.iterate_episodes()]
        print(
            f"{dataset.spec.dataset_id}: {dataset.total_episodes} episodes, "
            f"{dataset.total_steps} decisions, mean return {np.mean(returns):.4f}"
        )


if __name__ == "__main__":
    main()
