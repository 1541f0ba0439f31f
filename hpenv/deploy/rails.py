"""Rails: limits of what a controller may do to a run that is not an experiment on controllers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from hpenv.arrays import FloatArray
from hpenv.checks import check_count, is_number
from hpenv.control.channels import CHANNELS
from hpenv.deploy.groups import DIALS
from hpenv.telemetry.trajectory import Trajectory

#: Windows that must have passed before a loss can count as a spike.
FIRST_WINDOWS = 3


@dataclass(frozen=True)
class Rails:
    """Limits of a controller.

    A spike is a window whose mean loss is more than `spike` times the exponential mean (decay 0.95)
    of the windows before it, if there are at least 3. After a spike, or a loss that is not finite,
    all multipliers are 1 for `pause` decisions, and the controller is not asked.

    The cumulative bound adds |log multiplier| over the steps, for each channel and group. Before a
    decision would make the sum larger than `budget` times the steps of the run, the multiplier
    becomes 1.

    Attributes:
        spike: multiple of the mean loss that counts as a spike, above 1. None: none does.
        pause: decisions at multiplier 1 after a spike [decisions].
        budget: largest mean of |log multiplier| over the run [nats]. None: no bound.
        patience: a controller that takes longer for one decision is switched off [seconds].
    """

    spike: float | None = 2.0
    pause: int = 5
    budget: float | None = None
    patience: float = 10.0

    def __post_init__(self) -> None:
        """Checks the limits.

        Raises:
            ValueError: naming the limit and what was given.
        """
        check_count("pause", self.pause)
        for name, low in (("spike", 1.0), ("budget", 0.0), ("patience", 0.0)):
            value = getattr(self, name)
            if name != "patience" and value is None:
                continue
            if not (is_number(value) and value > low):
                raise ValueError(f"{name} must be a number above {low:g}; got {value!r}")

    def is_spike(self, loss: float, trajectory: Trajectory) -> bool:
        """Returns True if the loss of a window is a spike after the windows of a trajectory."""
        if self.spike is None or trajectory.num_losses[0] < FIRST_WINDOWS:
            return False
        mean = float(trajectory.mean[0])
        return mean > 0 and loss > self.spike * mean


def bounds_of(
    channels: Iterable[str], given: Mapping[str, tuple[float, float]] | None
) -> dict[str, tuple[float, float]]:
    """Returns the smallest and the largest multiplier of every channel.

    Args:
        channels: names of channels.
        given: key of a group -> bounds of its multiplier, and `momentum` for the channel of that
            name, in any group. A channel that is not given has its own bounds.

    Raises:
        ValueError: bounds of a key that no channel multiplies, or bounds without 1 between them.
    """
    channels, given = list(channels), dict(given or {})
    keys = {DIALS[name][0].key for name in channels}
    if set(given) - keys:
        raise ValueError(
            f"bounds must be of the keys {sorted(keys)} that the controller sets; "
            f"got {sorted(given)}"
        )
    for key, pair in given.items():
        if not (len(pair) == 2 and all(map(is_number, pair)) and 0 < pair[0] <= 1 <= pair[1]):
            raise ValueError(
                f"bounds of {key!r} must be (low, high), multipliers with 0 < low <= 1 <= high; "
                f"got {pair!r}"
            )

    result = {}
    for name in channels:
        low, high = given.get(DIALS[name][0].key, CHANNELS[name].bounds)
        result[name] = (float(low), float(high))
    return result


def spend(
    spent: FloatArray, multipliers: FloatArray, steps: int, budget: float | None, total: int
) -> FloatArray:
    """Returns multipliers with 1 where the cumulative bound would be passed.

    Args:
        spent: sum of |log multiplier| over the steps so far, (G,) [nats].
        multipliers: those that a decision wants, (G,).
        steps: steps until the next decision.
        budget: largest mean of |log multiplier| over the run [nats]. None: no bound.
        total: steps of the run.
    """
    if budget is None:
        return multipliers
    return np.where(spent + np.abs(np.log(multipliers)) * steps > budget * total, 1.0, multipliers)


def position_limits(
    channels: Iterable[str], bounds: Mapping[str, tuple[float, float]]
) -> FloatArray:
    """Returns the positions at the bounds of the multipliers, low and high, (2, A).

    Moves end there. Further positions would have no effect, and the way back would take decisions.

    Args:
        channels: channel of each cell, (A,).
        bounds: channel -> smallest and largest multiplier.
    """
    pairs = [
        [CHANNELS[name].position(float(np.clip(b, *CHANNELS[name].bounds))) for b in bounds[name]]
        for name in channels
    ]
    return np.array(pairs).T


def check_actions(actions: object, num_cells: int) -> FloatArray:
    """Returns a controller's actions within [-1, 1], (1, A), rounded to float32.

    Raises:
        ValueError: they have another shape, or are no finite numbers.
    """
    array = np.asarray(actions)
    if array.shape != (1, num_cells) or not np.issubdtype(array.dtype, np.number):
        raise ValueError(
            f"act must return numbers of shape (1, {num_cells}); got {array.dtype} of shape "
            f"{array.shape}"
        )
    if not np.isfinite(array).all():
        raise ValueError(f"act must return finite numbers; got {array.tolist()}")
    return np.clip(array.astype(np.float32), -1.0, 1.0).astype(np.float64)


def is_usable(loss: float | None) -> bool:
    """Returns True for a loss that was observed and is finite."""
    return loss is not None and math.isfinite(loss)
