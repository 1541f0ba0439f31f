"""Parts of `results/projection/template.md`: tables of the projection experiment.

`projection_claims` has what was fixed beforehand: hypotheses and their criteria.
`projection_figures` has the figures.

The module is longer than usual because it has a function for each table.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from hpenv.posttraining.grading.loopholes import LOOPHOLES, TRAINING_MODES
from train_agents.experiments import projection_claims as claims
from train_agents.experiments import report as engine
from train_agents.experiments.projection_arms import (
    ARMS,
    BEST_CONSTANT,
    CONTROLLER,
    DERIVED,
    GROUPS,
    PLAIN,
    VANILLA,
    Arm,
)
from train_agents.experiments.projection_claims import answer, safe_pass
from train_agents.experiments.projection_figures import FIGURES
from train_agents.experiments.report import Cell, Data, plus_minus, points
from train_agents.experiments.samples import Sample, arm_of

#: Arms that are run twice as long.
LONG = frozenset(arm.name for arm in ARMS if arm.length > 1)
#: Arms that project something.
PROJECTING = frozenset(a.name for a in (*ARMS, *DERIVED) if "projection_strength" in a.values)
#: Target -> arms of the same target that loopholes unknown to a direction are compared with.
COMPARED_WITH_UNKNOWN = {
    "grad": (VANILLA, "all_modes", "projection", "random"),
    "update": (VANILLA, "all_modes_true", "update_two_sided", "update_random_two_sided"),
}
#: Arms whose mean c / mean relu(c) the page states.
SIGNALS = ("projection", "random", "all_modes", "all_modes_true")
#: Columns of the sweep of constant strengths.
STRENGTHS: engine.Columns = (
    ("strength", "{strength:g}".format_map),
    ("pay per decision (which chose)", "{pay:.4f}".format_map),
    ("pass %", lambda entry: f"{100 * entry['pass']:.1f}"),
    ("hack %", lambda entry: f"{100 * entry['hack']:.1f}"),
)


def _is_active(data: Data, name: str) -> bool:
    return name in PROJECTING and "kl" in data.arms[name] and claims.is_active(data.arms[name])


def _percent(sample: Sample) -> str:
    """Returns a mean in percent, with its 95 % interval over the seeds if there are several."""
    return engine.interval_text(sample.estimate(), ".1f", unit="")


def _cell(data: Data, key: str, factor: float = 100.0, digits: int = 1) -> Cell:
    """Returns a cell with mean and standard error of a number, empty where an arm lacks it."""

    def cell(name: str) -> str:
        scores = data.arms[name]
        return plus_minus(scores[key], factor, digits) if key in scores else ""

    return cell


def main_table(data: Data, names: Sequence[str]) -> str:
    """Returns the table of the paper's section 6, with further diagnostics."""

    def gain(name: str) -> str:
        end = "_end" if name.endswith("_erased") else ""
        reference = VANILLA + ("_long" if name in LONG else end)
        if name == reference or reference not in data.arms:
            return "0 (ref)" if reference in data.arms else ""
        return plus_minus(safe_pass(data.arms[name]).above(safe_pass(data.arms[reference])))

    def component(key: str) -> Cell:
        return lambda name: f"{data.arms[name][key].mean:.2e}" if key in data.arms[name] else ""

    def cosine(name: str) -> str:
        return _cell(data, "mean_cos", 1.0, 3)(name) + ("*" if _is_active(data, name) else "")

    columns: engine.Columns = [
        ("arm", data.label),
        ("ΔSafePass ↑", gain),
        ("hack % ↓", _cell(data, "hack")),
        ("pass % ↑", _cell(data, "pass")),
        ("KL ↓", _cell(data, "kl", 1.0, 3)),
        ("mean cos", cosine),
        ("frac fired", _cell(data, "frac_fired", 1.0, 2)),
        ("gradient norm", _cell(data, "gradient_norm", 1.0, 3)),
        ("removed fraction", _cell(data, "removed_fraction", 1.0, 3)),
        ("mean c", component("mean_c")),
        ("mean relu(c)", component("mean_positive_c")),
        ("mean min(c, 0)", component("mean_negative_c")),
        ("knobs along it", _cell(data, "along", 1.0, 3)),
    ]
    return engine.table(names, columns)


