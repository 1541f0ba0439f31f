"""Opens the ranks of a program that torchrun has started, and ends all of them when one has ended.

When a process dies, torchrun sends SIGTERM to the others, and their connections to it break. Each
of them then calls the roll: a thread of every rank answers, so that the ranks that do not answer
are known by their numbers, whatever the others are doing. The lowest rank that answers says so on
stderr. All of them exit with code 1 within seconds.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from hpenv.plant.ranks import ALONE, RankError, Ranks

#: Longest wait for the other ranks within a step. They have equal work. [seconds]
STEP_SECONDS = 600
#: Longest wait for the next order: rank 0 may evaluate or learn for long. [seconds]
ORDER_SECONDS = 7 * 24 * 3600
#: Time between two looks at whether the roll is called, and the time to answer. [seconds]
LOOK_SECONDS, ANSWER_SECONDS = 0.2, 3.0
#: What a user is to do after a rank has ended.
CURE = (
    "start the same command again, in any number of processes: it continues from its newest "
    "checkpoint"
)


@contextlib.contextmanager
def open_ranks(cure: str = CURE) -> Iterator[Ranks]:
    """Opens the ranks of this program. Without torchrun, or with one process, it yields ALONE.

    At the end of the block rank 0 tells the others to stop. If a rank has ended before, the block
    never returns: the process exits with code 1, and one rank says which rank is missing.

    Args:
        cure: what a user is to do after a rank has ended.
    """
    if not dist.is_torchelastic_launched() or os.environ["WORLD_SIZE"] == "1":
        yield ALONE
        return

    store, rank, size = next(iter(rendezvous("env://")))
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group(
        backend="cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
        store=PrefixStore("hpenv/groups", store),
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=STEP_SECONDS),
    )
    orders = dist.new_group(backend="gloo", timeout=timedelta(seconds=ORDER_SECONDS))
    ranks = Ranks(rank, size, orders)
    roll = Roll(PrefixStore("hpenv/roll", store), rank, size, cure)

    def end(*_: object) -> None:
        roll.end("the program was ended with SIGTERM, while all ranks answered")

    previous = signal.signal(signal.SIGTERM, end)
    try:
        yield ranks
        ranks.tell("stop")
    except RankError as error:
        roll.end(str(error))
    except KeyboardInterrupt:
        if ranks.follows:
            os._exit(1)
        raise
    except BaseException:
        if ranks.divided is None:  # the others wait for their first order
            ranks.tell("stop")
        raise
    finally:
        roll.close()
        signal.signal(signal.SIGTERM, previous)
    dist.destroy_process_group()


class Roll:
    """Answers the roll in a thread, and calls it."""

    def __init__(self, store: Store, rank: int, size: int, cure: str) -> None:
        """Begins to answer.

        Args:
            store: a store that outlives this process.
            rank: number of this process.
            size: number of processes.
            cure: what a user is to do after a rank has ended.
        """
        self._store, self._rank, self._size, self._cure = store, rank, size, cure
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._answer, daemon=True)
        self._thread.start()

    def _answer(self) -> None:
        with contextlib.suppress(RuntimeError):  # the store has ended, with all ranks
            while not self._closed.wait(LOOK_SECONDS):
                if self._store.check(["call"]):
                    self._store.set(f"here/{self._rank}", "")
                    return

    def close(self) -> None:
        """Answers no longer."""
        self._closed.set()
        self._thread.join()

    def call(self) -> list[int]:
        """Returns the ranks that do not answer within ANSWER_SECONDS."""
        self._store.set("call", "")
        self._store.set(f"here/{self._rank}", "")
        left, until = list(range(self._size)), time.monotonic() + ANSWER_SECONDS
        while left and time.monotonic() < until:
            left = [rank for rank in left if not self._store.check([f"here/{rank}"])]
            time.sleep(LOOK_SECONDS / 4)
        return left

    def end(self, reason: str) -> None:
        """Says which ranks are missing, and ends this process with code 1."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        try:
            missing = self.call()
        except RuntimeError:
            missing, reason = [], "torchrun has ended"
        lowest = min(set(range(self._size)) - set(missing))
        if self._rank == lowest:
            names = ", ".join(f"rank {rank}" for rank in missing)
            why = f"{names} of {self._size} has ended or does not answer"
            sys.stderr.write(f"error: {why if missing else reason}; {self._cure}\n")
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)
