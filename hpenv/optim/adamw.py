"""AdamW and SGD with momentum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hpenv.optim.rules import (
    State,
    kept_fractions,
    move_momentum,
    spread,
    spread_fields,
    trained_weights,
)


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019). Arithmetic of torch.optim.AdamW.

    The betas may move during a run. The bias corrections of the moments therefore divide by 1 minus
    the product of all betas so far, which is beta^t if they never moved. The corrected moments are
    weighted means of the gradients (and their squares) whatever the betas did, and cannot exceed
    the largest of them. The multiplier of 1 - beta1 is applied before that of the odds of beta1.
    """

    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    optimizer: str = "adamw"

    evaluation_weights = trained_weights

    def init(self, weight: Tensor) -> State:
        """Returns first and second moments, and the products of the betas so far, (N,)."""
        one = torch.ones(weight.shape[0], dtype=torch.float64, device=weight.device)
        moments = {"momentum": torch.zeros_like(weight), "second_moment": torch.zeros_like(weight)}
        return moments | {"beta1_product": one, "beta2_product": one.clone()}

    def update(self, weights, gradients, states, rates, steps):  # type: ignore[no-untyped-def]
        """See Rule."""
        new1, new2 = (1.0 - self.beta1) * rates.beta1, (1.0 - self.beta2) * rates.beta2  # (N, K)
        _, new1 = move_momentum(1.0 - new1, new1, rates.momentum)
        first = 1.0 - _product(states, "beta1_product", 1.0 - new1)
        root = (1.0 - _product(states, "beta2_product", 1.0 - new2)).sqrt()
        scalars = torch.stack(
            [
                (1.0 - rates.lr * rates.weight_decay).clamp(0.0, 1.0),
                new1,
                new2,
                self.eps * rates.eps * root,
                rates.lr * root / first,
            ],
            dim=0,
        )  # (5, N, K)

        per_tensor = zip(*spread_fields(scalars, weights), strict=True)
        for w, g, state, (keep, a1, a2, eps, size) in zip(
            weights, gradients, states, per_tensor, strict=True
        ):
            m = state["momentum"].lerp_(g, a1)
            v = state["second_moment"].lerp_(g * g, a2)
            w.mul_(keep).sub_((m * size).div_(v.sqrt().add_(eps)))


def _product(states: Sequence[State], slot: str, factors: Tensor) -> Tensor:
    """Multiplies each tensor's running product by its factor. Factors and result (N, K)."""
    result = torch.stack([state[slot] for state in states], dim=1) * factors
    for state, column in zip(states, result.unbind(1), strict=True):
        state[slot].copy_(column)
    return result


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent with heavy-ball momentum (torch.optim.SGD).

    buffer <- momentum buffer + g.
    """

    momentum: float = 0.9
    nesterov: bool = False
    optimizer: str = "sgd"

    evaluation_weights = trained_weights

    def init(self, weight: Tensor) -> State:
        """Returns the momentum buffer."""
        return {"momentum": torch.zeros_like(weight)}

    def update(self, weights, gradients, states, rates, steps):  # type: ignore[no-untyped-def]
        """See Rule."""
        moved, _ = move_momentum(self.momentum, 1.0 - self.momentum, rates.momentum)
        momenta = spread(moved, weights)
        kept = kept_fractions(rates.lr, rates.weight_decay, weights)
        sizes = spread(rates.lr, weights)
        rows = zip(weights, gradients, states, momenta, kept, sizes, strict=True)
        for w, g, state, mu, keep, lr in rows:
            w.mul_(keep)
            buffer = state["momentum"].mul_(mu).add_(g)
            direction = g.addcmul(buffer, mu) if self.nesterov else buffer
            w.sub_(direction * lr)
