"""Tables of the projection experiment."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from hpenv.arrays import FloatArray
from hpenv.benchmark.results import markdown_table
from hpenv.benchmark.statistics import mean_interval
from hpenv.posttraining.grading.loopholes import TRAINING_MODES
from train_agents.experiments import report as engine
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
    AT_FIRST,
    HACK,
    QUESTIONS,
    RENAMED,
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
from train_agents.experiments.report import Column, Result, ends, points

BEST_CONSTANT, CONTROLLER = "constant", "controller"
LABELS = {arm.name: arm.label for arm in ARMS} | {
    "vanilla_erased": "vanilla, its knobs erased afterwards",
    "route_on": "routed, with the quarantine",
    "route_random_on": "routed, random direction, with the quarantine",
    BEST_CONSTANT: "best constant strength",
}
#: Arms that are run twice as long.
LONG = frozenset(arm.name for arm in ARMS if arm.length > 1)
#: Arms that project something.
PROJECTING = {arm.name for arm in ARMS if "projection_strength" in arm.values} | {BEST_CONSTANT}
#: Groups of what is measured next to the arms themselves.
EXTRA_GROUPS = {"vanilla_erased": "controls", "route_on": "routing", "route_random_on": "routing"}
#: Target -> arms of the same target that loopholes unknown to a direction are compared with.
BESIDE_UNKNOWN = {
    "grad": (VANILLA, LABELLED, MAIN, RANDOM),
    "update": (VANILLA, LABELLED_TRUE, TRUE, RANDOM_TRUE),
}


def label(name: str) -> str:
    """Returns the name of an arm in tables and figures."""
    stem, _, number = name.rpartition("-")
    return f"learned strength, controller {number}" if stem == CONTROLLER else LABELS[name]


def members(arms: Mapping[str, Scores], group: str) -> list[str]:
    """Returns the arms of a group that have numbers, in the order of the table."""
    names = [arm.name for arm in ARMS if arm.group == group]
    names += [name for name, own in EXTRA_GROUPS.items() if own == group]
    return [name for name in names if name in arms]


def active_arms(arms: Mapping[str, Scores]) -> str:
    """Returns the arms that are active by the paper's sign."""
    projecting = [name for name, own in arms.items() if name in PROJECTING and "kl" in own]
    return ", ".join(label(name) for name in projecting if is_active(arms[name])) or "no arm"


def _spread(values: FloatArray, factor: float = 100.0, digits: int = 1) -> str:
    """Returns mean and standard error over the seeds."""
    error = f" ± {factor * sem(values):.{digits}f}" if len(values) > 1 else ""
    return f"{factor * values.mean():.{digits}f}{error}"


def main_table(arms: Mapping[str, Scores], names: Sequence[str]) -> str:
    """Returns the table of the paper's section 6, with further diagnostics."""

    def gain(name: str) -> str:
        long, erased = name in LONG, name.endswith("_erased")
        reference = VANILLA + ("_long" if long else "_end" if erased else "")
        if name == reference or reference not in arms:
            return "0 (ref)" if reference in arms else ""
        ours, theirs = shared(safe_pass(arms[name]), safe_pass(arms[reference]))
        return _spread(ours - theirs)

    def diagnostic(key: str, digits: int) -> Callable[[str], str]:
        return lambda name: _spread(arms[name][key], 1.0, digits) if key in arms[name] else ""

    def component(key: str) -> Callable[[str], str]:
        return lambda name: f"{arms[name][key].mean():.2e}" if key in arms[name] else ""

    def cosine(name: str) -> str:
        is_marked = name in PROJECTING and "kl" in arms[name] and is_active(arms[name])
        return diagnostic("mean_cos", 3)(name) + ("*" if is_marked else "")

    columns = [
        Column("arm", label),
        Column("ΔSafePass ↑", gain),
        Column("hack % ↓", lambda name: _spread(arms[name]["hack"])),
        Column("pass % ↑", lambda name: _spread(arms[name]["pass"])),
        Column("KL ↓", diagnostic("kl", 3)),
        Column("mean cos", cosine),
        Column("frac fired", diagnostic("frac_fired", 2)),
        Column("gradient norm", diagnostic("gradient_norm", 3)),
        Column("removed fraction", diagnostic("removed_fraction", 3)),
        Column("mean c", component("mean_c")),
        Column("mean relu(c)", component("mean_positive_c")),
        Column("mean min(c, 0)", component("mean_negative_c")),
        Column("knobs along it", diagnostic("along", 3)),
    ]
    return engine.table(names, columns)


