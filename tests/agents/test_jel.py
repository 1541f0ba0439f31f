import dataclasses
import math
from typing import get_args

import numpy as np
import pytest
import torch

from agents.base import Rollout
from agents.jel import NORMALIZATIONS, JELAgent, JELAgentConfig, Normalization
from agents.losses import gaussian_log_prob
from hpenv.policies import load_policy, save_policy
from tests.probe_envs import TargetTrackingVectorEnv, collect, regret

SMALL = JELAgentConfig(hidden_sizes=(8,), batch_size=16)
# With 8 runs a group and the rate this high the last policy still wanders (a regret of 0.02 to
# 0.2); 32 runs settle.
FAST = JELAgentConfig(hidden_sizes=(32,), batch_size=192, learning_rate=5e-3)


def weights(agent: JELAgent) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in agent.policy.parameters()])


def fixed_rollout(agent: JELAgent, T: int = 12, N: int = 8, seed: int = 0) -> Rollout:
    """Returns decisions of this agent with random rewards."""
    generator = np.random.default_rng(seed)
    observations = np.repeat(np.arange(T)[:, None, None] / T, N, axis=1).astype(np.float32)
    decisions = [agent.sample(obs) for obs in observations]
    return Rollout(
        observations,
        np.stack([d.raw for d in decisions]),
        np.stack([d.log_prob for d in decisions]),
        generator.normal(size=(T, N)),
        np.ones((T, N), dtype=bool),
    )


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_every_normalization_solves_the_probe_environment(normalize):
    env = TargetTrackingVectorEnv(num_envs=32, noise=0.1)
    agent = JELAgent(1, 2, dataclasses.replace(FAST, normalize=normalize), seed=0)
    start = regret(env, agent.policy)
    env.reset(seed=0)
    for _ in range(50):
        agent.update(collect(env, agent))
    assert start > 0.5
    assert regret(env, agent.policy) < 0.1


def test_learning_with_runs_that_diverge_solves_the_probe_environment():
    env = TargetTrackingVectorEnv(num_envs=32, noise=0.1, ends={row: 3 + row for row in range(8)})
    agent = JELAgent(1, 2, FAST, seed=0)
    env.reset(seed=0)
    for _ in range(50):
        agent.update(collect(env, agent))
    assert regret(env, agent.policy) < 0.1


def test_one_update_on_one_minibatch_is_reinforce_with_a_group_baseline():
    config = dataclasses.replace(SMALL, num_epochs=1, batch_size=96)
    agent, twin = JELAgent(1, 2, config, seed=1), JELAgent(1, 2, config, seed=1)
    rollout = fixed_rollout(agent)
    agent.update(rollout)

    togo = np.zeros((12, 8))
    for t in range(12):
        for later in range(t, 12):
            togo[t] += 0.99 ** (later - t) * rollout.rewards[later]
    advantages = torch.tensor(togo - togo.mean(axis=1, keepdims=True), dtype=torch.float32)
    mean, log_std = twin.policy(torch.tensor(rollout.observations))
    loss = -(advantages * gaussian_log_prob(torch.tensor(rollout.raw), mean, log_std)).mean()
    optimizer = torch.optim.Adam(twin.policy.parameters(), lr=3e-4)
    loss.backward()
    optimizer.step()
    assert torch.allclose(weights(agent), weights(twin), atol=1e-6)


def test_the_papers_minibatches_are_64_and_32_and_8_steps_are_taken(monkeypatch):
    agent = JELAgent(1, 2)
    sizes = []
    step = agent._step
    monkeypatch.setattr(
        agent, "_step", lambda obs, *rest: sizes.append(len(obs)) or step(obs, *rest)
    )
    agent.update(fixed_rollout(agent))
    assert sizes == [64, 32] * 4


def test_a_masked_column_changes_nothing():
    agent, twin = JELAgent(1, 2, SMALL, seed=1), JELAgent(1, 2, SMALL, seed=1)
    rollout = fixed_rollout(agent)
    twin.sample(np.zeros((1, 1)))
    twin._generator.set_state(agent._generator.get_state())

    def with_dead_column(array, value):
        return np.concatenate([array, np.full_like(array[:, :1], value)], axis=1)

    masked = Rollout(
        with_dead_column(rollout.observations, np.nan),
        with_dead_column(rollout.raw, np.nan),
        with_dead_column(rollout.log_prob, np.inf),
        with_dead_column(rollout.rewards, np.nan),
        with_dead_column(rollout.alive, False),
    )
    assert agent.update(rollout) == twin.update(masked)
    assert torch.equal(weights(agent), weights(twin))


