"""The Sidecar's policy, and an update that is the natural gradient of REINFORCE."""

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch

from agents.base import Rollout
from agents.credits import CreditStream
from agents.losses import gaussian_log_density
from agents.reinforce import ReinforceAgent
from agents.sidecar_config import INITIAL_STD, SidecarConfig
from tests.agents.small_sidecars import (
    IMMEDIATE,
    SMALL,
    equal,
    learn,
    make,
    observations,
    one,
    train,
)


def test_the_first_decision_is_the_static_configuration_plus_noise_of_the_kinds_own_size():
    kinds = ("scale", "clip", "skip", "register")
    agent = ReinforceAgent(500, 3, kinds, (False,) * 4, SMALL)
    assert not agent.policy.act(observations(0, 500)).any()
    actions = np.concatenate(
        [agent.sample(observations(t, 500)).action for t in range(20)]
    )  # 10,000 draws a cell
    assert np.allclose(actions.std(axis=0), [INITIAL_STD[kind] for kind in kinds], rtol=0.05)
    active = (actions > 0.1).mean(axis=0)
    assert active[1] < 0.01 and active[2] < 0.01 < active[3]


def test_common_parts_leave_the_size_of_the_noise_as_it_was():
    kinds = ("skip", "skip", "scale", "scale")
    config = dataclasses.replace(SMALL, common=True)
    agent = ReinforceAgent(
        500,
        3,
        kinds,
        (False,) * 4,
        config,
        action_names=("grad_skip/0", "grad_skip/1", "lr/0", "lr/1"),
    )
    decisions = [agent.sample(observations(t, 500)) for t in range(20)]
    actions = np.concatenate([decision.action for decision in decisions])
    assert decisions[0].raw.shape == (500, 6)
    assert (actions[:, :2] > 0.1).mean() < 0.01
    assert np.allclose(actions.std(axis=0), [0.04, 0.04, 0.03, 0.03], rtol=0.05)
    correlation = np.corrcoef(actions.T)
    assert math.isclose(correlation[0, 1], 0.5, abs_tol=0.05) and math.isclose(
        correlation[1, 2], 0.0, abs_tol=0.05
    )
    metrics = learn(agent, one(observations(0, 500), decisions[0], np.zeros(500)))
    assert math.isclose(metrics["train/std/skip"], 0.04, rel_tol=1e-5)


def test_initial_means_are_put_where_they_are_asked_for():
    config = dataclasses.replace(SMALL, initial_mean={"lr": 0.5, "lr/1": -0.9})
    action = make(config).policy.act(observations(0))
    assert np.allclose(action, [[0.5, -0.9, 0.0, 0.0]] * 2)


def test_a_decision_is_the_clipped_sample_and_its_log_density():
    agent = make(dataclasses.replace(SMALL, initial_mean={"lr": 0.95}), num_rows=50)
    obs = observations(0, 50)
    decision = agent.sample(obs)
    mean, log_std = agent.policy(torch.from_numpy(obs)[:, None])
    for array, shape in zip(decision, [(50, 4), (50, 4), (50,)], strict=True):
        assert array.shape == shape and array.dtype == np.float32
    assert decision.raw.max() > 1.0
    assert np.array_equal(decision.action, np.clip(decision.raw, -1.0, 1.0))
    normal = torch.distributions.Normal(mean, log_std.exp())
    expected = normal.log_prob(torch.from_numpy(decision.raw)[:, None]).sum(-1)[:, 0].detach()
    assert np.allclose(decision.log_prob, expected, atol=1e-5)


def test_the_policy_draws_nothing():
    agent, twin = make(), make()
    train(agent, 5), train(twin, 5)
    agent.policy.act(observations(9))
    assert np.array_equal(agent.sample(observations(9)).raw, twin.sample(observations(9)).raw)


def natural_step(policy, rate, replay, gates) -> list[torch.Tensor]:
    """Computes by hand the change of each parameter in a step, in order.

    The gradients of means and log deviations are written out.

    Args:
        replay: per decision its observation (N, 1, F), raw (N, 1, M) and the weight of each
            cell, (N, 1, M).
        gates: gates of means and of log deviations, (N, 1, M) each.
    """
    weights = [parameter for name, parameter in policy.named_parameters() if name != "log_std"]
    steps = [torch.zeros_like(parameter) for parameter in policy.parameters()]
    for obs, raw, weight in replay:
        mean, log_std = policy(obs)
        z = ((raw - mean) / log_std.exp()).detach()
        toward = (
            rate / len(replay) * gates[0] * weight * z * log_std.exp()
        ).detach()  # where the means are to go
        through = iter(torch.autograd.grad((toward * mean).sum(), weights))
        for step, (name, _) in zip(steps, policy.named_parameters(), strict=True):
            step += (
                rate / len(replay) * gates[1] * 0.5 * weight * (z**2 - 1.0)
                if name == "log_std"
                else next(through)
            )
    return steps


