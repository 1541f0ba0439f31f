"""Schedule-free SGD and AdamW.

They decay the base iterate by the weights, as the package `schedulefree` does. The weights lag
behind the base iterate. So decay alone takes both past zero after a few times 1 / (lr wd) steps, at
any product lr wd below 1, while they shrink.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hpenv.optim.rules import State, per_tensor, row_scalars


def _average(rule: ScheduleFreeSGD | ScheduleFreeAdamW, weight: Tensor, state: State) -> Tensor:
    """Returns the average x of a schedule-free rule."""
    return (weight - (1.0 - rule.momentum) * state["z"]) / rule.momentum


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
        """Returns the base iterate and two numbers per run.

        They are the sum of averaging weights and the largest rate so far.
        """
        zeros = torch.zeros(weight.shape[0], dtype=torch.float64, device=weight.device)
        return {"z": weight.detach().clone(), "weight_sum": zeros, "largest_lr": zeros.clone()}

    def update(self, weights, gradients, states, rates, steps):  # type: ignore[no-untyped-def]
        """See Rule."""
        for w, g, state, lr, wd in per_tensor(weights, gradients, states, rates):
            _schedule_free_update(w, g, state, lr, wd, self.momentum, self.weight_lr_power)


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
        return ScheduleFreeSGD().init(weight) | {"second_moment": torch.zeros_like(weight)}

    def update(self, weights, gradients, states, rates, steps):  # type: ignore[no-untyped-def]
        """See Rule."""
        correction = 1.0 - self.beta2 ** (steps + 1.0)
        for w, g, state, lr, wd in per_tensor(weights, gradients, states, rates):
            v = state["second_moment"].mul_(self.beta2).addcmul_(g, g, value=1.0 - self.beta2)
            direction = g / v.div(row_scalars(correction, w)).sqrt_().add_(self.eps)
            _schedule_free_update(w, direction, state, lr, wd, self.momentum, self.weight_lr_power)


def _schedule_free_update(
    y: Tensor, direction: Tensor, state: State, lr: Tensor, wd: Tensor, beta: float, power: float
) -> None:
    """Updates y <- lerp(y, z, c) + lr (beta (1 - c) - 1) u and z <- z - lr u, in place.

    u = direction + wd y, and c is the weight of the step in the average.
    """
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
