"""Runs one program and its calls, inside the process that is already locked in.

Nothing here protects anything. The program shares this interpreter and can change all of it, so it
can forge its own answers. That is harmless, because the parent only compares an answer with a value
that it computed itself.
"""

import __future__

import atexit
import json
import math
import os
import sys
import traceback
import types
from collections.abc import Callable
from typing import Any

#: Deepest nesting of lists and dicts in an answer. Deeper answers count as unserializable.
MAX_DEPTH = 64

_NOT_PLAIN = "Unserializable"

#: Name of the module that a program is loaded as.
NAME = "program"
#: Flags of the __future__ imports.
_FUTURES = sum({vars(__future__)[name].compiler_flag for name in __future__.all_feature_names})


def plain_size(value: Any, limit: int, depth: int = MAX_DEPTH) -> int:
    """Returns about the length of a plain value as JSON [characters].

    Plain values are None, bool, int, finite float, str, list, and dict with str keys, of exactly
    these types. A subclass may compare equal to anything, and a tuple is not a list.

    Args:
        value: value that a call returned, or decoded answer.
        limit: largest size.
        depth: deepest nesting of lists and dicts.

    Raises:
        ValueError: if the value is not plain or exceeds the limit.
    """
    kind = type(value)
    if kind is str:
        value.encode()  # a lone surrogate raises UnicodeEncodeError, which is a ValueError
        size = 2 + len(value)
    elif kind is int:
        size = 1 + value.bit_length() // 4
    elif kind is float and math.isfinite(value):
        size = 8
    elif value is None or kind is bool:
        size = 4
    elif (kind is list or kind is dict) and depth > 0:
        size = 2
        if kind is dict:
            for key in value:
                if type(key) is not str:
                    raise ValueError("a key that is not a str")
                size += plain_size(key, limit - size)
            value = value.values()
        for item in value:
            size += 1 + plain_size(item, limit - size, depth - 1)
    else:
        raise ValueError(f"not plain JSON: {kind.__name__}, or nested too deep")

    if size > limit:
        raise ValueError("too large")
    return size


def run(job: dict[str, Any], answer: Callable[[str], None], returned_bytes: int) -> int:
    """Executes setup, source and what comes after as one module, then makes the calls.

    Answers one line of JSON for each: `["compiled", bool]`, then per call `["value", value]` or
    `["error", name of the exception]`. If the program ends in an exception, the last line is
    `["uncaught", name]`.

    Args:
        job: `setup`, `source`, `after` and `calls`, a list of [function, arguments].
        answer: function that writes one line to the parent.
        returned_bytes: largest size of an answer.

    Returns:
        The exit code that Python would give.
    """
    # Bound before the program runs, so that one that changes json or the builtins does not spoil an
    # answer by accident.
    encode = json.JSONEncoder(allow_nan=False).encode

    module = types.ModuleType(NAME)
    sys.modules[NAME] = sys.modules["__main__"] = module
    namespace = module.__dict__
    namespace["__builtins__"] = __builtins__

    try:
        setup = compile(job["setup"], "<setup>", "exec", dont_inherit=True)
        source = compile(
            job["source"], "<program>", "exec", setup.co_flags & _FUTURES, dont_inherit=True
        )
        after = compile(job["after"], "<after>", "exec", dont_inherit=True)
    except Exception as error:
        _explain(error)
        answer(encode(["compiled", False]))
        return 1

    answer(encode(["compiled", True]))
    try:
        for code in (setup, source, after):
            exec(code, namespace)
        for function, arguments in job["calls"]:
            try:
                value = eval(function, dict(namespace, __builtins__={}))(*arguments)
            except SystemExit:
                raise
            except BaseException as error:
                line = encode(["error", type(error).__name__[:100]])
            else:
                try:
                    plain_size(value, returned_bytes)
                    line = encode(["value", value])
                except Exception:  # methods of the program's value may raise anything here
                    line = encode(["error", _NOT_PLAIN])
            answer(line)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return (end.code or 0) & 0xFF
        sys.stderr.write(f"{end.code}\n")
        return 1
    except BaseException as error:
        _explain(error)
        answer(encode(["uncaught", type(error).__name__[:100]]))
        return 1

    return 0


def _explain(error: BaseException) -> None:
    """Prints the traceback, without the frame of this file."""
    trace = error.__traceback__
    traceback.print_exception(error.with_traceback(trace.tb_next if trace else None))


def finish(code: int) -> None:
    """Ends the process as Python would: exit functions, then flushes.

    Does not unwind into the zygote's frames.
    """
    try:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        code = code or 120  # what Python gives when a flush fails
    os._exit(code)
