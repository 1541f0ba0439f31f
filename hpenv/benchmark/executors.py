"""Executors: where independent pieces of work are computed.

A piece of work is a pure function of its arguments, and writes its own file or returns a small
result. The executor decides where it runs. It never changes a number: every piece has one thread,
and how runs are stacked is part of the work.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from hpenv.benchmark.clusters import Ray, Slurm
from hpenv.benchmark.workers import Executor, Inline, Item, Processes

#: Forms of an executor, for messages and help texts.
FORMS = "inline, processes[:n], ray[:address] or slurm[:partition]"


class WorkError(RuntimeError):
    """Some pieces of work failed. The message names them, and the first error is the cause."""


@contextlib.contextmanager
def open_executor(form: str = "processes") -> Iterator[Executor]:
    """Makes an executor, and closes it at the end of the block.

    Args:
        form: one of FORMS. `processes` has as many workers as the machine has cores.

    Raises:
        ValueError: the form is unknown, or its package is missing.
    """
    executor = _make(form)
    try:
        yield executor
    finally:
        executor.close()


def _make(form: str) -> Executor:
    kind, _, argument = form.partition(":")
    if kind == "inline" and not argument:
        return Inline()
    if kind == "processes":
        return Processes(_num_workers(form, argument))
    if kind == "ray":
        return Ray(argument)
    if kind == "slurm":
        return Slurm(argument)
    raise ValueError(f"executor must be {FORMS}; got {form!r}")


def run_all(
    work: Callable[[Item], Any],
    items: Sequence[Item],
    executor: Executor,
    *,
    name: Callable[[Item], str] = str,
) -> Iterator[tuple[Item, Any]]:
    """Computes `work(item)` for all items, and yields (item, result) in the order of completion.

    A killed worker costs only the pieces of work that were running, which start again. A piece that
    raises does not stop the others.

    Args:
        work: a function of a module, which a worker process can import. Its arguments and results
            can be pickled.
        items: arguments, one per piece of work.
        executor: where.
        name: name of an item, for messages.

    Raises:
        WorkError: after all others are done, naming the pieces of work that failed.
    """
    failed: dict[str, BaseException] = {}
    for item, result, error in executor.outcomes(work, items):
        if error is None:
            yield item, result
        else:
            failed[name(item)] = error

    if failed:
        first = next(iter(failed.values()))
        texts = {key: f"{type(error).__name__}: {error}" for key, error in failed.items()}
        raise WorkError(f"{len(failed)} pieces of work failed: {texts}") from first


def _num_workers(form: str, argument: str) -> int:
    if not argument:
        return os.cpu_count() or 1
    if not argument.isdecimal() or int(argument) < 1:
        raise ValueError(
            f"processes must have a number of workers of at least 1, as processes:2; got {form!r}"
        )
    return int(argument)
