"""Online training: curves, logs, held-out scores, and runs that diverge."""

import json
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest

import hpenv
from agents.sidecar import Sidecar
from agents.sidecar_config import SidecarConfig
from hpenv.benchmark.environments import make_population
from hpenv.benchmark.evaluate import evaluate_controller, probe_loss
from hpenv.policies import ControllerSpec, Neutral, save_policy
from tests.train_agents.short_online import ENV, progress, tiny
from train_agents.online import OnlineConfig, main, run_online
from train_agents.outputs import checkpoints
from train_agents.population import Population

gym.register_envs(hpenv)


def test_only_the_last_checkpoints_are_kept_whole(whole):
    kept = checkpoints(whole[2], "step")
    assert [path.name for path in kept] == ["step-0000010", "step-0000011"]
    assert all(
        {child.name for child in path.iterdir()} == {"env", "controller", "program"}
        for path in kept
    )
    assert [path.name for path in kept[0].parent.iterdir() if path.name.startswith(".")] == []


def test_curves_and_traces_are_recorded_at_their_steps(whole):
    rows, extra, folder = whole
    assert rows[0]["steps"] == [0, 4, 8, 11] and len(rows[0]["train_curve"]) == 3
    assert extra["trace"]["steps"] == [0, 3, 6, 9]
    shape = (4, 2, len(extra["names"]))
    assert np.shape(extra["trace"]["mean"]) == np.shape(extra["trace"]["sampled"]) == shape
    assert np.all(np.array(extra["trace"]["mean"])[0] == 0.0) and np.any(
        np.array(extra["trace"]["sampled"])[0]
    )
    assert np.shape(extra["final_mean"]) == shape[1:]
    lines = progress(folder)
    assert [line["inner/step"] for line in lines] == [2, 4, 6, 8, 10, 11]
    assert rows[0]["bpb"] == rows[0]["bpb_curve"][-1] and [row["seed"] for row in rows] == [3, 4]
    assert extra["env_ms"] > 0 and extra["agent_ms"] > 0
    assert extra["advantage_rms"] > 0.0
    assert extra["advantage_rms"] == pytest.approx(
        np.mean([line["train/advantage_rms"] for line in lines])
    )
    assert extra["evidence"] == lines[-1]["train/evidence"]


def test_the_log_counts_timesteps_and_returns_as_stable_baselines3_does(whole):
    rows, _, folder = whole
    lines = progress(folder)
    assert [line["step"] for line in lines] == [4, 8, 12, 16, 20, 22]  # decisions of two rows
    assert [line["time/total_timesteps"] for line in lines] == [line["step"] for line in lines]
    assert [line["time/iterations"] for line in lines] == [2, 4, 6, 8, 10, 11]
    assert [line["rollout/ep_len_mean"] for line in lines] == [2, 4, 6, 8, 10, 11]
    assert all(np.isfinite(line["rollout/ep_rew_mean"]) and line["time/fps"] >= 0 for line in lines)
    held_out = {
        line["inner/step"]: line["eval/held_out"] for line in lines if "eval/held_out" in line
    }
    assert list(held_out) == [4, 8, 11]
    assert held_out[11] == pytest.approx(np.mean([row["bpb"] for row in rows]))


def test_the_return_is_the_sum_of_the_rewards_of_the_rows_that_go_on():
    env = gym.make_vec("TrainLoop-Cell-v0", num_envs=2, autoreset_mode="DISABLED", **ENV)
    population = Population(env, Sidecar(SidecarConfig(hidden_size=8)), [3, 4])
    earned, step = [], env.step

    def stepped(actions):
        result = step(actions)
        earned.append(result[1])
        return result

    env.step = stepped
    population.decide(trace=False)
    population.alive[1] = False  # as if it had ended
    population.decide(trace=False)
    assert population.episode_metrics()["rollout/ep_rew_mean"] == pytest.approx(
        (earned[0][0] + earned[1][0] + earned[0][1]) / 2
    )
    assert population.episode_metrics()["rollout/ep_len_mean"] == 1.5


