"""Base schedules: closed forms that map a step to a multiplier of a base rate.

A schedule is a frozen dataclass that is called on an array of steps. It belongs to the plant's
configuration and holds at every step. The panel's multipliers are applied to its values. Step t is
the t-th of `num_steps` updates, counted from 0.

Every schedule is data as well. `dataclasses.asdict` gives a mapping with its `name` in SCHEDULES
and its parameters, and `schedule_forms` reads the mapping again. EnvSpec.to_json and from_json need
this.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hpenv.arrays import FloatArray
from hpenv.checks import as_python, is_count, is_number

#: A longer text of a schedule is replaced by its digest [characters].
LONGEST_TEXT = 1000


class Schedule(Protocol):
    """Any function from steps (any shape, integer) to multipliers (same shape)."""

    def __call__(self, steps: NDArray[np.int64]) -> FloatArray:
        """Returns multipliers of the base rate at these steps."""


def _set_count(schedule: object, name: str, least: int) -> None:
    """Checks that a parameter is a whole number of at least `least`, and stores it as an int."""
    value = as_python(getattr(schedule, name))
    if not is_count(value, least):
        raise ValueError(
            f"{name} of {type(schedule).__name__} must be a whole number of at least {least}; "
            f"got {value!r}"
        )
    object.__setattr__(schedule, name, value)


def _set_fraction(schedule: object, name: str, most: float = math.inf) -> None:
    """Checks that a parameter is a number from 0 to `most`, and stores it as Python's."""
    value = as_python(getattr(schedule, name))
    if not (is_number(value) and math.isfinite(value) and 0 <= value <= most):
        expected = "finite and not negative" if most == math.inf else f"a number from 0 to {most:g}"
        raise ValueError(f"{name} of {type(schedule).__name__} must be {expected}; got {value!r}")
    object.__setattr__(schedule, name, value)


def _set_values(schedule: Any, positive: bool = False) -> None:
    """Checks that `values` are finite and not negative, or positive, and stores a tuple."""
    given, kind = schedule.values, type(schedule).__name__
    values = tuple(map(as_python, given)) if isinstance(given, Sequence | np.ndarray) else ()
    if not values or isinstance(given, str):
        raise ValueError(f"values of {kind} must be numbers, at least one; got {given!r}")

    expected = "above 0" if positive else "not negative"
    for place, value in enumerate(values):
        fits = is_number(value) and math.isfinite(value) and value >= 0
        if not fits or (positive and value == 0):
            raise ValueError(
                f"values of {kind} must be finite and {expected}; got {value!r} at place {place}"
            )
    object.__setattr__(schedule, "values", values)


def _set_warmup(schedule: Any) -> None:
    """Checks that `warmup_steps` is not longer than the run."""
    _set_count(schedule, "warmup_steps", 0)
    if schedule.warmup_steps > schedule.num_steps:
        raise ValueError(
            f"warmup_steps of {type(schedule).__name__} must be at most "
            f"num_steps={schedule.num_steps}; got {schedule.warmup_steps}"
        )


def _ramp(steps: NDArray[np.int64], warmup_steps: int) -> FloatArray:
    """Returns a linear warmup (t + 1) / warmup_steps, at most 1.

    The first step does not have a rate of zero, which would waste it.
    """
    if warmup_steps <= 0:
        return np.ones(np.shape(steps))
    return np.minimum(1.0, (np.asarray(steps, dtype=np.float64) + 1.0) / warmup_steps)


def _cooldown_progress(
    steps: NDArray[np.int64], num_steps: int, cooldown_fraction: float
) -> FloatArray:
    """Returns the fraction of a cooldown at the end of a run that has passed, in [0, 1]."""
    length = round(cooldown_fraction * num_steps)
    if length == 0:
        return np.zeros(np.shape(steps))
    passed = np.asarray(steps, dtype=np.float64) - (num_steps - length)
    return np.clip(passed / length, 0.0, 1.0)


@dataclass(frozen=True)
class Constant:
    """1 at every step, after an optional linear warmup."""

    warmup_steps: int = 0
    name: str = field(default="constant", init=False, repr=False)

    def __post_init__(self) -> None:
        """Checks the parameters."""
        _set_count(self, "warmup_steps", 0)

    def __call__(self, steps: NDArray[np.int64]) -> FloatArray:
        """Returns multipliers at `steps`, same shape."""
        return _ramp(steps, self.warmup_steps)


