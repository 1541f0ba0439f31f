"""Plants of pretraining, and comparisons of two of them."""

from dataclasses import replace

import numpy as np
import torch

from hpenv.optim.optimizers import OPTIMIZERS
from hpenv.pretraining.config import PretrainingConfig
from hpenv.pretraining.plant import PretrainingPlant

TINY = PretrainingConfig(data="synthetic", batch_tokens=64, sequence_length=16, eval_tokens=2048)
GROUPS = ("embedding", "unembedding", "matrix")
RUN = (("lr", "run"), ("weight_decay", "run"))
OPTIMIZER = (("lr", "optimizer"), ("weight_decay", "optimizer"))
EVERY_OPTIMIZER = sorted(OPTIMIZERS)


def make(num_rows=1, seeds=None, channels=RUN, **changes):
    plant = PretrainingPlant(replace(TINY, **changes), num_rows, channels)
    plant.reset(list(range(100, 100 + num_rows)) if seeds is None else seeds)
    return plant


def advance(plant, *num_steps):
    return plant.advance(
        np.array(num_steps if len(num_steps) == plant.num_rows else num_steps * plant.num_rows)
    )


def state_of(plant, row=None):
    """Copies of every tensor of the plant, or of one row of them."""
    tensors = plant.snapshot().tensors
    return {name: value if row is None else value[row] for name, value in tensors.items()}


def assert_same(left, right, but=()):
    assert left.keys() == right.keys()
    different = [
        name
        for name in left
        if not torch.equal(left[name], right[name]) and not name.startswith(but)
    ]
    assert different == []


def assert_same_window(left, right, row=slice(None), other=slice(None)):
    for name, value in left.arrays().items():
        assert np.array_equal(value[row], right.arrays()[name][other]), name