def off_zero(policy) -> None:
    """Moves the head away from its initial 0, so that the layers below it also learn."""
    with torch.no_grad():
        policy.head_weight += 0.1 * torch.sin(torch.arange(policy.head_weight.numel())).view_as(
            policy.head_weight
        )


@pytest.mark.parametrize("max_grad_norm", [None, 0.5])
def test_the_first_step_on_one_decision_is_the_natural_gradient_of_reinforce(max_grad_norm):
    # delay 0, a replay of one: ratio 1. The head is not 0, so that the layers below move too.
    config = dataclasses.replace(SMALL, delay=0, replay_size=1, max_grad_norm=max_grad_norm)
    agent = make(config)
    off_zero(agent.policy)
    before = copy.deepcopy(agent.policy)
    train(
        agent, 1, rewards=lambda t: np.array([1.0, -2.0])
    )  # a first credit has no baseline and teaches nothing
    assert equal(list(agent.policy.parameters()), list(before.parameters()))
    obs = observations(1)
    decision = agent.sample(obs)
    learn(agent, one(obs, decision, np.array([1.5, -3.0])))
    # The only advantages so far are 0.5 and -1: one root mean square each.
    advantages = torch.tensor([1.0, -1.0])[:, None, None].expand(2, 1, 4)
    replay = [(torch.from_numpy(obs)[:, None], torch.from_numpy(decision.raw)[:, None], advantages)]
    steps = natural_step(before, config.learning_rate, replay, (torch.ones(2, 1, 4),) * 2)
    if max_grad_norm is not None:
        norms = (
            torch.stack([step.square().sum(dim=(1, 2)) for step in steps]).sum(dim=0).sqrt()
            / config.learning_rate
        )
        assert (norms > max_grad_norm).all()
        for step in steps:
            step *= (max_grad_norm / norms)[:, None, None]
    for (name, now), then, step in zip(
        agent.policy.named_parameters(), before.parameters(), steps, strict=True
    ):
        assert step.flatten(1).any(dim=1).all(), name
        assert torch.allclose(now - then, step, rtol=1e-3, atol=1e-7), name
        assert not torch.allclose(now, then, atol=1e-5), name


@pytest.mark.parametrize("evidence", [0.0, 0.7])
def test_an_update_averages_the_clipped_objective_of_each_cell_over_the_last_decisions(evidence):
    # Followed by hand: replay of 3, delay 1, steps so large that ratios leave the clip, cells that
    # answer unlike fast.
    config = dataclasses.replace(
        SMALL, replay_size=3, learning_rate=0.5, evidence=evidence, evidence_decay=0.8
    )
    agent = make(config)
    off_zero(agent.policy)
    credits = CreditStream(2, IMMEDIATE, SidecarConfig())
    history, advantages, closed = [], [], []
    for t in range(14):
        policy = copy.deepcopy(agent.policy)
        obs = observations(t)
        decision = agent.sample(obs)
        columns = torch.from_numpy(obs)[:, None], torch.from_numpy(decision.raw)[:, None]
        mean, log_std = (tensor.detach() for tensor in policy(columns[0]))
        noise = (columns[1] - mean) / log_std.exp()
        scores = torch.stack([noise, (noise**2 - 1.0) / math.sqrt(2.0)])  # of unit variance each
        history.append((*columns, gaussian_log_density(columns[1], mean, log_std), scores))
        rewards = np.random.default_rng(t).normal(size=2)
        done = credits.push(rewards, np.ones(2, dtype=bool))
        advantages += [] if done is None else [torch.from_numpy(done.values).float()[:, None]]
        metrics = learn(agent, one(obs, decision, rewards))
        if done is None:
            continue
        told = torch.stack([past[3] * a for past, a in zip(history[:-1], advantages, strict=True)])
        decays = (0.8 ** torch.arange(len(told) - 1.0, -1.0, -1.0)).view(-1, 1, 1, 1, 1)
        inverse = (decays * told).square().sum(dim=0) / (decays * told).sum(
            dim=0
        ).square()  # 1 / t^2
        gates = (1.0 - evidence**2 * inverse).clamp(min=0.0) if t > 2 else torch.zeros(2, 2, 1, 4)
        total, replay = 0.0, []
        for (obs, raw, old, _), advantage in zip(history[:-1][-3:], advantages[-3:], strict=True):
            ratio = torch.exp(gaussian_log_density(raw, *policy(obs)) - old).detach()
            clipped = ratio.clamp(0.8, 1.2) * advantage
            total += torch.minimum(ratio * advantage, clipped).sum().item()
            replay.append(
                (obs, raw, torch.where(ratio * advantage > clipped, 0.0, ratio * advantage))
            )
        expected = -total / min(t, 3) / 2
        assert math.isclose(
            metrics["train/policy_gradient_loss"], expected, rel_tol=1e-4, abs_tol=1e-6
        )
        assert math.isclose(metrics["train/evidence"], gates[0].mean(), rel_tol=1e-3, abs_tol=1e-6)
        steps = natural_step(policy, config.learning_rate, replay, gates)
        for now, then, step in zip(
            agent.policy.parameters(), policy.parameters(), steps, strict=True
        ):
            assert torch.allclose(now - then, step, rtol=1e-3, atol=1e-6)
        closed.append((gates == 0.0).float().mean().item())
    assert not torch.allclose(advantages[-1][..., 0], advantages[-1][..., 2])
    assert 0.0 < metrics["train/clip_fraction"] < 1.0
    assert all(step.any() for step in steps)
    assert closed[-1] == 0.0 if evidence == 0.0 else 0.0 < closed[-1] < 1.0


