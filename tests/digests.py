"""Digests of a short run of each id: `python -m tests.digests`.

A change that must not change a number prints the same lines before and after it, on one machine
with one thread. Observations, rewards and snapshots are hashed. Names are not, so that a renamed
tensor or observation has the same digest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import gymnasium as gym
import numpy as np
import torch

import hpenv
from hpenv import branching

gym.register_envs(hpenv)
PRETRAINING = {"batch_tokens": 64, "sequence_length": 16, "eval_tokens": 2048}
RUNS: dict[str, tuple[str, dict[str, Any], int]] = {
    "jel": ("TrainLoop-JEL-v0", PRETRAINING | {"num_steps": 35, "interval": 10}, 4),
    "jel, per optimizer, all features": (
        "TrainLoop-JEL-v0",
        PRETRAINING
        | {"num_steps": 35, "interval": 10, "channels": "per_optimizer", "observation": "full"},
        4,
    ),
    "cell": ("TrainLoop-Cell-v0", PRETRAINING | {"num_steps": 8, "channels": "full"}, 8),
    "cell, foundational": ("TrainLoop-Cell-v0", PRETRAINING | {"num_steps": 8}, 8),
    "grpo": (
        "TrainLoop-GRPOProjection-v0",
        {
            "num_prompts": 4,
            "num_samples": 4,
            "num_steps": 4,
            "channels": "full",
            "num_probe_problems": 4,
            "num_evaluation_problems": 8,
        },
        4,
    ),
}


def digest(arrays: Iterable[np.ndarray]) -> str:
    """Returns a digest of arrays in the order of their own digests."""
    own = sorted(
        hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest() for array in arrays
    )
    return hashlib.sha256("".join(own).encode()).hexdigest()[:16]


def run(id: str, arguments: dict[str, Any], num_decisions: int) -> dict[str, str]:
    """Plays random actions with two rows and returns digests of what came of them."""
    envs = gym.make_vec(id, num_envs=2, autoreset_mode="DISABLED", **arguments)
    observations, _ = envs.reset(seed=0)
    seen, paid = [observations.copy()], []
    rng = np.random.default_rng(0)
    for _ in range(num_decisions):
        actions = rng.uniform(-1.0, 1.0, envs.action_space.shape).astype(np.float32)
        observations, rewards, *_ = envs.step(actions)
        seen.append(observations.copy())
        paid.append(rewards.copy())
    # The last window is left out: its numbers are in the observations.
    found = branching.snapshot(envs).tensors.items()
    tensors = [tensor for name, tensor in found if "window/" not in name]
    kept = [
        tensor.detach().cpu().numpy() if torch.is_tensor(tensor) else tensor for tensor in tensors
    ]
    held_out = np.asarray(envs.evaluate(), dtype=np.float64)
    envs.close()
    return {
        "observations": digest(seen),
        "rewards": digest(paid),
        "snapshot": digest(map(np.asarray, kept)),
        "held out": digest([held_out]),
    }


def main() -> None:
    """Prints a line per run."""
    torch.set_num_threads(1)
    for name, (id, arguments, num_decisions) in RUNS.items():
        parts = run(id, arguments, num_decisions)
        print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in parts.items()))


if __name__ == "__main__":
    main()
