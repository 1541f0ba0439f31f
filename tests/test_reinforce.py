"""Tests of the Sidecar: its policy, its credit and its learning.

The module is longer than usual, because a module's tests are in one file.
"""

import copy
import dataclasses
import math
from collections import deque

import numpy as np
import pytest
import torch

from agents.base import Decision, Rollout
from agents.credits import CreditStream
from agents.losses import gaussian_log_density
from agents.reinforce import ReinforceAgent
from agents.returns import discounted_returns
from agents.sidecar_config import INITIAL_STD, SidecarConfig, for_episodes
from hpenv.policies import load_policy, save_policy
from tests.probe_envs import TargetTrackingVectorEnv, collect, regret

NAMES = ("lr/0", "lr/1", "dropout/0", "dropout/1")
KINDS = ("scale", "scale", "scale", "scale")
IMMEDIATE = (False, False, True, True)
TARGETS = np.array([0.4, 0.4, -0.3, -0.3])
# Tests of mechanics have the gate open. Tests of learning have the default gate.
SMALL = SidecarConfig(hidden_size=8, replay_size=4, evidence=0.0)
# A higher rate and wider noise: a bandit's reward is clearer than a loss, and the test is to be
# short.
FAST = SidecarConfig(hidden_size=16, learning_rate=0.3, initial_std={"scale": 0.1})


def make(
    config=SMALL, num_rows=2, kinds=KINDS, immediate=IMMEDIATE, names=NAMES, **arguments
) -> ReinforceAgent:
    return ReinforceAgent(num_rows, 3, kinds, immediate, config, action_names=names, **arguments)


def observations(decision: int, num_rows: int = 2) -> np.ndarray:
    """Returns observations that differ by decision and row, but do not depend on num_rows."""
    return np.stack(
        [np.sin([decision + row, 0.3 * decision, 1.0 + row]) for row in range(num_rows)]
    ).astype(np.float32)


def learn(agent: ReinforceAgent, rollout: Rollout) -> dict[str, float]:
    """Learns from further decisions of the same runs."""
    return agent.update(rollout, continues=True)


def one(
    obs: np.ndarray, decision: Decision, rewards: np.ndarray, alive: np.ndarray | None = None
) -> Rollout:
    """Returns a rollout of a single decision."""
    alive = np.ones(len(obs), dtype=bool) if alive is None else np.asarray(alive)
    return Rollout(
        obs[None],
        decision.raw[None],
        decision.log_prob[None],
        np.asarray(rewards)[None],
        alive[None],
    )


def train(agent, num_decisions, start=0, rewards=None, alive=None, num_rows=2):
    """Trains online with random rewards. Returns all decisions and metrics."""
    trace = []
    for t in range(start, start + num_decisions):
        obs = observations(t, num_rows)
        decision = agent.sample(obs)
        given = np.random.default_rng(t).normal(size=num_rows) if rewards is None else rewards(t)
        trace.append((decision, learn(agent, one(obs, decision, given, alive))))
    return trace


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


def numbers(agent: ReinforceAgent, row=slice(None)) -> list[torch.Tensor]:
    """Returns weights, evidence and means of credits of one row or of all rows."""
    means = [
        array
        for name, array in agent._credits.arrays().items()
        if name.startswith(("mean", "square"))
    ]
    arrays = [torch.from_numpy(array) for array in [*agent._evidence.arrays().values(), *means]]
    return [tensor.detach()[row].clone() for tensor in [*agent.policy.parameters(), *arrays]]


def equal(first, second) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a, b) for a, b in zip(first, second, strict=True)
    )


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


def test_no_row_reaches_another():
    agent, twin = make(), make()
    train(agent, 12)
    train(
        twin,
        12,
        rewards=lambda t: np.array([np.random.default_rng(t).normal(size=2)[0], 1e6 * (-1) ** t]),
    )
    assert equal(numbers(agent, 0), numbers(twin, 0))
    assert not equal(numbers(agent, 1), numbers(twin, 1))
    population = dataclasses.replace(SMALL, baseline="population")
    agent, twin = make(population), make(population)
    train(agent, 12)
    train(
        twin,
        12,
        rewards=lambda t: np.array([np.random.default_rng(t).normal(size=2)[0], 1e6 * (-1) ** t]),
    )
    assert not equal(numbers(agent, 0), numbers(twin, 0))


