"""Parts of `results/adaptive/template.md`: tables and figures of AdaptiveRL's experiments."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from hpenv.arrays import FloatArray
from train_agents import figures
from train_agents.experiments import report as engine
from train_agents.experiments.measures.shifted import around_shift
from train_agents.experiments.report import Data
from train_agents.experiments.samples import Result, Row, Scores, arm_of, bits_per_byte, samples

#: Arm that the others are compared with.
REFERENCE = "sweep_constant"
GROUPS = ("baselines", "law", "ablations", "starts")
#: Groups with tables of their own: their runs are of another text or length.
OTHERS = ("shift", "stability")
DIALS = ("lr", "momentum", "exploration")
#: Dials whose values are multipliers.
MULTIPLIERS = ("lr", "momentum")
#: Fraction of the run after which the reference's mean probe loss is the target.
TARGET_AT = 0.5


def _numbers(target: float, row: Row) -> dict[str, float]:
    """Returns bits per byte, mean probe loss, and steps to the target or to the end of a run."""
    curve, steps = np.array(row["probe_curve"], dtype=np.float64), np.array(row["steps"])
    reached = np.flatnonzero(curve <= target)
    area = float(np.trapezoid(curve, steps) / (steps[-1] - steps[0]))
    time = float(steps[reached[0]]) if len(reached) else float(steps[-1])
    return bits_per_byte(row) | {"area": area, "time": time}


def _target(jobs: Mapping[str, Result]) -> float:
    """Returns the probe loss of the time to target. Nothing reaches it without the reference."""
    if REFERENCE not in jobs:
        return -np.inf
    curves = np.array([row["probe_curve"] for row in jobs[REFERENCE]["rows"]], dtype=np.float64)
    return float(curves.mean(0)[round(TARGET_AT * (curves.shape[1] - 1))])


def arms(jobs: Mapping[str, Result]) -> dict[str, Scores]:
    """Returns bits per byte, mean probe loss and time to target of every arm."""
    members: dict[str, list[Result]] = {}
    for name, result in jobs.items():
        if result["rows"] and "bpb" in result["rows"][0]:
            members.setdefault(arm_of(name), []).append(result)
    numbers = partial(_numbers, _target(jobs))
    return {arm: samples(results, numbers) for arm, results in members.items()}


def summarize(data: Data) -> dict[str, dict[str, Any]]:
    """Returns each arm's numbers, its intervals, and how far it lies below the reference."""
    found: dict[str, dict[str, Any]] = {}
    comparable = data.of_group(*GROUPS)
    for arm, scores in data.arms.items():
        entry: dict[str, Any] = {key: each.estimate() for key, each in scores.items()}
        entry |= {"seeds": len(scores["bpb"].seeds), "diverged": data.divergences(arm)}
        if arm in comparable:
            entry["below_constant"] = data.below(arm, REFERENCE)
        found[arm] = entry
    return found


def arm_table(data: Data, *groups: str) -> str:
    """Returns the arms of some groups, and how far each lies below the tuned constant."""

    def below(arm: str) -> str:
        return "" if arm == REFERENCE else engine.interval_text(data.below(arm, REFERENCE))

    def number(key: str, form: str) -> engine.Cell:
        return lambda arm: engine.interval_text(data.arms[arm][key].estimate(), form, 1.0, "")

    columns: engine.Columns = [
        ("arm", data.label),
        engine.bpb_column(data),
        ("below the tuned constant", below),
        ("mean probe loss [nats]", number("area", ".3f")),
        ("steps to target", number("time", ".0f")),
        ("diverged", lambda arm: str(data.divergences(arm))),
    ]
    return engine.table(data.of_group(*(groups or GROUPS)), columns)


def sweep_table(data: Data, name: str) -> str:
    """Returns what a sweep tried."""
    return engine.tried_table(data.jobs[name]) if name in data.jobs else ""


def drift_table(data: Data) -> str:
    """Returns the law on planted losses: its drift, and its dials around the event."""

    def turn(name: str) -> engine.Cell:
        return lambda row: "{before:.3g}, {lowest:.3g} to {highest:.3g}, {after:.3g}".format_map(
            row[name]
        )

    columns: engine.Columns = [
        ("planted loss", "{stream}".format_map),
        ("gains", "{gains}".format_map),
        ("drift of log rate per decision", "{drift:+.4f}".format_map),
        ("of the formula alone", "{expected_drift:+.4f}".format_map),
        *((f"{name}: before, range, after", turn(name)) for name in DIALS),
    ]
    return engine.table(data.rows("drift"), columns)


