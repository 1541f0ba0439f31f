"""The numbers of one decision that features and reward terms read."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

import numpy as np

from hpenv.arrays import BoolArray, FloatArray
from hpenv.checks import suggestion
from hpenv.plant.measurements import Measurement, Window, readable_names
from hpenv.telemetry.estimators import Estimates
from hpenv.telemetry.trajectory import Trajectory


@dataclass(frozen=True)
class Layout:
    """Names and numbers that determine the columns of an observation.

    Attributes:
        cell_names: name of each cell of the panel.
        cell_kinds: kind of each cell's channel.
        num_layers: L, the number of layers of the model.
        num_registers: R.
        group_names: name of each optimizer group.
    """

    cell_names: tuple[str, ...] = ()
    cell_kinds: tuple[str, ...] = ()
    num_layers: int = 0
    num_registers: int = 0
    group_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reading:
    """The measurements of one decision of every run, which features and reward terms read.

    A [loss] is in the plant's unit, `score.loss_unit`.

    Attributes:
        window: measurements taken while the runs advanced.
        trajectory: the losses so far, including the window's.
        previous_train_loss: training loss of the previous window, (N,) [loss].
        previous_probe_loss: probe loss before the window, (N,) [loss].
        initial_probe_loss: probe loss of the untrained run, (N,) [loss].
        progress: fraction of the budget that is spent, (N,) in [0, 1].
        positions: positions of the cells during the window, (N, A) in [-1, 1].
        previous_positions: positions of the cells before the window, (N, A).
        registers: registers after the decision's writes, (N, R) in [-1, 1].
        estimates: trends of the losses of the steps so far. Of `Estimates.empty` unless a feature
            reads them.
        loss_exponent: exponent of the power law of the losses so far, (N,). 0 unless a feature
            reads it.
        first: True where the window was the run's first: there is no earlier decision, (N,).
        layout: names and numbers of all these columns.
    """

    window: Window
    trajectory: Trajectory
    previous_train_loss: FloatArray
    previous_probe_loss: FloatArray
    initial_probe_loss: FloatArray
    progress: FloatArray
    positions: FloatArray
    previous_positions: FloatArray
    registers: FloatArray
    estimates: Estimates
    loss_exponent: FloatArray
    first: BoolArray
    layout: Layout


def relative_loss(values: FloatArray, reading: Reading) -> FloatArray:
    """Returns losses (N,) divided by the untrained run's."""
    return values / np.maximum(reading.initial_probe_loss, 1e-6)


class Readable(Protocol):
    """The field of FEATURES and rewards.REWARD_TERMS that says what an entry reads."""

    @property
    def reads(self) -> tuple[str, ...]:
        """Measurements that the entry reads."""


def readable(
    table: Mapping[str, Readable],
    measurements: Sequence[Measurement],
    groups: Collection[str] | None = None,
) -> tuple[str, ...]:
    """Returns the entries that a plant supports.

    Args:
        table: FEATURES or REWARD_TERMS.
        measurements: of the plant.
        groups: measured groups. None: all.
    """
    known = readable_names(measurements, groups)
    return tuple(name for name, entry in table.items() if known.issuperset(entry.reads))


def check_readable(
    kind: str,
    names: Iterable[str],
    table: Mapping[str, Readable],
    measurements: Sequence[Measurement],
) -> None:
    """Checks that names are in a table, and that the plant measures what they read.

    Raises:
        ValueError: naming what was given and what is accepted.
    """
    accepted = readable(table, measurements)
    for name in names:
        if name not in accepted:
            why = f"{kind} {name!r} reads what this plant does not measure" if name in table else ""
            raise ValueError(
                f"{why or f'unknown {kind} {name!r}'}; expected some of {sorted(accepted)}"
                f"{'' if why else suggestion(name, accepted)}"
            )


def groups_read(entries: Iterable[Readable], measurements: Iterable[Measurement]) -> set[str]:
    """Returns the measurement groups that features or terms need."""
    wanted = set(chain.from_iterable(entry.reads for entry in entries))
    return {own.group for own in measurements if own.group is not None and own.name in wanted}