def mode_table(arms: Mapping[str, Scores]) -> str:
    """Returns hacks by loophole, under new names and in training."""
    unknown = {arm.name: arm.unknown_modes for arm in ARMS}

    def rate(key: str) -> Callable[[str], str]:
        return lambda name: _spread(arms[name][key]) if key in arms[name] else ""

    def hacks(mode: str) -> Callable[[str], str]:
        def cell(name: str) -> str:
            text = rate(f"hack_{mode}")(name)
            return f"{text} (unknown)" if text and mode in unknown.get(name, ()) else text

        return cell

    columns = [
        Column("arm", label),
        *(Column(mode, hacks(mode)) for mode in TRAINING_MODES),
        Column("under new names", rate("renamed_hack")),
        Column("in training", rate("train_hack")),
        Column("right under a loophole", rate("correct")),
    ]
    names = [members(arms, group) for group in GROUPS]
    return engine.table([name for group in names for name in group], columns)


def unknown_table(arms: Mapping[str, Scores]) -> str:
    """Returns the hack rates of the loopholes that a direction was made without.

    Next to them stand those of vanilla and of directions made of all loopholes.
    """
    rows = []
    for arm in ARMS:
        own = arms.get(arm.name, {})
        keys = [f"hack_{mode}" for mode in arm.unknown_modes if f"hack_{mode}" in own]
        if not keys:
            continue
        shown = (arm.name, *BESIDE_UNKNOWN[arm.grpo.get("target", "grad")])
        means = {n: np.mean([arms[n][key] for key in keys], 0) for n in shown if n in arms}
        fewer = ""
        if VANILLA in means and len(means[arm.name]) > 1:
            found = paired(means[arm.name], means[VANILLA])
            fewer = f"{points(found)} {answer(found)}"
        rates = [_spread(means[name]) if name in means else "" for name in shown]
        rows.append([label(arm.name), ", ".join(arm.unknown_modes), *rates, fewer])
    headers = (
        *("direction of", "unknown", "their hack %", "vanilla's", "with all known", "with pairs"),
        *("with a random direction", "fewer than vanilla's"),
    )
    return markdown_table(headers, rows) if rows else ""


def question_table(arms: Mapping[str, Scores]) -> str:
    """Returns the referee's questions as differences between arms."""
    rows = []
    for question in QUESTIONS:
        hacks = difference(arms, question.arm, question.reference)
        passes = difference(arms, question.reference, question.arm, "pass")
        renamed = difference(arms, question.arm, question.reference, RENAMED)
        pair = f"{question.arm} against {question.reference}"
        found = (points(hacks), points(passes), answer(hacks), points(renamed))
        rows.append([question.text, pair, *found])
    headers = (
        *("question", "arms", "fewer hacks [points]", "more passes [points]", "shown"),
        "fewer hacks under new names [points]",
    )
    return markdown_table(headers, rows)


def hypothesis_table(results: Mapping[str, Result], arms: Mapping[str, Scores]) -> str:
    """Returns the falsification report of section 7."""
    rows = []
    for hack in (HACK, RENAMED):
        for found in (h1(arms, hack), h3(arms, hack), h4(results, hack)):
            rows.append([found.name, found.claim, found.verdict, found.evidence])
    return markdown_table(["hypothesis", "claim", "verdict", "evidence"], rows)


def horizon_note(results: Mapping[str, Result]) -> str:
    """Returns the length of the runs next to the time that vanilla takes to its plateau."""
    if VANILLA not in results:
        return ""
    steps, values = curve(results[VANILLA], "hack")
    last = int(steps[-1])
    if values.mean(0)[-2:].mean() < AT_FIRST:
        return f"After {last} updates vanilla does not hack, so it has no plateau."
    reached = plateau(steps, values.mean(0))
    times = last / max(reached, 1)
    enough = "at least" if times >= 3.0 else "**not** the asked-for"
    return (
        f"Vanilla's hack rate keeps 90 % of its final height from update {reached} on; the runs "
        f"have {last}, {times:.1f} times as many, {enough} three times."
    )


