"""Pictures of a run so far, as an image or as a line of text: its loss and the cells of its panel.

Pillow paints the image, some ten times as fast as a plotting library draws one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from hpenv.plot import FAINT, LEFT, RIGHT, Axis, Color, Sheet

RENDER_MODES = ("rgb_array", "ansi")
#: In `metadata`, where Gymnasium looks for the modes and for the number of pictures per second.
METADATA: dict[str, Any] = {"render_modes": list(RENDER_MODES), "render_fps": 4}

#: Largest number of cells that are drawn as lines with names. More cells become a heat map.
MAX_NAMED_CELLS = 8

#: First and last row of the two panels [pixels].
LOSS, CELLS = (32, 192), (224, 664)
LINE = 15  # distance of two lines of text, and least height of a band with a name [pixels]
GAP = 2  # distance of two bands [pixels]

NOT_YET = (226, 226, 226)
LINES: tuple[Color, ...] = (
    *((31, 119, 180), (214, 39, 40), (44, 160, 44), (255, 127, 14)),
    *((148, 103, 189), (140, 86, 75), (227, 119, 194), (23, 190, 207)),
)
#: Colors of the heat map for positions from -1 to 1, (255, 3): blue, white at 0, red.
HEAT: NDArray[np.uint8] = np.stack(
    [
        np.interp(np.linspace(-1, 1, 255), [-1, -0.5, 0, 0.5, 1], levels).round().astype(np.uint8)
        for levels in ([5, 80, 255, 235, 125], [48, 150, 255, 120, 0], [97, 200, 255, 90, 25])
    ],
    axis=1,
)

Factory = TypeVar("Factory", bound=Callable[..., Any])


def with_render_modes(factory: Factory) -> Factory:
    """Gives an entry point the metadata in which `gymnasium.make` looks for render modes.

    From RENDER_MODES it then makes `human`, `rgb_array_list` and `ansi_list`, with its wrappers.
    """
    factory.__dict__["metadata"] = METADATA
    return factory


def check_render_mode(mode: str | None) -> None:
    """Checks that a render mode is one of RENDER_MODES, or None.

    Raises:
        ValueError: for another mode.
    """
    if mode is not None and mode not in RENDER_MODES:
        raise ValueError(
            f"unknown render_mode {mode!r}; expected None or one of {list(RENDER_MODES)}; "
            "gym.make adds 'human' and the '_list' modes, gym.make_vec has none of them"
        )


class History:
    """Data that render() shows of one run: the loss after each window, and the panel during it."""

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        """Creates an empty history, or one from a `state()`."""
        self.steps: list[int] = list(state["steps"]) if state else []
        self.losses: list[float] = list(state["losses"]) if state else []
        self.positions = (
            [np.array(row, dtype=np.float64) for row in state["positions"]] if state else []
        )
        self.values = [np.array(row, dtype=np.float64) for row in state["values"]] if state else []

    def append(
        self, step: int, loss: float, positions: NDArray[np.float64], values: NDArray[np.float64]
    ) -> None:
        """Adds one window: its last step, its loss, the cells' positions (A,) and values (A,)."""
        self.steps.append(step)
        self.losses.append(loss)
        self.positions.append(positions.copy())
        self.values.append(values.copy())

    def state(self) -> dict[str, list[Any]]:
        """Returns a JSON-able copy."""
        return {
            "steps": list(self.steps),
            "losses": list(self.losses),
            "positions": [row.tolist() for row in self.positions],
            "values": [row.tolist() for row in self.values],
        }


def summarize(
    history: History,
    names: tuple[str, ...],
    neutral: NDArray[np.float64],
    num_steps: int,
    loss: str,
) -> str:
    """Returns one line of text: step, loss, and the values of the first cells.

    `loss` is `probe loss [unit]` or `training loss [unit]`. A value whose neutral (A,) is 1 is a
    multiplier, and is marked by an x.
    """
    if not history.steps:
        return f"step 0/{num_steps}"
    rows = list(zip(names, history.values[-1], neutral, strict=True))
    cells = [
        f"{name} {'x' if neutral_value == 1.0 else ''}{value:.3g}"
        for name, value, neutral_value in rows[:MAX_NAMED_CELLS]
    ]
    cells += [f"and {len(rows) - MAX_NAMED_CELLS} more"] if len(rows) > MAX_NAMED_CELLS else []

    name, _, unit = loss.partition(" loss ")
    measured = f"{name} {history.losses[-1]:.4f} {unit.strip('[]').removeprefix('1')}".rstrip()
    return "  ".join([f"step {history.steps[-1]}/{num_steps}", measured, *cells])


