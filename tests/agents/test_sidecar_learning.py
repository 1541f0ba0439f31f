"""The Sidecar learns what pays and leaves alone what does not."""

import dataclasses
import math
from collections import deque

import numpy as np
import pytest
import torch

from agents.reinforce import ReinforceAgent
from agents.returns import discounted_returns
from agents.sidecar_config import INITIAL_STD, SidecarConfig, for_episodes
from tests.agents.small_sidecars import learn, make, one
from tests.probe_envs import TargetTrackingVectorEnv, collect, regret

TARGETS = np.array([0.4, 0.4, -0.3, -0.3])
# A higher rate and wider noise: a bandit's reward is clearer than a loss, and the test is to be
# short.
FAST = SidecarConfig(hidden_size=16, learning_rate=0.3, initial_std={"scale": 0.1})


def play(agent, num_decisions, delay=0, noise=0.02, num_rows=8, targets=TARGETS, sharpness=1.0):
    """Trains online on a bandit. Returns the metrics of the last update.

    The reward is -sum (u - target)^2 of the decision `delay` back, plus noise.
    """
    generator = np.random.default_rng(0)
    costs = deque(np.zeros((delay, num_rows)))
    obs = np.full((num_rows, 3), 0.5, dtype=np.float32)
    metrics = {}
    for _ in range(num_decisions):
        decision = agent.sample(obs)
        costs.append(sharpness * ((decision.action - targets) ** 2).sum(axis=1))
        metrics = learn(
            agent, one(obs, decision, generator.normal(0.0, noise, num_rows) - costs.popleft())
        )
    return agent.policy.act(obs), metrics


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"common": True, "baseline": "population"},
        {"evidence": 0.0, "learn_std": False},
    ],
)
def test_the_means_of_a_bandit_move_to_their_targets(change):
    mean, _ = play(make(dataclasses.replace(FAST, delay=0, **change), num_rows=8), 500)
    assert np.abs(mean.mean(axis=0) - TARGETS).max() < 0.06  # from 0.4 and 0.3 at the start
    assert np.sqrt(((mean - TARGETS) ** 2).mean()) < 0.08


def test_a_sharp_optimum_shrinks_the_standard_deviation_at_which_it_is_looked_for():
    config = dataclasses.replace(FAST, delay=0)
    _, metrics = play(make(config, num_rows=8), 300, targets=np.zeros(4), noise=0.0)
    assert metrics["train/std/scale"] < 0.6 * config.initial_std["scale"]
    held = make(dataclasses.replace(config, learn_std=False), num_rows=8)
    log_std = held.policy.log_std.detach().clone()
    _, metrics = play(held, 100, targets=np.zeros(4), noise=0.0)
    assert math.isclose(metrics["train/std/scale"], config.initial_std["scale"], rel_tol=1e-6)
    assert torch.equal(held.policy.log_std, log_std)


def test_a_reward_that_answers_one_decision_later_is_learned_from_with_delay_1_alone():
    errors = {}
    for delay in (0, 1):
        config = dataclasses.replace(FAST, delay=delay)
        mean, _ = play(make(config, num_rows=8, immediate=(False,) * 4), 300, delay=1)
        errors[delay] = np.abs(mean.mean(axis=0) - TARGETS).mean()
    assert errors[1] < 0.1
    assert errors[0] > 0.25  # where it started: 0.35


def test_immediate_cells_are_not_paid_for_spoiling_the_loss_of_their_own_step():
    # A loss to which each cell adds its square, only at the decision's step. The reward is the
    # decrease of this loss. Nothing lasts.
    def final(immediate):
        config = dataclasses.replace(
            FAST, evidence=0.0, learn_std=False, initial_mean={"lr": 0.3, "dropout": 0.3}
        )
        agent = make(config, 8, immediate=immediate)
        obs = np.full((8, 3), 0.5, dtype=np.float32)
        last = np.zeros(8)
        for _ in range(300):
            decision = agent.sample(obs)
            loss = (decision.action**2).sum(axis=1)
            learn(agent, one(obs, decision, last - loss))
            last = loss
        return np.abs(agent.policy.act(obs)).mean()

    assert final((False,) * 4) > 0.6  # the next reward alone pays it, and it goes to the corner
    assert (
        final((True,) * 4) < 0.1
    )  # from 0.3: its own reward counts twice, so that the loss it stands for counts once


