"""A channel: one dial, the scale of its values, and its map between positions and values.

A channel is one-sided if its neutral is an end of its bounds (a cap, a probability). Noise around
neutral must do nothing, so the channel is neutral on all of [-1, DEAD_ZONE] and moves beyond it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

#: Kinds of index of a cell. `optimizer` is finer than `run` and coarser than `group`: AdamW and
#: Muon of a hybrid. `layer` and `tensor` index the body only: embedding and unembedding belong to
#: no layer and have no such cell.
SCOPES = ("run", "optimizer", "group", "layer", "tensor")

#: One-sided channels are neutral up to this position.
DEAD_ZONE = 0.1


@dataclass(frozen=True)
class Channel:
    """One dial.

    Attributes:
        name: key in CHANNELS.
        scopes: scopes it may be asked for at.
        surface: `optimizer` (how an update is formed), `backward` (which gradients pass), or
            `forward` (everything else, as in the Sidecar paper).
        bounds: smallest and largest value.
        kind: its worst case. `scale` multiplies by at most its high bound. `shrink` multiplies a
            weight by [0, 1]. `clip` is a cap that starts dormant. `skip` removes something with a
            probability, or a fraction of it, that starts at 0. `unsafe` can rotate or amplify a
            gradient.
        unit: unit of the value.
        source: paper and section that it comes from.
        reads: the one place that reads it.
        plants: kinds of plant that have it.
        optimizers: names of the optimizers that have a use for it. Empty: all.
        floor: smallest value that is not neutral, of a channel whose neutral is 0. The value then
            moves in its logarithm from the floor to the high bound. 0: it moves evenly from 0.
        immediate: True if the forward pass reads it, so that the loss of the same step already
            responds to it.
        change: function of a tensor's gradient (N, ...) and the values (N, 1, ...) that returns the
            changed gradient. Pretraining calls it before all other channels of gradients, and not
            for runs at neutral. A channel from outside of the package needs it.
    """

    name: str
    scopes: tuple[str, ...]
    surface: Literal["forward", "optimizer", "backward"]
    bounds: tuple[float, float]
    kind: Literal["scale", "shrink", "clip", "skip", "unsafe"]
    unit: str
    source: str
    reads: str
    plants: tuple[str, ...] = ("pretraining",)
    optimizers: tuple[str, ...] = ()
    floor: float = 0.0
    immediate: bool = False
    change: Callable[[Tensor, Tensor], Tensor] | None = None

    @property
    def neutral(self) -> float:
        """Value at position 0: 1 of a multiplier, the high bound of a cap, 0 of the other kinds."""
        if self.kind == "clip":
            return self.bounds[1]
        return 1.0 if self.kind in ("scale", "shrink") else 0.0

    @property
    def warp(self) -> Literal["log", "linear"]:
        """Scale on which the value changes evenly with the position: its logarithm, or itself."""
        return "log" if self._start > 0 else "linear"

    @property
    def _start(self) -> float:
        """Value from which the bounds are reached: neutral, or the floor next to it."""
        return self.floor if self.floor > 0 else self.neutral

    @property
    def one_sided(self) -> bool:
        """True if neutral is an end of the bounds."""
        return self.neutral in self.bounds

    def values(self, positions: NDArray[np.float64]) -> NDArray[np.float64]:
        """Maps positions in [-1, 1] to values within the bounds, exactly `neutral` at 0.

        The value goes from neutral to the high bound for u >= 0, and to the low bound for u < 0. Of
        a one-sided channel it goes (u - 0.1) / 0.9 of the way to the far bound. With a floor that
        way begins at the floor, which is itself neutral.
        """
        low, high = self.bounds

        if self.one_sided:
            far = low if self.neutral == high else high
            fraction = np.clip((positions - DEAD_ZONE) / (1.0 - DEAD_ZONE), 0.0, 1.0)
            values = np.where(fraction > 0.0, self._between(far, fraction), self.neutral)
        else:
            values = np.where(
                positions >= 0,
                self._between(high, np.abs(positions)),
                self._between(low, np.abs(positions)),
            )

        return np.clip(values, low, high)

    def slopes(self, positions: NDArray[np.float64]) -> NDArray[np.float64]:
        """Returns the derivative of `values` by the position, in units of the value.

        At 0 it is that of the upper half. In its dead zone a one-sided channel has the derivative
        at the end of the zone, so that an estimate says whether it is worth leaving.
        """
        low, high = self.bounds
        if self.one_sided:
            far = low if self.neutral == high else high
            fraction = np.clip((positions - DEAD_ZONE) / (1.0 - DEAD_ZONE), 0.0, 1.0)
            return self._slope(far, fraction) / (1.0 - DEAD_ZONE)
        upper, lower = (self._slope(end, np.abs(positions)) for end in (high, low))
        return np.where(positions >= 0, upper, -lower)

    def position(self, value: float) -> float:
        """Returns the position of a value, the inverse of `values`. It is 0 for neutral.

        Raises:
            ValueError: the value is out of bounds, or not above the floor.
        """
        low, high = self.bounds
        if not low <= value <= high:
            raise ValueError(f"{self.name} must be from {low} to {high}; got {value}")
        if value == self.neutral:
            return 0.0

        if 0.0 < value <= self.floor:
            raise ValueError(
                f"{self.name} must be {self.neutral} or above its floor of {self.floor}; "
                f"got {value}"
            )

        far = high if value > self.neutral else low
        if self.warp == "log":
            fraction = math.log(value / self._start) / math.log(far / self._start)
        else:
            fraction = (value - self.neutral) / (far - self.neutral)
        if self.one_sided:
            return DEAD_ZONE + (1.0 - DEAD_ZONE) * fraction
        return fraction if far == high else -fraction

    def move_of(self, factor: float) -> float:
        """Returns the change of position that multiplies a value by a factor above 0.

        The position moves that far wherever a value stands, if the logarithms of both bounds are as
        far from neutral. It is in the units of the high bound.

        Raises:
            ValueError: the values of the channel do not move in their logarithm.
        """
        if self.warp != "log" or self.bounds[1] == self._start:
            raise ValueError(
                f"{self.name} must move up in the logarithm of its values to be moved by a factor; "
                f"got bounds {self.bounds} around {self.neutral}; give the change of its position"
            )
        span = (1.0 - DEAD_ZONE) if self.one_sided else 1.0
        return span * math.log(factor) / math.log(self.bounds[1] / self._start)

    def _between(self, end: float, fraction: NDArray[np.float64]) -> NDArray[np.float64]:
        """Returns the value at a fraction of the way from the start to an end of the bounds."""
        if self.warp == "log":
            return self._start * np.exp(math.log(end / self._start) * fraction)
        return self.neutral + (end - self.neutral) * fraction

    def _slope(self, end: float, fraction: NDArray[np.float64]) -> NDArray[np.float64]:
        """Returns the derivative of `_between` by the fraction."""
        if self.warp == "log":
            return self._between(end, fraction) * math.log(end / self._start)
        return np.full_like(fraction, end - self.neutral)
