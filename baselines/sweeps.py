"""Random search and CMA-ES over schedules, at the same price as the training of a controller.

A schedule is K x A positions, one row per decision. A population plays one schedule per row. The
value of a schedule is the sum of the rewards of its one run. This is a single noisy number, as in
the training of a controller. Searches write a line of JSON per generation, and continue bitwise
from those lines. They touch no global generator. The module is longer than 300 lines, because both
searches are one loop over two strategies and are easier to read together.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import gymnasium as gym
import numpy as np

import hpenv
from hpenv.arrays import FloatArray
from hpenv.env import TrainLoopVectorEnv
from hpenv.policies import ScheduleTable

gym.register_envs(hpenv)

ENV = "TrainLoop-JEL-v0"
History = list[dict[str, Any]]


class Outcomes(NamedTuple):
    """Results of runs that were played together.

    Attributes:
        returns: sum of the rewards of each run, (N,).
        probe_losses: loss on the probe at the end, (N,) [nats per token]. A diverged run has its
            loss before the first step.
    """

    returns: FloatArray
    probe_losses: FloatArray


class Evaluator(Protocol):
    """Interface of an object that plays schedules.

    Attributes:
        num_rows: N, the number of schedules that are played together.
        shape: shape (K, A) of a schedule.
    """

    @property
    def num_rows(self) -> int:
        """The number of schedules that are played together, N."""

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of a schedule, (K, A)."""

    def play(self, positions: FloatArray, seeds: Sequence[int]) -> Outcomes:
        """Returns the outcomes of schedules (N, K, A), one per run and seed."""


class Population:
    """An evaluator that plays one schedule per row of a vector env."""

    def __init__(self, env_kwargs: Mapping[str, Any], num_rows: int = 8, env: str = ENV) -> None:
        """Makes the env.

        Args:
            env_kwargs: arguments of the env, except `num_envs` and `autoreset_mode`.
            num_rows: N.
            env: a registered id.
        """
        made = gym.make_vec(env, num_envs=num_rows, autoreset_mode="DISABLED", **env_kwargs)
        assert isinstance(made, TrainLoopVectorEnv)
        self.env, self.num_rows = made, num_rows
        self.shape = (made.num_decisions, len(made.action_names))

    def play(self, positions: FloatArray, seeds: Sequence[int]) -> Outcomes:
        """See Evaluator."""
        _, infos = self.env.reset(seed=list(seeds))
        initial: FloatArray = infos["probe_loss"]
        returns = np.zeros(self.num_rows)
        diverged, ended = np.zeros(self.num_rows, bool), np.zeros(self.num_rows, bool)

        for decision in range(self.shape[0]):
            action = positions[:, decision].astype(np.float32)
            _, rewards, terminated, truncated, infos = self.env.step(action)
            returns += rewards
            diverged |= infos["divergence"] > 0
            ended |= terminated | truncated
            if ended.all():
                break

        last: FloatArray = infos["probe_loss"]
        return Outcomes(returns, np.where(diverged, initial, last))


class Strategy(Protocol):
    """Interface of a search: it proposes schedules and learns from their returns."""

    def ask(self) -> FloatArray:
        """Returns the next generation, (N, K, A) in [-1, 1]."""

    def tell(self, positions: FloatArray, returns: FloatArray) -> None:
        """Learns from the returns (N,) of a generation's schedules."""

    def best(self) -> FloatArray:
        """Returns the result of the search, (K, A)."""


