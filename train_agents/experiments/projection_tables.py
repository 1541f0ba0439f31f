"""Tables of the projection experiment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from hpenv.arrays import FloatArray
from hpenv.benchmark.results import markdown_table
from hpenv.benchmark.statistics import mean_interval
from hpenv.posttraining.grading.loopholes import TRAINING_MODES
from train_agents.experiments import projection_claims as claims
from train_agents.experiments import report as engine
from train_agents.experiments.projection_arms import ARMS, GROUPS, PLAIN, VANILLA
from train_agents.experiments.projection_claims import Scores, answer, safe_pass
from train_agents.experiments.report import Cell, Column, Result, ends, points

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
#: Groups of what is measured in addition to the arms.
EXTRA_GROUPS = {"vanilla_erased": "controls", "route_on": "routing", "route_random_on": "routing"}
#: Target -> arms of the same target that loopholes unknown to a direction are compared with.
COMPARED_WITH_UNKNOWN = {
    "grad": ("vanilla", "all_modes", "projection", "random"),
    "update": ("vanilla", "all_modes_true", "update_two_sided", "update_random_two_sided"),
}


def label(name: str) -> str:
    """Returns the name of an arm in tables and figures."""
    stem, _, number = name.rpartition("-")
    return f"learned strength, controller {number}" if stem == CONTROLLER else LABELS[name]


def members(arms: Mapping[str, Scores], group: str) -> list[str]:
    """Returns the arms of a group that have numbers, in the order of the table."""
    names = [arm.name for arm in ARMS if arm.group == group]
    names += [name for name, other in EXTRA_GROUPS.items() if other == group]
    return [name for name in names if name in arms]


def _is_active(name: str, scores: Scores) -> bool:
    return name in PROJECTING and "kl" in scores and claims.is_active(scores)


def active_arms(arms: Mapping[str, Scores]) -> str:
    """Returns the arms that are active by the paper's sign."""
    active = [label(name) for name, scores in arms.items() if _is_active(name, scores)]
    return ", ".join(active) or "no arm"


def _spread(values: FloatArray, factor: float = 100.0, digits: int = 1) -> str:
    """Returns mean and standard error over the seeds."""
    error = f" ± {factor * claims.sem(values):.{digits}f}" if len(values) > 1 else ""
    return f"{factor * values.mean():.{digits}f}{error}"


def _mean_interval(values: FloatArray) -> str:
    """Returns a mean in percent, with its 95 % interval over the seeds if there are several."""
    interval = mean_interval(values)[1:] if len(values) > 1 else ()
    return f"{100 * values.mean():.1f}{ends([100 * end for end in interval], 1)}"


def _cell(arms: Mapping[str, Scores], key: str, factor: float = 100.0, digits: int = 1) -> Cell:
    """Returns a cell with mean and standard error of a number, empty where an arm lacks it."""

    def cell(name: str) -> str:
        return _spread(arms[name][key], factor, digits) if key in arms[name] else ""

    return cell


def main_table(arms: Mapping[str, Scores], names: Sequence[str]) -> str:
    """Returns the table of the paper's section 6, with further diagnostics."""

    def gain(name: str) -> str:
        end = "_end" if name.endswith("_erased") else ""
        reference = VANILLA + ("_long" if name in LONG else end)
        if name == reference or reference not in arms:
            return "0 (ref)" if reference in arms else ""
        pair = (safe_pass(arms[name]), safe_pass(arms[reference]))
        ours, theirs = claims.on_common_seeds(*pair)
        return _spread(ours - theirs)

    def component(key: str) -> Cell:
        return lambda name: f"{arms[name][key].mean():.2e}" if key in arms[name] else ""

    def cosine(name: str) -> str:
        is_marked = _is_active(name, arms[name])
        return _cell(arms, "mean_cos", 1.0, 3)(name) + ("*" if is_marked else "")

    columns = [
        Column("arm", label),
        Column("ΔSafePass ↑", gain),
        Column("hack % ↓", _cell(arms, "hack")),
        Column("pass % ↑", _cell(arms, "pass")),
        Column("KL ↓", _cell(arms, "kl", 1.0, 3)),
        Column("mean cos", cosine),
        Column("frac fired", _cell(arms, "frac_fired", 1.0, 2)),
        Column("gradient norm", _cell(arms, "gradient_norm", 1.0, 3)),
        Column("removed fraction", _cell(arms, "removed_fraction", 1.0, 3)),
        Column("mean c", component("mean_c")),
        Column("mean relu(c)", component("mean_positive_c")),
        Column("mean min(c, 0)", component("mean_negative_c")),
        Column("knobs along it", _cell(arms, "along", 1.0, 3)),
    ]
    return engine.table(names, columns)


def mode_table(arms: Mapping[str, Scores]) -> str:
    """Returns hacks by loophole, under new names and in training."""
    unknown = {arm.name: arm.unknown_modes for arm in ARMS}

    def hacks(mode: str) -> Cell:
        def cell(name: str) -> str:
            text = _cell(arms, f"hack_{mode}")(name)
            return f"{text} (unknown)" if text and mode in unknown.get(name, ()) else text

        return cell

    columns = [
        Column("arm", label),
        *(Column(mode, hacks(mode)) for mode in TRAINING_MODES),
        Column("under new names", _cell(arms, "renamed_hack")),
        Column("in training", _cell(arms, "train_hack")),
        Column("right under a loophole", _cell(arms, "correct")),
    ]
    names: list[str] = []
    for group in GROUPS:
        names += members(arms, group)
    return engine.table(names, columns)


