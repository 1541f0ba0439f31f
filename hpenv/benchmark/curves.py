"""Curves of the page: means over seeds, thinned, as a compact text.

A page holds hundreds of curves. Each has a number of points that the page can afford, and 4,095
levels between its lowest and its highest value, which is finer than a pixel.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from hpenv.arrays import FloatArray

#: Digits of a number in base 64, none of which markup or JSON would escape.
DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
#: All numbers of two digits.
NUMBERS = ["".join(pair) for pair in product(DIGITS, repeat=2)]
#: The last number says that a value is missing.
MISSING = len(NUMBERS) - 1
#: Points of a curve before it is thinned.
MOST_POINTS = 49
#: Largest number of a cell's traces, and steps by which points are thinned. The first pair that
#: fits is taken.
SIZES = ((8, 1), (8, 2), (4, 2), (4, 3), (2, 3), (2, 4), (1, 4))
#: Length that the curves of a page may have [bytes].
MOST_BYTES = 110_000

Rows = Sequence[Mapping[str, Any]]


class Curves(NamedTuple):
    """Mean curves of every cell of a board.

    Attributes:
        instances: their names, (I,).
        methods: their names, (M,).
        channels: names of the traces.
        steps: last step of an instance, (I,) [steps].
        probe: (i, m) -> mean probe loss, (P,), evenly spaced from step 0 to the last.
        panel: (i, m) -> channel -> mean value in force, (P,).
        traces_left_out: number of traces that the page does not have.
    """

    instances: tuple[str, ...]
    methods: tuple[str, ...]
    channels: tuple[str, ...]
    steps: tuple[float, ...]
    probe: Mapping[tuple[int, int], FloatArray]
    panel: Mapping[tuple[int, int], Mapping[str, FloatArray]]
    traces_left_out: int

    @property
    def num_points(self) -> int:
        """Number of points of every curve, 0 without curves."""
        cells = (cell.values() for cell in self.panel.values())
        first = next(chain(self.probe.values(), chain.from_iterable(cells)), ())
        return len(first)

    def text(self) -> str:
        """Returns the curves as JSON for the page's script, without a character `<`."""
        size = range(len(self.methods))
        value = {
            "instances": self.instances,
            "methods": self.methods,
            "channels": self.channels,
            "steps": self.steps,
            "points": self.num_points,
            "probe": [
                [encode(self.probe.get((i, m))) for m in size] for i in range(len(self.instances))
            ],
            "panel": [
                [self._traces(i, m) for m in size] for i in range(len(self.instances))
            ],
        }  # fmt: skip
        return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")

    def _traces(self, i: int, m: int) -> dict[int, Any]:
        cell = self.panel.get((i, m), {})
        return {self.channels.index(name): encode(curve) for name, curve in cell.items()}


def encode(curve: FloatArray | None) -> list[Any] | float | None:
    """Returns a curve as [lowest, highest, two digits per point], or its only value, or None."""
    if curve is None or not np.isfinite(curve).any():
        return None

    finite = np.isfinite(curve)
    low, high = (float(f"{value:.5g}") for value in (curve[finite].min(), curve[finite].max()))
    if low == high and finite.all():
        return low
    fractions = (np.where(finite, curve, low) - low) / ((high - low) or 1.0)
    levels = (np.clip(fractions, 0.0, 1.0) * (MISSING - 1)).round().astype(int)
    numbers = np.where(finite, levels, MISSING)
    return [low, high, "".join(NUMBERS[n] for n in numbers.tolist())]


def curves_of(rows: Rows, instances: Sequence[str], methods: Sequence[str]) -> Curves:
    """Returns the mean curves of all cells, with as many points and traces as a page can hold."""
    cells: dict[tuple[int, int], list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["instance"] in instances and row["method"] in methods:
            key = (instances.index(row["instance"]), methods.index(row["method"]))
            cells.setdefault(key, []).append(row)

    last = [0.0] * len(instances)
    for (i, _), members in cells.items():
        last[i] = max(last[i], *(float(row["curve"]["steps"][-1]) for row in members))

    probe, panel = {}, {}
    for (i, m), members in sorted(cells.items()):
        grid = np.linspace(0.0, last[i], MOST_POINTS)
        losses = [(row["curve"]["steps"], row["curve"]["probe_loss"]) for row in members]
        probe[i, m] = mean_curve(losses, grid)
        panel[i, m] = {
            name: mean_curve([_trace(row, name) for row in members], grid)
            for name in members[0]["panel"]
        }

    whole = Curves(tuple(instances), tuple(methods), (), tuple(last), probe, panel, 0)
    for most_traces, stride in SIZES:
        found = _thin(whole, most_traces, stride)
        if len(found.text()) <= MOST_BYTES:
            break
    return found


def _thin(curves: Curves, most_traces: int, stride: int) -> Curves:
    """Returns curves with every stride-th point, and the traces that move most of every cell."""
    panel, left_out = {}, 0
    for key, cell in curves.panel.items():
        movement = {name: -_movement(curve) for name, curve in cell.items()}
        kept = sorted(cell, key=movement.__getitem__)[:most_traces]
        panel[key] = {name: curve[::stride] for name, curve in cell.items() if name in kept}
        left_out += len(cell) - len(kept)

    uses = Counter(chain.from_iterable(panel.values()))
    return curves._replace(
        channels=tuple(sorted(uses, key=lambda name: (-uses[name], name))),
        probe={key: curve[::stride] for key, curve in curves.probe.items()},
        panel=panel,
        traces_left_out=left_out,
    )


def _trace(row: Mapping[str, Any], channel: str) -> tuple[FloatArray, list[float | None]]:
    """Returns the steps from which a row's values of a channel are in force, and the values.

    The last value is there twice: it is in force until the last step.
    """
    steps, values = row["curve"]["steps"], list(row["panel"].get(channel, []))
    starts = np.asarray(steps[:-1], dtype=np.float64)
    if len(starts) != len(values):  # both lists are thinned
        starts = np.linspace(steps[0], steps[-1], len(values) + 1, dtype=np.float64)[:-1]
    return np.append(starts, steps[-1] if values else []), values + values[-1:]


def _movement(curve: FloatArray) -> float:
    """Returns the spread of a trace, relative to its size."""
    finite = curve[np.isfinite(curve)]
    if not finite.size:
        return -1.0
    return float((finite.max() - finite.min()) / (np.abs(finite).max() or 1.0))


def mean_curve(
    curves: Iterable[tuple[ArrayLike, Sequence[float | None]]], grid: FloatArray
) -> FloatArray:
    """Returns the mean of some curves at the steps of a grid, (P,).

    A run counts until its last step, so a diverged run leaves the mean where it diverged. The
    mean of no run is NaN.

    Args:
        curves: steps, and values of which None or NaN is left out.
        grid: steps, (P,).
    """
    total, count = np.zeros(len(grid)), np.zeros(len(grid))
    for steps, values in curves:
        x, y = np.asarray(steps, dtype=np.float64), np.array(values, dtype=np.float64)
        known = np.isfinite(y) if len(x) == len(y) else np.zeros(len(x), dtype=bool)
        if not known.any():
            continue
        at = np.interp(grid, x[known], y[known], right=np.nan)
        reached = np.isfinite(at)
        total[reached] += at[reached]
        count += reached
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
