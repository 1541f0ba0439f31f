"""Workers of executors: this process, and a pool of processes on this machine."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Protocol, TypeVar

import torch

Item = TypeVar("Item")
#: What became of an item: its result, or the error that it raised.
Outcome = tuple[Item, Any, BaseException | None]

#: A piece of work that was running this many times when a worker process died is given up.
MOST_DEATHS = 5
#: Time between two looks of a worker at its parent process [seconds].
WATCH_SECONDS = 0.5


class Executor(Protocol):
    """A place where pieces of work are computed. It keeps its workers until it is closed."""

    def outcomes(self, work: Callable[[Item], Any], items: Sequence[Item]) -> Iterator[Outcome]:
        """Computes `work(item)` for all items. Yields outcomes in the order of completion."""

    def close(self) -> None:
        """Ends the workers, whatever they are doing."""


def _portable(work: Callable[[Item], Any], item: Item) -> Any:
    """Computes a piece of work in a worker. An error that cannot be sent becomes its text."""
    try:
        return on_one_thread(work, item)
    except Exception as error:
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # whatever the error's own class raises when it is rebuilt
            raise RuntimeError("".join(traceback.format_exception(error))) from None
        raise


def on_one_thread(work: Callable[[Item], Any], item: Item) -> Any:
    """Computes a piece of work on one thread of torch, and restores the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return work(item)
    finally:
        torch.set_num_threads(threads)


class Inline:
    """This process, one piece of work after the other."""

    def outcomes(self, work: Callable[[Item], Any], items: Sequence[Item]) -> Iterator[Outcome]:
        """See Executor."""
        for item in items:
            try:
                result = on_one_thread(work, item)
            except Exception as error:
                yield item, None, error
            else:
                yield item, result, None

    def close(self) -> None:
        """See Executor."""


class Processes:
    """A pool of processes on this machine. A pool of which a worker died is replaced.

    The pool is given as many pieces of work as it has workers, so that a death costs no more.
    """

    def __init__(self, num_workers: int) -> None:
        self._num_workers = num_workers
        self._pool: ProcessPoolExecutor | None = None

    def outcomes(self, work: Callable[[Item], Any], items: Sequence[Item]) -> Iterator[Outcome]:
        """See Executor."""
        waiting, deaths = list(range(len(items)))[::-1], [0] * len(items)
        running: dict[Future[Any], int] = {}
        pools: dict[int, ProcessPoolExecutor | None] = {}

        while waiting or running:
            while waiting and len(running) < self._num_workers:
                index = waiting.pop()
                future = self._submit(work, items[index])
                if future is None:  # a worker died between two pieces of work
                    waiting.append(index)
                    break
                running[future], pools[index] = index, self._pool

            for future in wait(running, return_when=FIRST_COMPLETED).done:
                index, error = running.pop(future), future.exception()
                if isinstance(error, BrokenProcessPool):
                    if self._pool is pools.pop(index):  # not one that has replaced it
                        self.close()
                    deaths[index] += 1
                    if deaths[index] < MOST_DEATHS:
                        waiting.insert(0, index)  # last, apart from what ran beside it
                        continue
                yield items[index], None if error else future.result(), error

    def _submit(self, work: Callable[[Item], Any], item: Item) -> Future[Any] | None:
        """Starts a piece of work. Returns None if the pool was broken, and drops it."""
        if self._pool is None:
            self._pool = ProcessPoolExecutor(
                self._num_workers,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_start_worker,
                initargs=(os.getpid(),),
            )
        try:
            return self._pool.submit(_portable, work, item)
        except BrokenProcessPool:
            self.close()
            return None

    def close(self) -> None:
        """See Executor."""
        if self._pool is None:
            return
        processes = list((self._pool._processes or {}).values())
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._pool = None
        for process in processes:
            process.terminate()
        for process in processes:
            process.join(5)


def _start_worker(parent: int) -> None:
    """Leaves Ctrl-C to the parent process, and ends with it even if SIGKILL ended it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
