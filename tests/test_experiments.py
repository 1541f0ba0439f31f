"""The experiment: jobs that are not done twice, a report made from files alone, and the whole of it at a tiny size."""

import json
from dataclasses import replace

import numpy as np
import pytest

from train_agents.experiments.jel import ABLATIONS, ExperimentConfig, make_jobs
from train_agents.experiments.jel_report import LABELS, REFERENCE, report, scores, summarize
from train_agents.experiments.jobs import Job, run_jobs
from train_agents.results import write_result

TINY = ExperimentConfig(
    num_steps=24, interval=2, deployment_tokens=64, meta_tokens=64, num_updates=2, ablation_updates=1,
    ablation_steps=12, ablation_interval=1,
    num_controllers=2, num_own_controllers=1, num_evaluation_seeds=2, num_tuning_seeds=1,
)  # fmt: skip


def count(file, fail=False):
    """A job that leaves a trace each time it is run."""
    with open(file, "a") as trace:
        trace.write("x")
    if fail:
        raise ValueError("no luck")
    return [{"seed": 1}], {"note": "done"}


def test_a_job_that_has_a_result_is_not_run_again(tmp_path):
    trace = tmp_path / "trace"
    for _ in range(2):
        run_jobs([Job("one", count, {"file": str(trace)})], tmp_path / "jobs", 1)
    assert trace.read_text() == "x"
    assert json.loads((tmp_path / "jobs" / "one.json").read_text())["extra"] == {"note": "done"}


def test_a_result_of_another_configuration_is_refused(tmp_path):
    run_jobs([Job("one", count, {"file": str(tmp_path / "a")})], tmp_path / "jobs", 1)
    with pytest.raises(ValueError, match="is the result of another configuration"):
        run_jobs([Job("one", count, {"file": str(tmp_path / "b")})], tmp_path / "jobs", 1)


def test_a_failed_job_is_named_after_the_others_are_done(tmp_path):
    arguments = {"file": str(tmp_path / "trace")}
    jobs = [Job("bad", count, arguments | {"fail": True}), Job("good", count, arguments)]
    with pytest.raises(RuntimeError, match=r"1 jobs failed.*bad.*no luck"):
        run_jobs(jobs, tmp_path / "jobs", 1)
    assert [file.name for file in (tmp_path / "jobs").iterdir()] == ["good.json"]


def test_every_arm_has_a_job_and_no_two_share_a_name(tmp_path):
    names = [job.name for job in make_jobs(TINY)]
    assert len(names) == len(set(names))
    assert {"paper-0", "paper-1", "ours-0", "search_cma", REFERENCE} <= set(names)
    assert {f"{arm.name}-0" for arm in ABLATIONS} <= set(names)


def test_tuning_and_evaluation_seeds_are_disjoint():
    full = ExperimentConfig()
    assert not set(full.tuning_seeds) & set(full.evaluation_seeds)
    assert full.num_evaluation_seeds >= 10 and full.num_controllers >= 5
    assert full.meta_tokens * 4 <= full.deployment_tokens


def _row(seed, bpb, reason=None):
    curve = [5.5, 4.0, 3.0]
    return {
        "seed": seed, "bpb": bpb, "train_loss": 2.0, "probe_loss": 3.0, "divergence_reason": reason,
        "steps": [0, 12, 24],
        "probe_curve": curve, "train_curve": curve[1:], "panel": {"lr": [1.0, 2.0], "weight_decay": [1.0, 0.5]},
        "corpus": "c0ffee",
    }  # fmt: skip


def _write(folder, name, bpbs, configuration=None, extra=None):
    rows = [_row(seed, value) for seed, value in enumerate(bpbs)]
    write_result(folder / f"{name}.json", name, configuration or {}, rows, extra or {})


def test_the_report_pairs_by_seed_and_counts_what_a_controller_cost(tmp_path):
    folder = tmp_path / "jobs"
    folder.mkdir()
    meta = {"num_steps": 24, "batch_tokens": 64}
    arguments = {"num_updates": 5, "meta_kwargs": meta, "deployment_kwargs": meta | {"batch_tokens": 256}}
    actions = {key: [[0.0, 0.0], [0.5, -0.5]] for key in ("low", "median", "high")}
    line = {"rollout/ep_rew_mean": 1.0, "train/entropy_per_cell": 0.9}
    _write(folder, REFERENCE, [4.0, 2.0])
    _write(folder, "baseline_hand_tuned", [2.0, 1.0])
    for seed, bpbs in enumerate(([3.0, 1.5], [2.0, 1.0])):
        _write(folder, f"paper-{seed}", bpbs, arguments, {"training": [line] * 5, "actions": actions})
    report(tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["paper"]["controllers"] == [2.25, 1.5]
    np.testing.assert_allclose(summary["paper"]["versus"]["base"], [0.375, 0.25, 0.5])
    np.testing.assert_allclose(summary["paper"]["versus"]["hand_tuned"], [-0.25, -0.5, 0.0])
    assert summary["paper"]["run_equivalents"] == 40 * 64 / 256
    text = (tmp_path / "README.md").read_text()
    assert LABELS["paper"] in text and "+37.5 %" in text
    assert {file.name for file in tmp_path.glob("*.png")} >= {"comparison.png", "figure2_dynamics.png", "entropy.png"}


def test_a_diverged_run_scores_as_a_uniform_guess():
    job = {"rows": [_row(0, 3.0), _row(1, 2.0, "loss_above_limit"), _row(2, None)]}
    np.testing.assert_array_equal(scores(job), [3.0, 8.0, 8.0])
    assert summarize({REFERENCE: {**job, "configuration": {}, "extra": {}}})[REFERENCE]["diverged"] == 1


@pytest.mark.slow
def test_the_whole_experiment_runs_resumes_and_reports(tmp_path):
    config = replace(TINY, out=tmp_path / "results", runs=tmp_path / "runs")
    jobs = make_jobs(config)
    run_jobs(jobs[:3], config.out / "jobs", 2)
    run_jobs(jobs, config.out / "jobs", 2)
    report(config.out)
    summary = json.loads((config.out / "summary.json").read_text())
    assert set(LABELS) - {"baseline_constant_warmdown"} <= set(summary)
    assert (config.out / "figure3_actions_ours.png").exists()
