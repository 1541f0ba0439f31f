"""Optimizers over a population: weights and state tensors are (N, ...), and rates are per run.

Rows are independent clocks. Each row has its number of steps, its rates and its bias corrections,
so rows may stand at different steps. An optimizer is data: `OPTIMIZERS` maps a name to one update
rule per kind of parameter. A rule is a frozen dataclass with its hyperparameters and an in-place
update. Weight decay is decoupled everywhere (w <- w (1 - lr wd)), and the factor 1 - lr wd is
clamped to [0, 1], so that both at their largest cannot flip a sign. Schedule-free rules are the
exception. They decay the base iterate by the weights, as the package `schedulefree` does. The
weights lag behind the base iterate. So decay alone takes both past zero after a few times
1 / (lr wd) steps, at any product lr wd below 1, while they shrink.

The rules share one module, past its usual length, because the table at its end is what others
import.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpenv.checks import as_python

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
    """

    lr: Tensor
    weight_decay: Tensor
    beta1: Tensor
    beta2: Tensor
    eps: Tensor

    @staticmethod
    def of(lr: Tensor, weight_decay: Tensor) -> Rates:
        """Returns these rates with all multipliers at 1."""
        one = torch.ones_like(lr)
        return Rates(lr, weight_decay, one, one, one)


def spread(values: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Returns a number per run and tensor as multipliers of the tensors.

    (N, K) -> K times (N, 1, ...) in the tensors' dtype.
    """
    columns = values.T.to(like[0].dtype, memory_format=torch.contiguous_format)  # (K, N)
    dimensions = {w.ndim for w in like}
    # One view for all tensors: hundreds of small views cost as much as the update.
    if len(dimensions) == 1:
        return list(columns.view(*columns.shape, *[1] * (dimensions.pop() - 1)).unbind(0))
    return [
        column.view(-1, *[1] * (w.ndim - 1))
        for column, w in zip(columns.unbind(0), like, strict=True)
    ]


def _pairs(rates: Rates, weights: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Returns learning rates and weight decays of each tensor, (N, 1, ...)."""
    return spread(rates.lr, weights), spread(rates.weight_decay, weights)


def decay_(weight: Tensor, lr: Tensor, weight_decay: Tensor) -> None:
    """Applies decoupled weight decay: w <- w clamp(1 - lr wd, 0, 1)."""
    weight.mul_((1.0 - lr * weight_decay).clamp_(0.0, 1.0))


class Rule(Protocol):
    """Update rule of one kind of parameter.

    Attributes:
        optimizer: name of the optimizer of the rule. Cells of scope `optimizer` are indexed by it.
        slots: names of the state's tensors. `momentum`, if there is one, is the first moment.
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
        """Moves the weights of K tensors in place. `steps` (N,) counts from 0."""

    def evaluation_weights(self, weight: Tensor, state: State) -> Tensor:
        """Returns the weights that held-out numbers belong to."""


def _trained_weights(rule: Rule, weight: Tensor, state: State) -> Tensor:
    """Returns the weights themselves."""
    return weight


def _average(rule: ScheduleFreeSGD | ScheduleFreeAdamW, weight: Tensor, state: State) -> Tensor:
    """Returns the average x of a schedule-free rule."""
    return (weight - (1.0 - rule.momentum) * state["z"]) / rule.momentum


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019). Arithmetic of torch.optim.AdamW.

    The betas may move during a run. The bias corrections of the moments therefore divide by 1 minus
    the product of all betas so far, which is beta^t if they never moved. The corrected moments are
    weighted means of the gradients (and their squares) whatever the betas did, and cannot exceed
    the largest of them.
    """

    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    optimizer: str = "adamw"

    evaluation_weights = _trained_weights

    def init(self, weight: Tensor) -> State:
        """Returns first and second moments, and the products of the betas so far, (N,)."""
        one = torch.ones(weight.shape[0], dtype=torch.float64, device=weight.device)
        moments = {"momentum": torch.zeros_like(weight), "second_moment": torch.zeros_like(weight)}
        return moments | {"beta1_product": one, "beta2_product": one.clone()}

    def update(self, weights, gradients, states, rates, steps):  # type: ignore[no-untyped-def]
        """See Rule."""
        new1, new2 = (1.0 - self.beta1) * rates.beta1, (1.0 - self.beta2) * rates.beta2  # (N, K)
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
            dim=1,
        )  # (N, 5, K)

        per_tensor = zip(*(spread(scalars[:, i], weights) for i in range(5)), strict=True)
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

    evaluation_weights = _trained_weights

    def init(self, weight: Tensor) -> State:
        """Returns the momentum buffer."""
        return {"momentum": torch.zeros_like(weight)}

    def update(self, weights, gradients, states, rates, steps):  # type: ignore[no-untyped-def]
        """See Rule."""
        for w, g, state, lr, wd in zip(
            weights, gradients, states, *_pairs(rates, weights), strict=True
        ):
            decay_(w, lr, wd)
            buffer = state["momentum"].mul_(self.momentum).add_(g)
            direction = g.add(buffer, alpha=self.momentum) if self.nesterov else buffer
            w.sub_(direction * lr)


