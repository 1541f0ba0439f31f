"""Sources of text, each as its bytes: installed packages, text and parquet files, and datasets.

Every call reads its source again. Only the text of the standard library and of installed packages
is cached, because nobody rewrites it.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import re
import sysconfig
import tempfile
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Seed of the order of the library's files. Of 60 seeds tried on Python 3.11 to 3.13, this one makes
# the slices most similar.
STDLIB_SEED = 10
# Folders of the standard library that are left out: tests (not installed everywhere), other
# people's packages, and `pydoc_data`, whose one generated file is larger than the probe slice.
SKIPPED_FOLDERS = frozenset(
    {"test", "tests", "idle_test", "site-packages", "dist-packages", "pydoc_data"}
)

DATASET_FORM = "'hf:<name or path>[:<split>[:<column>]]'"
PACKAGE_FORM = "'package:<name>[:<suffix>]'"
#: End of `data` that asks for one of n equal parts of a text, as `stdlib@1/2`.
PART = re.compile(r"(?P<source>.+)@(?P<number>\d+)/(?P<count>\d+)")


@dataclass(frozen=True)
class Content:
    """Bytes of a source. Two contents are equal if their bytes are, whatever their names.

    Attributes:
        sha256: hex digest of the bytes.
        name: name of the source, as the user wrote it.
        raw: the bytes, 1-D uint8.
    """

    sha256: str
    name: str = field(compare=False)
    raw: NDArray[np.uint8] = field(compare=False, repr=False)

    @staticmethod
    def of(name: str, raw: bytes) -> Content:
        """Returns the content of a source of this name."""
        # A copy, because torch needs memory that it may write.
        values = np.frombuffer(raw, dtype=np.uint8).copy()
        return Content(hashlib.sha256(raw).hexdigest(), name, values)

    def part(self, number: int, count: int) -> Content:
        """Returns part `number` (from 1) of `count` equal parts of the bytes.

        Raises:
            ValueError: `number` is not from 1 to `count`.
        """
        if not 1 <= number <= count:
            raise ValueError(
                f"a part of data must be from 1 to the number of parts; got @{number}/{count}"
            )
        ends = [len(self.raw) * i // count for i in (number - 1, number)]
        return Content.of(f"{self.name}@{number}/{count}", self.raw[slice(*ends)].tobytes())

    def text(self) -> str:
        """Decodes the bytes.

        Raises:
            UnicodeDecodeError: if they are not UTF-8.
        """
        return str(self.raw.data, "utf-8")


def text_content(data: str) -> Content:
    """Reads a text, or one of its parts. See `hpenv.lm.data.load_corpus`.

    Raises:
        FileNotFoundError: for a file that does not exist.
        ValueError: for an unknown name, or a source that cannot be read.
    """
    part = PART.fullmatch(data)
    content = _whole_text(part["source"] if part else data)
    return content.part(int(part["number"]), int(part["count"])) if part else content


def _whole_text(data: str) -> Content:
    source = data.partition(":")[0]
    if data == "stdlib":
        return stdlib_content()
    if source == "package":
        return package_content(data)
    if source == "hf":
        return dataset_content(data)
    if data.endswith(".parquet"):
        return parquet_content(data)
    if data.endswith(".txt"):
        return read_file("data", data)
    raise ValueError(
        f"unknown data {data!r}; expected one of 'stdlib', 'synthetic[:<seed>]', {PACKAGE_FORM}, "
        f"{DATASET_FORM}, a path to a .txt, .bin or .parquet, or one of these texts with @<k>/<n>"
    )


@lru_cache(maxsize=1)
def stdlib_content() -> Content:
    """Reads the source text of the running Python's standard library.

    Files stand in the order of a seeded digest of their paths.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    # `_sysconfigdata*` holds the paths of the machine that built this Python.
    names = [
        path.relative_to(root)
        for path in root.rglob("*.py")
        if not path.name.startswith("_sysconfigdata")
    ]
    names = [name for name in names if SKIPPED_FOLDERS.isdisjoint(name.parts)]
    return Content.of("stdlib", _joined(root, names))


@lru_cache(maxsize=4)
def package_content(data: str) -> Content:
    """Reads the files of an installed package that have a suffix, `.py` by default.

    Files stand in the order of a seeded digest of their paths. Tests are left out. The licence of
    the text is the package's.

    Args:
        data: the package in the form of PACKAGE_FORM, as `package:numpy` or `package:torch:.h`.

    Raises:
        ValueError: `data` has another form, the package is not installed, or has no such files.
    """
    name, suffix, *rest = [*data.split(":")[1:], ""]
    if not name.isidentifier() or any(rest):
        raise ValueError(f"data must have the form {PACKAGE_FORM}; got {data!r}")
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise ValueError(
            f"data must name an installed package; got {data!r}, and there is no {name}"
        )

    root = Path(next(iter(found.submodule_search_locations)))
    names = [path.relative_to(root) for path in root.rglob(f"*{suffix or '.py'}")]
    names = [name for name in names if {"test", "tests"}.isdisjoint(name.parts)]
    if not names:
        raise ValueError(
            f"data must name a package with files of its suffix; got {data!r}, "
            f"and {root} has none of {suffix or '.py'}"
        )
    return Content.of(data, _joined(root, names))


