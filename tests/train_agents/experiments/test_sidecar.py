"""The sidecar experiment: its jobs, its report, and a tiny whole run."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from hpenv.benchmark.results import write_result
from hpenv.control.channels import CHANNELS
from tests.train_agents.experiments.made_up_results import TINY_SIDECAR
from train_agents.experiments import report, sidecar
from train_agents.experiments.runner import run_jobs, select_jobs
from train_agents.experiments.samples import arm_of, bits_per_byte, samples
from train_agents.experiments.sidecar import ARMS, DEFAULT, late_jobs, sweep_configurations
from train_agents.experiments.sidecar import ExperimentConfig as SidecarExperiment
from train_agents.experiments.sidecar import make_jobs as make_sidecar_jobs
from train_agents.experiments.sidecar_claims import CLAIMS, COMPARISONS, Claim, bits_at, verdict
from train_agents.experiments.sidecar_report import final_values
from train_agents.experiments.sweeping import sweep


def test_every_arm_of_the_sidecar_has_a_job_and_the_long_runs_come_last():
    names = [job.name for job in make_sidecar_jobs(SidecarExperiment())]
    assert len(names) == len(set(names))
    assert names[:3] == ["detached", "foundational", "no_learning"]
    long = ["long_credit", "long_detached", "long_foundational", "long_weight_decay"]
    assert names[-5:] == ["signal", *long]
    known = {arm.name for arm in ARMS}
    assert known | {"signal"} == {arm_of(name) for name in names}
    assert {arm.group for arm in ARMS} == {*COMPARISONS, "sweeps"}
    for table in COMPARISONS.values():
        assert {*table.references, *table.before, *table.after} <= known
    assert {name for claim in CLAIMS for name in (claim.arm, claim.reference)} <= known


def test_the_default_is_among_what_a_sweep_tries_and_seeds_are_disjoint():
    for tried, count in zip(sweep_configurations(100).values(), (4, 6), strict=True):
        assert len(tried) == count
        assert DEFAULT["base_lr"] in [entry["base_lr"] for entry in tried.values()]
    full = SidecarExperiment()
    piloted = {2000, 2001, 2002}
    assert not set(full.evaluation_seeds) & (set(full.tuning_seeds) | piloted)
    assert not set(full.reward_seeds) & (
        set(full.tuning_seeds) | set(full.evaluation_seeds) | piloted
    )
    ran = {
        job.name: job.arguments["config"]
        for job in make_sidecar_jobs(full)
        if "config" in job.arguments
    }
    for name, config in ran.items():
        expected = full.reward_seeds if name.startswith("reward_") else full.evaluation_seeds
        if not name.startswith("reward_population"):
            assert config.row_seeds == expected
    groups = [ran[name].row_seeds for name in ran if name.startswith("reward_population")]
    assert groups == [[seed] * 5 for seed in full.reward_seeds]


def test_a_sweep_chooses_by_the_probe_alone_and_says_what_it_spent():
    arguments = TINY_SIDECAR.env_arguments(
        preset="nano", channels="layer_lr", observation="progress", reward={"progress": 1.0},
        num_registers=0,
        interval=12,
    )  # fmt: skip
    configurations = {"still": {"base_lr": 1e-9}, "moving": {"base_lr": 1e-2}}
    rows, extra = sweep(
        "TrainLoop-Cell-v0", configurations, arguments, [5, 6], [8], heldout_curve=True
    )
    tried = {entry["configuration"]: entry for entry in extra["table"]}
    assert (
        extra["chosen"] == "moving" and tried["moving"]["probe_loss"] < tried["still"]["probe_loss"]
    )
    assert extra["runs_spent"] == 4 and [len(entry["bpb"]) for entry in tried.values()] == [2, 2]
    assert [row["seed"] for row in rows] == [8] and rows[0]["bpb_curve"][-1] == rows[0]["bpb"]
    # More batches tell the probe loss better, and change nothing of the runs.
    more, _ = sweep(
        "TrainLoop-Cell-v0", configurations, arguments | {"num_probe_batches": 9}, [5], [8]
    )
    assert more[0]["bpb"] == rows[0]["bpb"] and more[0]["probe_loss"] != rows[0]["probe_loss"]
    extra["table"][0]["bpb"][0] = None
    table = report.tried_table({"extra": extra})
    assert "diverged" in table and f"{extra['chosen']} (chosen)" in table


def test_a_binding_cap_and_a_wrong_neutral_start_where_they_should():
    jobs = {job.name: job.arguments["config"].sidecar.initial_mean
            for job in make_sidecar_jobs(TINY_SIDECAR)
            if "config" in job.arguments}  # fmt: skip
    cap, skip = (CHANNELS[name].values for name in ("state_norm_cap", "grad_skip"))
    assert float(cap(np.array(jobs["cap_binding"]["state_norm_cap"]))) == pytest.approx(1.5)
    assert float(skip(np.array(jobs["wrong_neutral"]["grad_skip"]))) == pytest.approx(0.6)
    assert not jobs["cap_dormant"] and not jobs["foundational"]
    sidecars = {job.name: job.arguments["config"].sidecar for job in make_sidecar_jobs(TINY_SIDECAR)
                if "config" in job.arguments}  # fmt: skip
    # What is left between the two is where the caps start.
    assert replace(sidecars["cap_binding"], initial_mean={}) == sidecars["cap_dormant"]
    assert (
        sidecars["cap_dormant"].initial_std == {"clip": 0.01} and sidecars["cap_dormant"].attached
    )


def test_claims_are_judged_by_their_intervals():
    better = Claim("", "a", "b", "better", 0.42)
    assert verdict([0.4, 0.3, 0.5], better) == "yes"
    assert verdict([0.1, 0.05, 0.2], better) == "direction, not size"
    assert verdict([0.6, 0.5, 0.7], better) == "yes, more"
    assert verdict([0.1, -0.1, 0.3], better) == "refuted: no difference of that size"
    assert verdict([0.1, -0.1, 0.5], better) == "undecided"
    assert verdict([-0.2, -0.3, -0.1], better) == "no, the reverse"
    assert verdict([0.1], better) == verdict([], better) == "not measured"
    worse = Claim("", "a", "b", "worse", -0.14)
    assert (
        verdict([-0.15, -0.2, -0.1], worse) == "yes"
        and verdict([0.2, 0.1, 0.3], worse) == "no, the reverse"
    )
    neither = Claim("", "a", "b", "not better")
    assert (
        verdict([0.1, -0.1, 0.3], neither) == "undecided"
    )  # as much as 30 % better, for all that is known
    assert verdict([0.001, -0.003, 0.005], neither) == "yes, not by 1 %"
    assert verdict([-0.2, -0.3, -0.1], neither) == "yes, worse"
    assert verdict([0.2, 0.1, 0.3], neither) == "no, better"


def _sidecar_row(seed, bpb, reason=None):
    curve = [8.0, bpb + 1.0, bpb]
    return {
        "seed": seed,
        "bpb": bpb,
        "bpb_curve": curve,
        "steps": [0, 1000, 3000],
        "divergence_reason": reason,
    }


def test_a_sidecars_scores_are_means_over_the_rows_of_a_seed():
    job = {
        "rows": [
            _sidecar_row(1, 2.0),
            _sidecar_row(1, 4.0),
            _sidecar_row(2, 3.0, "loss_above_limit"),
        ]
    }

    def found(numbers):
        sample = samples([job], numbers)["bpb"]
        return dict(zip(sample.seeds, sample.values[0].tolist(), strict=True))

    at_900 = partial(bits_at, step=900)
    assert found(bits_per_byte) == {1: 3.0, 2: 8.0}
    assert found(at_900) == {1: 4.0, 2: 4.0}  # it diverged later
    job["rows"][2]["steps"] = [0, 850, 850]
    assert found(at_900) == {1: 4.0, 2: 8.0}


def test_final_values_are_those_of_the_channel():
    extra = {
        "names": ["lr/layer.0", "lr/layer.1", "dropout/layer.0"],
        "final_mean": [[0.5, -0.5, 0.0]],
    }
    found = final_values(extra, "lr")
    assert found == pytest.approx({"mean": 1.0, "low": 0.1, "high": 10.0})
    assert final_values(extra, "beta1") is None


def _write_sidecar(folder, name, bpbs):
    extra = {
        "agent_ms": 2.0,
        "env_ms": 80.0,
        "advantage_rms": 0.0625,
        "evidence": 0.125,
        "names": ["lr/layer.0"],
        "final_mean": [[0.0]] * len(bpbs),
    }
    extra["trace"] = {"steps": [0, 50], "mean": [[[0.0]] * len(bpbs)] * 2, "sampled": []}
    rows = [_sidecar_row(seed, value) for seed, value in enumerate(bpbs)]
    write_result(folder / f"{name}.json", name, {}, rows, extra)


def test_the_sidecars_report_is_made_of_whatever_is_there(tmp_path):
    folder = tmp_path / "jobs"
    folder.mkdir()
    sidecar.REPORT.write(tmp_path)
    assert not (tmp_path / "README.md").exists()
    _write_sidecar(folder, "detached", [3.0, 3.2])
    sidecar.REPORT.write(tmp_path)
    assert "not measured" in (tmp_path / "README.md").read_text()
    _write_sidecar(folder, "foundational", [2.0, 2.2])
    _write_sidecar(folder, "layer_lr", [3.1, 3.1])
    sidecar.REPORT.write(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "+50.00 % [+50.00, +50.00]" in text  # a bit less is half the perplexity
    assert "| 80.0 | 2.0 | 0.0625 | 0.125 |" in text
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["foundational"]["versus"]["detached"]["bpb"][0] == pytest.approx(
        (1 / 3 + 1 / 3.2) / 2
    )
    pictures = {file.name for file in tmp_path.glob("*.png")}
    assert pictures == {"figure3_foundational.png", "figure5_layer_lr.png"}
    assert all(name in text for name in pictures)


@pytest.mark.slow
def test_the_sidecars_experiments_run_resume_and_report(tmp_path):
    config = replace(TINY_SIDECAR, out=tmp_path / "results", runs=tmp_path / "runs")
    jobs = make_sidecar_jobs(config)
    assert late_jobs(config) == []
    run_jobs(select_jobs(jobs, ("detached",)), config.out / "jobs", 1)
    run_jobs(jobs, config.out / "jobs", 2)
    run_jobs(late_jobs(config), config.out / "jobs", 1)
    sidecar.REPORT.write(config.out)
    summary = json.loads((config.out / "summary.json").read_text())
    assert set(summary) == {arm.name for arm in ARMS}
    forensic = json.loads((config.out / "jobs" / "forensics.json").read_text())
    assert len(forensic["rows"]) == 2 and len(forensic["rows"][0]["tensors"]) == 77
    assert len(list(config.out.glob("*.png"))) == 10
