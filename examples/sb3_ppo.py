"""PPO of stable-baselines3 on a population of runs: `python -m examples.sb3_ppo`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3 import PPO

import hpenv
from hpenv.benchmark.evaluate import evaluate_controller
from hpenv.integrations.sb3 import SB3VecEnv, from_sb3
from hpenv.policies import save_policy

gym.register_envs(hpenv)
ENV = "TrainLoop-JEL-v0"


def main(out: Path = Path("runs/sb3_ppo"), num_episodes: int = 80, **arguments: Any) -> float:
    """Trains on cheap runs, saves the policy without pickle, and returns its held-out score."""
    envs = gym.make_vec(
        ENV, num_envs=8, autoreset_mode="DISABLED", **({"batch_tokens": 128} | arguments)
    )
    num_decisions = envs.num_decisions
    model = PPO("MlpPolicy", SB3VecEnv(envs), n_steps=num_decisions, batch_size=4 * num_decisions)
    model.learn(num_episodes * num_decisions, progress_bar=True)
    policy = from_sb3(model)
    save_policy(policy, out)
    rows = evaluate_controller(policy, ENV, arguments, [0, 1])
    score = float(np.mean([row["bpb"] for row in rows]))
    print(f"{score:.3f} held-out bits per byte; the policy is in {out}")
    return score


if __name__ == "__main__":
    main()
