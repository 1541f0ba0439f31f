"""Measurements of a pretraining run, and the statistics of gradients and activations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from hpenv.arrays import BoolArray, FloatArray
from hpenv.plant.measurements import Measurement, step_losses
from hpenv.plant.ranks import ALONE, Ranks
from hpenv.plant.step_measurements import NUM_COMPARED_STEPS, STEP_MEASUREMENTS

#: Measurement of the cells' effects -> its memory [steps]. 0: the steps of the window.
EFFECT_MEMORIES = {
    "cell_effect": 0,
    "cell_effect_16": 16,
    "cell_effect_64": 64,
    "cell_effect_256": 256,
}

#: Measurements of a pretraining run. Gradients are those before the optimizer.
MEASUREMENTS = (
    Measurement("train_loss", "nats/token", "training loss", over="mean"),
    step_losses("nats/token"),
    Measurement("probe_loss", "nats/token", "loss on the fixed probe batches", group="probe"),
    Measurement(
        "same_batch_loss",
        "nats/token",
        "loss of the last batch after the update on that batch",
        group="same_batch",
    ),
    Measurement("layer_gradient_norm", "1", "L2 norm of the layer's gradient", per="layer"),
    Measurement(
        "layer_gradient_max",
        "1",
        "largest magnitude of the layer's gradient",
        per="layer",
        group="gradient_max",
    ),
    Measurement(
        "layer_activation_mean",
        "1",
        "mean of the residual stream after the layer",
        per="layer",
        group="activations",
    ),
    Measurement(
        "layer_activation_variance",
        "1",
        "variance of the residual stream after the layer",
        per="layer",
        group="activations",
    ),
    Measurement(
        "layer_saturation",
        "1",
        "fraction of the layer's feed-forward units that are saturated",
        per="layer",
        group="activations",
    ),
    Measurement(
        "layer_update_ratio",
        "1",
        "norm of the layer's update / norm of its weights after it, mean over the window's last "
        f"{NUM_COMPARED_STEPS} steps",
        per="layer",
        over="mean",
        group="updates",
        num_steps=NUM_COMPARED_STEPS,
    ),
    Measurement(
        "update_gain",
        "1",
        "decrease of the last batch's loss by its own update / the decrease that its gradient "
        "promised: 1 - eta h / 2, of which 0 is the edge of stability, from two losses",
        group="gain",
        num_steps=1,
    ),
    Measurement(
        "probe_gain",
        "1",
        "decrease of the loss of one fixed batch of the probe by the window's last update / the "
        "decrease that the gradient of that loss promised",
        group="probe_gain",
        num_steps=1,
    ),
    Measurement(
        "start_distance",
        "1",
        "norm of the optimizer group's change since the run began / norm of its initial weights",
        per="group",
        group="distance",
    ),
    *STEP_MEASUREMENTS,
    *(
        Measurement(
            name,
            "nats/token",
            "decrease of the probe loss per unit of each cell's position, to first order, over "
            + (f"the last {memory} steps or so" if memory else "the window"),
            per="cell",
            group=name,
        )
        for name, memory in EFFECT_MEMORIES.items()
    ),
)


#: A gradient of this norm counts as not finite. Scaled by a hundred, its square is still a float32.
LARGEST_NORM = 1e17


def divergence_reasons(loss: FloatArray, norm: FloatArray, limit: float) -> dict[str, BoolArray]:
    """Returns the reasons for which rows with this loss and norm diverge. See Runs.

    Args:
        loss: (N,) [nats per token].
        norm: L2 norm of the gradient, (N,).
        limit: largest loss [nats per token].
    """
    return {
        "loss_nonfinite": ~np.isfinite(loss),
        "gradient_nonfinite": ~(norm < LARGEST_NORM),  # also True for NaN
        "loss_above_limit": loss > limit,
    }


def squared_norms(gradients: Sequence[Tensor]) -> FloatArray:
    """Returns the squared L2 norm of the gradient of every run and tensor, (N, K)."""
    return gradient_sizes(gradients, maxima=False)[0]


def gradient_sizes(
    gradients: Sequence[Tensor], maxima: bool
) -> tuple[FloatArray, FloatArray | None]:
    """Returns squared L2 norms and, with `maxima`, largest magnitudes of the gradients.

    Both are (N, K): one number per run and tensor.
    """
    norms, high, low = [], [], []
    for g in gradients:  # all reductions of one tensor before the next: it is still in the cache
        entries = tuple(range(1, g.ndim))
        norms.append(torch.linalg.vector_norm(g, dim=entries))
        if maxima:
            # Two reductions without a copy. The infinity norm of torch.linalg and torch.aminmax are
            # five to ten times slower on a CPU.
            high.append(torch.amax(g, entries))
            low.append(torch.amin(g, entries))

    squares = np.square(torch.stack(norms, 1).cpu().numpy().astype(np.float64))
    if not maxima:
        return squares, None
    largest = torch.maximum(torch.stack(high, 1), -torch.stack(low, 1))
    return squares, largest.double().cpu().numpy()


def finite(values: FloatArray) -> FloatArray:
    """Returns values with NaN as 0 and infinities as the largest float32.

    Only runs that have diverged have such values.
    """
    if np.isfinite(values).all():
        return values
    limit = float(np.finfo(np.float32).max)
    return np.nan_to_num(values, nan=0.0, posinf=limit, neginf=-limit)


def layer_statistics(
    squares: FloatArray,
    maxima: FloatArray | None,
    activations: Sequence[Tensor] | None,
    in_layer: FloatArray,
    ranks: Ranks = ALONE,
) -> dict[str, FloatArray]:
    """Returns statistics of each layer, (N, L) each, finite.

    Args:
        squares: squared norms of the gradients, (N, K).
        maxima: largest magnitudes of the gradients, (N, K), if they are measured.
        activations: those of each layer, (3, N) each, as `model.hidden_states` measures them.
        in_layer: 1 where a tensor belongs to a layer and 0 elsewhere, (K, L).
        ranks: processes whose activations are those of shares of one batch.
    """
    values = {"layer_gradient_norm": np.sqrt(finite(squares) @ in_layer)}
    if maxima is not None:
        values["layer_gradient_max"] = (finite(maxima)[:, :, None] * in_layer).max(1)
    if activations is not None:
        stacked = _pool(torch.stack(list(activations), -1).double().cpu().numpy(), ranks)
        stacked = finite(stacked)  # (3, N, L)
        names = ("layer_activation_mean", "layer_activation_variance", "layer_saturation")
        values |= dict(zip(names, stacked, strict=True))
    return values


def _pool(statistics: FloatArray, ranks: Ranks) -> FloatArray:
    """Returns mean, variance and saturation, (3, N, L), over all ranks, of those of each rank."""
    if ranks.size == 1:
        return statistics
    mean, variance, saturation = statistics
    moments = ranks.average_array(np.stack([mean, variance + np.square(mean), saturation]))
    moments[1] = np.maximum(moments[1] - np.square(moments[0]), 0.0)
    return moments


def momentum_norm(states: Iterable[Mapping[str, Tensor]], num_rows: int) -> FloatArray:
    """Returns the norm of all first moments of each run, (N,). 0 without any."""
    moments = [state["momentum"] for state in states if "momentum" in state]
    if not moments:
        return np.zeros(num_rows)
    norms = torch.stack([torch.linalg.vector_norm(m.flatten(1), dim=1) for m in moments])
    return norms.norm(dim=0).double().cpu().numpy()