def draw(
    history: History,
    names: tuple[str, ...],
    neutral: NDArray[np.float64],
    num_steps: int,
    loss: str,
) -> NDArray[np.uint8]:
    """Draws the loss and, below it, the cells over the steps of the run: (704, 800, 3) uint8.

    Up to 8 cells are lines. Their axis shows values if the values can share one. That is so if all
    are multipliers (neutral (A,) is 1) or all belong to one channel. An axis of multipliers is
    logarithmic. Otherwise the axis shows positions, from -1 to 1.

    More cells are rows of a heat map. Each channel has one band, with its first cell on top. The
    color is the cell's mean position during the steps of a pixel. A cell whose value is neutral is
    white, whatever its position.

    Raises:
        ImportError: without Pillow.
    """
    sheet, time = Sheet(), Axis(0.0, float(num_steps))
    steps = np.array(history.steps, dtype=np.float64)
    values = np.reshape(history.values, (len(steps), len(names)))
    positions = np.where(values == neutral, 0.0, np.reshape(history.positions, values.shape))

    losses = np.array(history.losses, dtype=np.float64)
    axis = Axis.around(losses[np.isfinite(losses)], 0.1)
    sheet.panel(LOSS, loss, time, axis)
    sheet.curve(LOSS, time.fraction(steps), axis.fraction(losses), LINES[0], 2.0)
    if len(steps):
        sheet.text(RIGHT + 12, LOSS[0] + LINE, f"step {history.steps[-1]} of {num_steps}")
        sheet.text(RIGHT + 12, LOSS[0] + 2 * LINE, f"{loss.split()[0]} {losses[-1]:.4f}")

    for tick in time.ticks():
        sheet.text(
            LEFT + time.fraction(tick) * (RIGHT - LEFT), CELLS[1] + 18, f"{tick:.0f}", anchor="ms"
        )
    sheet.text(RIGHT + 32, CELLS[1] + 18, "step", FAINT)

    if len(names) > MAX_NAMED_CELLS:
        return _with_heat_map(sheet, steps, positions, names, num_steps)
    return _with_lines(sheet, time, steps, positions, values, names, neutral)


def _with_lines(
    sheet: Sheet,
    time: Axis,
    steps: NDArray[np.float64],
    positions: NDArray[np.float64],
    values: NDArray[np.float64],
    names: tuple[str, ...],
    neutral: NDArray[np.float64],
) -> NDArray[np.uint8]:
    if (neutral == 1.0).all():
        axis = Axis.around(np.append(values, neutral), 0.05, log=True)
        heights, title = values, "multipliers"
    elif len(_bands(names)) == 1:
        axis = Axis.around(np.append(values, neutral), 0.05)
        heights, title = values, "values"
    else:
        axis = Axis(-1.05, 1.05)
        heights, title = positions, "position of each cell in its range: 0 is neutral"
    sheet.panel(CELLS, title, time, axis)

    # A value holds from the end of the previous window to the end of its window.
    ends, levels = np.repeat(steps, 2)[1:-1], np.repeat(heights[1:], 2, axis=0)
    for column, name in enumerate(names):
        color, y = LINES[column], CELLS[0] + 2 * LINE * column + LINE
        # A line on top of another is narrower, so that both are visible.
        width = 2.0 + min(2.0, 6.0 / len(names)) * (len(names) - 1 - column)
        sheet.curve(CELLS, time.fraction(ends), axis.fraction(levels[:, column]), color, width)
        sheet.line([(RIGHT + 12, y - 4), (RIGHT + 26, y - 4)], color, 3.0)
        sheet.text(RIGHT + 32, y, name, color)
        if len(values):
            value = f"{'x' if neutral[column] == 1.0 else ''}{values[-1, column]:.3g}"
            sheet.text(RIGHT + 32, y + LINE, value, FAINT)

    return sheet.pixels()


