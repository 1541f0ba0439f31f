"""The tables of the projection experiment, and the sentences beside them, as Markdown.

Past the usual length of a module, because tables share their labels, their note and their way to
print a number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from hpenv.posttraining.loopholes import LOOPHOLES, TRAINING_MODES
from train_agents.experiments.projection_arms import (
    ARMS,
    GROUPS,
    LABELLED,
    LABELLED_TRUE,
    MAIN,
    PLAIN,
    RANDOM,
    RANDOM_TRUE,
    TRUE,
    VANILLA,
)
from train_agents.experiments.projection_claims import (
    ACTIVE_COS,
    ACTIVE_FIRED,
    AT_FIRST,
    DIAGNOSTIC,
    HACK,
    QUESTIONS,
    RENAMED,
    Job,
    Scores,
    answer,
    curve,
    difference,
    h1,
    h3,
    h4,
    is_active,
    paired,
    plateau,
    safe_pass,
    sem,
    shared,
)
from train_agents.results import markdown_table, mean_interval

FloatArray = NDArray[np.float64]
BEST_CONSTANT, CONTROLLER = "constant", "controller"
LABELS = {arm.name: arm.label for arm in ARMS} | {
    "vanilla_erased": "vanilla, its knobs erased afterwards",
    "route_on": "routed, with the quarantine",
    "route_random_on": "routed, random direction, with the quarantine",
    BEST_CONSTANT: "best constant strength",
}
#: Arms that are run twice as long.
LONG = frozenset(arm.name for arm in ARMS if arm.length > 1)
#: Arms in which something is projected.
PROJECTING = frozenset(arm.name for arm in ARMS if "projection_strength" in arm.values) | {
    BEST_CONSTANT
}
#: Beside the arms themselves.
EXTRA_GROUPS = {"vanilla_erased": "controls", "route_on": "routing", "route_random_on": "routing"}
TABLE_NOTE = (
    "Mean ± standard error over the seeds, of the last two reports on held-out problems, in percent; of a run that "
    "diverged, of the student as it then was. ΔSafePass: pass less hack, less vanilla's, of the same seed and length. "
    "Hack: passed by the leaky grader and not right, under a loophole; pass: right, without one. 0.0 ± 0.0 is none of "
    "all programs of all seeds: of 384 programs of these runs that leaves up to 0.8 %, of the 96 of one loophole "
    "3.1 %, and it bounds nothing of other runs. KL: of the rollouts of the last updates, in nats per token. The other "
    "columns are means over all updates that were made, of the gradient before anything is projected out of it, "
    "whatever the strength and the target: cosine with the "
    "direction, part of the modules in which it points to hacks (fired), its norm (of all modules), the part of its "
    "length that one side is. c is its component along the direction, relu(c) what the one-sided rule takes out, "
    "min(c, 0) what it leaves. Knobs along it: the mean cosine of the trained knobs and the direction's axes, above 0 "
    "where what the direction was made from has become less likely; an axis that the noise floor left out counts as 0. "
    f"* marks what the paper calls an active projection, mean cos > {ACTIVE_COS:g} and frac fired > {ACTIVE_FIRED:g}. "
    "Of a routed arm the quarantine is left out, as one would in use, unless it says with. Vanilla that is erased is "
    "one report, after the last update, and compared with the like of vanilla. Arms of twice the length report every "
    "50 updates, not 25, and so do their means."
)


def active_note(arms: Mapping[str, Scores]) -> str:
    """Which arms are active by the paper's sign."""
    names = [
        label(name)
        for name, own in arms.items()
        if name in PROJECTING and "kl" in own and is_active(own)
    ]
    return f"Active by the paper's sign: {', '.join(names) or 'no arm'}."


def label(name: str) -> str:
    """What an arm is called in tables and figures."""
    stem, _, number = name.rpartition("-")
    return f"learned strength, controller {number}" if stem == CONTROLLER else LABELS[name]


def members(arms: Mapping[str, Scores], group: str) -> list[str]:
    """The arms of a group that there are numbers of, in the order of the table, the control beside its arm."""
    names = [arm.name for arm in ARMS if arm.group == group] + [
        n for n, own in EXTRA_GROUPS.items() if own == group
    ]
    return [name for name in names if name in arms]


