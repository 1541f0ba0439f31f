"""Exploration noise: Gaussian noise on gradients, or on weights, in units of their size.

AdaptiveRL, section 2: g <- g + sigma RMS(g) xi, with xi ~ N(0, I) and the root mean square of each
tensor. The paper adds a small constant to the size of the noise, which matters for a gradient of
zero alone and is left out. The noise of a step is a function of (seed, step). Rows whose value is 0
keep every bit.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from hpenv.arrays import BoolArray, FloatArray, IntArray
from hpenv.control.panel import Panel
from hpenv.plant.seeds import EXPLORATION, step_generator
from hpenv.pretraining.measurements import squared_norms


def explore_gradients(
    gradients: Mapping[str, Tensor],
    squares: FloatArray,
    panel: Panel,
    seeds: IntArray,
    steps: IntArray,
    rows: BoolArray,
) -> Mapping[str, Tensor]:
    """Returns the gradients with the noise of the channel `exploration`.

    Args:
        gradients: name -> (N, ...), in the order of `panel.tensors`. They stay as they are.
        squares: squared norms of the gradients, (N, K).
        panel: read for `exploration`.
        seeds: seed of each run, (N,).
        steps: optimizer steps each run has taken, (N,).
        rows: runs that will move, (N,) bool.

    Returns:
        name -> (N, ...). Tensors without noise are the given ones.
    """
    sizes = panel.table("exploration")
    if sizes is None:
        return gradients
    result = dict(gradients)
    for row in np.flatnonzero(rows & (sizes > 0).any(1)):
        generator = step_generator(seeds[row], steps[row], EXPLORATION)
        for k, (name, g) in enumerate(gradients.items()):
            if sizes[row, k] > 0:
                result[name] = g.clone() if result[name] is g else result[name]
                _add_noise(result[name][row], sizes[row, k], squares[row, k], generator)
    return result


def explore_weights(
    weights: Mapping[str, Tensor], panel: Panel, seeds: IntArray, steps: IntArray, rows: BoolArray
) -> None:
    """Adds the noise of the channel `weight_noise` to the weights, in place.

    w <- w + sigma RMS(w) xi after the update of a step. See `explore_gradients`.
    """
    sizes = panel.table("weight_noise")
    if sizes is None:
        return
    squares = squared_norms(list(weights.values()))
    for row in np.flatnonzero(rows & (sizes > 0).any(1)):
        generator = step_generator(seeds[row], steps[row], EXPLORATION)
        for k, weight in enumerate(weights.values()):
            if sizes[row, k] > 0:
                _add_noise(weight[row], sizes[row, k], squares[row, k], generator)


def _add_noise(values: Tensor, size: float, square: float, generator: torch.Generator) -> None:
    """Adds size * rms * N(0, 1) in place, with the squared norm of the values given."""
    scale = size * float(np.sqrt(square / values.numel()))
    values.add_(torch.randn(values.shape, generator=generator).to(values), alpha=scale)
