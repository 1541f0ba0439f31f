"""The AdaptiveRL experiment: its jobs, the law on planted losses, its report, a tiny whole run."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from hpenv.policies.control_law import AdaptiveRL
from train_agents.experiments import adaptive, adaptive_report
from train_agents.experiments.measures import gains, planted, shifted

ROOT = Path(__file__).parents[3]
TINY = [
    "--num-steps", "40", "--num-evaluation-seeds", "2", "--num-tuning-seeds", "1",
    "--batch-tokens", "32", "--sequence-length", "16", "--eval-tokens", "256",
    "--data", "synthetic", "--num-drift-runs", "2", "--num-drift-decisions", "6",
    "--num-stability-seeds", "2", "--num-stability-steps", "20",
    "--num-workers", "1", "--only", "sweep_constant",
]  # fmt: skip


def test_every_arm_has_a_job_and_poor_starts_are_of_the_tuned_rate():
    config = adaptive.ExperimentConfig()
    jobs = {job.name: job for job in adaptive.make_jobs(config)}
    assert list(jobs) == [*(arm.name for arm in adaptive.ARMS), "gains", "drift"]
    groups = {*adaptive_report.GROUPS, *adaptive_report.OTHERS}
    assert {arm.group for arm in adaptive.ARMS} == groups
    for name, factor in (("low", 1 / 30), ("high", 10.0)):
        for kind in ("constant", "published", "own"):
            arguments = jobs[f"{name}_{kind}"].arguments["env_arguments"]
            assert arguments["base_lr"] == adaptive.TUNED_LR * factor
    assert not set(config.evaluation_seeds) & set(config.tuning_seeds)


@pytest.mark.parametrize("arm", [arm for arm in adaptive.ARMS if arm.law is not None])
def test_laws_of_the_arms_are_laws(arm):
    law = AdaptiveRL(law=dict(arm.gains) or None, **arm.law)
    assert set(arm.gains) <= set(law.arguments()["law"])


def test_a_stationary_loss_lowers_the_published_rate_as_the_formula_says():
    noise = np.random.default_rng(1).normal(3.0, 0.15, (1000, 8))
    controller = AdaptiveRL(law={"damping": 1.0, "rate_caps": (0.5, 2.0)})
    values, seen = planted.play(controller, noise)
    assert values["lr"].shape == (100, 8)
    law = controller.arguments()["law"]
    changes = (
        law["rate_reward"] * seen["reward_trend"]
        - law["rate_loss"] * np.maximum(seen["loss_trend"], 0)
    )  # fmt: skip
    logs = np.concatenate([np.zeros((1, 8)), np.log(values["lr"])])
    inside = values["lr"].min(0) > 0.011  # the low bound was not met
    assert inside.any()
    assert np.diff(logs, axis=0)[:, inside] == pytest.approx(changes[:, inside], abs=1e-5)
    assert changes.mean() < -0.01


def test_dials_turn_as_section_7_says():
    steps = np.arange(1000.0)
    noise = np.random.default_rng(0).normal(0.0, planted.NOISE, (1000, 8))
    found = {}
    for stream in ("improvement", "regression", "shift"):
        mean = planted.STREAMS[stream](steps, 500.0)
        values, _ = planted.play(AdaptiveRL(law={"damping": 1.0}), mean[:, None] + noise)
        found[stream] = {name: planted._around_event(each) for name, each in values.items()}

    assert found["improvement"]["lr"]["before"] > 1
    regression, shift = found["regression"], found["shift"]
    assert regression["lr"]["after"] < regression["lr"]["before"]
    assert regression["momentum"]["after"] < regression["momentum"]["before"]
    assert shift["lr"]["lowest"] < min(shift["lr"]["before"], shift["lr"]["after"])


def test_a_tiny_run_writes_every_part_of_the_page_and_goes_on(tmp_path, capsys):
    arguments = [*TINY, "adaptive", "loss_only", "--out", str(tmp_path / "out")]
    adaptive.main(arguments)
    assert "| AdaptiveRL, replacing the schedule |" in capsys.readouterr().out
    adaptive.main([*TINY, "adaptive", "loss_only", "low_own", "stable_high_own", "gains", "drift",
                   *arguments[-2:]])  # fmt: skip
    assert "7 to do" not in capsys.readouterr().out
    page = (tmp_path / "out/README.md").read_text()
    for words in ("Ablations", "30 times too low, our gains", "without a model", "stationary",
                  "k_r 0.05, k_l 0.025", "high start, own gains"):  # fmt: skip
        assert words in page, words
    assert "{{" not in page
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert {"sweep_constant", "adaptive", "loss_only", "low_own"} <= set(summary)
    assert summary["adaptive"]["seeds"] == 2
    pictures = {file.stem for file in (tmp_path / "out").glob("*.png")}
    assert pictures == set(adaptive_report.FIGURES)


def test_a_changed_text_is_read_from_the_middle_of_a_run_on():
    arguments = {
        "num_steps": 8, "interval": 1, "batch_tokens": 32, "sequence_length": 16,
        "eval_tokens": 256, "data": "synthetic:1", "optimizer": "adamw", "base_lr": 0.01,
    }  # fmt: skip
    run = partial(shifted.run_shift, adaptive.ENV, arguments, seeds=[5, 6], law=None, gains={})
    changed, same = run("synthetic:2")[0], run("synthetic:1")[0]
    for row, other in zip(changed, same, strict=True):
        assert row["train_curve"][:4] == other["train_curve"][:4]
        assert row["train_curve"][4] != other["train_curve"][4]
        assert row["bpb"] != other["bpb"]
        assert row["steps"] == list(range(9))


def test_ends_of_a_dial_around_the_shift_by_hand():
    rows = [{"panel": {"lr": [1.0] * 10 + [0.5, 2.0] + [3.0] * 8}}]
    found = shifted.around_shift(rows, "lr")
    assert found == {"before": 1.0, "lowest": 0.5, "highest": 2.0, "end": 3.0}


def test_rates_and_gains_of_the_arms_are_those_that_the_committed_results_chose():
    folder = ROOT / "results/adaptive/jobs"
    chosen = {
        name: json.loads((folder / f"{name}.json").read_text())["extra"]["chosen"]
        for name in ("sweep_constant", "gains")
    }
    multiple = adaptive.TUNED_LR / adaptive.DEFAULT_LR
    assert chosen["sweep_constant"] == f"x{multiple:g}"
    assert chosen["gains"] == gains.name_of(*adaptive.OWN_GAINS)


def test_area_and_time_by_hand():
    row = {
        "bpb": 3.0, "divergence_reason": None, "steps": [0, 10, 20], "probe_curve": [5.0, 3.0, 1.0],
    }  # fmt: skip
    found = adaptive_report._numbers(3.0, row)
    assert found == {"bpb": 3.0, "area": 3.0, "time": 10.0}
    assert adaptive_report._numbers(0.5, row)["time"] == 20.0
