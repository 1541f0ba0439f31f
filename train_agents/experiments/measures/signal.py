"""How much a Sidecar can hear: the effect of one cell on each reward, against the reward's own
noise.

At a few states of a detached run the env is forked into a pair of rows per cell, which for one
decision move that cell by plus and by minus one standard deviation of a fresh policy, and are
neutral from there on. All rows see the same batches, so that half the difference of a pair's
credits is the cell's effect, free of the noise of the batch; the online policy is not that lucky,
its credits differ from step to step by that noise.

REINFORCE averages credit x (sample / sigma), whose mean is the effect and whose standard deviation
is, as long as the effect is small, the credit's own. So SNR = effect / noise of one step, and the
sign of an effect is known at two standard errors after (2 / SNR)^2 steps.

Rows on the same batches can be each other's baseline (`baseline="population"`), which takes the
batch out of the noise and puts their exploration in. That noise is measured on a few copies of the
run that explore with all their cells from the state on; rows that have trained apart for longer
differ by more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

import hpenv
from agents.returns import credit_weights, leave_one_out
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
    """What a reward credits a decision with: the sum of a term over some decisions from it on.

    Attributes:
        term: key of the env's reward terms.
        delay: decisions between the action and the first reward that answers it; see
            `returns.credit_weights`.
        horizon: rewards added up from there.
        population: less the mean credit of other rows on the same batches.
    """

    term: str
    delay: int
    horizon: int
    population: bool = False


#: Reward -> its credit.
CREDITS: dict[str, Credit] = {
    "next-step loss change": Credit("loss_change", 1, 1),
    "the same, less other rows'": Credit("loss_change", 1, 1, population=True),
    "same-batch loss change": Credit("same_batch_change", 0, 1),
    "probe loss change": Credit("progress", 0, 1),
    "loss change over 16 steps": Credit("loss_change", 1, 16),
}
#: Decisions that a pair is followed for.
HORIZON = max(credit.delay + credit.horizon for credit in CREDITS.values())
#: Weights of the env's terms, so that all of them are measured.
REWARD = {"loss_change": 1.0, "same_batch_change": 1.0, "progress": 1.0, "divergence": 1.0}


def credits_of(terms: Mapping[str, FloatArray], credit: Credit, immediate: bool) -> FloatArray:
    """Credits of successive decisions of each row, as the agent adds them up; no baseline is
    subtracted.

    Args:
        terms: term -> (T, rows).
        credit: which sum.
        immediate: whether the cell is read by the forward pass.

    Returns:
        (T - delay - horizon + 1, rows) [nats per token].
    """
    weights = credit_weights(credit.delay, credit.horizon, 1.0, immediate)
    return (
        np.lib.stride_tricks.sliding_window_view(terms[credit.term], len(weights), axis=0) @ weights
    )


def effect_size(effects: FloatArray) -> tuple[float, float]:
    """Root mean square over cells of the mean effect over batches, less what the scatter of batches
    adds to it.

    Args:
        effects: (batches, cells), at least two batches.

    Returns:
        sqrt(mean over cells of (mean^2 - variance / batches)), or 0 where that is negative; and the
        standard error of a cell's mean, the root mean square over cells of sqrt(variance /
        batches). Cells see the same batches, so that their number does not make the error smaller.
    """
    if effects.ndim != 2 or len(effects) < 2:
        raise ValueError(
            f"effects of shape {effects.shape}; expected (batches, cells) with at least 2 batches"
        )
    scatter = float((effects.var(0, ddof=1) / len(effects)).mean())
    return math.sqrt(max(0.0, float((effects.mean(0) ** 2).mean()) - scatter)), math.sqrt(scatter)


def steps_to_know(effect: float, noise: float) -> float:
    """Steps after which the sign of an effect above 0 is known at two standard errors, (2 noise / effect)^2."""
    return (2.0 * noise / effect) ** 2


def measure_signal(
    env_id: str, env_kwargs: Mapping[str, Any], seed: int, states: Sequence[int], layers: Sequence[int],
    num_batches: int, num_noise_steps: int, sigma: Mapping[str, float],
) -> Rows:  # fmt: skip
    """Effect of a cell per standard deviation, noise, SNR and steps to know the sign, per state,
    channel and reward.

    Args:
        env_id: id of the Sidecar's env.
        env_kwargs: its arguments, without the reward; a decision every step.
        seed: of the run.
        states: steps at which is measured, ascending [steps].
        layers: which layers' cells are moved, besides cells of no layer.
        num_batches: repetitions, a step apart.
        num_noise_steps: steps after the state whose credits tell the noise.
        sigma: kind of channel -> standard deviation of a fresh policy, in positions.

    Returns:
        A row per state, channel and reward: `step`, `channel`, `immediate` (read by the forward
            pass), `reward`,
        `effect` (root mean square over the cells, noise of the estimate taken off), its
        `standard_error` and the `noise` [nats per token], `snr` and `steps_to_know` (None: the
        effect is not told from zero), `cells`. And the sizes.

    Raises:
        ValueError: if states are not ascending, or do not leave room for what is measured after
            them.
    """
    env = gym.make_vec(
        env_id,
        num_envs=1,
        autoreset_mode="DISABLED",
        **env_kwargs,
        reward=REWARD,
        num_registers=0,
        interval=1,
    )
    assert isinstance(env, TrainLoopVectorEnv)
    room = max(num_batches, num_noise_steps) + HORIZON
    ends = [*states[1:], env.horizon + 1]
    if not states or any(end - start < room for start, end in zip(states, ends, strict=True)):
        raise ValueError(
            f"states {list(states)} of {env.horizon} steps; expected {room} steps after each, ascending"
        )
    cells = _chosen(env.action_names, layers)
    neutral = np.zeros((1, len(env.action_names)), dtype=np.float32)
    env.reset(seed=[seed])
    rows: list[dict[str, Any]] = []
    step = 0
    for state in states:
        while step < state:
            env.step(neutral)
            step += 1
        effects: dict[str, list[FloatArray]] = {name: [] for name in CREDITS}
        together = _population(env, sigma, num_noise_steps + HORIZON, seed)
        history: list[dict[str, FloatArray]] = []
        for number in range(room):
            if number < num_batches:
                for name, values in _effects(env, cells, sigma).items():
                    effects[name].append(values)
            history.append(_step(env, neutral))
            step += 1
        stacked = {name: np.stack(values) for name, values in effects.items()}  # (batches, cells)
        rows += _summary(state, env, cells, stacked, _joined(history), together)
    sizes = {
        "seed": seed,
        "layers": list(layers),
        "num_batches": num_batches,
        "num_noise_steps": num_noise_steps,
    }
    return rows, sizes | {"sigma": dict(sigma), "horizon": HORIZON, "population": POPULATION}


def _chosen(names: Sequence[str], layers: Sequence[int]) -> list[int]:
    """Columns of the cells to move: those of no layer, and those of the chosen layers."""
    wanted = {str(layer) for layer in layers}

    def taken(name: str) -> bool:
        _, is_layer, rest = name.partition("/layer.")
        return not is_layer or rest.split(".")[0] in wanted

    return [column for column, name in enumerate(names) if taken(name)]


def _step(env: TrainLoopVectorEnv, actions: NDArray[np.float32]) -> dict[str, FloatArray]:
    """Every measured term of one decision, (rows,) each."""
    infos = env.step(actions)[4]
    return {credit.term: infos[f"reward_terms/{credit.term}"] for credit in CREDITS.values()}


def _joined(history: Sequence[Mapping[str, FloatArray]]) -> dict[str, FloatArray]:
    return {term: np.stack([entry[term] for entry in history]) for term in history[0]}


def _effects(
    env: TrainLoopVectorEnv, cells: Sequence[int], sigma: Mapping[str, float]
) -> dict[str, FloatArray]:
    """Half the difference of credits of a pair of rows per cell, (cells,) per reward [nats per token]."""
    fork = env.fork(2 * len(cells))
    actions = np.zeros((2 * len(cells), len(env.action_names)), dtype=np.float32)
    for pair, column in enumerate(cells):
        size = sigma[env.action_kinds[column]]
        actions[2 * pair, column], actions[2 * pair + 1, column] = size, -size
    history = [_step(fork, actions)] + [
        _step(fork, np.zeros_like(actions)) for _ in range(HORIZON - 1)
    ]
    terms = _joined(history)
    immediate = np.repeat([env.action_immediate[column] for column in cells], 2)
    found = {}
    for name, credit in CREDITS.items():
        values = np.where(
            immediate, credits_of(terms, credit, True)[0], credits_of(terms, credit, False)[0]
        )
        found[name] = 0.5 * (values[0::2] - values[1::2])
    fork.close()
    return found


def _population(
    env: TrainLoopVectorEnv, sigma: Mapping[str, float], num_steps: int, seed: int
) -> dict[str, FloatArray]:
    """Terms of copies of the run that draw all their cells as fresh policies do, (num_steps, POPULATION) each."""
    fork, rng = env.fork(POPULATION), np.random.default_rng(seed)
    stds = np.array([sigma[kind] for kind in env.action_kinds])
    history = []
    for _ in range(num_steps):
        drawn = rng.standard_normal((POPULATION, len(stds))) * stds
        history.append(_step(fork, np.clip(drawn, -1.0, 1.0).astype(np.float32)))
    fork.close()
    return _joined(history)


def _noise(
    alone: Mapping[str, FloatArray],
    together: Mapping[str, FloatArray],
    credit: Credit,
    immediate: bool,
) -> float:
    """Standard deviation of a credit over decisions: of the detached run, or of rows less the others' mean."""
    if not credit.population:
        return float(credits_of(alone, credit, immediate).std(ddof=1))
    found = credits_of(together, credit, immediate)  # (T, POPULATION)
    difference = found - leave_one_out(
        found, np.ones(found.shape, dtype=bool)
    )  # sums to zero over the rows
    return math.sqrt(float((difference**2).mean()))


def _summary(
    state: int, env: TrainLoopVectorEnv, cells: Sequence[int], effects: Mapping[str, FloatArray],
    alone: Mapping[str, FloatArray], together: Mapping[str, FloatArray],
) -> list[dict[str, Any]]:  # fmt: skip
    """A row per channel and reward."""
    channels = [env.action_names[column].split("/")[0] for column in cells]
    rows = []
    for channel in dict.fromkeys(channels):
        mine = [place for place, name in enumerate(channels) if name == channel]
        immediate = env.action_immediate[cells[mine[0]]]
        for name, credit in CREDITS.items():
            effect, error = effect_size(effects[name][:, mine])
            noise = _noise(alone, together, credit, immediate)
            told = effect > TOLD * error and noise > 0.0
            rows.append(
                {
                    "step": state, "channel": channel, "immediate": immediate, "reward": name, "effect": effect,
                    "standard_error": error, "noise": noise, "snr": effect / noise if told else None,
                    "steps_to_know": steps_to_know(effect, noise) if told else None, "cells": len(mine),
                }
            )  # fmt: skip
    return rows
