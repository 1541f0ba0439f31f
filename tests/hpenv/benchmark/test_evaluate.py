"""Tests of evaluating a policy: contents of a row, the same by hand, and the program."""

import json
import math

import gymnasium as gym
import numpy as np
import pytest
import torch

import hpenv
from hpenv.benchmark.environments import parse_assignments
from hpenv.benchmark.evaluate import evaluate_controller, probe_loss
from hpenv.benchmark.results import read_result
from hpenv.env import TrainLoopVectorEnv
from hpenv.policies import ControllerSpec, Neutral, ScheduleTable, save_policy
from tests.fake_plant import FakePlant
from train_agents.evaluate import main
from train_agents.outputs import FORMAT

gym.register_envs(hpenv)

ENV = "TrainLoop-JEL-v0"
TINY = {
    "data": "stdlib",
    "batch_tokens": 32,
    "sequence_length": 16,
    "num_steps": 23,
    "interval": 10,
    "eval_tokens": 256,
}
TABLE = ScheduleTable([[0.5, 0.1], [0.2, -0.3], [-1.0, 1.0]])


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_a_row_equals_the_run_driven_by_hand():
    (row,) = evaluate_controller(TABLE, ENV, TINY, [7], heldout_curve=True)
    env = gym.make(ENV, **TINY)
    _, info = env.reset(seed=7)
    probe, bpb, train = [info["probe_loss"]], [env.unwrapped.evaluate()], []
    for positions in TABLE.positions:
        _, _, terminated, _, info = env.step(positions)
        probe.append(info["probe_loss"])
        bpb.append(env.unwrapped.evaluate())
        train.append(info["train_loss"])
    assert terminated
    assert (
        row["seed"] == 7
        and row["corpus"] == env.unwrapped.corpus_digest
        and row["divergence_reason"] is None
    )
    assert row["steps"] == [0, 10, 20, 23]
    assert row["probe_curve"] == probe and row["probe_loss"] == probe[-1]
    assert row["train_curve"] == train and row["train_loss"] == train[-1]
    assert row["bpb_curve"] == bpb and row["bpb"] == bpb[-1]


def test_the_panel_is_the_multipliers_the_policy_asked_for():
    (row,) = evaluate_controller(TABLE, ENV, TINY, [0])
    assert list(row["panel"]) == ["lr", "weight_decay"]
    expected = 100.0 ** TABLE.positions.astype(float)
    np.testing.assert_allclose(np.transpose(list(row["panel"].values())), expected, rtol=1e-6)


def test_no_policy_and_the_neutral_policy_are_the_same_bitwise():
    none = evaluate_controller(None, ENV, TINY, [3, 4])
    assert none == evaluate_controller(Neutral(2), ENV, TINY, [3, 4])
    assert set(none[0]["panel"]["lr"]) == {1.0}


def test_rows_come_in_the_order_of_the_seeds_whatever_the_chunks():
    seeds = [5, 1, 9]
    together = evaluate_controller(TABLE, ENV, TINY, seeds)
    chunked = evaluate_controller(TABLE, ENV, TINY, seeds, max_rows=2)
    assert [row["seed"] for row in together] == [row["seed"] for row in chunked] == seeds
    for one, other in zip(together, chunked, strict=True):
        assert one["bpb"] == pytest.approx(other["bpb"], rel=1e-4)
    assert len({row["bpb"] for row in together}) == 3


