"""Speed of a population that two processes share, for `python -m speed.run`."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from hpenv.benchmark.executors import open_executor, run_all
from hpenv.benchmark.workers import on_one_thread
from hpenv.pretraining.config import PretrainingConfig
from hpenv.pretraining.plant import PretrainingPlant
from speed.timing import alternate, ratio

#: Steps of a timed window.
NUM_STEPS = 20
NUM_PROCESSES = 2


class Block(NamedTuple):
    """Some rows of a population, which one process steps."""

    first_seed: int
    num_runs: int
    batch_tokens: int


def step_block(block: Block) -> None:
    """Steps the runs of a block from their start."""
    plant = _plant(block.num_runs, block.batch_tokens)
    plant.reset(range(block.first_seed, block.first_seed + block.num_runs))
    plant.advance(np.full(block.num_runs, NUM_STEPS))


@lru_cache(maxsize=2)
def _plant(num_runs: int, batch_tokens: int) -> PretrainingPlant:
    """Makes the plant of a process's blocks, once."""
    return PretrainingPlant(PretrainingConfig(batch_tokens=batch_tokens), num_runs)


def divided_population(num_envs: int, batch_tokens: int, rounds: int) -> dict[str, float]:
    """Compares single runs one after the other to a population that two processes share.

    Args:
        num_envs: runs, a multiple of two.
        batch_tokens: batch of a step of one run [tokens].
        rounds: alternating rounds.

    Returns:
        Ratio of the times: the gain of stacking, times at most two for the processes.
    """
    rows = num_envs // NUM_PROCESSES
    halves = [Block(first, rows, batch_tokens) for first in range(0, num_envs, rows)]
    singles = [Block(seed, 1, batch_tokens) for seed in range(num_envs)]

    with open_executor(f"processes:{NUM_PROCESSES}") as executor:
        functions: dict[str, Callable[[], object]] = {
            "single": lambda: [on_one_thread(step_block, each) for each in singles],
            "divided": lambda: list(run_all(step_block, halves, executor)),
        }
        return ratio(alternate(functions, rounds), "single", "divided")
