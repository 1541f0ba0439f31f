"""Rows of Sidecars do not touch one another, ended or detached."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from tests.agents.small_sidecars import SMALL, equal, learn, make, numbers, observations, one, train


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


def test_a_row_that_has_ended_has_ended_after_loading_too(tmp_path):
    agent, other = make(), make()
    train(agent, 4), train(agent, 1, start=4, alive=[False, True])
    agent.save(tmp_path / "agent")
    other.load(tmp_path / "agent")
    with pytest.raises(ValueError, match="True again"):
        train(other, 1)


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
