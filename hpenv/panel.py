"""The panel: the current value of every cell of every run, and the only copy of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hpenv.channels import Channel, channel

FloatArray = NDArray[np.float64]


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
        index: tensor name -> column of its cell; tensors that no cell moves are missing.
        columns: where its cells stand in the action.
    """

    channel: Channel
    scope: str
    cells: tuple[str, ...]
    index: Mapping[str, int]
    columns: slice


def _key(name: str, site: Site, scope: str) -> str | None:
    if scope == "run":
        return "run"
    if scope == "layer":
        return None if site.layer is None else f"layer.{site.layer}"
    return {"optimizer": site.optimizer, "group": site.group, "tensor": name}[scope]


class Panel:
    """Positions and values of all cells, (N, cells) each.

    Attributes:
        banks: cells of each (channel, scope), in the order of the action's columns.
        positions: (N, A) in [-1, 1]; 0 is neutral.
    """

    def __init__(
        self, channels: Sequence[tuple[str, str]], sites: Mapping[str, Site], num_rows: int, plant: str
    ) -> None:
        """Lays out the cells.

        Args:
            channels: (channel, scope) pairs.
            sites: tensor name -> where it stands.
            num_rows: N.
            plant: kind of plant, as channels name it.

        Raises:
            ValueError: for a channel, scope or plant that does not fit, or a pair that is given twice.
        """
        if len(set(channels)) != len(channels):
            raise ValueError(f"channels {list(channels)} name a (channel, scope) pair twice")
        self.banks: dict[tuple[str, str], Bank] = {}
        start = 0
        for name, scope in channels:
            keys = {tensor: _key(tensor, site, scope) for tensor, site in sites.items()}
            cells = tuple(dict.fromkeys(key for key in keys.values() if key is not None))
            index = {tensor: cells.index(key) for tensor, key in keys.items() if key is not None}
            columns = slice(start, start + len(cells))
            self.banks[name, scope] = Bank(channel(name, scope, plant), scope, cells, index, columns)
            start = columns.stop
        self.positions: FloatArray = np.zeros((num_rows, start))

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

    def move(self, positions: FloatArray, rows: NDArray[np.bool_]) -> None:
        """Sets the cells of the chosen rows: positions (N, A) in [-1, 1], clipped; rows (N,) bool."""
        self.positions[rows] = np.clip(positions[rows], -1.0, 1.0)

    def values(self) -> FloatArray:
        """Value of every cell, (N, A), in the channel's unit."""
        result = np.empty_like(self.positions)
        for bank in self.banks.values():
            result[:, bank.columns] = bank.channel.values(self.positions[:, bank.columns])
        return result

    def multiplier(self, name: str, tensor: str) -> FloatArray | None:
        """What a channel multiplies this tensor's quantity by, (N,): product over scopes; None without a cell."""
        result: FloatArray | None = None
        for (channel_name, _), bank in self.banks.items():
            if channel_name == name and tensor in bank.index:
                column = bank.columns.start + bank.index[tensor]
                value = bank.channel.values(self.positions[:, column])
                result = value if result is None else result * value
        return result
