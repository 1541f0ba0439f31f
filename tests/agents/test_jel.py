"""JEL learns a known optimum, and its update is the paper's."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from agents.base import Rollout
from agents.jel import NORMALIZATIONS, JELAgent, JELAgentConfig
from agents.losses import gaussian_log_prob
from tests.agents.small_jel import SMALL, fixed_rollout, weights
from tests.probe_envs import TargetTrackingVectorEnv, collect, regret

# With 8 runs a group and the rate this high the last policy still wanders (a regret of 0.02 to
# 0.2); 32 runs settle.
FAST = JELAgentConfig(hidden_sizes=(32,), batch_size=192, learning_rate=5e-3)


@pytest.mark.parametrize(
    "change", [*({"normalize": name} for name in NORMALIZATIONS), {"start": "neutral"}], ids=str
)
def test_every_normalization_and_start_solves_the_probe_environment(change):
    env = TargetTrackingVectorEnv(num_envs=32, noise=0.1)
    agent = JELAgent(1, 2, dataclasses.replace(FAST, **change), seed=0)
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
    poisoned = Rollout(*(array.copy() for array in rollout[:5]))
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


def test_a_neutral_start_is_at_neutral_at_every_observation():
    agent = JELAgent(1, 2, dataclasses.replace(FAST, start="neutral"), seed=0)
    observations = np.linspace(-1.0, 1.0, 5, dtype=np.float32)[:, None]
    assert (agent.policy.act(observations) == 0.0).all()
    assert (JELAgent(1, 2, FAST, seed=0).policy.act(observations) != 0.0).all()
