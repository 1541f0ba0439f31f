"""Figures of results: functions from arrays to PNG files, in the style of `figure_style`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from hpenv.arrays import FloatArray
from hpenv.benchmark.statistics import t_quantile
from train_agents.figure_style import (
    BAND,
    COLORS,
    LEGEND,
    LEVEL,
    File,
    canvas,
    color_of,
    legend_right,
    ordered_color,
    panel_grid,
    save,
    scale_logarithmically,
    style_of,
    wrap_label,
)

Curve = tuple[Any, Any]  # arrays of x and of values


#: Band of a curve -> title of the legend.
BANDS = {
    "interval": "mean, 95 % interval over seeds",
    "seeds": "mean, lowest to highest seed",
    "controllers": "mean, lowest to highest controller",
}


def curves(
    path: File,
    curves: Mapping[str, Curve],
    xlabel: str,
    ylabel: str,
    band: str = "interval",
    *,
    level: float | None = None,
    is_held: bool = False,
    size: tuple[float, float] = (8.0, 4.2),
) -> None:
    """Draws quantities over the steps or updates of runs, as means with bands.

    With intervals, the limits of the y axis ignore the first point of each curve, the untrained
    model's loss, so that the curves can be distinguished.

    Args:
        path: PNG file.
        curves: label -> (steps (P,), values (seeds or controllers, P)).
        xlabel: unit of the steps.
        ylabel: quantity and unit.
        band: key of BANDS.
        level: value of a horizontal line.
        is_held: True if a value holds until the next.
        size: width and height [inches].
    """
    figure, axes = canvas(*size)
    line, filled = ({"drawstyle": "steps-post"}, {"step": "post"}) if is_held else ({}, {})
    limits: list[float] = []
    most = 0  # runs of a curve

    for number, (label, curve) in enumerate(curves.items()):
        x, values = _curve_arrays(label, curve)
        mean, n = values.mean(0), len(values)
        most, ends = max(most, n), None
        if n > 1 and band == "interval":
            half = t_quantile(0.975, n - 1) * values.std(0, ddof=1) / math.sqrt(n)
            ends = (mean - half, mean + half)
        elif n > 1:
            ends = (values.min(0), values.max(0))
        axes.plot(x, mean, label=label, **style_of(number), **line)
        if ends is not None:
            axes.fill_between(x, *ends, color=color_of(number), **BAND, **filled)
        limits += [mean.min(), mean[1:].max() if len(mean) > 2 else mean.max()]

    if band == "interval" and curves and max(limits[1::2]) > min(limits):
        margin = 0.05 * (max(limits[1::2]) - min(limits))
        axes.set_ylim(min(limits) - margin, max(limits[1::2]) + margin)
    if level is not None:
        axes.axhline(level, **LEVEL)
    if band == "seeds":
        axes.set_ylim(bottom=0.0)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    legend_right(figure, axes, BANDS[band] if most > 1 or band != "controllers" else None)
    save(figure, path)


def controller_actions(
    path: File,
    steps: ArrayLike,
    low: ArrayLike,
    median: ArrayLike,
    high: ArrayLike,
    *,
    names: Sequence[str],
    schedules: Sequence[ArrayLike] = (),
) -> None:
    """Draws multipliers over the steps of a run, with a panel per cell (JEL, figure 3).

    Args:
        path: PNG file.
        steps: step of each decision, and the end of the run, (K + 1,).
        low: 25th percentile of the multipliers in meta-training, (K, A); `median` and `high` are
            their median and 75th percentile.
        names: names of the A cells.
        schedules: multipliers of trained controllers, (K, A) each.
    """
    arrays = [np.asarray(values, dtype=np.float64) for values in (low, median, high, *schedules)]
    shapes = [values.shape for values in arrays]
    if shapes[1][1:] != (len(names),) or set(shapes) != {shapes[1]}:
        raise ValueError(
            f"multipliers must have shape (K, {len(names)}), for {list(names)}; got {shapes}"
        )

    edges = np.asarray(steps, dtype=np.float64)
    if edges.shape != (len(arrays[1]) + 1,):
        raise ValueError(f"steps must have shape ({len(arrays[1]) + 1},); got {edges.shape}")
    figure, panels = panel_grid(len(names), 2, (4.2, 2.9), (0.6, 0.8), sharey=True)

    for column, (axes, name) in enumerate(zip(panels, names, strict=True)):
        lower, middle, upper, *overlays = (values[:, column] for values in arrays)
        band = {"color": COLORS[0], "label": "25th to 75th percentile", **BAND}
        axes.stairs(upper, edges, baseline=lower, fill=True, **band)
        line = {"color": COLORS[0], "label": "median in meta-training", "linewidth": 1.8}
        axes.stairs(middle, edges, baseline=None, **line)

        for number, values in enumerate(overlays):
            label = "trained controllers" if number == 0 else None
            line = {"color": COLORS[1], "label": label, "linewidth": 1.0, "alpha": 0.7}
            axes.stairs(values, edges, baseline=None, **line)

        axes.axhline(1.0, label="neutral", **LEVEL)
        axes.set_title(name, fontsize="medium")
        scale_logarithmically(axes, "g")
        axes.set(xlim=(edges[0], edges[-1]))

    figure.supxlabel("training step", fontsize="medium")
    figure.supylabel("multiplier of the base value", fontsize="medium")
    handles, labels = panels[0].get_legend_handles_labels()
    ncols = 2 * min(2, len(names))
    figure.legend(handles, labels, loc="outside upper center", ncols=ncols, **LEGEND)
    save(figure, path)


def comparison_bars(
    path: File, rows: Sequence[tuple[str, float, float, float]], xlabel: str
) -> None:
    """Draws one row per method: a dot with its interval and its number.

    They are dots and not bars, because the axis does not begin at 0.

    Args:
        path: PNG file.
        rows: (label, mean, low, high), from top to bottom.
        xlabel: quantity and unit.
    """
    figure, axes = canvas(8.5, 0.42 * len(rows) + 1.1)
    places = np.arange(len(rows))[::-1]
    line = {"color": COLORS[0], "linewidth": 1.6, "solid_capstyle": "butt"}

    for place, (_, mean, low, high) in zip(places, rows, strict=True):
        axes.plot([low, high], [place, place], **line)
        axes.plot([mean], [place], color=COLORS[0], marker="o", markersize=5)

    axes.set_yticks(places, [wrap_label(row[0], 40) for row in rows])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlabel(xlabel + ", with 95 % interval")
    axes.grid(axis="y", color="0.93")
    numbers = axes.secondary_yaxis("right")
    numbers.set_yticks(places, [f"{row[1]:.3f}" for row in rows])
    numbers.tick_params(length=0)
    numbers.spines["right"].set_visible(False)
    save(figure, path)


def line_panels(
    path: File,
    panels: Mapping[str, Mapping[str, Curve]],
    ylabel: str,
    *,
    xlabel: str = "training step",
    is_ratio: bool = False,
) -> None:
    """Draws panels with a line per layer, dark to light ("Reward-Driven ...", figures 2 and 5).

    Args:
        path: PNG file.
        panels: title -> label of a line -> (steps (K,), values (K,)). A label has one color.
        ylabel: quantity and unit.
        xlabel: unit of the steps.
        is_ratio: True: a logarithmic axis with a line at 1, and a legend. False: a line at 0.
    """
    labels: dict[str, Any] = {}  # label -> its last line
    every_value: list[float] = []
    for lines in panels.values():
        labels.update(dict.fromkeys(lines))
        for _, values in lines.values():
            every_value += np.asarray(values).tolist()
    # In a wider range, labels between 1, 2 and 5 would overlap.
    is_wide = max(every_value) > 5.0 * min(every_value)
    colors = {label: ordered_color(i, len(labels)) for i, label in enumerate(labels)}
    size, width = ((2.7, 2.5), 2.4) if len(panels) > 1 else ((2.7, 3.5), 4.5)
    shape = (4, size, (width, 0.7)) if is_ratio else (2, (4.4, 2.7), (0.4, 0.4))
    figure, every = panel_grid(len(panels), *shape, sharey=True)

    for axes, (title, lines) in zip(every, panels.items(), strict=True):
        for label, (steps, values) in lines.items():
            x, y = _curve_arrays(f"{title} {label}", (steps, np.asarray(values)[None]))
            width = 1.1 if is_ratio else 1.0
            labels[label] = axes.plot(x, y[0], color=colors[label], linewidth=width)[0]
        axes.axhline(1.0 if is_ratio else 0.0, **LEVEL)
        if is_ratio:
            axes.set_title(title, fontsize="medium")
            scale_logarithmically(axes, ".3g", is_wide)
        else:
            axes.set_title(wrap_label(title, 44), fontsize="small")
            axes.tick_params(labelbottom=True)
    figure.supxlabel(xlabel, fontsize="medium")
    figure.supylabel(ylabel, fontsize="medium")
    if is_ratio:
        figure.legend(list(labels.values()), list(labels), loc="outside right upper", **LEGEND)
    save(figure, path)


def scatter_panels(path: File, panels: Mapping[str, Curve], ylabel: str) -> None:
    """Draws one scatter plot per property, all with the same y ("Reward-Driven ...", figure 4).

    Args:
        path: PNG file.
        panels: title -> (x (n,), y (n,)).
        ylabel: quantity and unit of y.
    """
    figure, every = panel_grid(len(panels), 3, (3.0, 2.6), (0.5, 0.4), sharex=False, sharey=True)
    dots = {"linestyle": "", "marker": "o", "markersize": 3, "markeredgewidth": 0, "alpha": 0.5}

    for axes, (title, (x, y)) in zip(every, panels.items(), strict=True):
        axes.plot(x, y, color=COLORS[0], **dots)
        axes.set_title(title, fontsize="medium")
        axes.ticklabel_format(axis="x", style="sci", scilimits=(-2, 3))

    figure.supylabel(ylabel, fontsize="medium")
    save(figure, path)


def logarithmic_dots(
    path: File, series: Mapping[str, Mapping[str, float | None]], xlabel: str
) -> None:
    """Draws positive numbers on a logarithmic axis, with a line per row and a marker per series.

    Args:
        path: PNG file.
        series: label -> row -> number. None and numbers <= 0 have no dot.
        xlabel: quantity and unit.
    """
    rows: list[str] = []
    for values in series.values():
        rows.extend(row for row in values if row not in rows)

    figure, axes = canvas(8.0, 0.34 * len(rows) + 1.2)

    for number, (label, values) in enumerate(series.items()):
        known = [row for row in rows if (values.get(row) or 0) > 0]
        x, y = [values[row] for row in known], [len(rows) - 1 - rows.index(row) for row in known]
        dots = {"linestyle": "", "marker": "osD^v"[number % 5], "markersize": 6, "alpha": 0.85}
        axes.plot(x, y, label=label, color=color_of(number), **dots)

    axes.set_yticks(range(len(rows)), rows[::-1])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set(xscale="log", xlabel=xlabel)
    legend_right(figure, axes, None)
    save(figure, path)


def _curve_arrays(label: str, curve: Curve) -> tuple[FloatArray, FloatArray]:
    """Returns x (P,) and values (n, P) of a curve as arrays.

    Raises:
        ValueError: their shapes do not fit. It names the curve.
    """
    x, values = (np.asarray(part, dtype=np.float64) for part in curve)
    if x.ndim != 1 or values.ndim != 2 or values.shape[0] < 1 or values.shape[1:] != x.shape:
        raise ValueError(
            f"curve {label!r} must have shapes (P,) and (n, P); got {x.shape} and {values.shape}"
        )
    return x, values
