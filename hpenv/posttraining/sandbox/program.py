"""Runs one program and its calls, inside the process that is already locked in.

Nothing here protects anything: the program shares this interpreter and can change all of it, and so
forge its own answers. That is harmless, since the parent trusts an answer only as a value to
compare with one it computed itself.
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

#: Nesting of lists and dicts in an answer; beyond it the answer counts as unserializable.
MAX_DEPTH = 64

_NOT_PLAIN = "Unserializable"

#: Name of the module that a program is.
NAME = "program"
#: Flags of the __future__ imports.
_FUTURES = sum({vars(__future__)[name].compiler_flag for name in __future__.all_feature_names})


def plain_size(value: Any, limit: int, depth: int = MAX_DEPTH) -> int:
    """About the length of a value as JSON [characters]; raises `ValueError` unless it is plain and
    within the limit.

    Plain: None, bool, int, finite float, str, list, and dict with str keys, of exactly these types.
    A subclass may compare equal to anything, and a tuple is no list.

    Args:
        value: what a call returned, or what was decoded from an answer.
        limit: largest size.
        depth: lists and dicts may be nested this deep.
    """
    kind = type(value)
    if kind is str:
        value.encode()  # a lone surrogate is a UnicodeEncodeError, which is a ValueError
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

    One line of JSON is answered for each: `["compiled", bool]`, then per call `["value", value]` or
    `["error", name of the exception]`; last, where the program ended in an exception, `["uncaught",
    name]`.

    Args:
        job: `setup`, `source`, `after` and `calls`, a list of [function, arguments].
        answer: writes one line to the parent.
        returned_bytes: largest size of an answer.

    Returns:
        The exit code Python would have given.
    """
    # Bound before the program runs: one that changes json or the builtins then spoils no answer by
    # accident.
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
                except (
                    Exception
                ):  # the value is the program's: its own methods may raise anything here
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
    """Ends the process as Python would, without unwinding into the zygote's frames: exit functions, then flushes."""
    try:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        code = code or 120  # what Python gives when a flush fails
    os._exit(code)
