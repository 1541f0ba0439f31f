"""Measurements by name: what a plant declares that it can measure, and one window of them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from hpenv.arrays import BoolArray, FloatArray, IntArray


@dataclass(frozen=True)
class Measurement:
    """A named number that a plant can measure.

    Attributes:
        name: name in windows and snapshots, and of what features and reward terms read.
        unit: unit of the number.
        doc: meaning.
        per: `run` for one number per run, (N,), `layer` for one per layer, (N, L), `group` for one
            per optimizer group, (N, G), `cell` for one per cell of the panel, (N, A). `step` for
            one per step of the window, which are the rows of `Window.step_losses`.
        over: `last`: of the window's last step, or of its end. `mean`: mean over its steps.
        num_steps: steps at the end of a run's window at which it is taken. None: every step.
        group: measurement group. Its measurements cost time and are taken only if a feature or term
            reads one of them. None: always taken.
        in_info: True if infos have it, as `gauges/<name>`.
        privileged: True for a true value that no feature and no reward term may read. Infos have
            it, as `privileged/<name>`.
    """

    name: str
    unit: str
    doc: str
    per: Literal["run", "layer", "group", "cell", "step"] = "run"
    over: Literal["last", "mean"] = "last"
    group: str | None = None
    in_info: bool = False
    privileged: bool = False
    num_steps: int | None = None


@dataclass(frozen=True)
class Window:
    """Measurements that were taken while every run advanced by its number of steps.

    A row that did not move keeps the numbers of its last window. All values are finite. Unmeasured
    values are 0, except the probe loss, which keeps its last value.

    Attributes:
        steps: optimizer steps each run has taken, (N,).
        divergence: index into DIVERGENCE_REASONS, (N,).
        values: name of a measurement -> (N,), (N, L) per layer, (N, G) per optimizer group, or
            (N, A) per cell.
        step_losses: training losses of the steps of the window, (S, N) in their order. NaN where a
            row took no step. S is 0 unless they are measured. A snapshot does not hold them.
    """

    steps: IntArray
    divergence: IntArray
    values: dict[str, FloatArray]
    step_losses: FloatArray = field(default_factory=lambda: np.zeros((0, 0)))

    def __getitem__(self, name: str) -> FloatArray:
        """Returns a measurement by its name."""
        return self.values[name]

    @staticmethod
    def empty(
        num_rows: int,
        num_layers: int,
        num_groups: int,
        measurements: Sequence[Measurement],
        num_cells: int = 0,
    ) -> Window:
        """Returns the window of runs before any measurement."""
        counts, values = np.zeros(num_rows, dtype=np.int64), {}
        shapes = {"run": (), "layer": (num_layers,), "group": (num_groups,), "cell": (num_cells,)}
        for own in window_measurements(measurements):
            values[own.name] = np.zeros((num_rows, *shapes[own.per]))
        return Window(counts, counts.copy(), values)

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns all arrays by their names in a snapshot, without copies."""
        return {"steps": self.steps, "divergence": self.divergence, **self.values}

    @staticmethod
    def of_arrays(arrays: dict[str, np.ndarray]) -> Window:
        """Returns the window of these arrays. See `arrays`."""
        values = dict(arrays)
        return Window(values.pop("steps"), values.pop("divergence"), values)


class WindowSums:
    """Sums of the measurements of a window's steps.

    A step counts for a run if it moved the run, and if it is one of the steps at the end of that
    run's window at which the measurement is taken.

    Args:
        measurements: of the plant.
        values: name of a measurement -> its value of every row, (N, ...). `add` and `finish` write
            to them.
        num_steps: steps of each row's window, (N,).
    """

    def __init__(
        self,
        measurements: Iterable[Measurement],
        values: dict[str, FloatArray],
        num_steps: IntArray,
    ) -> None:
        self._measurements = {own.name: own for own in measurements}
        self._values, self._num_steps = values, num_steps
        means = [own.name for own in self._measurements.values() if own.over == "mean"]
        self._sums = {name: np.zeros_like(values[name]) for name in means}
        self._counts = {name: np.zeros(len(num_steps)) for name in means}
        self._moved = np.zeros(len(num_steps), dtype=bool)

    def add(
        self, step: int, rows: IntArray, moved: BoolArray, found: dict[str, FloatArray]
    ) -> None:
        """Adds a step.

        Args:
            step: number of the step in the window, from 0.
            rows: indices of the rows that took it, (M,).
            moved: True for those that it has moved, (M,).
            found: name of a measurement -> its value of each of these rows, (M, ...).
        """
        self._moved[rows[moved]] = True
        left = self._num_steps[rows] - step
        for name, value in found.items():
            last = self._measurements[name].num_steps
            counted = moved if last is None else moved & (left <= last)
            chosen = rows[counted]
            # All rows: without an index, which takes longer than the sum.
            own = slice(None) if len(chosen) == len(self._moved) else chosen
            if name in self._sums:
                self._sums[name][own] += value[counted]
                self._counts[name][own] += 1
            else:
                self._values[name][own] = value[counted]

    def finish(self) -> None:
        """Writes the means of the rows that have moved. A mean of no step is 0."""
        for name, total in self._sums.items():
            mean = (total.T / np.maximum(self._counts[name], 1.0)).T
            self._values[name][self._moved] = mean[self._moved]


def window_measurements(measurements: Iterable[Measurement]) -> tuple[Measurement, ...]:
    """Returns the measurements that a window keeps under their names: all but those per step."""
    return tuple(own for own in measurements if own.per != "step")


def step_losses(unit: str) -> Measurement:
    """Returns the measurement of the training loss of every step, in this unit."""
    return Measurement(
        "step_losses", unit, "training loss of every step", per="step", group="step_losses"
    )


def groups_of(measurements: Iterable[Measurement]) -> tuple[str, ...]:
    """Returns all measurement groups, in the order of the measurements."""
    return tuple(dict.fromkeys(own.group for own in measurements if own.group is not None))


def readable_names(
    measurements: Iterable[Measurement], groups: Collection[str] | None = None
) -> set[str]:
    """Returns the measurements that features and terms may read.

    Args:
        measurements: of a plant.
        groups: measured groups. None: all.
    """
    return {
        own.name
        for own in measurements
        if not own.privileged and (own.group is None or groups is None or own.group in groups)
    }
