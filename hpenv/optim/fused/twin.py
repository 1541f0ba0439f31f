"""The updates of an arena in torch: the reference of the kernels, and the path of a CPU.

The order of operations is that of `hpenv.optim.adamw` and `hpenv.optim.muon`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from hpenv.optim.fused.arena import AdamWArena, MuonArena, Statistics
from hpenv.optim.fused.layout import Layout
from hpenv.optim.muon import JORDAN, orthogonalize


@torch.no_grad()
def step_adamw(arena: AdamWArena) -> None:
    """Takes one AdamW step of all tensors, in place, and writes the statistics."""
    rates, products = arena.rates, arena.beta_products
    new1, new2 = rates.beta1_complement, rates.beta2_complement
    moved = products * (1.0 - torch.stack([new1, new2]))
    first, root = 1.0 - moved[0], (1.0 - moved[1]).sqrt()
    products.copy_(torch.where(rates.gate != 0, moved, products))

    keep = (1.0 - rates.lr * rates.weight_decay).clamp(0.0, 1.0)
    factor = _cap_factors(arena.views["gradients"], rates.cap, arena.cap_cells)
    scalars = (keep, new1, new2, rates.eps * root, rates.lr * root / first, factor)
    slots = ("weights", "gradients", "momentum", "second_moment")
    for k, (w, g, m, v) in enumerate(zip(*(arena.views[s].values() for s in slots), strict=True)):
        moves = _column(rates.gate, k, w) != 0
        kept, a1, a2, eps, size, scale = (_column(scalar, k, w) for scalar in scalars)
        scaled = g * scale
        new_m = m.lerp(scaled, a1)
        new_v = v.lerp(scaled * scaled, a2)
        new_w = (w * kept).sub_((new_m * size).div_(new_v.sqrt().add_(eps)))
        update = torch.where(moves, new_w - w, 0.0)
        for old, new in ((w, new_w), (m, new_m), (v, new_v)):
            torch.where(moves, new, old, out=old)
        _write_statistics(arena.statistics, k, g, w, update)


@torch.no_grad()
def step_muon(arena: MuonArena, newton_schulz_dtype: str | None = None) -> None:
    """Takes one Muon step of all matrices, in place, and writes the statistics.

    Args:
        arena: the buffers.
        newton_schulz_dtype: key of `muon.NEWTON_SCHULZ_DTYPES`.
    """
    rates = arena.rates
    factor = _cap_factors(arena.views["gradients"], rates.cap, arena.cap_cells)
    slots = ("gradients", "momentum", "direction")
    for k, (g, m, d) in enumerate(zip(*(arena.views[s].values() for s in slots), strict=True)):
        moves = _column(rates.gate, k, m) != 0
        scaled = g * _column(factor, k, g)
        buffer = m.lerp(scaled, _column(rates.momentum_complement, k, g))
        d.copy_(scaled.lerp(buffer, _column(rates.momentum, k, g)))
        torch.where(moves, buffer, m, out=m)

    orthogonalize_stacks(arena.layout, arena.flat["direction"], newton_schulz_dtype)

    slots = ("weights", "gradients", "direction")
    for k, (w, g, d) in enumerate(zip(*(arena.views[s].values() for s in slots), strict=True)):
        moves = _column(rates.gate, k, w) != 0
        lr, decay = _column(rates.lr, k, w), _column(rates.weight_decay, k, w)
        new_w = w * (1.0 - lr * decay).clamp_(0.0, 1.0)
        new_w.sub_(d * (lr * arena.shape_factors[k]))
        update = torch.where(moves, new_w - w, 0.0)
        torch.where(moves, new_w, w, out=w)
        _write_statistics(arena.statistics, k, g, w, update)


def orthogonalize_stacks(layout: Layout, flat: Tensor, dtype: str | None = None) -> None:
    """Orthogonalizes all matrices of a flat buffer in place, those of one shape in one product."""
    for stack in layout.stacks(flat):
        is_tall = stack.shape[1] > stack.shape[2]
        wide = stack.transpose(1, 2) if is_tall else stack
        if wide.numel():
            # The products of a transposed view would round otherwise than those of the rule.
            wide.copy_(orthogonalize(wide.contiguous(), JORDAN, dtype=dtype))


def cap_factors(squares: Tensor, caps: Tensor, cells: Tensor) -> Tensor:
    """Returns min(1, cap / norm) with the norm over all tensors of a cell, (N, K).

    It is the `grad_clip` of the plant of pretraining. An infinite cap gives exactly 1.

    Args:
        squares: squared norms of the gradients, (N, K) float64.
        caps: (N, K) float64.
        cells: cell of each tensor, (K,).
    """
    same = cells[:, None] == cells  # (K, K)
    norms = torch.where(same, squares[:, None, :], 0.0).sum(2).sqrt()
    factors = (caps / norms.clamp_min(1e-30)).clamp_max(1.0)
    return torch.where(caps < torch.inf, factors, 1.0)


def _cap_factors(gradients: dict[str, Tensor], caps: Tensor, cells: Tensor | None) -> Tensor:
    if cells is None:
        return torch.ones_like(caps)
    squares = torch.stack([_sum(g, g) for g in gradients.values()], 1)
    return cap_factors(squares, caps, cells)


def _column(values: Tensor, k: int, like: Tensor) -> Tensor:
    """Returns the numbers of tensor k as multipliers: (N, K) -> (N, 1, ...) in its dtype."""
    return values[:, k].to(like.dtype).view(-1, *[1] * (like.ndim - 1))


def _sum(first: Tensor, second: Tensor) -> Tensor:
    """Returns the sum of the products of each run, (N, ...) -> (N,) float64."""
    # torch adds float32 in a tree. A sum in float64 costs a CPU several times as much.
    return _rows(first * second).sum(1).double()


def _rows(values: Tensor) -> Tensor:
    """Returns the entries of each run side by side: (N, ...) -> (N, n)."""
    return values.unsqueeze(-1).flatten(1)


def _write_statistics(
    statistics: Statistics, k: int, g: Tensor, weights: Tensor, update: Tensor
) -> None:
    """Writes the statistics of tensor k: gradient, weights after it, and update, (N, ...) each."""
    for target, value in zip(statistics, _statistics(g, weights, update), strict=True):
        target[:, k] = value


def _statistics(g: Tensor, weights: Tensor, update: Tensor) -> Iterator[Tensor]:
    for pair in ((g, g), (weights, weights), (update, update), (weights, update), (g, update)):
        yield _sum(*pair)
    entries = _rows(g)
    if entries.shape[1]:  # two reductions without a copy
        yield torch.maximum(entries.amax(1), -entries.amin(1)).double()
    else:
        yield entries.sum(1).double()