def test_a_row_of_a_population_is_the_single_sidecar_of_its_seed():
    agent = make(num_rows=3, seed=5)
    single = make(num_rows=1, seed=5, first_row=2)
    for t in range(20):
        obs = observations(t, 3)
        many, alone = agent.sample(obs), single.sample(obs[2:])
        assert np.allclose(many.raw[2], alone.raw[0], atol=1e-5)
        rewards = np.random.default_rng(t).normal(size=3)
        learn(agent, one(obs, many, rewards))
        learn(single, one(obs[2:], alone, rewards[2:]))
    assert not np.allclose(many.raw[1], many.raw[2], atol=1e-2)


def test_a_row_that_has_ended_stays_bitwise_where_it_was_and_the_others_learn_on():
    agent, twin = make(), make()
    train(agent, 8), train(twin, 8)
    ended = numbers(agent, 1)
    poison = one(
        observations(8), agent.sample(observations(8)), np.array([0.3, np.nan]), [True, False]
    )
    poison.observations[:, 1], poison.log_prob[:, 1] = np.nan, np.inf
    learn(agent, poison)
    learn(twin, one(observations(8), twin.sample(observations(8)), np.array([0.3, -7.0])))
    train(agent, 5, start=9, alive=[True, False]), train(twin, 5, start=9)
    assert equal(numbers(agent, 1), ended)
    assert not equal(numbers(twin, 1), ended)
    assert equal(numbers(agent, 0), numbers(twin, 0))
    with pytest.raises(ValueError, match=r"True again in rows \[1\]"):
        train(agent, 1, start=14)


def test_detached_it_decides_zeros_draws_nothing_and_learns_nothing():
    agent = make(dataclasses.replace(SMALL, attached=False, common=True, initial_mean={"lr": 0.5}))
    states = [generator.get_state() for generator in agent._generators]
    before = [p.detach().clone() for p in agent._cells.parameters()]
    trace = train(agent, 5)
    assert all(not array.any() for decision, _ in trace for array in decision)
    assert trace[0][0].action.shape == (2, 4) and trace[0][0].raw.shape == (2, 6)
    assert set(trace[-1][1]) == {"rollout/reward"}
    assert equal(before, [p.detach() for p in agent._cells.parameters()])
    assert equal(states, [generator.get_state() for generator in agent._generators])
    assert not agent.policy.act(observations(0)).any()


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"horizon": 3},
        {"baseline": "population"},
        {"common": True},
        {"evidence": 1.0, "horizon": 3},
    ],
)
@pytest.mark.parametrize("num_decisions", [0, 1, 11])
def test_saved_in_mid_run_and_loaded_it_continues_bitwise(change, num_decisions, tmp_path):
    config = dataclasses.replace(SMALL, **change)
    agent, other = make(config, seed=1), make(config, seed=2)
    train(agent, num_decisions), train(other, 7)
    agent.save(tmp_path / "agent")
    other.load(tmp_path / "agent")
    for (decision, metrics), (same, same_metrics) in zip(
        train(agent, 20, start=num_decisions), train(other, 20, start=num_decisions), strict=True
    ):
        assert np.array_equal(decision.raw, same.raw) and metrics == same_metrics
    assert equal(numbers(agent), numbers(other))
    assert (agent.num_decisions, agent.num_updates) == (other.num_decisions, other.num_updates)


