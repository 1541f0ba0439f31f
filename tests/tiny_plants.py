"""Plants of a few thousand weights, for the tests over the table of channels.

They train in milliseconds a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from hpenv.control.channel import DEAD_ZONE
from hpenv.control.channels import channels_of
from hpenv.lm import architecture
from hpenv.lm.architecture import GPTConfig
from hpenv.plant.protocol import Window
from hpenv.pretraining.config import PretrainingConfig
from hpenv.pretraining.plant import PretrainingPlant

_SHAPE: dict[str, Any] = {"n_layer": 3, "n_head": 2, "hidden_size": 24}
PRESETS = {
    "relu2": GPTConfig(**_SHAPE, n_embd=16),
    "swiglu": GPTConfig(**_SHAPE, n_embd=16, feed_forward="swiglu"),
    "everything": GPTConfig(
        **_SHAPE,
        n_embd=32,
        feed_forward="swiglu",
        value_embeddings=True,
        residual_lambdas=True,
        window_pattern="SL",
    ),
}
CHANNELS = channels_of("pretraining")
PAIRS = tuple((name, scope) for name, found in CHANNELS.items() for scope in found.scopes)
#: Every channel at every scope it can have together with others: a multiplier at all, the others at
#: their finest.
TOGETHER = tuple(
    (n, s) for n, s in PAIRS if CHANNELS[n].neutral == 1.0 or s == CHANNELS[n].scopes[-1]
)
#: Every channel once, at its finest scope.
FINEST = tuple((name, found.scopes[-1]) for name, found in CHANNELS.items())
ALL_GROUPS = (
    "probe",
    "momentum",
    "gradient_max",
    "activations",
    "same_batch",
    "updates",
    "alignment",
    "step_losses",
)


def make(
    num_rows: int = 2,
    channels: Sequence[tuple[str, str]] = (),
    preset: str = "relu2",
    groups: Sequence[str] | None = None,
    stirred: bool = True,
    **changes: Any,
) -> PretrainingPlant:
    """A plant of one of PRESETS whose runs have the seeds 100, 101, ..."""
    arguments: dict[str, Any] = {
        "data": "synthetic",
        "batch_tokens": 16,
        "sequence_length": 8,
        "num_probe_batches": 1,
        "eval_tokens": 64,
        "optimizer": "adamw",
    }
    with patch.dict(architecture.PRESETS, PRESETS):
        plant = PretrainingPlant(
            PretrainingConfig(preset=preset, **arguments | changes), num_rows, channels
        )
    if groups is not None:
        plant.set_measured_groups(groups)
    plant.reset(list(range(100, 100 + num_rows)))
    if stirred:
        stir(plant)
    return plant


def stir(plant: PretrainingPlant) -> None:
    """Makes the weights that begin at or near zero count.

    Every weight then has a gradient from the first step.
    """
    for name, weight in plant.weights.items():
        if name == "unembedding" or not weight.any():
            noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(len(name)))
            weight.copy_(noise * 0.2)


def advance(plant: PretrainingPlant, *num_steps: int) -> Window:
    """Every run by this number of steps, or each by its own."""
    return plant.advance(
        np.array(num_steps if len(num_steps) == plant.num_rows else num_steps * plant.num_rows)
    )


def state_of(plant: PretrainingPlant, row: int | None = None) -> dict[str, torch.Tensor]:
    """Copies of all that a plant holds for one row or for all, but the panel's positions."""
    tensors = plant.snapshot().tensors
    return {
        k: v.clone() if row is None else v[row].clone()
        for k, v in tensors.items()
        if k != "rows/panel"
    }


def different(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> list[str]:
    """Names whose tensors are not bitwise equal.

    Effects of cells are left out: plants with other cells have other numbers of them.
    """
    assert left.keys() == right.keys()
    names = [name for name in left if not name.startswith("window/cell_effect")]
    return [name for name in names if not torch.equal(left[name], right[name])]


def kept_neutral(plant: PretrainingPlant, generator: np.random.Generator) -> np.ndarray:
    """One position per column that leaves it at neutral.

    That is anything up to the dead zone's end if the column is one-sided.
    """
    one_sided = np.array(
        [bank.channel.one_sided for bank in plant.panel.banks.values() for _ in bank.cells],
        dtype=bool,
    )
    return np.where(one_sided, generator.uniform(-1.0, DEAD_ZONE, len(one_sided)), 0.0)
