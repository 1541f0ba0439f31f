"""Tests of training: resume, refusals, every agent on every id, the log and config.json."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from agents.jel import JELAgentConfig
from agents.ppo import PPOAgentConfig
from hpenv.benchmark.environments import columns_of, make_population
from hpenv.benchmark.evaluate import evaluate_controller
from hpenv.policies import load_policy
from hpenv.posttraining.sandbox import kernel, syscalls
from tests import tiny_student
from train_agents.rollout import collect, episode_seeds
from train_agents.train import AGENTS, HELD_OUT, TRACED_DECISIONS, TrainConfig, main, train

TINY = (
    "data=synthetic",
    "batch_tokens=32",
    "sequence_length=16",
    "num_steps=6",
    "interval=2",
    "eval_tokens=64",
)
IDS = sorted(id for id, spec in gym.registry.items() if str(spec.entry_point).startswith("hpenv."))
CELL, JEL, PROJECTION = "TrainLoop-Cell-v0", "TrainLoop-JEL-v0", "TrainLoop-GRPOProjection-v0"
ADAPTIVE = "TrainLoop-Adaptive-v0"
#: Keys that differ between processes, and keys of only the last line of a training.
CLOCKS = ("time/fps", "time/time_elapsed")
LAST = "eval/held_out"
NAMES = sorted(AGENTS)


def tiny(out: Path, agent: str = "jel", **changes) -> TrainConfig:
    options = {"ppo": PPOAgentConfig(batch_size=6)} if agent == "ppo" else {}
    return TrainConfig(
        **{"agent": agent, "env_kwargs": TINY, "num_updates": 3, "episodes_per_update": 4,
           "num_envs": 2, "out": out,
           "tensorboard": False, **options, **changes}
    )  # fmt: skip


def lines(folder: Path, name: str = "progress.jsonl") -> list[dict]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def repeatable(folder: Path) -> list[dict]:
    """Returns the log's lines without clocks and without keys of the last line only."""
    left_out = (*CLOCKS, LAST)
    return [
        {key: value for key, value in line.items() if key not in left_out} for line in lines(folder)
    ]


@pytest.fixture(scope="module", params=NAMES)
def whole(request, tmp_path_factory):
    config = tiny(tmp_path_factory.mktemp("whole") / "run", request.param)
    train(config)
    return config


def copied(whole: TrainConfig, tmp_path: Path) -> TrainConfig:
    shutil.copytree(whole.out, tmp_path / "run")
    return replace(whole, out=tmp_path / "run")


def test_a_run_that_was_stopped_continues_bitwise(tmp_path, whole):
    parts = replace(whole, out=tmp_path / "parts")
    train(replace(parts, num_updates=1))
    assert LAST in lines(parts.out)[0]
    train(parts)
    assert repeatable(whole.out) == repeatable(parts.out)
    assert lines(whole.out)[-1][LAST] == lines(parts.out)[-1][LAST]
    assert [LAST in line for line in lines(whole.out)] == [False, False, True]
    assert lines(whole.out, "rollouts.jsonl") == lines(parts.out, "rollouts.jsonl")
    observation = np.linspace(0, 1, 5, dtype=np.float32)[:, None]
    ours, theirs = (load_policy(run.out).act(observation) for run in (whole, parts))
    assert np.array_equal(ours, theirs)


def test_the_log_counts_timesteps_iterations_and_speed_as_stable_baselines3_does(whole):
    found = lines(whole.out)
    decisions = 4 * 3  # of an update: episodes times decisions of each
    assert [line["step"] for line in found] == [decisions, 2 * decisions, 3 * decisions]
    assert [line["time/total_timesteps"] for line in found] == [line["step"] for line in found]
    assert [line["time/iterations"] for line in found] == [1, 2, 3]
    assert all(line["time/fps"] >= 0 and line["time/time_elapsed"] >= 0 for line in found)
    assert all({"rollout/ep_rew_mean", "rollout/ep_len_mean"} <= set(line) for line in found)


def test_the_last_line_has_the_held_out_score_of_the_policy_that_is_saved(whole):
    rows = evaluate_controller(
        load_policy(whole.out), whole.env, whole.arguments(), episode_seeds(0, HELD_OUT, 2)
    )
    assert lines(whole.out)[-1][LAST] == np.mean([row["bpb"] for row in rows])


