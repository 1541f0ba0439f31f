"""Base class of all plants: step counts, seeds, divergence and panel of N runs, and snapshots.

Subclasses call `_keep` in `__init__` once they have a panel. They declare `measurements`, and
implement `reset`, `evaluate`, `report`, `spawn`, `_begin_window` (reads of the panel, once per
window), `_step` (one optimizer step of some rows), `_end_window` (measurements at a window's end),
`_tensors` (state to save) and `description` (configuration that a snapshot must match).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpenv.arrays import BoolArray, FloatArray, IntArray
from hpenv.checks import as_python
from hpenv.control.panel import Panel
from hpenv.plant.measurements import (
    Measurement,
    Window,
    WindowSums,
    groups_of,
    window_measurements,
)
from hpenv.plant.protocol import DIVERGENCE_REASONS, Snapshot, check_tensors
from hpenv.plant.ranks import ALONE, Ranks

#: Largest step count of a run.
MOST_STEPS = 2**53


class Runs(ABC):
    """N runs, each with a step count and a seed.

    Attributes:
        panel: current value of every cell of every run.
        num_rows: N.
        num_layers: L, layers of the model.
        steps: optimizer steps each run has taken, (N,).
        seeds: seed of each run, (N,). 0 .. N - 1 before the first reset.
        divergence: index into protocol.DIVERGENCE_REASONS, (N,).
        measured_groups: measurement groups that `advance` measures.
        ranks: the processes that share the batches. Rank 0 tells the others what it does.
    """

    kind: str
    measurements: tuple[Measurement, ...]

    def _keep(self, panel: Panel, num_rows: int, num_layers: int) -> None:
        """Sets the attributes for N runs before their first step."""
        self.ranks: Ranks = ALONE
        self.panel, self.num_rows, self.num_layers = panel, int(num_rows), num_layers
        self.steps: IntArray = np.zeros(num_rows, dtype=np.int64)
        self.seeds: IntArray = np.arange(num_rows, dtype=np.int64)
        self.divergence: IntArray = np.zeros(num_rows, dtype=np.int64)
        self.measured_groups = frozenset(groups_of(self.measurements)) & {"probe", "momentum"}
        sizes = (num_rows, num_layers, len(panel.groups))
        self._window = Window.empty(*sizes, self.measurements, len(panel.names))

    @abstractmethod
    def _tensors(self) -> dict[str, Tensor]:
        """Returns the trained state by its name in a snapshot, without copies.

        The first axis of each tensor is the run.
        """

    @abstractmethod
    def description(self) -> dict[str, object]:
        """Returns the configuration that a snapshot must match to be restored."""

    @abstractmethod
    def _step(self, rows: IntArray) -> dict[str, FloatArray]:
        """Takes one optimizer step of these rows.

        It increases `steps` of the rows that move, and sets `divergence` of those that diverge.

        Returns:
            Name of a measurement -> its value of each of these rows, first axis (rows,).
        """

    @abstractmethod
    def _begin_window(self, num_steps: IntArray) -> None:
        """Prepares for the steps of a window under the present panel.

        Args:
            num_steps: calls of `_step` that each row will take part in, (N,), unless it diverges.
        """

    @abstractmethod
    def _end_window(self, rows: IntArray, probed: BoolArray) -> dict[str, FloatArray]:
        """Measures at the end of a window, and marks runs that have diverged.

        Args:
            rows: rows that are alive.
            probed: rows whose probe is to be measured, (N,).

        Returns:
            Name of a measurement -> its value of every row. `probe_loss` belongs to the probed rows
            alone, the others to all rows that are still alive.
        """

    def advance(self, num_steps: IntArray) -> Window:
        """Trains row i for num_steps[i] steps, then measures.

        A row with 0 steps, or that has diverged, is only measured.

        Args:
            num_steps: (N,) steps.

        Returns:
            Measurements, always finite. Rows that took no step keep the measurements of their last
            window. Before the first step the training loss is the probe loss. Rows that have
            diverged also keep their last probe loss.
        """
        self.ranks.tell("advance", self.panel.positions, num_steps)
        goal = np.where(self.divergence > 0, 0, np.asarray(num_steps, dtype=np.int64))
        longest = int(goal.max(initial=0))
        self._begin_window(goal)

        values = self._kept_values()
        sums = WindowSums(self.measurements, values, goal)
        step_losses = np.full((longest, self.num_rows), np.nan)
        for step in range(longest):
            rows = np.flatnonzero((goal > step) & (self.divergence == 0))
            if not len(rows):
                break
            found = self._step(rows)
            moved = self.divergence[rows] == 0
            step_losses[step, rows[moved]] = found["train_loss"][moved]
            sums.add(step, rows, moved, found)

        sums.finish()
        self._measure_end(values)
        self._window = Window(self.steps.copy(), self.divergence.copy(), values)
        if "step_losses" in self.measured_groups:
            return replace(self._window, step_losses=step_losses)
        return self._window

    def _kept_values(self) -> dict[str, FloatArray]:
        """Returns copies of the last window's values, 0 of groups that are not measured."""
        values = {}
        for own in window_measurements(self.measurements):
            value = self._window[own.name]
            is_kept = own.group in (None, "probe") or own.group in self.measured_groups
            values[own.name] = value.copy() if is_kept else np.zeros_like(value)
        return values

    def _measure_end(self, values: dict[str, FloatArray]) -> None:
        """Adds the measurements of a window's end to its values."""
        alive = self.divergence == 0
        is_new = self.steps == 0
        # New runs are always probed: losses are compared with that of the untrained run.
        probed = alive if "probe" in self.measured_groups else alive & is_new
        found = self._end_window(np.flatnonzero(alive), probed)

        for name, value in found.items():
            rows = (probed if self._group(name) == "probe" else alive) & (self.divergence == 0)
            values[name][rows] = value[rows]
        untrained = is_new & (self.divergence == 0)
        values["train_loss"][untrained] = values["probe_loss"][untrained]

    def _mark_diverged(self, rows: IntArray, found: Mapping[str, BoolArray]) -> None:
        """Ends rows for the first reason that is found. A row that has ended keeps its reason.

        Args:
            rows: indices of rows, (M,).
            found: reason of DIVERGENCE_REASONS -> True for the rows that it applies to, (M,).
        """
        for reason, applies in found.items():
            if not applies.any():
                continue
            ended = rows[applies & (self.divergence[rows] == 0)]
            self.divergence[ended] = DIVERGENCE_REASONS.index(reason)

    def _group(self, name: str) -> str | None:
        return next(own.group for own in self.measurements if own.name == name)

    def set_measured_groups(self, groups: Collection[str]) -> None:
        """Sets the measurement groups that `advance` measures.

        Raises:
            ValueError: for a group that this kind of plant does not have.
        """
        known = groups_of(self.measurements)
        unknown = sorted(set(groups) - set(known))
        if unknown:
            raise ValueError(
                f"unknown measurement groups {unknown} of the {self.kind} plant; "
                f"expected some of {list(known)}"
            )
        self.ranks.tell("measure", frozenset(groups))
        self.measured_groups = frozenset(groups)

    def _begin(self, seeds: Sequence[int], rows: Sequence[int] | None) -> list[int]:
        """Resets counters and panel of the given rows (default: all). Returns their indices.

        Raises:
            ValueError: unless there is one seed per row.
        """
        chosen = list(range(self.num_rows)) if rows is None else list(rows)
        if len(seeds) != len(chosen):
            raise ValueError(
                f"seeds must be {len(chosen)} numbers, one for each row; got {len(seeds)}"
            )

        self.ranks.tell("reset", list(seeds), chosen)
        self.seeds[chosen], self.steps[chosen], self.divergence[chosen] = seeds, 0, 0
        self.panel.positions[chosen] = 0.0

        cleared = {name: value.copy() for name, value in self._window.arrays().items()}
        for value in cleared.values():
            value[chosen] = 0
        self._window = Window.of_arrays(cleared)

        return chosen

    def _arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        """Returns counters, panel and last window by their names in a snapshot, without copies."""
        rows = {
            "steps": self.steps,
            "seeds": self.seeds,
            "divergence": self.divergence,
            "panel": self.panel.positions,
        }
        window = {f"window/{name}": value for name, value in self._window.arrays().items()}
        return {f"rows/{key}": value for key, value in rows.items()} | window

    def snapshot(self) -> Snapshot:
        """Returns the whole state of the runs. The first axis of every tensor is the run.

        Random numbers are functions of seed and step, so no generator is part of the state.
        """
        tensors = {name: value.clone() for name, value in self._tensors().items()}
        tensors |= {name: torch.as_tensor(value.copy()) for name, value in self._arrays().items()}
        return Snapshot(tensors, {"configuration": as_python(self.description())})

    def restore(self, snapshot: Snapshot, keep_panel: bool = False) -> None:
        """Continues from a snapshot, bitwise.

        Args:
            snapshot: snapshot of a plant of the same configuration and number of rows.
            keep_panel: True leaves the panel at its current values.

        Raises:
            ValueError: if the snapshot has another configuration or number of rows.
        """
        self._check(snapshot)

        self.ranks.tell("restore", snapshot)
        tensors = snapshot.tensors
        for name, value in self._tensors().items():
            value.copy_(tensors[name])

        rows = {
            key: tensors[f"rows/{key}"].cpu().numpy().copy()
            for key in ("steps", "seeds", "divergence", "panel")
        }
        self.steps, self.seeds, self.divergence = rows["steps"], rows["seeds"], rows["divergence"]
        if not keep_panel:
            self.panel.positions = rows["panel"]

        self._window = Window.of_arrays(
            {name: tensors[f"window/{name}"].cpu().numpy().copy() for name in self._window.arrays()}
        )

    def _check(self, snapshot: Snapshot) -> None:
        """Checks that a snapshot fits these runs, before anything is changed.

        Raises:
            ValueError: naming the difference.
        """
        theirs, ours = snapshot.metadata.get("configuration"), as_python(self.description())
        if not isinstance(theirs, Mapping):
            raise ValueError(
                "the snapshot must be of a plant, with its configuration; "
                f"it holds {sorted(snapshot.metadata)}"
            )

        different = {
            key: (theirs.get(key), ours.get(key))
            for key in dict.fromkeys([*ours, *theirs])
            if key not in theirs or key not in ours or theirs[key] != ours[key]
        }
        if different:
            raise ValueError(
                f"the snapshot's configuration differs, as (snapshot, here): {different}; "
                "restore it under the configuration that it was taken under"
            )

        rows = len(snapshot.tensors.get("rows/steps", torch.empty(0)))
        if rows != self.num_rows:
            raise ValueError(f"the snapshot must have {self.num_rows} rows; got {rows}")

        expected = {name: torch.as_tensor(value) for name, value in self._arrays().items()}
        check_tensors(snapshot.tensors, self._tensors() | expected)

        for name, least, most in (
            ("steps", 0, MOST_STEPS),
            ("seeds", 0, math.inf),
            ("divergence", 0, len(DIVERGENCE_REASONS) - 1),
            ("panel", -1, 1),
        ):
            values = snapshot.tensors[f"rows/{name}"]
            if not ((values >= least) & (values <= most)).all():
                raise ValueError(
                    f"rows/{name} of the snapshot must be from {least} to {most}; "
                    f"got {values.tolist()}; restore another snapshot"
                )
