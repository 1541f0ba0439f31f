"""Checks of problem files: a solution that a grader would refuse is named.

The exit code tells, too.
"""

import json

import pytest

from hpenv.posttraining.grading import check_problems
from hpenv.posttraining.grading.check_problems import main
from hpenv.posttraining.grading.shared_sandbox import SharedSandbox
from hpenv.posttraining.sandbox import Sandbox, SandboxUnavailable

RECORD = {"description": "Twice x.", "entry_point": "f", "tests": ["assert f(2) == 4"]}
RIGHT = RECORD | {"name": "right", "solution": "def f(x): return 2 * x"}
WITHOUT = {name: value for name, value in RIGHT.items() if name != "solution"} | {"name": "without"}
WRONG = RIGHT | {"name": "off-by-one", "solution": "def f(x): return 2 * x + 1"}
UNIMPORTED = RIGHT | {"name": "no-import", "solution": "def f(x: List[int]): return 2 * x"}
IMPORTED = UNIMPORTED | {"name": "imported", "setup_code": "from typing import List"}


@pytest.fixture(autouse=True, scope="module")
def _needs_a_sandbox():
    try:
        Sandbox().close()
    except SandboxUnavailable:
        pytest.skip("programs cannot be executed safely here")


def write(path, *records):
    path.write_text("\n".join(map(json.dumps, records)))
    return str(path)


def test_solutions_that_fail_their_tests_are_named_and_others_counted(tmp_path, capsys):
    bad = write(tmp_path / "bad.jsonl", RIGHT, WRONG, WITHOUT, UNIMPORTED, IMPORTED)
    good = write(tmp_path / "good.jsonl", RIGHT | {"name": "also right"}, RECORD)
    assert main([bad, good]) == 1
    first, *named, last = capsys.readouterr().out.splitlines()
    assert first == f"{bad}: 5 problems, 2 solved by their own solution, 2 not, 1 without one"
    assert named == [
        "  not solved by its own solution: off-by-one: test 1 of 1: f(2) must be 4; got 5",
        "  not solved by its own solution: no-import: ended before any answer with exit code 1: "
        "NameError: name 'List' is not defined",
    ]
    assert last == f"{good}: 2 problems, 1 solved by their own solution, 0 not, 1 without one"


def test_a_file_without_a_wrong_solution_gives_no_error(tmp_path):
    assert main([write(tmp_path / "good.jsonl", RIGHT, WITHOUT)]) == 0


def test_a_file_that_cannot_be_read_is_an_error_of_one_line(tmp_path, capsys):
    assert main([write(tmp_path / "good.jsonl", RIGHT), str(tmp_path / "none.jsonl")]) == 2
    out, err = capsys.readouterr()
    assert (
        out == ""
        and err.startswith("error: ")
        and "none.jsonl cannot be read" in err
        and err.count("\n") == 1
    )


def test_all_that_cannot_be_read_is_told_before_anything_is_run(tmp_path, capsys):
    mixed = write(tmp_path / "mixed.jsonl", RIGHT, 3, WITHOUT | {"tests": []})
    assert (
        main(
            [write(tmp_path / "good.jsonl", WRONG), mixed, write(tmp_path / "other", RIGHT, RECORD)]
        )
        == 1
    )
    first, *others, cure = capsys.readouterr().out.splitlines()
    assert first == "error: 2 files of problems cannot be read:" and "--skip-unreadable" in cure
    reasons = [
        f"{mixed}, line 2: must be",
        f"{mixed}, line 3: field 'tests': must have at least one test",
        f"{tmp_path}/other, line 1: ",
    ]
    assert all(line.startswith(f"  {reason}") for line, reason in zip(others, reasons, strict=True))


def test_the_lines_that_can_be_read_are_checked_on_request(tmp_path, capsys):
    mixed = write(tmp_path / "mixed.jsonl", RIGHT, 3)
    assert main(["--skip-unreadable", mixed]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{mixed}: 1 problems, 1 solved by their own solution, 0 not, 0 without one",
        f"  left out: {mixed}, line 2: must be an object; got 3",
    ]
    assert main(["--skip-unreadable", mixed, write(tmp_path / "none.jsonl", 3)]) == 1
    assert capsys.readouterr().out.startswith("error: ")


def test_the_processor_time_of_a_program_is_an_argument(tmp_path, capsys, monkeypatch):
    asked = []

    def sandbox(**arguments):
        asked.append(arguments)
        return SharedSandbox(**arguments)

    monkeypatch.setattr(check_problems, "SharedSandbox", sandbox)
    path = write(tmp_path / "good.jsonl", RIGHT)
    assert main([path, "--cpu-seconds", "20"]) == main([path]) == 0
    assert asked == [{"cpu_seconds": 20}, {"cpu_seconds": 1}]
    assert main([path, "--cpu-seconds", "0"]) == 2
    assert (
        capsys.readouterr().err == "error: cpu_seconds must be an integer from 1 to 3600; got 0\n"
    )
