"""Muon: momentum that is orthogonalized by a Newton-Schulz iteration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hpenv.optim.rules import (
    State,
    kept_fractions,
    move_momentum,
    per_tensor,
    spread,
    trained_weights,
)

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

    evaluation_weights = trained_weights

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
        moved, new = move_momentum(self.momentum, 1.0 - self.momentum, rates.momentum)
        momenta, shares = spread(moved, weights), spread(new, weights)

        directions = []
        for g, state, mu, share in zip(gradients, states, momenta, shares, strict=True):
            buffer = state["momentum"].lerp_(g, share)
            directions.append(g.lerp(buffer, mu))
        orthogonal = _orthogonalize_all(directions, JORDAN, dtype=self.newton_schulz_dtype)
        kept = kept_fractions(rates.lr, rates.weight_decay, weights)
        dtype, device = weights[0].dtype, weights[0].device
        factors = torch.tensor([_shape_factor(w) for w in weights], dtype=dtype, device=device)
        sizes = spread(rates.lr.to(dtype) * factors, weights)
        for w, direction, keep, size in zip(weights, orthogonal, kept, sizes, strict=True):
            w.mul_(keep).sub_(direction * size)


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

    evaluation_weights = trained_weights

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

        base = torch.as_tensor(momentum, device=rates.momentum.device)[:, None]
        moved, _ = move_momentum(base, 1.0 - base, rates.momentum)

        directions = []
        for g, state, mu in zip(gradients, states, spread(moved, weights), strict=True):
            buffer = state["momentum"]
            buffer.add_((g - buffer) * (1.0 - mu))
            directions.append(g + (buffer - g) * mu)

        orthogonal = _orthogonalize_all(directions, POLAR_EXPRESS, 1.02, self.newton_schulz_dtype)
        for w, u, state, lr, wd in per_tensor(weights, orthogonal, states, rates):
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
