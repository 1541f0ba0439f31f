"""A saved Sidecar continues bitwise, and other arguments are refused."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from agents.base import Rollout
from agents.reinforce import ReinforceAgent
from agents.sidecar_config import SidecarConfig, for_episodes
from hpenv.policies import load_policy, save_policy
from tests.agents.small_sidecars import SMALL, equal, learn, make, numbers, observations, one, train
from tests.probe_envs import TargetTrackingVectorEnv, collect


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
        learn(agent, Rollout(*(array[:, :1] for array in rollout[:5])))
    with pytest.raises(ValueError, match=r"observations must have . rows, .*; got 3"):
        agent.sample(observations(0, 3))


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
