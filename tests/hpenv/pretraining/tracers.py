"""Traces: the effect on the weights that a sampled value of each channel must have."""

import math

import torch

import hpenv  # noqa: F401  registers the ids
from hpenv.plant.seeds import EXPLORATION, NOISE, ROUTE, step_generator
from tests.hpenv.pretraining.reference_trace import BETA1, LAYERS

# The tracers: the raw gradient, and what the channel does to it or with it.


def trace_lr(t):
    t.check(t.raw(), lr={name: t.value(name) for name in t.before["weights"]})


def trace_weight_decay(t):
    t.check(t.raw(), decay={name: t.value(name) for name in t.before["weights"]})


def trace_grad_scale(t):
    t.check({name: t.value(name) * g for name, g in t.raw().items()})


def trace_beta1(t):
    t.check(t.raw(), new1={name: t.value(name) for name in t.before["weights"]})


def trace_beta2(t):
    t.check(t.raw(), new2={name: t.value(name) for name in t.before["weights"]})


def trace_eps(t):
    t.check(t.raw(), eps={name: t.value(name) for name in t.before["weights"]})


def trace_layer_dial(t):
    """The loss itself is that of the dial: see Trace.raw."""
    t.check(t.raw(**{t.name: t.by_layer()}))


def trace_run_dial(t):
    t.check(t.raw(**{t.name: t.value("run")}))


def trace_grad_clip(t):
    gradients = t.raw()
    caps = t.by_layer()
    for i, cap in enumerate(caps):
        own = {name: g for name, g in gradients.items() if name.startswith(f"layer.{i}.")}
        size = math.sqrt(sum(float(g.square().sum()) for g in own.values()))
        gradients |= {name: g * min(1.0, cap / size) for name, g in own.items()}
    t.check(gradients)


def trace_momentum(t):
    """The odds of beta1 are multiplied: 1 - beta1 becomes (1 - beta1) / (1 + beta1 (o - 1))."""
    odds = {name: t.value(name) * BETA1 / (1 - BETA1) for name in t.before["weights"]}
    t.check(t.raw(), new1={name: 1 / (1 + o) / (1 - BETA1) for name, o in odds.items()})


def trace_grad_noise(t, stream=NOISE):
    gradients = t.raw()
    generator = step_generator(t.seed, t.step, stream)
    for name, g in gradients.items():
        if name.startswith("layer.") and (size := t.by_layer()[int(name.split(".")[1])]) > 0:
            noise = torch.randn(g.shape, generator=generator).double()
            gradients[name] = g + size * g.square().mean().sqrt() * noise
    t.check(gradients)


def trace_exploration(t):
    trace_grad_noise(t, EXPLORATION)


def trace_weight_noise(t):
    generator = step_generator(t.seed, t.step, EXPLORATION)

    def finish(name, w):
        if name.startswith("layer.") and (size := t.by_layer()[int(name.split(".")[1])]) > 0:
            return w + size * w.square().mean().sqrt() * torch.randn(w.shape, generator=generator)
        return w

    t.check(t.raw(), finish=finish)


def trace_grad_skip(t):
    """One draw for each layer: all of its tensors together."""
    gradients = t.raw()
    uniform = torch.rand(
        LAYERS, generator=step_generator(t.seed, t.step, ROUTE), dtype=torch.float64
    )
    left_out = [float(u) < p for u, p in zip(uniform, t.by_layer(), strict=True)]
    t.check(
        _zeroed(
            gradients,
            {n for n in gradients if n.startswith("layer.") and left_out[int(n.split(".")[1])]},
        )
    )


def trace_grad_gate(t):
    """One draw for each tensor, after those of the layers."""
    gradients = t.raw()
    drawn = torch.rand(
        LAYERS + len(gradients),
        generator=step_generator(t.seed, t.step, ROUTE),
        dtype=torch.float64,
    )
    uniform = dict(zip(gradients, drawn[LAYERS:].tolist(), strict=True))
    body = [name for name in gradients if name.startswith("layer.")]
    t.check(
        _zeroed(gradients, {n for n in body if uniform[n] < t.by_layer()[int(n.split(".")[1])]})
    )


def trace_grad_truncate(t):
    """The mean over the stack, as a part of the stack, rounded: the first so many layers."""
    gradients, count = t.raw(), round(sum(t.by_layer()))
    t.check(
        _zeroed(
            gradients,
            {n for n in gradients if n.startswith("layer.") and int(n.split(".")[1]) < count},
        )
    )


def _zeroed(gradients, names):
    return {name: torch.zeros_like(g) if name in names else g for name, g in gradients.items()}


def trace_momentum_blend(t):
    gradients = t.raw()
    for name, g in gradients.items():
        if name.startswith("layer."):
            b = t.by_layer()[int(name.split(".")[1])]
            gradients[name] = (1 - b) * g + b * t.before["state"][name]["momentum"].double()
    t.check(gradients)


TRACERS = {
    "lr": trace_lr,
    "weight_decay": trace_weight_decay,
    "grad_scale": trace_grad_scale,
    "state_norm_cap": trace_layer_dial,
    "attention_temperature": trace_layer_dial,
    "attention_gain": trace_layer_dial,
    "feed_forward_gain": trace_layer_dial,
    "residual_gain": trace_layer_dial,
    "embedding_gain": trace_run_dial,
    "logit_softcap": trace_run_dial,
    "dropout": trace_layer_dial,
    "beta1": trace_beta1,
    "beta2": trace_beta2,
    "eps": trace_eps,
    "momentum": trace_momentum,
    "grad_clip": trace_grad_clip,
    "grad_noise": trace_grad_noise,
    "exploration": trace_exploration,
    "weight_noise": trace_weight_noise,
    "grad_skip": trace_grad_skip,
    "grad_gate": trace_grad_gate,
    "grad_truncate": trace_grad_truncate,
    "momentum_blend": trace_momentum_blend,
}
