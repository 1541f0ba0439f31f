"""Applies the gradient channels between the backward pass and the optimizer.

The channels are exploration, noise, momentum blend, scale, skip, gate, truncate and clip. A run's
channels act on the gradient of that run alone. Random numbers are a pure function of (seed, step),
so that no generator has state to save: a snapshot continues with the same numbers.

Order: functions of channels that bring their own (`Channel.change`), exploration, noise, momentum
blend, one factor per tensor (scale times keep masks), norm clip.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from hpenv.arrays import BoolArray, FloatArray, IntArray
from hpenv.control.panel import Panel
from hpenv.optim.rules import Rates, row_scalars
from hpenv.plant.seeds import NOISE, ROUTE, step_generator
from hpenv.pretraining.exploration import explore_gradients
from hpenv.pretraining.measurements import squared_norms


def apply_gradient_channels(
    gradients: Mapping[str, Tensor],
    momenta: Mapping[str, Tensor],
    squares: FloatArray,
    panel: Panel,
    seeds: IntArray,
    steps: IntArray,
    rows: BoolArray,
) -> Mapping[str, Tensor]:
    """Returns the gradients for the optimizer. Rescaling is done in place.

    Args:
        gradients: name -> (N, ...), finite in the chosen rows, in the order of `panel.tensors`.
        momenta: name -> first moment, for tensors whose optimizer has one.
        squares: squared norms of the gradients, (N, K).
        panel: read for exploration, grad_scale, grad_noise, momentum_blend, grad_skip, grad_gate,
            grad_truncate and grad_clip.
        seeds: seed of each run, (N,).
        steps: optimizer steps each run has taken, (N,).
        rows: runs that will move, (N,) bool. The gradients of other runs come back in any state.

    Returns:
        name -> (N, ...). Tensors that no channel moves are the given ones.
    """
    others = (name for name, _ in panel.banks if name not in Rates._fields)
    if not panel.moves(others):
        return gradients
    given, gradients = gradients, _change(gradients, panel)
    if gradients is not given:
        squares = squared_norms(list(gradients.values()))
    given, gradients = (
        gradients,
        explore_gradients(gradients, squares, panel, seeds, steps, rows),
    )
    if gradients is not given:
        squares = squared_norms(list(gradients.values()))
    squares = np.where(rows[:, None], squares, 0.0)
    noise, blend = panel.table("grad_noise"), panel.table("momentum_blend")
    if noise is not None or blend is not None:
        gradients = _add_noise_and_blend(
            gradients, momenta, squares, noise, blend, seeds, steps, rows
        )
        squares = np.where(rows[:, None], squared_norms(list(gradients.values())), 0.0)

    factors = _factors(panel, squares, seeds, steps, rows)
    if factors is None:
        return gradients

    device = next(iter(gradients.values())).device
    scaled = np.flatnonzero((factors != 1.0).any(0))  # indices of tensors
    if len(scaled):
        tensors = list(gradients.values())
        targets = [tensors[k] for k in scaled]
        columns = torch.as_tensor(factors.T[scaled], dtype=targets[0].dtype, device=device)[
            :, :, None, None
        ].unbind(0)
        matching = [
            c if g.ndim == 3 else c.view(-1, *[1] * (g.ndim - 1))
            for c, g in zip(columns, targets, strict=True)
        ]
        torch._foreach_mul_(targets, matching)

    return gradients


def _change(gradients: Mapping[str, Tensor], panel: Panel) -> Mapping[str, Tensor]:
    """Applies the functions of the channels that have one. Runs at neutral keep every bit."""
    for dial in {bank.channel.name: bank.channel for bank in panel.banks.values()}.values():
        table = None if dial.change is None else panel.table(dial.name)
        if dial.change is None or table is None:
            continue

        changed = dict(gradients)
        for k in np.flatnonzero((table != dial.neutral).any(0)):
            name = panel.tensors[k]
            values = row_scalars(table[:, k], gradients[name])
            moved = values != dial.neutral
            changed[name] = torch.where(
                moved, dial.change(gradients[name], values), gradients[name]
            )
        gradients = changed
    return gradients


def _add_noise_and_blend(
    gradients: Mapping[str, Tensor],
    momenta: Mapping[str, Tensor],
    squares: FloatArray,
    noise: FloatArray | None,
    blend: FloatArray | None,
    seeds: IntArray,
    steps: IntArray,
    rows: BoolArray,
) -> dict[str, Tensor]:
    """Computes g + noise rms(g) N(0, 1), then (1 - b) g + b m.

    These two channels can turn a gradient. Rows at neutral keep their gradient.
    """
    zeros = np.zeros_like(squares)
    noise, blend = zeros if noise is None else noise, zeros if blend is None else blend

    result = dict(gradients)
    for row in np.flatnonzero(rows & ((noise != 0) | (blend != 0)).any(1)):
        generator = step_generator(seeds[row], steps[row], NOISE)
        for k, (name, g) in enumerate(gradients.items()):
            gradient = g[row]
            if noise[row, k] > 0:
                size = noise[row, k] * float(np.sqrt(squares[row, k] / gradient.numel()))
                normal = torch.randn(gradient.shape, generator=generator)
                gradient = gradient + size * normal.to(gradient)
            if blend[row, k] != 0 and name in momenta:
                gradient = gradient.lerp(momenta[name][row], float(blend[row, k]))
            if noise[row, k] > 0 or blend[row, k] != 0:
                result[name] = g.clone() if result[name] is g else result[name]
                result[name][row] = gradient

    return result


def _factors(
    panel: Panel, squares: FloatArray, seeds: IntArray, steps: IntArray, rows: BoolArray
) -> FloatArray | None:
    """Returns the factor of each tensor's gradient, (N, K), or None if no channel scales."""
    factors = panel.table("grad_scale")
    for keep in (_keep_mask(panel, seeds, steps, rows), _truncation_mask(panel)):
        if keep is not None:
            factors = keep if factors is None else factors * keep

    caps = panel.table("grad_clip")
    if caps is None:
        return factors
    factors = np.ones_like(squares) if factors is None else factors
    return factors * _clip_factors(panel, caps, squares * np.square(factors))


