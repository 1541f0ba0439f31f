"""Mappings: an action as the position of a cell, or as a bounded change of it.

Under `position` an action is the position of each cell. Under `move` it is a fraction of the
largest change that a decision may make. 0 holds the cell, bit for bit. The largest changes are
data, in units of the position, down and up. A channel that the data does not name moves by at most
DEFAULT_MOVE.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpenv.arrays import BoolArray, FloatArray
from hpenv.checks import is_number, suggestion
from hpenv.control.channel import DEAD_ZONE
from hpenv.control.channels import CHANNELS

MAPPINGS = ("position", "move")

#: Largest change of a position per decision, either way, of a channel that names none: ten moves
#: from neutral to a bound. Of the channel `lr` that is a factor of 1.58. (Ours.)
DEFAULT_MOVE = 0.1

#: Channel -> largest changes of its position per decision, down and up.
MaxMoves = Mapping[str, float | Sequence[float]]


def check_mapping(mapping: object, max_moves: object) -> dict[str, list[float]]:
    """Checks the mapping and the largest moves of an environment.

    Args:
        mapping: one of MAPPINGS.
        max_moves: channel -> a number for both ways, or a pair (down, up). None: no channel.

    Returns:
        Channel -> [down, up], as Python's numbers.

    Raises:
        ValueError: naming the argument, what was given and what is accepted.
    """
    if mapping not in MAPPINGS:
        raise ValueError(f"unknown mapping {mapping!r}; expected one of {list(MAPPINGS)}")
    if max_moves is None:
        return {}
    if not isinstance(max_moves, Mapping):
        raise ValueError(
            "max_moves must be a mapping of channels to a largest change of the position, as "
            f"{{'lr': (0.02, 0.04)}}; got {max_moves!r}"
        )
    return {name: _pair(name, given) for name, given in max_moves.items()}


def _pair(name: Any, given: Any) -> list[float]:
    if name not in CHANNELS:
        raise ValueError(
            f"unknown channel {name!r} in max_moves; expected some of {sorted(CHANNELS)}"
            f"{suggestion(name, CHANNELS)}"
        )
    pair = [given, given] if is_number(given) else given
    fits = isinstance(pair, Sequence) and not isinstance(pair, str) and len(pair) == 2
    if not (fits and all(is_number(move) and 0 <= move <= 2 for move in pair)):
        raise ValueError(
            f"max_moves of {name!r} must be a number from 0 to 2, or two of them for down and up; "
            f"got {given!r}; moves_of_factors() converts factors of a value"
        )
    return [float(move) for move in pair]


def moves_of_factors(name: str, down: float, up: float) -> tuple[float, float]:
    """Returns the largest moves under which a value falls and rises by at most these factors.

    Args:
        name: a channel whose value moves in its logarithm.
        down: smallest factor per decision, in (0, 1].
        up: largest factor per decision, at least 1.

    Raises:
        ValueError: the factors are out of range, or the value does not move in its logarithm.

    Example:
        >>> down, up = moves_of_factors("lr", 0.9, 1.2)
        >>> round(down, 4), round(up, 4)
        (0.0229, 0.0396)
    """
    if not (0 < down <= 1 <= up < math.inf):
        raise ValueError(
            f"factors of {name!r} must be in (0, 1] and at least 1; got {down!r} and {up!r}"
        )
    return abs(CHANNELS[name].move_of(down)), CHANNELS[name].move_of(up)


def largest_moves(channels: Sequence[str], max_moves: Mapping[str, Sequence[float]]) -> FloatArray:
    """Returns the largest moves down and up of each cell, (2, A).

    Args:
        channels: channel of each cell, (A,).
        max_moves: channel -> (down, up), as `check_mapping` returns it.
    """
    pairs = [max_moves.get(name, (DEFAULT_MOVE, DEFAULT_MOVE)) for name in channels]
    return np.array(pairs, dtype=np.float64).reshape(-1, 2).T


def move_positions(
    positions: FloatArray, actions: FloatArray, largest: FloatArray, one_sided: NDArray[np.bool_]
) -> FloatArray:
    """Returns the positions after moves, within the bounds. An action of 0 keeps every bit.

    A cell of a one-sided channel is neutral on all of [-1, DEAD_ZONE]. It moves within [DEAD_ZONE,
    1] and leaves neutral from the end of that zone, so that no move is lost in it.

    Args:
        positions: (N, A) in [-1, 1].
        actions: fractions of the largest moves, (N, A), clipped to [-1, 1].
        largest: largest moves down and up, (2, A).
        one_sided: True for cells of one-sided channels, (A,).
    """
    fractions = np.clip(actions, -1.0, 1.0)
    lowest = np.where(one_sided, DEAD_ZONE, -1.0)
    step = np.where(fractions < 0, largest[0], largest[1]) * fractions
    moved: FloatArray = np.clip(np.maximum(positions, lowest) + step, lowest, 1.0)
    held: BoolArray = fractions == 0
    return np.where(held, positions, moved)