def test_config_json_holds_the_options_of_the_agent_that_ran_and_the_arguments_of_the_env(whole):
    written = json.loads((whole.out / "config.json").read_text())
    assert (
        written["configuration"]["env_kwargs"]
        == whole.arguments()
        == written["facts"]["env_kwargs"]
    )
    assert set(NAMES) & set(written["configuration"]) == {whole.agent}
    assert written["configuration"]["num_updates"] == 3
    assert written["facts"]["cpu_capability"] and written["facts"]["processor"]


def test_options_of_another_agent_are_refused():
    with pytest.raises(
        ValueError, match=r"ppo must be left out if agent is 'jel'; got PPOAgentConfig"
    ):
        TrainConfig(agent="jel", ppo=PPOAgentConfig(batch_size=6))
    with pytest.raises(ValueError, match="jel must be left out if agent is 'ppo'"):
        TrainConfig(agent="ppo", jel=JELAgentConfig(gamma=0.5))


def test_lines_after_the_last_checkpoint_are_done_again_not_twice(tmp_path, whole):
    config = copied(whole, tmp_path)
    shutil.rmtree(config.out / "checkpoints" / "update-000003")
    for name in ("progress.jsonl", "rollouts.jsonl"):
        with open(config.out / name, "a") as file:
            file.write('{"step": 3, "torn": ')
    train(config)
    assert repeatable(config.out) == repeatable(whole.out)
    assert [line["update"] for line in lines(config.out, "rollouts.jsonl")] == [0, 1, 2]


def test_a_damaged_checkpoint_and_stray_files_beside_it_are_passed_over(tmp_path, whole):
    config = copied(whole, tmp_path)
    checkpoints = config.out / "checkpoints"
    strays = [
        checkpoints / name for name in (".DS_Store", "update-copy", "update-000009.bak", "update-")
    ]
    for stray in strays:
        stray.write_text("x")
    damaged = next((checkpoints / "update-000003").rglob("*.safetensors"))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    (checkpoints / "update-000001").write_text("x")
    with pytest.warns(UserWarning) as caught:
        train(config)
    texts = [str(warning.message) for warning in caught]
    assert any(
        "now update-000003.damaged" in text and "starts from update 2" in text for text in texts
    )
    assert any("update-000001.damaged aside" in text for text in texts)
    assert all(stray.exists() for stray in strays)
    assert repeatable(config.out) == repeatable(whole.out)


def test_a_folder_of_another_configuration_is_refused(whole):
    before = {path: path.stat().st_mtime_ns for path in whole.out.rglob("*")}
    for changes in ({"seed": 7}, {"env_kwargs": (*TINY, "base_lr=0.5")}, {"num_envs": 4}):
        with pytest.raises(
            ValueError, match=rf"must hold the same run; got .*{next(iter(changes))}"
        ):
            train(replace(whole, **changes))
    with pytest.raises(ValueError, match=r"num_updates must be at least the 3 of .*; got 2"):
        train(replace(whole, num_updates=2))
    assert {path: path.stat().st_mtime_ns for path in whole.out.rglob("*")} == before


def test_a_start_that_is_refused_leaves_no_trace(tmp_path):
    for changes in ({"env_kwargs": (*TINY, "base_lrr=1")}, {"env": "TrainLoop-JLE-v0"}):
        with pytest.raises(ValueError):
            train(tiny(tmp_path / "run", **changes))
    assert list(tmp_path.iterdir()) == []


def test_episode_seeds_differ_between_updates_and_controllers():
    numbers = [*range(20), HELD_OUT]
    seeds = {
        seed
        for controller in range(3)
        for update in numbers
        for seed in episode_seeds(controller, update, 8)
    }
    assert len(seeds) == 3 * 21 * 8


