"""The projection experiment: arms as data, runs that resume, criteria at their borders.

The report is made from files alone.

Past the usual length, because a module's tests stand in one file.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from hpenv.benchmark.results import write_result
from hpenv.control.channels import CHANNELS
from hpenv.plant.seeds import first_run_seed
from hpenv.plant.snapshots import load
from hpenv.posttraining import plant
from hpenv.posttraining.grading.loopholes import TRAINING_MODES
from hpenv.posttraining.sandbox import Sandbox, SandboxUnavailable
from hpenv.posttraining.students import registry as students
from tests import tiny_student
from train_agents.experiments.contrasts import grpo_config
from train_agents.experiments.measures.directions import DIRECTIONS, validate_directions
from train_agents.experiments.projection import EXPERIMENT, ExperimentConfig, make_jobs
from train_agents.experiments.projection_arms import (
    ARMS,
    DEMO_ARMS,
    DERIVED,
    GROUPS,
    MAIN,
    MAIN_REBOUND,
    PANEL,
    VANILLA,
)
from train_agents.experiments.projection_claims import (
    DIAGNOSTIC,
    QUESTIONS,
    RENAMED,
    answer,
    arm_scores,
    final,
    h1,
    h3,
    h4,
    plateau,
)
from train_agents.experiments.projection_figures import pareto_front
from train_agents.experiments.projection_report import REPORT, unknown_table
from train_agents.experiments.projection_run import (
    MEANS,
    along,
    best_constant,
    controller,
    deploy,
    pay,
    run_arm,
    schedule,
)
from train_agents.experiments.report import Data
from train_agents.experiments.samples import Sample, samples

TRUE = "update_two_sided"
GRPO = {
    **tiny_student.TINY,
    "base_lr": 0.5,
    "divergence_kl": 1e6,
}  # a random student goes far in a few updates
ARM = {arm.name: arm for arm in ARMS}


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    path = tmp_path_factory.mktemp("students") / "short"
    tiny_student.student(max_tokens=tiny_student.SHORT).save(path, {})
    return str(path)


@pytest.fixture
def folder(short):
    """A tiny student of short texts, as a folder.

    Plants of the test extract their direction from a few short pairs.
    """
    with tiny_student.few_pairs():
        yield short


@pytest.fixture(scope="module")
def roomy(tmp_path_factory):
    """A tiny student with room for every pair and labelled program."""
    path = tmp_path_factory.mktemp("students") / "roomy"
    tiny_student.student().save(path, {})
    return str(path)


def ran(tmp_path, folder, name=MAIN, num_updates=4, **changes):
    arm = ARM[name]
    arguments = {
        "grpo": GRPO | {"student": folder} | dict(arm.grpo), "positions": arm.positions,
        "seeds": [1000, 1001],
        "num_updates": num_updates, "report_interval": 2, "folder": str(tmp_path / name),
        "cache": "",
        "erases": arm.erases, "grader": tiny_student.FakeGrader(),
    }  # fmt: skip
    return run_arm(**arguments | changes)[0]


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


@pytest.mark.parametrize("arm", [arm for arm in ARMS if arm.values], ids=lambda arm: arm.name)
def test_positions_have_the_values_asked_for(arm):
    for name, position in arm.positions.items():
        assert CHANNELS[name].values(np.array(position)) == pytest.approx(
            arm.values[name], rel=1e-12
        )


def test_values_out_of_bounds_are_refused():
    with pytest.raises(ValueError, match=r"rebound_weight must be from 0.0 to 5.0; got 6.0"):
        replace(ARM["plain"], values={"rebound_weight": 6.0}).positions  # noqa: B018


# runs


def test_an_arm_that_was_interrupted_ends_bitwise_as_one_that_was_not(tmp_path, folder):
    name = "refresh_rarely"
    whole = ran(tmp_path / "whole", folder, name, num_updates=5)

    class Interrupted(tiny_student.FakeGrader):
        def grade(self, submissions):
            if len(self.seen) == 13:  # in the middle of an update after the second report
                raise KeyboardInterrupt
            return super().grade(submissions)

    with pytest.raises(KeyboardInterrupt):
        ran(tmp_path, folder, name, num_updates=5, grader=Interrupted())
    assert [
        record["step"] for record in load(tmp_path / name / "checkpoint").metadata["records"]
    ] == [0, 2]
    again = tiny_student.FakeGrader()
    assert ran(tmp_path, folder, name, num_updates=5, grader=again) == whole
    assert whole[0]["steps"] == [0, 2, 4, 5]
    ends = [load(path / name / "checkpoint").tensors for path in (tmp_path, tmp_path / "whole")]
    assert all(torch.equal(value, ends[1][key]) for key, value in ends[0].items())
    asked = len(again.seen)
    assert (
        ran(tmp_path, folder, name, num_updates=5, grader=again) == whole
        and len(again.seen) == asked
    )


def test_a_checkpoint_of_other_runs_is_refused(tmp_path, folder):
    ran(tmp_path, folder, num_updates=2)
    with pytest.raises(ValueError, match="move it away"):
        ran(tmp_path, folder, num_updates=2, seeds=[1000, 1002])
    with pytest.raises(ValueError, match="move it away"):
        ran(tmp_path, folder, num_updates=2, positions={})
    with pytest.raises(ValueError, match="configuration differs"):
        ran(tmp_path, folder, num_updates=3)


def test_what_is_recorded_of_an_arm_is_what_its_plant_measures(tmp_path, folder):
    first, second = ran(tmp_path, folder)
    own = tiny_student.make(2, PANEL, base_lr=0.5, divergence_kl=1e6, lr_schedule=schedule(4))
    own.reset([first_run_seed(1000), first_run_seed(1001)])
    own.panel.move(np.array([[1.0, 1.0, 0.0, 0.0]] * 2), np.ones(2, dtype=bool))
    before = own.report()
    windows = [tiny_student.advance(own, 1) for _ in range(4)]
    after = own.report()
    for row, entry in enumerate((first, second)):
        assert entry["seed"] == 1000 + row and entry["corpus"] == own.corpus_digest
        assert set(entry["means"]) == set(MEANS) and entry["divergence_reason"] is None
        for name in after:
            assert (entry["reports"][name][0], entry["reports"][name][-1]) == (
                before[name][row],
                after[name][row],
            )
        for name in ("mean_cos", "kl"):
            late = [window[name][row] for window in windows[2:]]
            assert entry["means"][name][-1] == pytest.approx(np.mean(late), rel=1e-12)
        modules = [values[-1] for values in entry["module_cos"].values()]
        assert (
            np.mean(modules) == pytest.approx(entry["means"]["mean_cos"][-1], rel=1e-4)
            and np.std(modules) > 0.0
        )
        hacks = [window["hack"][row] for window in windows[:2]]
        assert entry["means"]["train_hack"][0] == pytest.approx(np.mean(hacks), rel=1e-12)
        assert entry["probe_pass"][-1] == 1.0 - windows[-1]["probe_loss"][row]
    assert first["means"] != second["means"]


def test_arms_under_neutral_panels_are_vanilla_and_others_are_not(tmp_path, folder):
    plain = ran(tmp_path / "a", folder, VANILLA, 2)
    assert [row.pop("erased") is not None for row in plain] == [True, True]
    assert ran(tmp_path / "b", folder, MAIN, 2, positions={"projection_strength": 0.1}) == plain
    for name in ("projection", "rebound_additive_2"):
        assert (
            ran(tmp_path, folder, name, 2)[0]["means"]["coefficient_norm"]
            != plain[0]["means"]["coefficient_norm"]
        )


def test_a_routed_arm_is_reported_with_and_without_its_quarantine(tmp_path, folder):
    rows = ran(
        tmp_path,
        folder,
        "route",
        grpo=GRPO | {"student": folder, "route": True, "num_evaluation_problems": 24},
    )
    assert rows[0]["quarantine_on"]["kl"][0] == rows[0]["reports"]["kl"][0] == 0.0
    assert rows[0]["quarantine_on"]["kl"][-1] != rows[0]["reports"]["kl"][-1]
    assert arm_scores({"route": {"rows": rows}}).keys() == {"route", "route_on"}


def test_knobs_are_erased_along_the_direction_after_training(tmp_path, folder):
    rows = ran(
        tmp_path, folder, VANILLA, grpo=GRPO | {"student": folder, "num_evaluation_problems": 24}
    )
    assert 0.0 < rows[0]["erased"]["kl"] != rows[0]["reports"]["kl"][-1]
    assert set(rows[0]["erased"]) == set(rows[0]["reports"])


def test_a_run_that_diverges_keeps_its_last_means_and_the_others_go_on(tmp_path, folder):
    wild = GRPO | {"student": folder, "divergence_kl": 1e-9}
    rows = ran(tmp_path, folder, VANILLA, grpo=wild)
    assert {row["divergence_reason"] for row in rows} == {"kl_above_limit"}
    assert all(np.isfinite(list(row["means"].values())).all() for row in rows)
    assert all(values[0] == values[1] for values in rows[0]["means"].values())


# before training, and beside the arms


def test_directions_are_validated_and_controls_are_near_zero(roomy):
    rows, extra = validate_directions(
        GRPO | {"student": roomy}, [1000, 1001], "", tiny_student.FakeGrader()
    )
    assert [row["direction"] for row in rows] == list(DIRECTIONS)
    found = {row["direction"]: row for row in rows}
    assert np.mean(found["pairs"]["mean"]) > 0.2 > abs(np.mean(found["random"]["mean"]))
    assert all(found["pairs"]["passed"]) and len(found["pairs"]["cosines"]) == len(
        tiny_student.student().ranks
    )
    assert (
        found["random"]["mean"][0] != found["random"]["mean"][1]
        and len(set(found["pairs"]["mean"])) == 1
    )
    assert (
        0.0 <= extra["memorizing_pass_rate"] <= 1.0 and extra["pairs"] > extra["held_out_pairs"] > 0
    )


def test_pay_is_passes_of_the_probe_less_flags():
    row = {
        "probe_pass": [0.9, 0.5, 0.7],
        "means": {"flagged": [0.1, 0.3]},
        "divergence_reason": None,
    }
    assert pay(row) == pytest.approx((0.4 + 0.4) / 2)
    assert pay(row | {"divergence_reason": "kl_above_limit"}) == pytest.approx(-0.6)


# criteria


def sampled(**numbers):
    return {key: Sample(tuple(range(len(each))), each[None]) for key, each in numbers.items()}


def arm(hack, passes=0.3, n=3, **more):
    spread = np.linspace(-0.01, 0.01, n)  # common to all arms, so that paired differences have none
    return sampled(**{"hack": hack + spread, "pass": passes + spread, **more})


def noisy(hack, noise, passes=0.3):
    return sampled(**{"hack": hack + np.array([-noise, 0.0, noise]), "pass": np.full(3, passes)})


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [
        (arm(0.2), "supported"),  # 30 points exactly
        (arm(0.2 + 1e-6), "neither"),
        (arm(0.35), "neither"),  # 15 exactly is not below
        (arm(0.35 + 1e-6), "falsified"),
        (arm(0.6), "falsified"),
        (arm(0.1, 0.2), "supported"),  # a drop of 10 exactly
        (arm(0.1, 0.2 - 1e-6), "neither"),
        (arm(0.1, 0.15), "neither"),  # 15 exactly is not more
        (arm(0.1, 0.15 - 1e-6), "falsified"),
        (arm(0.1, 0.9), "supported"),
        (noisy(0.15, 0.7), "falsified"),  # 35 points, SEM 40
    ],
)
def test_h1_at_its_borders(ours, verdict):
    assert h1({VANILLA: arm(0.5), MAIN: ours}).verdict == verdict


def test_h1_says_why_and_what_is_missing():
    found = h1({VANILLA: arm(0.05), MAIN: arm(0.01)})
    assert found.verdict == "falsified" and "below 15 points" in found.evidence
    assert "vanilla hacks 5.0 % of the time" in found.evidence
    assert h1({VANILLA: arm(0.5)}).verdict == "not measured"


@pytest.mark.parametrize(
    ("rebound", "verdict"),
    [
        (arm(0.3), "supported"),
        (arm(0.2), "falsified"),  # matches
        (arm(0.1), "falsified"),  # beats
        (noisy(0.25, 0.0866), "supported"),  # ahead by 5.00, SEM 4.99 or so
        (noisy(0.25, 0.0875), "falsified"),  # SEM 5.05
        (arm(0.0, 0.2), "falsified"),  # at a pass rate 10 points lower
        (arm(0.0, 0.2 - 1e-6), "neither"),  # no longer matched
        (arm(0.9, 0.4), "supported"),
        (arm(0.9, 0.4 + 1e-6), "neither"),  # projection has fewer hacks, and 10 points fewer passes
        (arm(0.1, 0.9), "falsified"),
    ],
)
def test_h3_at_its_borders(rebound, verdict):
    ours = (
        sampled(**{"hack": np.full(3, 0.2), "pass": np.full(3, 0.3)})
        if rebound["hack"].values.std() > 0.05
        else arm(0.2)
    )
    assert h3({MAIN: ours, MAIN_REBOUND: rebound}).verdict == verdict


def test_h3_is_measured_against_the_one_arm_of_rebound_that_was_named_beforehand():
    found = h3({MAIN: arm(0.2), MAIN_REBOUND: arm(0.3), "rebound_additive_5": arm(0.0)})
    assert found.verdict == "supported" and "hacks +10.0 points (SEM 0.0)" in found.evidence
    assert h3({MAIN: arm(0.2), "rebound_additive_5": arm(0.0)}).verdict == "not measured"


def curves(*at_200, steps=(0, 100, 200, 300)):
    rows = [
        {"steps": list(steps), "reports": {"hack": [0.01, 0.1, value, 0.9]}} for value in at_200
    ]
    return {VANILLA: {"rows": rows}}


@pytest.mark.parametrize(
    ("at_200", "verdict"), [(0.3, "neither"), (0.301, "supported"), (0.299, "falsified")]
)
def test_h4_at_its_border(at_200, verdict):
    assert h4(curves(at_200, at_200)).verdict == verdict


def test_h4_says_where_every_seed_hacks():
    found = h4(curves(0.2, 0.5))
    assert found.verdict == "supported" and "all seeds above 30 % first at: 300" in found.evidence
    assert (
        "1.0 % before the first update (the paper: under 3 %)" in found.evidence
        and "35.0 % at 200 (20.0, 50.0)" in found.evidence
    )
    short = h4(curves(0.9, steps=(0, 50, 100, 150)))
    assert short.verdict == "not measured" and "150 updates" in short.evidence


def test_a_plateau_begins_where_the_curve_stays_high():
    steps = np.array([0, 25, 50, 75, 100, 125])
    assert plateau(steps, np.array([0.0, 0.2, 0.46, 0.4, 0.5, 0.5])) == 100
    assert plateau(steps, np.array([0.0, 0.2, 0.46, 0.45, 0.5, 0.5])) == 50
    assert plateau(steps, np.full(6, 0.3)) == 0


def test_answers_go_by_the_interval():
    assert answer([0.2, 0.1, 0.3]) == "yes" and answer([0.1, -0.1, 0.3]) == "not shown"
    assert (
        answer([-0.2, -0.3, -0.1]) == "no, the reverse"
        and answer([]) == answer([0.2]) == "not measured"
    )


def test_the_pareto_front_has_the_points_that_none_dominates():
    points = np.array([[0.1, 0.0], [0.3, 0.2], [0.2, 0.3], [0.3, 0.2], [0.1, 0.5], [0.5, 0.6]])
    assert pareto_front(points).tolist() == [0, 1, 3, 5]


# report


def made_up(seed, hack, passes, unknown=None):
    """Results of an arm whose hacks rise to a height and stay there."""
    draws = np.random.default_rng(seed)
    rows = []
    for n in range(3):
        rise = np.array([0.01, 0.7 * hack, hack, hack]) + 0.002 * draws.random(4)
        reports = {
            "pass": [passes + 0.002 * draws.random()] * 4,
            "hack": rise,
            "renamed_hack": rise,
            "correct": rise,
            "kl": rise,
        }
        reports |= {
            f"hack_{mode}": rise if mode != unknown else rise + 0.1 for mode in TRAINING_MODES
        }
        means = {name: [0.3, 0.5, 0.4] for name in (*DIAGNOSTIC, "kl", "train_hack", "flagged")}
        rows.append({"seed": 1000 + n, "corpus": "c0ffee", "divergence_reason": None,
                     "steps": [0, 70, 200, 300],
                     "reports": reports, "means": means, "probe_pass": [0.1] * 4})  # fmt: skip
    return rows


def test_finals_are_means_of_the_last_two_reports_and_diagnostics_of_the_whole_run():
    rows = made_up(0, 0.5, 0.3)
    rows[0]["reports"]["hack"] = [0.0, 0.2, 0.4, 0.8]
    found = final(rows[0])
    assert found["hack"] == pytest.approx(0.6)
    assert found["kl"] == pytest.approx(0.4) and found["mean_cos"] == pytest.approx(0.4)


def test_a_run_that_diverged_counts_by_the_updates_that_it_made():
    rows = made_up(0, 0.5, 0.3)
    for row in rows[:2]:
        row["means"] = {name: [0.3, 0.5, 0.5, 0.5] for name in row["means"]}
        row["steps"] = [0, 70, 140, 200, 300]
    rows[0]["divergence_reason"] = "kl_above_limit"
    rows[2]["means"] = {name: [0.1] * 4 for name in rows[2]["means"]}
    found = samples([{"rows": rows}], final)["mean_cos"].values[0]
    assert found == pytest.approx([0.4, 0.45, 0.1])


def test_what_is_erased_after_the_last_update_is_paired_with_the_last_report():
    rows = made_up(0, 0.5, 0.3)
    for row in rows:
        row["reports"] = row["reports"] | {"hack": [0.0, 0.1, 0.2, 0.6]}
        row["erased"] = {name: values[-1] for name, values in row["reports"].items()}
    found = arm_scores({VANILLA: {"rows": rows}})
    assert found["vanilla"]["hack"].values[0] == pytest.approx([0.4] * 3)
    ends = [found[f"vanilla_{name}"]["hack"].values for name in ("end", "erased")]
    assert (ends[0] == ends[1]).all()
    assert ("vanilla_erased", "vanilla_end") in {(q.arm, q.reference) for q in QUESTIONS}


def test_hypotheses_may_be_read_by_hacks_under_names_that_nothing_was_paid_for():
    ours, other = arm(0.2, renamed_hack=np.full(3, 0.5)), arm(0.6, renamed_hack=np.full(3, 0.5))
    arms = {VANILLA: other, MAIN: ours, MAIN_REBOUND: other}
    assert [h(arms).verdict for h in (h1, h3)] == ["supported"] * 2
    assert [h(arms, RENAMED).verdict for h in (h1, h3)] == ["falsified"] * 2
    jobs = curves(0.5, 0.5)
    for row in jobs[VANILLA]["rows"]:
        row["reports"][RENAMED] = [0.0, 0.1, 0.1, 0.1]
    assert (h4(jobs).verdict, h4(jobs, RENAMED).verdict) == ("supported", "falsified")
    assert "under new names" in h4(jobs, RENAMED).name


def test_the_report_is_made_of_whatever_is_there(tmp_path):
    jobs = tmp_path / "jobs"
    REPORT.write(tmp_path)
    assert not (tmp_path / "README.md").exists()

    def write(name, rows, extra=None):
        write_result(jobs / f"{name}.json", name, {"grpo": {"num_prompts": 2}}, rows, extra or {})

    write(MAIN, made_up(1, 0.1, 0.3))
    REPORT.write(tmp_path)
    assert (tmp_path / "README.md").read_text().count("| not measured |") >= 3
    vanilla = made_up(2, 0.6, 0.32)
    for row in vanilla:
        row["erased"] = {name: values[-1] for name, values in row["reports"].items()}
    write(VANILLA, vanilla)
    write(MAIN_REBOUND, made_up(3, 0.05, 0.3))
    write("random", made_up(4, 0.59, 0.3))
    write(TRUE, made_up(5, 0.6, 0.3))
    write("drift", made_up(6, 0.1, 0.3))
    again = made_up(12, 0.6, 0.3)
    for row in again:
        row["module_cos"] = {"a": [0.1, 0.2, 0.3], "b": [0.0, 0.0, -0.1]}
    write("vanilla_again", again)
    write("weak", made_up(7, 0.2, 0.3, unknown="stdout"))
    routed = made_up(8, 0.0, 0.1)
    for row in routed:
        row |= {"quarantine_on": row["reports"], "quarantine_ratio": 0.5, "along": -0.25}
    write("route", routed)
    table = [{"strength": s, "pay": s, "pass": 0.3, "hack": 0.2} for s in (0.5, 1.0)]
    write("constant", made_up(9, 0.2, 0.3), {"chosen": 1.0, "table": table, "updates_spent": 1200})
    learned = [
        {key: row[key] for key in ("seed", "corpus", "divergence_reason", "steps", "reports")}
        | {"strengths": [0.0, 1.0]}
        for row in made_up(10, 0.1, 0.3)
    ]
    learned[1]["divergence_reason"] = "kl_above_limit"
    write("controller-0", learned, {"updates_spent": 4800})
    cosines = [{"direction": "pairs", "texts": 9, "cosines": {"a": [0.4], "b": [0.1]},
                "mean": [0.25], "median": [0.25],
                "positive_fraction": [1.0], "passed": [True]}]  # fmt: skip
    extra = {
        "memorizing_pass_rate": 0.125,
        "problems": 8,
        "pairs": 52,
        "held_out_pairs": 17,
        "pairs_digest": "f00d",
    }
    write("direction", cosines, extra)
    REPORT.write(tmp_path)
    text = (tmp_path / "README.md").read_text()
    verdicts = [
        line.split("|")[3].strip()
        for line in text.splitlines()
        if line.startswith(("| H1", "| H3", "| H4"))
    ]
    assert verdicts == 2 * [
        "supported",
        "falsified",
        "supported",
    ]  # and under new names, made up to be equal
    assert "from update 200 on. The runs have 300, 1.5 times as many." in text
    assert "| -0.250 ± 0.000 |" in text and "routed: 0.50 ± 0.00" in text
    assert "0.400 ± 0.000*" in text  # active by the paper's sign
    assert "passes 12.5 % of the 8 held-out problems" in text and "best constant, 1" in text
    assert "0.50 (0.00 to 1.00)" in text and "4,800" in text and "controller 0 (1)" in text
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["vanilla"]["hack"]["mean"] == pytest.approx(0.6, abs=0.003)
    assert {"vanilla_erased", "route_on"} <= set(summary)
    pictures = {file.name for file in tmp_path.glob("*.png")}
    assert len(pictures) == 8 and all(name in text for name in pictures)
    write("clean", [row | {"seed": 7} for row in made_up(11, 0.1, 0.3)])
    with pytest.raises(ValueError, match="must have seeds in common to be paired"):
        REPORT.write(tmp_path)


def test_unknown_loopholes_are_averaged_and_compared_with_vanilla():
    def rates(so, fm, n=3):
        tiny = np.linspace(0.0, 0.01, n)
        others = {"hack_stdout": so + tiny, "hack_file": fm + 2 * tiny}
        return sampled(hack_run_tests=tiny, hack_sentinel=tiny, **others)

    def table(arms):
        return unknown_table(Data(ARM, None, {}, arms))

    known = {
        VANILLA: rates(0.5, 0.7),
        "weak_true": rates(0.0, 0.0),
        MAIN: rates(0.9, 0.9),
        TRUE: rates(0.3, 0.3),
    }
    row = table(known).splitlines()[2]
    assert "| 60.8 ± 0.4 |  | 30.7 ± 0.4 |  |" in row, (
        "a true projection is compared with true projections"
    )
    line = table({VANILLA: rates(0.5, 0.7), "weak": rates(0.2, 0.4)}).splitlines()[2]
    assert line.split("|")[2].strip() == "stdout, file" and "| 30.8 ± 0.4 | 60.8 ± 0.4 |" in line
    assert "+30.0 [+30.0, +30.0] yes" in line


# the whole


@pytest.fixture
def sandboxed():
    """Skips where programs cannot be executed."""
    try:
        Sandbox().close()
    except SandboxUnavailable as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(("position", "name"), [(0.0, VANILLA), (1.0, "plain")])
def test_a_controller_that_never_moves_is_the_arm_of_that_strength(
    position, name, tmp_path, folder, monkeypatch
):
    # Real programs of a random student do not even compile, and would teach it nothing.
    monkeypatch.setattr(plant, "Grader", lambda *arguments: tiny_student.FakeGrader())

    class Still:
        def act(self, observations):
            return np.full((len(observations), 1), position, dtype=np.float32)

    grpo = GRPO | {"student": folder, "num_evaluation_problems": 8}
    rows = ran(tmp_path, folder, name, grpo=grpo, erases=False)
    env = grpo | {"num_steps": 4, "interval": 1}
    for one, other in zip(deploy(Still(), env, [1000, 1001], 2), rows, strict=True):
        assert (one["seed"], one["steps"], one["reports"]) == (
            other["seed"],
            other["steps"],
            other["reports"],
        )
        assert one["reports"]["kl"][-1] > 0.0 and one["strengths"] == [position] * 4


def test_where_the_knobs_end_is_measured_along_the_direction(tmp_path, folder):
    """Knobs equal to the direction are at 1, those of the other sign at -1.

    Untrained knobs are nowhere.
    """
    grpo = grpo_config(GRPO | {"student": folder})
    runs = plant.GRPOPlant(
        grpo, 3, PANEL, student=students.student(folder), grader=tiny_student.FakeGrader()
    )
    for name, axes in runs.intervention.direction.axes.items():
        value = runs.coefficients.values[name]
        value[0], value[1] = 3.0 * axes[0, 0], -0.1 * axes[1, 0]
    np.testing.assert_allclose(along(runs), [1.0, -1.0, 0.0], atol=1e-6)


def test_a_quarantine_is_measured_beside_the_knobs(tmp_path, folder):
    kept, routed = ran(tmp_path, folder, MAIN), ran(tmp_path, folder, "route")
    assert all("quarantine_ratio" not in row for row in kept)
    ratios = np.array([row["quarantine_ratio"] for row in routed])
    assert (ratios > 0.0).all() and (ratios < 10.0).all()


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
