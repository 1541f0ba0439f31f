"""Draws an episode of the ids for their pages: `python -m docs.pictures`. It takes a minute.

`docs/episode.png`, the picture of TrainLoop-JEL-v0, is made by `examples/quickstart.py`.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from PIL import Image

import hpenv
from docs.markdown import DOCS
from hpenv.benchmark.environments import columns_of
from hpenv.policies import AdaptiveRL

gym.register_envs(hpenv)

#: Module of an id -> the id, arguments of the episode, and what acts.
EPISODES: dict[str, tuple[str, dict[str, Any], str]] = {
    "cell": ("TrainLoop-Cell-v0", {"num_steps": 150}, "a wave over the cells"),
    "adaptive": ("TrainLoop-Adaptive-v0", {}, "the control law `AdaptiveRL`"),
    "grpo_projection": ("TrainLoop-GRPOProjection-v0", {"num_steps": 12}, "full projection"),
}


def draw(name: str) -> None:
    """Plays an episode, and writes its picture."""
    id, arguments, _ = EPISODES[name]
    law = AdaptiveRL()
    asked = law.spec.arguments() if name == "adaptive" else {}
    env: Any = gym.make(id, render_mode="rgb_array", **(asked | arguments))
    observation, _ = env.reset(seed=0)
    if asked:
        law.reset(columns_of(env.unwrapped.vector))
    phases = np.arange(env.action_space.shape[0]) / 12.0
    number, ended = 0, False
    while not ended:
        if name == "adaptive":
            action = law.act(observation[None])[0]
        elif name == "cell":
            action = 0.5 * np.sin(number / 12.0 + phases).astype(np.float32)
        else:
            action = np.ones(len(phases), np.float32)
        observation, _, ended, _, _ = env.step(action)
        number += 1
    folder = DOCS / "pictures"
    folder.mkdir(exist_ok=True)
    Image.fromarray(env.render()).save(folder / f"{name}.png", optimize=True)


if __name__ == "__main__":
    for name in EPISODES:
        draw(name)
