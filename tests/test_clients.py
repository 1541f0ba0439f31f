"""Clients that read an environment in a way of their own: what each of them asks for, with the client itself."""

import numpy as np

from hpenv.env import TrainLoopVectorEnv
from hpenv.integrations.sb3 import SB3VecEnv
from tests.fake_plant import FakePlant


def test_stable_baselines3_is_told_the_held_out_score_of_a_run_that_it_has_reset():
    vector = TrainLoopVectorEnv(
        FakePlant(2, {1: 5}), interval=10, horizon=20, autoreset_mode="DISABLED", evaluate_at_end=True
    )
    env = SB3VecEnv(vector)
    env.seed(0)
    env.reset()
    for _ in range(3):
        before = vector.plant.losses.copy()
        _, _, dones, infos = env.step(np.zeros((2, 2), dtype=np.float32))
        for row, info in enumerate(infos):
            assert ("held_out" in info) == dones[row]
            if dones[row]:
                assert 0.0 < info["held_out"] < before[row] < vector.plant.losses[row]  # which is the next run's
