"""Prodigy and D-Adaptation: Adam with a rate that is multiplied by an estimate of a distance.

d is a lower bound, which grows, of the distance from the initial weights to a solution. It is one
number per run, over all tensors of a rule, as in the packages. The base rate multiplies d and is
usually 1. The packages accept one rate for all tensors (and 0). Here every tensor may have another
rate, so that the panel can multiply rates.

Every tensor's state holds a copy of d and of its numerator, (N,) float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hpenv.optim.rules import State, kept_fractions, row_scalars, spread, trained_weights


def _initial_state(weight: Tensor, d0: float) -> State:
    """Returns both moments, the sum of gradients, d, and the numerator of its estimate."""
    number = torch.full((weight.shape[0],), d0, dtype=torch.float64, device=weight.device)
    names = ("momentum", "second_moment", "gradient_sum")
    zeros = {name: torch.zeros_like(weight) for name in names}
    return zeros | {"d": number, "d_numerator": torch.zeros_like(number)}


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Returns the inner product of two tensors (N, ...) of each run, (N,) float64."""
    return (a * b).flatten(1).sum(1).double()


def _l1_norm(values: Tensor) -> Tensor:
    return values.abs().flatten(1).sum(1).double()


def _row(values: Tensor, like: Tensor) -> Tensor:
    """Returns numbers (N,) as multipliers of a tensor (N, ...)."""
    return values.to(like.dtype).view(-1, *[1] * (like.ndim - 1))


def _store(states: Sequence[State], d: Tensor, numerator: Tensor) -> None:
    for state in states:
        state["d"].copy_(d)
        state["d_numerator"].copy_(numerator)


