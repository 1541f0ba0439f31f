"""Reads tests: assert statements, and objects with input and output, as arguments and what the call
returns.

Nothing is executed. `problem_files` has the forms.
"""

from __future__ import annotations

import ast
import inspect
import json
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from hpenv.posttraining.jsonl import NoJSON, check_json, decoded, shown
from hpenv.posttraining.sandbox import Limits
from hpenv.posttraining.sources import parsed
from hpenv.posttraining.tasks import Case

#: What a problem's tests may take up as JSON: the inputs have to fit into the program's memory, and
#: of more outputs a program could not answer with all [bytes].
MOST_INPUT_BYTES, MOST_OUTPUT_BYTES = 2**24, Limits().returned_bytes

_JSON_NAMES = {"true": True, "false": False, "null": None}


class EntryPoint(NamedTuple):
    """The function or method that the tests call.

    Attributes:
        function: its name.
        class_name: the class that has it as a method; empty if it is a function.
        signature: its parameters; None if they are not known.
    """

    function: str
    class_name: str
    signature: inspect.Signature | None


def cases(entries: Any, entry_point: EntryPoint) -> tuple[Case, ...]:
    """Reads the tests of one field.

    Args:
        entries: what the field holds: one test, or a list of them.
        entry_point: what they call.

    Raises:
        ValueError: for what cannot be read, and for more than a program can be given or can answer.
    """
    found: list[Case] = []
    for entry in entries if isinstance(entries, list) else [entries]:
        for arguments, result in _entry_cases(entry, entry_point):
            for value in (*arguments, result):
                check_json(value)
            found.append((arguments, result))
    inputs, outputs = [list(arguments) for arguments, _ in found], [result for _, result in found]
    for what, values, most in (
        ("inputs", inputs, MOST_INPUT_BYTES),
        ("outputs", outputs, MOST_OUTPUT_BYTES),
    ):
        if (size := len(json.dumps(values))) > most:
            raise ValueError(
                f"the {what} are {size} bytes of JSON; expected at most {most} for one problem"
            )
    return tuple(found)


def _entry_cases(entry: Any, entry_point: EntryPoint) -> Iterator[Case]:
    """The cases of one text of asserts or of one object with input and output."""
    if isinstance(entry, str):
        asserts = [node for node in ast.walk(_program(entry)) if isinstance(node, ast.Assert)]
        if not asserts:
            raise ValueError(f"no assert statement in {shown(entry)}")
        for node in asserts:
            yield _asserted(node.test, entry_point)
        return
    if not isinstance(entry, dict) or not {"input", "output"} <= set(entry):
        raise ValueError(
            f"must be an assert statement or an object with input and output; got {shown(entry)}"
        )
    given, result = entry["input"], entry["output"]
    if isinstance(given, NoJSON):
        raise ValueError(given.reason)
    if isinstance(given, str):
        call = parsed(f"f(\n{given}\n)", "eval", strict=True)
        assert isinstance(call, ast.Expression)
        if not (isinstance(call.body, ast.Call) and isinstance(call.body.func, ast.Name)):
            raise ValueError(f"input must be arguments; got {shown(given)}")
        yield (
            _arguments(call.body, entry_point),
            _spelled(result) if isinstance(result, str) else result,
        )
    elif isinstance(given, dict):
        yield _ordered([], given, entry_point), result
    elif isinstance(given, list):
        yield _ordered(given, {}, entry_point), result
    else:
        raise ValueError(f"input must be a list, an object or text; got {shown(given)}")


def _program(text: str) -> ast.AST:
    """A text of asserts; one that is indented as a whole too."""
    try:
        return parsed(text)
    except ValueError:
        return parsed(textwrap.dedent(text).strip())