def _with_heat_map(
    sheet: Sheet,
    steps: NDArray[np.float64],
    positions: NDArray[np.float64],
    names: tuple[str, ...],
    num_steps: int,
) -> NDArray[np.uint8]:
    sheet.text(
        LEFT,
        CELLS[0] - 8,
        "position of each cell in its range: white is neutral, grey is still to come",
    )
    for baseline, label in ((CELLS[0] + 10, "+1"), (sum(CELLS) // 2 + 4, "0"), (CELLS[1], "-1")):
        sheet.text(LEFT - 28, baseline, label, anchor="rs")

    bands = _bands(names)
    counts = [len(columns) for columns in bands.values()]
    edges = CELLS[0] + _band_edges(counts, CELLS[1] - CELLS[0] + GAP)
    places = list(zip(edges[:-1].tolist(), (edges[1:] - GAP).tolist(), strict=True))
    for (channel, columns), (top, bottom) in zip(bands.items(), places, strict=True):
        labels = [f"{channel} ({len(columns)})"]
        if bottom - top >= LINE * len(columns):
            labels = [names[column] for column in columns]
        for number, label in enumerate(labels):
            y = top + (bottom - top) * (number + 0.5) / len(labels)
            sheet.text(RIGHT + 12, y, label, anchor="lm")

    picture = sheet.pixels()
    color_bar = _resize(HEAT[::-1, None], CELLS[1] - CELLS[0])
    picture[CELLS[0] : CELLS[1], LEFT - 24 : LEFT - 12] = color_bar
    colors = _colors(steps, positions, num_steps)
    for columns, (top, bottom) in zip(bands.values(), places, strict=True):
        picture[top:bottom, LEFT:RIGHT] = _resize(colors[columns], bottom - top)
    return picture


def _bands(names: tuple[str, ...]) -> dict[str, list[int]]:
    """Groups the cells by channel: channel -> columns of its cells."""
    result: dict[str, list[int]] = {}
    for column, name in enumerate(names):
        result.setdefault(name.split("/")[0], []).append(column)
    return result


def _band_edges(counts: Sequence[int], height: int) -> NDArray[np.int64]:
    """Returns where bands begin and end, (B + 1,) [pixels].

    The height of a band is proportional to its number of cells, but is enough for a name:
    max(least, scale * count). Bisection finds the scale.
    """
    least, low, high = min(LINE + GAP, height / len(counts)), 0.0, float(height)
    for _ in range(60):
        middle = (low + high) / 2
        fits = np.maximum(least, middle * np.array(counts)).sum() <= height
        low, high = (middle, high) if fits else (low, middle)
    return np.cumsum([0.0, *np.maximum(least, low * np.array(counts))]).round().astype(np.int64)


def _colors(
    steps: NDArray[np.float64], positions: NDArray[np.float64], num_steps: int
) -> NDArray[np.uint8]:
    """Returns the color of every cell in every column of pixels, (A, RIGHT - LEFT, 3)."""
    result = np.full((positions.shape[1], RIGHT - LEFT, 3), NOT_YET, dtype=np.uint8)
    if len(steps) > 1:
        edges = np.clip(np.linspace(0, num_steps, RIGHT - LEFT + 1), steps[0], steps[-1])
        has_steps = np.diff(edges) > 0

        # The integral of the positions over the steps, at the end of each window and at each edge
        # of a pixel.
        integral = np.cumsum(np.diff(steps, prepend=0.0)[:, None] * positions, axis=0)
        window = np.clip(np.searchsorted(steps, edges), 1, len(steps) - 1)
        at_edges = integral[window] - (steps[window] - edges)[:, None] * positions[window]
        means = np.diff(at_edges, axis=0)[has_steps] / np.diff(edges)[has_steps, None]
        result[:, has_steps] = HEAT[np.rint(127 * (1 + means.T)).astype(np.int64)]

    return result


def _resize(rows: NDArray[np.uint8], height: int) -> NDArray[np.uint8]:
    """Returns rows (n, W, 3) at another height. Rows are repeated, or averaged."""
    if height >= len(rows):
        return rows[np.arange(height) * len(rows) // height]
    starts = np.arange(height) * len(rows) // height
    counts = np.diff(starts, append=len(rows))
    return (np.add.reduceat(rows.astype(np.int64), starts) // counts[:, None, None]).astype(
        np.uint8
    )
