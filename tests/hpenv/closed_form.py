"""Environments whose plant has a closed form."""

import numpy as np

from hpenv.env import TrainLoopVectorEnv
from hpenv.envs.single import TrainLoopEnv
from hpenv.telemetry.features import FEATURES
from hpenv.telemetry.rewards import REWARD_TERMS
from tests.fake_plant import FakePlant

MODES = ("NEXT_STEP", "SAME_STEP", "DISABLED")
EVERYTHING = {
    "features": list(FEATURES),
    "reward": dict.fromkeys(REWARD_TERMS, 1.0),
    "num_registers": 3,
}


def make(num_envs=3, diverges=None, mode="NEXT_STEP", **arguments):
    arguments = {"interval": 10, "num_steps": 23} | arguments
    return TrainLoopVectorEnv(FakePlant(num_envs, diverges), autoreset_mode=mode, **arguments)


def single(**arguments):
    return TrainLoopEnv(make(1, mode="DISABLED", **arguments))


def still(env):
    return np.zeros(env.action_space.shape, dtype=np.float32)


def steps(env):
    return env.plant.steps.tolist()
