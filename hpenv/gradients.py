"""What stands between a gradient and the optimizer: the dials of the backward surface, and scale,
noise and clip.

Everything acts on one run's own gradient alone. What is drawn is a pure function of (seed, step),
so that nothing has to be remembered: a snapshot continues with the same draws.

Order: noise, momentum blend, then one factor per tensor (scale x kept or left out), then the cap on
what is left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpenv.panel import Panel

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

#: Streams of draws; the data's streams are keyed by the seed without the step.
ROUTE, NOISE, DROPOUT = 1, 2, 3


def draws(seed: int, step: int, stream: int) -> torch.Generator:
    """The generator of one stream of one run at one step."""
    key = np.random.SeedSequence(int(seed), spawn_key=(stream, int(step))).generate_state(
        1, np.uint64
    )[0]
    return torch.Generator().manual_seed(int(key >> np.uint64(1)))


def flat(gradient: Tensor) -> Tensor:
    """A gradient as (N, n), its entries in any order: that of a product is a transpose, which `flatten` would copy."""
    if gradient.ndim == 3 and not gradient.is_contiguous():
        gradient = gradient.transpose(1, 2)
    return gradient.flatten(1)


def squared_norms(gradients: Sequence[Tensor]) -> FloatArray:
    """Squared L2 norm of every run's and tensor's gradient, (N, K)."""
    return measured(gradients, maxima=False)[0]


def measured(gradients: Sequence[Tensor], maxima: bool) -> tuple[FloatArray, FloatArray | None]:
    """Squared L2 norm and, if asked for, largest magnitude of every run's and tensor's gradient, (N, K) each."""
    norms, high, low = [], [], []
    for g in gradients:  # all that is asked of one before the next: it is still in the cache
        entries = flat(g)
        norms.append(torch.linalg.vector_norm(entries, dim=1))
        if maxima:  # two reductions without a copy; the infinity norm of torch.linalg is ten times slower on a CPU
            high.append(torch.amax(entries, 1))
            low.append(torch.amin(entries, 1))
    squares = torch.stack(norms, 1).double().square().cpu().numpy()
    if not maxima:
        return squares, None
    return squares, torch.maximum(torch.stack(high, 1), -torch.stack(low, 1)).double().cpu().numpy()


def steered(
    gradients: Mapping[str, Tensor],
    momenta: Mapping[str, Tensor],
    squares: FloatArray,
    panel: Panel,
    seeds: IntArray,
    steps: IntArray,
    rows: BoolArray,
) -> Mapping[str, Tensor]:
    """The gradients that the optimizer sees; what is only multiplied is so in place.

    Args:
        gradients: name -> (N, ...), finite in the rows that count, in the order of `panel.tensors`.
        momenta: name -> first moment, for tensors whose optimizer has one.
        squares: squared norms of the gradients, (N, K).
        panel: read for grad_scale, grad_noise, momentum_blend, grad_skip, grad_gate, grad_truncate
            and grad_clip.
        seeds: of each run, (N,).
        steps: optimizer steps each run has taken, (N,).
        rows: the runs that will move, (N,) bool; others are given back in any state.

    Returns:
        name -> (N, ...), the same tensors where nothing is moved.
    """
    squares = np.where(rows[:, None], squares, 0.0)
    noise, blend = panel.table("grad_noise"), panel.table("momentum_blend")
    if noise is not None or blend is not None:
        gradients = _turned(gradients, momenta, squares, noise, blend, seeds, steps, rows)
        squares = np.where(rows[:, None], squared_norms(list(gradients.values())), 0.0)
    factors = _factors(panel, squares, seeds, steps, rows)
    if factors is None:
        return gradients
    device = next(iter(gradients.values())).device
    moved = np.flatnonzero((factors != 1.0).any(0))
    if len(moved):
        every = list(gradients.values())
        touched = [every[k] for k in moved]
        columns = torch.as_tensor(factors.T[moved], dtype=touched[0].dtype, device=device)[
            :, :, None, None
        ].unbind(0)
        matching = [
            c if g.ndim == 3 else c.view(-1, *[1] * (g.ndim - 1))
            for c, g in zip(columns, touched, strict=True)
        ]
        torch._foreach_mul_(touched, matching)
    return gradients


def _turned(
    gradients: Mapping[str, Tensor],
    momenta: Mapping[str, Tensor],
    squares: FloatArray,
    noise: FloatArray | None,
    blend: FloatArray | None,
    seeds: IntArray,
    steps: IntArray,
    rows: BoolArray,
) -> dict[str, Tensor]:
    """g + noise rms(g) N(0, 1), then (1 - b) g + b m: the two that can turn a gradient; rows at neutral keep theirs."""
    nothing = np.zeros_like(squares)
    noise, blend = nothing if noise is None else noise, nothing if blend is None else blend
    result = dict(gradients)
    for row in np.flatnonzero(rows & ((noise != 0) | (blend != 0)).any(1)):
        generator = draws(seeds[row], steps[row], NOISE)
        for k, (name, g) in enumerate(gradients.items()):
            own = g[row]
            if noise[row, k] > 0:
                size = noise[row, k] * float(np.sqrt(squares[row, k] / own.numel()))
                own = own + size * torch.randn(own.shape, generator=generator).to(own)
            if blend[row, k] != 0 and name in momenta:
                own = own.lerp(momenta[name][row], float(blend[row, k]))
            if noise[row, k] > 0 or blend[row, k] != 0:
                result[name] = g.clone() if result[name] is g else result[name]
                result[name][row] = own
    return result


def _factors(
    panel: Panel, squares: FloatArray, seeds: IntArray, steps: IntArray, rows: BoolArray
) -> FloatArray | None:
    """What each tensor's gradient is multiplied by, (N, K); None if nothing is."""
    factors = panel.table("grad_scale")
    for keep in (_kept(panel, seeds, steps, rows), _truncated(panel)):
        if keep is not None:
            factors = keep if factors is None else factors * keep
    caps = panel.table("grad_clip")
    if caps is None:
        return factors
    factors = np.ones_like(squares) if factors is None else factors
    return factors * _clipped(panel, caps, squares * np.square(factors))


