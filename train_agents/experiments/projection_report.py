"""Figures and README of the projection experiment, from its job files alone; any of them may be
missing.

What was fixed beforehand (hypotheses and their criteria) stands in `projection_claims`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from train_agents.experiments import projection_figures as drawing
from train_agents.experiments.projection_arms import (
    APPENDED,
    APPENDED_TRUE,
    ARMS,
    DRIFT,
    EXPLOITS,
    EXPLOITS_TRUE,
    GROUPS,
    LABELLED_TRUE,
    MAIN,
    MAIN_REBOUND,
    MISNAMED,
    MISNAMED_TRUE,
    PLAIN,
    RANDOM,
    TRUE,
    VANILLA,
)
from train_agents.experiments.projection_claims import (
    EMERGED,
    QUESTIONS,
    Job,
    Scores,
    curve,
    labelled_mechanism,
    mechanism,
    scored,
    sem,
)
from train_agents.experiments.projection_tables import (
    BEST_CONSTANT,
    CONTROLLER,
    MODE_NOTE,
    TABLE_NOTE,
    active_note,
    controller_table,
    direction_table,
    halves_table,
    horizon_note,
    hypothesis_table,
    label,
    main_table,
    members,
    mode_table,
    question_table,
    routing_note,
    signal_note,
    sweep_table,
    unknown_table,
)
from train_agents.results import read_result

FloatArray = NDArray[np.float64]
#: As many as there are colors.
CURVES = (VANILLA, MAIN, RANDOM, TRUE, DRIFT, LABELLED_TRUE, MAIN_REBOUND)
#: Arms whose modules are drawn one by one.
MODULES = (
    *(f"{VANILLA}_again", f"{MAIN}_again"),
    *(MISNAMED, MISNAMED_TRUE, APPENDED, APPENDED_TRUE, EXPLOITS, EXPLOITS_TRUE),
)

#: Arms that figures name by the paper's letters.
LETTERS = {VANILLA: "(a)", MAIN: "(b)", PLAIN: "(c)", MAIN_REBOUND: "(d)"}
#: Figure -> groups of arms in it; vanilla and the main arm are in both.
PICTURES = {
    "hack_against_pass": ("paper", "controls"),
    "hack_against_pass_more": ("axes", "routing", "detector"),
}
REBOUND_NOTE = (
    "Rebound's score reads the end of the completion, where the use of a loophole stands: nearly an oracle, which "
    "flatters it. Its additive form at alpha 0.5 has the weight of the paper on projection, not its formula (a cosine "
    "of the mean activation in one layer): forms and standardization of the score are those of Rebound's own paper, "
    "advantages those of every arm (Dr.GRPO)."
)

SOURCE_NOTE = (
    'The paper is wassname\'s "Experiment: rank-space gradient projection vs RL reward hacking" (2026). Its hypotheses '
    "are H1, H3 and H4; it has no H2."
)

GLOSSARY = (
    "Words: a *mode* is a kind of loophole, disclosed in the prompt. *Pairs* are programs written by hand, a hack "
    "and a clean one; *labelled programs* use the training's own loopholes, beside the same program without; "
    "*harmless lines* stand where and as long as a loophole's use would; under *other names* a use is of no use. "
    "The *direction* is the mean difference "
    "of such pairs' gradients, one axis per module; with *4 axes* it is their leading singular vectors, of which "
    "the *noise floor* leaves out the weakest quarter. Controls: a *random* direction, *shuffled* labels of hack "
    "and clean, *clean* programs against clean ones. *Refreshed*: extracted again from the student as it is, at "
    "updates that are drawn. *Erased*: the trained knobs without their part along the direction. *Routed*: what "
    "is taken out of the gradient trains a second set of knobs, the *quarantine*. The *gate* is the paper's: more "
    "than half of the modules have a held-out cosine above 0. *Under new names*: loopholes by names that no "
    "reward was ever paid for. *Right under a loophole*: solved although a loophole was disclosed. *In training*: "
    "hacks among the rollouts of the last updates."
)

#: Figure -> what it shows.
CAPTIONS = {
    "hack_against_pass": "Held-out hacks against passes at the end of the runs; below and to the right is better. The "
    "dashed line joins the means that none of all arms, those of the next figure included, betters in both.",
    "hack_against_pass_more": "The same of the other arms; many lie on each other at 0.",
    "hack_curves": "Held-out hacks over training. A run that diverges stays where it stood; curves at 0 lie on each "
    "other. Dotted: the 30 % of H4.",
    "pass_curves": "Held-out passes, of problems without a loophole.",
    "train_hack_curves": "Hacks among the rollouts of training. Dotted: the 30 % of H4.",
    "hack_curves_long": "Held-out hacks in runs of twice the length, beside runs of the usual one. Dotted: 30 %.",
    "cosines": "Held-out cosines of the modules, mean of the draws. Line: the median.",
    "module_cosines": "Cosine of the gradient and the direction, a line per module, over training: means over the "
    "updates since the report before, and over seeds. Dark: first layer.",
    "strengths": "What strength the learned controller chose, decision by decision.",
}

ARM_NOTE = (
    "The paper's arms: (a) is GRPO alone, (b) projects one side of the gradient and gives its length back, (c) does "
    "not give it back, (d) is Rebound, a penalty on the advantage of what looks like a hack. What is trained are "
    "knobs, one number per singular axis of a layer. Projecting one side takes out a component that points to hacks "
    "and leaves one that points away; two sides take out both. AdamW lets part of a projected direction back in, so "
    "the true projection is of its update, two-sided."
)


def load_jobs(folder: Path) -> dict[str, Job]:
    """Name -> result of every job that is done."""
    return {file.stem: read_result(file) for file in sorted(folder.glob("*.json"))}


def draw_figures(
    folder: Path, jobs: Mapping[str, Job], arms: Mapping[str, Scores]
) -> dict[str, str]:
    """All figures that there are results for, as PNG; key -> file's name."""
    drawn = {}
    compared = [
        name for groups in PICTURES.values() for group in groups for name in members(arms, group)
    ]
    front = np.array(
        [[arms[name]["pass"].mean(), arms[name]["hack"].mean()] for name in compared]
    ).reshape(-1, 2)
    for key, groups in PICTURES.items():
        shown = list(dict.fromkeys(name for group in groups for name in members(arms, group)))
        if len(shown) > 1:
            shown = [
                *(name for name in (VANILLA, MAIN) if name in arms and name not in shown),
                *shown,
            ]
            points = {
                label(name): np.stack([arms[name]["pass"], arms[name]["hack"]], 1) for name in shown
            }
            notes = {label(name): note for name, note in LETTERS.items() if name in shown}
            drawn[key] = f"{key}.png"
            drawing.hack_against_pass(folder / drawn[key], points, notes, front)
    longer = tuple(arm.name for arm in ARMS if arm.length > 1 and arm.name in jobs)
    beside = (VANILLA, MAIN) if longer else ()
    for key, shown_curves, name, source, ylabel in (
        ("hack_curves", CURVES, "hack", "reports", "held-out hack rate [%]"),
        ("pass_curves", CURVES, "pass", "reports", "held-out pass rate without a loophole [%]"),
        ("train_hack_curves", CURVES, "train_hack", "means", "hack rate of the rollouts [%]"),
        ("hack_curves_long", (*beside, *longer), "hack", "reports", "held-out hack rate [%]"),
    ):
        curves = {label(n): curve(jobs[n], name, source) for n in shown_curves if n in jobs}
        if curves:
            drawn[key] = f"{key}.png"
            level = EMERGED if "hack" in name else None
            drawing.curves_with_bands(folder / drawn[key], curves, ylabel, level)
    learned = {name: job for name, job in jobs.items() if name.startswith(f"{CONTROLLER}-")}
    if learned:
        used = {
            name: np.array([row["strengths"] for row in job["rows"]])
            for name, job in learned.items()
        }
        ends = {name: job["rows"][0]["steps"][-1] for name, job in learned.items()}
        curves = {
            label(n): (np.linspace(0, ends[n], v.shape[1], endpoint=False), v)
            for n, v in used.items()
        }
        drawn["strengths"] = "strengths.png"
        drawing.curves_with_bands(
            folder / drawn["strengths"], curves, "strength of projection [%]", is_held=True
        )
    if "direction" in jobs:
        panels = {
            row["direction"]: list(row["cosines"].values()) for row in jobs["direction"]["rows"]
        }
        drawn["cosines"] = "cosines.png"
        drawing.cosine_histograms(folder / drawn["cosines"], panels)
    trajectories = {label(name): _module_cosines(jobs[name]) for name in MODULES if name in jobs}
    if trajectories:
        drawn["module_cosines"] = "module_cosines.png"
        drawing.module_curves(folder / drawn["module_cosines"], trajectories)
    return drawn


