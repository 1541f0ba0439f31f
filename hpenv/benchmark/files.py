"""Files of programs: checks before a run, and atomic writes."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def check_folder(name: str, path: Path) -> None:
    """Checks that new files can be written to a folder, and leaves nothing behind.

    Args:
        name: name of the argument, for the message.
        path: the folder. It may be missing.

    Raises:
        ValueError: it is a file or lies below one, or nothing can be written there.
    """
    existing = next(
        ancestor for ancestor in (path, *path.absolute().parents) if os.path.lexists(ancestor)
    )
    if not existing.is_dir():
        raise ValueError(
            f"{name} must be a folder, or the path of a new one; "
            f"got {path}, and {existing} is no folder"
        )

    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise ValueError(
            f"{name} must be a folder that can be written; got {path}; {error.strerror}"
        ) from error


def check_file(name: str, path: Path) -> None:
    """Checks that a file can be written, and leaves nothing behind.

    Args:
        name: name of the argument, for the message.
        path: the file, which is made or replaced.

    Raises:
        ValueError: it is a folder, or its folder cannot be made or written.
    """
    if path.is_dir():
        raise ValueError(
            f"{name} must be a file, or the path of a new one; got {path}, which is a folder"
        )
    check_folder(f"the folder of {name}", path.parent)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a file atomically, so that a reader never sees half of it. Makes its folder."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
