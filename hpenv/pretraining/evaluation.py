"""Losses of N runs on fixed sequences of one slice of the text.

`losses` is a function of inputs and targets, (N, B, T) each. The weights and everything else that
it needs are bound to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpenv.arrays import FloatArray, IntArray
from hpenv.lm.data import gather
from hpenv.lm.model import mean_losses

#: Sequences per forward pass of a measurement. Bounds its memory.
MEASURE_SEQUENCES = 64

Losses = Callable[[Tensor, Tensor], Tensor]


def _batches(
    tokens: Tensor, starts: IntArray, length: int, num_rows: int
) -> Iterator[tuple[Tensor, Tensor]]:
    for first in range(0, len(starts), MEASURE_SEQUENCES):
        part = starts[first : first + MEASURE_SEQUENCES]
        yield gather(tokens, np.tile(part, (num_rows, 1)), length)


def mean_loss(
    losses: Losses, tokens: Tensor, starts: IntArray, length: int, num_rows: int
) -> FloatArray:
    """Returns each run's mean loss, (N,) [nats per token].

    Args:
        losses: mean loss of each run, (N,) [nats per token].
        tokens: tokens of the slice, (S,).
        starts: first token of each sequence, (n,).
        length: of a sequence [tokens].
        num_rows: N.
    """
    total = np.zeros(num_rows)
    for inputs, targets in _batches(tokens, starts, length, num_rows):
        total += losses(inputs, targets).double().cpu().numpy() * inputs.shape[1]
    return total / len(starts)


def loss_gradients(
    losses: Losses,
    leaves: Sequence[Tensor],
    tokens: Tensor,
    starts: IntArray,
    length: int,
    num_rows: int,
) -> list[Tensor]:
    """Returns the gradients of each run's mean loss, one per leaf. See `mean_loss`.

    Args:
        losses: loss of each target, (N, B T) [nats].
        leaves: weights and dials that the losses depend on, (N, ...) each.
        tokens: tokens of the slice, (S,).
        starts: first token of each sequence, (n,).
        length: of a sequence [tokens].
        num_rows: N.
    """
    total = [torch.zeros_like(leaf) for leaf in leaves]
    for inputs, targets in _batches(tokens, starts, length, num_rows):
        with torch.enable_grad():
            loss = losses(inputs, targets).sum() / (len(starts) * length)
            found = torch.autograd.grad(loss, leaves, allow_unused=True)
        for gradient, part in zip(total, found, strict=True):
            if part is not None:
                gradient += part
    return total


def bits_per_byte(
    losses: Losses,
    tokens: Tensor,
    starts: IntArray,
    length: int,
    num_rows: int,
    token_bytes: Tensor,
) -> FloatArray:
    """Returns each run's bits per byte of text, (N,).

    Args:
        losses: loss of each target, (N, B T) [nats].
        tokens: tokens of the slice, (S,).
        starts: first token of each sequence, (n,).
        length: of a sequence [tokens].
        num_rows: N.
        token_bytes: bytes that each token of the vocabulary stands for, (V,). Tokens that stand
            for no byte add neither nats nor bytes.
    """
    nats, size = np.zeros(num_rows), 0.0
    for inputs, targets in _batches(tokens, starts, length, num_rows):
        counted = token_bytes[targets[0].flatten()]
        nats += (losses(inputs, targets).double() * (counted > 0)).sum(1).cpu().numpy()
        size += float(counted.double().sum())
    return nats / (math.log(2.0) * size)


@lru_cache(maxsize=1)
def _compile_mean_losses() -> Callable[..., Tensor]:
    return torch.compile(mean_losses)


def compiled_losses(*arguments: Any) -> Tensor:
    """Calls the compiled `mean_losses`, which all plants share.

    Unlike the compiled function, this one can be pickled with a plant.
    """
    return _compile_mean_losses()(*arguments)
