"""Steps that programs of baselines share: missing searches, rows, the board, and publication."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from hpenv.benchmark.command_line import refusals
from hpenv.benchmark.executors import open_executor, run_all
from hpenv.benchmark.files import write_text
from hpenv.benchmark.instances import Suite
from hpenv.benchmark.methods import OFF, REFERENCE, Method
from hpenv.benchmark.progress import progress
from hpenv.benchmark.rows import is_done, line_of, read_rows
from hpenv.benchmark.scoring import FIELD as PUBLISHED
from hpenv.benchmark.scoring import (
    all_blocks,
    needs_reference,
    reference_method,
    run_methods,
    write_board,
)

#: Published rows of this size are compressed [characters].
LARGE = 1_000_000


class SearchWithFile(Protocol):
    """A search that writes one file when it is done."""

    @property
    def file(self) -> Path:
        """Path of the result."""

    @property
    def label(self) -> str:
        """Name in messages."""


Search = TypeVar("Search", bound=SearchWithFile)


def run_searches(
    work: Callable[[Search], None], searches: Sequence[Search], executor: str, noun: str
) -> None:
    """Runs the searches whose file is missing. A progress bar shows them under a noun."""
    left = [each for each in searches if not each.file.is_file()]
    with (
        open_executor(executor) as place,
        progress(len(searches), noun, len(searches) - len(left)) as advance,
    ):
        for each, _ in run_all(work, left, place, name=lambda each: each.label):
            advance(1, each.label)


def publish(suite: Suite, place: Path) -> None:
    """Writes the rows of a suite to the package, compressed if they are many."""
    rows = [row for row in read_rows([place / "rows"]) if row["method"] != REFERENCE]
    text = "".join(map(line_of, rows))
    for file in PUBLISHED.glob(f"{suite.name}.jsonl*"):
        file.unlink()
    if len(text) < LARGE:
        write_text(PUBLISHED / f"{suite.name}.jsonl", text)
    else:
        packed = gzip.compress(text.encode(), mtime=0)
        (PUBLISHED / f"{suite.name}.jsonl.gz").write_bytes(packed)


def rows_and_board(suite: Suite, methods: Sequence[Method], place: Path, executor: str) -> None:
    """Computes the missing rows of methods and of `off`, writes the board, and prints it."""
    methods = [Method(OFF, None), *methods]
    with refusals():
        for block in all_blocks(suite, methods, place):
            is_done(block)
    run_methods(suite, methods, place, executor=executor)
    if needs_reference(suite, place):
        run_methods(suite, [reference_method(suite)], place, executor=executor)

    _, page = write_board(suite, place)
    print((place / "board.md").read_text(encoding="utf-8"), end="")
    print(f"page: {page}")