def gains_table(data: Data) -> str:
    """Returns the gains that were tried, with the mean final probe loss from either start."""
    columns: engine.Columns = [
        ("gains", "{gains}".format_map),
        ("from 30 times too low [nats]", "{low:.3f}".format_map),
        ("from 10 times too high [nats]", "{high:.3f}".format_map),
        ("mean [nats]", "{probe_loss:.3f}".format_map),
    ]
    return engine.table(data.rows("gains"), columns)


def shift_table(data: Data) -> str:
    """Returns the dials around the change of the text, and the score on the second text."""

    def turn(name: str) -> engine.Cell:
        def cell(arm: str) -> str:
            rows = data.rows(arm)
            if name not in rows[0]["panel"]:
                return ""
            found = around_shift(rows, name)
            return "{before:.3g}, {lowest:.3g} to {highest:.3g}, {end:.3g}".format_map(found)

        return cell

    columns: engine.Columns = [
        ("arm", data.label),
        engine.bpb_column(data),
        *((f"{name}: before, range, end", turn(name)) for name in DIALS),
    ]
    return engine.table(data.of_group("shift"), columns)


def stability_table(data: Data) -> str:
    """Returns how many runs of every start and gains diverged."""
    columns: engine.Columns = [
        ("start and gains", data.label),
        ("runs", lambda arm: str(len(data.rows(arm)))),
        ("diverged", lambda arm: str(data.divergences(arm))),
    ]
    return engine.table(data.of_group("stability"), columns)


def _correlation(rows: list[Row]) -> dict[str, float]:
    """Returns the two correlations of section 8, over all decisions and seeds.

    They are of the change of log rate with the change of the window's reward, and of its opposite
    with the rise of the window's loss, 0 where it falls.
    """
    changes, rewards = [], []
    for row in rows:
        logs = np.log(np.array(row["panel"]["lr"], dtype=np.float64))
        losses = np.array(row["train_curve"], dtype=np.float64)
        changes.append(np.diff(logs)[1:])
        rewards.append(-np.diff(losses)[:-1])
    change, reward = np.concatenate(changes), np.concatenate(rewards)
    rise = np.maximum(-reward, 0.0)
    if min(change.std(), reward.std(), rise.std()) == 0:
        return {}
    return {
        "correlation.reward": float(np.corrcoef(reward, change)[0, 1]),
        "correlation.loss": float(np.corrcoef(rise, -change)[0, 1]),
    }


def values(data: Data) -> dict[str, Any]:
    """Returns the numbers of the page's sentences, as far as they were measured."""
    found: dict[str, Any] = {}
    rows = [row for row in data.rows("adaptive") if row["divergence_reason"] is None]
    if rows:
        found |= _correlation(rows)
    for row in data.rows("drift"):
        if row["stream"] == "stationary":
            found[f"{row['gains']}.drift"] = row["drift"]
            found[f"{row['gains']}.expected"] = row["expected_drift"]
    for arm in data.of_group(*GROUPS):
        gap = data.below(arm, REFERENCE)
        if gap and arm != REFERENCE:
            found[f"{arm}.below"] = 100 * gap[0]
    return found


def _curve(data: Data, arm: str, key: str) -> figures.Curve:
    rows = [row for row in data.rows(arm) if row["divergence_reason"] is None] or data.rows(arm)
    return np.array(rows[0]["steps"]), np.array([row[key] for row in rows], dtype=np.float64)


def losses(groups: tuple[str, ...], data: Data) -> dict[str, figures.Curve]:
    """Returns the probe loss over the steps of the arms of some groups."""
    names = data.of_group(*groups)
    return {data.label(name): _curve(data, name, "probe_curve") for name in names}


def dials(data: Data) -> dict[str, dict[str, figures.Curve]]:
    """Returns the multipliers over the steps of every arm with the law, a panel per dial."""
    panels: dict[str, dict[str, figures.Curve]] = {}
    for arm in data.of_group("law", "starts"):
        rows = data.rows(arm)
        for name in MULTIPLIERS:
            if name in rows[0]["panel"]:
                steps: FloatArray = np.array(rows[0]["steps"][:-1], dtype=np.float64)
                traces = np.array([row["panel"][name] for row in rows], dtype=np.float64)
                panels.setdefault(name, {})[data.label(arm)] = (steps, traces.mean(0))
    return panels


_draw_losses = partial(figures.curves, xlabel="training step", ylabel="probe loss [nats per token]")
FIGURES: dict[str, engine.Figure] = {
    "losses": (partial(losses, ("baselines", "law")), _draw_losses),
    "starts": (partial(losses, ("starts",)), _draw_losses),
    "dials": (dials, partial(figures.line_panels, ylabel="multiplier", is_ratio=True)),
}
PARTS: dict[str, engine.Part] = {
    "arms": arm_table,
    "sweep": sweep_table,
    "gains": gains_table,
    "shift": shift_table,
    "stability": stability_table,
    "drift": drift_table,
}
