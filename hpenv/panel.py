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
        self.tensors = tuple(sites)
        self.layers: IntArray = np.array([-1 if site.layer is None else site.layer for site in sites.values()])
        self._first_of_layer = [
            int(np.flatnonzero(self.layers == i)[0]) for i in range(self.layers.max(initial=-1) + 1)
        ]
        optimizers = [site.optimizer for site in sites.values()]
        self.banks: dict[tuple[str, str], Bank] = {}
        start = 0
        for name, scope in channels:
            dial = channel(name, scope, plant, optimizers)
            if dial.neutral != 1.0 and any(name == other for other, _ in self.banks):
                raise ValueError(f"channel {name!r} is not a multiplier, so it can be asked for at one scope only")
            keys = [
                _key(tensor, site, scope) if not dial.optimizers or site.optimizer in dial.optimizers else None
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
    def immediate(self) -> tuple[bool, ...]:
        """Whether each column is read by the forward pass, so that the loss of its own step answers to it."""
        return tuple(bank.channel.immediate for bank in self.banks.values() for _ in bank.cells)

    def move(self, positions: FloatArray, rows: NDArray[np.bool_]) -> None:
        """Sets the cells of the chosen rows: positions (N, A) in [-1, 1], clipped; rows (N,) bool."""
        self.positions[rows] = np.clip(positions[rows], -1.0, 1.0)

    def values(self) -> FloatArray:
        """Value of every cell, (N, A), in the channel's unit."""
        result = np.empty_like(self.positions)
        for bank in self.banks.values():
            result[:, bank.columns] = bank.channel.values(self.positions[:, bank.columns])
        return result

    def table(self, name: str) -> FloatArray | None:
        """Value of a channel for every tensor, (N, K): the product over its scopes, neutral where no cell moves it.

        The product, too, stays within the channel's bounds. None if nothing of it is moved in any run: then it need
        not be read.
        """
        result: FloatArray | None = None
        bounds = (-np.inf, np.inf)
        for (channel_name, _), bank in self.banks.items():
            if channel_name == name:
                values = bank.channel.values(self.positions[:, bank.columns])
                if (values == bank.channel.neutral).all():
                    continue
                own = np.where(bank.index < 0, bank.channel.neutral, values[:, bank.index])
                result, bounds = own if result is None else result * own, bank.channel.bounds
        return None if result is None else np.clip(result, *bounds)

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