def test_episodes_hold_what_happened_and_telescope(tmp_path):
    config = tiny(tmp_path)
    env = make_population(config.env, 2, config.arguments())
    episodes = collect(env, AGENTS["jel"](config, columns_of(env)), [5, 6, 7, 8])
    losses = episodes.probe_losses
    assert episodes.rollout.rewards.shape == episodes.train_losses.shape == (
        3,
        4,
    ) and losses.shape == (4, 4)
    np.testing.assert_allclose(episodes.returns, losses[0] - losses[-1], atol=1e-12)
    np.testing.assert_allclose(np.tanh(episodes.rollout.raw), episodes.positions, atol=1e-6)
    assert episodes.rollout.alive.all()


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    """Returns arguments of every id with which an episode takes a fraction of a second."""
    folder = tmp_path_factory.mktemp("students") / "tiny"
    tiny_student.student(3, seed=5, end=6.0).save(folder, {})
    projection = tiny_student.TINY | {"num_samples": 2, "num_steps": 2, "student": str(folder)}
    texts = tuple(f"{key}={json.dumps(value)}" for key, value in projection.items())
    cell = (
        *(text for text in TINY if not text.startswith("interval")),
        "preset=nano",
        "channels=layer_lr",
    )
    return {JEL: TINY, ADAPTIVE: TINY, CELL: cell, PROJECTION: texts}


MISSING = kernel.missing_support(syscalls.NUMBERS)


@pytest.mark.parametrize("agent", NAMES)
@pytest.mark.parametrize("env", IDS)
def test_every_agent_trains_on_every_id(env, agent, arguments, tmp_path):
    if env == PROJECTION and MISSING:
        pytest.skip(f"programs cannot be executed here: {MISSING}")
    config = tiny(
        tmp_path / "run",
        agent,
        env=env,
        env_kwargs=arguments[env],
        num_updates=1,
        episodes_per_update=2,
    )
    metrics = train(config)
    assert np.isfinite(metrics["rollout/ep_rew_mean"]) and np.isfinite(metrics[LAST])
    assert load_policy(config.out).action_size > 0
    (line,) = lines(config.out, "rollouts.jsonl")
    assert (line["losses"] is None) == (env == CELL)  # whose reward is of the training loss
    assert np.isfinite(line["train_losses"]).all() and np.isfinite(metrics["inner/train_loss"])
    # The saved policy asks for its columns by itself, on any number of runs.
    plain = {key: value for key, value in config.arguments().items() if key != "channels"}
    rows = evaluate_controller(load_policy(config.out), env, plain, [0, 1, 2])
    assert len(rows) == 3


def test_a_long_episode_is_traced_at_some_of_its_decisions(tmp_path, monkeypatch):
    assert TRACED_DECISIONS >= 12  # of TrainLoop-JEL-v0, whose figures need all
    monkeypatch.setattr("train_agents.train.TRACED_DECISIONS", 3)
    kwargs = (*TINY[:-2], "interval=1", TINY[-1])
    train(tiny(tmp_path / "run", env_kwargs=kwargs, num_updates=1, episodes_per_update=2))
    (line,) = lines(tmp_path / "run", "rollouts.jsonl")
    assert line["decisions"] == [0, 2, 5] and np.shape(line["positions"]) == (3, 2, 2)
    assert np.shape(line["train_losses"]) == (3, 2) and np.shape(line["losses"]) == (4, 2)


@pytest.mark.parametrize("agent", NAMES)
def test_agents_learn_from_whole_episodes_whatever_their_length(agent, tmp_path):
    kwargs = (*TINY[:-2], "interval=1", TINY[-1])
    train(tiny(tmp_path / "run", agent, env_kwargs=kwargs, num_updates=1))
    assert [line["rollout/ep_len_mean"] for line in lines(tmp_path / "run")] == [6.0]


def test_arguments_of_the_env_are_those_that_it_has():
    assert TrainConfig().arguments() == {"batch_tokens": 128}
    assert TrainConfig(env=PROJECTION).arguments() == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_updates": 0}, "num_updates must be at least 1; got 0"),
        ({"threads": 0}, "threads must be at least 1; got 0"),
        ({"seed": -1}, "seed must be at least 0; got -1"),
        ({"episodes_per_update": 3}, "episodes_per_update must be a multiple of num_envs=2; got 3"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        tiny(tmp_path / "run", **changes)


def test_the_program_trains_from_the_command_line(tmp_path, capsys):
    out = tmp_path / "run"
    command = [
        "--agent",
        "jel",
        "--env",
        JEL,
        "--num-updates",
        "1",
        "--episodes-per-update",
        "2",
        "--num-envs",
        "2",
    ]
    main([*command, "--out", str(out), "--env-kwargs", *TINY])
    printed = capsys.readouterr().out
    assert '"num_updates": 1' in printed  # the whole configuration is printed first
    assert (out / "policy" / "MANIFEST.json").exists() and list(out.glob("**/events.out.tfevents*"))
