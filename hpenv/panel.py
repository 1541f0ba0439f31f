"""The panel: the current value of every cell of every run, and the only copy of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hpenv.channels import Channel, channel

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Site:
    """Where a tensor stands: what the scopes index it by."""

    group: str
    optimizer: str
    layer: int | None = None


@dataclass(frozen=True)
class Bank:
    """The cells of one channel at one scope.

    Attributes:
        channel: the dial.
        scope: what it is indexed by.
        cells: name of each cell.
        index: cell of each tensor, -1 where none moves it, (K,).
        columns: where its cells stand in the action.
    """

    channel: Channel
    scope: str
    cells: tuple[str, ...]
    index: IntArray
    columns: slice


def _key(name: str, site: Site, scope: str) -> str | None:
    if scope == "run":
        return "run"
    if scope in ("layer", "tensor"):  # of the body: what stands in no layer has no such cell
        return None if site.layer is None else name if scope == "tensor" else f"layer.{site.layer}"
    return {"optimizer": site.optimizer, "group": site.group}[scope]


class Panel:
    """Positions and values of all cells, (N, cells) each.

    Attributes:
        banks: cells of each (channel, scope), in the order of the action's columns.
        tensors: names of the K tensors that cells are indexed by, in the order of the tables.
        layers: layer of each tensor, -1 for none, (K,).
        positions: (N, A) in [-1, 1]; 0 is neutral.
    """

    def __init__(
        self,
        channels: Sequence[tuple[str, str]],
        sites: Mapping[str, Site],
        num_rows: int,
        plant: str,
    ) -> None:
        """Lays out the cells.

        Args:
            channels: (channel, scope) pairs.
            sites: tensor name -> where it stands.
            num_rows: N.
            plant: kind of plant, as channels name it.

        Raises:
            ValueError: for a channel, scope or plant that does not fit, or a pair that is given
                twice.
        """
        if len(set(channels)) != len(channels):
            raise ValueError(f"channels {list(channels)} name a (channel, scope) pair twice")
        self.tensors = tuple(sites)
        self.layers: IntArray = np.array(
            [-1 if site.layer is None else site.layer for site in sites.values()]
        )
        self._first_of_layer = [
            int(np.flatnonzero(self.layers == i)[0]) for i in range(self.layers.max(initial=-1) + 1)
        ]
        optimizers = [site.optimizer for site in sites.values()]
        self.banks: dict[tuple[str, str], Bank] = {}
        start = 0
        for name, scope in channels:
            dial = channel(name, scope, plant, optimizers)
            if dial.neutral != 1.0 and any(name == other for other, _ in self.banks):
                raise ValueError(
                    f"channel {name!r} is not a multiplier, so it can be asked for at one scope only"
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
                    f"channel {name!r} has no cell at scope {scope!r}: it applies to tensors under "
                    f"{list(dial.optimizers) or 'any optimizer'}, and none of them stands there"
                )
            index = np.array([-1 if key is None else cells.index(key) for key in keys])
            columns = slice(start, start + len(cells))
            self.banks[name, scope] = Bank(dial, scope, cells, index, columns)
            start = columns.stop
        self.positions: FloatArray = np.zeros((num_rows, start))
        self._banks_of: dict[str, list[Bank]] = {name: [] for name, _ in self.banks}
        for (name, _), bank in self.banks.items():
            self._banks_of[name].append(bank)
        alike: dict[object, list[Bank]] = {}
        for bank in self.banks.values():
            alike.setdefault(
                (bank.channel.bounds, bank.channel.neutral, bank.channel.warp), []
            ).append(bank)
        #: A channel, and all columns that are warped as its own: a call of numpy costs more than
        #: the numbers do.
        self._alike = [
            (
                banks[0].channel,
                np.concatenate(
                    [np.arange(bank.columns.start, bank.columns.stop) for bank in banks]
                ),
            )
            for banks in alike.values()
        ]
        self._read: bytes | None = None  # the positions that these are of:
        self._cells: FloatArray = np.empty_like(self.positions)
        self._tables: dict[str, FloatArray | None] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Name of each column of the action: the channel alone at scope `run`, else `channel/cell`."""
        return tuple(
            name if scope == "run" else f"{name}/{cell}"
            for (name, scope), bank in self.banks.items()
            for cell in bank.cells
        )

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kind of each column's channel."""
        return tuple(bank.channel.kind for bank in self.banks.values() for _ in bank.cells)

    @property
    def neutral(self) -> FloatArray:
        """Value of each column at position 0, (A,)."""
        return np.array(
            [bank.channel.neutral for bank in self.banks.values() for _ in bank.cells],
            dtype=np.float64,
        )

    @property
    def immediate(self) -> tuple[bool, ...]:
        """Whether each column is read by the forward pass, so that the loss of its own step answers to it."""
        return tuple(bank.channel.immediate for bank in self.banks.values() for _ in bank.cells)

    def move(self, positions: FloatArray, rows: NDArray[np.bool_]) -> None:
        """Sets the cells of the chosen rows: positions (N, A) in [-1, 1], clipped; rows (N,) bool."""
        self.positions[rows] = np.clip(positions[rows], -1.0, 1.0)

    def values(self) -> FloatArray:
        """Value of every cell, (N, A), in the channel's unit."""
        self._refresh()
        return self._cells.copy()

    def _refresh(self) -> None:
        """Computes the cells anew if the positions are not those they were computed of, whoever wrote them."""
        positions = self.positions.tobytes()
        if positions != self._read:
            for dial, columns in self._alike:
                self._cells[:, columns] = dial.values(self.positions[:, columns])
            self._read, self._tables = positions, {}

    def table(self, name: str) -> FloatArray | None:
        """Value of a channel for every tensor, (N, K): the product over its scopes, neutral where
        no cell moves it.

        The product, too, stays within the channel's bounds. None if nothing of it is moved in any
        run: then it need not be read.
        """
        self._refresh()
        if name not in self._tables:
            self._tables[name] = self._table(self._banks_of.get(name, ()))
        table = self._tables[name]
        return None if table is None else table.copy()

    def _table(self, banks: Sequence[Bank]) -> FloatArray | None:
        result: FloatArray | None = None
        for bank in banks:
            values, neutral = self._cells[:, bank.columns], bank.channel.neutral
            if (values != neutral).any():
                own = values[:, bank.index]
                own[:, bank.index < 0] = neutral
                result = own if result is None else result * own
        return (
            result
            if result is None or len(banks) == 1
            else np.clip(result, *banks[0].channel.bounds)
        )

    def per_layer(self, name: str) -> FloatArray | None:
        """Value of a channel for every layer, (N, L), or None as for `table`."""
        table = self.table(name)
        if table is None:
            return None
        return table[:, self._first_of_layer]

    def per_run(self, name: str) -> FloatArray | None:
        """Value of a channel that has no scope but `run`, (N,), or None as for `table`."""
        table = self.table(name)
        return None if table is None else table[:, 0]
