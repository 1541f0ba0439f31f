"""Evaluation of a controller.

Every seed is one run from its first decision to its last. Its score is on held-out data, which
rewards and observations never see. Without a controller, the panel stays at neutral. Baselines are
measured in this way. The plant defines the score: bits per byte for a pretraining run, passes minus
hacks for a post-training run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpenv.benchmark.environments import columns_of, make_population
from hpenv.env import TrainLoopVectorEnv
from hpenv.isolation import torch_defaults
from hpenv.plant.protocol import DIVERGENCE_REASONS
from hpenv.policies.controller import Controller, begin, check_controller, reads_of, teach


def evaluate_controller(
    controller: Controller | None,
    env_id: str,
    env_kwargs: Mapping[str, Any],
    seeds: Sequence[int],
    *,
    curve: bool = True,
    heldout_curve: bool = False,
    max_rows: int = 10,
    on_progress: Callable[[float], object] | None = None,
) -> list[dict[str, Any]]:
    """Runs one episode per seed under a controller.

    A run that diverges stops. Its lists repeat the last value, so that the lists of all seeds have
    the same length. The last bits of a row depend on the number of rows that train together.

    Args:
        controller: it acts, and learns if it can. None: the panel stays at neutral.
        env_id: a registered id of a training loop.
        env_kwargs: keyword arguments of the env. They override the controller's spec.
        seeds: one per run.
        curve: add the lists to the result.
        heldout_curve: also evaluate on the validation slice after each decision.
        max_rows: largest number of runs that train together. It bounds the memory.
        on_progress: called after each decision with the episodes done since the last call, the
            number of runs / the number of decisions.

    Returns:
        One dictionary per seed, with K decisions.

        - `seed`, `corpus` (sha256) and `divergence_reason` (or None).
        - The score at the end under the plant's key (`bpb`, held-out bits per byte, for a
          pretraining run), and the plant's other reported numbers (`pass`, `hack`... for a
          post-training run).
        - `train_loss` (mean over the last window, None if the run never took a step) and
          `probe_loss`, both in the plant's unit.
        - With `curve`: `steps` (K + 1) [steps] and `probe_curve` (K + 1), both before the first
          decision and after each, `train_curve` (K), and `panel` (name -> (K) values in force).
        - With `heldout_curve`: the score's key and `_curve` (K + 1).

    Raises:
        ValueError: there are no seeds, max_rows is below 1, seeds are grouped, the id is no
            training loop, or the controller has no `spec` or `act`, or other columns.
    """
    if not isinstance(seeds, Sequence) or not seeds or max_rows < 1:
        raise ValueError(
            "seeds must be a list of at least one seed, and max_rows must be >= 1; "
            f"got seeds {seeds!r} and max_rows {max_rows}"
        )

    check_independent(env_kwargs)
    rows: list[dict[str, Any]] = []
    env: TrainLoopVectorEnv | None = None

    for first in range(0, len(seeds), max_rows):
        chunk = [int(seed) for seed in seeds[first : first + max_rows]]
        if env is None or env.num_envs != len(chunk):
            env = make_runs(env_id, env_kwargs, len(chunk), controller)
        rows += run_episodes(
            controller,
            env,
            chunk,
            curve=curve,
            heldout_curve=heldout_curve,
            on_progress=on_progress,
        )

    return rows


def check_independent(env_kwargs: Mapping[str, Any]) -> None:
    """Checks that the arguments of an env give every seed a separate run."""
    if env_kwargs.get("seed_mode", "independent") != "independent":
        raise ValueError(
            f"seed_mode must be 'independent'; got {env_kwargs['seed_mode']!r}; "
            "otherwise all seeds would be one run"
        )


def make_runs(
    env_id: str, env_kwargs: Mapping[str, Any], num_rows: int, controller: Controller | None
) -> TrainLoopVectorEnv:
    """Makes a population with the columns that a controller asks for.

    Raises:
        ValueError: the controller has no `spec` or `act`, or was made for other columns.
    """
    if controller is None:
        return make_population(env_id, num_rows, env_kwargs)

    check_controller(controller)
    env = make_population(env_id, num_rows, controller.spec.arguments() | dict(env_kwargs))
    controller.spec.check(columns_of(env))
    measure_reads(controller, env)
    return env


def measure_reads(controller: object, env: TrainLoopVectorEnv) -> None:
    """Makes an env measure what a controller reads next to observations and rewards.

    Raises:
        ValueError: the plant has no such measurement per cell.
    """
    groups = {
        own.name: own.group
        for own in env.plant.measurements
        if own.per == "cell" and own.group is not None
    }
    unknown = sorted(set(reads_of(controller)) - set(groups))
    if unknown:
        raise ValueError(f"reads must be of {sorted(groups)}; got {unknown}")
    wanted = {groups[name] for name in reads_of(controller)}
    env.plant.set_measured_groups(env.plant.measured_groups | wanted)


def readings(controller: object, env: TrainLoopVectorEnv) -> dict[str, NDArray[np.float64]]:
    """Returns what a controller reads of the last decision, (N, A) each."""
    return {name: env.episodes.window[name] for name in reads_of(controller)}


def run_episodes(
    controller: Controller | None,
    env: TrainLoopVectorEnv,
    seeds: list[int],
    *,
    curve: bool = False,
    heldout_curve: bool = False,
    on_progress: Callable[[float], object] | None = None,
) -> list[dict[str, Any]]:
    """Runs one episode in every row of an env, one seed each. See `evaluate_controller`."""
    observations, infos = env.reset(seed=seeds)
    begin(controller, columns_of(env))
    alive = np.ones(len(seeds), dtype=bool)
    neutral = np.zeros((len(seeds), len(env.action_names)), dtype=np.float32)
    history = [infos]  # after the reset and after every decision
    reports = [_report(env)] if heldout_curve else []

    for _ in range(env.num_decisions):
        positions = neutral if controller is None else controller.act(observations)
        observations, rewards, terminated, truncated, infos = env.step(positions)
        teach(controller, rewards, alive, readings(controller, env))
        alive = alive & ~(terminated | truncated)
        history.append(infos)
        if heldout_curve:
            reports.append(_report(env))
        if on_progress is not None:
            on_progress(len(seeds) / env.num_decisions)

    report = reports[-1] if reports else _report(env)
    last_probe = infos["probe_loss"] if "probe_loss" in infos else probe_loss(env)
    score = env.plant.score.key

    rows = []
    for i, seed in enumerate(seeds):
        row: dict[str, Any] = {"seed": seed, "corpus": env.plant.corpus_digest}
        row |= {name: float(values[i]) for name, values in report.items()}
        row["train_loss"] = float(infos["train_loss"][i]) if infos["step"][i] > 0 else None
        row |= {"probe_loss": float(last_probe[i]), "divergence_reason": _reason(history, i)}
        if curve:
            row |= _curves(history, i, env.plant.panel.names)
        if heldout_curve:
            row[f"{score}_curve"] = [float(earlier[score][i]) for earlier in reports]
        rows.append(row)

    return rows


def _reason(history: Sequence[Mapping[str, Any]], row: int) -> str | None:
    """Returns the reason for which a row has diverged, or None."""
    codes = [int(infos["divergence"][row]) for infos in history[1:]]
    return next((DIVERGENCE_REASONS[code] for code in reversed(codes) if code), None)


def _curves(history: Sequence[Mapping[str, Any]], row: int, names: Sequence[str]) -> dict[str, Any]:
    """Returns a row's steps, losses and panel after every decision."""
    curves: dict[str, Any] = {"steps": [int(infos["step"][row]) for infos in history]}
    if all("probe_loss" in infos for infos in history):
        curves["probe_curve"] = [float(infos["probe_loss"][row]) for infos in history]

    decisions = history[1:]
    curves["train_curve"] = [float(infos["train_loss"][row]) for infos in decisions]
    curves["panel"] = {}
    for name in names:
        curves["panel"][name] = [float(infos[f"panel/{name}"][row]) for infos in decisions]
    return curves


def _report(env: TrainLoopVectorEnv) -> dict[str, NDArray[np.float64]]:
    """Returns the score of every run under its key, and the plant's other held-out numbers."""
    with torch_defaults():
        return env.plant.report()


def probe_loss(env: TrainLoopVectorEnv) -> NDArray[np.float64]:
    """Measures the probe loss at a run's end, (N,) in the plant's unit.

    The env needs no feature or term that reads it.

    Tuning uses this loss, because the validation slice is for reporting.
    """
    groups = env.plant.measured_groups
    env.plant.set_measured_groups(groups | {"probe"})
    try:
        return env.plant.advance(np.zeros(env.num_envs, dtype=np.int64))["probe_loss"]
    finally:
        env.plant.set_measured_groups(groups)
