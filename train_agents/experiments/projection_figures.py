"""Figures of the projection experiment: hacks against passes, histograms, and curves."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hpenv.arrays import FloatArray
from train_agents import figures

#: The number of markers has no divisor in common with the number of colors, so that no two of many
#: arms look the same.
MARKERS = "osD^vP*Xph<>d"


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


def hack_against_pass(
    path: figures.File,
    arms: Mapping[str, FloatArray],
    notes: Mapping[str, str],
    compared: FloatArray,
) -> None:
    """Draws hack rates over pass rates, with the Pareto front of means (the paper's section 6).

    Every arm and seed has a point. An arm's mean has a larger one.

    Args:
        path: PNG file.
        arms: label -> pass and hack rates, (seeds, 2).
        notes: label -> text next to the arm's mean.
        compared: means of pass and hack rate for the front, (n, 2), of these arms and others.
    """
    figure, axes = figures.canvas(9.0, max(5.0, 0.36 * len(arms)))
    # After the canvas, which says what to install if matplotlib is missing.
    from matplotlib.patheffects import withStroke

    halo = withStroke(linewidth=2.5, foreground="white")
    note_style = {"xytext": (7, -14), "textcoords": "offset points", "fontsize": "small"}
    small = {"markersize": 4, "alpha": 0.45, "markeredgewidth": 0}
    large = {"markersize": 8, "markeredgecolor": "black"}

    for number, (label, points) in enumerate(arms.items()):
        rates, mean = 100 * points, 100 * points.mean(0)
        marker = MARKERS[number % len(MARKERS)]
        style = {"color": figures.color_of(number), "marker": marker, "linestyle": ""}
        axes.plot(rates[:, 0], rates[:, 1], **small, **style)
        axes.plot(*mean, label=label, **large, **style)
        if label in notes:
            text = axes.annotate(notes[label], tuple(mean), zorder=4, **note_style)
            text.set_path_effects([halo])

    front = 100 * compared[pareto_front(compared)]
    line = {"color": "0.45", "linewidth": 1.0, "linestyle": "--", "zorder": 0}
    circles = {"marker": "o", "markersize": 16, "fillstyle": "none"}
    axes.plot(front[:, 0], front[:, 1], label="Pareto front of all means", **line, **circles)

    low, high = axes.get_ylim()
    axes.set_ylim(min(low, -5.0), max(high, 10.0))
    axes.set(xlabel="held-out pass rate without a loophole [%]", ylabel="held-out hack rate [%]")
    figures.legend_right(figure, axes, "mean; small: one seed")
    figures.save(figure, path)


def cosine_histograms(path: figures.File, panels: Mapping[str, ArrayLike]) -> None:
    """Draws histograms of the modules' held-out cosines (the paper's `cos_align_held`).

    Args:
        path: PNG file.
        panels: title, one per direction -> cosines of the modules, one per draw: (modules, draws).
    """
    figure, every = figures.panel_grid(len(panels), 3, (3.0, 2.4), (0.4, 0.4), sharey=True)
    edges = np.linspace(-1.0, 1.0, 21)

    for axes, (title, cosines) in zip(every, panels.items(), strict=True):
        values = np.asarray(cosines, dtype=np.float64)
        # A cosine of 0: the module has no axis.
        median = float(np.mean([np.median(draw[draw != 0.0]) for draw in values.T]))
        weights = np.full(values.size, 1.0 / values.shape[1])
        axes.hist(values.ravel(), edges, weights=weights, color=figures.COLORS[0])
        axes.axvline(median, color=figures.COLORS[1], linewidth=1.4)
        axes.set_title(f"{figures.wrap_label(title, 34)}\nmedian {median:.2f}", fontsize="small")
        axes.tick_params(labelbottom=True)

    figure.supxlabel("held-out cosine of a module", fontsize="medium")
    figure.supylabel("modules", fontsize="medium")
    figures.save(figure, path)


def curves_with_bands(
    path: figures.File,
    curves: Mapping[str, figures.Curve],
    ylabel: str,
    level: float | None = None,
    *,
    is_held: bool = False,
) -> None:
    """Draws rates over the updates of a run: means over seeds, and bands from lowest to highest.

    Args:
        path: PNG file.
        curves: label -> (updates (P,), values in [0, 1] (seeds, P)).
        ylabel: quantity, in percent.
        level: value of a horizontal line, in [0, 1].
        is_held: whether a value holds until the next.
    """
    figure, axes = figures.canvas(8.5, 4.4)

    for number, (label, (steps, values)) in enumerate(curves.items()):
        x, y = np.asarray(steps), 100 * np.asarray(values, dtype=np.float64)
        ends = (y.min(0), y.max(0)) if len(y) > 1 else None
        figures.draw_curve(axes, number, label, x, y.mean(0), ends, is_held=is_held)

    if level is not None:
        axes.axhline(100 * level, **figures.LEVEL)
    axes.set_ylim(bottom=0.0)
    axes.set(xlabel="update", ylabel=ylabel)
    figures.legend_right(figure, axes, "mean, lowest to highest seed")
    figures.save(figure, path)


def module_curves(path: figures.File, panels: Mapping[str, figures.Curve]) -> None:
    """Draws cosines over the updates of a run, with a panel per arm and a line per module.

    Lines go from dark to light in the order of the modules. This is the trajectory of `cos_align`
    of the paper's section 5.

    Args:
        path: PNG file.
        panels: title -> updates (P,) and cosines (modules, P).
    """
    figure, every = figures.panel_grid(len(panels), 2, (4.4, 2.7), (0.4, 0.4), sharey=True)

    for axes, (title, (steps, values)) in zip(every, panels.items(), strict=True):
        lines = np.asarray(values, dtype=np.float64)
        for number, line in enumerate(lines):
            axes.plot(steps, line, color=figures.ordered_color(number, len(lines)), linewidth=1.0)
        axes.axhline(0.0, **figures.LEVEL)
        axes.set_title(figures.wrap_label(title, 44), fontsize="small")
        axes.tick_params(labelbottom=True)

    figure.supxlabel("update", fontsize="medium")
    figure.supylabel("cosine", fontsize="medium")
    figures.save(figure, path)