@dataclass(frozen=True)
class Cosine:
    """f + (1 - f) (1 + cos(pi t / T)) / 2 after a linear warmup.

    Loshchilov & Hutter 2017, without restarts.
    """

    num_steps: int
    warmup_steps: int = 0
    final_fraction: float = 0.0
    name: str = field(default="cosine", init=False, repr=False)

    def __post_init__(self) -> None:
        """Checks the parameters."""
        _set_count(self, "num_steps", 1)
        _set_warmup(self)
        _set_fraction(self, "final_fraction")

    def __call__(self, steps: NDArray[np.int64]) -> FloatArray:
        """Returns multipliers at `steps`, same shape."""
        span = max(1, self.num_steps - self.warmup_steps)
        done = np.clip((np.asarray(steps, dtype=np.float64) - self.warmup_steps) / span, 0.0, 1.0)
        amplitude = (1.0 - self.final_fraction) * 0.5
        cosine = self.final_fraction + amplitude * (1.0 + np.cos(np.pi * done))
        is_warmup = np.asarray(steps) < self.warmup_steps
        return np.where(is_warmup, _ramp(steps, self.warmup_steps), cosine)


@dataclass(frozen=True)
class WarmupFlatWarmdown:
    """Linear warmup, flat, then linear to `final_fraction` (nanochat, "WSD").

    The last part takes `warmdown_fraction` of the run. With w = round(warmdown_fraction T), the
    multiplier is 1 up to t = T - w, then (T - t) / w, so that the last step still moves.
    """

    num_steps: int
    warmup_steps: int = 0
    warmdown_fraction: float = 0.4
    final_fraction: float = 0.0
    name: str = field(default="warmup_flat_warmdown", init=False, repr=False)

    def __post_init__(self) -> None:
        """Checks the parameters."""
        _set_count(self, "num_steps", 1)
        _set_warmup(self)
        _set_fraction(self, "warmdown_fraction", 1.0)
        _set_fraction(self, "final_fraction")

    def __call__(self, steps: NDArray[np.int64]) -> FloatArray:
        """Returns multipliers at `steps`, same shape."""
        warmdown = round(self.warmdown_fraction * self.num_steps)
        left = (self.num_steps - np.asarray(steps, dtype=np.float64)) / max(1, warmdown)
        down = self.final_fraction + (1.0 - self.final_fraction) * np.clip(left, 0.0, 1.0)
        return _ramp(steps, self.warmup_steps) * (down if warmdown > 0 else 1.0)


@dataclass(frozen=True)
class LinearDecay:
    """1 - t / T: nanochat's schedule of Muon's weight decay."""

    num_steps: int
    name: str = field(default="linear_decay", init=False, repr=False)

    def __post_init__(self) -> None:
        """Checks the parameters."""
        _set_count(self, "num_steps", 1)

    def __call__(self, steps: NDArray[np.int64]) -> FloatArray:
        """Returns multipliers at `steps`, same shape."""
        return np.clip(1.0 - np.asarray(steps, dtype=np.float64) / self.num_steps, 0.0, 1.0)


@dataclass(frozen=True)
class SqrtCooldown:
    """Linear warmup, flat, then 1 - sqrt(x) over the last `cooldown_fraction` of the run.

    x is the fraction of the cooldown that has passed (Haegele et al. 2024, arXiv 2405.18392: WSD
    with "1-sqrt" and a cooldown of 20 %). With w = round(cooldown_fraction T) steps of cooldown,
    x = (t - T + w) / w, so that the last step still moves.
    """

    num_steps: int
    warmup_steps: int = 0
    cooldown_fraction: float = 0.2
    name: str = field(default="sqrt_cooldown", init=False, repr=False)

    def __post_init__(self) -> None:
        """Checks the parameters."""
        _set_count(self, "num_steps", 1)
        _set_warmup(self)
        _set_fraction(self, "cooldown_fraction", 1.0)

    def __call__(self, steps: NDArray[np.int64]) -> FloatArray:
        """Returns multipliers at `steps`, same shape."""
        passed = _cooldown_progress(steps, self.num_steps, self.cooldown_fraction)
        return _ramp(steps, self.warmup_steps) * (1.0 - np.sqrt(passed))