def test_evidence_baselines_and_open_credits_are_saved_bitwise_and_decide_what_follows(tmp_path):
    config = dataclasses.replace(SMALL, evidence=1.0, horizon=3)
    agent, other = make(config, seed=1), make(config, seed=2)
    train(agent, 25), train(other, 7)

    def arrays(agent):
        return {"evidence": agent._evidence.arrays(), "credits": agent._credits.arrays()}

    agent.save(tmp_path / "agent")
    other.load(tmp_path / "agent")
    saved = arrays(agent)
    assert set(saved["evidence"]) == {"sum", "squares"}
    assert {"rewards", "baselines", "known", "mean", "square"} <= set(saved["credits"])
    for part, named in saved.items():
        for name, array in named.items():
            loaded = arrays(other)[part][name]
            assert array.any() and np.array_equal(array, loaded) and array.dtype == loaded.dtype, (
                name
            )
    assert len(saved["credits"]["baselines"]) == 3  # delay + horizon - 1 decisions are open
    for forget in (
        "evidence",
        "baselines",
    ):  # lost state shows in the next step, or need not be saved
        forgetful = make(config, seed=3)
        forgetful.load(tmp_path / "agent")
        if forget == "evidence":
            forgetful._evidence.restore(saved["evidence"] | {"sum": 0.0 * saved["evidence"]["sum"]})
        else:
            forgetful._credits.restore(
                saved["credits"] | {"baselines": 0.0 * saved["credits"]["baselines"]}
            )
        train(forgetful, 1, start=25)
        same = make(config, seed=4)
        same.load(tmp_path / "agent")
        train(same, 1, start=25)
        assert not equal(numbers(forgetful), numbers(same))
        assert not torch.equal(forgetful.policy.log_std, same.policy.log_std)


def test_a_row_that_has_ended_has_ended_after_loading_too(tmp_path):
    agent, other = make(), make()
    train(agent, 4), train(agent, 1, start=4, alive=[False, True])
    agent.save(tmp_path / "agent")
    other.load(tmp_path / "agent")
    with pytest.raises(ValueError, match="True again"):
        train(other, 1)


def test_an_agent_of_other_arguments_is_not_loaded(tmp_path):
    make().save(tmp_path / "agent")
    for other, message in [
        (make(dataclasses.replace(SMALL, delay=2)), "config"),
        (make(num_rows=3), "num_rows"),
        (make(immediate=(True,) * 4), "action_immediate"),
        (make(names=("a", "b", "c", "d")), "action_names"),
    ]:
        with pytest.raises(ValueError, match=message):
            other.load(tmp_path / "agent")


def test_the_noise_that_was_learned_is_the_same_whatever_is_observed():
    agent = make(dataclasses.replace(SMALL, common=True))
    train(agent, 20)
    mean, log_std = agent.policy(torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0)))
    assert not torch.equal(mean[:, 0], mean[:, 1])
    assert torch.equal(log_std, log_std[:, :1].expand(2, 5, 6))
    assert len(log_std[:, 0].unique()) == 12  # each of its row and cell, and none where it started


def test_its_policy_can_be_taken_out_and_acts_identically(tmp_path):
    agent = make(dataclasses.replace(SMALL, common=True))
    train(agent, 10)
    save_policy(agent.policy, tmp_path / "policy")
    positions = load_policy(tmp_path / "policy").act(observations(3))
    assert positions.any()
    assert np.array_equal(positions, agent.policy.act(observations(3)))


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others():
    traces = []
    for seed in (4, 4, 5):
        agent = make(seed=seed)
        traces.append((train(agent, 6)[-1][1], numbers(agent)))
    assert traces[0][0] == traces[1][0] and equal(traces[0][1], traces[1][1])
    assert not equal(traces[0][1], traces[2][1])


def test_the_global_generators_are_untouched():
    torch_state = torch.get_rng_state()
    numpy_state = np.random.get_state(legacy=False)["state"]  # noqa: NPY002
    train(make(), 3)
    assert torch.equal(torch.get_rng_state(), torch_state)
    now = np.random.get_state(legacy=False)["state"]  # noqa: NPY002
    assert np.array_equal(now["key"], numpy_state["key"]) and now["pos"] == numpy_state["pos"]


def test_metrics_are_finite_and_named_alike_as_soon_as_there_is_a_credit():
    agent = make(kinds=("scale", "shrink", "clip", "clip"))
    trace = [metrics for _, metrics in train(agent, 6)]
    assert "train/policy_gradient_loss" not in trace[0]
    assert set(trace[1]) == set(trace[5])
    for name in (
        "policy_gradient_loss",
        "clip_fraction",
        "gradient_norm",
        "baseline",
        "advantage_rms",
        "credit",
    ):
        assert f"train/{name}" in trace[5]
    assert trace[5]["train/evidence"] == 1.0  # this agent's gate is open
    assert {
        f"train/{name}/{kind}"
        for name in ("std", "mean_abs_position")
        for kind in ("scale", "shrink", "clip")
    } <= set(trace[5])
    assert all(
        isinstance(value, float) and math.isfinite(value)
        for metrics in trace
        for value in metrics.values()
    )
    rewards = [np.random.default_rng(t).normal(size=2) for t in range(6)]
    assert math.isclose(trace[5]["rollout/reward"], rewards[5].mean())


