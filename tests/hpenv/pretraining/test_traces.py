"""One sampled action of every channel, traced from `env.step` to the exact change of the weights.

Nothing of the plant's own path is used on the other side: the forward pass is written out below for
one run without the population's axis, gradients are `backward`'s, values come from the position by
the channel's formula, and the optimizer is AdamW as its paper has it. The chain is checked link by
link - the norm of each layer's gradient, the moments, the weights - because the first steps of
AdamW hide the size of a gradient and a clip hides it always: each of the faults injected at the end
of this file, a gradient that is accumulated twice, must break every channel's trace.

Past the usual length, because the second implementation that everything is held against is written
out here.
"""

import math
from dataclasses import dataclass, field
from unittest.mock import patch

import gymnasium as gym
import numpy as np
import pytest
import torch
import torch.nn.functional as F

import hpenv  # noqa: F401  registers the ids
from hpenv.control.channels import channels_of
from hpenv.lm import model
from hpenv.lm.architecture import GPTConfig, parameter_shapes
from hpenv.plant.seeds import DROPOUT, NOISE, ROUTE, step_generator
from hpenv.pretraining import plant as pretraining
from tests.tiny_plants import PRESETS, advance, make, stir

N, LAYERS, B, T = 2, 3, 2, 8
LR, WD, BETA1, BETA2, EPS = 1e-3, 1e-2, 0.9, 0.95, 1e-8
CHANNELS = channels_of("pretraining")
WARM_STEPS = 2  # at neutral, so that there are moments
ARCHITECTURES = ("relu2", "swiglu")


def norm(x):
    return x / (x.square().mean(-1, keepdim=True) + torch.finfo(torch.float32).eps).sqrt()


def one(position):
    """The part of the way of a one-sided channel."""
    return max(0.0, (position - 0.1) / 0.9)


#: Position -> value, as the channels' documentation has it.
VALUES = {
    "lr": lambda u: 100.0**u,
    "weight_decay": lambda u: 100.0**u,
    "grad_scale": lambda u: 10.0**u,
    "state_norm_cap": lambda u: 1000.0 * 1e-4 ** one(u),
    "attention_temperature": lambda u: 4.0**u,
    "attention_gain": lambda u: 2.0**u,
    "feed_forward_gain": lambda u: 2.0**u,
    "residual_gain": lambda u: 1.25**u,
    "embedding_gain": lambda u: 4.0**u,
    "logit_softcap": lambda u: 4.0**u if u > 0 else 5.0**u,
    "dropout": lambda u: 0.5 * one(u),
    "beta1": lambda u: 5.0**u if u > 0 else 10.0**u,
    "beta2": lambda u: 5.0**u if u > 0 else 10.0**u,
    "eps": lambda u: 1000.0**u,
    "grad_clip": lambda u: 1e4 * 1e-7 ** one(u),
    "grad_noise": one,
    "grad_skip": one,
    "grad_gate": one,
    "grad_truncate": one,
    "momentum_blend": lambda u: u,
}


@dataclass
class Dials:
    """The forward pass of one run; lists are one number per layer."""

    attention_temperature: list = field(default_factory=lambda: [1.0] * LAYERS)
    attention_gain: list = field(default_factory=lambda: [1.0] * LAYERS)
    feed_forward_gain: list = field(default_factory=lambda: [1.0] * LAYERS)
    residual_gain: list = field(default_factory=lambda: [1.0] * LAYERS)
    state_norm_cap: list = field(default_factory=lambda: [math.inf] * LAYERS)
    dropout: list = field(default_factory=lambda: [0.0] * LAYERS)
    embedding_gain: float = 1.0
    logit_softcap: float = 1.0


