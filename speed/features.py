"""Prices of the features that do not depend on a run's units, for `python -m speed.run`."""

from __future__ import annotations

from functools import partial
from time import process_time
from typing import Any

import numpy as np

from hpenv.env import TrainLoopVectorEnv
from hpenv.envs.cell import make_vector_env as make_cell
from hpenv.envs.jel import make_vector_env as make_jel
from speed.timing import alternate, ratio

#: Features, each of a measurement group of its own, and those of AdaptiveRL.
TRAVELING = (
    "update_ratio",
    "gradient_agreement",
    "update_alignment",
    "gradient_norm_spread",
    "update_gain",
)
#: Further ones: a backward pass over a batch of the probe, a pass over the weights, and sums.
FURTHER = ("probe_gain", "start_distance", "loss_exponent")
TRENDS = ("loss_trend", "reward_trend", "loss_variance_ratio", "plateau")
#: Steps of a decision.
INTERVAL = 10


def _make(preset: str, tokens: int, rounds: int, features: tuple[str, ...]) -> TrainLoopVectorEnv:
    make = make_cell if preset == "cell11" else make_jel
    env = make(
        1,
        autoreset_mode="DISABLED",
        preset=preset,
        batch_tokens=tokens,
        num_steps=INTERVAL * (rounds + 2),
        interval=INTERVAL,
        channels=[("lr", "run")],
        observation=["progress", *features],
        reward={"divergence": 1.0},
        num_registers=0,
        schedule="none",
    )
    env.reset(seed=0)
    return env


def feature_prices(preset: str, tokens: int, rounds: int, of_all: int) -> dict[str, Any]:
    """Compares a decision of 10 steps that measures features to one that measures none.

    Args:
        preset: `nano` or `cell11`.
        tokens: batch of a step [tokens].
        rounds: alternating rounds of one decision, with single features.
        of_all: alternating rounds of one decision, with all of TRAVELING.

    Returns:
        Name of a feature, `all` of TRAVELING or `trends` -> ratio of a window's processor times.
    """
    single: dict[str, tuple[str, ...]] = {name: (name,) for name in (*TRAVELING, *FURTHER)}
    single |= {"trends": TRENDS}
    return _prices(preset, tokens, of_all, {"all": TRAVELING}) | _prices(
        preset, tokens, rounds, single
    )


def _prices(
    preset: str, tokens: int, rounds: int, sets: dict[str, tuple[str, ...]]
) -> dict[str, Any]:
    sets = sets | {"none": ()}
    envs = {name: _make(preset, tokens, rounds, features) for name, features in sets.items()}
    still = np.zeros((1, 1), np.float32)
    times = alternate(
        {name: partial(env.step, still) for name, env in envs.items()}, rounds, process_time
    )
    return {name: ratio(times, name, "none") for name in sets if name != "none"}
