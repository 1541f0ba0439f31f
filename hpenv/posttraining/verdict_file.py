"""A file that keeps verdicts from one process to the next: SQLite, key -> four facts as JSON."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

#: Whether a program compiles, is right and used its task's loophole, and the codes of all loopholes
#: that it used.
Facts = tuple[bool, bool, bool, list[str]]


class VerdictFile:
    """Keeps verdicts; several processes may share the file.

    Raises:
        ValueError: for what can be no file of verdicts. No file is made before there is a verdict
            to keep.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        is_there = self.path.exists()
        reason = (
            ""
            if is_there or self.path.parent.is_dir()
            else f"there is no folder {str(self.path.parent)!r}"
        )
        try:
            if is_there:
                with contextlib.closing(_opened(self.path)) as file:
                    file.execute("SELECT key, verdict FROM verdicts LIMIT 0")
        except sqlite3.DatabaseError as error:
            reason = str(error)
        if reason:
            raise ValueError(
                f"{str(path)!r} cannot keep verdicts: {reason}; expected a file that a grader wrote, or a new one in "
                "a folder that exists"
            )

    def read(self, keys: Sequence[str]) -> dict[str, Facts]:
        """Reads the verdicts that are there.

        Raises:
            ValueError: if the file is damaged.
        """
        found: dict[str, Facts] = {}
        if not keys or not self.path.exists():
            return found
        with self._file() as file:
            for key in keys:
                row = file.execute("SELECT verdict FROM verdicts WHERE key = ?", (key,)).fetchone()
                if row is not None:
                    found[key] = _facts(row[0])
        return found

    def write(self, verdicts: Mapping[str, Facts]) -> None:
        """Adds verdicts, in the place of those of the same keys.

        Raises:
            ValueError: if the file is damaged.
        """
        if verdicts:
            rows = [(key, json.dumps(facts)) for key, facts in verdicts.items()]
            with self._file() as file, file:
                file.executemany("INSERT OR REPLACE INTO verdicts VALUES (?, ?)", rows)

    @contextlib.contextmanager
    def _file(self) -> Iterator[sqlite3.Connection]:
        """The file, closed in the end; damage is told by what to do."""
        try:
            with contextlib.closing(_opened(self.path)) as file:
                yield file
        except sqlite3.OperationalError:  # locked, or no room: nothing is wrong with what it holds
            raise
        except sqlite3.DatabaseError as error:
            what = f"the file of verdicts {str(self.path)!r} is damaged ({error}), as by a copy made while it was"
            raise ValueError(
                f"{what} written to; delete it, and its programs are run again"
            ) from error


def _opened(path: Path) -> sqlite3.Connection:
    """The file of verdicts, made if need be."""
    file = sqlite3.connect(path, timeout=60.0)
    file.execute(
        "CREATE TABLE IF NOT EXISTS verdicts (key TEXT PRIMARY KEY, verdict TEXT NOT NULL)"
    )
    return file


def _facts(text: Any) -> Facts:
    """The facts of a row."""
    try:
        compiles, correct, channel, flags = facts = json.loads(text)
    except (TypeError, ValueError) as error:  # json's errors, another type, another number of facts
        raise sqlite3.DatabaseError(f"{text!r:.60} is no verdict") from error
    are_codes = isinstance(flags, list) and all(isinstance(code, str) for code in flags)
    if not are_codes or not all(isinstance(fact, bool) for fact in facts[:3]):
        raise sqlite3.DatabaseError(f"{text!r:.60} is no verdict")
    return compiles, correct, channel, flags
