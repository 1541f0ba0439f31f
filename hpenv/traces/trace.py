"""Traces: the decisions of a controller in one run, as a table that can be replayed and exported.

A trace is open-loop. Replayed in another run, it does not react to that run's losses.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hpenv.arrays import FloatArray
from hpenv.checks import check_count, suggestion
from hpenv.policies.controller import ControllerSpec
from hpenv.policies.schedule_table import ScheduleTable


class StepMultiplier:
    """Function of the step that returns a multiplier, for `torch.optim.lr_scheduler.LambdaLR`.

    Args:
        multipliers: one per decision, (K,).
        interval: steps per decision [steps].
    """

    def __init__(self, multipliers: Sequence[float], interval: int) -> None:
        self.multipliers, self.interval = [float(value) for value in multipliers], int(interval)

    def __call__(self, step: int) -> float:
        """Returns the multiplier of a step, counted from 0. After the last decision it stays."""
        return self.multipliers[min(step // self.interval, len(self.multipliers) - 1)]


@dataclass(frozen=True)
class Trace:
    """The decisions of a controller in one run.

    Attributes:
        cells: names of the cells, (A,).
        channels: (channel, scope) pairs of the cells. Empty: unknown.
        interval: steps per decision [steps].
        num_steps: steps of the run [steps].
        positions: positions of the cells at each decision, (K, A) in [-1, 1].
        multipliers: name -> multiplier in force after each decision, (K,). A name is `lr/<group>`
            from an optimizer, or a cell.
    """

    cells: tuple[str, ...]
    channels: tuple[tuple[str, str], ...]
    interval: int
    num_steps: int
    positions: FloatArray
    multipliers: Mapping[str, Sequence[float]]

    def __post_init__(self) -> None:
        """Checks the shapes.

        Raises:
            ValueError: naming what was given and what is accepted.
        """
        check_count("interval", self.interval)
        check_count("num_steps", self.num_steps)
        shape = (-(-self.num_steps // self.interval), len(self.cells))
        if np.shape(self.positions) != shape:
            raise ValueError(
                f"positions must be of shape {shape}, decisions by cells; got "
                f"{np.shape(self.positions)}"
            )
        lengths = {name: len(values) for name, values in self.multipliers.items()}
        if set(lengths.values()) - {shape[0]}:
            raise ValueError(f"multipliers must be {shape[0]} each; got {lengths}")

    def controller(self) -> ScheduleTable:
        """Returns a policy that takes the same positions at the same steps, and can be saved.

        With the base values, bounds and rails of the recorded run, but without its pauses
        (`Rails(spike=None)`), a run with it is bitwise the recorded one. Positions that were
        reached by moves are rounded to float32.
        """
        table = ScheduleTable(self.positions)
        table.spec = ControllerSpec(
            channels=self.channels or None,
            observation=("progress",),
            interval=self.interval,
            mapping="position",
            observation_names=("progress",),
            action_names=self.cells,
        )
        return table

    def multiplier(self, name: str) -> StepMultiplier:
        """Returns a multiplier as a function of the step, for LambdaLR.

        The first step of the scheduler must be that of the recorded run.

        Raises:
            ValueError: for an unknown name.
        """
        if name not in self.multipliers:
            raise ValueError(
                f"unknown multiplier {name!r}; expected one of {sorted(self.multipliers)}"
                f"{suggestion(name, self.multipliers)}"
            )
        return StepMultiplier(self.multipliers[name], self.interval)

    def to_json(self) -> str:
        """Returns the trace as JSON. All numbers keep their bits."""
        values = {
            "cells": list(self.cells),
            "channels": [list(pair) for pair in self.channels],
            "interval": self.interval,
            "num_steps": self.num_steps,
            "positions": np.asarray(self.positions).tolist(),
            "multipliers": {name: list(values) for name, values in self.multipliers.items()},
        }
        return json.dumps(values, indent=1)

    @staticmethod
    def from_json(text: str) -> Trace:
        """Returns the trace of a text of `to_json`.

        Raises:
            ValueError: the text is no trace.
        """
        values = json.loads(text)
        if not isinstance(values, dict) or set(values) != set(Trace.__dataclass_fields__):
            found = sorted(values) if isinstance(values, dict) else type(values).__name__
            raise ValueError(
                f"a trace must have the fields {list(Trace.__dataclass_fields__)}; got {found}"
            )
        pairs = tuple((name, scope) for name, scope in values["channels"])
        positions = np.array(values["positions"], dtype=np.float64)
        return Trace(
            **values | {"cells": tuple(values["cells"]), "channels": pairs, "positions": positions}
        )

    def to_csv(self) -> str:
        """Returns a table with a row per decision: step, positions and multipliers."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        names = list(self.multipliers)
        positions = [f"position:{cell}" for cell in self.cells]
        writer.writerow(["step", *positions, *(f"multiplier:{name}" for name in names)])
        for k, row in enumerate(np.asarray(self.positions).tolist()):
            factors = [float(self.multipliers[name][k]) for name in names]
            writer.writerow([k * self.interval, *row, *factors])
        return text.getvalue()
