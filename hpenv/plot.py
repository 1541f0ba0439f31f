"""Drawing tools for pictures of a run: axes, and a sheet on which Pillow paints lines and text."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

#: Size of a sheet [pixels]: multiples of 16, which video codecs require.
WIDTH, HEIGHT = 800, 704
#: Left and right edge of every panel [pixels]. Its numbers stand to the left, its legend to the
#: right.
LEFT, RIGHT = 64, 592
FONT_SIZE = 12  # [pixels]
#: Factor by which a sheet is painted larger and then reduced, so that its lines are smooth.
SCALE = 2

Color = tuple[int, int, int]
INK, FAINT, GRID = (40, 40, 40), (120, 120, 120), (222, 222, 222)


class Axis(NamedTuple):
    """A range of numbers, linear or logarithmic."""

    low: float
    high: float
    log: bool = False

    @staticmethod
    def around(values: NDArray[np.float64], margin: float, log: bool = False) -> Axis:
        """Returns an axis from the smallest to the largest value, with a margin on both sides.

        The margin is a fraction of the range.
        """
        numbers = np.log(values) if log else values
        low, high = (numbers.min(), numbers.max()) if len(numbers) else (0.0, 1.0)
        room = margin * (high - low) or 0.5
        ends = (float(low - room), float(high + room))
        return Axis(math.exp(ends[0]), math.exp(ends[1]), True) if log else Axis(*ends)

    def fraction(self, values: Any) -> Any:
        """Returns the positions of values on the axis: 0 at the low end, 1 at the high end."""
        scale: Callable[[Any], Any] = np.log if self.log else np.asarray
        return (scale(values) - scale(self.low)) / (scale(self.high) - scale(self.low))

    def ticks(self) -> list[float]:
        """Returns a few round numbers within the range."""
        if self.log:
            exponents = range(
                math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1
            )
            decades = [10.0**k for k in exponents if self.low <= 10.0**k <= self.high]
            finer: list[float] = []
            for k in exponents:
                finer += [m * 10.0**k for m in (1, 2, 5) if self.low <= m * 10.0**k <= self.high]
            return decades if len(decades) > 3 or len(finer) < 2 else finer

        rough = (self.high - self.low) / 5
        unit = 10.0 ** math.floor(math.log10(rough))
        step = next(m * unit for m in (1, 2, 5, 10) if m * unit >= rough)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [number * step for number in range(first, last + 1)]


class Sheet:
    """A white sheet. All coordinates are in pixels of the image."""

    def __init__(self) -> None:
        try:
            from PIL import Image, ImageDraw, ImageFont
        except ImportError as error:
            raise ImportError(
                "render_mode='rgb_array' needs Pillow: pip install 'hpenv[render]'"
            ) from error

        self._image = Image.new("RGB", (SCALE * WIDTH, SCALE * HEIGHT), "white")
        self._draw = ImageDraw.Draw(self._image)
        self._font = ImageFont.load_default(SCALE * FONT_SIZE)

    def line(self, points: Sequence[tuple[float, float]], color: Color, width: float) -> None:
        """Draws a line through some points."""
        self._draw.line(
            [(SCALE * x, SCALE * y) for x, y in points], color, round(SCALE * width), joint="curve"
        )

    def text(self, x: float, y: float, text: str, color: Color = INK, anchor: str = "ls") -> None:
        """Writes a text at a point, cut where the sheet ends.

        `anchor` is the place of the text that lies at the point, as Pillow names it.
        """
        self._draw.text((SCALE * x, SCALE * y), text, color, self._font, anchor)

    def panel(self, rows: tuple[int, int], title: str, across: Axis, up: Axis) -> None:
        """Draws frame, title, grid and the numbers of the vertical axis."""
        top, bottom = rows
        self.text(LEFT, top - 8, title)

        for tick in up.ticks():
            y = bottom - float(up.fraction(tick)) * (bottom - top)
            self.line([(LEFT, y), (RIGHT, y)], GRID, 1.0)
            self.text(LEFT - 6, y, f"{tick:.4g}", anchor="rm")

        for tick in across.ticks():
            x = LEFT + float(across.fraction(tick)) * (RIGHT - LEFT)
            self.line([(x, top), (x, bottom)], GRID, 1.0)

        self.line([(LEFT, top), (LEFT, bottom), (RIGHT, bottom)], INK, 1.0)

    def curve(
        self,
        rows: tuple[int, int],
        x: NDArray[np.float64],
        y: NDArray[np.float64],
        color: Color,
        width: float,
    ) -> None:
        """Draws a line through points, up to the first that is not finite. A single point is a dot.

        `x` and `y` are fractions of the panel's width and height.
        """
        top, bottom = rows
        finite = np.isfinite(y)
        end = len(y) if finite.all() else int(np.argmin(finite))
        x, y = LEFT + x[:end] * (RIGHT - LEFT), bottom - y[:end] * (bottom - top)

        # Of the points within a pixel, only the lowest and the highest are visible.
        if end > 2 * (RIGHT - LEFT):
            starts = np.flatnonzero(np.diff(np.floor(x), prepend=-1.0))
            x = np.repeat(x[starts], 2)
            y = np.stack(
                [np.minimum.reduceat(y, starts), np.maximum.reduceat(y, starts)], axis=1
            ).ravel()

        points = list(zip(x.tolist(), y.tolist(), strict=True))
        if end == 1:
            points.append((points[0][0] + 2.0, points[0][1]))
        if points:
            self.line(points, color, width)

    def pixels(self) -> NDArray[np.uint8]:
        """Returns the image, (HEIGHT, WIDTH, 3)."""
        return np.array(self._image.reduce(SCALE))
