"""Speed of a run whose batches two processes share, for `python -m speed.run`.

The other process is started as `python -m speed.ranks STORE`.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from hpenv.plant.ranks import Ranks
from hpenv.pretraining.config import PretrainingConfig
from hpenv.pretraining.divide import divide, follow
from hpenv.pretraining.plant import PretrainingPlant
from speed.timing import alternate, ratio

#: Steps of a timed window.
NUM_STEPS = 20


def division_speedup(batch_tokens: int, rounds: int) -> dict[str, float]:
    """Compares one run in one process to the same run in two, with one thread in each.

    Args:
        batch_tokens: batch of a step [tokens].
        rounds: alternating rounds.

    Returns:
        Ratio of the times: 2 if nothing but the sequences cost time.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with _two_ranks() as ranks:
            one, two = (
                PretrainingPlant(PretrainingConfig(batch_tokens=batch_tokens)) for _ in "12"
            )
            divide(two, ranks)
            times = alternate({"one": partial(_window, one), "two": partial(_window, two)}, rounds)
    finally:
        torch.set_num_threads(threads)
    return ratio(times, "one", "two")


def _window(plant: PretrainingPlant) -> None:
    plant.reset([0])
    plant.advance(np.array([NUM_STEPS]))


@contextmanager
def _two_ranks() -> Iterator[Ranks]:
    """Yields rank 0 of two processes."""
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        follower = subprocess.Popen([sys.executable, "-m", "speed.ranks", store])
        try:
            ranks = _open(0, store)
            yield ranks
            ranks.tell("stop")
            dist.destroy_process_group()
            follower.wait()
        finally:
            follower.kill()


def _open(rank: int, store: str) -> Ranks:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    return Ranks(rank, 2)


if __name__ == "__main__":
    torch.set_num_threads(1)
    follow(_open(1, sys.argv[1]))
    dist.destroy_process_group()
