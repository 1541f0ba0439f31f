"""How much a Sidecar can hear: the effect of one cell on each reward, against the reward's own noise.

At a few states of a detached run the env is forked into a pair of rows per cell, which for one decision move that cell
by plus and by minus one standard deviation of a fresh policy, and are neutral from there on. All rows see the same
batches, so that half the difference of a pair's credits is the cell's effect, free of the noise of the batch; the
online policy is not that lucky, its credits differ from step to step by that noise.

REINFORCE averages credit x (sample / sigma), whose mean is the effect and whose standard deviation is, as long as the
effect is small, the credit's own. So SNR = effect / noise of one step, and the sign of an effect is known at two
standard errors after (2 / SNR)^2 steps.
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
from hpenv.env import TrainLoopVectorEnv
from train_agents.online import Rows

gym.register_envs(hpenv)

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Credit:
    """What a reward credits a decision with: the sum of a term over some decisions from it on.

    Attributes:
        term: key of the env's reward terms.
        first: decisions between the action and the first reward of the sum; a cell that the forward pass reads begins
            at 0 regardless, as the agent has it.
        last: and the last.
    """

    term: str
    first: int
    last: int


#: Reward -> its credit.
CREDITS: dict[str, Credit] = {
    "next-step loss change": Credit("loss_change", 1, 1),
    "same-batch loss change": Credit("same_batch_change", 0, 0),
    "probe loss change": Credit("progress", 0, 0),
    "loss change over 16 steps": Credit("loss_change", 1, 16),
}
#: Decisions that a pair is followed for.
HORIZON = 1 + max(credit.last for credit in CREDITS.values())
#: Weights of the env's terms, so that all of them are measured.
REWARD = {"loss_change": 1.0, "same_batch_change": 1.0, "progress": 1.0, "divergence": 1.0}


def credits_of(terms: Mapping[str, FloatArray], credit: Credit, immediate: bool) -> FloatArray:
    """Credit of the first decision of each row.

    Args:
        terms: term -> (decisions, rows).
        credit: which sum.
        immediate: whether the cell is read by the forward pass.

    Returns:
        (rows,) [nats per token].
    """
    first = 0 if immediate else credit.first
    return terms[credit.term][first : credit.last + 1].sum(0)


def effect_size(effects: FloatArray) -> float:
    """Root mean square over cells of the mean effect over batches, less what the scatter of batches adds to it.

    Args:
        effects: (batches, cells), at least two batches.

    Returns:
        sqrt(mean over cells of (mean^2 - variance / batches)), or 0 where that is negative.
    """
    if effects.ndim != 2 or len(effects) < 2:
        raise ValueError(f"effects of shape {effects.shape}; expected (batches, cells) with at least 2 batches")
    squares = effects.mean(0) ** 2 - effects.var(0, ddof=1) / len(effects)
    return math.sqrt(max(0.0, float(squares.mean())))


def steps_to_know(effect: float, noise: float) -> float | None:
    """Steps after which the sign of an effect is known at two standard errors, (2 noise / effect)^2; None: never."""
    return (2.0 * noise / effect) ** 2 if effect > 0.0 else None


def measure_signal(
    env_id: str, env_kwargs: Mapping[str, Any], seed: int, states: Sequence[int], layers: Sequence[int],
    num_batches: int, num_noise_steps: int, sigma: Mapping[str, float],
) -> Rows:  # fmt: skip
    """Effect of a cell per standard deviation, noise, SNR and steps to know the sign, per state, channel and reward.

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
        A row per state, channel and reward: `step`, `channel`, `reward`, `effect` (root mean square over the cells,
        noise of the estimate taken off) and `noise` [nats per token], `snr`, `steps_to_know` (None: no effect was
        found), `cells`. And the sizes.

    Raises:
        ValueError: if states are not ascending, or do not leave room for what is measured after them.
    """
    env = gym.make_vec(
        env_id, num_envs=1, autoreset_mode="DISABLED", **env_kwargs, reward=REWARD, num_registers=0, interval=1
    )
    assert isinstance(env, TrainLoopVectorEnv)
    room = max(num_batches, num_noise_steps) + HORIZON
    ends = [*states[1:], env.horizon + 1]
    if not states or any(end - start < room for start, end in zip(states, ends, strict=True)):
        raise ValueError(f"states {list(states)} of {env.horizon} steps; expected {room} steps after each, ascending")
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
        history: list[dict[str, FloatArray]] = []
        for number in range(room):
            if number < num_batches:
                for name, values in _effects(env, cells, sigma).items():
                    effects[name].append(values)
            history.append(_step(env, neutral))
            step += 1
        stacked = {name: np.stack(values) for name, values in effects.items()}  # (batches, cells)
        rows += _summary(state, env, cells, stacked, _joined(history))
    sizes = {"seed": seed, "layers": list(layers), "num_batches": num_batches, "num_noise_steps": num_noise_steps}
    return rows, sizes | {"sigma": dict(sigma), "horizon": HORIZON}


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
    return {credit.term: infos["reward_terms"][credit.term] for credit in CREDITS.values()}


def _joined(history: Sequence[Mapping[str, FloatArray]]) -> dict[str, FloatArray]:
    return {term: np.stack([entry[term] for entry in history]) for term in history[0]}


def _effects(env: TrainLoopVectorEnv, cells: Sequence[int], sigma: Mapping[str, float]) -> dict[str, FloatArray]:
    """Half the difference of credits of a pair of rows per cell, (cells,) per reward [nats per token]."""
    fork = env.fork(2 * len(cells))
    actions = np.zeros((2 * len(cells), len(env.action_names)), dtype=np.float32)
    for pair, column in enumerate(cells):
        size = sigma[env.action_kinds[column]]
        actions[2 * pair, column], actions[2 * pair + 1, column] = size, -size
    history = [_step(fork, actions)] + [_step(fork, np.zeros_like(actions)) for _ in range(HORIZON - 1)]
    terms = _joined(history)
    immediate = np.repeat([env.action_immediate[column] for column in cells], 2)
    found = {}
    for name, credit in CREDITS.items():
        values = np.where(immediate, credits_of(terms, credit, True), credits_of(terms, credit, False))
        found[name] = 0.5 * (values[0::2] - values[1::2])
    fork.close()
    return found


def _summary(
    state: int, env: TrainLoopVectorEnv, cells: Sequence[int], effects: Mapping[str, FloatArray],
    history: Mapping[str, FloatArray],
) -> list[dict[str, Any]]:  # fmt: skip
    """A row per channel and reward."""
    channels = [env.action_names[column].split("/")[0] for column in cells]
    rows = []
    for channel in dict.fromkeys(channels):
        mine = [place for place, name in enumerate(channels) if name == channel]
        immediate = env.action_immediate[cells[mine[0]]]
        for name, credit in CREDITS.items():
            series = _credit_series(history, credit, immediate)
            effect, noise = effect_size(effects[name][:, mine]), float(series.std(ddof=1))
            rows.append(
                {
                    "step": state, "channel": channel, "reward": name, "effect": effect, "noise": noise,
                    "snr": effect / noise if noise > 0.0 else None, "steps_to_know": steps_to_know(effect, noise),
                    "cells": len(mine),
                }
            )  # fmt: skip
    return rows


def _credit_series(history: Mapping[str, FloatArray], credit: Credit, immediate: bool) -> FloatArray:
    """Credits of successive decisions of the detached run, whose spread is the noise."""
    length = len(history[credit.term]) - credit.last
    return np.array(
        [
            float(credits_of({credit.term: history[credit.term][t:]}, credit, immediate).sum())
            for t in range(length)
        ]
    )  # fmt: skip
