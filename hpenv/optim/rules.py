"""The protocol of an update rule over a population, and the rates of an update.

Weights and state tensors are (N, ...), and rates are per run. Rows are independent clocks. Each row
has its number of steps, its rates and its bias corrections, so rows may stand at different steps. A
rule is a frozen dataclass with its hyperparameters and an in-place update. Weight decay is
decoupled everywhere (w <- w (1 - lr wd)), and the factor 1 - lr wd is clamped to [0, 1], so that
both at their largest cannot flip a sign. Schedule-free rules are the exception (see
`hpenv.optim.schedule_free`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

State = dict[str, Tensor]


def row_scalars(values: NDArray[np.float64], like: Tensor) -> Tensor:
    """Returns one number per run, shaped to multiply `like`: (N,) -> (N, 1, ...) in its dtype."""
    scalars = torch.as_tensor(values, dtype=like.dtype, device=like.device)
    return scalars.view(-1, *[1] * (like.ndim - 1))


class Rates(NamedTuple):
    """Rates of an update of a group's tensors, (N, K) float64 each: one number per run and tensor.

    Attributes:
        lr: learning rate.
        weight_decay: decoupled, multiplied by the learning rate.
        beta1: multiplier of 1 - beta1.
        beta2: multiplier of 1 - beta2.
        eps: multiplier of eps.
        momentum: multiplier of the odds m / (1 - m) of the momentum m.
    """

    lr: Tensor
    weight_decay: Tensor
    beta1: Tensor
    beta2: Tensor
    eps: Tensor
    momentum: Tensor

    @staticmethod
    def of(lr: Tensor, weight_decay: Tensor) -> Rates:
        """Returns these rates with all multipliers at 1."""
        one = torch.ones_like(lr)
        return Rates(lr, weight_decay, one, one, one, one)


def move_momentum(
    momentum: float | Tensor, complement: float | Tensor, odds: Tensor
) -> tuple[Tensor, Tensor]:
    """Multiplies the odds m / (1 - m) of a momentum m in [0, 1]. Returns the new m and 1 - m.

    At odds of 1 both are the given numbers, bit for bit.

    Args:
        momentum: m, a number or (N, 1) or (N, K).
        complement: 1 - m.
        odds: multiplier of the odds, above 0, (N, K).
    """
    divisor = 1.0 + momentum * (odds - 1.0)
    return momentum * odds / divisor, complement / divisor


def spread(values: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Returns a number per run and tensor as multipliers of the tensors.

    (N, K) -> K times (N, 1, ...) in the tensors' dtype.
    """
    return spread_fields(values[None], like)[0]


def spread_fields(values: Tensor, like: Sequence[Tensor]) -> list[list[Tensor]]:
    """Returns several numbers per run and tensor as multipliers of the tensors.

    (F, N, K) -> F times K times (N, 1, ...) in the tensors' dtype.
    """
    dtype, layout = like[0].dtype, torch.contiguous_format
    columns = values.transpose(1, 2).to(dtype, memory_format=layout)  # (F, K, N)
    dimensions = {w.ndim for w in like}
    # One view for all tensors: hundreds of small views cost as much as the update.
    if len(dimensions) == 1:
        shaped = columns.view(*columns.shape, *[1] * (dimensions.pop() - 1))
        return [list(field.unbind(0)) for field in shaped.unbind(0)]
    return [
        [c.view(-1, *[1] * (w.ndim - 1)) for c, w in zip(field.unbind(0), like, strict=True)]
        for field in columns.unbind(0)
    ]


def per_tensor(
    weights: Sequence[Tensor], directions: Sequence[Tensor], states: Sequence[State], rates: Rates
) -> Iterator[tuple[Tensor, Tensor, State, Tensor, Tensor]]:
    """Yields weight, direction, state, learning rate and weight decay of each tensor.

    The two rates are (N, 1, ...).
    """
    lr, decay = spread(rates.lr, weights), spread(rates.weight_decay, weights)
    return zip(weights, directions, states, lr, decay, strict=True)


def kept_fractions(lr: Tensor, weight_decay: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Returns the factor of decoupled weight decay, clamp(1 - lr wd, 0, 1).

    It is computed in the tensors' dtype: rates (N, K) -> K times (N, 1, ...).
    """
    dtype = like[0].dtype
    lost = lr.to(dtype) * weight_decay.to(dtype)
    return spread((1.0 - lost).clamp_(0.0, 1.0), like)


class Rule(Protocol):
    """Update rule of one kind of parameter.

    Attributes:
        optimizer: name of the optimizer of the rule. Cells of scope `optimizer` are indexed by it.
    """

    @property
    def optimizer(self) -> str:
        """Name of the optimizer."""

    def init(self, weight: Tensor) -> State:
        """Returns the state of a run that has not moved."""

    def update(
        self,
        weights: Sequence[Tensor],
        gradients: Sequence[Tensor],
        states: Sequence[State],
        rates: Rates,
        steps: NDArray[np.int64],
    ) -> None:
        """Moves the weights of the rule's K tensors in place. `steps` (N,) counts from 0.

        A state's `momentum`, if there is one, is the first moment.
        """

    def evaluation_weights(self, weight: Tensor, state: State) -> Tensor:
        """Returns the weights for probe and held-out losses: of schedule-free rules the average."""


def trained_weights(rule: Rule, weight: Tensor, state: State) -> Tensor:
    """Returns the weights themselves."""
    return weight
