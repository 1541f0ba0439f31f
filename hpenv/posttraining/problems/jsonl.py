"""Reads JSONL strictly, but reports an invalid value only to the reader of its field.

Python's json also accepts NaN, infinities and repeated keys, and fails on a long integer without
naming its place. Here each of these becomes a `NoJSON`. A field that nothing reads may hold one,
and the reader of another field can name the field.
"""

from __future__ import annotations

import json
import math
import os
import reprlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hpenv.posttraining.sandbox.program import MAX_DEPTH

#: Most digits of an integer that Python converts from text and to text.
MAX_DIGITS = 4300
_LARGEST = 10**MAX_DIGITS

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60
#: First bytes of a file that is not UTF-8 -> its kind.
_OTHER_FILES = {
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
    b"\x1f\x8b": "a gzip file",
    b"PAR1": "Parquet",
    b"PK\x03\x04": "a zip archive",
}


class NoJSON:
    """Placeholder for a value that is not JSON."""

    def __init__(self, text: str, reason: str) -> None:
        """Stores the text of the value and the reason why it is not JSON."""
        self.text, self.reason = text, reason

    def __repr__(self) -> str:
        return self.text


def read_lines(path: str | Path) -> dict[int, bytes]:
    """Reads the non-blank lines of a file, by their numbers from 1.

    Only a line feed, a carriage return or both end a line. Other line breaks may stand within a
    JSON text.

    Raises:
        ValueError: if the file cannot be read, or begins like a file that is not UTF-8.
    """
    if not isinstance(path, str | os.PathLike):
        raise ValueError(f"a JSONL file must be given by its path; got {path!r}")
    try:
        content = Path(path).read_bytes()
    except (OSError, ValueError) as error:  # the second for a null character
        raise ValueError(
            f"{str(path)!r} cannot be read ({error}); expected a JSONL file in UTF-8"
        ) from error

    for beginning, kind in _OTHER_FILES.items():
        if content.startswith(beginning):
            raise ValueError(f"{path} must be JSONL in UTF-8; got {kind}")
    lines = dict(enumerate(content.splitlines(), start=1))
    return {
        number: line
        for number, line in lines.items()
        if line.decode("utf-8-sig", "replace").strip()
    }


def decode_line(line: bytes) -> dict[str, Any]:
    """Decodes the object of one line. A byte order mark and blanks around it are ignored.

    Raises:
        ValueError: if the line is not one object.
    """
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"must be UTF-8; got the byte 0x{line[error.start]:02x} at byte {error.start + 1}"
        ) from error

    blanks = len(text) - len(text.lstrip())
    record = decode(" " * blanks + text.strip())

    if isinstance(record, NoJSON):
        raise ValueError(record.reason)
    if not isinstance(record, dict):
        raise ValueError(f"must be an object; got {excerpt(record)}")
    return record


def is_one_value(lines: Iterable[bytes]) -> bool:
    """Returns whether all lines together are one JSON value: a JSON file that is not JSONL."""
    try:
        decode(b"\n".join(lines).decode("utf-8-sig"))
    except ValueError:
        return False
    return True


def decode(text: str) -> Any:
    """Decodes a JSON text. Numbers and objects that JSON does not have become `NoJSON`.

    Raises:
        ValueError: if the text is not JSON, with the column.
    """
    try:
        return json.loads(
            text,
            parse_constant=_constant,
            parse_int=_int,
            parse_float=_float,
            object_pairs_hook=_object,
        )
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg.removesuffix(' at')} at column {error.pos + 1}") from error
    except RecursionError as error:
        raise ValueError("lists and objects are nested too deep") from error


def check_json(value: Any, depth: int = MAX_DEPTH) -> None:
    """Checks that a value is plain JSON, and at most as deep as the sandbox returns.

    Raises:
        ValueError: if it is not, with the part that is at fault.
    """
    kind = type(value)
    if isinstance(value, NoJSON):
        raise ValueError(value.reason)

    if kind in (list, dict):
        if depth == 0:
            raise ValueError(f"lists and objects must be nested at most {MAX_DEPTH} deep")
        for item in value:
            if kind is dict and type(item) is not str:
                raise ValueError(f"keys must be text; got {excerpt(item)}")
            check_json(item, depth - 1)
            if kind is dict:
                check_json(value[item], depth - 1)
    elif kind is str:
        check_text(value)
    elif kind is int:
        if abs(value) >= _LARGEST:
            raise ValueError(f"integers must have at most {MAX_DIGITS} digits")
    elif not (value is None or kind is bool or (kind is float and math.isfinite(value))):
        raise ValueError(f"must be a JSON value; got {excerpt(value)}")


def check_text(value: str) -> None:
    """Checks that a text can be written as UTF-8.

    Raises:
        ValueError: if it cannot, with the place of the first character at fault.
    """
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"text must be Unicode; got half of a surrogate pair as character {error.start + 1}"
        ) from error


def excerpt(value: Any) -> str:
    """Returns a value as text for an error message, cut short."""
    return _SHORT.repr(value)


def _constant(text: str) -> NoJSON:
    return NoJSON(text, f"numbers must be JSON numbers; got {text}")


def _int(text: str) -> int | NoJSON:
    if len(text.lstrip("-")) > MAX_DIGITS:
        return NoJSON(f"{text[:20]}...", f"integers must have at most {MAX_DIGITS} digits")
    return int(text)


def _float(text: str) -> float | NoJSON:
    value = float(text)
    if math.isfinite(value):
        return value
    return NoJSON(text[:20], f"numbers must be finite; got {text[:20]}")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any] | NoJSON:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    keys = [key for key, _ in pairs]
    twice = next(key for key in keys if keys.count(key) > 1)
    return NoJSON("{...}", f"the keys of an object must be different; got {excerpt(twice)} twice")
