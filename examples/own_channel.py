"""A channel of one's own, moved and scored on real text: `python -m examples.own_channel`.

The channel takes a fraction of the mean out of the rows of every gradient (gradient
centralization, Yong et al. 2020, arXiv 2004.01461).
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from torch import Tensor

import hpenv
from hpenv.control.channel import Channel
from hpenv.control.channels import add_channel

gym.register_envs(hpenv)


def center(gradient: Tensor, fraction: Tensor) -> Tensor:
    """Returns gradients (N, ...) without a fraction (N, 1, ...) of the mean of each row."""
    return gradient - fraction * gradient.mean(-1, keepdim=True)


CENTERING = Channel(
    name="centering",
    scopes=("run", "layer"),
    surface="backward",
    bounds=(0.0, 1.0),
    kind="skip",  # a fraction that is 0 at neutral
    unit="fraction of the mean of a gradient's rows that is removed",
    source="Yong et al. 2020 (arXiv 2004.01461)",
    reads="examples.own_channel.center",
    change=center,
)


def main(position: float = 1.0, seed: int = 0, **arguments: Any) -> tuple[float, float]:
    """Prints held-out bits per byte without and with the channel, and returns both.

    Args:
        position: of the channel, in [-1, 1]. 0 is neutral, 1 removes the whole mean.
        seed: of both runs.
        **arguments: of the environment.
    """
    add_channel(CENTERING)
    env = gym.make("TrainLoop-JEL-v0", channels=[("centering", "run")], **arguments)

    scores = []
    for value in (0.0, position):
        env.reset(seed=seed)
        ended = False
        while not ended:
            ended = env.step(np.array([value], dtype=np.float32))[2]
        scores.append(env.unwrapped.evaluate())

    print(f"held-out bits per byte: {scores[0]:.4f} without, {scores[1]:.4f} with centering")
    return scores[0], scores[1]


if __name__ == "__main__":
    main()
