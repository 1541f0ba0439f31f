"""Two ranks for tests: the test process, and one that follows it.

The second is started as `python -m tests.two_ranks STORE`.
"""

import os
import subprocess
import sys
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from hpenv.plant.ranks import Ranks
from hpenv.pretraining.divide import follow
from tests.paths import ROOT

#: Longest wait for the other rank [seconds].
WAIT = timedelta(seconds=120)


def _open(rank: int, store: str) -> Ranks:
    dist.init_process_group(
        "gloo", store=dist.FileStore(store, 2), rank=rank, world_size=2, timeout=WAIT
    )
    return Ranks(rank, 2)


@contextmanager
def two_ranks(folder, code=0):
    """Yields rank 0 of two. The other exits with this code: not 0 if it ends before."""
    store = str(folder / "store")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    follower = subprocess.Popen(
        [sys.executable, "-m", "tests.two_ranks", store], cwd=ROOT, env=environment
    )
    try:
        ranks = _open(0, store)
        try:
            yield ranks
            if code == 0:
                ranks.tell("stop")
        finally:
            dist.destroy_process_group()
        assert follower.wait(WAIT.total_seconds()) == code
    finally:
        follower.kill()
        follower.wait()


if __name__ == "__main__":
    torch.set_num_threads(1)
    try:
        follow(_open(1, sys.argv[1]))
    finally:  # also after an error: a process that ends with gloo's threads alive may be aborted
        dist.destroy_process_group()