class RandomStrategy:
    """Random search. It samples uniform positions, and its result is the schedule of the best run.

    That run's return overestimates the schedule: the best of many noisy numbers is too good (the
    winner's curse), the more so the more numbers there are. Random search at this price gives no
    better estimate. Deploy the schedule to measure it.
    """

    def __init__(
        self, num_rows: int, shape: tuple[int, int], seed: int, kind: str = "schedule"
    ) -> None:
        """Makes a private random generator.

        Args:
            num_rows: N.
            shape: (K, A).
            seed: seed of the samples.
            kind: `schedule`: an independent position for every decision. `constant`: one position
                per cell for the whole run.

        Raises:
            ValueError: `kind` is neither `schedule` nor `constant`.
        """
        if kind not in ("schedule", "constant"):
            raise ValueError(f"kind must be one of ['schedule', 'constant']; got {kind!r}")
        self._random = np.random.default_rng([seed, 0])
        self._num_rows, self._shape, self._kind = num_rows, shape, kind
        self._best: tuple[float, FloatArray] = (-np.inf, np.zeros(shape))

    def ask(self) -> FloatArray:
        """See Strategy."""
        decisions = self._shape[0] if self._kind == "schedule" else 1
        positions = self._random.uniform(-1.0, 1.0, (self._num_rows, decisions, self._shape[1]))
        return np.broadcast_to(positions, (self._num_rows, *self._shape)).copy()

    def tell(self, positions: FloatArray, returns: FloatArray) -> None:
        """See Strategy."""
        row = int(np.argmax(returns))
        if returns[row] > self._best[0]:
            self._best = (float(returns[row]), positions[row].copy())

    def best(self) -> FloatArray:
        """See Strategy."""
        return self._best[1]


class CMAStrategy:
    """CMA-ES (Hansen 2016, arXiv 1604.00772) over all K A positions.

    Its result is the mean of the distribution, which suffers less from noise than the best sample.
    It starts at neutral, as a controller does. The package's termination criteria are ignored,
    because the number of episodes is the budget.
    """

    def __init__(
        self, num_rows: int, shape: tuple[int, int], seed: int, sigma: float = 0.4
    ) -> None:
        """Sets up the package `cma` with a private random generator.

        Args:
            num_rows: population size.
            shape: (K, A).
            seed: seed of the samples.
            sigma: initial standard deviation of a position.

        Raises:
            ModuleNotFoundError: the extra `baselines` is not installed.
        """
        try:
            import cma
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "CMA-ES needs the package cma: pip install 'hpenv[baselines]'"
            ) from error

        random = np.random.default_rng([seed, 0])
        # With a source of random numbers, and a seed that is not a number, cma does not touch
        # numpy's global generator.
        options = {
            "bounds": [-1.0, 1.0],
            "popsize": num_rows,
            "randn": lambda *size: random.standard_normal(size),
            "seed": np.nan,
            "verbose": -9,
        }
        self._shape = shape
        self._search = cma.CMAEvolutionStrategy(np.zeros(shape[0] * shape[1]), sigma, options)

    def ask(self) -> FloatArray:
        """See Strategy."""
        return np.clip(np.array(self._search.ask()), -1.0, 1.0).reshape(-1, *self._shape)

    def tell(self, positions: FloatArray, returns: FloatArray) -> None:
        """See Strategy."""
        self._search.tell(list(positions.reshape(len(positions), -1)), (-returns).tolist())

    def best(self) -> FloatArray:
        """See Strategy."""
        return np.clip(np.array(self._search.result.xfavorite), -1.0, 1.0).reshape(self._shape)