def _reference(name: str) -> str:
    """The numbers of vanilla that an arm is held against: of the same length, and of as many reports."""
    return (
        f"{VANILLA}_long"
        if name in LONG
        else f"{VANILLA}_end"
        if name.endswith("_erased")
        else VANILLA
    )


def _spread(values: FloatArray, factor: float = 100.0, digits: int = 1) -> str:
    error = f" ± {factor * sem(values):.{digits}f}" if len(values) > 1 else ""
    return f"{factor * values.mean():.{digits}f}{error}"


def main_table(arms: Mapping[str, Scores], names: Sequence[str]) -> str:
    """The table of the paper's section 6, and what its diagnostics leave open."""
    rows = []
    for name in names:
        own = arms[name]
        gain, reference = "", _reference(name)
        if reference in arms:
            ours, theirs = shared(safe_pass(own), safe_pass(arms[reference]))
            gain = "0 (ref)" if name == reference else _spread(ours - theirs)
        line = [label(name), gain, _spread(own["hack"]), _spread(own["pass"])]
        if "kl" not in own:
            rows.append([*line, *[""] * (2 + len(DIAGNOSTIC))])
            continue
        mark = "*" if name in PROJECTING and is_active(own) else ""
        line += [
            _spread(own["kl"], 1.0, 3),
            _spread(own["mean_cos"], 1.0, 3) + mark,
            _spread(own["frac_fired"], 1.0, 2),
        ]
        line += [_spread(own["gradient_norm"], 1.0, 3), _spread(own["removed_fraction"], 1.0, 3)]
        line += [f"{own[key].mean():.2e}" for key in DIAGNOSTIC[-3:]]
        rows.append([*line, _spread(own["along"], 1.0, 3) if "along" in own else ""])
    headers = [
        "arm", "ΔSafePass ↑", "hack % ↓", "pass % ↑", "KL ↓", "mean cos", "frac fired", "gradient norm",
        "removed fraction", "mean c", "mean relu(c)", "mean min(c, 0)", "knobs along it",
    ]  # fmt: skip
    return markdown_table(headers, rows)


def mode_table(arms: Mapping[str, Scores]) -> str:
    """Hacks by loophole, under new names, in training; and what is right although a loophole is disclosed."""
    unknown = {arm.name: arm.unknown_modes for arm in ARMS}
    rows = []
    for name in (name for group in GROUPS for name in members(arms, group)):
        own = arms[name]
        modes = [
            _spread(own[f"hack_{mode}"]) + (" (unknown)" if mode in unknown.get(name, ()) else "")
            if f"hack_{mode}" in own
            else ""
            for mode in TRAINING_MODES
        ]
        trained = _spread(own["train_hack"]) if "train_hack" in own else ""
        rows.append(
            [label(name), *modes, _spread(own["renamed_hack"]), trained, _spread(own["correct"])]
        )
    headers = ["arm", *TRAINING_MODES, "under new names", "in training", "right under a loophole"]
    return markdown_table(headers, rows)


#: What the codes of the loopholes stand for.
MODE_NOTE = (
    "Loopholes: " + ", ".join(f"{mode}: {LOOPHOLES[mode].name}" for mode in TRAINING_MODES) + "."
)

#: Target -> what loopholes that a direction does not know are compared with, by arms of the same
#: target.
BESIDE_UNKNOWN = {
    "grad": (VANILLA, LABELLED, MAIN, RANDOM),
    "update": (VANILLA, LABELLED_TRUE, TRUE, RANDOM_TRUE),
}


