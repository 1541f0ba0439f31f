"""Signal and noise of a Sidecar's rewards: the effect of one cell on a reward, against its noise.

At a few states of a detached run the env is forked into a pair of rows per cell. For one decision
they move that cell by plus and by minus one standard deviation of a fresh policy, and are neutral
from there on. All rows see the same batches, so that half the difference of a pair's credits is the
cell's effect, free of the noise of the batch. The online policy has that noise: its credits differ
from step to step by it.

REINFORCE averages credit x (sample / sigma). Its mean is the effect, and its standard deviation is
the credit's as long as the effect is small. So SNR = effect / noise of one step, and the sign of an
effect is known at two standard errors after (2 / SNR)^2 steps.

Rows on the same batches can be each other's baseline (`baseline="population"`), which takes the
batch out of the noise and puts their exploration in. That noise is measured on a few copies of the
run that explore with all their cells from the state on. Rows that have trained apart for longer
differ by more.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

import hpenv
from agents.returns import credit_weights, leave_one_out
from hpenv import branching
from hpenv.arrays import FloatArray
from hpenv.benchmark.results import Rows
from hpenv.env import TrainLoopVectorEnv

gym.register_envs(hpenv)


#: Copies of the run that are each other's baseline, as many as an arm of the rewards has rows.
POPULATION = 5
#: An effect is told from zero beyond this many standard errors.
TOLD = 2.0


@dataclass(frozen=True)
class Credit:
    """Credit of a decision: the sum of a reward term over some decisions from it on."""

    term: str  # key of the env's reward terms
    delay: int  # decisions from the action to the first reward; see `returns.credit_weights`
    horizon: int  # rewards added up from there
    population: bool = False  # less the mean credit of other rows on the same batches


#: Reward -> its credit.
CREDITS: dict[str, Credit] = {
    "next-step loss change": Credit("loss_change", 1, 1),
    "the same, less other rows'": Credit("loss_change", 1, 1, population=True),
    "same-batch loss change": Credit("same_batch_change", 0, 1),
    "probe loss change": Credit("progress", 0, 1),
    "loss change over 16 steps": Credit("loss_change", 1, 16),
}
#: Name of the estimated effect of a step in the rows, and its measurement.
ESTIMATED, ESTIMATE = "estimated effect on the probe", "cell_effect"
#: Decisions that a pair is followed for.
HORIZON = max(credit.delay + credit.horizon for credit in CREDITS.values())
#: Weights of the env's terms, so that all of them are measured.
REWARD = {"loss_change": 1.0, "same_batch_change": 1.0, "progress": 1.0, "divergence": 1.0}


def credits_of(terms: Mapping[str, FloatArray], credit: Credit, immediate: bool) -> FloatArray:
    """Returns the credits of successive decisions of each row, as the agent sums them.

    No baseline is subtracted.

    Args:
        terms: term -> (T, rows).
        credit: which sum.
        immediate: whether the cell is read by the forward pass.

    Returns:
        (T - delay - horizon + 1, rows) [nats per token].
    """
    weights = credit_weights(credit.delay, credit.horizon, 1.0, immediate)
    windows = np.lib.stride_tricks.sliding_window_view(terms[credit.term], len(weights), axis=0)
    return windows @ weights


def effect_size(effects: FloatArray) -> tuple[float, float]:
    """Returns the root mean square over cells of the mean effect, corrected for scatter.

    Args:
        effects: (batches, cells), at least two batches.

    Returns:
        sqrt(mean over cells of (mean^2 - variance / batches)), or 0 where that is negative; and the
        standard error of a cell's mean, the root mean square over cells of sqrt(variance /
        batches). Cells see the same batches, so that their number does not make the error smaller.
    """
    if effects.ndim != 2 or len(effects) < 2:
        raise ValueError(
            f"effects must have shape (batches, cells) with at least 2 batches; got {effects.shape}"
        )
    scatter = float((effects.var(0, ddof=1) / len(effects)).mean())
    return math.sqrt(max(0.0, float((effects.mean(0) ** 2).mean()) - scatter)), math.sqrt(scatter)


def steps_to_know(effect: float, noise: float) -> float:
    """Returns the steps until the sign of an effect above 0 is known at two standard errors."""
    return (2.0 * noise / effect) ** 2


def measure_signal(
    env_id: str, env_kwargs: Mapping[str, Any], seed: int, states: Sequence[int],
    layers: Sequence[int], num_batches: int, num_noise_steps: int, sigma: Mapping[str, float],
) -> Rows:  # fmt: skip
    """Measures the effect of a cell per standard deviation, and the noise of each reward.

    Args:
        env_id: id of the Sidecar's env.
        env_kwargs: its arguments, without the reward. A decision every step.
        seed: of the run.
        states: steps of the measurements, ascending [steps].
        layers: which layers' cells are moved, besides cells of no layer.
        num_batches: repetitions, a step apart.
        num_noise_steps: steps after the state whose credits give the noise.
        sigma: kind of channel -> standard deviation of a fresh policy, in positions.

    Returns:
        A row per state, channel and reward: `step`, `channel`, `immediate` (read by the forward
        pass), `reward`, `effect` (root mean square over the cells, noise of the estimate
        subtracted), its `standard_error` and the `noise` [nats per token], `snr` and
        `steps_to_know` (None: the effect is not told from zero), `cells`. And the sizes.

    Raises:
        ValueError: if states are not ascending, or a state has too few steps after it.
    """
    reward: dict[str, Any] = {"reward": REWARD, "num_registers": 0, "interval": 1}
    options = {**env_kwargs, **reward}
    env = gym.make_vec(env_id, num_envs=1, autoreset_mode="DISABLED", **options)
    assert isinstance(env, TrainLoopVectorEnv)
    room = max(num_batches, num_noise_steps) + HORIZON
    ends = [*states[1:], env.num_steps + 1]
    if not states or any(end - start < room for start, end in zip(states, ends, strict=True)):
        raise ValueError(
            f"states must be ascending with {room} steps after each, in {env.num_steps} steps; "
            f"got {list(states)}"
        )

    cells = _cell_columns(env.action_names, layers)
    neutral = np.zeros((1, len(env.action_names)), dtype=np.float32)
    env.reset(seed=[seed])
    rows: list[dict[str, Any]] = []
    step = 0

    for state in states:
        while step < state:
            env.step(neutral)
            step += 1

        together = _explore(env, sigma, num_noise_steps + HORIZON, seed)
        effects, history, estimates = [], [], []
        for number in range(room):
            if number < num_batches:
                effects.append(_effects(env, cells, sigma))
            with _measuring(env):
                history.append(_step(env, neutral))
            estimates.append(env.episodes.window[ESTIMATE][0, cells])
            step += 1
        stacked = _stack(effects)  # (batches, cells) each
        rows += _summary(state, env, cells, stacked, _stack(history), together)
        sizes_of = np.array([sigma[env.action_kinds[column]] for column in cells])
        rows += estimate_rows(state, env, cells, np.stack(estimates) * sizes_of)

    sizes = {"seed": seed, "layers": list(layers), "num_batches": num_batches}
    sizes |= {"num_noise_steps": num_noise_steps, "sigma": dict(sigma)}
    return rows, sizes | {"horizon": HORIZON, "population": POPULATION}


@contextmanager
def _measuring(env: TrainLoopVectorEnv) -> Iterator[None]:
    """Estimates the effects of the cells during the block."""
    groups = env.plant.measured_groups
    env.plant.set_measured_groups(groups | {ESTIMATE})
    try:
        yield
    finally:
        env.plant.set_measured_groups(groups)


def estimate_rows(
    state: int, env: TrainLoopVectorEnv, cells: Sequence[int], estimates: FloatArray
) -> list[dict[str, Any]]:
    """Returns a row per channel: signal and noise of the estimated effects of steps.

    The noise is that of one cell's estimates, (T, cells), over the steps. No sample of a policy is
    in it.
    """
    channels = [env.action_names[column].split("/")[0] for column in cells]
    rows = []
    for channel in dict.fromkeys(channels):
        places = [place for place, name in enumerate(channels) if name == channel]
        own = estimates[:, places]
        effect, error = effect_size(own)
        noise = math.sqrt(float(own.var(0, ddof=1).mean()))
        immediate = env.action_immediate[cells[places[0]]]
        rows.append(_row(state, channel, immediate, ESTIMATED, effect, error, noise, len(places)))
    return rows


def _cell_columns(names: Sequence[str], layers: Sequence[int]) -> list[int]:
    """Returns the columns of the cells to move: those of no layer, and those of some layers."""
    columns = []
    for column, name in enumerate(names):
        _, has_layer, rest = name.partition("/layer.")
        if not has_layer or rest.split(".")[0] in map(str, layers):
            columns.append(column)
    return columns


def _step(env: TrainLoopVectorEnv, actions: NDArray[np.float32]) -> dict[str, FloatArray]:
    """Returns every measured term of one decision, (rows,) each."""
    infos = env.step(actions)[4]
    return {credit.term: infos[f"reward_terms/{credit.term}"] for credit in CREDITS.values()}


def _stack(history: Sequence[Mapping[str, FloatArray]]) -> dict[str, FloatArray]:
    return {name: np.stack([entry[name] for entry in history]) for name in history[0]}


def _effects(
    env: TrainLoopVectorEnv, cells: Sequence[int], sigma: Mapping[str, float]
) -> dict[str, FloatArray]:
    """Returns half the difference of credits of a pair of rows per cell.

    It is (cells,) per reward [nats per token].
    """
    fork = branching.fork(env, 2 * len(cells))
    actions = np.zeros((2 * len(cells), len(env.action_names)), dtype=np.float32)
    for pair, column in enumerate(cells):
        size = sigma[env.action_kinds[column]]
        actions[2 * pair, column], actions[2 * pair + 1, column] = size, -size
    history = [_step(fork, actions)]
    history += [_step(fork, np.zeros_like(actions)) for _ in range(HORIZON - 1)]
    fork.close()

    terms, found = _stack(history), {}
    immediate = np.repeat([env.action_immediate[column] for column in cells], 2)
    for name, credit in CREDITS.items():
        now, later = (credits_of(terms, credit, is_immediate)[0] for is_immediate in (True, False))
        values = np.where(immediate, now, later)
        found[name] = 0.5 * (values[0::2] - values[1::2])
    return found


def _explore(
    env: TrainLoopVectorEnv, sigma: Mapping[str, float], num_steps: int, seed: int
) -> dict[str, FloatArray]:
    """Returns terms of copies of the run whose cells are all sampled as by fresh policies.

    They are (num_steps, POPULATION) each.
    """
    fork, rng = branching.fork(env, POPULATION), np.random.default_rng(seed)
    stds = np.array([sigma[kind] for kind in env.action_kinds])
    history = []
    for _ in range(num_steps):
        sampled = rng.standard_normal((POPULATION, len(stds))) * stds
        history.append(_step(fork, np.clip(sampled, -1.0, 1.0).astype(np.float32)))
    fork.close()
    return _stack(history)


def _noise(
    alone: Mapping[str, FloatArray],
    together: Mapping[str, FloatArray],
    credit: Credit,
    immediate: bool,
) -> float:
    """Returns the standard deviation of a credit over decisions.

    It is of the detached run, or of rows less the mean of the others.
    """
    if not credit.population:
        return float(credits_of(alone, credit, immediate).std(ddof=1))
    found = credits_of(together, credit, immediate)  # (T, POPULATION)
    # The differences sum to zero over the rows.
    difference = found - leave_one_out(found, np.ones(found.shape, dtype=bool))
    return math.sqrt(float((difference**2).mean()))


def _summary(
    state: int, env: TrainLoopVectorEnv, cells: Sequence[int], effects: Mapping[str, FloatArray],
    alone: Mapping[str, FloatArray], together: Mapping[str, FloatArray],
) -> list[dict[str, Any]]:  # fmt: skip
    """Returns a row per channel and reward."""
    channels = [env.action_names[column].split("/")[0] for column in cells]
    rows = []
    for channel in dict.fromkeys(channels):
        places = [place for place, name in enumerate(channels) if name == channel]
        immediate = env.action_immediate[cells[places[0]]]
        for name, credit in CREDITS.items():
            effect, error = effect_size(effects[name][:, places])
            noise = _noise(alone, together, credit, immediate)
            rows.append(_row(state, channel, immediate, name, effect, error, noise, len(places)))
    return rows


def _row(
    state: int, channel: str, immediate: bool, reward: str, effect: float, error: float,
    noise: float, num_cells: int,
) -> dict[str, Any]:  # fmt: skip
    is_told = effect > TOLD * error and noise > 0.0
    return {
        "step": state, "channel": channel, "immediate": immediate, "reward": reward,
        "effect": effect, "standard_error": error, "noise": noise, "cells": num_cells,
        "snr": effect / noise if is_told else None,
        "steps_to_know": steps_to_know(effect, noise) if is_told else None,
    }  # fmt: skip