def test_what_stands_after_an_episodes_end_changes_nothing():
    agent, twin = JELAgent(1, 2, SMALL, seed=1), JELAgent(1, 2, SMALL, seed=1)
    rollout = fixed_rollout(agent)
    twin._generator.set_state(agent._generator.get_state())
    rollout.alive[4:, 2] = False
    poisoned = Rollout(*(array.copy() for array in rollout))
    for array in poisoned[:4]:
        array[4:, 2] = np.nan
    assert agent.update(rollout) == twin.update(poisoned)
    assert torch.equal(weights(agent), weights(twin))


def test_equal_returns_teach_nothing():
    agent = JELAgent(1, 2, SMALL, seed=1)
    before = weights(agent)
    rollout = fixed_rollout(agent)
    agent.update(rollout._replace(rewards=np.tile(np.linspace(0, 1, 12)[:, None], 8)))
    assert torch.allclose(weights(agent), before, atol=1e-5)


def test_a_constant_added_to_a_decisions_rewards_changes_nothing():
    # The group baseline removes whatever all runs share, here 2^k so that no rounding is involved
    # in the means of 8.
    agent, twin = JELAgent(1, 2, SMALL, seed=1), JELAgent(1, 2, SMALL, seed=1)
    rollout = fixed_rollout(agent)
    twin._generator.set_state(agent._generator.get_state())
    agent.update(rollout)
    twin.update(rollout._replace(rewards=rollout.rewards + 2.0 ** np.arange(12)[:, None]))
    assert torch.allclose(weights(agent), weights(twin), atol=1e-6)


def test_the_entropy_coefficient_keeps_the_noise_up():
    std = []
    for coefficient in (0.0, 0.5):
        agent = JELAgent(
            1, 2, dataclasses.replace(SMALL, entropy_coefficient=coefficient, learning_rate=1e-2)
        )
        rollout = fixed_rollout(agent)
        std.append(
            [agent.update(rollout._replace(rewards=0 * rollout.rewards)) for _ in range(5)][-1][
                "train/std"
            ]
        )
    assert math.isclose(std[0], math.exp(-0.5), rel_tol=1e-6)
    assert std[1] > 1.1 * std[0]


def test_a_bound_on_the_gradient_holds():
    agents = [
        JELAgent(1, 2, dataclasses.replace(SMALL, max_grad_norm=bound))
        for bound in (None, 1e-9, 1e9)
    ]
    rollout = fixed_rollout(JELAgent(1, 2, SMALL))
    before = weights(agents[0])
    moved = []
    for agent in agents:
        agent.update(rollout)
        moved.append((weights(agent) - before).abs().sum().item())
    # Adam divides by the gradient's own size, but for its eps of 1e-8: a gradient of 1e-9 barely
    # moves anything.
    assert moved[1] < 0.3 * moved[0]
    assert math.isclose(moved[0], moved[2], rel_tol=1e-6)


def test_a_decision_is_the_tanh_of_a_gaussian_sample():
    agent = JELAgent(1, 2, seed=0)
    obs = np.full((20_000, 1), 0.5, dtype=np.float32)
    decision = agent.sample(obs)
    mean, log_std = agent.policy(torch.from_numpy(obs))
    for array, shape in zip(decision, [(20_000, 2), (20_000, 2), (20_000,)], strict=True):
        assert array.shape == shape and array.dtype == np.float32
    assert np.array_equal(decision.action, torch.tanh(torch.from_numpy(decision.raw)).numpy())
    assert np.allclose(decision.raw.mean(axis=0), mean[0].detach(), atol=0.02)
    assert np.allclose(decision.raw.std(axis=0), math.exp(-0.5), atol=0.02)
    expected = gaussian_log_prob(torch.from_numpy(decision.raw), mean, log_std).detach()
    assert np.array_equal(decision.log_prob, expected)


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