@pytest.mark.parametrize(
    "change",
    [
        {"initial_std": {"scal": 0.1}},
        {"initial_std": {"scale": 0.9}},
        {"initial_mean": {"lr": 1.0}},
        {"std_bounds": (0.0, 1.0)},
        {"baseline": "mean"},
        {"learning_rate": 0.0},
        {"learning_rate": math.nan},
        {"hidden_size": 0},
        {"hidden_size": 64.0},
        {"hidden_size": True},
        {"delay": -1},
        {"delay": 0.5},
        {"horizon": None},
        {"replay_size": "16"},
        {"update_interval": 2.0},
        {"attached": 1},
        {"common": "yes"},
        {"learn_std": None},
        {"horizon": 0},
        {"gamma": 1.1},
        {"baseline_decay": 1.0},
        {"scale_decay": -0.1},
        {"evidence": -0.1},
        {"evidence": math.inf},
        {"evidence": math.nan},
        {"evidence_decay": 1.0},
        {"advantage_clip": 0.0},
        {"replay_size": 0},
        {"clip_range": 1.0},
        {"update_interval": 0},
        {"max_grad_norm": 0.0},
    ],
)
def test_bad_hyperparameters_are_refused(change):
    with pytest.raises(ValueError, match=f"{next(iter(change))} must "):
        SidecarConfig(**change)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kinds": ("scale", "scale", "scale", "scal")}, "got unknown kinds"),
        ({"immediate": (True,)}, "action_immediate must have 4 flags"),
        ({"names": ("a",)}, "action_names must have 4 names"),
        (
            {"names": (), "config": dataclasses.replace(SMALL, common=True)},
            "action_names must be given",
        ),
        (
            {"config": dataclasses.replace(SMALL, initial_mean={"l": 0.1})},
            "initial_mean must have names of cells; got 'l'",
        ),
        (
            {"num_rows": 1, "config": dataclasses.replace(SMALL, baseline="population")},
            "num_rows must be >= 2",
        ),
        ({"num_rows": 0}, "num_rows"),
    ],
)
def test_what_does_not_fit_the_cells_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rewards": np.zeros((1, 3))}, "rewards must have shape"),
        ({"raw": np.zeros((1, 2, 5))}, "raw must have shape"),
        ({"rewards": np.full((1, 2), np.nan)}, "rewards must be finite"),
        ({"alive": np.zeros((1, 2), dtype=bool)}, "True for at least one decision"),
    ],
)
def test_bad_rollouts_are_refused(change, message):
    agent = make()
    rollout = one(observations(0), agent.sample(observations(0)), np.zeros(2))
    with pytest.raises(ValueError, match=message):
        learn(agent, rollout._replace(**change))
    with pytest.raises(ValueError, match="rollout must have 2 rows; got 1"):
        learn(agent, Rollout(*(array[:, :1] for array in rollout)))
    with pytest.raises(ValueError, match=r"observations must have . rows, .*; got 3"):
        agent.sample(observations(0, 3))


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

    def noted(rewards, alive):
        advantages = push(rewards, alive)
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


def test_a_shared_network_continues_bitwise_after_saving(tmp_path):
    env = TargetTrackingVectorEnv(num_envs=4)
    agent, other = (
        ReinforceAgent(4, 1, ("scale",) * 2, (False,) * 2, for_episodes(), seed, shared=True)
        for seed in (1, 2)
    )
    agent.update(collect(env, agent, 0))
    agent.save(tmp_path / "agent")
    other.load(tmp_path / "agent")
    for learner in (agent, other):
        learner.update(collect(env, learner, 1))
    assert equal(numbers(agent), numbers(other))
    with pytest.raises(ValueError, match="num_networks"):
        ReinforceAgent(4, 1, ("scale",) * 2, (False,) * 2, for_episodes()).load(tmp_path / "agent")