def test_evaluation_is_deterministic_and_leaves_the_global_generators_alone():
    before = torch.get_rng_state().clone(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = evaluate_controller(TABLE, ENV, TINY, [1, 2])
    assert first == evaluate_controller(TABLE, ENV, TINY, [1, 2])
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002


def test_without_curves_the_numbers_stay_and_the_lists_go():
    (full,) = evaluate_controller(TABLE, ENV, TINY, [1])
    (short,) = evaluate_controller(TABLE, ENV, TINY, [1], curve=False)
    assert short == {
        key: full[key]
        for key in ("seed", "corpus", "bpb", "train_loss", "probe_loss", "divergence_reason")
    }


def test_a_diverged_run_says_why_keeps_its_length_and_leaves_the_others_alone():
    wild = TINY | {"base_lr": 1e30, "optimizer": "sgd", "schedule": "none"}
    (row,) = evaluate_controller(None, ENV, wild, [0])
    assert row["divergence_reason"] in ("loss_nonfinite", "gradient_nonfinite", "loss_above_limit")
    assert row["steps"][-1] < 23
    assert len(row["steps"]) == len(row["probe_curve"]) == 4 and len(row["train_curve"]) == 3
    assert all(math.isfinite(value) for value in row["probe_curve"])


def test_progress_adds_up_to_the_number_of_runs():
    done = []
    evaluate_controller(None, ENV, TINY, [1, 2, 3], max_rows=2, on_progress=done.append)
    assert len(done) == 2 * 3 and sum(done) == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"seeds": []}, r"seeds \[\]"),
        ({"seeds": [1], "max_rows": 0}, "max_rows 0"),
        ({"seeds": 2}, "seeds must be a list .*got seeds 2 and max_rows 10"),
        ({"seeds": [1], "controller": Neutral(3)}, r"'lr', 'weight_decay'.*of shape \(1, 3\)"),
        (
            {"seeds": [1], "controller": lambda observations: observations},
            "controller must have `spec`, .*; got function",
        ),
        (
            {"seeds": [1], "env_id": "CartPole-v1", "env_kwargs": {}},
            "env must be the id of a TrainLoopVectorEnv; got 'CartPole-v1'",
        ),
        (
            {"seeds": [1], "env_id": "TrainLoop-JLE-v0"},
            "env must be a registered id; got 'TrainLoop-JLE-v0'; .*TrainLoop-JEL",
        ),
        (
            {"seeds": [1], "env_kwargs": TINY | {"num_envs": 3}},
            r"env_kwargs must leave out .*; got \['num_envs'\]",
        ),
        ({"seeds": [1], "env_kwargs": TINY | {"device": 1.5}}, "must be arguments of|device"),
        (
            {"seeds": [1], "env_kwargs": TINY | {"seed_mode": "grouped"}},
            "seed_mode must be 'independent'; got 'grouped'; .*one run",
        ),
    ],
)
def test_what_cannot_be_evaluated_is_refused(kwargs, message):
    arguments = {"controller": None, "env_id": ENV, "env_kwargs": TINY} | kwargs
    with pytest.raises(ValueError, match=message):
        evaluate_controller(**arguments)


def test_assignments_are_json_and_else_strings():
    texts = (
        "batch_tokens=256",
        "base_lr=1e-3",
        "schedule=none",
        "compile=false",
        'reward={"smoothness": 0.1}',
        "data=a=b",
    )
    assert parse_assignments(texts) == {
        "batch_tokens": 256,
        "base_lr": 1e-3,
        "schedule": "none",
        "compile": False,
        "reward": {"smoothness": 0.1},
        "data": "a=b",
    }
    assert parse_assignments(()) == {}


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (("preset",), "must be key=value; got 'preset'"),
        (("=1",), "must be key=value; got '=1'"),
        (("a-b=1",), "must be key=value; got 'a-b=1'"),
        (("a=1", "a=2"), "a must be given once; got 1 and '2'"),
        (("compile=False",), "write compile=false"),
    ],
)
def test_bad_assignments_are_named(texts, message):
    with pytest.raises(ValueError, match=message):
        parse_assignments(texts)


