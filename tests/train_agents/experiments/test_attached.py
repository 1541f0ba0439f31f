"""The experiment of a law on GPT-2: its jobs and its report, without a training."""

import json
from dataclasses import replace

import pytest

from hpenv.benchmark.results import write_result
from train_agents.experiments import attached, attached_report


def rows(offset):
    return [
        {
            "seed": seed,
            "bpb": 3.0 + offset + 0.01 * seed,
            "divergence_reason": None,
            "steps": [0, 10],
            "probe_curve": [5.5, 2.0 + offset],
        }
        for seed in (0, 1, 2)
    ]


@pytest.fixture
def config(tmp_path):
    """Returns a configuration whose smallest size has a tuned rate."""
    config = replace(attached.ExperimentConfig(), out=tmp_path / "out")
    (config.out / "jobs").mkdir(parents=True)
    job = attached.make_jobs(config)[0]
    table = [{"configuration": "0.03", "probe_loss": 2.0, "bpb": [3.0]}]
    extra = {"chosen": "0.03", "rate": 0.03, "table": table, "runs_spent": 10}
    write_result(job.file(config.out / "jobs"), job.name, job.configuration, rows(0.0), extra)
    return config


def test_starts_are_multiples_of_the_rate_that_was_found(config):
    jobs = {job.name: job.arguments for job in attached.late_jobs(config)}
    assert set(jobs) == {arm.name for arm in attached.ARMS if arm.size == "small"} - {
        "small_tuned_off"
    }
    for start, factor in (("low", 0.1), ("tuned", 1.0), ("high", 10.0)):
        assert jobs[f"small_{start}_ratio_law"]["base_lr"] == pytest.approx(0.03 * factor)
    assert not {"kind", "arguments"} & set(jobs["small_low_off"])
    few = attached.late_jobs(replace(config, only=("4x", "small_high")))
    assert {job.name.split("_")[1] for job in few} == {"high"}
    assert attached.late_jobs(replace(config, only=("16x_tuned_off",))) == []


def test_the_targets_are_those_of_the_train_instances():
    given = attached.law_arguments("ratio_law")
    file = attached.FOUND / "pretraining-v1/ratio_law.json"
    point = json.loads(file.read_text())["point"]
    assert given["target"] == {
        name: point[f"ratio/{name}"] for name in ("embedding", "matrix", "unembedding")
    }
    assert 0 < given["warmdown"] <= 1


def test_a_page_compares_with_the_tuned_schedule_and_with_the_same_start(config):
    for job in attached.late_jobs(config):
        offset = 0.5 if "low_off" in job.name else 0.1
        file = job.file(config.out / "jobs")
        write_result(file, job.name, job.configuration, rows(offset), {})
    attached.REPORT.write(config.out)
    summary = json.loads((config.out / "summary.json").read_text())
    law = summary["small_low_ratio_law"]
    assert law["below_tuned"][0] == pytest.approx(-0.1 / 3.01, rel=1e-3)
    assert law["below_off"][0] == pytest.approx(0.4 / 3.51, rel=1e-3)
    page = (config.out / "README.md").read_text()
    assert "a tenth of the tuned rate, ratio law" in page and "Width 128" not in page
    assert (config.out / "losses_small.png").is_file()
    assert set(attached_report.KINDS) == {arm.kind for arm in attached.ARMS}
