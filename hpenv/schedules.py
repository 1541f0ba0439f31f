"""Base schedules: closed forms that map the number of the step to a multiplier of a base rate.

A schedule is a frozen dataclass that is called on an array of steps; it belongs to the plant's configuration, holds
at every step, and is what the panel's multipliers are applied to. Step t is the t-th update, counted from 0, of
`num_steps`.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from types import FunctionType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


class Schedule(Protocol):
    """Anything that maps steps (any shape, integer) to multipliers (same shape)."""

    def __call__(self, steps: NDArray[np.int64]) -> FloatArray:
        """Multipliers of the base rate at these steps."""


def check_schedule(name: str, schedule: object) -> None:
    """Refuses what does not map steps to multipliers.

    Raises:
        ValueError: naming the argument, what was given, and what it made of steps.
    """
    steps, made = np.arange(2)[:, None], None
    if callable(schedule) and not isinstance(schedule, type):
        with contextlib.suppress(Exception):  # whatever it raises, it is no schedule
            made = schedule(steps)
        found = np.asarray(made if isinstance(made, np.ndarray) else np.nan)
        if found.shape == steps.shape and found.dtype.kind in "fi" and np.isfinite(found).all() and (found >= 0).all():
            return
    raise ValueError(
        f"{name}={schedule!r} must be a Schedule (see hpenv.schedules): what maps an array of steps to an array of as "
        f"many multipliers, finite and not negative; of the steps [[0], [1]] it made {made!r}"
    )


def described(schedule: object) -> str:
    """A schedule as its text; a function by its name, since its address differs in every process."""
    return f"{schedule.__module__}.{schedule.__qualname__}" if isinstance(schedule, FunctionType) else repr(schedule)


def _ramp(steps: NDArray[np.int64], warmup_steps: int) -> FloatArray:
    """Linear warmup (t + 1) / warmup_steps, at most 1: the first step is never wasted on a rate of zero."""
    if warmup_steps <= 0:
        return np.ones(np.shape(steps))
    return np.minimum(1.0, (np.asarray(steps, dtype=np.float64) + 1.0) / warmup_steps)


@dataclass(frozen=True)
class Constant:
    """1 at every step, after an optional linear warmup."""

    warmup_steps: int = 0

    def __call__(self, steps: NDArray[np.int64]) -> FloatArray:
        """Multipliers at `steps`, same shape."""
        return _ramp(steps, self.warmup_steps)


@dataclass(frozen=True)
class Cosine:
    """f + (1 - f) (1 + cos(pi t / T)) / 2 after a linear warmup (Loshchilov & Hutter 2017, without restarts)."""

    num_steps: int
    warmup_steps: int = 0
    final_fraction: float = 0.0

    def __call__(self, steps: NDArray[np.int64]) -> FloatArray:
        """Multipliers at `steps`, same shape."""
        span = max(1, self.num_steps - self.warmup_steps)
        done = np.clip((np.asarray(steps, dtype=np.float64) - self.warmup_steps) / span, 0.0, 1.0)
        cosine = self.final_fraction + (1.0 - self.final_fraction) * 0.5 * (1.0 + np.cos(np.pi * done))
        return np.where(np.asarray(steps) < self.warmup_steps, _ramp(steps, self.warmup_steps), cosine)


@dataclass(frozen=True)
class WarmupFlatWarmdown:
    """Linear warmup, flat, then linear to `final_fraction` over the last `warmdown_fraction` (nanochat; "WSD").

    With w = round(warmdown_fraction T): 1 up to t = T - w, then (T - t) / w, so that the last step still moves.
    """

    num_steps: int
    warmup_steps: int = 0
    warmdown_fraction: float = 0.4
    final_fraction: float = 0.0

    def __call__(self, steps: NDArray[np.int64]) -> FloatArray:
        """Multipliers at `steps`, same shape."""
        warmdown = round(self.warmdown_fraction * self.num_steps)
        left = (self.num_steps - np.asarray(steps, dtype=np.float64)) / max(1, warmdown)
        down = self.final_fraction + (1.0 - self.final_fraction) * np.clip(left, 0.0, 1.0)
        return _ramp(steps, self.warmup_steps) * (down if warmdown > 0 else 1.0)


@dataclass(frozen=True)
class LinearDecay:
    """1 - t / T: nanochat's schedule of Muon's weight decay."""

    num_steps: int

    def __call__(self, steps: NDArray[np.int64]) -> FloatArray:
        """Multipliers at `steps`, same shape."""
        return np.clip(1.0 - np.asarray(steps, dtype=np.float64) / self.num_steps, 0.0, 1.0)


@dataclass(frozen=True)
class PiecewiseConstant:
    """values[t // interval], the last value from there on; times `base` where one is given."""

    values: tuple[float, ...]
    interval: int
    base: Schedule = Constant()

    def __call__(self, steps: NDArray[np.int64]) -> FloatArray:
        """Multipliers at `steps`, same shape."""
        table = np.asarray(self.values, dtype=np.float64)
        index = np.minimum(np.asarray(steps, dtype=np.int64) // self.interval, len(table) - 1)
        return table[index] * self.base(steps)
