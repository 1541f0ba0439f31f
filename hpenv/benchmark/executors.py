"""Executors: where independent pieces of work are computed.

A piece of work is a pure function of its arguments, and writes its own file. The executor decides
where it runs. It never changes a number: threads are set to one everywhere, and how runs are
stacked is part of the work.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

import torch

Item = TypeVar("Item")

#: Forms of an executor, for messages and help texts.
FORMS = "inline, processes[:n], ray[:address] or slurm[:partition]"
#: A piece of work that was running this many times when a worker process died is given up.
MOST_DEATHS = 5
#: Time between two looks of a worker at its parent process [seconds].
WATCH_SECONDS = 0.5


class WorkError(RuntimeError):
    """Some pieces of work failed. The message names them, and the first error is the cause."""


def run_all(
    work: Callable[[Item], Any],
    items: Sequence[Item],
    executor: str = "processes",
    *,
    name: Callable[[Item], str] = str,
) -> Iterator[tuple[Item, Any]]:
    """Computes `work(item)` for all items, and yields (item, result) in the order of completion.

    A killed worker costs the pieces of work that it and its pool were computing, which start again.
    A piece that raises does not stop the others.

    Args:
        work: a function of a module, which a worker process can import. Its arguments and results
            can be pickled.
        items: arguments, one per piece of work.
        executor: one of FORMS. `processes` has as many workers as the machine has cores.
        name: name of an item, for messages.

    Raises:
        ValueError: the executor is unknown, or its package is missing.
        WorkError: after all others are done, naming the pieces of work that failed.
    """
    kind, _, argument = executor.partition(":")
    if kind == "inline" and not argument:
        return _report(_inline(work, items), name)
    if kind == "processes":
        return _report(_processes(work, items, _num_workers(executor, argument)), name)
    if kind == "ray":
        from hpenv.benchmark.clusters import on_ray

        return _report(on_ray(work, items, argument), name)
    if kind == "slurm":
        from hpenv.benchmark.clusters import on_slurm

        return _report(on_slurm(work, items, argument), name)
    raise ValueError(f"executor must be {FORMS}; got {executor!r}")


#: What became of an item: its result, or the error that it raised.
Outcome = tuple[Item, Any, BaseException | None]


def on_one_thread(work: Callable[[Item], Any], item: Item) -> Any:
    """Computes a piece of work on one thread of torch, and restores the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return work(item)
    finally:
        torch.set_num_threads(threads)


def _report(
    outcomes: Iterator[Outcome[Item]], name: Callable[[Item], str]
) -> Iterator[tuple[Item, Any]]:
    failed: dict[str, BaseException] = {}
    for item, result, error in outcomes:
        if error is None:
            yield item, result
        else:
            failed[name(item)] = error

    if failed:
        first = next(iter(failed.values()))
        texts = {key: f"{type(error).__name__}: {error}" for key, error in failed.items()}
        raise WorkError(f"{len(failed)} pieces of work failed: {texts}") from first


def _inline(work: Callable[[Item], Any], items: Sequence[Item]) -> Iterator[Outcome[Item]]:
    for item in items:
        try:
            result = on_one_thread(work, item)
        except Exception as error:
            yield item, None, error
        else:
            yield item, result, None


def _num_workers(executor: str, argument: str) -> int:
    if not argument:
        return os.cpu_count() or 1
    if not argument.isdecimal() or int(argument) < 1:
        raise ValueError(
            f"processes must have a number of workers of at least 1, as processes:2; "
            f"got {executor!r}"
        )
    return int(argument)


def _processes(
    work: Callable[[Item], Any], items: Sequence[Item], num_workers: int
) -> Iterator[Outcome[Item]]:
    """Yields outcomes of a pool of processes. A broken pool is replaced.

    The pool holds as many pieces of work as it has workers, so that the death of a worker costs no
    more than those.
    """
    waiting, deaths = list(range(len(items)))[::-1], [0] * len(items)
    while waiting:
        pool = _pool(min(num_workers, len(waiting)))
        running: dict[Future[Any], int] = {}
        broken = False
        try:
            while (waiting or running) and not broken:
                while waiting and len(running) < num_workers:
                    index = waiting.pop()
                    running[pool.submit(on_one_thread, work, items[index])] = index

                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    index, error = running.pop(future), future.exception()
                    if isinstance(error, BrokenProcessPool):
                        broken, deaths[index] = True, deaths[index] + 1
                        if deaths[index] < MOST_DEATHS:
                            waiting.insert(0, index)  # last, apart from what ran beside it
                            continue
                    yield items[index], None if error else future.result(), error
        except BrokenProcessPool:  # of `submit`, after a worker died between two pieces of work
            waiting.insert(0, index)
        finally:
            _stop(pool)
        waiting[:0] = [index for index in running.values() if index not in waiting]


def _pool(num_workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(
        num_workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(os.getpid(),),
    )


def _stop(pool: ProcessPoolExecutor) -> None:
    """Ends a pool and its worker processes, whatever they are doing."""
    processes = list((pool._processes or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
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