def loss_of(w, config, inputs, targets, dials, generator):
    """Mean loss of one run: w has no population axis, tokens are (B, T).

    Dropout samples from the generator.
    """
    C, heads = config.n_embd, config.n_head
    size = C // heads
    angles = torch.arange(T)[:, None] * 10_000.0 ** (
        -torch.arange(size // 2) / (size // 2)
    )  # (T, size / 2)
    seen = torch.ones(T, T, dtype=torch.bool).tril()

    def split(x):
        return x.view(B, T, heads, size).transpose(1, 2)

    def turned(x):
        left, right = x.chunk(2, -1)
        c, s = angles.cos(), angles.sin()
        return torch.cat([left * c + right * s, right * c - left * s], -1)

    def dropped(x, p):
        if p == 0:
            return x
        kept = torch.rand(B * T, C, generator=generator) >= p
        return torch.where(kept.view(B, T, C), x / (1 - p), 0.0)

    x = dials.embedding_gain * norm(w["embedding"][inputs])
    for i in range(LAYERS):
        own = {
            name.split(".")[-1]: value
            for name, value in w.items()
            if name.startswith(f"layer.{i}.")
        }
        x = dials.residual_gain[i] * x
        h = norm(x)
        q, k, v = (split(h @ own[name].T) for name in ("query", "key", "value"))
        scores = norm(turned(q)) @ norm(turned(k)).transpose(-1, -2)
        scores = scores / (math.sqrt(size) * dials.attention_temperature[i])
        mixed = scores.masked_fill(~seen, -math.inf).softmax(-1) @ v
        branch = dials.attention_gain[i] * (
            mixed.transpose(1, 2).reshape(B, T, C) @ own["output"].T
        )
        x = x + dropped(branch, dials.dropout[i])
        h = norm(x)
        hidden = h @ own["up"].T
        hidden = F.silu(h @ own["gate"].T) * hidden if "gate" in own else hidden.relu() ** 2
        x = x + dropped(dials.feed_forward_gain[i] * (hidden @ own["down"].T), dials.dropout[i])
        if dials.state_norm_cap[i] < math.inf:
            rms = x.square().mean(-1, keepdim=True).sqrt()
            x = torch.where(rms > dials.state_norm_cap[i], x * (dials.state_norm_cap[i] / rms), x)
    cap = 15.0 * dials.logit_softcap
    logits = cap * torch.tanh(norm(x) @ w["unembedding"].T / cap)
    return -logits.log_softmax(-1).gather(-1, targets[..., None]).mean()


@dataclass(repr=False)  # a failing assertion would print every weight
class Trace:
    """One step of one run of the environment: the state before, the action, the state after.

    Attributes:
        positions: cell -> position.
        before: weights, moments and products of the betas before the step.
        after: the same after it.
        norms: of each layer's gradient, as the plant measured them, (L,).
        loss: of the step's batch, as the environment reports it.
    """

    name: str
    config: GPTConfig
    seed: int
    step: int
    positions: dict
    inputs: torch.Tensor
    targets: torch.Tensor
    before: dict
    after: dict
    norms: np.ndarray
    loss: float

    def value(self, cell):
        return VALUES[self.name](
            self.positions.get(cell, 0.0)
        )  # what stands in no layer has no cell

    def by_layer(self):
        return [self.value(f"layer.{i}") for i in range(LAYERS)]

    def raw(self, **dials):
        """Gradients by name with these values of the forward channels.

        The loss and the layers' norms are checked with them.
        """
        leaves = {n: w.clone().requires_grad_() for n, w in self.before["weights"].items()}
        generator = step_generator(self.seed, self.step, DROPOUT)
        loss = loss_of(leaves, self.config, self.inputs, self.targets, Dials(**dials), generator)
        loss.backward()
        gradients = {n: leaf.grad.detach().double() for n, leaf in leaves.items()}
        assert self.loss == pytest.approx(loss.item(), rel=1e-5), "the loss is another"
        norms = [
            math.sqrt(sum(float(g.square().sum()) for g in self.of_layer(gradients, i)))
            for i in range(LAYERS)
        ]
        assert self.norms == pytest.approx(norms, rel=1e-4), (
            "the norms of the layers' gradients are others"
        )
        return gradients

    @staticmethod
    def of_layer(tensors, i):
        return [value for name, value in tensors.items() if name.startswith(f"layer.{i}.")]

    def check(self, gradients, lr=1.0, decay=1.0, new1=1.0, new2=1.0, eps=1.0):
        """AdamW of these gradients takes the state before to the state after.

        Multipliers are numbers, or numbers by name.
        """
        for name, g in gradients.items():
            lr_, decay_, a1, a2, eps_ = (
                value[name] if isinstance(value, dict) else value
                for value in (lr, decay, new1, new2, eps)
            )
            a1, a2 = (1 - BETA1) * a1, (1 - BETA2) * a2
            old, new = self.before["state"][name], self.after["state"][name]
            p1 = old["beta1_product"].item() * (1 - a1)
            p2 = old["beta2_product"].item() * (1 - a2)
            assert (new["beta1_product"].item(), new["beta2_product"].item()) == pytest.approx(
                (p1, p2), rel=1e-12
            )
            m = (1 - a1) * old["momentum"].double() + a1 * g
            v = (1 - a2) * old["second_moment"].double() + a2 * g.square()
            close(new["momentum"], m, f"{name} first moment")
            close(new["second_moment"], v, f"{name} second moment")
            # The weight follows from the moments that stand there, which have just been checked.
            m, v = new["momentum"].double() / (1 - p1), new["second_moment"].double() / (1 - p2)
            w = self.before["weights"][name].double() * (1 - LR * lr_ * WD * decay_)
            w -= LR * lr_ * m / (v.sqrt() + EPS * eps_)
            torch.testing.assert_close(
                self.after["weights"][name].double(), w, rtol=1e-6, atol=LR * lr_ * 1e-4
            )
            assert not torch.equal(self.after["weights"][name], self.before["weights"][name]), name


def close(actual, expected, what):
    """Equal to a ten-thousandth of the largest magnitude there is."""
    worst = (actual.double() - expected).abs().max() / expected.abs().max().clamp_min(1e-30)
    assert worst < 2e-4, f"{what}: off by {worst:.3g} of its size"


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


def trace_grad_noise(t):
    gradients = t.raw()
    generator = step_generator(t.seed, t.step, NOISE)
    for name, g in gradients.items():
        if name.startswith("layer.") and (size := t.by_layer()[int(name.split(".")[1])]) > 0:
            noise = torch.randn(g.shape, generator=generator).double()
            gradients[name] = g + size * g.square().mean().sqrt() * noise
    t.check(gradients)


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
    "grad_clip": trace_grad_clip,
    "grad_noise": trace_grad_noise,
    "grad_skip": trace_grad_skip,
    "grad_gate": trace_grad_gate,
    "grad_truncate": trace_grad_truncate,
    "momentum_blend": trace_momentum_blend,
}
EVERY_TRACER = pytest.mark.parametrize("name", TRACERS)


