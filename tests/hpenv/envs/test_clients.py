"""Clients that read an environment in a way of their own, and the requests of each of them.

Each test runs the client itself.

A client that is not installed is left out.
"""

from unittest.mock import patch

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode

import hpenv  # noqa: F401  registers the ids
from hpenv.env import TrainLoopVectorEnv
from hpenv.envs import cell, grpo_projection, jel
from hpenv.envs.single import TrainLoopEnv
from hpenv.integrations.sb3 import SB3VecEnv
from hpenv.posttraining import plant as grpo
from tests import tiny_student
from tests.fake_plant import FakePlant

SHORT = {"num_steps": 2, "interval": 1, "evaluate_at_end": True}
TEXT = SHORT | {
    "data": "synthetic",
    "preset": "nano",
    "batch_tokens": 16,
    "sequence_length": 8,
    "eval_tokens": 64,
}
SMALL = {
    jel.ID: TEXT,
    cell.ID: TEXT,
    grpo_projection.ID: SHORT | tiny_student.TINY | {"num_samples": 2, "num_probe_problems": 1},
}
EVERY_ID = pytest.mark.parametrize("id", SMALL)


@pytest.fixture
def small(id):
    """Arguments of the id: it trains a student of a thousand weights and executes no program."""
    with (
        tiny_student.few_pairs(),
        patch.object(grpo, "Grader", lambda *_: tiny_student.FakeGrader()),
    ):
        own = (
            {"student": tiny_student.student(1, tiny_student.SHORT)}
            if id == grpo_projection.ID
            else {}
        )
        yield SMALL[id] | own


@pytest.fixture(scope="module")
def torchrl():
    return pytest.importorskip("torchrl.envs")


@EVERY_ID
def test_torchrl_makes_every_id_reads_its_infos_and_steps_it_without_gradients(torchrl, id, small):
    collectors = pytest.importorskip("torchrl.collectors")
    env = torchrl.GymEnv(id, **small)
    env.auto_register_info_dict()
    torchrl.check_env_specs(env)
    frames = list(collectors.Collector(env, None, frames_per_batch=2, total_frames=4))
    assert [batch["next", "step"].flatten().tolist() for batch in frames] == [[1, 2], [1, 2]]
    assert all(batch["next", "terminated"].flatten().tolist() == [False, True] for batch in frames)


@pytest.mark.parametrize("mode", ["DISABLED", "SAME_STEP"])
@pytest.mark.parametrize("id", [jel.ID])
def test_torchrl_takes_a_population_over_the_ends_of_its_episodes(torchrl, mode, id, small):
    env = torchrl.GymWrapper(gym.make_vec(id, num_envs=2, autoreset_mode=mode, **small))
    torchrl.check_env_specs(env)
    steps = env.rollout(5, break_when_any_done=False)
    assert (
        steps["next", "terminated"].squeeze(-1).tolist() == [[False, True, False, True, False]] * 2
    )


def fake(num_envs=1, mode="DISABLED"):
    return TrainLoopVectorEnv(
        FakePlant(num_envs, {0: 15}),
        interval=10,
        num_steps=20,
        autoreset_mode=mode,
        evaluate_at_end=True,
    )


@pytest.mark.parametrize("id", [jel.ID])
def test_minari_stores_and_gives_back_the_infos_of_an_episode(id, small, tmp_path, monkeypatch):
    """Its collector appends to one list per key, so the keys must be those of the reset.

    It needs jax, so the test does the same by hand.
    """
    minari = pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    env = gym.make(id, **small)
    observation, info = env.reset(seed=1)
    seen = {
        "observations": [observation],
        "actions": [],
        "rewards": [],
        "terminations": [],
        "truncations": [],
    }
    infos = {key: [value] for key, value in info.items()}
    while not any(seen["terminations"]):
        action = np.full(env.action_space.shape, 0.25, dtype=np.float32)
        observation, reward, terminated, truncated, info = env.step(action)
        for values, value in zip(
            seen.values(), (observation, action, reward, terminated, truncated), strict=True
        ):
            values.append(value)
        assert infos.keys() == info.keys()
        for key, value in info.items():
            infos[key].append(value)
    episode = minari.data_collector.EpisodeBuffer(id=0, seed=1, **seen, infos=infos)
    minari.create_dataset_from_buffers(
        "hpenv/test-v0",
        buffer=[episode],
        env=env.spec,
        eval_env=env.spec,
        data_format="arrow",
        **dict.fromkeys(
            ("algorithm_name", "description", "author", "author_email", "code_permalink"), "-"
        ),
    )
    dataset = minari.load_dataset("hpenv/test-v0")
    (stored,) = dataset.iterate_episodes()
    assert {key: values.tolist() for key, values in stored.infos.items()} == infos
    replayed = dataset.recover_environment()
    assert np.array_equal(replayed.reset(seed=1)[0], stored.observations[0])
    assert np.array_equal(replayed.step(stored.actions[0])[0], stored.observations[1])


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED])
def test_gymnasium_hands_a_population_to_torch(mode):
    """Under SAME_STEP it fails for every vector env.

    There `final_obs` is an array of objects.
    """
    wrappers = pytest.importorskip("gymnasium.wrappers.vector")
    pytest.importorskip("array_api_compat")
    for vector in (
        fake(2, mode),
        gym.vector.SyncVectorEnv([lambda: TrainLoopEnv(fake())] * 2, autoreset_mode=mode),
    ):
        env = wrappers.NumpyToTorch(vector)
        env.reset(seed=0)
        for step in (10, 15):
            infos = env.step(torch.zeros(2, 2))[4]
            assert infos["step"][0] == step and infos["train_loss"].dtype == torch.float64


def test_stable_baselines3_is_told_the_held_out_score_of_a_run_that_it_has_reset():
    vector = fake(2)
    env = SB3VecEnv(vector)
    env.seed(0)
    env.reset()
    for _ in range(3):
        before = vector.plant.losses.copy()
        _, _, dones, infos = env.step(np.zeros((2, 2), dtype=np.float32))
        for row, info in enumerate(infos):
            assert ("held_out" in info) == dones[row]
            if dones[row]:
                assert (
                    0.0 < info["held_out"] < before[row] < vector.plant.losses[row]
                )  # which is the next run's