#: Quintic Newton-Schulz iteration of Keller Jordan's Muon. It has the steepest slope at zero, and
#: singular values end in about [0.5, 1.5].
JORDAN = ((3.4445, -4.7750, 2.0315),) * 5
#: Polar Express (Amsel et al. 2025, arXiv 2505.16932), five steps, safety factor 2e-2, as in
#: nanochat.
POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)

#: Name -> dtype of the Newton-Schulz iteration. None: bfloat16 on a GPU, and on a CPU the dtype of
#: the weights. A CPU without instructions for bfloat16 (AVX2 alone) takes ten to twenty times as
#: long for a bfloat16 product.
NEWTON_SCHULZ_DTYPES: dict[str | None, torch.dtype | None] = {
    None: None,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
}


def orthogonalize(
    matrices: Tensor,
    coefficients: Sequence[tuple[float, float, float]],
    safety: float = 1.0,
    dtype: str | None = None,
) -> Tensor:
    """Approximates U V^T of each matrix by odd quintic iterations.

    Args:
        matrices: (K, r, c) with r <= c.
        coefficients: (a, b, c) of each iteration X <- a X + (b X X^T + c (X X^T)^2) X.
        safety: factor of the Frobenius norm that divides the matrix at the start.
        dtype: key of NEWTON_SCHULZ_DTYPES.

    Returns:
        The approximation, (K, r, c), in the dtype of the iteration.
    """
    default_dtype = torch.bfloat16 if matrices.is_cuda else matrices.dtype
    x = matrices.to(NEWTON_SCHULZ_DTYPES[dtype] or default_dtype)
    x = x / (x.norm(dim=(1, 2), keepdim=True) * safety).clamp_min(1e-7)
    for a, b, c in coefficients:
        gram = torch.bmm(x, x.transpose(1, 2))
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x


def _by_shape(gradients: Sequence[Tensor]) -> dict[tuple[int, int], list[int]]:
    """Groups the tensors by matrix shape, wide and tall ones together.

    The result maps (short side, long side) -> indices.
    """
    groups: dict[tuple[int, int], list[int]] = {}
    for i, g in enumerate(gradients):
        groups.setdefault((min(g.shape[1:]), max(g.shape[1:])), []).append(i)
    return groups


@dataclass(frozen=True)
class Muon:
    """Momentum orthogonalized by Newton-Schulz (Jordan 2024).

    The semantics are those of torch.optim.Muon, "original". The update is lr sqrt(max(1, rows /
    columns)) times the orthogonalized Nesterov momentum. The decay uses the plain lr.
    """

    momentum: float = 0.95
    optimizer: str = "muon"
    newton_schulz_dtype: str | None = None  # key of NEWTON_SCHULZ_DTYPES

    evaluation_weights = _trained_weights

    def init(self, weight: Tensor) -> State:
        """Returns the momentum buffer.

        Raises:
            ValueError: for a parameter that is not a matrix.
        """
        if weight.ndim != 3:
            raise ValueError(
                f"parameters of muon must be matrices; got one of shape {tuple(weight.shape[1:])}"
            )
        return {"momentum": torch.zeros_like(weight)}

    def update(self, weights, gradients, states, rates, steps):  # type: ignore[no-untyped-def]
        """See Rule."""
        directions = []
        for g, state in zip(gradients, states, strict=True):
            buffer = state["momentum"].lerp_(g, 1.0 - self.momentum)
            directions.append(g.lerp(buffer, self.momentum))
        orthogonal = _orthogonalize_all(directions, JORDAN, dtype=self.newton_schulz_dtype)
        for w, direction, lr, wd in zip(weights, orthogonal, *_pairs(rates, weights), strict=True):
            decay_(w, lr, wd)
            w.sub_(direction * (lr * _shape_factor(w)))


def _shape_factor(weight: Tensor) -> float:
    return float(max(1.0, weight.shape[1] / weight.shape[2]) ** 0.5)


def _orthogonalize_all(
    directions: Sequence[Tensor],
    coefficients: Sequence[tuple[float, float, float]],
    safety: float = 1.0,
    dtype: str | None = None,
) -> list[Tensor]:
    """Orthogonalizes all matrices, each (N, r, c) float32.

    The matrices of one shape are computed in one batched product.
    """
    result = list(directions)
    for indices in _by_shape(directions).values():
        wide = [_transpose_if_tall(directions[i], directions[i]) for i in indices]
        stacked = orthogonalize(torch.cat(wide), coefficients, safety, dtype)
        parts = stacked.to(directions[0].dtype).split(wide[0].shape[0])
        for i, part in zip(indices, parts, strict=True):
            result[i] = _transpose_if_tall(part, directions[i])

    return result


def _transpose_if_tall(matrices: Tensor, like: Tensor) -> Tensor:
    """Transposes matrices (N, r, c) if those of `like` have more rows than columns."""
    return matrices.transpose(1, 2) if like.shape[1] > like.shape[2] else matrices


