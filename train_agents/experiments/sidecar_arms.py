"""The Sidecar's arms: the default that they all begin at, and what each changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from hpenv.control.channels import CHANNELS

ENV = "TrainLoop-Cell-v0"
#: What is not under a Sidecar's control, and where its cells start; fixed before any reported arm.
#: Rate and decay are those of torch's AdamW. Pilots of the Sidecar's noise and rate ran on seeds
#: 2000-2002, scored by held-out bits per byte, so that those seeds tell nothing of it any more.
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
#: Part of a run's steps that a swept schedule warms up for; 2 % as Haegele et al. 2024.
WARMUP_FRACTION = 0.02
#: Where a cap binds at the start: 1.5 times the root mean square of a token's first, normed
#: embedding.
BINDING_CAP = 1.5
#: Section 6: what a gate does whose neutral is read as a probability.
WRONG_NEUTRAL = 0.6


@dataclass(frozen=True)
class Arm:
    """One way to attach a Sidecar.

    Attributes:
        name: of the job.
        env_kwargs: what it changes of the env.
        sidecar: what it changes of the Sidecar.
        initial_value: channel -> value that its cells start at instead of neutral.
        seeds: which seeds it runs on.
        group: all rows are the run of this one of the seeds; None: every row is that of its own.
        long: five times as long.
    """

    name: str
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)
    sidecar: Mapping[str, Any] = field(default_factory=dict)
    initial_value: Mapping[str, float] = field(default_factory=dict)
    seeds: Literal["evaluation", "reward"] = "evaluation"
    group: int | None = None
    long: bool = False


def position_of(channel: str, value: float) -> float:
    """The position in (0, 1) at which a channel has this value, by bisection.

    Raises:
        ValueError: if the value is not strictly between neutral and what the channel has at 1.
    """
    values, low, high = CHANNELS[channel].values, 0.0, 1.0

    def at(position: float) -> float:
        return float(values(np.array(position)))

    rising = at(high) > at(low)
    if not min(at(low), at(high)) < value < max(at(low), at(high)):
        raise ValueError(f"{channel} = {value}; expected a value between {at(low)} and {at(high)}")
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if (at(middle) < value) == rising else (low, middle)
    return 0.5 * (low + high)


def _rewarded(
    name: str,
    sidecar: Mapping[str, Any] | None = None,
    reward: Mapping[str, float] | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    group: int | None = None,
) -> Arm:
    """An arm of the rewards, on seeds of their own: `foundational` but for what is given."""
    terms = {"divergence": 1.0} | dict(reward or {"loss_change": 1.0})
    arguments = {"channels": "foundational", "reward": terms, **(env_kwargs or {})}
    return Arm(name, arguments, sidecar or {}, seeds="reward", group=group)


_CAP = {"channels": (("state_norm_cap", "layer"),)}
#: So little exploration that caps which start dormant stay so: the arms differ in where the caps
#: start, not in noise.
_QUIET = {"initial_std": {"clip": 0.01}}
#: Terms that answer after different delays: a credit of the two rewards from an action's own on
#: holds them all.
_RICH = {"loss_change": 1.0, "stability": 1.0, "budget": 0.01, "late_divergence": 1.0}
#: One rate, set every 50 steps as in "Just Enough Learning", on the change of the mean loss of 50
#: steps.
_WINDOWED = {
    "interval": 50,
    "channels": (("lr", "run"),),
    "observation": "progress",
    "num_registers": 0,
}
_WINDOWED_SIDECAR = {"delay": 0, "horizon": 2, "evidence": 0.0, "initial_std": {"scale": 0.2}}
DETACHED = {"attached": False}
#: The most wanted first, but for those of the long runs, which come last of all.
ARMS: tuple[Arm, ...] = (
    Arm("detached", {"channels": "foundational"}, DETACHED),
    Arm("foundational", {"channels": "foundational"}),
    # The tax of exploration alone: draws as of a fresh policy, which stays one.
    Arm("no_learning", {"channels": "foundational"}, {"learning_rate": 1e-12}),
    # The default without the gate of evidence, and without anything else that it has.
    Arm("no_gate", {"channels": "foundational"}, {"evidence": 0.0}),
    _rewarded("reward_detached", DETACHED),
    _rewarded("reward_next"),
    _rewarded("reward_same_batch", {"delay": 0}, {"same_batch_change": 1.0}),
    _rewarded("reward_probe", {"delay": 0}, {"progress": 1.0}),
    _rewarded("reward_composite", {"delay": 0, "horizon": 2}, _RICH),
    _rewarded("reward_window", {"horizon": 16}),
    _rewarded("reward_interval", _WINDOWED_SIDECAR, env_kwargs=_WINDOWED),
    _rewarded("reward_credit", {"delay": 0, "horizon": 2}),
    _rewarded("reward_population", {"baseline": "population"}, group=0),
    *(
        _rewarded(f"reward_population-{n}", {"baseline": "population"}, group=n)
        for n in range(1, 5)
    ),
    _rewarded("reward_common", {"common": True}),
    Arm("backward_grad_skip", {"channels": "foundational_grad_skip"}),
    Arm("backward_grad_gate", {"channels": "foundational_grad_gate"}),
    Arm("backward_grad_truncate", {"channels": "foundational_grad_truncate"}),
    Arm("backward_momentum_blend", {"channels": "foundational_momentum_blend"}),
    Arm("cap_dormant", _CAP, _QUIET),
    Arm("cap_binding", _CAP, _QUIET, initial_value={"state_norm_cap": BINDING_CAP}),
    Arm(
        "wrong_neutral",
        {"channels": "foundational_grad_skip"},
        initial_value={"grad_skip": WRONG_NEUTRAL},
    ),
    Arm("layer_lr", {"channels": "layer_lr"}),
    Arm("long_foundational", {"channels": "foundational"}, long=True),
    Arm("long_weight_decay", {"channels": "foundational_weight_decay"}, long=True),
    Arm("long_detached", {"channels": "foundational"}, DETACHED, long=True),
)
