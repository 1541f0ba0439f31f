"""Decodes the answers of a hostile program: only plain JSON in the agreed order passes."""

import json
import math
from typing import Any, NamedTuple

from hpenv.posttraining.sandbox.jobs import Result
from hpenv.posttraining.sandbox.program import MAX_DEPTH, plain_size


class Answers(NamedTuple):
    """The decoded answers of one program."""

    ready: bool  # whether the child was locked in, so that the program may have run
    failure: str  # why the child could not be locked in, "" otherwise
    compiled: bool
    returned: tuple[Result, ...]
    uncaught: str  # name of the exception that ended the program


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def decode(line: bytes, limit: int) -> list[Any]:
    """Decodes one line into a list of plain values.

    NaN and infinities are refused in every spelling (1e999 too), and so are integers of more digits
    than Python converts.

    Raises:
        ValueError: for anything else.
        RecursionError: if it is nested too deep for the decoder.
    """
    content = json.loads(line.decode("utf-8"), parse_constant=_refuse, parse_float=_finite)
    if type(content) is not list:
        raise ValueError("not a list")
    plain_size(content, limit, MAX_DEPTH + 1)  # the list of the line, and the answer in it
    return content


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not finite")
    return value


def read_answers(content: bytes, num_calls: int, limit: int) -> Answers:
    """Decodes everything that came through the answers' pipe.

    A last line without its end was cut off when the program died, and is ignored. Any other line
    that is malformed, out of order or superfluous shows that the program wrote to the pipe itself.
    Then all its answers are void.

    Args:
        content: bytes from the pipe.
        num_calls: number of calls that were to be made.
        limit: `Limits.returned_bytes`.
    """
    lines = content.split(b"\n")[:-1]
    if not lines or lines[0] != b'["ready"]':
        failure = ""
        if lines:
            # This line is written by our code, because the program has not been read yet.
            _, failure = decode(lines[0], limit)
        return Answers(False, failure, False, (), "")

    compiled, uncaught = False, ""
    returned: list[Result] = []
    try:
        for place, line in enumerate(lines[1:]):
            kind, value = decode(line, limit + 64)  # the answer and its kind around it
            if place == 0 and kind == "compiled" and type(value) is bool:
                compiled = value
            elif place == 0 or uncaught or len(returned) + (kind != "uncaught") > num_calls:
                raise ValueError("out of order")
            elif kind == "value":
                returned.append(Result(value=value))
            elif kind == "error" and type(value) is str and value:
                returned.append(Result(error=value))
            elif kind == "uncaught" and type(value) is str and value:
                uncaught = value
            else:
                raise ValueError(f"unknown answer {kind!r}")
    except (ValueError, RecursionError):
        return Answers(True, "", compiled, (), "")

    return Answers(True, "", compiled, tuple(returned), uncaught)