@dataclass(frozen=True)
class PowerDecay:
    """Linear warmup, then min(1, (flat_steps / n)^exponent), then a linear cooldown to zero.

    n = t + 1 counts steps. This is the power scheduler min(eta_max, beta a n^b) of Shen et al.
    2024 (arXiv 2408.13359) at a constant batch: their tokens are steps times a constant, eta_max
    is the base rate, and the law is below it from step `flat_steps` on. They find b = -0.51. The
    warmup goes up to the law's value at its end. The cooldown starts from the law's value at its
    beginning. Its length and its linear form are our choice, since the law is there to need no
    length of a run.
    """

    num_steps: int
    warmup_steps: int = 0
    flat_steps: int = 100
    exponent: float = 0.51
    cooldown_fraction: float = 0.1
    name: str = field(default="power_decay", init=False, repr=False)

    def __post_init__(self) -> None:
        """Checks the parameters."""
        _set_count(self, "num_steps", 1)
        _set_warmup(self)
        _set_count(self, "flat_steps", 1)
        _set_fraction(self, "exponent")
        _set_fraction(self, "cooldown_fraction", 1.0)

    def __call__(self, steps: NDArray[np.int64]) -> FloatArray:
        """Returns multipliers at `steps`, same shape."""
        first = max(1.0, self.warmup_steps)
        last = max(first, self.num_steps - round(self.cooldown_fraction * self.num_steps))
        number = np.clip(np.asarray(steps, dtype=np.float64) + 1.0, first, last)
        law = np.minimum(1.0, (self.flat_steps / number) ** self.exponent)
        passed = _cooldown_progress(steps, self.num_steps, self.cooldown_fraction)
        return _ramp(steps, self.warmup_steps) * law * (1.0 - passed)


@dataclass(frozen=True)
class PiecewiseConstant:
    """values[t // interval], times `base`.

    The last value holds from there on. `base` is another schedule of this module.
    """

    values: tuple[float, ...]
    interval: int
    base: Schedule = Constant()
    name: str = field(default="piecewise_constant", init=False, repr=False)

    def __post_init__(self) -> None:
        """Checks the parameters."""
        _set_values(self)
        _set_count(self, "interval", 1)
        check_schedule("base of PiecewiseConstant", self.base)

    @cached_property
    def _table(self) -> FloatArray:
        return np.asarray(self.values, dtype=np.float64)

    def __call__(self, steps: NDArray[np.int64]) -> FloatArray:
        """Returns multipliers at `steps`, same shape."""
        index = np.minimum(np.asarray(steps, dtype=np.int64) // self.interval, len(self.values) - 1)
        return self._table[index] * self.base(steps)


@dataclass(frozen=True)
class LogLinear:
    """Straight lines in the logarithm between evenly spaced knots.

    With K values, value k holds at step k (T - 1) / (K - 1). The first value is that of the first
    step, and the last value that of the last step and of all later ones. One value is a constant.
    """

    values: tuple[float, ...]
    num_steps: int
    name: str = field(default="log_linear", init=False, repr=False)

    def __post_init__(self) -> None:
        """Checks the parameters."""
        _set_values(self, positive=True)
        _set_count(self, "num_steps", 1)

    def __call__(self, steps: NDArray[np.int64]) -> FloatArray:
        """Returns multipliers at `steps`, same shape."""
        last = len(self.values) - 1
        place = np.asarray(steps, dtype=np.float64) * (last / max(1, self.num_steps - 1))
        return np.exp(np.interp(place, np.arange(last + 1), np.log(self.values)))


#: Name -> schedule. `none` means no schedule.
SCHEDULES: dict[str, type[Any]] = {
    "none": Constant,
    "constant": Constant,
    "cosine": Cosine,
    "warmup_flat_warmdown": WarmupFlatWarmdown,
    "linear_decay": LinearDecay,
    "sqrt_cooldown": SqrtCooldown,
    "power_decay": PowerDecay,
    "piecewise_constant": PiecewiseConstant,
    "log_linear": LogLinear,
}


def check_schedule(argument: str, schedule: object) -> None:
    """Checks that a value is a schedule of this module.

    Raises:
        ValueError: naming the argument, what was given, and how a function becomes a schedule.
    """
    if type(schedule) not in SCHEDULES.values():
        raise ValueError(
            f"{argument} must be a schedule of hpenv.optim.schedules; got {schedule!r}; make one "
            "of your function with hpenv.optim.schedule_forms.tabulate(function, num_steps)"
        )


def setting_description(value: Any) -> Any:
    """Returns a setting as a JSON-able value: a schedule as its text, a tuple as a list."""
    if isinstance(value, Mapping):
        return {str(key): setting_description(entry) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return [setting_description(entry) for entry in value]
    if type(value) not in SCHEDULES.values():
        return value

    text = repr(value)
    if len(text) <= LONGEST_TEXT:
        return text
    return f"{type(value).__name__} of sha256 {hashlib.sha256(text.encode()).hexdigest()}"
