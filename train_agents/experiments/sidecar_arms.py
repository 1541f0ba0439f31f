"""Arms of the Sidecar: the default configuration, and the changes of each arm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from hpenv.control.channels import CHANNELS

ENV = "TrainLoop-Cell-v0"
#: Settings outside the Sidecar's control, and the start of its cells; fixed before any reported
#: arm. Rate and decay are those of torch's AdamW. Pilots of the Sidecar's noise and rate ran on
#: seeds 2000-2002, scored by held-out bits per byte. Those seeds must not be reported on.
DEFAULT: dict[str, Any] = {
    "preset": "cell11",
    "optimizer": "adamw",
    "base_lr": 1e-3,
    "base_weight_decay": 1e-2,
    "schedule": "none",
    "batch_tokens": 128,
    "sequence_length": 64,
}
FIRST_EVALUATION_SEED, FIRST_TUNING_SEED, FIRST_REWARD_SEED = 1000, 2000, 4000
#: Multipliers of base_lr that the sweeps try.
CONSTANT_MULTIPLIERS, SCHEDULE_MULTIPLIERS = (0.3, 1.0, 3.0, 10.0), (1.0, 3.0, 10.0)
#: Fraction of a run's steps that a swept schedule warms up for; 2 % as Haegele et al. 2024.
WARMUP_FRACTION = 0.02
#: Value of a cap that binds at the start: 1.5 times the root mean square of a token's first, normed
#: embedding.
BINDING_CAP = 1.5
#: Value of a gate whose neutral is read as a probability (section 6).
WRONG_NEUTRAL = 0.6


@dataclass(frozen=True)
class Arm:
    """One way to attach a Sidecar."""

    name: str  # of the job
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)  # its changes of the env
    sidecar: Mapping[str, Any] = field(default_factory=dict)  # its changes of the Sidecar
    #: Channel -> value that its cells start at instead of neutral.
    initial_value: Mapping[str, float] = field(default_factory=dict)
    seeds: Literal["evaluation", "reward"] = "evaluation"  # which seeds it runs on
    #: All rows are the run of this one of the seeds; None: every row has its seed's run.
    group: int | None = None
    long: bool = False  # five times as long


def position_of(channel: str, value: float) -> float:
    """Returns the position in (0, 1) at which a channel has this value, by bisection.

    Raises:
        ValueError: if the value is not strictly between neutral and the channel's value at 1.
    """
    values, low, high = CHANNELS[channel].values, 0.0, 1.0

    def at(position: float) -> float:
        return float(values(np.array(position)))

    rises = at(high) > at(low)
    if not min(at(low), at(high)) < value < max(at(low), at(high)):
        raise ValueError(f"{channel} must be between {at(low)} and {at(high)}; got {value}")

    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if (at(middle) < value) == rises else (low, middle)
    return 0.5 * (low + high)


_SURFACE = {"channels": "foundational"}


def _reward_arm(
    name: str,
    sidecar: Mapping[str, Any] | None = None,
    reward: Mapping[str, float] | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    group: int | None = None,
) -> Arm:
    """Returns `foundational` with some changes, on the seeds of the rewards."""
    terms = {"divergence": 1.0} | dict(reward or {"loss_change": 1.0})
    arguments = {**_SURFACE, "reward": terms, **(env_kwargs or {})}
    return Arm(name, arguments, sidecar or {}, seeds="reward", group=group)


_CAP = {"channels": (("state_norm_cap", "layer"),)}
#: So little exploration that caps which start dormant stay so: the arms differ in where the caps
#: start, not in noise.
_QUIET = {"initial_std": {"clip": 0.01}}
#: Terms that answer after different delays. A credit of two rewards, from the action's decision on,
#: has them all.
_RICH = {"loss_change": 1.0, "stability": 1.0, "budget": 0.01, "late_divergence": 1.0}
#: One rate, set every 50 steps as in "Just Enough Learning", on the change of the mean loss of 50
#: steps.
_WINDOWED = {"interval": 50, "channels": (("lr", "run"),)}
_WINDOWED |= {"observation": "progress", "num_registers": 0}
_WINDOWED_SIDECAR = {"delay": 0, "horizon": 2, "evidence": 0.0, "initial_std": {"scale": 0.2}}
DETACHED = {"attached": False}
_POPULATION = {"baseline": "population"}
#: The most wanted first, but for those of the long runs, which come last of all.
ARMS: tuple[Arm, ...] = (
    Arm("detached", _SURFACE, DETACHED),
    Arm("foundational", _SURFACE),
    # The cost of exploration alone: samples of a policy that never changes.
    Arm("no_learning", _SURFACE, {"learning_rate": 1e-12}),
    # The default without the gate of evidence.
    Arm("no_gate", _SURFACE, {"evidence": 0.0}),
    _reward_arm("reward_detached", DETACHED),
    _reward_arm("reward_next"),
    _reward_arm("reward_same_batch", {"delay": 0}, {"same_batch_change": 1.0}),
    _reward_arm("reward_probe", {"delay": 0}, {"progress": 1.0}),
    _reward_arm("reward_composite", {"delay": 0, "horizon": 2}, _RICH),
    _reward_arm("reward_window", {"horizon": 16}),
    _reward_arm("reward_interval", _WINDOWED_SIDECAR, env_kwargs=_WINDOWED),
    _reward_arm("reward_credit", {"delay": 0, "horizon": 2}),
    _reward_arm("reward_population", _POPULATION, group=0),
    *(_reward_arm(f"reward_population-{n}", _POPULATION, group=n) for n in range(1, 5)),
    _reward_arm("reward_common", {"common": True}),
    *(
        Arm(f"backward_{name}", {"channels": f"foundational_{name}"})
        for name in ("grad_skip", "grad_gate", "grad_truncate", "momentum_blend")
    ),
    Arm("cap_dormant", _CAP, _QUIET),
    Arm("cap_binding", _CAP, _QUIET, initial_value={"state_norm_cap": BINDING_CAP}),
    Arm(
        "wrong_neutral",
        {"channels": "foundational_grad_skip"},
        initial_value={"grad_skip": WRONG_NEUTRAL},
    ),
    Arm("layer_lr", {"channels": "layer_lr"}),
    Arm("long_foundational", _SURFACE, long=True),
    Arm("long_weight_decay", {"channels": "foundational_weight_decay"}, long=True),
    Arm("long_detached", _SURFACE, DETACHED, long=True),
)
