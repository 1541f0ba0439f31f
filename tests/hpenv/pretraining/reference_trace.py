"""A step of one run, written out without the plant's own path.

The forward pass is without the population's axis, gradients are `backward`'s, values come from the
position by the channel's formula, and the optimizer is AdamW as its paper has it. The chain is
checked link by link - the norm of each layer's gradient, the moments, the weights - because the
first steps of AdamW hide the size of a gradient, and a clip hides it always.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import hpenv  # noqa: F401  registers the ids
from hpenv.lm.architecture import GPTConfig
from hpenv.plant.seeds import DROPOUT, step_generator

N, LAYERS, B, T = 2, 3, 2, 8
LR, WD, BETA1, BETA2, EPS = 1e-3, 1e-2, 0.9, 0.95, 1e-8


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
    "momentum": lambda u: 30.0**u,
    "grad_clip": lambda u: 1e4 * 1e-7 ** one(u),
    "grad_noise": one,
    "exploration": lambda u: 0.01 * 20 ** one(u) * (one(u) > 0),
    "weight_noise": lambda u: 0.0005 * 20 ** one(u) * (one(u) > 0),
    "grad_skip": one,
    "grad_gate": one,
    "grad_truncate": one,
    "momentum_blend": lambda u: u,
}


@dataclass
class Dials:
    """The forward pass of one run.

    Lists are one number per layer.
    """

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

    def check(self, gradients, lr=1.0, decay=1.0, new1=1.0, new2=1.0, eps=1.0, finish=None):
        """AdamW of these gradients takes the state before to the state after.

        Multipliers are numbers, or numbers by name. A function of a name and the weights after the
        update returns the weights after the step.
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
            w = w if finish is None else finish(name, w)
            torch.testing.assert_close(
                self.after["weights"][name].double(), w, rtol=1e-6, atol=LR * lr_ * 1e-4
            )
            assert not torch.equal(self.after["weights"][name], self.before["weights"][name]), name


def close(actual, expected, what):
    """Equal to a ten-thousandth of the largest magnitude there is."""
    worst = (actual.double() - expected).abs().max() / expected.abs().max().clamp_min(1e-30)
    assert worst < 2e-4, f"{what}: off by {worst:.3g} of its size"