def test_config_json_has_the_whole_configuration_and_the_facts(whole):
    written = json.loads((whole[2] / "config.json").read_text())
    assert written["configuration"]["env_kwargs"] == ENV | {"seed_mode": "independent"}
    assert (
        written["configuration"]["checkpoint_interval"] == 5
        and written["configuration"]["sidecar"]["hidden_size"] == 8
    )
    assert written["facts"]["cpu_capability"]


def test_a_detached_run_is_the_run_without_a_controller(tmp_path):
    rows, extra = run_online(tiny(tmp_path, sidecar={"attached": False}), ENV)
    measured = ENV | {
        "reward": {"progress": 1.0},
        "channels": "layer_lr",
        "num_registers": 0,
        "interval": 4,
    }
    plain = evaluate_controller(None, "TrainLoop-Cell-v0", measured, [3, 4], curve=False)
    assert [row["probe_loss"] for row in rows] == [row["probe_loss"] for row in plain]
    assert [row["bpb"] for row in rows] == [row["bpb"] for row in plain]
    assert not np.any(extra["trace"]["sampled"]) and not np.any(extra["final_mean"])
    assert extra["advantage_rms"] is extra["evidence"] is None


def test_held_out_scores_are_those_of_the_means_and_touch_nothing(tmp_path, whole):
    rows, _ = run_online(replace(tiny(tmp_path), eval_interval=11), ENV)
    assert [row["bpb"] for row in rows] == [row["bpb"] for row in whole[0]]


def test_the_probe_is_measured_with_the_dials_at_the_means_and_leaves_the_panel():
    env = gym.make_vec("TrainLoop-Cell-v0", num_envs=2, autoreset_mode="DISABLED", **ENV)
    config = SidecarConfig(hidden_size=8, initial_std={"scale": 0.4})
    population = Population(env, Sidecar(config), [3, 4])
    for _ in range(3):
        population.decide(trace=False)
    sampled = env.plant.panel.positions.copy()
    found = population.probe()
    assert np.array_equal(env.plant.panel.positions, sampled)
    assert not np.array_equal(found, probe_loss(env))  # the channels at their last samples
    env.plant.panel.move(population.means()[:, : sampled.shape[1]], np.ones(2, dtype=bool))
    assert np.array_equal(found, probe_loss(env))


def test_the_panel_is_as_before_when_an_evaluation_fails(monkeypatch):
    env = gym.make_vec("TrainLoop-Cell-v0", num_envs=2, autoreset_mode="DISABLED", **ENV)
    population = Population(env, Sidecar(), [3, 4])
    population.decide(trace=False)
    before = env.plant.panel.positions.copy()

    def fail():
        raise RuntimeError

    monkeypatch.setattr(env, "evaluate", fail)
    with pytest.raises(RuntimeError):
        population.evaluate()
    assert np.array_equal(env.plant.panel.positions, before)


def test_grouped_rows_are_one_run_with_a_sidecar_each(tmp_path):
    rows, extra = run_online(
        tiny(tmp_path, seed_mode="grouped", sidecar={"baseline": "population"}), ENV
    )
    assert [row["seed"] for row in rows] == [3, 3]
    assert rows[0]["bpb_curve"][0] == rows[1]["bpb_curve"][0] and rows[0]["bpb"] != rows[1]["bpb"]
    first = np.array(extra["trace"]["sampled"])[0]
    assert not np.array_equal(first[0], first[1])


def test_a_run_that_diverges_is_an_outcome_and_the_others_go_on(tmp_path, monkeypatch):
    from hpenv.pretraining.plant import PretrainingPlant

    advance = PretrainingPlant.advance

    def poisoned(plant, num_steps):
        if plant.steps[0] == 5:
            plant.weights["embedding"][0] = float("nan")
        return advance(plant, num_steps)

    monkeypatch.setattr(PretrainingPlant, "advance", poisoned)
    rows, _ = run_online(tiny(tmp_path), ENV)
    assert [row["divergence_reason"] for row in rows] == ["loss_nonfinite", None]
    assert rows[0]["bpb"] is None and np.isfinite(rows[1]["bpb"])
    assert rows[1]["steps"] == [0, 4, 8, 11] and rows[1]["train_curve"][-1] is not None
    assert rows[0]["train_curve"][-1] is None  # it had ended before
    assert rows[0]["steps"] == [0, 4, 5, 5]  # and does not move


