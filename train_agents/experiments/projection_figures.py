"""Figures of the projection experiment: hacks against passes, histograms, and curves."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from hpenv.arrays import FloatArray
from train_agents import figure_style, figures
from train_agents.experiments import report as engine
from train_agents.experiments.projection_arms import (
    ARMS,
    CONTROLLER,
    MAIN,
    MAIN_REBOUND,
    PLAIN,
    RANDOM,
    VANILLA,
)
from train_agents.experiments.projection_claims import EMERGED, curve
from train_agents.experiments.report import Data
from train_agents.experiments.samples import Row, arm_of

#: The number of markers has no divisor in common with the number of colors, so that no two of many
#: arms look the same.
MARKERS = "osD^vP*Xph<>d"
#: Arms that figures name by the paper's letters.
LETTERS = {
    VANILLA: "(a)",
    MAIN: "(b)",
    PLAIN: "(c)",
    MAIN_REBOUND: "(d)",
}
#: Figure -> groups of arms in it; vanilla and the main arm are in both.
PICTURES = {
    "hack_against_pass": ("paper", "controls"),
    "hack_against_pass_more": ("axes", "routing", "detector"),
}
#: As many as there are colors.
CURVES = (
    VANILLA,
    MAIN,
    RANDOM,
    "update_two_sided",
    "drift",
    "all_modes_true",
    MAIN_REBOUND,
)
LONGER = tuple(arm.name for arm in ARMS if arm.length > 1)
#: Arms whose modules are drawn one by one.
MODULES = (
    *("vanilla_again", "projection_again", "misnamed", "misnamed_true"),
    *("appended", "appended_true", "exploits", "exploits_true"),
)


def pareto_front(points: FloatArray) -> NDArray[np.int64]:
    """Returns the indices of the points (n, 2) of pass and hack rate that no other dominates.

    A point dominates if it is better in one rate and as good in both. The order is by pass rate.
    """
    undominated = []
    for i, (passes, hacks) in enumerate(points):
        as_good = (points[:, 0] >= passes) & (points[:, 1] <= hacks)
        better = (points[:, 0] > passes) | (points[:, 1] < hacks)
        if not (as_good & better).any():
            undominated.append(i)
    return np.array(sorted(undominated, key=lambda i: tuple(points[i])), dtype=np.int64)


def points(key: str, data: Data) -> list[tuple[str, str, FloatArray]]:
    """Returns label, note, and pass and hack rates (seeds, 2) of the arms of a figure.

    The last entry, without a label, has the means of the arms of both figures, (n, 2).
    """
    shown = data.of_group(*PICTURES[key])
    if len(shown) < 2:
        return []

    def rates(name: str) -> FloatArray:
        return 100 * np.stack([data.arms[name][each].values[0] for each in ("pass", "hack")], 1)

    first = [name for name in (VANILLA, MAIN) if name in data.arms and name not in shown]
    every = data.of_group(*chain.from_iterable(PICTURES.values()))
    drawn = [(data.label(n), LETTERS.get(n, ""), rates(n)) for n in (*first, *shown)]
    return [*drawn, ("", "", np.array([rates(name).mean(0) for name in every]))]


def draw_points(path: figure_style.File, shown: Sequence[tuple[str, str, FloatArray]]) -> None:
    """Draws hack rates over pass rates, with the Pareto front of means (the paper's section 6).

    Every arm and seed has a point. An arm's mean has a larger one.
    """
    *arms, (_, _, means) = shown
    figure, axes = figure_style.canvas(9.0, max(5.0, 0.36 * len(arms)))
    # After the canvas, which says what to install if matplotlib is missing.
    from matplotlib.patheffects import withStroke

    halo = withStroke(linewidth=2.5, foreground="white")
    note_style = {"xytext": (7, -14), "textcoords": "offset points", "fontsize": "small"}
    small = {"markersize": 4, "alpha": 0.45, "markeredgewidth": 0}
    large = {"markersize": 8, "markeredgecolor": "black"}

    for number, (label, note, rates) in enumerate(arms):
        marker = MARKERS[number % len(MARKERS)]
        style = {"color": figure_style.color_of(number), "marker": marker, "linestyle": ""}
        axes.plot(rates[:, 0], rates[:, 1], **small, **style)
        axes.plot(*rates.mean(0), label=label, **large, **style)
        if note:
            text = axes.annotate(note, tuple(rates.mean(0)), zorder=4, **note_style)
            text.set_path_effects([halo])

    front = means[pareto_front(means)]
    line = {"color": "0.45", "linewidth": 1.0, "linestyle": "--", "zorder": 0}
    circles = {"marker": "o", "markersize": 16, "fillstyle": "none"}
    axes.plot(front[:, 0], front[:, 1], label="Pareto front of all means", **line, **circles)

    low, high = axes.get_ylim()
    axes.set_ylim(min(low, -5.0), max(high, 10.0))
    axes.set(xlabel="held-out pass rate without a loophole [%]", ylabel="held-out hack rate [%]")
    figure_style.legend_right(figure, axes, "mean; small: one seed")
    figure_style.save(figure, path)


def rate_curves(
    names: tuple[str, ...], key: str, source: str, data: Data
) -> dict[str, figures.Curve]:
    """Returns a rate over the updates of some arms, in percent."""
    curves = {}
    for name in (name for name in names if name in data.jobs):
        steps, values = curve(data.jobs[name], key, source)
        curves[data.label(name)] = (steps, 100 * values)
    return curves


def long_curves(data: Data) -> dict[str, figures.Curve]:
    """Returns the hack rates of the arms of twice the length, and of two of the usual one."""
    curves = partial(rate_curves, key="hack", source="reports", data=data)
    return curves((VANILLA, MAIN, *LONGER)) if curves(LONGER) else {}


def strengths(data: Data) -> dict[str, figures.Curve]:
    """Returns the strengths that the learned controllers chose, in percent."""
    curves = {}
    for name in (name for name in data.arms if arm_of(name) == CONTROLLER):
        used = 100 * np.array([row["strengths"] for row in data.rows(name)])
        end = data.rows(name)[0]["steps"][-1]
        curves[data.label(name)] = (np.linspace(0, end, used.shape[1], endpoint=False), used)
    return curves


def module_cosines(data: Data) -> dict[str, dict[str, figures.Curve]]:
    """Returns the mean cosine of each module over the updates, by arm.

    This is the trajectory of `cos_align` of the paper's section 5.
    """
    panels = {}
    for name in (name for name in MODULES if name in data.jobs):
        rows = data.rows(name)
        lines = np.mean([list(row["module_cos"].values()) for row in rows], 0)  # (modules, P)
        steps = rows[0]["steps"][1:]
        panels[data.label(name)] = {str(n): (steps, line) for n, line in enumerate(lines)}
    return panels


def draw_cosines(path: figure_style.File, rows: Sequence[Row]) -> None:
    """Draws histograms of the modules' held-out cosines (the paper's `cos_align_held`)."""
    figure, every = figure_style.panel_grid(len(rows), 3, (3.0, 2.4), (0.4, 0.4), sharey=True)
    edges = np.linspace(-1.0, 1.0, 21)

    for axes, row in zip(every, rows, strict=True):
        values = np.array(list(row["cosines"].values()), dtype=np.float64)  # (modules, draws)
        # A cosine of 0: the module has no axis.
        median = float(np.mean([np.median(draw[draw != 0.0]) for draw in values.T]))
        weights = np.full(values.size, 1.0 / values.shape[1])
        axes.hist(values.ravel(), edges, weights=weights, color=figure_style.COLORS[0])
        axes.axvline(median, color=figure_style.COLORS[1], linewidth=1.4)
        title = figure_style.wrap_label(row["direction"], 34)
        axes.set_title(f"{title}\nmedian {median:.2f}", fontsize="small")
        axes.tick_params(labelbottom=True)

    figure.supxlabel("held-out cosine of a module", fontsize="medium")
    figure.supylabel("modules", fontsize="medium")
    figure_style.save(figure, path)


_draw = partial(figures.curves, xlabel="update", band="seeds", size=(8.5, 4.4))
_draw_hacks = partial(_draw, ylabel="held-out hack rate [%]", level=100 * EMERGED)
_draw_trained = partial(_draw, ylabel="hack rate of the rollouts [%]", level=100 * EMERGED)
_draw_passes = partial(_draw, ylabel="held-out pass rate without a loophole [%]")
_draw_strengths = partial(_draw, ylabel="strength of projection [%]", is_held=True)
_draw_modules = partial(figures.line_panels, xlabel="update", ylabel="cosine")
FIGURES: dict[str, engine.Figure] = {
    **{key: (partial(points, key), draw_points) for key in PICTURES},
    "hack_curves": (partial(rate_curves, CURVES, "hack", "reports"), _draw_hacks),
    "pass_curves": (partial(rate_curves, CURVES, "pass", "reports"), _draw_passes),
    "train_hack_curves": (partial(rate_curves, CURVES, "train_hack", "means"), _draw_trained),
    "hack_curves_long": (long_curves, _draw_hacks),
    "module_cosines": (module_cosines, _draw_modules),
    "cosines": (lambda data: data.rows("direction"), draw_cosines),
    "strengths": (strengths, _draw_strengths),
}