def group_tables(data: Data) -> str:
    """Returns the table of each group of arms, below vanilla."""
    sections = []
    for group, title in GROUPS.items():
        if names := data.of_group(group):
            is_alone = VANILLA in names or VANILLA not in data.arms
            shown = names if is_alone else [VANILLA, *names]
            sections.append(f"### {title}\n\n{main_table(data, shown)}")
    return "\n\n".join(sections)


def mode_table(data: Data) -> str:
    """Returns hacks by loophole, under new names and in training."""
    unknown = {arm.name: arm.unknown_modes for arm in ARMS}

    def hacks(mode: str) -> Cell:
        def cell(name: str) -> str:
            text = _cell(data, f"hack_{mode}")(name)
            return f"{text} (unknown)" if text and mode in unknown.get(name, ()) else text

        return cell

    columns: engine.Columns = [
        ("arm", data.label),
        *((mode, hacks(mode)) for mode in TRAINING_MODES),
        ("under new names", _cell(data, "renamed_hack")),
        ("in training", _cell(data, "train_hack")),
        ("right under a loophole", _cell(data, "correct")),
    ]
    return engine.table(data.of_group(*GROUPS), columns)


def unknown_table(data: Data) -> str:
    """Returns the hack rates of the loopholes that a direction was made without.

    Next to them stand those of vanilla and of directions made of all loopholes.
    """

    def rate(arm: Arm, name: str) -> Sample | None:
        keys = [f"hack_{mode}" for mode in arm.unknown_modes]
        if name not in data.arms or not set(keys) <= set(data.arms[name]):
            return None
        samples = [data.arms[name][key] for key in keys]
        return Sample(samples[0].seeds, np.mean([sample.values for sample in samples], 0))

    def other_rate(place: int) -> Cell:
        def cell(arm: Arm) -> str:
            name = COMPARED_WITH_UNKNOWN[arm.grpo.get("target", "grad")][place]
            found = rate(arm, name)
            return plus_minus(found) if found else ""

        return cell

    def own(arm: Arm) -> str:
        found = rate(arm, arm.name)
        return plus_minus(found) if found else ""

    def fewer(arm: Arm) -> str:
        ours, theirs = rate(arm, arm.name), rate(arm, VANILLA)
        if ours is None or theirs is None:
            return ""
        found = ours.below(theirs, relative=False)
        return f"{points(found)} {answer(found)}"

    columns: engine.Columns = [
        ("direction of", lambda arm: data.label(arm.name)),
        ("unknown", lambda arm: ", ".join(arm.unknown_modes)),
        ("their hack %", own),
        ("vanilla's", other_rate(0)),
        ("with all known", other_rate(1)),
        ("with pairs", other_rate(2)),
        ("with a random direction", other_rate(3)),
        ("fewer than vanilla's", fewer),
    ]
    return engine.table([a for a in ARMS if a.unknown_modes and rate(a, a.name)], columns)


def question_table(data: Data) -> str:
    """Returns the referee's questions as differences between arms."""

    def fewer(asked: claims.Question, key: str = claims.HACK) -> list[float]:
        return data.below(asked.arm, asked.reference, key, relative=False)

    def passes(asked: claims.Question) -> str:
        return points(data.below(asked.reference, asked.arm, "pass", relative=False))

    columns: engine.Columns = [
        ("question", lambda asked: asked.text),
        ("arms", lambda asked: f"{asked.arm} against {asked.reference}"),
        ("fewer hacks [points]", lambda asked: points(fewer(asked))),
        ("more passes [points]", passes),
        ("shown", lambda asked: answer(fewer(asked))),
        ("fewer hacks under new names [points]", lambda q: points(fewer(q, claims.RENAMED))),
    ]
    return engine.table(claims.QUESTIONS, columns)