def _module_cosines(job: Job) -> tuple[list[int], FloatArray]:
    """Updates (P,), and the mean over seeds of every module's cosine at them, (modules, P)."""
    kept = [list(row["module_cos"].values()) for row in job["rows"]]
    return job["rows"][0]["steps"][1:], np.mean(np.array(kept, dtype=np.float64), 0)


def report(folder: Path) -> None:
    """Writes README.md, summary.json and the figures from the job files in `folder`/jobs."""
    jobs = load_jobs(folder / "jobs")
    if not jobs:
        print(f"no report yet: no results in {folder / 'jobs'}")
        return
    arms = scored(jobs)
    summary = {
        name: {
            key: {"mean": float(value.mean()), "sem": sem(value), "seeds": value.tolist()}
            for key, value in own.items()
        }
        for name, own in arms.items()
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    drawn = draw_figures(folder, jobs, arms)
    (folder / "README.md").write_text("\n\n".join(_parts(jobs, arms, drawn)) + "\n")
    print(hypothesis_table(jobs, arms))
    print(f"written: {folder}/README.md, summary.json and {len(drawn)} figures")


def _facts(jobs: Mapping[str, Job]) -> str:
    facts = next(iter(jobs.values()))["facts"]
    commits = sorted(
        {
            str(job["facts"]["commit"])[:12] + (" (changed)" if job["facts"]["dirty"] else "")
            for job in jobs.values()
        }
    )
    return f"`{' '.join(['python', *facts['command']])}` at {', '.join(commits)}"


def _halves(sides: Mapping[str, Any]) -> list[str]:
    note = (
        "The two halves of the contrast, for the student before training; the clean side's gradient is reversed. The "
        "student has read none of the pairs."
    )
    return [note, halves_table(sides)]


def _parts(
    jobs: Mapping[str, Job], arms: Mapping[str, Scores], drawn: Mapping[str, str]
) -> list[str]:
    made = _facts(jobs)

    def picture(key: str) -> list[str]:
        return [f"![{key}]({drawn[key]})\n\n{CAPTIONS[key]} *{made}*"] if key in drawn else []

    facts = next(iter(jobs.values()))["facts"]
    trained = jobs.get(VANILLA) or next((job for name, job in jobs.items() if name in arms), None)
    seeds = ", ".join(str(row["seed"]) for row in trained["rows"]) if trained else ""
    diverged = {
        name: sum(row["divergence_reason"] is not None for row in jobs[name]["rows"])
        for name in arms
        if name in jobs
    }
    lost = ", ".join(f"{label(name)} ({count})" for name, count in diverged.items() if count)
    setting = (
        trained["configuration"].get("grpo") or trained["configuration"].get("env_arguments")
        if trained
        else {}
    )
    parts = [
        "# Gradient projection against reward hacking",
        f"Command: {made}  \nStudent sha256: `{facts['corpus']}`  \nSeeds of the arms: {seeds}  \n"
        f"Setting: `{json.dumps(setting)}`  \nDiverged runs: {lost or 'none'}.  \n"
        "Hack and pass are by the true verdict on held-out problems, whose combinations of operations no training "
        "problem has. Hypotheses and criteria are the paper's; where its wording leaves room, "
        "`train_agents/experiments/projection_claims.py` says how it was read, and NOTES.md what was decided when.",
        SOURCE_NOTE,
        ARM_NOTE,
        GLOSSARY,
        "## Falsification report",
        hypothesis_table(jobs, arms),
        "Hacks are counted as the training's grader would pay them. Under new names: the same problems, with loopholes "
        "by names that no reward was ever paid for, so that a use that was learned by heart counts for nothing.",
        *([horizon_note(jobs)] if VANILLA in arms else []),
        "## Hack rate against pass rate",
        *picture("hack_against_pass"),
        REBOUND_NOTE,
        *picture("hack_against_pass_more"),
        "## Direction or drift?",
        mechanism(arms),
        *filter(None, [labelled_mechanism(arms)]),
        *([signal_note(arms)] if VANILLA in arms else []),
        "Differences are paired by seed, with 95 % intervals; `shown`: whether the interval of the hacks excludes 0. "
        "They are not corrected for how many there are "
        f"({sum(q.arm in arms and q.reference in arms for q in QUESTIONS)}): one in twenty excludes 0 by chance.",
        question_table(arms),
        *picture("hack_curves"),
        *picture("pass_curves"),
        *picture("train_hack_curves"),
        *picture("hack_curves_long"),
        *picture("module_cosines"),
        "## The arms",
        TABLE_NOTE,
        active_note(arms),
    ]
    for group, title in GROUPS.items():
        names = members(arms, group)
        if names:
            reference = [VANILLA] if VANILLA in arms and VANILLA not in names else []
            parts += [f"### {title}", main_table(arms, [*reference, *names])]
        if any("quarantine_ratio" in arms[name] for name in names):
            parts.append(routing_note(arms))
    if arms:
        parts += ["## By loophole", MODE_NOTE, mode_table(arms)]
    if any(arm.unknown_modes and arm.name in arms for arm in ARMS):
        parts += ["### Loopholes that the direction was made without", unknown_table(arms)]
    if "direction" in jobs:
        extra: Mapping[str, Any] = jobs["direction"]["extra"]
        parts += [
            "## The direction before training",
            f"{extra['pairs']} pairs, and {extra['held_out_pairs']} held out; sha256 of their texts: "
            f"`{extra['pairs_digest']}`.",
            direction_table(jobs["direction"]),
            *(_halves(extra["halves"]) if "halves" in extra else []),
            *picture("cosines"),
            "## Memorizing",
            f"The nearest training problem's solution passes {100 * extra['memorizing_pass_rate']:.1f} % of the "
            f"{extra['problems']} held-out problems.",
        ]
    if BEST_CONSTANT in jobs or any(name.startswith(f"{CONTROLLER}-") for name in jobs):
        parts += [
            "## A learned strength",
            "JEL's agent, meta-trained on shorter runs of seeds of its own, decides the strength; no length is given "
            "back. It hears the pass rate on the probe less what the weak detector flags, and the best constant was "
            "chosen by the same. All runs have equally many updates. Differences are of pass less hack, in points, "
            "paired by seed.",
            controller_table(jobs, arms),
            *picture("strengths"),
        ]
        parts += [sweep_table(jobs[BEST_CONSTANT])] if BEST_CONSTANT in jobs else []
    return parts
