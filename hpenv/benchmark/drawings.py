"""Drawings of the page as inline SVG: interval bars, line charts, and score against cost.

Colors and fonts come from the page's style sheet, through classes. A method has the color
`m0` to `m7` and the dashes `d0` to `d2`, by its number on the board.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from hpenv.arrays import FloatArray
from hpenv.benchmark.markup import element, plain
from hpenv.benchmark.statistics import Interval
from hpenv.plot import Axis

#: Size of a chart, and the edges of its plot [units of the view box].
WIDTH, HEIGHT = 440, 300
LEFT, RIGHT, TOP, BOTTOM = 46, 428, 26, 262
#: Size of the small drawing beside a score.
BAR_WIDTH, BAR_HEIGHT = 110, 16
COLORS, DASHES = 8, 3
#: Height and mean width of a label's letter [units].
LETTER_HEIGHT, LETTER_WIDTH = 12.0, 5.9
LONGEST_LABEL = 22
#: Place of the cost 0, and of the smallest positive cost, on the logarithmic axis.
ZERO, POSITIVE = LEFT + 14, LEFT + 46


class Line(NamedTuple):
    """A method's line in a chart, or its point.

    Attributes:
        method: name of the method.
        style: classes that give its color.
        x: (P,).
        y: (P,). NaN leaves a gap.
    """

    method: str
    style: str
    x: FloatArray
    y: FloatArray


class Point(NamedTuple):
    """A method in the chart of score against cost."""

    method: str
    style: str
    cost: float
    score: Interval


def style_of(number: int, is_off: bool = False) -> str:
    """Returns the classes of a method's color and dashes, from its number on the board."""
    return "off" if is_off else f"m{number % COLORS} d{number // COLORS % DASHES}"


def swatch(style: str) -> str:
    """Returns the sample of a method's line for a legend."""
    line = element("path", d="M1 6H25", class_=f"line {style}")
    return element("svg", line, viewBox="0 0 26 12", class_="swatch", aria_hidden="true")


def interval_bar(interval: Interval, axis: Axis, label: str) -> str:
    """Returns an interval as a bar with a dot, above marks at 0 (off) and 1 (reference)."""

    def place(value: float) -> str:
        inside = min(max(float(axis.fraction(value)), 0.0), 1.0)
        return _short(3 + inside * (BAR_WIDTH - 6))

    middle = BAR_HEIGHT / 2
    marks = [
        element("path", d=f"M{place(value)} 0V{BAR_HEIGHT}", class_="mark")
        for value in (0.0, 1.0)
        if axis.low <= value <= axis.high
    ]
    bar = f"M{place(interval.low)} {_short(middle)}H{place(interval.high)}"
    return element(
        "svg",
        element("title", plain(label)),
        *marks,
        element("path", d=bar, class_="bar"),
        element("circle", cx=place(interval.mean), cy=_short(middle), r=3, class_="dot"),
        viewBox=f"0 0 {BAR_WIDTH} {BAR_HEIGHT}",
        class_="interval",
        role="img",
    )


def line_chart(
    lines: Sequence[Line],
    title: str,
    description: str,
    labels: tuple[str, str],
    range_y: tuple[float, float] | None = None,
    name: str | None = None,
) -> str:
    """Returns a chart with one line per method.

    Args:
        lines: lines. Those outside of `range_y` are cut.
        title: of the chart, for readers who do not see it.
        description: likewise, in a sentence.
        labels: of the horizontal and of the vertical axis.
        range_y: ends of the vertical axis. None: those of the lines.
        name: id of the drawing.
    """
    x = np.concatenate([line.x for line in lines])
    y = np.concatenate([line.y for line in lines])
    across = Axis(float(x.min()), float(x.max()))
    up = Axis(*range_y) if range_y else Axis.around(y[np.isfinite(y)], 0.05)

    paths = [
        element("path", element("title", plain(line.method)), d=_path(line, across, up),
                class_=f"line {line.style}", data_m=line.method)
        for line in lines
    ]  # fmt: skip
    # A nested drawing cuts what leaves it by more than a line's width. A clip path would need a
    # reference.
    width, height = RIGHT - LEFT, BOTTOM - TOP
    plot = element(
        "svg", *paths, x=LEFT, y=TOP - 2, width=width, height=height + 4, class_="plot",
        viewBox=f"0 -2 {width} {height + 4}",
    )  # fmt: skip
    ticks = [(LEFT + float(across.fraction(t)) * width, f"{t:.4g}") for t in across.ticks()]
    return _chart([*_grid(up), *_ticks(ticks), plot], title, description, labels, name)