def _keep_mask(
    panel: Panel, seeds: IntArray, steps: IntArray, rows: BoolArray
) -> FloatArray | None:
    """Returns 0 where a gradient is skipped or gated and 1 elsewhere, (N, K).

    Skipping takes one random number per layer, gating one per tensor. None if both are at neutral.
    """
    skip, gate = panel.table("grad_skip"), panel.table("grad_gate")
    if skip is None and gate is None:
        return None

    K, L = len(panel.tensors), int(panel.layers.max(initial=-1)) + 1
    mask = np.ones((len(seeds), K))
    count = sum((table > 0).any(1) for table in (skip, gate) if table is not None)  # (N,)
    for row in np.flatnonzero(rows & (count > 0)):
        uniform = torch.rand(
            L + K, generator=step_generator(seeds[row], steps[row], ROUTE), dtype=torch.float64
        ).numpy()
        for probability, sample in ((skip, uniform[panel.layers]), (gate, uniform[L:])):
            if probability is not None:
                mask[row] *= sample >= probability[row]

    return mask


def _truncation_mask(panel: Panel) -> FloatArray | None:
    """Returns 0 in the truncated layers and 1 elsewhere, (N, K), or None at neutral.

    The first round(m L) of L layers are truncated, where m is the mean of grad_truncate over them.
    """
    fraction = panel.per_layer("grad_truncate")
    if fraction is None:
        return None
    count = np.floor(fraction.mean(1) * fraction.shape[1] + 0.5)  # (N,)
    return np.where((panel.layers >= 0) & (panel.layers < count[:, None]), 0.0, 1.0)


def _clip_factors(panel: Panel, caps: FloatArray, squares: FloatArray) -> FloatArray:
    """Returns min(1, cap / norm), (N, K), with the norm over all tensors of a cell.

    Exactly 1 at neutral.
    """
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
