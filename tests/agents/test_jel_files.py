"""JEL's determinism, its saved state, and what it refuses."""

import dataclasses
import math
from typing import get_args

import numpy as np
import pytest
import torch

from agents.base import config_json
from agents.jel import NORMALIZATIONS, JELAgent, JELAgentConfig, Normalization
from hpenv.policies import load_policy, save_policy
from tests.agents.small_jel import SMALL, fixed_rollout, weights


def test_the_policy_draws_nothing():
    agent, twin = JELAgent(1, 2, seed=0), JELAgent(1, 2, seed=0)
    obs = np.linspace(0, 1, 5)[:, None]
    agent.policy.act(obs)
    assert np.array_equal(agent.sample(obs).raw, twin.sample(obs).raw)


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others():
    traces = []
    for seed in (4, 4, 5):
        agent = JELAgent(1, 2, SMALL, seed=seed)
        metrics = [agent.update(fixed_rollout(agent)) for _ in range(2)]
        traces.append((metrics, weights(agent)))
    assert traces[0][0] == traces[1][0] and torch.equal(traces[0][1], traces[1][1])
    assert not torch.equal(traces[0][1], traces[2][1])


def test_the_global_generators_are_untouched():
    torch_state = torch.get_rng_state()
    numpy_state = np.random.get_state(legacy=False)["state"]  # noqa: NPY002
    agent = JELAgent(1, 2, SMALL)
    agent.update(fixed_rollout(agent))
    assert torch.equal(torch.get_rng_state(), torch_state)
    now = np.random.get_state(legacy=False)["state"]  # noqa: NPY002
    assert np.array_equal(now["key"], numpy_state["key"]) and now["pos"] == numpy_state["pos"]


def test_saved_and_loaded_it_continues_bitwise(tmp_path):
    agent = JELAgent(1, 2, SMALL, seed=1)
    agent.update(fixed_rollout(agent))
    agent.sample(np.zeros((3, 1)))
    agent.save(tmp_path / "agent")
    other = JELAgent(1, 2, SMALL, seed=99)
    other.update(fixed_rollout(other))
    other.load(tmp_path / "agent")
    assert other.num_updates == 1
    for _ in range(2):
        assert agent.update(fixed_rollout(agent)) == other.update(fixed_rollout(other))
    assert torch.equal(weights(agent), weights(other))


def test_an_untrained_agent_can_be_saved_and_loaded(tmp_path):
    JELAgent(1, 2, SMALL, seed=1).save(tmp_path / "agent")
    agent, other = JELAgent(1, 2, SMALL, seed=1), JELAgent(1, 2, SMALL, seed=2)
    other.load(tmp_path / "agent")
    assert agent.update(fixed_rollout(agent)) == other.update(fixed_rollout(other))


def test_an_agent_of_other_arguments_is_not_loaded(tmp_path):
    JELAgent(1, 2, SMALL).save(tmp_path / "agent")
    with pytest.raises(ValueError, match="config"):
        JELAgent(1, 2, dataclasses.replace(SMALL, gamma=0.9)).load(tmp_path / "agent")
    with pytest.raises(ValueError, match="action_size"):
        JELAgent(1, 4, SMALL).load(tmp_path / "agent")


def test_a_start_at_random_is_left_out_of_what_is_compared(tmp_path):
    """Agents and results from before the option are those of its default."""
    assert "start" not in config_json(JELAgentConfig()) and "start" not in repr(JELAgentConfig())
    neutral = JELAgentConfig(start="neutral")
    assert config_json(neutral)["start"] == "neutral" and "start='neutral'" in repr(neutral)
    JELAgent(1, 2, neutral, seed=0).save(tmp_path / "agent")
    with pytest.raises(ValueError, match="must have config"):
        JELAgent(1, 2, seed=0).load(tmp_path / "agent")
    JELAgent(1, 2, neutral, seed=1).load(tmp_path / "agent")


def test_its_policy_can_be_taken_out_and_acts_identically(tmp_path):
    agent = JELAgent(1, 2, SMALL)
    agent.update(fixed_rollout(agent))
    save_policy(agent.policy, tmp_path / "policy")
    obs = np.linspace(0, 1, 12)[:, None]
    assert np.array_equal(load_policy(tmp_path / "policy").act(obs), agent.policy.act(obs))


def test_metrics_are_stable_baselines3s_and_finite():
    agent = JELAgent(1, 2)
    rollout = fixed_rollout(agent)
    rollout.alive[3:, 1] = False
    metrics = agent.update(rollout)
    tags = (
        "policy_gradient_loss entropy_loss approx_kl clip_fraction std loss learning_rate n_updates"
    )
    for tag in tags.split():
        assert isinstance(metrics[f"train/{tag}"], float)
    assert all(math.isfinite(value) for value in metrics.values())
    assert metrics["train/n_updates"] == 4.0
    assert math.isclose(metrics["train/entropy"], 2 * metrics["train/entropy_per_cell"])
    assert math.isclose(metrics["train/entropy_loss"], -2 * 0.919, abs_tol=0.02)
    assert metrics["rollout/ep_len_mean"] == (7 * 12 + 3) / 8
    assert math.isclose(metrics["rollout/ep_rew_mean"], rollout.rewards[rollout.alive].sum() / 8)


def test_the_command_line_offers_every_normalization():
    assert set(get_args(Normalization)) == set(NORMALIZATIONS)


@pytest.mark.parametrize(
    "change",
    [
        {"normalize": "std"},
        {"learning_rate": 0.0},
        {"learning_rate": math.nan},
        {"gamma": 1.1},
        {"clip_range": 0.0},
        {"entropy_coefficient": -1.0},
        {"num_epochs": 0},
        {"batch_size": 0},
        {"max_grad_norm": 0.0},
        {"start": "zero"},
    ],
)
def test_bad_hyperparameters_are_refused(change):
    with pytest.raises(ValueError, match=f"{next(iter(change))}.* must be"):
        JELAgentConfig(**change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rewards": np.zeros((12, 7))}, "rewards must have shape"),
        ({"raw": np.zeros((12, 8, 3))}, "raw must have shape"),
        ({"observations": np.full((12, 8, 1), np.nan)}, "observations must be finite"),
        ({"alive": np.zeros((12, 8), dtype=bool)}, "True for at least one decision"),
        (
            {"alive": np.ones((12, 8))},
            r"alive must be a boolean array of shape \(T, N\); got float64",
        ),
        ({"alive": np.arange(12)[:, None].repeat(8, axis=1) > 3}, "True again"),
    ],
)
def test_bad_rollouts_are_refused(change, message):
    agent = JELAgent(1, 2, SMALL)
    with pytest.raises(ValueError, match=message):
        agent.update(fixed_rollout(agent)._replace(**change))
