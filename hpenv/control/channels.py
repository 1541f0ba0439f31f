"""Channels: the dials of a training loop as a table of data.

A channel is one kind of quantity that may be moved. It has one cell per run, optimizer, group,
layer or tensor, as its scope says. An action holds one number in [-1, 1] per cell. At 0 the cell
leaves training as it is, bit for bit. A new channel needs an entry of CHANNELS and the line of the
plant that reads it.

A channel is one-sided if its neutral is an end of its bounds (a cap, a probability). Noise around
neutral must do nothing, so the channel is neutral on all of [-1, DEAD_ZONE] and moves beyond it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hpenv.checks import suggestion

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
        return "log" if self.neutral > 0 else "linear"

    @property
    def one_sided(self) -> bool:
        """True if neutral is an end of the bounds."""
        return self.neutral in self.bounds

    def values(self, positions: NDArray[np.float64]) -> NDArray[np.float64]:
        """Maps positions in [-1, 1] to values within the bounds, exactly `neutral` at 0.

        The value goes from neutral to the high bound for u >= 0, and to the low bound for u < 0. Of
        a one-sided channel it goes (u - 0.1) / 0.9 of the way to the far bound.
        """
        low, high = self.bounds

        if self.one_sided:
            far = low if self.neutral == high else high
            values = self._between(
                far, np.clip((positions - DEAD_ZONE) / (1.0 - DEAD_ZONE), 0.0, 1.0)
            )
        else:
            values = np.where(
                positions >= 0,
                self._between(high, np.abs(positions)),
                self._between(low, np.abs(positions)),
            )

        return np.clip(values, low, high)

    def position(self, value: float) -> float:
        """Returns the position of a value, the inverse of `values`. It is 0 for neutral.

        Raises:
            ValueError: the value is out of bounds.
        """
        low, high = self.bounds
        if not low <= value <= high:
            raise ValueError(f"{self.name} must be from {low} to {high}; got {value}")
        if value == self.neutral:
            return 0.0

        far = high if value > self.neutral else low
        if self.warp == "log":
            fraction = math.log(value / self.neutral) / math.log(far / self.neutral)
        else:
            fraction = (value - self.neutral) / (far - self.neutral)
        if self.one_sided:
            return DEAD_ZONE + (1.0 - DEAD_ZONE) * fraction
        return fraction if far == high else -fraction

    def _between(self, end: float, fraction: NDArray[np.float64]) -> NDArray[np.float64]:
        """Returns the value at a fraction of the way from neutral to an end of the bounds."""
        if self.warp == "log":
            return self.neutral * np.exp(math.log(end / self.neutral) * fraction)
        return self.neutral + (end - self.neutral) * fraction


_RATES = ("run", "optimizer", "group", "layer", "tensor")
_LAYERS = ("run", "layer")
_SIDECAR = "Reward-Driven Training Control"
_PROJECTION = "Rank-space gradient projection vs RL reward hacking"

#: A rate of the optimizer.
_rate = partial(Channel, scopes=_RATES, kind="scale", reads="rates.window_rates")
_adam = partial(_rate, surface="optimizer", bounds=(0.1, 5.0), optimizers=("adamw",))
#: A number that the forward pass reads.
_dial = partial(
    Channel,
    scopes=_LAYERS,
    surface="forward",
    kind="scale",
    source=f"{_SIDECAR}, section 2.2: further forward dials",
    reads="forward_channels.forward_dials",
    immediate=True,
)
#: A number that changes the gradient before the optimizer, and one of the route of a layer's.
_gradient = partial(Channel, reads="gradient_channels.apply_gradient_channels")
_route = partial(
    _gradient,
    scopes=("layer",),
    surface="backward",
    bounds=(0.0, 1.0),
    kind="skip",
    source=f"{_SIDECAR}, section 6",
)
#: A number that the plant of GRPO reads.
_grpo = partial(
    Channel,
    scopes=("run",),
    surface="backward",
    bounds=(0.0, 1.0),
    kind="skip",
    plants=("posttraining",),
)

CHANNELS: dict[str, Channel] = {
    channel.name: channel
    for channel in (
        _rate(
            name="lr",
            surface="forward",
            bounds=(0.01, 100.0),
            unit="multiplier of the base learning rate",
            source=f"JEL, section 3.3: exp(ln 100 u); {_SIDECAR}, sections 2.2 and 7",
            reads="rates.window_rates, GRPOPlant._rates",
            plants=("pretraining", "posttraining"),
        ),
        _rate(
            name="weight_decay",
            surface="forward",
            bounds=(0.01, 100.0),
            kind="shrink",
            unit="multiplier of the base weight decay",
            source=f"JEL, section 3.3: exp(ln 100 u); {_SIDECAR}, section 5",
        ),
        _gradient(
            name="grad_scale",
            scopes=_RATES,
            surface="forward",
            bounds=(0.1, 10.0),
            kind="scale",
            unit="multiplier of the gradient before the optimizer",
            source=f"{_SIDECAR}, section 2.2",
        ),
        _dial(
            name="state_norm_cap",
            bounds=(0.1, 1000.0),
            kind="clip",
            unit="largest root mean square of a token's residual stream after the layer",
            source=f"{_SIDECAR}, sections 2.2 and 8",
        ),
        _dial(
            name="attention_temperature",
            bounds=(0.25, 4.0),
            unit="temperature of the attention's softmax",
            source=f"{_SIDECAR}, section 2.2",
        ),
        _dial(
            name="attention_gain",
            bounds=(0.5, 2.0),
            unit="multiplier of the attention branch",
        ),
        _dial(
            name="feed_forward_gain",
            bounds=(0.5, 2.0),
            unit="multiplier of the feed-forward branch",
        ),
        _dial(
            name="residual_gain",
            bounds=(0.8, 1.25),  # compounds over the layers
            unit="multiplier of the residual stream that enters the layer",
        ),
        _dial(
            name="embedding_gain",
            scopes=("run",),
            bounds=(0.25, 4.0),
            unit="multiplier of the normed embedding",
        ),
        _dial(
            name="logit_softcap",
            scopes=("run",),
            bounds=(0.2, 4.0),
            unit="multiplier of the logits' softcap",
            source=f"{_SIDECAR}, section 1: the clamp on every saturating function",
        ),
        _dial(
            name="dropout",
            bounds=(0.0, 0.5),
            kind="skip",
            unit="probability that a unit of a branch's output is dropped",
            source=f"{_SIDECAR}, section 1",
        ),
        _adam(
            name="beta1",
            unit="multiplier of 1 - beta1",
            source=f"{_SIDECAR}, section 4: beta schedules",
        ),
        _adam(
            name="beta2",
            unit="multiplier of 1 - beta2",
            source=f"{_SIDECAR}, section 4: beta schedules",
        ),
        _adam(
            name="eps",
            bounds=(0.001, 1000.0),
            unit="multiplier of eps",
            source=f"{_SIDECAR}, sections 1 and 4",
        ),
        _gradient(
            name="grad_clip",
            scopes=_LAYERS,
            surface="optimizer",
            bounds=(0.001, 10_000.0),
            kind="clip",
            unit="largest L2 norm of the gradient of the run, or of the layer",
            source=f"{_SIDECAR}, section 8",
        ),
        _gradient(
            name="grad_noise",
            scopes=_LAYERS,
            surface="optimizer",
            bounds=(0.0, 1.0),
            kind="unsafe",
            unit="standard deviation of added Gaussian noise [root mean square of the gradient]",
            source=f"ours, a dial that perturbs the gradient; compare {_SIDECAR}, section 4",
        ),
        _route(
            name="grad_skip",
            unit="probability that all gradients of the layer are zeroed together",
        ),
        _route(
            name="grad_gate",
            unit="probability that a tensor's gradient is zeroed, drawn per tensor of the layer",
        ),
        _route(
            name="grad_truncate",
            unit="its mean over the layers is the fraction of the first layers that are zeroed",
        ),
        _route(
            name="momentum_blend",
            bounds=(-1.0, 1.0),
            kind="unsafe",
            unit="b in (1 - b) gradient + b first moment (under SGD the momentum buffer, a sum)",
            optimizers=("adamw", "muon", "sgd"),
        ),
        _grpo(
            name="projection_strength",
            scopes=("run", "layer", "tensor"),
            unit="fraction of the gradient's component along the hacking direction that is removed",
            source=f"{_PROJECTION}, `Projection`: 1 in its arms (b) and (c)",
            reads="Intervention.project",
        ),
        _grpo(
            name="magnitude_preservation",
            unit="fraction of the lost norm that is given back to the projected gradient",
            source=f"{_PROJECTION}, `Projection`: 1 in its arm (b), 0 in (c)",
            reads="Intervention.project",
        ),
        _grpo(
            name="direction_refresh",
            unit="probability that the direction is extracted again before an update",
            source=f"ours, after {_PROJECTION}, which keeps its first direction",
            reads="Intervention.refresh",
        ),
        _grpo(
            name="kl_weight",
            surface="forward",
            bounds=(0.01, 100.0),
            kind="scale",
            unit="multiplier of the weight of the divergence from the untrained student",
            source=f"{_PROJECTION}, amendments: 0.04, then 1e-3",
            reads="GRPOPlant._take_step",
        ),
        _grpo(
            name="rebound_weight",
            surface="forward",
            bounds=(0.0, 5.0),
            unit="alpha: weight of the penalty on rollouts whose states look like a hack",
            source="Wu & Tang 2026 (arXiv:2604.01476): 2",
            reads="Intervention.penalized_rewards",
        ),
    )
}


def add_channel(own: Channel) -> None:
    """Adds a channel from outside of the package to CHANNELS. A spawned process adds it again.

    Raises:
        ValueError: if the name is taken, or nothing would read the channel.
    """
    if CHANNELS.get(own.name, own) != own:
        raise ValueError(f"name of a channel must not be taken; got {own.name!r}")
    if own.change is None or own.plants != ("pretraining",):
        raise ValueError(
            f"channel {own.name!r} must have a `change` and be of the plant 'pretraining'; "
            f"got change={own.change} and plants={own.plants}"
        )
    CHANNELS[own.name] = own


def channels_of(plant: str) -> dict[str, Channel]:
    """Returns the channels of a kind of plant."""
    return {name: found for name, found in CHANNELS.items() if plant in found.plants}


def channel(name: str, scope: str, plant: str, optimizers: Sequence[str]) -> Channel:
    """Returns the channel of this name after checking its scope, plant and optimizers.

    Raises:
        ValueError: for an unknown name, a scope that the channel does not have, or a plant or
            optimizers that have no use for it.
    """
    if name not in CHANNELS:
        accepted = sorted(channels_of(plant))
        raise ValueError(
            f"unknown channel {name!r}; expected one of {accepted}{suggestion(name, accepted)}"
        )
    found = CHANNELS[name]

    if scope not in found.scopes:
        raise ValueError(
            f"channel {name!r} has no scope {scope!r}; expected one of {list(found.scopes)}"
        )
    if plant not in found.plants:
        raise ValueError(
            f"channel {name!r} applies to {' and '.join(found.plants)} alone; expected one of "
            f"{sorted(channels_of(plant))}"
        )

    if found.optimizers and not set(found.optimizers) & set(optimizers):
        raise ValueError(
            f"the optimizers {sorted(set(optimizers))} have no use for the channel {name!r}; "
            f"it applies to {list(found.optimizers)}"
        )

    return found