def _asserted(test: ast.expr, entry_point: EntryPoint) -> Case:
    """The case that one assert states."""
    if (
        isinstance(test, ast.Compare)
        and len(test.ops) == 1
        and isinstance(test.ops[0], ast.Eq | ast.Is)
    ):
        left, right = test.left, test.comparators[0]
        call, result = (left, right) if _calls(left, entry_point) else (right, left)
        if isinstance(call, ast.Call) and _calls(call, entry_point):
            return _arguments(call, entry_point), _literal(result)
    is_negated = isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not)
    call = test.operand if isinstance(test, ast.UnaryOp) and is_negated else test
    if isinstance(call, ast.Call) and _calls(call, entry_point):
        return _arguments(call, entry_point), not is_negated
    raise ValueError(
        f"cannot read `assert {_source(test, 80)}`; expected `{entry_point.function}(...) == literal`"
    )


def _calls(node: ast.expr, entry_point: EntryPoint) -> bool:
    """Returns whether an expression calls the entry point: by name, of its class, of a variable or as `candidate`."""
    if not isinstance(node, ast.Call):
        return False
    function = node.func
    if isinstance(function, ast.Name):
        return function.id in (entry_point.function, "candidate")
    if not isinstance(function, ast.Attribute) or function.attr != entry_point.function:
        return False
    owner = function.value
    if isinstance(owner, ast.Call):
        return isinstance(owner.func, ast.Name) and owner.func.id == entry_point.class_name
    return isinstance(owner, ast.Name)


def _arguments(node: ast.Call, entry_point: EntryPoint) -> tuple[Any, ...]:
    """The arguments of a call, in the order of the parameters."""
    named: dict[str, Any] = {}
    for keyword in node.keywords:
        if keyword.arg is None:
            raise ValueError(
                f"cannot read `**{_source(keyword.value, 60)}`; expected the arguments one by one"
            )
        if keyword.arg in named:
            raise ValueError(f"the argument {keyword.arg!r} is given twice")
        named[keyword.arg] = _literal(keyword.value)
    return _ordered([_literal(argument) for argument in node.args], named, entry_point)


def _ordered(
    given: list[Any], named: Mapping[str, Any], entry_point: EntryPoint
) -> tuple[Any, ...]:
    """Arguments by place, then those by name in the order of the parameters, or as they stand if these are unknown."""
    if entry_point.signature is None:
        return (*given, *named.values())
    try:
        bound = entry_point.signature.bind(*given, **named)
        if not bound.kwargs:
            return bound.args
        name = next(iter(bound.kwargs))
        places = list(bound.signature.parameters)
        left_out = [other for other in places[: places.index(name)] if other not in bound.arguments]
        reason = f"{name!r} can be given by name alone" + (
            f", for {left_out[0]!r} is not given" if left_out else ""
        )
    except TypeError as error:
        reason = str(error)
    what = f"{len(given)} by place and {list(named)} by name"
    raise ValueError(
        f"the arguments ({what}) do not fit {entry_point.function}{entry_point.signature}: {reason}"
    )


class _JSONNames(ast.NodeTransformer):
    """Puts constants in the place of true, false and null."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        """Replaces one name."""
        return (
            ast.copy_location(ast.Constant(_JSON_NAMES[node.id]), node)
            if node.id in _JSON_NAMES
            else node
        )


def _literal(node: ast.expr) -> Any:
    """The value that an expression spells."""
    try:
        return ast.literal_eval(_JSONNames().visit(node))
    except (ValueError, TypeError, RecursionError, MemoryError) as error:
        raise ValueError(f"`{_source(node, 60)}` is no literal") from error


def _spelled(text: str) -> Any:
    """The value that a text spells as JSON, or else as Python does."""
    try:
        return decoded(text)
    except ValueError:
        tree = parsed(text.strip(), "eval", strict=True)
    assert isinstance(tree, ast.Expression)
    return _literal(tree.body)


def _source(node: ast.expr, length: int) -> str:
    """The beginning of an expression's source."""
    try:
        return ast.unparse(node)[:length]
    except RecursionError:
        return "..."