def test_a_folder_of_another_run_is_refused(tmp_path, whole):
    with pytest.raises(ValueError, match=r"must hold the same run; got .*agent_seed"):
        run_online(replace(tiny(whole[2]), agent_seed=7), ENV)
    with pytest.raises(ValueError, match=r"got differences .*num_steps"):
        run_online(tiny(whole[2]), ENV | {"num_steps": 12})


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({}, {"channels": "lr"}, "unknown channels"),
        ({}, {"sequence_length": 15}, "multiple of sequence_length"),
        ({"sidecar": {"initial_mean": {"rate": 0.1}}}, {}, "initial_mean must have names of cells"),
        ({"seeds": 1, "sidecar": {"baseline": "population"}}, {}, "num_rows must be >= 2"),
        ({"first_seed": -1}, {}, "first_seed must be at least 0; got -1"),
    ],
)
def test_a_start_that_is_refused_does_not_claim_the_folder(tmp_path, changes, arguments, message):
    folder = tmp_path / "run"
    with pytest.raises(ValueError, match=message):
        run_online(tiny(folder, **changes), ENV | arguments)
    assert not folder.exists()


def test_what_cannot_be_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="trace_interval must be at least 1; got 0"):
        OnlineConfig(trace_interval=0)
    with pytest.raises(ValueError, match="env_kwargs must leave out seed_mode; got 'grouped'"):
        run_online(tiny(tmp_path), ENV | {"seed_mode": "grouped"})


def test_the_program_runs_from_the_command_line(tmp_path, capsys):
    arguments = [f"{key}={value}" for key, value in (ENV | {"num_steps": 4}).items()]
    given = [
        "--out",
        str(tmp_path),
        "--env-kwargs",
        *arguments,
        "--sidecar.no-attached",
        "--eval-interval",
        "2",
    ]
    main(given)
    printed = capsys.readouterr().out
    assert '"attached": false' in printed and "held-out bits per byte" in printed
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["rows"][0]["steps"] == [0, 2, 4] and list(
        tmp_path.glob("**/events.out.tfevents*")
    )
    assert result["extra"]["env_ms"] > 0.0
    before = (tmp_path / "result.json").read_bytes()
    main(given)  # there is nothing left to do, and so nothing to time
    assert (
        tmp_path / "result.json"
    ).read_bytes() == before and "finished" in capsys.readouterr().out
    (tmp_path / "result.json").unlink()
    main(given)
    again = json.loads((tmp_path / "result.json").read_text())
    assert again["rows"] == result["rows"] and again["extra"]["env_ms"] is None


def test_any_controller_is_run_with_curves_and_a_trace(tmp_path):
    arguments = {key: value for key, value in ENV.items() if key != "num_registers"}
    config = replace(tiny(tmp_path / "run"), controller=str(tmp_path / "policy"))
    cells = len(make_population(config.env, 1, arguments).action_names)
    save_policy(Neutral(cells), tmp_path / "policy")
    rows, extra = run_online(config, arguments)
    off, _ = run_online(tiny(tmp_path / "off", sidecar={"attached": False}), arguments)
    assert [row["bpb"] for row in rows] == [row["bpb"] for row in off]
    assert not np.any(extra["final_mean"])


class Forgetful:
    """Learns, and cannot be saved."""

    spec = ControllerSpec()

    def act(self, observations):
        return observations

    def learn(self, rewards, alive):
        return {}


def test_a_controller_that_learns_and_cannot_be_saved_is_refused():
    env = gym.make_vec("TrainLoop-Cell-v0", num_envs=2, autoreset_mode="DISABLED", **ENV)
    with pytest.raises(ValueError, match=r"must have save\(folder\) and load\(folder\)"):
        Population(env, Forgetful(), [0, 1])
