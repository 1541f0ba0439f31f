"""Checks of arguments, and conversion of numpy values to Python's types."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode


def suggestion(given: object, accepted: Iterable[str]) -> str:
    """Returns the end of an error message: the accepted name nearest to an unknown one.

    Empty if no name is near.
    """
    close = difflib.get_close_matches(given, accepted, n=1) if isinstance(given, str) else []
    return f"; did you mean {close[0]!r}?" if close else ""


def is_number(value: object) -> bool:
    """Returns True for a real number, of Python or numpy. True and False are not numbers."""
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def is_count(value: object, least: int = 1) -> bool:
    """Returns True for a whole number of at least `least`."""
    return (
        isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= least)
    )


def check_count(name: str, value: object) -> None:
    """Checks that an argument is a whole number of at least 1.

    Raises:
        ValueError: naming the argument and what was given.
    """
    if not is_count(value):
        raise ValueError(f"{name} must be a whole number of at least 1; got {value!r}")


def check_interval(interval: object, num_steps: int) -> None:
    """Checks that the interval of an episode is a whole number from 1 to its number of steps.

    Raises:
        ValueError: naming what was given and what is accepted.
    """
    if not (is_count(interval) and interval <= num_steps):  # type: ignore[operator]
        raise ValueError(
            f"interval must be a whole number of steps per decision, from 1 to "
            f"num_steps={num_steps}; got {interval!r}"
        )


def autoreset_mode_of(given: str | AutoresetMode) -> AutoresetMode:
    """Returns the mode of this name or value.

    Gymnasium's vector envs accept the value too: `NextStep` for `NEXT_STEP`.

    Raises:
        ValueError: for another name or value.
    """
    for mode in AutoresetMode:
        if given in (mode, mode.name, mode.value):
            return mode
    names = sorted(mode.name for mode in AutoresetMode)
    raise ValueError(f"unknown autoreset_mode {given!r}; expected one of {names}")


def as_python(value: Any) -> Any:
    """Returns a value with numpy's numbers and texts converted to Python's, in containers too.

    A mapping becomes a dict, a tuple stays a tuple, any other sequence becomes a list. Other
    objects stay as they are.
    """
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    if isinstance(value, np.floating):
        return float(value)  # item() of a longdouble returns a longdouble
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {as_python(key): as_python(entry) for key, entry in value.items()}
    if isinstance(value, tuple):
        return tuple(as_python(entry) for entry in value)
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [as_python(entry) for entry in value]
    return value


def set_python_fields(record: Any) -> None:
    """Replaces every field of a frozen dataclass by `as_python` of it.

    Call it in the first line of `__post_init__`.
    """
    for entry in fields(record):
        object.__setattr__(record, entry.name, as_python(getattr(record, entry.name)))
