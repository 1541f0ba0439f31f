"""Sequences of the runs: a step's batch, the probe, and held-out text.

A batch and the probe are divided among the ranks of a program, each of which gets its share.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from hpenv.arrays import IntArray
from hpenv.lm.data import batch_starts, gather
from hpenv.plant.ranks import Ranks
from hpenv.pretraining.config import PretrainingConfig


def training_batch(
    tokens: Tensor, config: PretrainingConfig, seeds: IntArray, steps: IntArray, ranks: Ranks
) -> tuple[Tensor, Tensor]:
    """Returns inputs and targets of each run's step, (N, B, T) each, B those of this rank.

    Args:
        tokens: tokens of the training slice, (S,).
        config: sizes of a batch.
        seeds: seed of each run, (N,).
        steps: optimizer steps each run has taken, (N,).
        ranks: processes that share the batch.
    """
    shape = config.batch_size, config.sequence_length
    starts = [
        batch_starts(len(tokens), int(seed), int(step), *shape)
        for seed, step in zip(seeds, steps, strict=True)
    ]
    return gather(tokens, ranks.share(np.stack(starts)), shape[1])


def probe_batch(
    tokens: Tensor, config: PretrainingConfig, num_rows: int, ranks: Ranks
) -> tuple[Tensor, Tensor]:
    """Returns inputs and targets of one fixed batch of the probe slice for N runs, (N, B, T)."""
    starts = batch_starts(len(tokens), 0, 0, config.batch_size, config.sequence_length)
    starts = np.tile(ranks.share(starts), (num_rows, 1))
    return gather(tokens, starts, config.sequence_length)


def probe_starts(num_tokens: int, config: PretrainingConfig, ranks: Ranks) -> IntArray:
    """Returns the starts of the probe's fixed sequences, those of this rank."""
    count = config.num_probe_batches * config.batch_size
    return ranks.share(batch_starts(num_tokens, 0, 0, count, config.sequence_length))


def held_out_starts(num_tokens: int, config: PretrainingConfig) -> IntArray:
    """Returns the starts of the held-out sequences, evenly spaced in the slice."""
    T = config.sequence_length
    count = min(max(1, config.eval_tokens // T), (num_tokens - 1) // T)
    return np.linspace(0, num_tokens - T - 1, count).astype(np.int64)
