"""Training a controller: resume, refusals, both agents by one flag, and the program from the command line."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from agents.ppo import PPOAgentConfig
from hpenv.policies import load_policy
from train_agents.rollout import collect, episode_seeds
from train_agents.train import TRAINERS, TrainConfig, train

TINY = ("data=synthetic", "batch_tokens=64", "sequence_length=16", "num_steps=12", "interval=4", "eval_tokens=512")


def tiny(out: Path, agent: str = "jel") -> TrainConfig:
    return TrainConfig(
        agent=agent,
        env_kwargs=TINY,
        num_updates=3,
        episodes_per_update=4,
        num_envs=2,
        out=out,
        tensorboard=False,
        ppo=PPOAgentConfig(num_decisions=3, batch_size=6),
    )


def lines(folder: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


@pytest.mark.parametrize("agent", sorted(TRAINERS))
def test_a_run_that_was_stopped_continues_bitwise(tmp_path, agent):
    whole, parts = tiny(tmp_path / "whole", agent), tiny(tmp_path / "parts", agent)
    train(whole)
    train(replace(parts, num_updates=1))
    train(parts)
    assert lines(whole.out, "progress.jsonl") == lines(parts.out, "progress.jsonl")
    if agent == "jel":
        assert lines(whole.out, "rollouts.jsonl") == lines(parts.out, "rollouts.jsonl")
    observation = np.linspace(0, 1, 5, dtype=np.float32)[:, None]
    ours, theirs = (load_policy(run.out / "policy").act_mean(observation) for run in (whole, parts))
    assert np.array_equal(ours, theirs)


def test_lines_after_the_last_checkpoint_are_done_again_not_twice(tmp_path):
    config = tiny(tmp_path / "run")
    train(replace(config, num_updates=2))
    for name in ("progress.jsonl", "rollouts.jsonl"):
        with open(config.out / name, "a") as file:
            file.write('{"step": 3, "torn": ')
    train(config)
    assert [line["update"] for line in lines(config.out, "rollouts.jsonl")] == [0, 1, 2]
    assert len(lines(config.out, "progress.jsonl")) == 3


def test_a_folder_of_another_configuration_is_refused(tmp_path):
    config = tiny(tmp_path / "run")
    train(replace(config, num_updates=1))
    with pytest.raises(ValueError, match=r"holds another run, differing as .*seed"):
        train(replace(config, seed=7))


def test_episode_seeds_differ_between_updates_and_controllers():
    seeds = {seed for controller in range(3) for update in range(20) for seed in episode_seeds(controller, update, 8)}
    assert len(seeds) == 3 * 20 * 8


def test_episodes_hold_what_happened_and_telescope(tmp_path):
    config = tiny(tmp_path)
    import gymnasium as gym

    import hpenv

    gym.register_envs(hpenv)
    env = gym.make_vec(config.env, num_envs=2, autoreset_mode="DISABLED", **config.arguments())
    trainer = TRAINERS["jel"](config, env)
    episodes = collect(env, trainer.agent, [5, 6, 7, 8])
    assert episodes.rollout.rewards.shape == (3, 4) and episodes.losses.shape == (4, 4)
    np.testing.assert_allclose(episodes.returns, episodes.losses[0] - episodes.losses[-1], atol=1e-12)
    np.testing.assert_allclose(np.tanh(episodes.rollout.raw), episodes.positions, atol=1e-6)
    assert episodes.rollout.alive.all()


def test_ppo_learns_from_whole_episodes_whatever_their_length(tmp_path):
    config = replace(
        tiny(tmp_path / "run", "ppo"), env_kwargs=(*TINY[:-2], "interval=2", TINY[-1]), ppo=PPOAgentConfig(batch_size=6)
    )
    train(config)
    assert [line["rollout/ep_len_mean"] for line in lines(config.out, "progress.jsonl")] == [6.0] * 3
    with pytest.raises(ValueError, match=r"ppo\.num_decisions=12; an episode here has 6"):
        train(replace(config, out=tmp_path / "other", ppo=PPOAgentConfig(num_decisions=12)))


def test_arguments_of_the_env_are_those_that_it_has():
    assert TrainConfig().arguments() == {"batch_tokens": 128}
    assert TrainConfig(env="TrainLoop-GRPOProjection-v0").arguments() == {}
    with pytest.raises(ValueError, match="num_updates=0; expected at least 1"):
        TrainConfig(num_updates=0)


def test_a_number_of_episodes_that_does_not_fit_the_rows_is_refused(tmp_path):
    with pytest.raises(ValueError, match="episodes_per_update=3 must be a multiple of num_envs=2"):
        replace(tiny(tmp_path / "run"), episodes_per_update=3)


def test_the_program_trains_from_the_command_line(tmp_path):
    out = tmp_path / "run"
    command = [
        sys.executable,
        "-m",
        "train_agents.train",
        "--agent",
        "jel",
        "--env",
        "TrainLoop-JEL-v0",
        "--num-updates",
        "1",
    ]
    command += ["--episodes-per-update", "2", "--num-envs", "2", "--out", str(out), "--env-kwargs", *TINY]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False
    )
    assert done.returncode == 0, done.stderr
    assert '"num_updates": 1' in done.stdout  # the whole configuration is printed first
    assert (out / "policy" / "MANIFEST.json").exists() and list(out.glob("**/events.out.tfevents*"))