def _kept(panel: Panel, seeds: IntArray, steps: IntArray, rows: BoolArray) -> FloatArray | None:
    """1 where a gradient is kept and 0 where it is skipped (one draw a layer) or gated (one draw a tensor), (N, K)."""
    skip, gate = panel.table("grad_skip"), panel.table("grad_gate")
    if skip is None and gate is None:
        return None
    K, L = len(panel.tensors), int(panel.layers.max(initial=-1)) + 1
    kept = np.ones((len(seeds), K))
    asked = sum((table > 0).any(1) for table in (skip, gate) if table is not None)
    for row in np.flatnonzero(rows & (asked > 0)):
        uniform = torch.rand(
            L + K, generator=draws(seeds[row], steps[row], ROUTE), dtype=torch.float64
        ).numpy()
        for probability, drawn in ((skip, uniform[panel.layers]), (gate, uniform[L:])):
            if probability is not None:
                kept[row] *= drawn >= probability[row]
    return kept


def _truncated(panel: Panel) -> FloatArray | None:
    """0 in the first K layers, K the mean of grad_truncate over the layers, of the number of layers, rounded."""
    part = panel.per_layer("grad_truncate")
    if part is None:
        return None
    count = np.floor(part.mean(1) * part.shape[1] + 0.5)  # (N,)
    return np.where((panel.layers >= 0) & (panel.layers < count[:, None]), 0.0, 1.0)


def _clipped(panel: Panel, caps: FloatArray, squares: FloatArray) -> FloatArray:
    """min(1, cap / norm) of the gradient that each cell holds together, (N, K); exactly 1 at neutral."""
    result = np.ones_like(squares)
    for (name, _), bank in panel.banks.items():
        if name == "grad_clip":
            for cell in range(len(bank.cells)):
                members = bank.index == cell
                norm = np.sqrt(squares[:, members].sum(1))
                cap = caps[:, members][:, 0]
                factor = np.minimum(1.0, cap / np.maximum(norm, 1e-30))
                result[:, members] = np.where(cap < bank.channel.neutral, factor, 1.0)[:, None]
    return result
