"""Reads JSONL strictly, and tells of what JSON does not have only where somebody asks for it.

Python's json also reads NaN, infinities and a key twice, and fails on a long integer without saying
where. Here each of these becomes a `NoJSON`: a field that nothing reads may hold one, and the
reader of another field can name the field.
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

#: Digits of an integer that Python still converts from text and to text.
MAX_DIGITS = 4300
_LARGEST = 10**MAX_DIGITS

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60
#: How a file begins that is no text of UTF-8 -> what it is.
_OTHER_FILES = {
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
    b"\x1f\x8b": "compressed by gzip",
    b"PAR1": "Parquet",
    b"PK\x03\x04": "a zip archive",
}


class NoJSON:
    """Something in the place of a JSON value."""

    def __init__(self, text: str, reason: str) -> None:
        """Keeps what stands there and why it is no JSON value."""
        self.text, self.reason = text, reason

    def __repr__(self) -> str:
        return self.text


def read_lines(path: str | Path) -> dict[int, bytes]:
    """Reads the lines of a file that are not blank, by their numbers from 1.

    Only a line feed, a carriage return or both end a line: other line breaks may stand within a
    JSON text.

    Raises:
        ValueError: for a file that cannot be read or is no text of UTF-8 as a whole.
    """
    if not isinstance(path, str | os.PathLike):
        raise ValueError(f"a JSONL file must be given by its path; got {path!r}")
    try:
        content = Path(path).read_bytes()
    except (OSError, ValueError) as error:  # the second for a null character
        raise ValueError(
            f"{str(path)!r} cannot be read ({error}); expected a JSONL file in UTF-8"
        ) from error
    for beginning, what in _OTHER_FILES.items():
        if content.startswith(beginning):
            raise ValueError(f"{path} is {what}; expected JSONL in UTF-8")
    lines = dict(enumerate(content.splitlines(), start=1))
    return {
        number: line
        for number, line in lines.items()
        if line.decode("utf-8-sig", "replace").strip()
    }


def decoded_line(line: bytes) -> dict[str, Any]:
    """Decodes the object of one line; a byte order mark and blanks around it are no part of it.

    Raises:
        ValueError: for all else.
    """
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"no UTF-8: the byte 0x{line[error.start]:02x} at byte {error.start + 1}"
        ) from error
    blanks = len(text) - len(text.lstrip())
    record = decoded(" " * blanks + text.strip())
    if isinstance(record, NoJSON):
        raise ValueError(record.reason)
    if not isinstance(record, dict):
        raise ValueError(f"must be an object; got {shown(record)}")
    return record


def is_one_value(lines: Iterable[bytes]) -> bool:
    """Returns whether lines are one JSON value together, as those of a file that is JSON and not JSONL."""
    try:
        decoded(b"\n".join(lines).decode("utf-8-sig"))
    except ValueError:
        return False
    return True


def decoded(text: str) -> Any:
    """Decodes a JSON text; in it a `NoJSON` stands for every number and object that JSON does not
    have.

    Raises:
        ValueError: for what is no JSON, with the column.
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
    """Refuses what JSON would turn into something else, and what the sandbox does not return.

    Raises:
        ValueError: with what the value is.
    """
    kind = type(value)
    if isinstance(value, NoJSON):
        raise ValueError(value.reason)
    if kind in (list, dict):
        if depth == 0:
            raise ValueError(f"lists and objects are nested deeper than {MAX_DEPTH}")
        for item in value:
            if kind is dict and type(item) is not str:
                raise ValueError(f"the key {shown(item)} is no text")
            check_json(item, depth - 1)
            if kind is dict:
                check_json(value[item], depth - 1)
    elif kind is str:
        check_text(value)
    elif kind is int:
        if abs(value) >= _LARGEST:
            raise ValueError(f"an integer of more than {MAX_DIGITS} digits")
    elif not (value is None or kind is bool or (kind is float and math.isfinite(value))):
        raise ValueError(f"{shown(value)} is no JSON value")


def check_text(value: str) -> None:
    """Refuses text that cannot be written as UTF-8.

    Raises:
        ValueError: with the place of its first such character.
    """
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"character {error.start + 1} of the text is half of a surrogate pair"
        ) from error


def shown(value: Any) -> str:
    """A value for an error message, cut short."""
    return _SHORT.repr(value)


def _constant(text: str) -> NoJSON:
    return NoJSON(text, f"{text} is no number of JSON's")


def _int(text: str) -> int | NoJSON:
    if len(text.lstrip("-")) > MAX_DIGITS:
        return NoJSON(f"{text[:20]}...", f"an integer of more than {MAX_DIGITS} digits")
    return int(text)


def _float(text: str) -> float | NoJSON:
    value = float(text)
    return (
        value
        if math.isfinite(value)
        else NoJSON(text[:20], f"{text[:20]} is beyond the largest number")
    )


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any] | NoJSON:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    keys = [key for key, _ in pairs]
    twice = next(key for key in keys if keys.count(key) > 1)
    return NoJSON("{...}", f"the key {shown(twice)} stands twice in one object")