@dataclass(frozen=True)
class Prodigy:
    """Prodigy (Mishchenko & Defazio 2023, arXiv 2306.06101). Arithmetic of `prodigyopt` 1.1.

    d <- max(d, d_coef r / |s|_1), with r <- sqrt(beta2) r + sum (d / d0) lr d <g, x0 - x> and
    s <- sqrt(beta2) s + (d / d0) lr d g. Moments are of d g, so `momentum` is in other units than
    that of AdamW. Weights move by lr d m / (sqrt(v) + d eps), with the d before the step in front,
    and the d after it beside eps. Decay multiplies by 1 - lr d wd.

    Left out of the package: a bound of the growth of d (infinite there) and sums over a part of the
    coordinates. It departs from the package at a rate of 0, where the package keeps the moments of
    a tensor as they are.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    d0: float = 1e-6  # first estimate of the distance
    d_coef: float = 1.0  # multiplier of the estimate
    bias_correction: bool = False  # of the moments. Off in the package.
    safeguard_warmup: bool = False  # leaves lr out of s, so that a warmup does not raise d too far
    optimizer: str = "prodigy"

    evaluation_weights = trained_weights

    def init(self, weight: Tensor) -> State:
        """Returns the initial weights, both moments, the sum of gradients, and d with numerator."""
        return {"initial": weight.detach().clone()} | _initial_state(weight, self.d0)

    def update(self, weights, gradients, states, rates, steps):  # type: ignore[no-untyped-def]
        """See Rule."""
        d, beta3 = states[0]["d"].clone(), math.sqrt(self.beta2)
        sizes = d[:, None] * rates.lr  # (N, K)
        if self.bias_correction:
            second = 1.0 - self.beta2 ** (steps + 1.0)
            correction = second**0.5 / (1.0 - self.beta1 ** (steps + 1.0))
            sizes = sizes * row_scalars(correction, sizes)
        shares = (d / self.d0)[:, None] * (d[:, None] if self.safeguard_warmup else sizes)
        shares = shares.expand_as(sizes)

        numerator = beta3 * states[0]["d_numerator"]
        denominator = torch.zeros_like(d)
        for k, (w, g, state) in enumerate(zip(weights, gradients, states, strict=True)):
            weight_of_dot = d / self.d0 * sizes[:, k]
            numerator = numerator + weight_of_dot * _dot(g, state["initial"] - w)
            scale = _row(d, g)
            state["momentum"].mul_(self.beta1).add_(g * scale, alpha=1.0 - self.beta1)
            state["second_moment"].mul_(self.beta2).add_(
                (g * scale).square_(), alpha=1.0 - self.beta2
            )
            total = state["gradient_sum"].mul_(beta3).add_(g * _row(shares[:, k], g))
            denominator = denominator + _l1_norm(total)

        moving = denominator > 0
        estimate = self.d_coef * numerator / denominator.clamp_min(1e-300)
        new = torch.where(moving, torch.maximum(d, estimate), d)
        _store(states, new, torch.where(moving, numerator, states[0]["d_numerator"]))

        sizes = sizes * moving[:, None]
        per_tensor = zip(
            weights,
            states,
            spread(sizes, weights),
            kept_fractions(sizes, rates.weight_decay, weights),
            strict=True,
        )
        for w, state, size, keep in per_tensor:
            w.mul_(keep)
            root = state["second_moment"].sqrt().add_(_row(new * self.eps, w))
            w.sub_((state["momentum"] * size).div_(root))


@dataclass(frozen=True)
class DAdaptAdamW:
    """AdamW with D-Adaptation (Defazio & Mishchenko 2023, arXiv 2301.07733).

    Arithmetic of `dadaptation.DAdaptAdam` 3.2 with `decouple`.

    d <- max(d, r / ((1 - b) |s|_1)), with b = sqrt(beta2), s <- b s + (1 - b) lr d g, and r the
    mean (decay b) of the sum of lr d <g, s / (sqrt(v) + eps)> with the s and v before the step. The
    first moment is of lr d g, so `momentum` is a length, and weights move by m / (sqrt(v) + eps).
    Decay multiplies by 1 - lr d wd.

    lr is the largest rate of the run's tensors. The rate of a tensor over it is the package's
    `layer_scale`. Left out: a bound of the growth of d (infinite there).
    """

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    d0: float = 1e-6  # first estimate of the distance
    bias_correction: bool = False  # of the moments. Off in the package.
    optimizer: str = "dadapt"

    evaluation_weights = trained_weights

    def init(self, weight: Tensor) -> State:
        """Returns both moments, the sum of gradients, and d with its numerator."""
        return _initial_state(weight, self.d0)

    def update(self, weights, gradients, states, rates, steps):  # type: ignore[no-untyped-def]
        """See Rule."""
        d, root2 = states[0]["d"].clone(), math.sqrt(self.beta2)
        lr = rates.lr.amax(1)
        size = d * lr
        if self.bias_correction:
            second = 1.0 - self.beta2 ** (steps + 1.0)
            size = size * row_scalars(second**0.5 / (1.0 - self.beta1 ** (steps + 1.0)), size)
        scales = rates.lr / lr.clamp_min(1e-300)[:, None]  # (N, K)

        found, norm = torch.zeros_like(d), torch.zeros_like(d)
        for k, (g, state) in enumerate(zip(gradients, states, strict=True)):
            m, v, total = state["momentum"], state["second_moment"], state["gradient_sum"]
            own = scales[:, k] * size
            found = found + own * _dot(g, total / v.sqrt().add_(self.eps))
            m.mul_(self.beta1).add_(g * _row(own, g), alpha=1.0 - self.beta1)
            v.mul_(self.beta2).addcmul_(g, g, value=1.0 - self.beta2)
            total.mul_(root2).add_(g * _row(size, g), alpha=1.0 - root2)
            norm = norm + scales[:, k] * _l1_norm(total)

        moving = norm > 0
        numerator = root2 * states[0]["d_numerator"] + (1.0 - root2) * found
        estimate = numerator / ((1.0 - root2) * norm).clamp_min(1e-300)
        new = torch.where(moving, torch.maximum(d, estimate), d)
        _store(states, new, torch.where(moving, numerator, states[0]["d_numerator"]))

        sizes = scales * (size * moving)[:, None]
        kept = kept_fractions(sizes, rates.weight_decay, weights)
        for w, state, keep in zip(weights, states, kept, strict=True):
            w.mul_(keep)
            step = state["momentum"] / state["second_moment"].sqrt().add_(self.eps)
            w.sub_(step * _row(moving, w))
