"""The program of hindsight: searches, rounds, resume, and a policy that is scored as any other."""

import json
from dataclasses import replace

import numpy as np
import pytest

from agents.imitation import ImitationConfig
from hpenv.benchmark.controllers import load_controller
from hpenv.benchmark.evaluate import evaluate_controller
from train_agents.hindsight import Hindsight, main
from train_agents.hindsight_config import OBSERVATIONS, HindsightConfig
from train_agents.logs import read_lines

ADAPTIVE = "TrainLoop-Adaptive-v0"
TINY = (
    "channels=rate_only",
    "data=synthetic",
    "batch_tokens=32",
    "sequence_length=16",
    "num_steps=8",
    "interval=2",
    "eval_tokens=64",
    "base_lr=0.01",
    'max_moves={"lr": 0.2}',
)


def tiny(out, **changes):
    return HindsightConfig(
        **{
            "env_kwargs": TINY,
            "starts": (1.0, 0.1),
            "num_windows": 2,
            "steps": (0.25,),
            "window_steps": (),
            "rounds": 1,
            "imitation": ImitationConfig(num_updates=30, hidden_sizes=(8,)),
            "out": out,
            "tensorboard": False,
            **changes,
        }
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    config = tiny(tmp_path_factory.mktemp("whole") / "run")
    Hindsight(config).run()
    return config


def test_searches_lower_the_probe_loss_of_their_runs_at_a_stated_cost(whole):
    lines = read_lines(whole.out / "searches.jsonl")
    assert [(line["start"], line["seed"]) for line in lines] == [(1, 0), (1, 1), (0.1, 0), (0.1, 1)]
    for line in lines:
        assert line["loss"] <= line["first_loss"]
        assert 1 < line["num_runs"] <= 1 + 4 * 1.5
    assert any(line["loss"] < line["first_loss"] for line in lines)
    spent = sum(line["num_runs"] for line in lines)
    last = json.loads((whole.out / "progress.jsonl").read_text().splitlines()[-1])
    # Round 0 plays two rows of each of four runs, round 1 one.
    assert last["step"] == round(1e3 * (spent + 12)) + 1


def test_the_played_trajectories_are_those_of_the_searches(whole):
    """Rows of a population differ from single runs by rounding alone."""
    searches = read_lines(whole.out / "searches.jsonl")
    rollouts = read_lines(whole.out / "rollouts.jsonl")
    assert [line["round"] for line in rollouts] == [0, 0, 1, 1]
    for index, line in enumerate(rollouts[:2]):
        pair = searches[2 * index : 2 * index + 2]
        assert np.allclose(line["probe"], [each["loss"] for each in pair], atol=1e-4)
        assert np.allclose(line["first_probe"], [each["first_loss"] for each in pair], atol=1e-4)
        labels = np.array(line["labels"]).reshape(4, 2)  # decisions, runs
        actions = np.array([each["actions"] for each in pair])[..., 0]
        assert np.allclose(labels.T, actions, atol=1e-5)


def test_labels_of_later_rounds_lead_to_the_improved_positions(whole):
    searches = read_lines(whole.out / "searches.jsonl")
    line = read_lines(whole.out / "rollouts.jsonl")[2]
    labels = np.array(line["labels"]).reshape(4, 2)
    wanted = [np.array(each["positions"])[0, 0] for each in searches[:2]]
    assert np.allclose(labels[0], np.clip(np.array(wanted) / 0.2, -1, 1), atol=1e-5)


def test_the_policy_is_scored_as_any_other(whole):
    policy = load_controller(str(whole.out))
    assert (
        policy.spec.mapping == "move" and tuple(policy.spec.observation) == OBSERVATIONS["ratios"]
    )
    arguments = {"data": "synthetic", "batch_tokens": 32, "sequence_length": 16}
    arguments |= {"num_steps": 8, "eval_tokens": 64}
    (row,) = evaluate_controller(policy, ADAPTIVE, arguments, [7])
    assert row["divergence_reason"] is None and row["steps"] == [0, 2, 4, 6, 8]


def test_a_run_that_was_stopped_continues_bitwise(tmp_path, whole, monkeypatch):
    config = replace(whole, out=tmp_path / "run")
    stopped = Hindsight(config)
    played, search = [], stopped.search

    def stop(start, seed, advance):
        if len(played) == 3:
            raise KeyboardInterrupt
        played.append(seed)
        return search(start, seed, advance)

    monkeypatch.setattr(stopped, "search", stop)
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    with (config.out / "searches.jsonl").open("a") as file:
        file.write('{"number": 3, "sta')  # a torn line
    Hindsight(config).run()
    for name in ("searches.jsonl", "rollouts.jsonl"):
        assert (config.out / name).read_text() == (whole.out / name).read_text()
    weights = [load_controller(str(each.out)).tensors() for each in (config, whole)]
    assert all(weights[0][name].equal(tensor) for name, tensor in weights[1].items())


def test_other_observations_take_over_the_searches(tmp_path, whole):
    config = replace(whole, out=tmp_path / "run", observation="clock", searches=whole.out, rounds=0)
    Hindsight(config).run()
    assert read_lines(config.out / "searches.jsonl") == read_lines(whole.out / "searches.jsonl")
    assert load_controller(str(config.out)).spec.observation_names == ["progress"]
    wrong = replace(config, out=tmp_path / "other", num_windows=4)
    with pytest.raises(ValueError, match="num_windows"):
        Hindsight(wrong)


def test_a_first_pass_by_a_controller_is_taken_over(tmp_path):
    file = tmp_path / "rising.py"
    file.write_text(
        "import numpy as np\n"
        "from hpenv.policies.controller import ControllerSpec\n"
        "class Rising:\n"
        "    spec = ControllerSpec([['lr', 'run']], ['progress'], mapping='position')\n"
        "    def act(self, observations):\n"
        "        return np.full((len(observations), 1), 0.3, dtype=np.float32)\n"
    )
    config = tiny(tmp_path / "run", first=f"{file}:Rising", starts=(1.0,), seeds=1, rounds=0)
    hindsight = Hindsight(config)
    env = hindsight.make_env(1.0, 1, ["progress"])
    assert np.allclose(hindsight.first_pass(env, 1.0, 0), 0.3)
    hindsight.run()
    (line,) = read_lines(config.out / "searches.jsonl")
    assert np.allclose(line["first_actions"], [[1.0], [0.5], [0.0], [0.0]], atol=1e-5)


@pytest.mark.parametrize("observation", OBSERVATIONS)
def test_every_list_of_features_is_one_of_the_environment(tmp_path, observation):
    env = Hindsight(tiny(tmp_path / "run", observation=observation)).env
    assert env.observation_names[0] == "progress"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"starts": (0.0,)}, "starts must be numbers above 0"),
        ({"steps": (2.0,)}, "steps and window_steps must be numbers in"),
        ({"cells": ("lrr",)}, "cells must be some of"),
        ({"num_windows": 9}, "num_windows must be from 1 to the 4 decisions"),
        ({"env_kwargs": ("num_steps=8",)}, "must have one number as base_lr"),
        ({"env_kwargs": (*TINY, "observation=full")}, "must leave out observation"),
    ],
)
def test_what_does_not_fit_is_refused_and_leaves_no_folder(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        Hindsight(tiny(tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_the_program_prints_its_configuration_and_its_searches(tmp_path, capsys):
    main(
        ["--env-kwargs", *TINY, "--seeds", "1", "--starts", "1.0", "--num-windows", "1",
         "--steps", "0.25", "--window-steps", "0.1", "--rounds", "0",
         "--imitation.num-updates", "5", "--out", str(tmp_path / "run"), "--no-tensorboard"]
    )  # fmt: skip
    printed = capsys.readouterr().out
    assert '"num_windows": 1' in printed and "start 1, seed 0: probe loss" in printed
    assert f"written: {tmp_path / 'run' / 'policy'}" in printed
