"""The panel: the current value of every cell of every run, and the only copy of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hpenv.arrays import BoolArray, FloatArray, IntArray
from hpenv.control.channel import Channel
from hpenv.control.channels import channel


@dataclass(frozen=True)
class TensorSite:
    """Group, optimizer and layer of a tensor, by which scopes index it."""

    group: str
    optimizer: str
    layer: int | None = None


@dataclass(frozen=True)
class ChannelCells:
    """The cells of one channel at one scope.

    Attributes:
        channel: the dial.
        scope: kind of index.
        cells: name of each cell.
        index: cell of each tensor, -1 where none moves it, (K,).
        columns: columns of the action that hold the cells.
    """

    channel: Channel
    scope: str
    cells: tuple[str, ...]
    index: IntArray
    columns: slice


def _key(name: str, site: TensorSite, scope: str) -> str | None:
    if scope == "run":
        return "run"
    if scope in ("layer", "tensor"):  # a tensor outside of the layers has no such cell
        return None if site.layer is None else name if scope == "tensor" else f"layer.{site.layer}"
    return {"optimizer": site.optimizer, "group": site.group}[scope]


class Panel:
    """Positions and values of all cells, (N, cells) each.

    Attributes:
        banks: cells of each (channel, scope), in the order of the action's columns.
        tensors: names of the K tensors, in the order of the tables.
        layers: layer of each tensor, -1 for none, (K,).
        groups: names of the G optimizer groups.
        positions: (N, A) in [-1, 1]. 0 is neutral.
    """

    def __init__(
        self,
        channels: Sequence[tuple[str, str]],
        sites: Mapping[str, TensorSite],
        num_rows: int,
        plant: str,
    ) -> None:
        """Lays out the cells.

        Args:
            channels: (channel, scope) pairs.
            sites: tensor name -> its group, optimizer and layer.
            num_rows: N.
            plant: kind of plant, as channels name it.

        Raises:
            ValueError: for a channel, scope or plant that does not fit, or a pair that is given
                twice.
        """
        if len(set(channels)) != len(channels):
            raise ValueError(
                f"channels must not name a (channel, scope) pair twice; got {list(channels)}"
            )

        self.tensors = tuple(sites)
        self.groups = tuple(dict.fromkeys(site.group for site in sites.values()))
        self.layers: IntArray = np.array(
            [-1 if site.layer is None else site.layer for site in sites.values()]
        )
        self._first_of_layer = [
            int(np.flatnonzero(self.layers == i)[0]) for i in range(self.layers.max(initial=-1) + 1)
        ]

        optimizers = [site.optimizer for site in sites.values()]
        self.banks: dict[tuple[str, str], ChannelCells] = {}
        start = 0
        for name, scope in channels:
            dial = channel(name, scope, plant, optimizers)
            if dial.neutral != 1.0 and any(name == other for other, _ in self.banks):
                raise ValueError(
                    f"channel {name!r} is not a multiplier, so it can be asked for at one scope "
                    "only"
                )

            keys = [
                _key(tensor, site, scope)
                if not dial.optimizers or site.optimizer in dial.optimizers
                else None
                for tensor, site in sites.items()
            ]
            cells = tuple(dict.fromkeys(key for key in keys if key is not None))
            if not cells:
                raise ValueError(
                    f"channel {name!r} at scope {scope!r} would have no cells: no tensor of a "
                    f"layer is trained by {list(dial.optimizers) or 'any optimizer'}"
                )

            index = np.array([-1 if key is None else cells.index(key) for key in keys])
            columns = slice(start, start + len(cells))
            self.banks[name, scope] = ChannelCells(dial, scope, cells, index, columns)
            start = columns.stop

        self.positions: FloatArray = np.zeros((num_rows, start))
        self._banks_of: dict[str, list[ChannelCells]] = {name: [] for name, _ in self.banks}
        for (name, _), bank in self.banks.items():
            self._banks_of[name].append(bank)

        by_warp: dict[object, list[ChannelCells]] = {}
        for bank in self.banks.values():
            by_warp.setdefault(
                (bank.channel.bounds, bank.channel.neutral, bank.channel.floor), []
            ).append(bank)

        #: A channel, and the columns of all channels with the same warp. A call of numpy costs more
        #: than the numbers do.
        self._warps: list[tuple[Channel, IntArray]] = []
        for banks in by_warp.values():
            ranges = [np.arange(bank.columns.start, bank.columns.stop) for bank in banks]
            self._warps.append((banks[0].channel, np.concatenate(ranges)))

        self._read: bytes | None = None  # positions from which the cells and tables were computed
        self._cells: FloatArray = np.empty_like(self.positions)
        self._tables: dict[str, FloatArray | None] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the action's columns: the channel at scope `run`, else `channel/cell`."""
        names: list[str] = []
        for (name, scope), bank in self.banks.items():
            names += [name if scope == "run" else f"{name}/{cell}" for cell in bank.cells]
        return tuple(names)

    @property
    def num_layers(self) -> int:
        """Number of layers that have tensors."""
        return len(self._first_of_layer)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kind of each column's channel."""
        return tuple(dial.kind for dial in self._column_channels())

    @property
    def neutral(self) -> FloatArray:
        """Value of each column at position 0, (A,)."""
        return np.array([dial.neutral for dial in self._column_channels()], dtype=np.float64)

    @property
    def immediate(self) -> tuple[bool, ...]:
        """True for each column that the forward pass reads.

        The loss of the same step responds to such a column.
        """
        return tuple(dial.immediate for dial in self._column_channels())

    @property
    def channel_names(self) -> tuple[str, ...]:
        """Channel of each column."""
        return tuple(dial.name for dial in self._column_channels())

    @property
    def one_sided(self) -> BoolArray:
        """True for each column of a one-sided channel, (A,)."""
        return np.array([dial.one_sided for dial in self._column_channels()], dtype=bool)

    def _column_channels(self) -> list[Channel]:
        """Returns the channel of each column."""
        channels: list[Channel] = []
        for bank in self.banks.values():
            channels += [bank.channel] * len(bank.cells)
        return channels

    def move(self, positions: FloatArray, rows: NDArray[np.bool_]) -> None:
        """Sets the cells of the chosen rows, (N,) bool, to positions (N, A), clipped to [-1, 1]."""
        self.positions[rows] = np.clip(positions[rows], -1.0, 1.0)

    def values(self) -> FloatArray:
        """Returns the value of every cell, (N, A), in the channel's unit."""
        self._refresh()
        return self._cells.copy()

    def _refresh(self) -> None:
        """Computes the cells again if the positions have changed, whoever wrote them."""
        positions = self.positions.tobytes()
        if positions != self._read:
            for dial, columns in self._warps:
                self._cells[:, columns] = dial.values(self.positions[:, columns])
            self._read, self._tables = positions, {}

    def table(self, name: str) -> FloatArray | None:
        """Returns the value of a channel for every tensor, (N, K).

        The value is the product over the channel's scopes, clipped to the channel's bounds, and
        neutral where no cell moves the tensor. None if every cell of every run is at neutral: the
        caller may then skip the channel.
        """
        self._refresh()
        table = self._known_table(name)
        return None if table is None else table.copy()

    def moves(self, names: Iterable[str]) -> bool:
        """Returns True if a cell of one of these channels is not at neutral in some run."""
        self._refresh()
        return any(self._known_table(name) is not None for name in names)

    def _known_table(self, name: str) -> FloatArray | None:
        """Returns `table` without a copy, of positions that have been read."""
        if name not in self._tables:
            self._tables[name] = self._table(self._banks_of.get(name, ()))
        return self._tables[name]

    def _table(self, banks: Sequence[ChannelCells]) -> FloatArray | None:
        result: FloatArray | None = None
        for bank in banks:
            values, neutral = self._cells[:, bank.columns], bank.channel.neutral
            if (values != neutral).any():
                spread = values[:, bank.index]  # (N, K)
                spread[:, bank.index < 0] = neutral
                result = spread if result is None else result * spread

        return (
            result
            if result is None or len(banks) == 1
            else np.clip(result, *banks[0].channel.bounds)
        )

    def per_layer(self, name: str) -> FloatArray | None:
        """Returns the value of a channel for every layer, (N, L), or None as for `table`."""
        table = self.table(name)
        if table is None:
            return None
        return table[:, self._first_of_layer]

    def layer_index(self, bank: ChannelCells) -> IntArray:
        """Returns the cell of each layer in a channel that moves all layers, (L,)."""
        return bank.index[self._first_of_layer]

    def per_run(self, name: str) -> FloatArray | None:
        """Returns a channel whose only scope is `run`, (N,), or None as for `table`."""
        table = self.table(name)
        return None if table is None else table[:, 0]
