"""Output of a program to a person: its configuration, and a progress bar."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from typing import Any

Advance = Callable[..., None]


@contextmanager
def progress(total: float, description: str, completed: float = 0) -> Iterator[Advance]:
    """Shows a progress bar on stderr, or nothing if stderr is not a terminal or rich is missing.

    Args:
        total: amount of work, in any unit.
        description: name of the work.
        completed: amount of work that is already done.

    Yields:
        `advance(amount=1, text="")`: moves the bar, and shows a text after it.
    """
    if not sys.stderr.isatty() or importlib.util.find_spec("rich") is None:
        yield lambda amount=1.0, text="": None
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
