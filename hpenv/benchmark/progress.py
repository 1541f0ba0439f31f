"""Output of a program to a person: its configuration, and a progress bar."""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from typing import Any

Advance = Callable[..., None]

#: Time between two lines of progress where stderr is not a terminal [seconds].
LINE_SECONDS = 30.0


@contextmanager
def progress(total: float, description: str, completed: float = 0) -> Iterator[Advance]:
    """Shows a progress bar on stderr, or a line now and then if that is no terminal.

    A log file gets a line after LINE_SECONDS at the earliest. So does a terminal without rich.

    Args:
        total: amount of work, in any unit.
        description: name of the work.
        completed: amount of work that is already done.

    Yields:
        `advance(amount=1, text="")`: moves the bar, and shows a text after it.
    """
    if not sys.stderr.isatty() or importlib.util.find_spec("rich") is None:
        yield _lines(total, description, completed)
        return

    from rich.console import Console
    from rich.markup import escape
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
    )

    with Progress(*columns, console=Console(stderr=True)) as bar:
        title = escape(description)
        task = bar.add_task(
            title,
            total=total,
            completed=completed,  # type: ignore[arg-type]
            text="",
        )

        def advance(amount: float = 1.0, text: str = "") -> None:
            bar.update(task, advance=amount, text=escape(text))

        yield advance


def _lines(total: float, description: str, completed: float) -> Advance:
    """Returns a function that prints a line if the last one is LINE_SECONDS ago."""
    done, last = completed, time.monotonic()

    def advance(amount: float = 1.0, text: str = "") -> None:
        nonlocal done, last
        done += amount
        if time.monotonic() - last < LINE_SECONDS:
            return
        last = time.monotonic()
        words = f"{description}: {done:g} of {total:g}" + (f", {text}" if text else "")
        print(words, file=sys.stderr, flush=True)

    return advance


def describe(config: Any) -> None:
    """Prints a configuration, a dataclass or a mapping, as JSON. A terminal gets colors."""
    values = (
        asdict(config) if is_dataclass(config) and not isinstance(config, type) else dict(config)
    )
    text = json.dumps(values, indent=1, default=str)
    if not sys.stdout.isatty():
        print(text, flush=True)
        return
    from rich.console import Console

    Console().print_json(text)
