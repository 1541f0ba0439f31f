"""Reads problems from a JSONL file with the fields that LeetCode-style sets have.

One JSON object a line. Of several names for a field the first that is present counts:

| field | names | form |
|---|---|---|
| name | `task_id`, `id`, `name` | text or number; the number of the line if absent |
| description | `problem_description`, `question`, `description`, `prompt` | text; required |
| entry point | `entry_point`, `func_name` | `f`, `Solution().f` or `Solution.f`; required |
| tests | `input_output`, `gt_answer`, `tests`, `test_list`, `test` | see below; required, one at least |
| solution | `canonical_solution`, `completion`, `solution` | source, or what continues `prompt` (HumanEval) |
| starter | `starter_code` | source that is shown after the description |
| setup | `setup_code`, or a `prompt` that is no description but source | stands before every program |
| examples | `examples` | like tests; shown in the prompt |

Tests are assert statements (one text, a list of them, or the body of a function in the text), or objects with `input`
(a list of arguments, an object of arguments by name, or a text such as `xs = [1, 2], k = 3`) and `output` (a JSON
value, or the text of one if `input` is text). Asserts are read, never executed: `call == literal` either way round,
`call is True`, `call`, `not call`. Arguments by name are put in the order of the solution's, or the starter's, or,
without either, as they stand. Literals are JSON's: a tuple or a set is an error, as is all else that cannot be read.
"""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hpenv.posttraining.tasks import Case, Problem

FIELDS: dict[str, tuple[str, ...]] = {
    "name": ("task_id", "id", "name"),
    "description": ("problem_description", "question", "description", "prompt"),
    "entry point": ("entry_point", "func_name"),
    "tests": ("input_output", "gt_answer", "tests", "test_list", "test"),
    "solution": ("canonical_solution", "completion", "solution"),
    "starter": ("starter_code",),
    "setup": ("setup_code",),
    "examples": ("examples",),
}
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def read_problems(path: str | Path) -> list[Problem]:
    """Reads all problems of a JSONL file; empty lines are skipped.

    Raises:
        ValueError: for what cannot be read, with file, line and field.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"problems={str(path)!r} cannot be read ({error}); expected a JSONL file in UTF-8") from error
    problems = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                problems.append(_problem(json.loads(line, parse_constant=_refused), number))
            except (ValueError, RecursionError) as error:  # json's own errors are such
                raise ValueError(f"{path}, line {number}: {error}") from error
    if not problems:
        raise ValueError(f"{path} has no problem in it; expected one JSON object a line")
    return problems


def _refused(constant: str) -> None:
    """What Python's json reads and JSON does not have."""
    raise ValueError(f"{constant} is no number of JSON's")


def _problem(record: Any, number: int) -> Problem:
    """The problem of one line."""
    if not isinstance(record, dict):
        raise ValueError(f"the line is a {type(record).__name__}; expected an object")
    entry_point, class_name = _entry_point(_text(record, "entry point"))
    description_field = _field(record, "description", required=True)
    starter = _text(record, "starter", "")
    description = "\n".join(part for part in (_text(record, "description").strip(), starter.rstrip()) if part)
    solution, setup = _text(record, "solution", ""), _text(record, "setup", "")
    prompt = record.get("prompt")
    if isinstance(prompt, str):
        if solution and not _is_source(solution) and _is_source(prompt + solution):
            solution = prompt + solution
        elif not setup and description_field != "prompt" and _is_source(prompt):
            setup = prompt
    if solution and not _is_source(solution):
        raise ValueError(f"field {_field(record, 'solution')!r}: no Python source")
    parameters = _parameters(solution, entry_point) or _parameters(f"{starter.rstrip()} pass", entry_point)
    tests = _cases(record, "tests", entry_point, parameters)
    if not tests:
        raise ValueError(f"field {_field(record, 'tests', required=True)!r}: no test in it")
    return Problem(
        name=str(record.get(_field(record, "name"), f"line {number}")),
        entry_point=entry_point,
        description=description,
        examples=_cases(record, "examples", entry_point, parameters),
        tests=tests,
        solution=solution,
        class_name=class_name,
        setup=setup,
    )


def _field(record: Mapping[str, Any], what: str, required: bool = False) -> str:
    """The first of a field's names that is present; the first of all if none is."""
    present = [name for name in FIELDS[what] if record.get(name) is not None]
    if required and not present:
        raise ValueError(f"no {what}; expected one of the fields {list(FIELDS[what])}")
    return (present or list(FIELDS[what]))[0]


def _text(record: Mapping[str, Any], what: str, default: str | None = None) -> str:
    """The text in a field."""
    field = _field(record, what, required=default is None)
    value = record.get(field, default)
    if value is None:
        return default or ""
    if not isinstance(value, str):
        raise ValueError(f"field {field!r} is a {type(value).__name__}; expected text")
    return value