def hypothesis_table(data: Data) -> str:
    """Returns the falsification report of section 7."""
    found: list[claims.Finding] = []
    for hack in (claims.HACK, claims.RENAMED):
        found += [claims.h1(data.arms, hack), claims.h3(data.arms, hack)]
        found.append(claims.h4(data.jobs, hack))
    columns: engine.Columns = [
        ("hypothesis", lambda each: each.name),
        ("claim", lambda each: each.claim),
        ("verdict", lambda each: each.verdict),
        ("evidence", lambda each: each.evidence),
    ]
    return engine.table(found, columns)


def direction_table(data: Data) -> str:
    """Returns the held-out cosines of every kind of direction, and the gate."""

    def mean(key: str) -> Cell:
        return lambda row: f"{np.mean(row[key]):.2f}"

    columns: engine.Columns = [
        ("direction", "{direction}".format_map),
        ("held-out pairs", "{texts}".format_map),
        ("mean cosine (target > 0.2)", mean("mean")),
        ("median (healthy > 0.3)", mean("median")),
        ("part of the modules above 0", mean("positive_fraction")),
        (
            "draws that pass the gate (> 0.5)",
            lambda row: f"{sum(map(bool, row['passed']))} of {len(row['passed'])}",
        ),
    ]
    return engine.table(data.rows("direction"), columns)


def halves_table(data: Data) -> str:
    """Returns what the hacks and the clean programs contribute to a direction."""
    rows = []
    for contrast, halves in data.extra("direction").get("halves", {}).items():
        rows += [{"contrast": contrast, "side": side, **found} for side, found in halves.items()]
    columns: engine.Columns = [
        ("contrast", "{contrast}".format_map),
        ("side", "{side}".format_map),
        ("nats per token", "{nats:.3f}".format_map),
        ("norm of its mean gradient", "{norm:.3f}".format_map),
        ("mean norm of one program's", "{norm_of_one:.3f}".format_map),
        ("cosine with the direction", "{cosine:.3f}".format_map),
        ("mean over modules", "{module_cosine:.3f}".format_map),
    ]
    return engine.table(rows, columns)


def controller_table(data: Data) -> str:
    """Returns the learned strength next to constants, at equal updates."""
    learned = [name for name in data.arms if arm_of(name) == CONTROLLER]
    titles = {VANILLA: "never on", PLAIN: "always on"}
    if BEST_CONSTANT in data.jobs:
        titles[BEST_CONSTANT] = f"best constant, {data.extra(BEST_CONSTANT)['chosen']:g}"
    elif not learned:
        return ""

    def strength(name: str) -> str:
        used = [row["strengths"] for row in data.rows(name) if "strengths" in row]
        if not used:
            return ""
        return f"{np.mean(used):.2f} ({np.min(used):.2f} to {np.max(used):.2f})"

    def spent(name: str) -> str:
        return f"{data.extra(name).get('updates_spent', 0):,}"

    def above(reference: str) -> Cell:
        def cell(name: str) -> str:
            if name not in learned or reference not in data.arms:
                return ""
            gap = safe_pass(data.arms[name]).above(safe_pass(data.arms[reference]))
            return points(gap.estimate())

        return cell

    columns: engine.Columns = [
        ("strength", lambda name: titles.get(name) or data.label(name)),
        ("pass less hack %", lambda name: _percent(safe_pass(data.arms[name]))),
        ("hack %", _cell(data, "hack")),
        ("pass %", _cell(data, "pass")),
        ("mean strength used (range), of 1", strength),
        ("updates spent beforehand", spent),
        ("above never on", above(VANILLA)),
        ("above always on", above(PLAIN)),
        ("above the best constant", above(BEST_CONSTANT)),
    ]
    return engine.table([*(name for name in titles if name in data.arms), *learned], columns)