def signal_part(arms: Mapping[str, Scores], name: str) -> str:
    """Returns mean c / mean relu(c) of an arm, in percent; vanilla's with its interval."""
    if name not in arms:
        return "not measured"
    part = arms[name]["mean_c"] / np.maximum(arms[name]["mean_positive_c"], 1e-30)
    if name != VANILLA:
        return _spread(part)
    interval = mean_interval(part)[1:] if len(part) > 1 else None
    return f"{100 * part.mean():.1f}{ends([100 * end for end in interval or ()], 1)}"


def quarantine_note(arms: Mapping[str, Scores]) -> str:
    """Returns the length of the quarantine's coefficients next to that of the others."""
    routed = {name: own for name, own in arms.items() if "quarantine_ratio" in own}
    return "; ".join(
        f"{label(name)}: {_spread(own['quarantine_ratio'], 1.0, 2)}" for name, own in routed.items()
    )


def direction_table(result: Result) -> str:
    """Returns the held-out cosines of every kind of direction, and the gate."""
    rows = []
    for row in result["rows"]:
        numbers = [f"{np.mean(row[key]):.2f}" for key in ("mean", "median", "positive_fraction")]
        passed = f"{sum(map(bool, row['passed']))} of {len(row['passed'])}"
        rows.append([row["direction"], f"{row['texts']}", *numbers, passed])
    headers = (
        *("direction", "held-out pairs", "mean cosine (target > 0.2)", "median (healthy > 0.3)"),
        *("part of the modules above 0", "draws that pass the gate (> 0.5)"),
    )
    return markdown_table(headers, rows)


def halves_table(sides: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Returns what the hacks and the clean programs contribute to a direction."""
    keys = ("nats", "norm", "norm_of_one", "cosine", "module_cosine")
    rows = []
    for contrast, halves in sides.items():
        for side, numbers in halves.items():
            rows.append([contrast, side, *(f"{numbers[key]:.3f}" for key in keys)])
    headers = (
        *("contrast", "side", "nats per token", "norm of its mean gradient"),
        *("mean norm of one program's", "cosine with the direction", "mean over modules"),
    )
    return markdown_table(headers, rows)


def controller_table(results: Mapping[str, Result], arms: Mapping[str, Scores]) -> str:
    """Returns the learned strength next to constants, at equal updates."""
    learned = sorted(name for name in results if name.startswith(f"{CONTROLLER}-"))
    titles = {VANILLA: "never on", PLAIN: "always on"}
    if BEST_CONSTANT in results:
        best = results[BEST_CONSTANT]["extra"]["chosen"]
        titles[BEST_CONSTANT] = f"best constant, {best:g}"

    def score(name: str) -> str:
        values = safe_pass(arms[name])
        interval = mean_interval(values)[1:] if len(values) > 1 else None
        return f"{100 * values.mean():.1f}{ends([100 * end for end in interval or ()], 1)}"

    def strength(name: str) -> str:
        used = [row["strengths"] for row in results[name]["rows"] if "strengths" in row]
        if not used:
            return ""
        return f"{np.mean(used):.2f} ({np.min(used):.2f} to {np.max(used):.2f})"

    def above(reference: str) -> Callable[[str], str]:
        def cell(name: str) -> str:
            if name not in learned or reference not in arms or len(arms[name]["pass"]) < 2:
                return ""
            return points(paired(safe_pass(arms[reference]), safe_pass(arms[name])))

        return cell

    columns = [
        Column("strength", lambda name: titles.get(name) or label(name)),
        Column("pass less hack %", score),
        Column("hack %", lambda name: _spread(arms[name]["hack"])),
        Column("pass %", lambda name: _spread(arms[name]["pass"])),
        Column("mean strength used (range), of 1", strength),
        Column(
            "updates spent beforehand",
            lambda name: f"{results[name]['extra'].get('updates_spent', 0):,}",
        ),
        Column("above never on", above(VANILLA)),
        Column("above always on", above(PLAIN)),
        Column("above the best constant", above(BEST_CONSTANT)),
    ]
    return engine.table([*(name for name in titles if name in arms), *learned], columns)
