"""The report is made from files alone."""

import json

import numpy as np
import pytest

from hpenv.benchmark.results import write_result
from hpenv.posttraining.grading.loopholes import TRAINING_MODES
from tests.train_agents.experiments.short_arms import ARM, TRUE, arm, curves, sampled
from train_agents.experiments.projection_arms import MAIN, MAIN_REBOUND, VANILLA
from train_agents.experiments.projection_claims import (
    DIAGNOSTIC,
    QUESTIONS,
    RENAMED,
    arm_scores,
    final,
    h1,
    h3,
    h4,
)
from train_agents.experiments.projection_figures import pareto_front
from train_agents.experiments.projection_report import REPORT, unknown_table
from train_agents.experiments.report import Data
from train_agents.experiments.samples import samples


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
