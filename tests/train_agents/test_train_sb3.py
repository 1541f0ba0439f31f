"""Training with stable-baselines3: a policy without pickle, and a run that goes on."""

import json

import pytest

from hpenv.benchmark.evaluate import evaluate_controller
from hpenv.policies import load_policy
from train_agents import train_sb3

SMALL = {
    "num_steps": 4, "interval": 2, "batch_tokens": 32, "sequence_length": 16,
    "num_probe_batches": 1, "eval_tokens": 256, "data": "synthetic",
}  # fmt: skip


def command(algorithm, folder, num_episodes=4, **more):
    assignments = [f"{key}={value}" for key, value in (SMALL | more).items()]
    return [
        "--algorithm", algorithm, "--num-episodes", str(num_episodes), "--num-envs", "2",
        "--out", str(folder), "--env-kwargs", *assignments,
    ]  # fmt: skip


@pytest.mark.parametrize("algorithm", train_sb3.ALGORITHMS)
def test_a_run_goes_on_and_its_policy_is_scored_without_stable_baselines3(
    algorithm, tmp_path, capsys
):
    train_sb3.main(command(algorithm, tmp_path))
    first = load_policy(tmp_path / "policy")
    train_sb3.main(command(algorithm, tmp_path, 10))
    policy = load_policy(tmp_path / "policy")
    assert any((first.tensors()[name] != tensor).any() for name, tensor in policy.tensors().items())
    model = train_sb3.ALGORITHMS[algorithm].load(tmp_path / "model.zip")
    assert model.num_timesteps == 10 * 2  # episodes, decisions of each

    (row,) = evaluate_controller(policy, "TrainLoop-JEL-v0", SMALL, [3])
    assert row["divergence_reason"] is None
    assert policy.spec.interval == 2
    assert json.loads((tmp_path / "config.json").read_text())["configuration"]["algorithm"] == (
        algorithm
    )


def test_another_run_in_the_folder_is_refused(tmp_path, capsys):
    train_sb3.main(command("ppo", tmp_path, 2))
    with pytest.raises(SystemExit):
        train_sb3.main(command("ppo", tmp_path, 2, batch_tokens=64))
    assert "must hold the same run" in capsys.readouterr().err


def test_episodes_that_do_not_fill_the_population_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        train_sb3.main(command("ppo", tmp_path, 3))
    assert "num_episodes must be a multiple of num_envs=2" in capsys.readouterr().err
