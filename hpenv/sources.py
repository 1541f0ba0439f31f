"""Sources of text: the standard library, text and parquet files, and datasets, each as the bytes
that it holds.

Every call reads its source again. What is remembered is the standard library's text alone, which
nobody rewrites.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import sysconfig
import tempfile
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

STDLIB_SEED = 10  # of the order of its files; of 60 tried on Python 3.11 to 3.13, the one whose slices are most alike
# Folders of the standard library left out: tests (not installed everywhere), other people's
# packages, and `pydoc_data`, whose one generated file is larger than the probe slice.
SKIPPED_FOLDERS = frozenset(
    {"test", "tests", "idle_test", "site-packages", "dist-packages", "pydoc_data"}
)

DATASET_FORM = "'hf:<name or path>[:<split>[:<column>]]'"


@dataclass(frozen=True)
class Content:
    """Bytes of a source. Two of them are equal if their bytes are, whatever their names.

    Attributes:
        sha256: hex digest of the bytes.
        name: of the source, as the user wrote it.
        raw: the bytes, 1-D uint8.
    """

    sha256: str
    name: str = field(compare=False)
    raw: NDArray[np.uint8] = field(compare=False, repr=False)

    @staticmethod
    def of(name: str, raw: bytes) -> Content:
        """Returns the content of a source of this name."""
        # A copy, because torch wants memory that it may write.
        return Content(
            hashlib.sha256(raw).hexdigest(), name, np.frombuffer(raw, dtype=np.uint8).copy()
        )

    def text(self) -> str:
        """Decodes the bytes.

        Raises:
            UnicodeDecodeError: if they are not UTF-8.
        """
        return str(self.raw.data, "utf-8")


@lru_cache(maxsize=1)
def stdlib_content() -> Content:
    """Reads the source text of the running Python's standard library, in the order of a seeded digest of the paths."""
    root = Path(sysconfig.get_paths()["stdlib"])
    # `_sysconfigdata*` holds the paths of the machine that built this Python.
    names = [
        path.relative_to(root)
        for path in root.rglob("*.py")
        if not path.name.startswith("_sysconfigdata")
    ]
    names = [name for name in names if SKIPPED_FOLDERS.isdisjoint(name.parts)]
    names.sort(
        key=lambda name: hashlib.sha256(f"{STDLIB_SEED}:{name.as_posix()}".encode()).digest()
    )
    return Content.of("stdlib", b"".join((root / name).read_bytes() for name in names))


def check_file(argument: str, path: str) -> None:
    """Refuses a path that is not a file.

    Raises:
        FileNotFoundError: if nothing is there, or a link to nothing.
        ValueError: if something else is there, such as a folder.
    """
    if not _exists(path):
        raise FileNotFoundError(
            f"{argument} must be a file that exists; got {path!r}: check the path"
        )
    if not os.path.isfile(path):
        kind = "a folder" if os.path.isdir(path) else "no regular file"
        raise ValueError(f"{argument} must be a file; got {path!r}, which is {kind}: name a file")


def read_file(argument: str, path: str) -> Content:
    """Reads a file.

    Args:
        argument: name of the argument, for errors.
        path: of the file.

    Raises:
        FileNotFoundError: if nothing is there.
        ValueError: if it cannot be read.
    """
    check_file(argument, path)
    try:
        return Content.of(path, Path(path).read_bytes())
    except (OSError, MemoryError) as error:
        raise ValueError(
            f"{argument} must be a file that can be read; got {path!r} ({_reason(error)})"
        ) from error


def parquet_content(path: str) -> Content:
    """Reads the column `text` of a parquet file, its rows joined by newlines.

    Raises:
        FileNotFoundError: if nothing is there.
        ValueError: if it is no parquet file, is damaged, or has no such column of text.
    """
    check_file("data", path)
    library = optional("pyarrow.parquet")
    try:
        with library.ParquetFile(path) as file:
            _check_column(path, file.schema_arrow.names, "text")
            return _joined(path, file.read(columns=["text"])["text"], "text")
    except UnreadableColumnError:
        raise
    except Exception as error:  # pyarrow raises ValueError, OSError, KeyError and errors of its own
        raise ValueError(
            f"data must be a parquet file; got {path!r}, which cannot be read ({_reason(error)}): write it again"
        ) from error


def dataset_content(data: str) -> Content:
    """Reads a column of a dataset, its rows joined by newlines.

    Args:
        data: in the form of DATASET_FORM.

    Raises:
        FileNotFoundError: if it names a path at which nothing is.
        ValueError: if it has another form, or names what cannot be read.
    """
    name, split, column, *rest = [*data.split(":")[1:], "", ""]
    if not name or any(rest):
        raise ValueError(f"data must have the form {DATASET_FORM}; got {data!r}")
    path, split, column = os.path.expanduser(name), split or "train", column or "text"
    is_local = _exists(path)
    if not is_local and (path.endswith(".parquet") or path.startswith((".", "~", os.sep))):
        raise FileNotFoundError(
            f"data must name a folder or file that exists; got {data!r}: nothing is at {path!r}"
        )
    library = optional("datasets")
    path = os.path.abspath(path) if is_local else path
    location = (
        {"path": "parquet", "data_files": path} if path.endswith(".parquet") else {"path": path}
    )
    try:
        if not is_local:
            return _dataset_column(data, library.load_dataset(**location, split=split), column)
        # `datasets` knows a local file by path and time alone, so its cache may hold what the file
        # held before.
        with tempfile.TemporaryDirectory(prefix="hpenv-", ignore_cleanup_errors=True) as cache:
            return _dataset_column(
                data, library.load_dataset(**location, split=split, cache_dir=cache), column
            )
    except (ImportError, UnreadableColumnError):
        raise
    except Exception as error:  # the library raises those of a dozen others
        raise ValueError(
            f"data must be a dataset that `datasets` reads; got {data!r} ({_reason(error)}): check name, split, files"
        ) from error


class UnreadableColumnError(ValueError):
    """A column that is missing, named twice, or holds no text; the message names it and the source."""


def optional(module: str) -> Any:
    """Imports an optional package.

    Raises:
        ImportError: if it is missing; the message names the extra.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{module.partition('.')[0]} is not installed: pip install hpenv[data]"
        ) from error


def _exists(path: str) -> bool:
    try:
        return os.path.exists(path)
    except ValueError:  # a path with a NUL in it
        return False


def _reason(error: BaseException) -> str:
    """First line of an error's message, behind the name of its kind."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def _dataset_column(data: str, dataset: Any, column: str) -> Content:
    _check_column(data, dataset.column_names, column)
    return _joined(data, dataset.select_columns([column]).with_format("arrow")[:][column], column)


def _check_column(name: str, names: list[str], column: str) -> None:
    if names.count(column) != 1:
        found = "no column" if column not in names else "more than one column"
        raise UnreadableColumnError(
            f"{name!r} has {found} {column!r}; it has {names}; {DATASET_FORM} reads another"
        )


def _joined(name: str, column: Any, column_name: str) -> Content:
    """Returns the rows of a column of pyarrow, joined by newlines; rows without a value are left out."""
    rows = [row for row in column.to_pylist() if row is not None]
    if not all(isinstance(row, str) for row in rows):
        raise UnreadableColumnError(
            f"column {column_name!r} of {name!r} must hold text; it holds {column.type}; {DATASET_FORM} reads another"
        )
    return Content.of(name, "\n".join(rows).encode())
