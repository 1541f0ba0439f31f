"""Reads problems from JSONL files with the fields that LeetCode-style sets have.

One JSON object a line. Of several names for a field the first that is present counts; fields that
are not in the table are left alone:

| field | names | form |
|---|---|---|
| name | `task_id`, `id`, `name` | text or a whole number, given once in all files; the number of the line if absent |
| description | `problem_description`, `question`, `description`, `prompt` | text; required |
| entry point | `entry_point`, `func_name` | `f`, `Solution().f` or `Solution.f`; required |
| tests | `input_output`, `gt_answer`, `tests`, `test_list`, `test` | see below; required, one at least |
| solution | `canonical_solution`, `completion`, `solution` | source, or what continues `prompt` (HumanEval) |
| starter | `starter_code` | source that is shown after the description |
| setup | `setup_code`, or a `prompt` that is no description but source | is executed before every program |
| examples | `examples` | like tests; shown in the prompt |

Tests are assert statements (one text, a list of them, or the body of a function in the text), or
objects with `input` (a list of arguments, an object of arguments by name, or a text such as `xs =
[1, 2], k = 3`) and `output` (a JSON value, or the text of one if `input` is text). Asserts are
read, never executed: `call == literal` either way round, `call is True`, `call`, `not call`.
Arguments by name are put in the order of the solution's parameters, or the starter's, or the
prompt's, or, where none is known, as they stand. Texts spell values as JSON or as Python does. A
value has to be one of JSON's: a tuple or a set is an error, as is all else that cannot be read.
"""

from __future__ import annotations

import keyword
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hpenv.posttraining.cases import EntryPoint, cases
from hpenv.posttraining.jsonl import check_text, decoded_line, is_one_value, read_lines, shown
from hpenv.posttraining.sources import signature, why_no_source
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
_ENTRY_POINT = re.compile(r"(?:(\w+)(?:\(\))?\.)?(\w+)")


class Reading(NamedTuple):
    """Problems and refusals of one file.

    Attributes:
        path: the file.
        problems: of the lines that can be read.
        refusals: one text with file, lines and reason for each reason why something cannot be read.
    """

    path: str
    problems: list[Problem]
    refusals: list[str]


def read_problems(path: str | Path, skip_unreadable: bool = False) -> list[Problem]:
    """Reads all problems of one file; see `read_problem_files`."""
    return read_problem_files([path], skip_unreadable)[0]


def read_problem_files(
    paths: Sequence[str | Path], skip_unreadable: bool = False
) -> list[list[Problem]]:
    """Reads all problems of several files that belong together; blank lines are skipped.

    Args:
        paths: the files.
        skip_unreadable: leave out the lines that cannot be read, with a warning that lists them.

    Returns:
        The problems of each file.

    Raises:
        ValueError: for what cannot be read, all of it in one error, with file, line and field. With
            `skip_unreadable`, only if a file is left without a problem.
    """
    if isinstance(paths, str | os.PathLike):
        raise ValueError(f"paths must be a list of paths; got {paths!r}")
    found = readings(paths)
    if any(not reading.problems or (reading.refusals and not skip_unreadable) for reading in found):
        raise ValueError(refusal(found))
    if any(reading.refusals for reading in found):
        lines = "\n  ".join(line for reading in found for line in reading.refusals)
        warnings.warn(
            f"left out of the problems, since it cannot be read:\n  {lines}", stacklevel=2
        )
    return [reading.problems for reading in found]


def readings(paths: Sequence[str | Path]) -> list[Reading]:
    """Reads files as far as they can be read; a name that was given before is refused, and so is a file."""
    taken: dict[
        tuple[str, str], str
    ] = {}  # (file, or empty for a name of its own, and name) -> place
    found: list[Reading] = []
    for place, path in enumerate(paths):
        if any(str(path) == str(other) for other in paths[:place]):
            found.append(
                Reading(str(path), [], [f"{path} is given twice; expected every file once"])
            )
        else:
            found.append(_reading(path, taken))
    return found


def refusal(found: Sequence[Reading]) -> str:
    """The text of the error that lists all that cannot be read."""
    refused = [reading for reading in found if reading.refusals]
    lines = [line for reading in refused for line in reading.refusals]
    if len(lines) > 1:
        lines = [
            f"{len(refused)} file{'s' * (len(refused) > 1)} of problems cannot be read:",
            *lines,
        ]
    if all(reading.problems for reading in found):
        lines.append(
            "Mend these lines, or leave them out with skip_unreadable=True (check_problems --skip-unreadable)."
        )
    return "\n  ".join(lines)


