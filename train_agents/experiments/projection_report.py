"""Figures and page of the projection experiment, as parts of `results/projection/template.md`.

`projection_claims` has what was fixed beforehand: hypotheses and their criteria.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from hpenv.benchmark.facts import ROOT
from hpenv.posttraining.grading.loopholes import LOOPHOLES, TRAINING_MODES
from train_agents.experiments import projection_figures as drawing
from train_agents.experiments import projection_tables as tables
from train_agents.experiments import report as engine
from train_agents.experiments.projection_arms import (
    ARMS,
    GROUPS,
    MAIN,
    MAIN_REBOUND,
    PLAIN,
    RANDOM,
    VANILLA,
)
from train_agents.experiments.projection_claims import (
    EMERGED,
    QUESTIONS,
    Scores,
    arm_scores,
    curve,
    sem,
)
from train_agents.experiments.projection_tables import BEST_CONSTANT, CONTROLLER, label, members
from train_agents.experiments.report import Result

TEMPLATE = ROOT / "results/projection/template.md"
#: As many as there are colors.
CURVES = (VANILLA, MAIN, RANDOM, "update_two_sided", "drift", "all_modes_true", MAIN_REBOUND)
LONGER = tuple(arm.name for arm in ARMS if arm.length > 1)
#: Figure -> arms, number of a report, source, label of the axis.
CURVE_FIGURES = {
    "hack_curves": (CURVES, "hack", "reports", "held-out hack rate [%]"),
    "pass_curves": (CURVES, "pass", "reports", "held-out pass rate without a loophole [%]"),
    "train_hack_curves": (CURVES, "train_hack", "means", "hack rate of the rollouts [%]"),
    "hack_curves_long": (LONGER, "hack", "reports", "held-out hack rate [%]"),
}
#: Arms whose modules are drawn one by one.
MODULES = (
    *("vanilla_again", "projection_again", "misnamed", "misnamed_true"),
    *("appended", "appended_true", "exploits", "exploits_true"),
)
#: Arms that figures name by the paper's letters.
LETTERS = {VANILLA: "(a)", MAIN: "(b)", PLAIN: "(c)", MAIN_REBOUND: "(d)"}
#: Figure -> groups of arms in it; vanilla and the main arm are in both.
PICTURES = {
    "hack_against_pass": ("paper", "controls"),
    "hack_against_pass_more": ("axes", "routing", "detector"),
}
#: Columns of the sweep of constant strengths.
STRENGTHS = {
    "strength": lambda entry: f"{entry['strength']:g}",
    "pay": lambda entry: f"{entry['pay']:.4f}",
    "pass": lambda entry: f"{100 * entry['pass']:.1f}",
    "hack": lambda entry: f"{100 * entry['hack']:.1f}",
}


def draw_points(file: Path, arms: Mapping[str, Scores], key: str) -> bool:
    """Draws hacks against passes of the arms of some groups. False with fewer than two arms."""
    shown, means = [], []
    for figure, groups in PICTURES.items():
        for group in groups:
            names = members(arms, group)
            shown += names if figure == key else []
            means += [[arms[name]["pass"].mean(), arms[name]["hack"].mean()] for name in names]
    if len(shown) < 2:
        return False

    shown = [*(name for name in (VANILLA, MAIN) if name in arms and name not in shown), *shown]
    rates = {label(n): np.stack([arms[n]["pass"], arms[n]["hack"]], 1) for n in shown}
    notes = {label(name): note for name, note in LETTERS.items() if name in shown}
    drawing.hack_against_pass(file, rates, notes, np.array(means))
    return True


def draw_curves(file: Path, results: Mapping[str, Result], key: str) -> bool:
    """Draws a rate over the updates of some arms. False without any of them."""
    names, number, source, ylabel = CURVE_FIGURES[key]
    if key == "hack_curves_long" and any(name in results for name in names):
        names = (VANILLA, MAIN, *names)
    curves = {label(n): curve(results[n], number, source) for n in names if n in results}
    if curves:
        level = EMERGED if "hack" in number else None
        drawing.curves_with_bands(file, curves, ylabel, level)
    return bool(curves)


def draw_strengths(file: Path, results: Mapping[str, Result]) -> bool:
    """Draws the strengths that the learned controllers chose. False without a controller."""
    curves = {}
    for name, result in results.items():
        if name.startswith(f"{CONTROLLER}-"):
            used = np.array([row["strengths"] for row in result["rows"]])
            end = result["rows"][0]["steps"][-1]
            curves[label(name)] = (np.linspace(0, end, used.shape[1], endpoint=False), used)
    if curves:
        drawing.curves_with_bands(file, curves, "strength of projection [%]", is_held=True)
    return bool(curves)


def draw_modules(file: Path, results: Mapping[str, Result]) -> bool:
    """Draws the cosine of each module over the updates, mean over seeds. False without an arm."""
    panels = {}
    for name in (name for name in MODULES if name in results):
        rows = results[name]["rows"]
        cosines = np.mean([list(row["module_cos"].values()) for row in rows], 0)  # (modules, P)
        panels[label(name)] = (rows[0]["steps"][1:], cosines)
    if panels:
        drawing.module_curves(file, panels)
    return bool(panels)


def draw_cosines(file: Path, results: Mapping[str, Result]) -> bool:
    """Draws the held-out cosines of every kind of direction. False if they were not measured."""
    if "direction" in results:
        rows = results["direction"]["rows"]
        panels = {row["direction"]: list(row["cosines"].values()) for row in rows}
        drawing.cosine_histograms(file, panels)
    return "direction" in results


def report(folder: Path) -> None:
    """Writes README.md, summary.json and the figures from the job files in `folder`/jobs."""
    results = engine.load_results(folder / "jobs")
    if not results:
        print(f"no report yet: no results in {folder / 'jobs'}")
        return
    arms, first = arm_scores(results), next(iter(results.values()))
    trained = results.get(VANILLA) or next((results[n] for n in results if n in arms), None)
    has_controllers = any(name.startswith(f"{CONTROLLER}-") for name in results)
    extra = results["direction"]["extra"] if "direction" in results else {}

    def setting() -> str:
        asked = trained["configuration"] if trained else {}
        return json.dumps(asked.get("grpo") or asked.get("env_arguments"))

    def divergences() -> str:
        counts = []
        for name in (name for name in arms if name in results):
            rows = results[name]["rows"]
            if n := sum(row["divergence_reason"] is not None for row in rows):
                counts.append(f"{label(name)} ({n})")
        return ", ".join(counts) or "none"

    def figure(key: str) -> str:
        file = folder / f"{key}.png"
        if key in PICTURES:
            is_there = draw_points(file, arms, key)
        elif key in CURVE_FIGURES:
            is_there = draw_curves(file, results, key)
        else:
            others = {"module_cosines": draw_modules, "strengths": draw_strengths}
            is_there = others.get(key, draw_cosines)(file, results)
        return f"![{key}]({key}.png)\n" if is_there else ""

    def groups() -> str:
        sections = []
        for group, title in GROUPS.items():
            if names := members(arms, group):
                is_alone = VANILLA in names or VANILLA not in arms
                shown = names if is_alone else [VANILLA, *names]
                sections.append(f"### {title}\n\n{tables.main_table(arms, shown)}")
        return "\n\n".join(sections)

    def direction() -> str:
        if not extra:
            return ""
        counts = f"{extra['pairs']} pairs, and {extra['held_out_pairs']} held out"
        digest = f"sha256 of their texts: `{extra['pairs_digest']}`"
        return f"{counts}. {digest}.\n\n{tables.direction_table(results['direction'])}"

    def num_questions() -> str:
        return str(sum(asked.arm in arms and asked.reference in arms for asked in QUESTIONS))

    def controllers() -> str:
        has_any = has_controllers or BEST_CONSTANT in results
        return tables.controller_table(results, arms) if has_any else ""

    def strength_table() -> str:
        best = results.get(BEST_CONSTANT)
        return engine.tried_table(best, STRENGTHS) if best else ""

    parts: dict[str, engine.Part] = {
        "made": lambda: f"`{engine.command(first)}` at {engine.commits(results)}",
        "student": lambda: str(first["facts"]["corpus"]),
        "seeds": lambda: ", ".join(str(row["seed"]) for row in trained["rows"]) if trained else "",
        "setting": setting,
        "diverged": divergences,
        "hypotheses": lambda: tables.hypothesis_table(results, arms),
        "horizon": lambda: tables.horizon_note(results),
        "figure": figure,
        "signal": lambda name: tables.signal_part(arms, name),
        "num_questions": num_questions,
        "questions": lambda: tables.question_table(arms),
        "active": lambda: tables.active_arms(arms),
        "arms": groups,
        "quarantine": lambda: tables.quarantine_note(arms),
        "loopholes": lambda: ", ".join(f"{m}: {LOOPHOLES[m].name}" for m in TRAINING_MODES),
        "modes": lambda: tables.mode_table(arms),
        "unknown": lambda: tables.unknown_table(arms),
        "direction": direction,
        "halves": lambda: tables.halves_table(extra["halves"]) if "halves" in extra else "",
        "memorized": lambda: f"{100 * extra['memorizing_pass_rate']:.1f} %" if extra else "",
        "problems": lambda: f"{extra['problems']}" if extra else "",
        "controllers": controllers,
        "strengths_tried": strength_table,
    }
    summary = {name: _summary(scores) for name, scores in arms.items()}
    engine.write_report(folder, TEMPLATE, parts, summary)
    print(tables.hypothesis_table(results, arms))


def _summary(scores: Scores) -> dict[str, dict[str, object]]:
    return {
        key: {"mean": float(value.mean()), "sem": sem(value), "seeds": value.tolist()}
        for key, value in scores.items()
    }
