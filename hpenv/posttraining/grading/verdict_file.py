"""Stores verdicts for other processes in an SQLite file: key -> four facts as JSON."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

#: Facts of a verdict: whether the program compiles, whether it is right, whether it used its task's
#: loophole, and the codes of all loopholes that it used.
Facts = tuple[bool, bool, bool, list[str]]


class VerdictFile:
    """Stores verdicts. Several processes may share the file.

    The file is created with the first verdict.

    Raises:
        ValueError: if the path cannot be a file of verdicts.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        exists, reason = self.path.exists(), ""
        if not exists and not self.path.parent.is_dir():
            reason = f"there is no folder {str(self.path.parent)!r}"

        try:
            if exists:
                with contextlib.closing(_open(self.path)) as file:
                    file.execute("SELECT key, verdict FROM verdicts LIMIT 0")
        except sqlite3.DatabaseError as error:
            reason = str(error)

        if reason:
            raise ValueError(
                f"{str(path)!r} cannot keep verdicts: {reason}; expected a file that a grader "
                "wrote, or a new one in an existing folder"
            )

    def read(self, keys: Sequence[str]) -> dict[str, Facts]:
        """Returns the verdicts of those keys that the file has.

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
        """Stores verdicts, and replaces those with the same keys.

        Raises:
            ValueError: if the file is damaged.
        """
        if verdicts:
            rows = [(key, json.dumps(facts)) for key, facts in verdicts.items()]
            with self._file() as file, file:
                file.executemany("INSERT OR REPLACE INTO verdicts VALUES (?, ?)", rows)

    @contextlib.contextmanager
    def _file(self) -> Iterator[sqlite3.Connection]:
        """Opens the file and closes it in the end. An error about damage names the cure."""
        try:
            with contextlib.closing(_open(self.path)) as file:
                yield file
        except sqlite3.OperationalError:  # locked, or the disk is full: the content is intact
            raise
        except sqlite3.DatabaseError as error:
            raise ValueError(
                f"the file of verdicts {str(self.path)!r} is damaged ({error}), perhaps because it "
                "was copied during a write; delete it, and its programs will run again"
            ) from error


def _open(path: Path) -> sqlite3.Connection:
    """Opens the file of verdicts, and creates it if needed."""
    file = sqlite3.connect(path, timeout=60.0)
    file.execute(
        "CREATE TABLE IF NOT EXISTS verdicts (key TEXT PRIMARY KEY, verdict TEXT NOT NULL)"
    )
    return file


def _facts(text: Any) -> Facts:
    """Decodes the facts of a row."""
    try:
        compiles, correct, used_loophole, flags = facts = json.loads(text)
    except (TypeError, ValueError) as error:  # json's errors, another type, another number of facts
        raise sqlite3.DatabaseError(f"not a verdict: {text!r:.60}") from error

    are_codes = isinstance(flags, list) and all(isinstance(code, str) for code in flags)
    if not are_codes or not all(isinstance(fact, bool) for fact in facts[:3]):
        raise sqlite3.DatabaseError(f"not a verdict: {text!r:.60}")
    return compiles, correct, used_loophole, flags
