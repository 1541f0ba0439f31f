"""Data sets of whole populations: every stored episode replays."""

import gymnasium as gym
import numpy as np
import pytest

pytest.importorskip("minari")
pytest.importorskip("pyarrow")

from hpenv.integrations.minari import export
from hpenv.policies import GaussianMLP
from tests.hpenv.envs.every_id import JEL
from tests.hpenv.envs.small_arguments import SMALL

FULL = SMALL[JEL] | {"observation": "full"}


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))


def policy():
    size = gym.make(JEL, **FULL).observation_space.shape[0]
    return GaussianMLP(size, 2, hidden_sizes=(4,), seed=1)


def test_a_stored_episode_replays_to_its_stored_observations():
    """Bitwise in a population of as many rows, and closely in the env that Minari makes again."""
    seeds = [7, 2, 11]
    dataset = export("hpenv/test-v0", policy(), JEL, FULL, seeds)
    episodes = list(dataset.iterate_episodes())
    actions = np.stack([episode.actions for episode in episodes], axis=1)
    envs = gym.make_vec(JEL, num_envs=3, autoreset_mode="DISABLED", **FULL)
    seen = [envs.reset(seed=seeds)[0]] + [envs.step(action)[0] for action in actions]
    assert np.array_equal(np.stack(seen, axis=1), [episode.observations for episode in episodes])
    assert np.ptp(actions, axis=(0, 1)).min() > 0

    single = dataset.recover_environment()
    for episode, seed in zip(episodes, seeds, strict=True):
        observations = [single.reset(seed=seed)[0]]
        rewards = []
        for action in episode.actions:
            observation, reward, *_ = single.step(action)
            observations.append(observation)
            rewards.append(reward)
        assert np.allclose(observations, episode.observations, rtol=1e-4, atol=1e-5)
        assert np.allclose(rewards, episode.rewards, rtol=1e-3, atol=1e-6)
        assert episode.terminations.tolist() == [False, False, True]
        assert not episode.truncations.any() and len(episode.infos["train_loss"]) == 4


def test_a_row_that_ends_early_is_a_shorter_episode():
    class Exploding:
        spec = policy().spec

        def act(self, observations):
            return np.ones((len(observations), 2), dtype=np.float32)

    hot = FULL | {"base_lr": 1e6, "num_steps": 12, "optimizer": "sgd"}
    dataset = export("hpenv/hot-v0", Exploding(), JEL, hot, [0, 1])
    for episode in dataset.iterate_episodes():
        assert len(episode.observations) == len(episode.rewards) + 1
        assert episode.terminations[-1] and not episode.terminations[:-1].any()
        assert episode.infos["divergence"][-1] > 0 and len(episode.rewards) < 6


def test_more_seeds_than_rows_are_populations_one_after_the_other():
    dataset = export("hpenv/rows-v0", policy(), JEL, FULL, [1, 2, 3], max_rows=2)
    assert dataset.total_episodes == 3 and dataset.total_steps == 9
    assert [episode.id for episode in dataset.iterate_episodes()] == [0, 1, 2]
    with pytest.raises(ValueError, match="max_rows must be >= 1; got"):
        export("hpenv/none-v0", policy(), JEL, FULL, [])
