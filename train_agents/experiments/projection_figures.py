"""Figures of the projection experiment alone: hacks against passes with their Pareto front, and a histogram."""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hpenv.arrays import FloatArray
from train_agents import figures

#: As many as have no divisor in common with the number of colors, so that no two of many arms look
#: alike.
MARKERS = "osD^vP*Xph<>d"


def pareto_front(points: FloatArray) -> NDArray[np.int64]:
    """Which points (n, 2) of pass and hack rate no other is better than in one and as good in both, by pass rate."""
    kept = []
    for i, (passes, hacks) in enumerate(points):
        better = (
            (points[:, 0] >= passes)
            & (points[:, 1] <= hacks)
            & ((points[:, 0] > passes) | (points[:, 1] < hacks))
        )
        if not better.any():
            kept.append(i)
    return np.array(sorted(kept, key=lambda i: tuple(points[i])), dtype=np.int64)


def hack_against_pass(
    path: str | os.PathLike[str],
    arms: Mapping[str, FloatArray],
    notes: Mapping[str, str],
    compared: FloatArray,
) -> None:
    """One point per arm and seed, a larger one at an arm's mean, and the Pareto front of all means
    that are compared.

    The paper's section 6.

    Args:
        path: PNG file.
        arms: label -> pass and hack rates, (seeds, 2).
        notes: label -> text beside the arm's mean.
        compared: means of pass and hack rate, (n, 2), of these arms and of others.
    """
    figure, axes = figures.canvas(9.0, max(5.0, 0.36 * len(arms)))
    from matplotlib.patheffects import (
        withStroke,
    )  # after the canvas, which says what to install if there is none

    means = np.array([points.mean(0) for points in arms.values()])
    for number, (label, points) in enumerate(arms.items()):
        style = {
            "color": figures.color_of(number),
            "marker": MARKERS[number % len(MARKERS)],
            "linestyle": "",
        }
        axes.plot(
            100 * points[:, 0],
            100 * points[:, 1],
            markersize=4,
            alpha=0.45,
            markeredgewidth=0,
            **style,
        )
        axes.plot(*100 * means[number], label=label, markersize=8, markeredgecolor="black", **style)
        if label in notes:
            place = {"xytext": (7, -14), "textcoords": "offset points", "fontsize": "small"}
            text = axes.annotate(notes[label], tuple(100 * means[number]), zorder=4, **place)
            text.set_path_effects(
                [withStroke(linewidth=2.5, foreground="white")]
            )  # legible on what it lies on
    front = 100 * compared[pareto_front(compared)]
    axes.plot(
        front[:, 0],
        front[:, 1],
        color="0.45",
        linewidth=1.0,
        linestyle="--",
        marker="o",
        markersize=16,
        fillstyle="none",
        zorder=0,
        label="Pareto front of all means",
    )
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, -5.0), max(high, 10.0))
    axes.set(xlabel="held-out pass rate without a loophole [%]", ylabel="held-out hack rate [%]")
    figures.legend_right(figure, axes, "mean; small: one seed")
    figures.save(figure, path)


def cosine_histograms(path: str | os.PathLike[str], panels: Mapping[str, ArrayLike]) -> None:
    """Histograms of the modules' held-out cosines, a panel per direction (the paper's
    `cos_align_held`).

    Args:
        path: PNG file.
        panels: title -> cosines of the modules, one per draw: (modules, draws).
    """
    columns = min(3, len(panels))
    count = -(-len(panels) // columns)
    figure, grid = figures.canvas(
        3.0 * columns + 0.4, 2.4 * count + 0.4, count, columns, sharex=True, sharey=True
    )
    every = list(np.atleast_1d(grid).flat)
    edges = np.linspace(-1.0, 1.0, 21)
    for axes, (title, cosines) in zip(every, panels.items(), strict=False):
        values = np.asarray(cosines, dtype=np.float64)
        median = float(
            np.mean([np.median(draw[draw != 0.0]) for draw in values.T])
        )  # 0: no axis in that module
        axes.hist(
            values.ravel(),
            edges,
            weights=np.full(values.size, 1.0 / values.shape[1]),
            color=figures.COLORS[0],
        )
        axes.axvline(median, color=figures.COLORS[1], linewidth=1.4)
        axes.set_title(f"{figures.wrap_label(title, 34)}\nmedian {median:.2f}", fontsize="small")
        axes.tick_params(labelbottom=True)
    for axes in every[len(panels) :]:
        axes.remove()
    figure.supxlabel("held-out cosine of a module", fontsize="medium")
    figure.supylabel("modules", fontsize="medium")
    figures.save(figure, path)


def curves_with_bands(
    path: str | os.PathLike[str],
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]],
    ylabel: str,
    level: float | None = None,
    *,
    is_held: bool = False,
) -> None:
    """Rates over the updates of a run in percent from 0 on: the mean over seeds, from the lowest to
    the highest seed.

    Args:
        path: PNG file.
        curves: label -> (updates (P,), values in [0, 1] (seeds, P)).
        ylabel: quantity, in percent.
        level: drawn as a line, in [0, 1].
        is_held: whether a value holds until the next.
    """
    figure, axes = figures.canvas(8.5, 4.4)
    line, band = ({"drawstyle": "steps-post"}, {"step": "post"}) if is_held else ({}, {})
    for number, (label, (steps, values)) in enumerate(curves.items()):
        x, y = np.asarray(steps), 100 * np.asarray(values, dtype=np.float64)
        axes.plot(x, y.mean(0), label=label, **figures.style_of(number), **line)
        if len(y) > 1:
            axes.fill_between(
                x, y.min(0), y.max(0), color=figures.color_of(number), **figures.BAND, **band
            )
    if level is not None:
        axes.axhline(100 * level, color="0.45", linewidth=0.8, linestyle=":")
    axes.set_ylim(bottom=0.0)
    axes.set(xlabel="update", ylabel=ylabel)
    figures.legend_right(figure, axes, "mean, lowest to highest seed")
    figures.save(figure, path)


def module_curves(
    path: str | os.PathLike[str],
    panels: Mapping[str, tuple[ArrayLike, ArrayLike]],
    ylabel: str = "cosine",
) -> None:
    """One line per module over the updates of a run, a panel per arm, from dark to light in the
    modules' order.

    The paper's section 5, `cos_align` trajectory.

    Args:
        path: PNG file.
        panels: title -> updates (P,) and values (modules, P).
        ylabel: quantity.
    """
    columns = min(2, len(panels))
    count = -(-len(panels) // columns)
    figure, grid = figures.canvas(
        4.4 * columns + 0.4, 2.7 * count + 0.4, count, columns, sharex=True, sharey=True
    )
    every = list(np.atleast_1d(grid).flat)
    for axes, (title, (steps, values)) in zip(every, panels.items(), strict=False):
        lines = np.asarray(values, dtype=np.float64)
        for number, line in enumerate(lines):
            axes.plot(steps, line, color=figures.ordered_color(number, len(lines)), linewidth=1.0)
        axes.axhline(0.0, color="0.45", linewidth=0.8, linestyle=":")
        axes.set_title(figures.wrap_label(title, 44), fontsize="small")
        axes.tick_params(labelbottom=True)
    for axes in every[len(panels) :]:
        axes.remove()
    figure.supxlabel("update", fontsize="medium")
    figure.supylabel(ylabel, fontsize="medium")
    figures.save(figure, path)
