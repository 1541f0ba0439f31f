"""Channels: the dials of a training loop as a table of data.

A channel is one kind of quantity that may be moved. It has one cell per run, optimizer, group,
layer or tensor, as its scope says. An action holds one number in [-1, 1] per cell. At 0 the cell
leaves training as it is, bit for bit. A new channel needs an entry of CHANNELS and the line of the
plant that reads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from hpenv.checks import suggestion
from hpenv.control.channel import Channel

_RATES = ("run", "optimizer", "group", "layer", "tensor")
_LAYERS = ("run", "layer")
_SIDECAR = "Reward-Driven Training Control"
_ADAPTIVE = "AdaptiveRL"
_PROJECTION = "Rank-space gradient projection vs RL reward hacking"

#: A rate of the optimizer.
_rate = partial(Channel, scopes=_RATES, kind="scale", reads="rates.window_rates")
_adam = partial(_rate, surface="optimizer", bounds=(0.1, 5.0), optimizers=("adamw",))
#: Noise that is off at its floor. Its bound is the largest that the paper has.
_noise = partial(
    Channel,
    scopes=_LAYERS,
    surface="optimizer",
    bounds=(0.0, 0.2),
    kind="unsafe",
)
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
        _rate(
            name="momentum",
            surface="optimizer",
            bounds=(1.0 / 30.0, 30.0),  # 0.23 to 0.996 around 0.9, in the logit as far either way
            unit="multiplier of the odds m / (1 - m) of the momentum m, beta1 of AdamW",
            source=f"{_ADAPTIVE}, section 2: the momentum moves in its logit",
            optimizers=("adamw", "muon", "sgd", "schedule_free"),
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
        _noise(
            name="exploration",
            floor=0.01,  # ours: the paper's logarithm could never leave its smallest value, 0
            unit="standard deviation of added Gaussian noise [root mean square of the gradient]",
            source=f"{_ADAPTIVE}, section 2: gradient noise, per tensor",
            reads="exploration.explore_gradients",
        ),
        _noise(
            name="weight_noise",
            floor=0.0005,  # ours, and the bound: the noise of all steps adds up in the weights
            bounds=(0.0, 0.01),
            unit="standard deviation of each step's noise [root mean square of the weights]",
            source=f"{_ADAPTIVE}, section 8: the ablation of noise on parameters",
            reads="exploration.explore_weights",
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