def test_a_bound_on_the_gradient_holds_for_each_row():
    def moved(bound):
        agent = make(dataclasses.replace(SMALL, max_grad_norm=bound))
        train(agent, 3)  # with delay 1 the third decision is the first with a baseline
        before = [parameter.detach().clone() for parameter in agent.policy.parameters()]
        metrics = train(agent, 1, start=3)[0][1]
        steps = [
            now.detach() - then for now, then in zip(agent.policy.parameters(), before, strict=True)
        ]
        squares = torch.stack([step.square().sum(dim=(1, 2)) for step in steps]).sum(dim=0)
        return steps, squares.sqrt() / SMALL.learning_rate, metrics["train/gradient_norm"]

    free, norms, reported = moved(None)
    assert math.isclose(reported, norms.mean(), rel_tol=1e-4)
    low, high = (int(row) for row in norms.argsort())
    assert norms[high] > 1.2 * norms[low] > 0.0
    bound = norms.mean().item()
    steps, bounded, reported = moved(bound)
    assert equal([step[low] for step in steps], [step[low] for step in free])
    assert math.isclose(bounded[high], bound, rel_tol=1e-4)
    assert math.isclose(
        reported, bound, rel_tol=1e-4
    )  # as it was before the bound: the mean of both rows


def test_a_rollout_of_older_weights_is_reported_as_stale():
    agent = make(dataclasses.replace(SMALL, learning_rate=0.3))
    old = [(observations(t), agent.sample(observations(t))) for t in range(2)]
    assert learn(agent, one(*old[0], np.zeros(2)))["train/staleness"] < 1e-6
    train(agent, 10)
    assert learn(agent, one(*old[1], np.zeros(2)))["train/staleness"] > 1e-3


def test_a_rollout_of_many_decisions_is_taken_in_order():
    # The rate is so small that the weights are the same throughout; what is left is the order of
    # credits and replay.
    config = dataclasses.replace(SMALL, learning_rate=1e-12, horizon=2)
    online, whole = make(config), make(config)
    trace = train(online, 8)
    rewards = np.stack([np.random.default_rng(t).normal(size=2) for t in range(8)])
    obs = np.stack([observations(t) for t in range(8)])
    decisions = [whole.sample(o) for o in obs]
    assert np.allclose(decisions[7].raw, trace[7][0].raw, atol=1e-6)
    raw, log_prob = np.stack([d.raw for d in decisions]), np.stack([d.log_prob for d in decisions])
    metrics = learn(whole, Rollout(obs, raw, log_prob, rewards, np.ones((8, 2), dtype=bool)))
    for tag in (
        "train/policy_gradient_loss",
        "train/baseline",
        "train/advantage_rms",
        "train/credit",
    ):
        assert math.isclose(metrics[tag], trace[7][1][tag], rel_tol=1e-4), tag
    assert torch.allclose(online._replay.samples(), whole._replay.samples(), atol=1e-5)
    for ours, theirs in zip(
        online._evidence.arrays().values(), whole._evidence.arrays().values(), strict=True
    ):
        assert ours.all() and np.allclose(ours, theirs, atol=1e-4)
    assert (
        online.num_updates == whole.num_updates == 6
    )  # the first credit is complete with the third reward


def test_updates_keep_their_interval():
    agent = make(dataclasses.replace(SMALL, update_interval=3))
    assert ["train/policy_gradient_loss" in m for _, m in train(agent, 7)] == [
        False,
        False,
        True,
    ] * 2 + [False]
    assert agent.num_updates == 2 and agent.num_decisions == 7
