"""Channels: the dials of a training loop as a table of data.

A channel is one kind of quantity that may be moved. Its cells are one per run, optimizer, group, layer or tensor, as
its scope says; an action holds one number in [-1, 1] per cell, 0 leaves training bit for bit as it is. A new dial is
an entry of CHANNELS and the line of the plant that reads it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

#: What a cell may be indexed by. `optimizer` is finer than `run` and coarser than `group`: AdamW and Muon of a hybrid.
SCOPES = ("run", "optimizer", "group", "layer", "tensor")


@dataclass(frozen=True)
class Channel:
    """One dial.

    Attributes:
        name: key in CHANNELS.
        scopes: scopes it may be asked for at.
        surface: what it acts on.
        bounds: smallest and largest value.
        kind: what its worst case is (`scale` multiplies by at most e^lambda, `shrink` multiplies a weight by [0, 1]).
        unit: unit of the value.
        source: where it comes from.
        reads: the one place of the plant that reads it.
        neutral: the value at position 0.
        warp: how a position becomes a value; `log` goes geometrically from neutral to either bound.
        plants: kinds of plant that have it.
    """

    name: str
    scopes: tuple[str, ...]
    surface: Literal["forward", "optimizer", "backward"]
    bounds: tuple[float, float]
    kind: Literal["scale", "shrink", "clip", "skip", "two_sided"]
    unit: str
    source: str
    reads: str
    neutral: float = 1.0
    warp: Literal["log"] = "log"
    plants: tuple[str, ...] = ("pretraining",)

    def values(self, positions: NDArray[np.float64]) -> NDArray[np.float64]:
        """Positions in [-1, 1] to values: neutral e^(u ln(high / neutral)) for u >= 0, alike to the low side.

        Exactly `neutral` at 0, and within the bounds for every position in range.
        """
        low, high = self.bounds
        up, down = math.log(high / self.neutral), math.log(self.neutral / low)
        return np.clip(self.neutral * np.exp(np.where(positions >= 0, up, down) * positions), low, high)


CHANNELS: dict[str, Channel] = {
    channel.name: channel
    for channel in (
        Channel(
            name="lr",
            scopes=("run", "optimizer", "group"),
            surface="optimizer",
            bounds=(0.01, 100.0),
            kind="scale",
            unit="multiplier of the base learning rate",
            source="JEL, section 3.3: exp(ln 100 u)",
            reads="PretrainingPlant._window_rates",
        ),
        Channel(
            name="weight_decay",
            scopes=("run", "optimizer", "group"),
            surface="optimizer",
            bounds=(0.01, 100.0),
            kind="shrink",
            unit="multiplier of the base weight decay",
            source="JEL, section 3.3: exp(ln 100 u)",
            reads="PretrainingPlant._window_rates",
        ),
    )
}


def channel(name: str, scope: str, plant: str) -> Channel:
    """The channel of this name, if this plant has it at this scope.

    Raises:
        ValueError: for an unknown name, a scope it does not allow or a plant that does not have it.
    """
    if name not in CHANNELS:
        raise ValueError(f"unknown channel {name!r}; expected one of {sorted(CHANNELS)}")
    found = CHANNELS[name]
    if scope not in found.scopes:
        raise ValueError(f"channel {name!r} has no scope {scope!r}; expected one of {list(found.scopes)}")
    if plant not in found.plants:
        raise ValueError(f"channel {name!r} does not apply to the plant {plant!r}; it applies to {list(found.plants)}")
    return found