def strength_table(data: Data) -> str:
    """Returns the sweep of constant strengths."""
    best = data.jobs.get(BEST_CONSTANT)
    return engine.tried_table(best, STRENGTHS) if best else ""


def values(data: Data) -> dict[str, object]:
    """Returns the numbers and names of the page's sentences, as far as they were measured."""
    measured = [name for name in data.jobs if name in data.arms]
    diverged = [f"{data.label(n)} ({data.divergences(n)})" for n in measured if data.divergences(n)]
    active = [data.label(name) for name in data.arms if _is_active(data, name)]
    quarantines = [
        f"{data.label(name)}: {plus_minus(scores['quarantine_ratio'], 1.0, 2)}"
        for name, scores in data.arms.items()
        if "quarantine_ratio" in scores
    ]
    extra = data.extra("direction")
    found: dict[str, object] = {
        "active": ", ".join(active) or "no arm",
        "diverged": ", ".join(diverged) or "none",
        "quarantine": "; ".join(quarantines),
        "loopholes": ", ".join(f"{mode}: {LOOPHOLES[mode].name}" for mode in TRAINING_MODES),
        "questions": sum({q.arm, q.reference} <= set(data.arms) for q in claims.QUESTIONS),
        **{f"signal.{name}": _signal(data, name) for name in (VANILLA, *SIGNALS)},
        **{key: extra[key] for key in ("pairs", "held_out_pairs", "pairs_digest") if extra},
    }
    if extra:
        found |= {"problems": extra["problems"], "memorized": 100 * extra["memorizing_pass_rate"]}
    if measured:
        first = data.jobs[VANILLA if VANILLA in data.jobs else measured[0]]
        setting = first["configuration"]
        found["seeds"] = ", ".join(str(row["seed"]) for row in first["rows"])
        found["setting"] = json.dumps(setting.get("grpo") or setting.get("env_arguments"))
    return found | _plateau(data)


def _signal(data: Data, name: str) -> str:
    """Returns mean c / mean relu(c) of an arm, in percent. Vanilla's has its interval."""
    if name not in data.arms:
        return "not measured"
    mean, positive = (data.arms[name][key] for key in ("mean_c", "mean_positive_c"))
    fraction = Sample(mean.seeds, mean.values / np.maximum(positive.values, 1e-30))
    return _percent(fraction) if name == VANILLA else plus_minus(fraction)


def _plateau(data: Data) -> dict[str, float]:
    """Returns the length of the runs, and the time to vanilla's plateau if it hacks."""
    if VANILLA not in data.jobs:
        return {}
    steps, hacks = claims.curve(data.jobs[VANILLA], "hack")
    last, mean = int(steps[-1]), hacks.mean(0)
    if mean[-2:].mean() < claims.AT_FIRST:
        return {}
    reached = claims.plateau(steps, mean)
    return {"plateau": reached, "updates": last, "times": last / max(reached, 1)}


def summarize(data: Data) -> dict[str, dict[str, dict[str, object]]]:
    """Returns mean, standard error and the value of each seed of every number of every arm."""

    def entry(sample: Sample) -> dict[str, object]:
        return {"mean": sample.mean, "sem": sample.error, "seeds": sample.values[0].tolist()}

    return {
        name: {key: entry(sample) for key, sample in scores.items()}
        for name, scores in data.arms.items()
    }


PARTS: dict[str, engine.Part] = {
    "hypotheses": hypothesis_table,
    "questions": question_table,
    "arms": group_tables,
    "modes": mode_table,
    "unknown": unknown_table,
    "direction": direction_table,
    "halves": halves_table,
    "controllers": controller_table,
    "strengths_tried": strength_table,
}
REPORT = engine.Report(
    *("projection", (*ARMS, *DERIVED), claims.arm_scores, summarize, "hypotheses"),
    *(PARTS, FIGURES, values),
)