def _joined(root: Path, names: list[Path]) -> bytes:
    """Returns the bytes of files below a folder, in the order of a seeded digest of their paths."""
    names.sort(
        key=lambda name: hashlib.sha256(f"{STDLIB_SEED}:{name.as_posix()}".encode()).digest()
    )
    return b"".join((root / name).read_bytes() for name in names)


def check_file(argument: str, path: str) -> None:
    """Checks that a path is a file.

    Raises:
        FileNotFoundError: if the path does not exist, or is a link to nothing.
        ValueError: if the path is not a file, but for example a folder.
    """
    if not _exists(path):
        raise FileNotFoundError(
            f"{argument} must be a file that exists; got {path!r}; check the path"
        )
    if not os.path.isfile(path):
        kind = "a folder" if os.path.isdir(path) else "no regular file"
        raise ValueError(f"{argument} must be a file; got {path!r}, which is {kind}; name a file")


def read_file(argument: str, path: str) -> Content:
    """Reads a file.

    Args:
        argument: name of the argument, for errors.
        path: path of the file.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the file cannot be read.
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
        FileNotFoundError: if the file does not exist.
        ValueError: if it is not a parquet file, is damaged, or has no such column of text.
    """
    check_file("data", path)
    library = import_optional("pyarrow.parquet")
    try:
        with library.ParquetFile(path) as file:
            _check_column(path, file.schema_arrow.names, "text")
            return _join_rows(path, file.read(columns=["text"])["text"], "text")
    except UnreadableColumnError:
        raise
    except Exception as error:  # pyarrow raises ValueError, OSError, KeyError and further errors
        raise ValueError(
            f"data must be a parquet file; got {path!r}, which cannot be read ({_reason(error)}); "
            "write it again"
        ) from error


def dataset_content(data: str) -> Content:
    """Reads a column of a dataset, its rows joined by newlines.

    Args:
        data: name of the dataset in the form of DATASET_FORM.

    Raises:
        FileNotFoundError: if `data` names a path that does not exist.
        ValueError: if `data` has another form, or names something that cannot be read.
    """
    name, split, column, *rest = [*data.split(":")[1:], "", ""]
    if not name or any(rest):
        raise ValueError(f"data must have the form {DATASET_FORM}; got {data!r}")
    path, split, column = os.path.expanduser(name), split or "train", column or "text"
    is_local = _exists(path)
    if not is_local and (path.endswith(".parquet") or path.startswith((".", "~", os.sep))):
        raise FileNotFoundError(
            f"data must name a folder or file that exists; got {data!r}; nothing is at {path!r}"
        )

    library = import_optional("datasets")
    path = os.path.abspath(path) if is_local else path
    location = {"path": path}
    if path.endswith(".parquet"):
        location = {"path": "parquet", "data_files": path}
    try:
        if not is_local:
            return _dataset_column(data, library.load_dataset(**location, split=split), column)
        # `datasets` identifies a local file by path and time alone, so its cache may hold the
        # file's earlier content.
        with tempfile.TemporaryDirectory(prefix="hpenv-", ignore_cleanup_errors=True) as cache:
            dataset = library.load_dataset(**location, split=split, cache_dir=cache)
            return _dataset_column(data, dataset, column)
    except (ImportError, UnreadableColumnError):
        raise
    except Exception as error:  # the library raises errors of a dozen other libraries
        raise ValueError(
            f"data must be a dataset that `datasets` reads; got {data!r} ({_reason(error)}); "
            "check name, split, files"
        ) from error


class UnreadableColumnError(ValueError):
    """A column is missing, occurs twice, or holds no text. The message names it and the source."""


def import_optional(module: str) -> Any:
    """Imports an optional package.

    Raises:
        ImportError: if it is missing. The message names the extra.
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
    """Returns the class of an error and the first line of its message."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def _dataset_column(data: str, dataset: Any, column: str) -> Content:
    _check_column(data, dataset.column_names, column)
    return _join_rows(
        data, dataset.select_columns([column]).with_format("arrow")[:][column], column
    )


def _check_column(name: str, names: list[str], column: str) -> None:
    if names.count(column) != 1:
        found = "no such column" if column not in names else "more than one such column"
        raise UnreadableColumnError(
            f"{name!r} must have one column {column!r}; got {found} among {names}; "
            f"{DATASET_FORM} reads another column"
        )


def _join_rows(name: str, column: Any, column_name: str) -> Content:
    """Joins the rows of a pyarrow column by newlines. Rows without a value are left out."""
    rows = [row for row in column.to_pylist() if row is not None]
    if not all(isinstance(row, str) for row in rows):
        raise UnreadableColumnError(
            f"column {column_name!r} of {name!r} must hold text; got {column.type}; "
            f"{DATASET_FORM} reads another column"
        )
    return Content.of(name, "\n".join(rows).encode())