def search(
    strategy: Strategy,
    evaluator: Evaluator,
    num_episodes: int,
    seed: int,
    log: str | os.PathLike[str] | None = None,
    description: Mapping[str, Any] | None = None,
) -> tuple[ScheduleTable, History]:
    """Searches in generations of N episodes with fresh seeds, until the episodes are spent.

    Args:
        strategy: proposes schedules.
        evaluator: plays schedules.
        num_episodes: budget, a multiple of the evaluator's rows.
        seed: seed of the runs' seeds.
        log: file of JSON lines. The strategy learns from its generations instead of playing them.
        description: description of the search. A log with another one is refused.

    Returns:
        The schedule, and per generation: number, seeds, returns, probe losses and the best return
        so far.

    Raises:
        ValueError: num_episodes is not a positive multiple of the rows, or the log is that of
            another search.
    """
    rows = evaluator.num_rows
    if num_episodes < rows or num_episodes % rows:
        raise ValueError(
            f"num_episodes must be a positive multiple of the {rows} rows; got {num_episodes}"
        )

    header = {"search": json.loads(json.dumps({"seed": seed, **(description or {})}, default=repr))}
    lines = read_log(log, header)
    seeds_random, history, best = np.random.default_rng([seed, 1]), [], -np.inf

    for generation in range(num_episodes // rows):
        positions = strategy.ask()
        seeds = [int(s) for s in seeds_random.integers(2**31, size=rows)]
        if generation < len(lines):
            line = lines[generation]
            if line["seeds"] != seeds or line["positions"] != positions.tolist():
                raise ValueError(
                    f"generation {generation} of {log} must be what this search proposes; "
                    "got other seeds or positions; give another log"
                )
        else:
            outcomes = evaluator.play(positions, seeds)
            line = {
                "generation": generation,
                "seeds": seeds,
                "returns": outcomes.returns.tolist(),
                "probe_losses": outcomes.probe_losses.tolist(),
                "positions": positions.tolist(),
            }
            lines.append(line)
            write_log(log, [header, *lines])

        returns = np.array(line["returns"])
        strategy.tell(positions, returns)
        best = max(best, float(returns.max()))
        history.append(
            {key: value for key, value in line.items() if key != "positions"}
            | {"best_return": best}
        )

    return ScheduleTable(strategy.best()), history


def random_search(
    env_kwargs: Mapping[str, Any],
    num_episodes: int,
    seed: int,
    num_envs: int = 8,
    *,
    kind: Literal["schedule", "constant"] = "schedule",
    log: str | os.PathLike[str] | None = None,
) -> tuple[ScheduleTable, History]:
    """Returns the best of `num_episodes` uniform schedules, by one run each. See RandomStrategy.

    Args:
        env_kwargs: arguments of the env, at meta-training settings.
        num_episodes: budget, a multiple of num_envs.
        seed: seed of samples and runs.
        num_envs: number of schedules that are played together.
        kind: `schedule` or `constant`.
        log: file of JSON lines. A search with a log continues from it.
    """
    population = Population(env_kwargs, num_envs)
    description = {"method": f"random_{kind}", "env_kwargs": dict(env_kwargs), "num_envs": num_envs}
    strategy = RandomStrategy(num_envs, population.shape, seed, kind)
    return search(strategy, population, num_episodes, seed, log, description)


def cma_search(
    env_kwargs: Mapping[str, Any],
    num_episodes: int,
    seed: int,
    num_envs: int = 8,
    *,
    sigma: float = 0.4,
    log: str | os.PathLike[str] | None = None,
) -> tuple[ScheduleTable, History]:
    """Returns the result of CMA-ES over schedules. See CMAStrategy.

    The runs of a generation share weights and data order (`seed_mode="grouped"`, unless env_kwargs
    has another one). CMA-ES only ranks within a generation, and common random numbers remove most
    of the noise from a rank.

    Args:
        env_kwargs: arguments of the env, at meta-training settings.
        num_episodes: budget, a multiple of num_envs.
        seed: seed of samples and runs.
        num_envs: population size.
        sigma: initial standard deviation of a position.
        log: file of JSON lines. A search with a log continues from it.
    """
    arguments = {"seed_mode": "grouped"} | dict(env_kwargs)
    population = Population(arguments, num_envs)
    description = {"method": "cma", "env_kwargs": arguments, "num_envs": num_envs, "sigma": sigma}
    strategy = CMAStrategy(num_envs, population.shape, seed, sigma)
    return search(strategy, population, num_episodes, seed, log, description)


def read_log(path: str | os.PathLike[str] | None, header: Mapping[str, Any]) -> History:
    """Returns the lines after the header, without a torn last line.

    Raises:
        ValueError: the log is that of another search, or one of its lines is no JSON.
    """
    if path is None or not Path(path).exists():
        return []
    text = Path(path).read_text(encoding="utf-8", errors="replace")
    lines = []

    for number, line in enumerate(text[: text.rfind("\n") + 1].splitlines(), start=1):
        try:
            lines.append(json.loads(line))
        except ValueError as error:
            raise ValueError(
                f"{path}, line {number}, must be JSON; got {line[:80]!r}; give another log"
            ) from error

    if lines and lines[0] != header:
        raise ValueError(
            f"{path} must be the log of the search {dict(header)}; got {lines[0]}; give another log"
        )

    return lines[1:]


def write_log(path: str | os.PathLike[str] | None, lines: Sequence[Mapping[str, Any]]) -> None:
    """Replaces the log atomically, so that a killed search leaves the earlier generations."""
    if path is None:
        return
    temporary = Path(f"{path}.tmp")
    temporary.parent.mkdir(parents=True, exist_ok=True)
    temporary.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    os.replace(temporary, path)