def test_rewards_of_pure_noise_leave_the_cells_where_they_are():
    def wander(evidence):
        """Returns mean distances from neutral (rows,) and relative deviations (rows, cells)."""
        generator, kinds = np.random.default_rng(0), ("scale",) * 100
        config = SidecarConfig(evidence=evidence)
        agent = ReinforceAgent(4, 20, kinds, (True, False) * 50, config)
        for _ in range(300):
            obs = generator.normal(size=(4, 20)).astype(np.float32)
            decision = agent.sample(obs)
            learn(agent, one(obs, decision, generator.normal(size=4)))
        stds = torch.exp(agent.policy.log_std.detach())[:, 0].numpy() / INITIAL_STD["scale"]
        return np.abs(agent.policy.act(generator.normal(size=(4, 20)))).mean(axis=1), stds

    distance, stds = wander(SidecarConfig().evidence)
    assert distance.max() < 0.01
    assert np.abs(stds.mean(axis=1) - 1.0).max() < 0.1
    assert (np.abs(stds - 1.0) < 0.1).mean() > 0.8
    open_distance, open_stds = wander(0.0)  # what the gate is for
    assert open_distance.min() > 0.01 and (np.abs(open_stds - 1.0) < 0.1).mean() < 0.3


def test_the_cell_that_matters_passes_the_gate_and_the_others_stay_within_their_noise():
    names, matters = tuple(f"lr/{cell}" for cell in range(40)), np.arange(40) == 3

    def final(evidence):
        """Returns the means of the cells and their relative standard deviations, (rows, cells)."""
        config = dataclasses.replace(FAST, learning_rate=0.1, delay=0, evidence=evidence)
        agent = make(config, 4, ("scale",) * 40, (False,) * 40, names)
        generator, obs = np.random.default_rng(0), np.full((4, 3), 0.5, dtype=np.float32)
        for _ in range(600):
            decision = agent.sample(obs)
            cost = (decision.action[:, 3] - 0.4) ** 2
            learn(agent, one(obs, decision, generator.normal(0.0, 0.02, 4) - cost))
        return agent.policy.act(obs), torch.exp(agent.policy.log_std.detach())[:, 0].numpy() / 0.1

    means, stds = final(2.0)
    assert np.abs(means[:, matters] - 0.4).max() < 0.06
    assert (stds[:, matters] < 0.6).all()
    others = np.abs(means[:, ~matters])
    assert others.mean() < 0.02 and np.quantile(others, 0.95) < 0.1  # their noise: 0.1
    assert np.abs(stds[:, ~matters].mean(axis=1) - 1.0).max() < 0.1
    means, stds = final(0.0)
    assert np.abs(means[:, ~matters]).mean() > 0.04 and stds[:, ~matters].mean() < 0.6


def test_one_network_learns_the_probe_environment_from_whole_episodes():
    env = TargetTrackingVectorEnv(num_envs=32, noise=0.1)
    config = dataclasses.replace(for_episodes(), hidden_size=32, horizon=1)
    agent = ReinforceAgent(32, 1, ("scale", "scale"), (False, False), config, shared=True)
    start = regret(env, agent.policy)
    for update in range(40):
        metrics = agent.update(collect(env, agent, update))
    assert start > 0.9 and regret(env, agent.policy) < 0.5
    assert metrics["rollout/ep_len_mean"] == 12.0
    assert len(agent.policy.act(np.zeros((3, 1), dtype=np.float32))) == 3


def test_the_last_decisions_of_an_episode_are_credited_with_the_rewards_that_are_left():
    config = dataclasses.replace(for_episodes(), hidden_size=4, horizon=12)
    agent = ReinforceAgent(4, 1, ("scale", "scale"), (False, False), config, shared=True)
    credited = []
    push = agent._credits.push

    def noted(rewards, alive, part):
        advantages = push(rewards, alive, part)
        if advantages is not None:
            credited.append(advantages.credits[:, 0])
        return advantages

    agent._credits.push = noted
    rollout = collect(TargetTrackingVectorEnv(num_envs=4, ends={1: 5}), agent, 0)
    for _ in range(2):  # nothing of an episode is left over for the next
        credited.clear()
        agent.update(rollout)
        expected = discounted_returns(rollout.rewards, rollout.alive, 0.99)
        assert np.allclose(credited, expected, atol=1e-6)
