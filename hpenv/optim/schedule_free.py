"""Schedule-free SGD and AdamW.

They decay the base iterate by the weights, as the package `schedulefree` does. The weights lag
behind the base iterate. So decay alone takes both past zero after a few times 1 / (lr wd) steps, at
any product lr wd below 1, while they shrink.

The momentum beta may move during a run, which the package does not have. The state keeps the beta
of the present weights y. After an update y is put at the new beta between z and x, which both stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hpenv.optim.rules import Rates, State, move_momentum, per_tensor, row_scalars


def _average(rule: ScheduleFreeSGD | ScheduleFreeAdamW, weight: Tensor, state: State) -> Tensor:
    """Returns the average x of a schedule-free rule."""
    beta = state["interpolation"]
    return (weight - _rows(1.0 - beta, weight) * state["z"]) / _rows(beta, weight)


def _rows(values: Tensor, like: Tensor) -> Tensor:
    """Returns numbers (N,) as multipliers of a tensor (N, ...), in its dtype."""
    return values.to(like.dtype).view(-1, *[1] * (like.ndim - 1))


@dataclass(frozen=True)
class ScheduleFreeSGD:
    """Schedule-free SGD (Defazio et al. 2024), with the arithmetic of the package `schedulefree`.

    Gradients are taken at y, z is the base iterate, and x is the average. The weights of the model
    are y. Held-out numbers are those of x = (y - (1 - beta) z) / beta.
    """

    momentum: float = 0.9  # beta: y = (1 - beta) z + beta x
    weight_lr_power: float = 2.0  # a step's weight in the average is (largest lr so far)^power
    optimizer: str = "schedule_free"

    evaluation_weights = _average

    def init(self, weight: Tensor) -> State:
        """Returns the base iterate and three numbers per run.

        They are the sum of averaging weights, the largest rate so far, and beta.
        """
        return _initial_state(weight, self.momentum)

    def update(self, weights, gradients, states, rates, steps):  # type: ignore[no-untyped-def]
        """See Rule."""
        for w, g, state, lr, wd in per_tensor(weights, gradients, states, rates):
            _schedule_free_update(w, g, state, lr, wd, self.weight_lr_power)
        _interpolate(self.momentum, weights, states, rates)


@dataclass(frozen=True)
class ScheduleFreeAdamW:
    """Schedule-free AdamW (Defazio et al. 2024).

    It has no first moment. beta1 interpolates y between z and x.
    """

    momentum: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_lr_power: float = 2.0
    optimizer: str = "schedule_free"

    evaluation_weights = _average

    def init(self, weight: Tensor) -> State:
        """Returns the state of ScheduleFreeSGD and the second moment."""
        state = _initial_state(weight, self.momentum)
        return state | {"second_moment": torch.zeros_like(weight)}

    def update(self, weights, gradients, states, rates, steps):  # type: ignore[no-untyped-def]
        """See Rule."""
        correction = 1.0 - self.beta2 ** (steps + 1.0)
        for w, g, state, lr, wd in per_tensor(weights, gradients, states, rates):
            v = state["second_moment"].mul_(self.beta2).addcmul_(g, g, value=1.0 - self.beta2)
            direction = g / v.div(row_scalars(correction, w)).sqrt_().add_(self.eps)
            _schedule_free_update(w, direction, state, lr, wd, self.weight_lr_power)
        _interpolate(self.momentum, weights, states, rates)


def _initial_state(weight: Tensor, momentum: float) -> State:
    zeros = torch.zeros(weight.shape[0], dtype=torch.float64, device=weight.device)
    numbers = {"weight_sum": zeros, "largest_lr": zeros.clone()}
    return {"z": weight.detach().clone(), **numbers, "interpolation": zeros + momentum}


def _interpolate(
    momentum: float, weights: Sequence[Tensor], states: Sequence[State], rates: Rates
) -> None:
    """Puts the weights y at the momentum of the next step between z and x, in place.

    y <- y + (y - z) (new / old - 1), since y - z = beta (x - z).
    """
    wanted, _ = move_momentum(momentum, 1.0 - momentum, rates.momentum)  # (N, K)
    for y, state, new in zip(weights, states, wanted.unbind(1), strict=True):
        old = state["interpolation"]
        if not torch.equal(old, new):
            y.add_((y - state["z"]) * _rows(new / old - 1.0, y))
            old.copy_(new)


def _schedule_free_update(
    y: Tensor, direction: Tensor, state: State, lr: Tensor, wd: Tensor, power: float
) -> None:
    """Updates y <- lerp(y, z, c) + lr (beta (1 - c) - 1) u and z <- z - lr u, in place.

    u = direction + wd y, and c is the weight of the step in the average.
    """
    beta = _rows(state["interpolation"], y)
    rate = lr.flatten().double()
    state["largest_lr"].copy_(torch.maximum(state["largest_lr"], rate))
    weight = state["largest_lr"] ** power
    state["weight_sum"].add_(weight)
    total = state["weight_sum"]
    c = torch.where(total > 0, weight / total.clamp_min(1e-300), torch.zeros_like(total))
    c = c.to(y.dtype).view(lr.shape)

    # lr wd is at most 1: a step's decay, evaluated at y, is at most y itself. It is applied to z as
    # well, as the package does, and can take z past zero where the two have drifted apart.
    decay = torch.minimum(wd, 1.0 / lr.clamp_min(1e-30))
    u = direction + y * decay
    y.add_((state["z"] - y) * c).add_(u * (lr * (beta * (1.0 - c) - 1.0)))
    state["z"].sub_(u * lr)