def cost_chart(points: Sequence[Point], title: str, description: str, unit: str) -> str:
    """Returns scores with their intervals against costs, on a logarithmic axis with a place for 0.

    Args:
        points: one per method.
        title: of the chart, for readers who do not see it.
        description: likewise, in a sentence.
        unit: label of the horizontal axis.
    """
    ends = [point.score.low for point in points] + [point.score.high for point in points]
    up = Axis.around(np.array([*ends, 0.0]), 0.06)
    positive = np.array([point.cost for point in points if point.cost > 0.0])
    across = Axis.around(positive, 0.05, log=True) if positive.size else None

    def place(cost: float) -> float:
        if across is None or cost <= 0.0:
            return float(ZERO)
        return POSITIVE + float(across.fraction(cost)) * (RIGHT - POSITIVE)

    ticks, marks = [(float(ZERO), "0")], []
    if across is not None:
        gap = f"M{ZERO + 13} {BOTTOM + 4}l4 -8m4 0l-4 8"
        marks.append(element("path", d=gap, class_="axis"))
        ticks += [(place(tick), f"{tick:g}") for tick in across.ticks()]
    places = []
    for point in points:
        middle, low, high = (_height(end, up) for end in point.score)
        places.append((place(point.cost), middle, low, high))
    labels = _label_places([point.method for point in points], places)

    for point, (x, y, low, high), (label_x, label_y, anchor) in zip(
        points, places, labels, strict=True
    ):
        parts = [
            element("title", plain(f"{point.method}: {point.score.mean:.3f} at {point.cost:g}")),
            element("path", d=f"M{_short(x)} {_short(low)}V{_short(high)}", class_="bar"),
        ]
        if abs(label_y - y) > 1.0:
            lead = f"M{_short(x)} {_short(y)}L{_short(label_x)} {_short(label_y)}"
            parts.append(element("path", d=lead, class_="lead"))
        parts += [
            element("circle", cx=_short(x), cy=_short(y), r=4),
            element("text", plain(_cut(point.method)), x=_short(label_x), y=_short(label_y + 4),
                    text_anchor=anchor),
        ]  # fmt: skip
        marks.append(element("g", *parts, class_=f"point {point.style}", data_m=point.method))

    parts = [*_grid(up), *_ticks(ticks), *marks]
    return _chart(parts, title, description, (unit, "score"), None)


def _label_places(
    names: Sequence[str], places: Sequence[tuple[float, float, float, float]]
) -> list[tuple[float, float, str]]:
    """Returns x, y and anchor of every point's label, none over a label, a point or a bar.

    Places are x, y, and both ends of the bar.
    """
    found: list[tuple[float, float, str]] = [(0.0, 0.0, "start")] * len(names)
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y, _, _ in places]
    taken += [(x - 1, high, x + 1, low) for x, _, low, high in places]

    for index in sorted(range(len(names)), key=lambda i: places[i][1]):
        x, y, _, _ = places[index]
        width = LETTER_WIDTH * len(_cut(names[index]))
        for label_y, side in _offers(y):
            start = x + 9 if side == "start" else x - 9 - width
            box = (start, label_y - 5.5, start + width, label_y + 5.5)
            if LEFT + 2 <= start and box[2] <= RIGHT and not any(_overlap(box, b) for b in taken):
                found[index] = (x + 9 if side == "start" else x - 9, label_y, side)
                taken.append(box)
                break
        else:  # no free place: the title of the point has its name
            found[index] = (x + 9, y, "start")
    return found


def _offers(y: float) -> Iterator[tuple[float, str]]:
    """Yields places for a label, the nearest first."""
    for distance in range(int((BOTTOM - TOP) / 3)):
        for sign in (1, -1) if distance else (1,):
            label_y = y + 3 * sign * distance
            if TOP + 6 <= label_y <= BOTTOM - 6:
                yield label_y, "start"
                yield label_y, "end"


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _cut(name: str) -> str:
    return name if len(name) <= LONGEST_LABEL else name[: LONGEST_LABEL - 1] + "…"


def _chart(
    parts: Sequence[str],
    title: str,
    description: str,
    labels: tuple[str, str],
    name: str | None,
) -> str:
    return element(
        "svg",
        element("title", plain(title)),
        element("desc", plain(description)),
        element("path", d=f"M{LEFT} {TOP}V{BOTTOM}H{RIGHT}", class_="axis"),
        element("text", plain(labels[1]), x=4, y=14, class_="label up"),
        element("text", plain(labels[0]), x=RIGHT, y=HEIGHT - 4, text_anchor="end",
                class_="label across"),
        *parts,
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        class_="chart",
        role="img",
        id=name,
    )  # fmt: skip


def _grid(up: Axis) -> list[str]:
    parts = []
    for tick in up.ticks():
        y = _short(_height(tick, up))
        parts.append(element("path", d=f"M{LEFT} {y}H{RIGHT}", class_="grid"))
        text = f"{tick:.4g}".replace("-", "−")
        parts.append(element("text", text, x=LEFT - 6, y=_short(float(y) + 4), text_anchor="end"))
    return parts


def _ticks(ticks: Sequence[tuple[float, str]]) -> list[str]:
    parts = []
    for x, label in ticks:
        parts.append(element("path", d=f"M{_short(x)} {BOTTOM}v4", class_="axis"))
        text = label.replace("-", "−")
        parts.append(element("text", text, x=_short(x), y=BOTTOM + 17, text_anchor="middle"))
    return parts


def _height(value: float, up: Axis) -> float:
    return BOTTOM - float(up.fraction(value)) * (BOTTOM - TOP)


def _path(line: Line, across: Axis, up: Axis) -> str:
    """Returns the path of a line within its plot. A gap begins a new part."""
    width, height = RIGHT - LEFT, BOTTOM - TOP
    text, command = "", "M"
    for x, y in zip(across.fraction(line.x), up.fraction(line.y), strict=True):
        if not math.isfinite(y):
            command = "M"
            continue
        # A value far outside would only make the file longer.
        text += f"{command}{_short(x * width)} {_short(min(max(1 - y, -9.0), 9.0) * height)}"
        command = "L"
    return text


def _short(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