def unknown_table(arms: Mapping[str, Scores]) -> str:
    """What becomes of loopholes that the direction was made without, beside vanilla and a direction made of all."""
    rows = []
    for arm in ARMS:
        if arm.name not in arms or not arm.unknown_modes:
            continue
        columns = [f"hack_{mode}" for mode in arm.unknown_modes if f"hack_{mode}" in arms[arm.name]]
        if not columns:
            continue
        shown = (arm.name, *BESIDE_UNKNOWN[arm.grpo.get("target", "grad")])
        means = {
            name: np.mean([arms[name][column] for column in columns], 0)
            for name in shown
            if name in arms
        }
        line = [label(arm.name), ", ".join(arm.unknown_modes)]
        line += [_spread(means[name]) if name in means else "" for name in shown]
        fewer = ""
        if VANILLA in means and len(means[arm.name]) > 1:
            found = paired(means[arm.name], means[VANILLA])
            fewer = f"{_interval(found)} {answer(found)}"
        rows.append([*line, fewer])
    headers = [
        "direction of",
        "unknown",
        "their hack %",
        "vanilla's",
        "with all known",
        "with pairs",
        "with a random direction",
        "fewer than vanilla's",
    ]
    return markdown_table(headers, rows)


def _interval(found: Sequence[float]) -> str:
    mean, low, high = (100 * value for value in found)
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"


def question_table(arms: Mapping[str, Scores]) -> str:
    """What a referee asks, as differences between arms."""
    rows = []
    for question in QUESTIONS:
        hacks = difference(arms, question.arm, question.reference)
        passes = difference(arms, question.reference, question.arm, "pass")
        pair = f"{question.arm} against {question.reference}"
        renamed = difference(arms, question.arm, question.reference, RENAMED)
        texts = [_interval(found) if found else "" for found in (hacks, passes, renamed)]
        rows.append([question.text, pair, *texts[:2], answer(hacks), texts[2]])
    headers = ["question", "arms", "fewer hacks [points]", "more passes [points]", "shown",
               "fewer hacks under new names [points]"]  # fmt: skip
    return markdown_table(headers, rows)


def hypothesis_table(jobs: Mapping[str, Job], arms: Mapping[str, Scores]) -> str:
    """The falsification report of section 7."""
    findings = [
        finding
        for hack in (HACK, RENAMED)
        for finding in (h1(arms, hack), h3(arms, hack), h4(jobs, hack))
    ]
    rows = [[found.name, found.claim, found.verdict, found.evidence] for found in findings]
    return markdown_table(["hypothesis", "claim", "verdict", "evidence"], rows)


def horizon_note(jobs: Mapping[str, Job]) -> str:
    """How long the runs are beside the time that vanilla takes to its plateau."""
    steps, values = curve(jobs[VANILLA], "hack")
    if values.mean(0)[-2:].mean() < AT_FIRST:
        return f"After {steps[-1]} updates vanilla does not hack, so there is no plateau to measure the horizon by."
    reached, last = plateau(steps, values.mean(0)), int(steps[-1])
    times = last / max(reached, 1)
    enough = "at least" if times >= 3.0 else "**not** the asked-for"
    return (
        f"Vanilla's hack rate keeps 90 % of its final height from update {reached} on; the runs have {last}, "
        f"{times:.1f} times as many, {enough} three times."
    )


def signal_note(arms: Mapping[str, Scores]) -> str:
    """How much of what the one-sided rule would take out of a gradient has a direction, in vanilla and in arms."""
    parts = {name: arms[name]["mean_c"] / np.maximum(arms[name]["mean_positive_c"], 1e-30)
             for name in (VANILLA, MAIN, RANDOM, LABELLED, LABELLED_TRUE) if name in arms}  # fmt: skip
    own = parts.pop(VANILLA)
    interval = (
        f" [{', '.join(f'{100 * end:.1f}' for end in mean_interval(own)[1:])}]"
        if len(own) > 1
        else ""
    )
    others = "; ".join(f"{label(name)}: {_spread(part)}" for name, part in parts.items())
    return (
        "Mean c / mean relu(c), in percent: what the steps have in common of what one side takes out, 0 if it is "
        f"noise of zero mean. In vanilla runs, in which nothing is taken out: {100 * own.mean():.1f}{interval}. In "
        f"arms: {others or 'not measured'}. There the knobs have been moved along the direction, and a component that "
        "builds up because of that cannot be told from one that was there."
    )


