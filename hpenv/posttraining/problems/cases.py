"""Reads tests, as the arguments and results of calls.

A test is an assert statement, or an object with input and output. Nothing is executed.
`problems.files` describes the forms.
"""

from __future__ import annotations

import ast
import inspect
import json
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from hpenv.posttraining.problems.jsonl import NoJSON, check_json, decode, excerpt
from hpenv.posttraining.problems.problem import Case
from hpenv.posttraining.problems.sources import parse
from hpenv.posttraining.sandbox import Limits

#: Largest inputs and outputs of a problem's tests as JSON [bytes]. The inputs have to fit into the
#: program's memory, and the outputs into its answers.
MOST_INPUT_BYTES, MOST_OUTPUT_BYTES = 2**24, Limits().returned_bytes

_JSON_NAMES = {"true": True, "false": False, "null": None}


class EntryPoint(NamedTuple):
    """The function or method that the tests call.

    Attributes:
        function: its name.
        class_name: the class that has it as a method. Empty for a function.
        signature: its parameters. None if they are unknown.
    """

    function: str
    class_name: str
    signature: inspect.Signature | None


def cases(entries: Any, entry_point: EntryPoint) -> tuple[Case, ...]:
    """Reads the tests of one field.

    Args:
        entries: content of the field: one test, or a list of tests.
        entry_point: the function or method that the tests call.

    Raises:
        ValueError: if a test cannot be read, or if inputs or outputs are too large.
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
                f"the {what} of one problem must be at most {most} bytes of JSON; got {size}"
            )
    return tuple(found)


def _entry_cases(entry: Any, entry_point: EntryPoint) -> Iterator[Case]:
    """Yields the cases of one text of asserts, or of one object with input and output."""
    if isinstance(entry, str):
        asserts = [node for node in ast.walk(_program(entry)) if isinstance(node, ast.Assert)]
        if not asserts:
            raise ValueError(f"must have an assert statement; got {excerpt(entry)}")
        for node in asserts:
            yield _case_of_assert(node.test, entry_point)
        return

    if not isinstance(entry, dict) or not {"input", "output"} <= set(entry):
        raise ValueError(
            f"must be an assert statement or an object with input and output; got {excerpt(entry)}"
        )

    given, result = entry["input"], entry["output"]
    if isinstance(given, NoJSON):
        raise ValueError(given.reason)

    if isinstance(given, str):
        call = parse(f"f(\n{given}\n)", "eval", strict=True)
        assert isinstance(call, ast.Expression)
        if not (isinstance(call.body, ast.Call) and isinstance(call.body.func, ast.Name)):
            raise ValueError(f"input must be arguments; got {excerpt(given)}")
        yield (
            _arguments(call.body, entry_point),
            _parse_value(result) if isinstance(result, str) else result,
        )
    elif isinstance(given, dict):
        yield _by_place([], given, entry_point), result
    elif isinstance(given, list):
        yield _by_place(given, {}, entry_point), result
    else:
        raise ValueError(f"input must be a list, an object or text; got {excerpt(given)}")


def _program(text: str) -> ast.AST:
    """Parses a text of asserts, which may be indented as a whole."""
    try:
        return parse(text)
    except ValueError:
        return parse(textwrap.dedent(text).strip())


def _case_of_assert(test: ast.expr, entry_point: EntryPoint) -> Case:
    """Returns the case that one assert states."""
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
        f"an assert must be `{entry_point.function}(...) == literal`; "
        f"got `assert {_source(test, 80)}`"
    )


def _calls(node: ast.expr, entry_point: EntryPoint) -> bool:
    """Returns whether an expression calls the entry point.

    It may be called by its name, as `candidate`, or as a method of its class or of a variable.
    """
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
    """Returns the arguments of a call, in the order of the parameters."""
    named: dict[str, Any] = {}
    for keyword in node.keywords:
        if keyword.arg is None:
            raise ValueError(
                f"arguments must be written one by one; got `**{_source(keyword.value, 60)}`"
            )
        if keyword.arg in named:
            raise ValueError(f"arguments must be given once; got {keyword.arg!r} twice")
        named[keyword.arg] = _literal(keyword.value)

    return _by_place([_literal(argument) for argument in node.args], named, entry_point)


def _by_place(
    given: list[Any], named: Mapping[str, Any], entry_point: EntryPoint
) -> tuple[Any, ...]:
    """Returns all arguments by place.

    Those by name follow in the order of the parameters, or in their order if these are unknown.
    """
    if entry_point.signature is None:
        return (*given, *named.values())
    try:
        bound = entry_point.signature.bind(*given, **named)
        if not bound.kwargs:
            return bound.args
        name = next(iter(bound.kwargs))
        places = list(bound.signature.parameters)
        left_out = [other for other in places[: places.index(name)] if other not in bound.arguments]
        reason = f"{name!r} can only be given by name"
        if left_out:
            reason += f", because {left_out[0]!r} is not given"
    except TypeError as error:
        reason = str(error)

    raise ValueError(
        f"the arguments must fit {entry_point.function}{entry_point.signature}; "
        f"got {len(given)} by place and {list(named)} by name: {reason}"
    )


class _JSONNames(ast.NodeTransformer):
    """Replaces the names true, false and null by constants."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        """Replaces one name."""
        if node.id not in _JSON_NAMES:
            return node
        return ast.copy_location(ast.Constant(_JSON_NAMES[node.id]), node)


def _literal(node: ast.expr) -> Any:
    """Returns the value of a literal expression."""
    try:
        return ast.literal_eval(_JSONNames().visit(node))
    except (ValueError, TypeError, RecursionError, MemoryError) as error:
        raise ValueError(f"must be a literal; got `{_source(node, 60)}`") from error


def _parse_value(text: str) -> Any:
    """Returns the value that a text spells as JSON, or else as Python."""
    try:
        return decode(text)
    except ValueError:
        tree = parse(text.strip(), "eval", strict=True)
    assert isinstance(tree, ast.Expression)
    return _literal(tree.body)


def _source(node: ast.expr, length: int) -> str:
    """Returns the beginning of an expression's source."""
    try:
        return ast.unparse(node)[:length]
    except RecursionError:
        return "..."