def unknown_table(arms: Mapping[str, Scores]) -> str:
    """Returns the hack rates of the loopholes that a direction was made without.

    Next to them stand those of vanilla and of directions made of all loopholes.
    """
    rows = []
    for arm in ARMS:
        scores = arms.get(arm.name, {})
        keys = [f"hack_{mode}" for mode in arm.unknown_modes if f"hack_{mode}" in scores]
        if not keys:
            continue

        names = (arm.name, *COMPARED_WITH_UNKNOWN[arm.grpo.get("target", "grad")])
        means = {n: np.mean([arms[n][key] for key in keys], 0) for n in names if n in arms}
        fewer = ""
        if VANILLA in means and len(means[arm.name]) > 1:
            found = claims.paired_difference(means[arm.name], means[VANILLA])
            fewer = f"{points(found)} {answer(found)}"
        rates = [_spread(means[name]) if name in means else "" for name in names]
        rows.append([label(arm.name), ", ".join(arm.unknown_modes), *rates, fewer])

    headers = (
        *("direction of", "unknown", "their hack %", "vanilla's", "with all known", "with pairs"),
        *("with a random direction", "fewer than vanilla's"),
    )
    return markdown_table(headers, rows) if rows else ""


def question_table(arms: Mapping[str, Scores]) -> str:
    """Returns the referee's questions as differences between arms."""
    rows = []
    for question in claims.QUESTIONS:
        arm, reference = question.arm, question.reference
        hacks = claims.difference(arms, arm, reference)
        passes = claims.difference(arms, reference, arm, "pass")
        renamed = claims.difference(arms, arm, reference, claims.RENAMED)
        found = (points(hacks), points(passes), answer(hacks), points(renamed))
        rows.append([question.text, f"{arm} against {reference}", *found])

    headers = ("question", "arms", "fewer hacks [points]", "more passes [points]", "shown")
    return markdown_table([*headers, "fewer hacks under new names [points]"], rows)


def hypothesis_table(results: Mapping[str, Result], arms: Mapping[str, Scores]) -> str:
    """Returns the falsification report of section 7."""
    rows = []
    for hack in (claims.HACK, claims.RENAMED):
        findings = (claims.h1(arms, hack), claims.h3(arms, hack), claims.h4(results, hack))
        rows += [[found.name, found.claim, found.verdict, found.evidence] for found in findings]
    return markdown_table(["hypothesis", "claim", "verdict", "evidence"], rows)


def horizon_note(results: Mapping[str, Result]) -> str:
    """Returns the length of the runs next to the time that vanilla takes to its plateau."""
    if VANILLA not in results:
        return ""
    steps, values = claims.curve(results[VANILLA], "hack")
    last, mean = int(steps[-1]), values.mean(0)
    if mean[-2:].mean() < claims.AT_FIRST:
        return f"After {last} updates vanilla does not hack, so it has no plateau."

    reached = claims.plateau(steps, mean)
    times = last / max(reached, 1)
    enough = "at least" if times >= 3.0 else "**not** the asked-for"
    return (
        f"Vanilla's hack rate keeps 90 % of its final height from update {reached} on; the runs "
        f"have {last}, {times:.1f} times as many, {enough} three times."
    )


def signal_part(arms: Mapping[str, Scores], name: str) -> str:
    """Returns mean c / mean relu(c) of an arm, in percent. Vanilla's has its interval."""
    if name not in arms:
        return "not measured"
    fraction = arms[name]["mean_c"] / np.maximum(arms[name]["mean_positive_c"], 1e-30)
    return _mean_interval(fraction) if name == VANILLA else _spread(fraction)


def quarantine_note(arms: Mapping[str, Scores]) -> str:
    """Returns the length of the quarantine's coefficients next to that of the others."""
    ratio = _cell(arms, "quarantine_ratio", 1.0, 2)
    return "; ".join(f"{label(name)}: {ratio(name)}" for name in arms if ratio(name))


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

    def strength(name: str) -> str:
        used = [row["strengths"] for row in results[name]["rows"] if "strengths" in row]
        if not used:
            return ""
        return f"{np.mean(used):.2f} ({np.min(used):.2f} to {np.max(used):.2f})"

    def spent(name: str) -> str:
        return f"{results[name]['extra'].get('updates_spent', 0):,}"

    def above(reference: str) -> Cell:
        def cell(name: str) -> str:
            if name not in learned or reference not in arms or len(arms[name]["pass"]) < 2:
                return ""
            pair = (safe_pass(arms[reference]), safe_pass(arms[name]))
            return points(claims.paired_difference(*pair))

        return cell

    columns = [
        Column("strength", lambda name: titles.get(name) or label(name)),
        Column("pass less hack %", lambda name: _mean_interval(safe_pass(arms[name]))),
        Column("hack %", _cell(arms, "hack")),
        Column("pass %", _cell(arms, "pass")),
        Column("mean strength used (range), of 1", strength),
        Column("updates spent beforehand", spent),
        Column("above never on", above(VANILLA)),
        Column("above always on", above(PLAIN)),
        Column("above the best constant", above(BEST_CONSTANT)),
    ]
    return engine.table([*(name for name in titles if name in arms), *learned], columns)