@dataclass(frozen=True)
class NanochatMuon:
    """nanochat's Muon at commit 8630d32.

    It has Polar Express, NorMuon variance reduction, cautious decay and momentum warmup. The norm
    that the iteration starts from is bounded below by 1e-7, where nanochat adds 1e-6. It departs
    from Muon in two points: lr sqrt(max(1, rows / columns)) multiplies the decay too, and only
    weights that have the sign of the update decay.
    """

    start_momentum: float = 0.85
    momentum: float = 0.95
    momentum_steps: int = 300  # linear from start_momentum
    beta2: float = 0.95  # decay of the mean squares of rows (or columns)
    optimizer: str = "muon"
    newton_schulz_dtype: str | None = None  # key of NEWTON_SCHULZ_DTYPES

    evaluation_weights = _trained_weights

    def init(self, weight: Tensor) -> State:
        """Returns the momentum buffer and the mean squares along the longer side."""
        state = Muon().init(weight)
        mean_square = torch.zeros_like(weight.sum(self._shorter_axis(weight), keepdim=True))
        return state | {"mean_square": mean_square}

    @staticmethod
    def _shorter_axis(weight: Tensor) -> int:
        return 2 if weight.shape[1] >= weight.shape[2] else 1

    def update(self, weights, gradients, states, rates, steps):  # type: ignore[no-untyped-def]
        """See Rule."""
        fraction = np.minimum(steps / self.momentum_steps, 1.0)
        momentum = self.start_momentum + fraction * (self.momentum - self.start_momentum)

        directions = []
        for g, state in zip(gradients, states, strict=True):
            mu = row_scalars(momentum, g)
            buffer = state["momentum"]
            buffer.add_((g - buffer) * (1.0 - mu))
            directions.append(g + (buffer - g) * mu)

        orthogonal = _orthogonalize_all(directions, POLAR_EXPRESS, 1.02, self.newton_schulz_dtype)
        for w, u, state, lr, wd in zip(
            weights, orthogonal, states, *_pairs(rates, weights), strict=True
        ):
            axis = self._shorter_axis(w)
            square = u.square().mean(axis, keepdim=True)
            state["mean_square"].lerp_(square, 1.0 - self.beta2)
            scale = state["mean_square"].clamp_min(1e-10).rsqrt()

            norm = u.norm(dim=(1, 2), keepdim=True)
            scaled = (square * u.shape[axis]).mul_(scale.square()).sum((1, 2), keepdim=True).sqrt()
            u = u * (scale * (norm / scaled.clamp_min(1e-10)))

            rate = lr * _shape_factor(w)
            shrink = (rate * wd).clamp(0.0, 1.0)
            w.sub_(u * rate + w * shrink * (u * w >= 0))


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

    def direction(self, gradient: Tensor, state: State, steps: NDArray[np.int64]) -> Tensor:
        """Returns the direction in which z moves: the gradient."""
        return gradient

    def update(self, weights, gradients, states, rates, steps):  # type: ignore[no-untyped-def]
        """See Rule."""
        for w, g, state, lr, wd in zip(
            weights, gradients, states, *_pairs(rates, weights), strict=True
        ):
            direction = self.direction(g, state, steps)
            _schedule_free_update(w, direction, state, lr, wd, self.momentum, self.weight_lr_power)


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
        for w, g, state, lr, wd in zip(
            weights, gradients, states, *_pairs(rates, weights), strict=True
        ):
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


_NANOCHAT_ADAMW = AdamW(beta1=0.8, beta2=0.95, eps=1e-10)
_KINDS = ("embedding", "unembedding", "scalar", "matrix")


def _hybrid(tables: Rule, matrices: Rule) -> dict[str, Rule]:
    return {kind: matrices if kind == "matrix" else tables for kind in _KINDS}


def _single(rule: Rule) -> dict[str, Rule]:
    return dict.fromkeys(_KINDS, rule)


#: Name -> rule of each kind of parameter (`model.parameter_kind`).
OPTIMIZERS: dict[str, Mapping[str, Rule]] = {
    "adamw": _single(AdamW()),
    "sgd": _single(SGD()),
    "muon": _single(Muon()),
    "adamw_muon": _hybrid(_NANOCHAT_ADAMW, Muon()),
    "adamw_muon_nanochat": _hybrid(_NANOCHAT_ADAMW, NanochatMuon()),
    "sgd_schedule_free": _single(ScheduleFreeSGD()),
    "adamw_schedule_free": _single(ScheduleFreeAdamW()),
    "schedule_free_sgd_muon": _hybrid(ScheduleFreeSGD(), Muon()),
    "schedule_free_adamw_muon": _hybrid(ScheduleFreeAdamW(), Muon()),
}


def optimizer_rules(name: str) -> Mapping[str, Rule]:
    """Returns the rules of an optimizer.

    Raises:
        ValueError: for a name that is not in OPTIMIZERS.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"unknown optimizer {name!r}; expected one of {sorted(OPTIMIZERS)}")
    return OPTIMIZERS[name]


def rule_description(rule: Rule) -> str:
    """Returns a rule as text: its class and all its hyperparameters.

    A snapshot must agree with this text.
    """
    parameters = ", ".join(f"{name}={as_python(value)!r}" for name, value in vars(rule).items())
    return f"{type(rule).__qualname__}({parameters})"
