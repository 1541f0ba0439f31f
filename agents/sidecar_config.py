"""Hyperparameters of the Sidecar and of REINFORCE."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

Baseline = Literal["own", "population"]
BASELINES: tuple[Baseline, ...] = ("own", "population")
CreditName = Literal["reward", "control_variate", "estimate"]
CREDITS: tuple[CreditName, ...] = ("reward", "control_variate", "estimate")
#: Initial standard deviation by kind of cell [position]. One-sided cells have no effect up to 0.1
#: (hpenv.control.channels). With 0.04, 0.6 % of the samples lie beyond that. The noise of `scale`
#: alone at 0.1 cost a run of 1000 steps 0.8 % in bits per byte. At 0.03, three seeds could show no
#: cost (the cost grows with the square).
INITIAL_STD: dict[str, float] = {
    "scale": 0.03,
    "shrink": 0.1,
    "clip": 0.04,
    "skip": 0.04,
    "unsafe": 0.1,
    "register": 0.1,
}
#: Fields that the configurations of older results do not have -> their defaults.
LATER_FIELDS: dict[str, Any] = {
    "credit": "reward",
    "effects": {"cell_effect": 0},
    "effect_decay": 0.9,
}


@dataclass(frozen=True)
class SidecarConfig:
    """Hyperparameters of the Sidecar. The paper states none of these numbers."""

    attached: bool = True  # False: a detached run, whose decisions are 0 and which learns nothing
    hidden_size: int = 256  # width of the two tanh layers (0.14 M parameters at 100 features)
    # of SGD on natural gradients: standard deviations that a mean moves per unit of advantage
    learning_rate: float = 0.1
    evidence: float = 2.0  # z of the gate max(0, 1 - (z / t)^2) on gradients; 0: no gate [1]
    evidence_decay: float = 0.999  # decay of the sums in t; a memory of 1000 decisions
    # initial standard deviations by kind [position]; the default of a kind is in INITIAL_STD
    initial_std: Mapping[str, float] = field(default_factory=dict)
    # initial means by cell or channel [position]; all others start at neutral
    initial_mean: Mapping[str, float] = field(default_factory=dict)
    std_bounds: tuple[float, float] = (1e-3, 0.5)  # smallest and largest standard deviation
    learn_std: bool = True  # False: standard deviations keep their initial values
    # Decisions between an action and the first reward that it affects (section 5.1: the reward of
    # the next step). For a sum of terms with different delays, use delay 0 and a horizon that
    # covers them all, so that every later reward counts.
    delay: int = 1
    horizon: int = 1  # number of rewards in a credit
    gamma: float = 1.0  # discount of these rewards per decision
    # own: mean of the cell's past; population: mean of the other rows, which see the same batches
    baseline: Baseline = "own"
    baseline_decay: float = 0.95  # of a cell's exponential mean of credits (20 decisions)
    scale_decay: float = 0.99  # of the mean square that divides advantages (100 decisions)
    advantage_clip: float = 5.0  # largest magnitude of an advantage [running root mean squares]
    replay_size: int = 16  # decisions that an update averages over
    clip_range: float = 0.2  # eps of the clipped objective, per cell
    update_interval: int = 1  # decisions between updates
    # one more Gaussian per channel, added to all its cells, which learns from all their signals
    common: bool = False
    # reward: the rewards alone; control_variate: the rewards, less the prediction of past effects
    # of the cells; estimate: the effects alone. See agents.credits
    credit: CreditName = "reward"
    # measurement of the effects -> decisions that must be left of the run for it to be read; the
    # first that fits is read. `slow - fast` is a difference of two, in which the latest steps weigh
    # nothing. `none` leaves all cells but those of the forward pass where they are
    effects: Mapping[str, int] = field(default_factory=lambda: {"cell_effect": 0})
    effect_decay: float = 0.9  # of a cell's exponential mean of past effects (10 decisions)
    max_grad_norm: float | None = None  # L2 norm over a row's weights; None: unbounded

    def __repr__(self) -> str:
        """Returns all fields. Those of `LATER_FIELDS` are left out at their defaults.

        The text is the configuration of committed results, which are older than these fields.
        """
        given = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        shown = {k: v for k, v in given.items() if LATER_FIELDS.get(k) != v}
        return f"SidecarConfig({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    def __post_init__(self) -> None:
        unknown = sorted(set(self.initial_std) - set(INITIAL_STD))
        if unknown:
            raise ValueError(
                f"initial_std must have kinds of {list(INITIAL_STD)}; got unknown kinds {unknown}"
            )

        low, high = self.std_bounds
        if not 0.0 < low < high:
            raise ValueError(f"std_bounds must be 0 < smallest < largest; got {self.std_bounds}")
        if not all(low <= std <= high for std in self.initial_std.values()):
            raise ValueError(
                f"initial_std must be within std_bounds [{low}, {high}]; "
                f"got {dict(self.initial_std)}"
            )
        if not all(-1.0 < position < 1.0 for position in self.initial_mean.values()):
            raise ValueError(
                f"initial_mean must be positions between -1 and 1; got {dict(self.initial_mean)}"
            )

        if self.baseline not in BASELINES:
            raise ValueError(f"baseline must be one of {list(BASELINES)}; got {self.baseline!r}")
        if self.credit not in CREDITS:
            raise ValueError(f"credit must be one of {list(CREDITS)}; got {self.credit!r}")
        if not self.effects or min(self.effects.values()) > 0:
            raise ValueError(
                "effects must have a measurement that is read with 0 decisions left; "
                f"got {dict(self.effects)}"
            )
        if not (0.0 < self.learning_rate < math.inf):
            raise ValueError(f"learning_rate must be > 0 and finite; got {self.learning_rate}")

        for name, least in {
            "hidden_size": 1,
            "delay": 0,
            "horizon": 1,
            "replay_size": 1,
            "update_interval": 1,
        }.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name} must be an int >= {least}; got {value!r}")

        for name in ("attached", "learn_std", "common"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False; got {getattr(self, name)!r}")

        if not 0.0 <= self.gamma <= 1.0:
            raise ValueError(f"gamma must be in [0, 1]; got {self.gamma}")
        if not 0.0 <= self.evidence < math.inf:
            raise ValueError(f"evidence must be >= 0 and finite; got {self.evidence}")

        for name in ("baseline_decay", "scale_decay", "evidence_decay", "effect_decay"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name} must be in [0, 1); got {getattr(self, name)}")

        if not 0.0 < self.clip_range < 1.0:
            raise ValueError(f"clip_range must be between 0 and 1; got {self.clip_range}")
        if not self.advantage_clip > 0:
            raise ValueError(f"advantage_clip must be > 0; got {self.advantage_clip}")
        if self.max_grad_norm is not None and not self.max_grad_norm > 0:
            raise ValueError(f"max_grad_norm must be > 0 or None; got {self.max_grad_norm}")


def for_episodes() -> SidecarConfig:
    """Returns hyperparameters for whole episodes of several runs of one task.

    A credit is the discounted return of the rest of the episode, and its baseline the mean of the
    other runs at the same decision, as in JEL.
    """
    return SidecarConfig(
        learning_rate=1.0,
        evidence=0.0,
        initial_std={"scale": 0.3},
        delay=0,
        horizon=12,
        gamma=0.99,
        baseline="population",
    )
