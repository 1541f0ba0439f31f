"""One training run under a fixed schedule, and its picture: `python examples/quickstart.py`."""

from pathlib import Path

import gymnasium as gym
import numpy as np
from PIL import Image

import hpenv

gym.register_envs(hpenv)


def main(picture: Path = Path("episode.png"), **arguments: object) -> float:
    """Raises the learning rate early and lowers it late, and returns the held-out bits per byte."""
    env = gym.make("TrainLoop-JEL-v0", render_mode="rgb_array", **arguments)
    observation, _ = env.reset(seed=0)
    terminated = False
    while not terminated:
        progress = observation[0]
        action = np.array([0.8 - 0.8 * progress, 0.0], dtype=np.float32)  # rate, weight decay
        observation, _, terminated, _, _ = env.step(action)
    Image.fromarray(env.render()).save(picture)
    score = float(env.unwrapped.evaluate())
    print(f"{score:.3f} held-out bits per byte; the run is drawn in {picture}")
    return score


if __name__ == "__main__":
    main()
