"""The JEL experiment: its jobs, its report, and a tiny whole run."""

import json
from dataclasses import replace

import numpy as np
import pytest

from hpenv.benchmark.results import write_result
from tests.train_agents.experiments.made_up_results import result_row
from train_agents.experiments import jel
from train_agents.experiments.jel import ARMS as METHODS
from train_agents.experiments.jel import ExperimentConfig, make_jobs
from train_agents.experiments.jel_report import REFERENCE, ablation_table, main_table, summarize
from train_agents.experiments.report import Data
from train_agents.experiments.runner import run_jobs
from train_agents.experiments.samples import arm_of, bits_per_byte, bpb_arms, samples

TINY = ExperimentConfig(
    num_steps=24, interval=2, deployment_tokens=64, meta_tokens=64, num_updates=2,

    num_controllers=2, num_ablation_controllers=1, num_points=0, num_evaluation_seeds=2,
    num_tuning_seeds=1,
)  # fmt: skip


def test_every_arm_has_a_job_and_no_two_share_a_name(tmp_path):
    names = [job.name for job in make_jobs(TINY)]
    assert len(names) == len(set(names))
    assert {"paper-0", "paper-1", "ours-0", "search_cma", REFERENCE} <= set(names)
    ablations = {f"{arm.name}-0" for arm in METHODS if arm.group == "ablation"}
    assert len(ablations) == 8 and ablations <= set(names)
    with_searches = [job.name for job in make_jobs(ExperimentConfig())]
    every = {arm_of(name) for name in (*names, *with_searches)}
    assert every == {arm.name for arm in METHODS}


def test_tuning_and_evaluation_seeds_are_disjoint():
    full = ExperimentConfig()
    assert not set(full.tuning_seeds) & set(full.evaluation_seeds)
    assert full.num_evaluation_seeds >= 10 and full.num_controllers >= 5
    assert full.meta_tokens * 4 <= full.deployment_tokens


def _write(folder, name, bpbs, configuration=None, extra=None):
    rows = [result_row(seed, value) for seed, value in enumerate(bpbs)]
    write_result(folder / f"{name}.json", name, configuration or {}, rows, extra or {})


def _data(jobs, known=METHODS):
    return Data({arm.name: arm for arm in known}, None, jobs, bpb_arms(jobs))


def test_the_report_pairs_by_seed_and_counts_what_a_controller_cost(tmp_path):
    folder = tmp_path / "jobs"
    folder.mkdir()
    meta = {"num_steps": 24, "batch_tokens": 64}
    arguments = {
        "num_updates": 5,
        "meta_kwargs": meta,
        "deployment_kwargs": meta | {"batch_tokens": 256},
    }
    actions = {key: [[0.0, 0.0], [0.5, -0.5]] for key in ("low", "median", "high")}
    line = {"rollout/ep_rew_mean": 1.0, "train/entropy_per_cell": 0.9}
    _write(folder, REFERENCE, [4.0, 2.0])
    _write(folder, "baseline_hand_tuned", [2.0, 1.0])
    bpbs_of = ([3.0, 1.5], [2.0, 1.0], [2.5, 1.25], [2.5, 1.25], [2.5, 1.25])
    for seed, bpbs in enumerate(bpbs_of):
        _write(
            folder, f"paper-{seed}", bpbs, arguments, {"training": [line] * 5, "actions": actions}
        )
    jel.REPORT.write(tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["paper"]["controllers"] == [2.25, 1.5, 1.875, 1.875, 1.875]
    half = (
        2.776 * np.std([0.25, 0.5, 0.375, 0.375, 0.375], ddof=1) / np.sqrt(5)
    )  # Student's t of 4 degrees
    np.testing.assert_allclose(
        summary["paper"]["versus"]["base"], [0.375, 0.375 - half, 0.375 + half], rtol=1e-3
    )
    np.testing.assert_allclose(summary["paper"]["versus"]["hand_tuned"][0], -0.25)
    assert summary["paper"]["run_equivalents"] == 40 * 64 / 256
    text = (tmp_path / "README.md").read_text()
    assert "JEL, the paper's hyperparameters" in text and "+37.5 %" in text
    assert {file.name for file in tmp_path.glob("*.png")} >= {
        "comparison.png",
        "figure2_dynamics.png",
        "entropy.png",
    }
    (folder / "paper-4.json").unlink()
    jel.REPORT.write(tmp_path)
    few = json.loads((tmp_path / "summary.json").read_text())["paper"]
    assert few["interval"] is None and len(few["versus"]["base"]) == 1
    assert "+37.5 % (not claimed)" in (tmp_path / "README.md").read_text()


def test_the_ablation_table_has_an_interval_over_controllers_only_of_enough_of_them():
    def members(*means):
        extra = {"training": [{"rollout/ep_rew_mean": 1.0}]}
        return [
            {"rows": [result_row(0, mean - 1.0), result_row(1, mean + 1.0)], "extra": extra}
            for mean in means
        ]

    groups = {"ppo": members(2.0, 3.0, 4.0), "paper": members(2.0, 2.0, 3.0, 4.0, 4.0)}
    jobs = {f"{arm}-{n}": each for arm, found in groups.items() for n, each in enumerate(found)}
    paper, ppo = ablation_table(_data(jobs)).splitlines()[2:]
    half = 2.77645 / np.sqrt(5)  # Student's t of 4 degrees; the standard deviation is 1
    assert f"| paper | 3.0000 [{3 - half:.4f}, {3 + half:.4f}] | 2.000 to 4.000 (5) |" in paper
    assert "| ppo | 3.0000 | 2.000 to 4.000 (3) |" in ppo


def test_an_untuned_baseline_says_that_no_runs_were_spent_and_what_is_not_recorded_is_left_empty():
    job = {"rows": [result_row(0, 3.0), result_row(1, 2.0)], "configuration": {}}
    jobs = {REFERENCE: {**job, "extra": {"runs_spent": 0}}, "baseline_cosine": {**job, "extra": {}}}
    first, second = sorted(
        main_table(_data(jobs)).splitlines()[2:], key=lambda row: "cosine" in row
    )
    assert first.endswith("| 0 |") and second.endswith("|  |")


def test_a_diverged_run_scores_as_a_uniform_guess():
    job = {
        "rows": [result_row(0, 3.0), result_row(1, 2.0, "loss_above_limit"), result_row(2, None)]
    }
    np.testing.assert_array_equal(samples([job], bits_per_byte)["bpb"].values, [[3.0, 8.0, 8.0]])
    data = _data({REFERENCE: {**job, "configuration": {}, "extra": {}}})
    assert summarize(data)[REFERENCE]["diverged"] == 1


@pytest.mark.slow
def test_the_whole_experiment_runs_resumes_and_reports(tmp_path):
    config = replace(TINY, out=tmp_path / "results", runs=tmp_path / "runs")
    jobs = make_jobs(config)
    run_jobs(jobs[:3], config.out / "jobs", 2)
    run_jobs(jobs, config.out / "jobs", 2)
    jel.REPORT.write(config.out)
    summary = json.loads((config.out / "summary.json").read_text())
    expected = {arm.name for arm in METHODS if arm.group != "tuned"}
    assert expected <= set(summary)
    assert (config.out / "figure3_actions_ours.png").exists()