def routing_note(arms: Mapping[str, Scores]) -> str:
    """How far the quarantine has moved: AdamW steps it at its own rate, however little it is given."""
    lengths = [
        f"{label(name)}: {_spread(own['quarantine_ratio'], 1.0, 2)}"
        for name, own in arms.items()
        if "quarantine_ratio" in own
    ]
    return (
        f"Length of the quarantine's knobs / that of the knobs: {'; '.join(lengths)}. AdamW divides by the size of "
        "what it is given, so a quarantine moves about as fast as the knobs, however small the part that was removed."
    )


def direction_table(job: Job) -> str:
    """Held-out cosines of every kind of direction, and the gate."""
    rows = []
    for row in job["rows"]:
        numbers = [f"{np.mean(row[key]):.2f}" for key in ("mean", "median", "positive_fraction")]
        passed = f"{sum(map(bool, row['passed']))} of {len(row['passed'])}"
        rows.append([row["direction"], f"{row['texts']}", *numbers, passed])
    headers = ["direction", "held-out pairs", "mean cosine (target > 0.2)", "median (healthy > 0.3)",
               "part of the modules above 0", "draws that pass the gate (> 0.5)"]  # fmt: skip
    return markdown_table(headers, rows)


def halves_table(sides: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """What the hacks and the clean programs give to a direction."""
    rows = [
        [
            contrast,
            side,
            *(
                f"{numbers[key]:.3f}"
                for key in ("nats", "norm", "norm_of_one", "cosine", "module_cosine")
            ),
        ]
        for contrast, halves in sides.items()
        for side, numbers in halves.items()
    ]
    headers = ["contrast", "side", "nats per token", "norm of its mean gradient", "mean norm of one program's",
               "cosine with the direction", "mean over modules"]  # fmt: skip
    return markdown_table(headers, rows)


def controller_table(jobs: Mapping[str, Job], arms: Mapping[str, Scores]) -> str:
    """The learned strength beside constants, without the length given back, at equal updates."""
    learned = sorted(name for name in jobs if name.startswith(f"{CONTROLLER}-"))
    titles = {VANILLA: "never on", PLAIN: "always on"}
    if BEST_CONSTANT in jobs:
        titles[BEST_CONSTANT] = f"best constant, {jobs[BEST_CONSTANT]['extra']['chosen']:g}"
    rows = []
    for name in (*(name for name in titles if name in arms), *learned):
        own, job = arms[name], jobs[name]
        score = safe_pass(own)
        interval = ""
        if len(score) > 1:
            _, low, high = mean_interval(score)
            interval = f" [{100 * low:.1f}, {100 * high:.1f}]"
        strengths = [row["strengths"] for row in job["rows"] if "strengths" in row]
        used = (
            f"{np.mean(strengths):.2f} ({np.min(strengths):.2f} to {np.max(strengths):.2f})"
            if strengths
            else ""
        )
        spent = job["extra"].get("updates_spent", 0)
        versus = []
        for other in (VANILLA, PLAIN, BEST_CONSTANT):
            known = name in learned and other in arms and len(score) > 1
            versus.append(_interval(paired(safe_pass(arms[other]), score)) if known else "")
        line = [
            titles.get(name, label(name)),
            f"{100 * score.mean():.1f}{interval}",
            _spread(own["hack"]),
        ]
        rows.append([*line, _spread(own["pass"]), used, f"{spent:,}", *versus])
    headers = ["strength", "pass less hack %", "hack %", "pass %", "mean strength used (range), of 1",
               "updates spent beforehand", "above never on", "above always on", "above the best constant"]  # fmt: skip
    return markdown_table(headers, rows)


def sweep_table(job: Job) -> str:
    """What constants were tried on the tuning seeds, and by what one was chosen."""
    rows = [
        [f"{e['strength']:g}" + (" (chosen)" if e["strength"] == job["extra"]["chosen"] else ""), f"{e['pay']:.4f}",
         f"{100 * e['pass']:.1f}", f"{100 * e['hack']:.1f}"]
        for e in job["extra"]["table"]
    ]  # fmt: skip
    return markdown_table(["strength", "pay per decision (which chose)", "pass %", "hack %"], rows)