def test_every_channel_is_traced():
    assert TRACERS.keys() == VALUES.keys() == CHANNELS.keys()


def sampled(name, generator, shape):
    """An action as a policy would sample it.

    Where it must move something, it is on the side where it does.
    """
    action = generator.uniform(-1, 1, shape)
    if CHANNELS[name].one_sided:
        action = generator.uniform(0.3, 0.8, shape)  # a probability neither 0 nor 1
        action[0, 0] = -0.5  # and one cell at neutral
    if CHANNELS[name].kind == "clip":
        action[action > 0] = 0.9
    return action.astype(np.float32)


def traces(name, architecture, scope=None):
    """Plays WARM_STEPS decisions at neutral and one that is sampled; one Trace per run."""
    scope = CHANNELS[name].scopes[-1] if scope is None else scope
    with patch.dict("hpenv.lm.architecture.PRESETS", PRESETS):
        env = gym.make_vec(
            "TrainLoop-Cell-v0",
            num_envs=N,
            preset=architecture,
            data="synthetic",
            batch_tokens=B * T,
            sequence_length=T,
            num_steps=20,
            channels=[(name, scope)],
            num_registers=0,
            base_lr=LR,
            base_weight_decay=WD,
        )
    env.reset(seed=[7, 8])
    plant, windows = env.unwrapped.plant, []
    stir(plant)
    original = plant.advance
    plant.advance = lambda num_steps: windows.append(original(num_steps)) or windows[-1]
    shape = env.action_space.shape
    for _ in range(WARM_STEPS):
        env.step(np.zeros(shape, dtype=np.float32))
    before, steps = _copied(plant), plant.steps.copy()
    action = sampled(name, np.random.default_rng(3), shape)
    inputs, targets = plant._batch()
    env.step(action)
    after, window = _copied(plant), windows[-1]
    assert plant.steps.tolist() == [WARM_STEPS + 1] * N and not plant.divergence.any()
    cells = [column.partition("/")[2] or "run" for column in env.unwrapped.action_names]
    return [
        Trace(
            name,
            plant.model_config,
            int(plant.seeds[row]),
            int(steps[row]),
            {cell: float(u) for cell, u in zip(cells, action[row], strict=True)},
            inputs[row],
            targets[row],
            _row(before, row),
            _row(after, row),
            window["layer_gradient_norm"][row],
            float(window["train_loss"][row]),
        )
        for row in range(N)
    ]


