"""Checking files of problems: a solution that a grader would refuse is named, and the exit code tells."""

import json

import pytest

from hpenv.posttraining.check_problems import main
from hpenv.posttraining.sandbox import Sandbox, SandboxUnavailable

RECORD = {"name": "right", "description": "Twice x.", "entry_point": "f", "tests": ["assert f(2) == 4"]}
RIGHT = RECORD | {"solution": "def f(x): return 2 * x"}
WITHOUT = {name: value for name, value in RIGHT.items() if name != "solution"} | {"name": "without"}
WRONG = RIGHT | {"name": "off-by-one", "solution": "def f(x): return 2 * x + 1"}
UNIMPORTED = RIGHT | {"name": "no-import", "solution": "def f(x: List[int]): return 2 * x"}
IMPORTED = UNIMPORTED | {"name": "imported", "setup_code": "from typing import List"}


@pytest.fixture(autouse=True)
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
    good = write(tmp_path / "good.jsonl", RIGHT, WITHOUT)
    assert main([bad, good]) == 1
    first, *named, last = capsys.readouterr().out.splitlines()
    assert first == f"{bad}: 5 problems, 2 solved by their own solution, 2 not, 1 without one"
    assert [line.rpartition(" ")[2] for line in named] == ["off-by-one", "no-import"]
    assert last == f"{good}: 2 problems, 1 solved by their own solution, 0 not, 1 without one"


def test_a_file_without_a_wrong_solution_gives_no_error(tmp_path):
    assert main([write(tmp_path / "good.jsonl", RIGHT, WITHOUT)]) == 0


def test_a_file_that_cannot_be_read_is_an_error_of_one_line(tmp_path, capsys):
    assert main([str(tmp_path / "none.jsonl")]) == 1
    out = capsys.readouterr().out
    assert out.startswith("error: ") and "cannot be read" in out and out.count("\n") == 1