def _entry_point(text: str) -> tuple[str, str]:
    """Names of the function and of its class, empty if there is none."""
    *class_name, function = text.replace("()", "").split(".")
    if len(class_name) > 1 or not all(name.isidentifier() for name in (*class_name, function)):
        raise ValueError(f"entry point {text!r}; expected `f`, `Solution().f` or `Solution.f`")
    return function, class_name[0] if class_name else ""


def _is_source(text: str) -> bool:
    """Whether a text is a Python program."""
    try:
        ast.parse(text)
    except (SyntaxError, ValueError):
        return False
    return True


def _parameters(source: str, function: str) -> tuple[str, ...]:
    """Names of a function's parameters without `self`; none if the source is no program or has no such function."""
    if not _is_source(source):
        return ()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, _DEFINITIONS) and node.name == function:
            return tuple(entry.arg for entry in node.args.args if entry.arg != "self")
    return ()


def _cases(record: Mapping[str, Any], what: str, function: str, parameters: tuple[str, ...]) -> tuple[Case, ...]:
    """The cases in a field."""
    field = _field(record, what)
    entries = record.get(field)
    try:
        return tuple(
            case
            for entry in (entries if isinstance(entries, list) else [] if entries is None else [entries])
            for case in _entry_cases(entry, function, parameters)
        )
    except (SyntaxError, TypeError, ValueError) as error:
        raise ValueError(f"field {field!r}: {error}") from error


def _entry_cases(entry: Any, function: str, parameters: tuple[str, ...]) -> Iterator[Case]:
    """The cases of one assert text or of one object with input and output."""
    if isinstance(entry, str):
        found = [node for node in ast.walk(ast.parse(entry)) if isinstance(node, ast.Assert)]
        if not found:
            raise ValueError(f"no assert statement in {entry[:60]!r}")
        yield from (_asserted(node.test, function, parameters) for node in found)
        return
    if not isinstance(entry, dict) or not {"input", "output"} <= set(entry):
        raise ValueError(f"{entry!r:.60}; expected an assert statement or an object with input and output")
    given, result = entry["input"], entry["output"]
    if isinstance(given, str):
        call = ast.parse(f"f({given})", mode="eval").body
        assert isinstance(call, ast.Call)
        value = _literal(ast.parse(result, mode="eval").body) if isinstance(result, str) else result
        yield _arguments(call, parameters), value
    elif isinstance(given, dict):
        yield _ordered([], given, parameters), result
    elif isinstance(given, list):
        yield tuple(given), result
    else:
        raise ValueError(f"input is a {type(given).__name__}; expected a list, an object or text")


def _asserted(test: ast.expr, function: str, parameters: tuple[str, ...]) -> Case:
    """The case that one assert states."""
    if isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], ast.Eq | ast.Is):
        left, right = test.left, test.comparators[0]
        call, result = (left, right) if _is_call(left, function) else (right, left)
        if _is_call(call, function):
            return _arguments(call, parameters), _literal(result)
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not) and _is_call(test.operand, function):
        return _arguments(test.operand, parameters), False
    if _is_call(test, function):
        return _arguments(test, parameters), True
    raise ValueError(f"cannot read `assert {ast.unparse(test)[:80]}`; expected `{function}(...) == literal`")


def _is_call(node: ast.expr, function: str) -> bool:
    """Whether an expression calls the function, by its name, as a method or as the parameter of a check."""
    if not isinstance(node, ast.Call):
        return False
    name = node.func.attr if isinstance(node.func, ast.Attribute) else ast.unparse(node.func)
    return name in (function, "candidate")


def _arguments(node: ast.expr, parameters: tuple[str, ...]) -> tuple[Any, ...]:
    """The arguments of a call, in the order of the parameters."""
    assert isinstance(node, ast.Call)
    named = {keyword.arg or "**": _literal(keyword.value) for keyword in node.keywords}
    return _ordered([_literal(argument) for argument in node.args], named, parameters)


def _ordered(given: list[Any], named: Mapping[str, Any], parameters: tuple[str, ...]) -> tuple[Any, ...]:
    """Arguments by place, then those by name in the order of the parameters, or as they stand if these are unknown."""
    names = list(parameters[len(given) :]) if parameters else list(named)
    names = names[: len(named)]  # what follows has its default
    if set(names) != set(named):
        raise ValueError(f"arguments {sorted(named)} do not fill the parameters {list(parameters)} from the left")
    return (*given, *(named[name] for name in names))


def _literal(node: ast.expr) -> Any:
    """The JSON value that an expression spells."""
    try:
        value = ast.literal_eval(node)
    except ValueError as error:
        raise ValueError(f"`{ast.unparse(node)[:60]}` is no literal") from error
    _check_json(value)
    return value


def _check_json(value: Any) -> None:
    """Refuses what JSON would turn into something else."""
    if isinstance(value, dict) and all(type(key) is str for key in value):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            _check_json(item)
    elif not (value is None or type(value) in (bool, int, str) or (type(value) is float and math.isfinite(value))):
        raise ValueError(f"{value!r:.60} is no JSON value")