def test_the_program_evaluates_a_saved_policy_and_writes_its_result(tmp_path, capsys):
    save_policy(TABLE, tmp_path / "run" / "policy")
    assignments = [f"{key}={value}" for key, value in TINY.items()]
    arguments = ["--controller", str(tmp_path / "run"), "--env", ENV, "--env-kwargs", *assignments]
    main([*arguments, "--seeds", "2", "--first-seed", "5", "--out", str(tmp_path / "out.json")])
    printed = capsys.readouterr().out
    shown, _ = json.JSONDecoder().raw_decode(printed)  # the configuration comes first
    assert shown["seeds"] == 2 and shown["first_seed"] == 5
    assert "held-out bits per byte" in printed and "95 % interval" in printed
    result = read_result(tmp_path / "out.json")
    expected = evaluate_controller(TABLE, ENV, TINY, [5, 6])
    assert [row["bpb"] for row in result["rows"]] == [row["bpb"] for row in expected]
    assert result["configuration"]["env_kwargs"] == TINY
    assert result["facts"]["corpus"] == expected[0]["corpus"]


def test_a_policy_is_not_evaluated_on_columns_that_it_was_not_made_for(tmp_path, capsys):
    policy = Neutral(2)
    names = ("progress", "gradient_norm")
    policy.spec = ControllerSpec(observation_names=names, action_names=("lr", "weight_decay"))
    save_policy(policy, tmp_path / "policy")
    folder = str(tmp_path / "policy")
    arguments = ["--controller", folder, "--env", ENV, "--seeds", "1", "--env-kwargs"]
    assignments = [f"{key}={value}" for key, value in TINY.items()]
    with pytest.raises(SystemExit, match="2"):
        main([*arguments, *assignments, "observation=momentum"])
    told = capsys.readouterr().err
    assert (
        "for the observation_names ['progress', 'gradient_norm']; "
        "the environment has ['progress', 'momentum" in told
    )
    main([*arguments, *assignments, "observation=gradient"])


def test_an_environment_without_a_probe_is_evaluated_and_its_probe_measured_at_the_end(tiny):
    arguments = tiny | {
        "preset": "nano",
        "num_steps": 6,
        "interval": 1,
        "channels": ["lr"],
        "observation": "loss",
    }
    row = evaluate_controller(None, "TrainLoop-Cell-v0", arguments, [3], curve=True)[0]
    probed = arguments | {"reward": {"progress": 1.0}}
    twin = evaluate_controller(None, "TrainLoop-Cell-v0", probed, [3], curve=True)[0]
    assert (
        row["probe_loss"] == twin["probe_loss"] == twin["probe_curve"][-1]
        and row["bpb"] == twin["bpb"]
    )
    assert (
        "probe_curve" not in row
        and len(row["train_curve"]) == 6
        and set(row["panel"]) == set(twin["panel"])
    )


def test_another_environment_than_that_of_the_training_is_told(tmp_path, capsys):
    save_policy(TABLE, tmp_path / "policy")
    trained = {"env": ENV, "env_kwargs": {**TINY, "base_lr": 0.01}}
    (tmp_path / "config.json").write_text(
        json.dumps({"format": FORMAT, "configuration": trained, "facts": {}})
    )
    command = ["--controller", str(tmp_path), "--seeds", "1", "--env-kwargs"]
    main([*command, *(f"{key}={json.dumps(value)}" for key, value in TINY.items())])
    assert "note: the policy was trained on TrainLoop-JEL-v0 {" in capsys.readouterr().out
    main(
        [*command, *(f"{key}={json.dumps(value)}" for key, value in trained["env_kwargs"].items())]
    )
    assert "note:" not in capsys.readouterr().out


def test_the_measured_groups_are_as_before_when_measuring_fails(monkeypatch):
    env = TrainLoopVectorEnv(FakePlant(1), interval=5, num_steps=10, reward={"loss_change": 1.0})
    env.reset(seed=0)
    before = set(env.plant.measured_groups)

    def fail(num_steps):
        raise RuntimeError

    monkeypatch.setattr(env.plant, "advance", fail)
    with pytest.raises(RuntimeError):
        probe_loss(env)
    assert set(env.plant.measured_groups) == before
