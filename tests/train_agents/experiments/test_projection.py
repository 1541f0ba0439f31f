"""Arms as data, strengths that are chosen, and a tiny whole run."""

import json
from dataclasses import replace

import pytest

from hpenv.posttraining.grading.loopholes import TRAINING_MODES
from hpenv.posttraining.sandbox import Sandbox, SandboxUnavailable
from tests.train_agents.experiments.short_arms import ARM, GRPO, TRUE
from train_agents.experiments.contrasts import grpo_config
from train_agents.experiments.projection import EXPERIMENT, ExperimentConfig, make_jobs
from train_agents.experiments.projection_arms import (
    ARMS,
    DEMO_ARMS,
    DERIVED,
    GROUPS,
    MAIN,
    PANEL,
    VANILLA,
)
from train_agents.experiments.projection_claims import QUESTIONS, arm_scores
from train_agents.experiments.projection_report import REPORT
from train_agents.experiments.projection_run import best_constant, controller

# arms


def test_every_arm_has_a_job_and_is_a_valid_run():
    full = ExperimentConfig()
    jobs = {job.name: job for job in make_jobs(full)}
    assert len(jobs) == len(make_jobs(full))
    assert set(jobs) == {arm.name for arm in ARMS} | {"direction", "constant", "controller-0"}
    for arm in ARMS:
        arguments = jobs[arm.name].arguments
        longer = 2 if arm.name.endswith("_long") else 1
        assert (arguments["num_updates"], arguments["report_interval"]) == (
            300 * longer,
            25 * longer,
        )
        grpo_config(arguments["grpo"])
        assert (
            arguments["seeds"] == list(range(1000, 1005 if arm.is_first else 1003))
            and arm.group in GROUPS
        )
        assert set(arguments["positions"]) <= {name for name, _ in PANEL}
    assert not set(full.evaluation_seeds) & set(full.tuning_seeds)
    demo = {job.name for job in make_jobs(EXPERIMENT.complete(ExperimentConfig(demo=True)))}
    assert demo == {*DEMO_ARMS, "direction", "constant", "controller-0"}
    known = {*ARM, *(arm.name for arm in DERIVED), "vanilla_end"}
    assert {name for q in QUESTIONS for name in (q.arm, q.reference)} <= known


def test_arms_differ_from_the_main_one_in_what_their_names_say():
    main = ARM[MAIN]
    for name, changes in {
        "random": {"direction": "random"}, "two_sided": {"rule": "two_sided"},
        "drift": {"rule": "drift"},
        "reverse": {"rule": "reverse"}, "shuffled": {"direction": "shuffled"},
        "clean": {"direction": "clean"},
        "update": {"target": "update"}, TRUE: {"target": "update", "rule": "two_sided"},
    }.items():  # fmt: skip
        assert (ARM[name].grpo, ARM[name].values) == (changes, main.values)
    assert (ARM["route"].grpo, ARM["route"].values) == (
        {"route": True},
        {"projection_strength": 1.0},
    )
    assert (
        main.values == {"projection_strength": 1.0, "magnitude_preservation": 1.0} and not main.grpo
    )
    assert ARM["plain"].values == {"projection_strength": 1.0} and not ARM[VANILLA].values
    for mode in TRAINING_MODES:
        arm = ARM[f"without_{mode}"]
        assert {*arm.grpo["known_modes"], mode} == set(TRAINING_MODES) and arm.unknown_modes == (
            mode,
        )
    assert ARM["weak"].unknown_modes == ("stdout", "file")
    assert len([arm for arm in ARMS if arm.name.startswith("rebound_")]) == 8


# the whole


@pytest.fixture
def sandboxed():
    """Skips where programs cannot be executed."""
    try:
        Sandbox().close()
    except SandboxUnavailable as error:
        pytest.skip(str(error))


def test_strengths_are_chosen_by_pay_and_controllers_deployed(tmp_path, folder, sandboxed):
    grpo, cache = GRPO | {"student": folder}, str(tmp_path / "verdicts.sqlite")
    rows, extra = best_constant(
        grpo, [2000], [1000, 1001], 2, 1, str(tmp_path / "c"), cache, strengths=(0.0, 1.0)
    )
    assert [entry["strength"] for entry in extra["table"]] == [0.0, 1.0]
    assert extra["chosen"] == max(extra["table"], key=lambda entry: entry["pay"])["strength"]
    assert extra["updates_spent"] == 4 and [row["seed"] for row in rows] == [1000, 1001]
    arguments = grpo | {"num_steps": 4, "interval": 2, "cache": cache}
    learned, spent = controller(
        arguments, 2, 1, 2, 0, [1000, 1001], 2, str(tmp_path / "controller")
    )
    assert spent["updates_spent"] == 4 and len(spent["training"]) == 1
    assert [row["steps"] for row in learned] == [[0, 2, 4]] * 2 and len(
        learned[0]["strengths"]
    ) == 2
    # Before the first update, both are the same student asked for the same programs.
    assert learned[0]["reports"]["pass"][0] == rows[0]["reports"]["pass"][0]
    both = arm_scores({"constant": {"rows": rows}, "controller-0": {"rows": learned}})
    assert set(both["controller-0"]) < set(both["constant"])


@pytest.mark.slow
def test_the_whole_experiment_runs_resumes_and_reports(tmp_path, roomy):
    from train_agents.experiments.runner import run_jobs

    config = ExperimentConfig(
        out=tmp_path / "results", runs=tmp_path / "runs", student=roomy, num_updates=4,
        report_interval=2,
        num_evaluation_seeds=2, num_first_seeds=2, num_prompts=2, num_samples=3, num_problems=8,
        num_probe_problems=2,
        num_evaluation_problems=4, num_tuning_seeds=1, decision_interval=2, meta_steps=2,
        num_meta_updates=1,
        num_meta_episodes=2,
    )  # fmt: skip
    config.runs.mkdir()
    jobs = make_jobs(replace(config, strengths=(1.0,)))
    run_jobs(jobs[:3], config.out / "jobs", 1)
    run_jobs(jobs, config.out / "jobs", 2)
    REPORT.write(config.out)
    summary = json.loads((config.out / "summary.json").read_text())
    assert {arm.name for arm in ARMS} | {
        "constant",
        "controller-0",
        "route_on",
        "vanilla_erased",
    } <= set(summary)
    assert len(list(config.out.glob("*.png"))) == 8