def _reading(path: str | Path, taken: dict[tuple[str, str], str]) -> Reading:
    """Reads one file; `taken` are the names of those before it."""
    try:
        lines = read_lines(path)
    except ValueError as error:
        return Reading(str(path), [], [str(error)])
    problems: list[Problem] = []
    refused: dict[str, list[int]] = {}  # reason -> lines
    for number, line in lines.items():
        try:
            problem = _problem(record := decoded_line(line), number)
            field = _field(record, "name")
            keys = [(str(path), problem.name)] + [("", problem.name)] * (field in record)
            if before := [taken[key] for key in keys if key in taken]:
                raise ValueError(
                    f"field {field!r}: the name {shown(problem.name)} is taken; expected another than in {before[0]}"
                )
        except (ValueError, RecursionError) as error:
            reason = "it is nested too deep" if isinstance(error, RecursionError) else str(error)
            refused.setdefault(reason, []).append(number)
        else:
            taken |= {key: f"{path}, line {number}" for key in keys}
            problems.append(problem)
    if not problems and len(lines) > 1 and is_one_value(lines.values()):
        return Reading(
            str(path),
            [],
            [
                f"{path} is one JSON value of several lines; expected JSONL, which has an object a line"
            ],
        )
    refusals = [f"{path}, line{_numbers(numbers)}: {reason}" for reason, numbers in refused.items()]
    if not problems and not refusals:
        refusals = [f"{path} has no problem in it; expected one JSON object a line"]
    return Reading(str(path), problems, refusals)


def _numbers(numbers: Sequence[int]) -> str:
    """Numbers of lines as a text: ` 3`, or `s 3, 5-9`."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][-1] + 1:
            ranges[-1] = [ranges[-1][0], number]
        else:
            ranges.append([number])
    return f"{'s' * (len(numbers) > 1)} " + ", ".join(
        "-".join(map(str, bounds)) for bounds in ranges
    )


def _problem(record: Mapping[str, Any], number: int) -> Problem:
    """The problem of one line."""
    class_name, function = _entry_point(record)
    description, starter = _text(record, "description", required=True), _text(record, "starter")
    solution, setup = _sources(record)
    known = (
        solution,
        starter,
        f"{starter.rstrip()} pass",
        f"{starter}\n    pass",
        f"{starter}\n        pass",
    )
    prompt = record.get("prompt")
    found = (
        signature(text, class_name, function)
        for text in (*known, prompt)
        if text and isinstance(text, str)
    )
    entry_point = EntryPoint(
        function, class_name, next((each for each in found if each is not None), None)
    )
    return Problem(
        name=_name(record, number),
        entry_point=function,
        description="\n".join(part for part in (description.strip(), starter.rstrip()) if part),
        examples=_cases(record, "examples", entry_point),
        tests=_cases(record, "tests", entry_point),
        solution=solution,
        class_name=class_name,
        setup=setup,
    )


def _sources(record: Mapping[str, Any]) -> tuple[str, str]:
    """Solution and setup. A prompt that is source begins the solution, or else is the setup."""
    solution, setup, prompt = (
        _text(record, "solution"),
        _text(record, "setup"),
        record.get("prompt"),
    )
    if isinstance(prompt, str):
        if solution and why_no_source(solution) and not why_no_source(prompt + solution):
            solution = prompt + solution
        elif not setup and _field(record, "description") != "prompt" and not why_no_source(prompt):
            setup = prompt
    for what, source in (("solution", solution), ("setup", setup)):
        if why := why_no_source(source):
            raise ValueError(f"field {_field(record, what)!r}: no Python source: {why}")
    return solution if solution.strip() else "", setup


def _field(record: Mapping[str, Any], what: str, required: bool = False) -> str:
    """The first of a field's names that is present; the first of all if none is."""
    present = [name for name in FIELDS[what] if record.get(name) is not None]
    if required and not present:
        raise ValueError(f"no {what}; expected one of the fields {list(FIELDS[what])}")
    return (present or list(FIELDS[what]))[0]


def _text(record: Mapping[str, Any], what: str, required: bool = False) -> str:
    """The text in a field; empty if it is absent."""
    field = _field(record, what, required)
    value = record.get(field)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"field {field!r} must be text; got {shown(value)}")
    if required and not value.strip():
        raise ValueError(f"field {field!r} must be text that is not blank; got {shown(value)}")
    try:
        check_text(value)
    except ValueError as error:
        raise ValueError(f"field {field!r}: {error}") from error
    return value


def _name(record: Mapping[str, Any], number: int) -> str:
    """The problem's name, or else the number of its line."""
    field = _field(record, "name")
    value = record.get(field)
    if value is None:
        return f"line {number}"
    if type(value) is int:
        return str(value)
    if not isinstance(value, str):
        raise ValueError(f"field {field!r} must be text or a whole number; got {shown(value)}")
    return _text(record, "name", required=True)


def _entry_point(record: Mapping[str, Any]) -> tuple[str, str]:
    """Names of the class, empty if there is none, and of the function."""
    text = _text(record, "entry point", required=True)
    match = _ENTRY_POINT.fullmatch(text)
    names = [] if match is None else [name for name in match.groups() if name is not None]
    if not names or not all(name.isidentifier() and not keyword.iskeyword(name) for name in names):
        field = _field(record, "entry point")
        raise ValueError(
            f"field {field!r} must be `f`, `Solution().f` or `Solution.f`; got {shown(text)}"
        )
    return ("", *names)[-2], names[-1]


def _cases(record: Mapping[str, Any], what: str, entry_point: EntryPoint) -> tuple[Case, ...]:
    """The cases in a field; of tests there has to be one."""
    field = _field(record, what, required=what == "tests")
    entries = record.get(field)
    try:
        found = () if entries is None else cases(entries, entry_point)
        if what == "tests" and not found:
            raise ValueError("no test in it")
    except ValueError as error:
        raise ValueError(f"field {field!r}: {error}") from error
    return found
