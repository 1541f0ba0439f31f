"""The probe environment as stable-baselines3 knows it."""

import numpy as np

import hpenv  # noqa: F401  registers the ids
from hpenv.integrations.sb3 import SB3VecEnv
from tests.probe_envs import TargetTrackingVectorEnv

ZEROS = np.zeros((4, 2), dtype=np.float32)


def make(**arguments) -> SB3VecEnv:
    return SB3VecEnv(TargetTrackingVectorEnv(num_envs=4, horizon=5, **arguments))