def _copied(plant):
    return {
        "weights": {name: weight.clone() for name, weight in plant.weights.items()},
        "state": {
            n: {slot: v.clone() for slot, v in state.items()}
            for n, state in plant.optimizer_state.items()
        },
    }


def _row(state, row):
    return {
        "weights": {name: weight[row] for name, weight in state["weights"].items()},
        "state": {
            n: {slot: v[row] for slot, v in slots.items()} for n, slots in state["state"].items()
        },
    }


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@EVERY_TRACER
def test_a_sampled_action_arrives_at_the_weights(name, architecture):
    for trace in traces(name, architecture):
        TRACERS[name](trace)


@EVERY_TRACER
def test_the_trace_of_another_value_fails(name):
    """The check can fail: had the action been another, the state after would be another."""
    trace = traces(name, "relu2")[1]
    trace.positions = {
        cell: -u if not CHANNELS[name].one_sided else 0.99 for cell, u in trace.positions.items()
    }
    with pytest.raises(AssertionError):
        TRACERS[name](trace)


@pytest.mark.parametrize("p", [0.999999, 1.0])
@pytest.mark.parametrize("name", ["grad_skip", "grad_gate", "grad_truncate"])
def test_a_gradient_that_is_always_left_out_leaves_the_moments_zero_and_the_weight_to_decay(
    name, p
):
    plant = make(1, ((name, "layer"),), base_weight_decay=0.5)
    plant.panel.positions[:] = 0.1 + 0.9 * p
    before = {n: w.clone() for n, w in plant.weights.items()}
    window = advance(plant, 3)
    assert (window["layer_gradient_norm"] > 0).all(), (
        "what is measured is the gradient before it is steered"
    )
    for n, state in plant.optimizer_state.items():
        assert state["momentum"].any() != n.startswith("layer."), n
        assert state["second_moment"].any() != n.startswith("layer."), n
        if n.startswith("layer."):
            torch.testing.assert_close(
                plant.weights[n], before[n] * (1 - 1e-3 * 0.5) ** 3, rtol=1e-6, atol=0
            )


# Faults on purpose: a gradient that is accumulated twice


def doubled_leaf(monkeypatch):
    """The gradients of the last layer's tensors are doubled.

    Forward pass and other layers are sound.
    """
    original = torch.autograd.grad

    def grad(outputs, inputs, *more, **keywords):
        result = original(outputs, inputs, *more, **keywords)
        names = list(parameter_shapes(PRESETS["relu2"]))
        assert len(result) == len(names)
        return tuple(
            g * 2 if n.startswith(f"layer.{LAYERS - 1}.") else g
            for n, g in zip(names, result, strict=True)
        )

    monkeypatch.setattr(torch.autograd, "grad", grad)


def doubled_flow(monkeypatch):
    """The gradient through each layer's attention is accumulated twice, with the same loss.

    This is the paper's aliased pointer.
    """
    original = model._attention

    def attention(*arguments):
        result = original(*arguments)
        return result + (result - result.detach())

    monkeypatch.setattr(model, "_attention", attention)


def doubled_on_the_way(monkeypatch):
    """The gradients are doubled between their measurement and the optimizer."""
    original = pretraining.apply_gradient_channels

    def apply_gradient_channels(*arguments):
        return {name: g * 2 for name, g in original(*arguments).items()}

    monkeypatch.setattr(pretraining, "apply_gradient_channels", apply_gradient_channels)


FAULTS = {
    doubled_leaf: "the norms of the layers' gradients are others",
    doubled_flow: "the norms of the layers' gradients are others",
    doubled_on_the_way: "first moment: off by",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
@EVERY_TRACER
def test_a_gradient_that_is_accumulated_twice_breaks_the_trace(name, fault, monkeypatch):
    fault(monkeypatch)
    broken = traces(name, "relu2")
    monkeypatch.undo()
    for trace in broken:
        with pytest.raises(AssertionError, match=FAULTS[fault]):
            TRACERS[name](trace)


def test_without_the_norms_of_the_layers_a_clip_would_hide_a_doubled_gradient(monkeypatch):
    """The reason for Trace.raw: the clipped gradient is the same with the fault.

    See Reward-Driven Training Control, section 8.
    """
    doubled_leaf(monkeypatch)
    hidden = traces("grad_clip", "relu2")[1]
    hidden.norms[-1] /= 2
    trace_grad_clip(hidden)
