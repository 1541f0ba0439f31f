"""The style that all figures share: canvas, colors, lines, legends and files.

The colors are Okabe and Ito's, which color-blind readers can distinguish. Line styles also differ.
Layers have colors in their order. Legends are outside the data. No function touches pyplot's global
state.

References:
    Okabe & Ito, "Color Universal Design" (2008).
"""

from __future__ import annotations

import os
import textwrap
from pathlib import Path
from typing import Any

import numpy as np

File = str | os.PathLike[str]

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#E69F00")
LINE_STYLES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
DPI = 150
BAND = {"alpha": 0.18, "linewidth": 0}
#: Line of a level that values are compared with.
LEVEL = {"color": "0.45", "linewidth": 0.8, "linestyle": ":"}
LEGEND = {"frameon": False, "fontsize": "small"}


def canvas(
    width: float, height: float, rows: int = 1, columns: int = 1, **shared: Any
) -> tuple[Any, Any]:
    """Returns a new figure and its axes.

    Width and height are in inches. `shared` are arguments of `Figure.subplots`.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("figures need matplotlib: pip install 'hpenv[agents]'") from error

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, **shared)

    for axes in np.atleast_1d(grid).flat:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="0.93")
        axes.set_axisbelow(True)

    return figure, grid


def panel_grid(
    count: int,
    max_columns: int,
    size: tuple[float, float],
    margins: tuple[float, float],
    *,
    sharex: bool = True,
    sharey: bool,
) -> tuple[Any, list[Any]]:
    """Returns a new figure and the axes of `count` panels, row by row.

    `size` is width and height of a panel, and `margins` is what the figure has besides [inches].
    """
    columns = min(max_columns, count)
    rows = -(-count // columns)
    width, height = size[0] * columns + margins[0], size[1] * rows + margins[1]
    figure, grid = canvas(width, height, rows, columns, sharex=sharex, sharey=sharey)
    every = list(np.atleast_1d(grid).flat)
    for axes in every[count:]:
        axes.remove()
    return figure, every[:count]


def scale_logarithmically(axes: Any, form: str, is_wide: bool = True) -> None:
    """Makes the y axis logarithmic, with plain numbers. If wide, they are 1, 2 and 5 alone."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    plain = FuncFormatter(lambda value, _: format(value, form))
    axes.set(yscale="log")
    if is_wide:
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(plain)
    axes.yaxis.set_minor_formatter(NullFormatter() if is_wide else plain)


def save(figure: Any, path: File) -> None:
    """Writes a figure, and makes its folder if it is missing."""
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    # Without the name of the software, the same numbers give the same bytes.
    figure.savefig(file, format="png", metadata={"Software": None})


def color_of(number: int) -> str:
    """Returns the color of the n-th curve."""
    return COLORS[number % len(COLORS)]


def ordered_color(number: int, count: int) -> Any:
    """Returns the color of the n-th of `count` ordered items, from dark to light."""
    from matplotlib import colormaps

    return colormaps["viridis"](number / max(1, count - 1))


def style_of(number: int) -> dict[str, Any]:
    """Returns color and line style of the n-th curve. A color is reused with another style."""
    line_style = LINE_STYLES[number % len(LINE_STYLES)]
    return {"color": color_of(number), "linestyle": line_style, "linewidth": 1.6}


def legend_right(figure: Any, axes: Any, title: str | None) -> None:
    """Draws a legend of the labels to the right of the axes."""
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        texts = [wrap_label(label) for label in labels]
        place = {"loc": "outside right upper", "alignment": "left"}
        legend = figure.legend(handles, texts, title=title, **place, **LEGEND)
        legend.get_title().set_fontsize("small")


def wrap_label(label: str, width: int = 30) -> str:
    """Returns a label in lines of at most `width` characters, if its words allow."""
    return textwrap.fill(label, width, break_long_words=False, break_on_hyphens=False)
