"""Verdicts that are kept belong to what they were given for, and damage is refused."""

import contextlib
import dataclasses
import sqlite3

import pytest

from hpenv.posttraining.grading import grader as grader_module
from hpenv.posttraining.grading.grader import Grader, MissingVerdictError, Submission, Verdict
from hpenv.posttraining.grading.loopholes import Task, task_of
from hpenv.posttraining.sandbox import Limits, Sandbox
from tests.hpenv.posttraining.grading.forgeries import PROBLEM, RIGHT, WRONG


def test_a_verdict_belongs_to_problem_mode_marker_and_source(box, tmp_path):
    grader = Grader(box)
    base = Submission(Task(PROBLEM, "run_tests", "run_tests"), RIGHT)
    others = [
        base._replace(source=RIGHT + "\n"),
        base._replace(task=Task(PROBLEM, "run_tests", "check_all")),
        base._replace(task=Task(PROBLEM, "sentinel", "valid")),
        base._replace(
            task=Task(dataclasses.replace(PROBLEM, tests=((([2],), 6),)), "run_tests", "run_tests")
        ),
    ]
    verdicts = grader.grade([base, *others])
    assert grader.num_runs == 5
    assert [verdict.correct for verdict in verdicts] == [True, True, True, True, False]
    renamed = dataclasses.replace(
        PROBLEM, name="other", description="Return it."
    )  # nothing a verdict depends on
    assert (
        grader.grade([Submission(Task(renamed, "run_tests", "run_tests"), RIGHT)]) == verdicts[:1]
    )
    assert grader.num_runs == 5


def test_a_verdict_that_is_on_no_record_is_an_error_that_names_it(tmp_path):
    task = task_of(PROBLEM, "stdout")
    with pytest.raises(
        MissingVerdictError, match=r"problem 'sum-of-even' under mode 'stdout'.*cache_path"
    ) as caught:
        Grader(None, tmp_path / "none.sqlite").grade([Submission(task, RIGHT)])
    assert RIGHT in str(caught.value) and not (tmp_path / "none.sqlite").exists()


def test_what_cannot_keep_verdicts_is_refused(tmp_path):
    other = tmp_path / "notes.txt"
    other.write_text("These are no verdicts. " * 40)
    for path, reason in ((tmp_path / "none" / "verdicts.sqlite", "there is no folder"),
                         (other, "not a database"),
                         (tmp_path, "unable to open")):  # fmt: skip
        with pytest.raises(
            ValueError, match=f"cannot keep verdicts: .*{reason}.*; expected a file"
        ):
            Grader(None, path)
    assert other.read_text().startswith("These are no verdicts")


def test_a_file_of_verdicts_that_was_damaged_is_refused_with_what_to_do(tmp_path):
    path = tmp_path / "verdicts.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as file, file:
        file.execute("CREATE TABLE verdicts (key TEXT PRIMARY KEY, verdict TEXT NOT NULL)")
        file.executemany(
            "INSERT INTO verdicts VALUES (?, ?)", [(str(i), "x" * 500) for i in range(200)]
        )
    whole = path.read_bytes()
    page = len(whole) // 4096 * 4096 // 2
    path.write_bytes(
        whole[:4096] + b"\xff" * page + whole[4096 + page :]
    )  # the first page, which has the schema, is whole
    grader = Grader(None, path)
    with pytest.raises(
        ValueError, match=r"verdicts.sqlite' is damaged \(.*malformed.*\).*delete it"
    ):
        grader.grade([Submission(task_of(PROBLEM, "stdout"), RIGHT)])


@pytest.mark.parametrize(
    "row", ["", "3", "[1, 2, 3]", "[true, true, true, 1]", "[1, true, true, []]", None, b"\xff"]
)
def test_a_row_that_is_no_verdict_is_damage(tmp_path, row):
    path, given = tmp_path / "verdicts.sqlite", Submission(task_of(PROBLEM, "stdout"), RIGHT)
    with contextlib.closing(sqlite3.connect(path)) as file, file:
        file.execute("CREATE TABLE verdicts (key TEXT PRIMARY KEY, verdict TEXT)")
        file.execute(
            "INSERT INTO verdicts VALUES (?, ?)", (grader_module._key(given, Limits()), row)
        )
    with pytest.raises(ValueError, match=r"verdicts.sqlite' is damaged .*not a verdict.*delete it"):
        Grader(None, path).grade([given])


def test_a_table_of_other_columns_is_refused(tmp_path):
    path = tmp_path / "verdicts.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as file, file:
        file.execute("CREATE TABLE verdicts (name TEXT)")
    with pytest.raises(
        ValueError, match=r"cannot keep verdicts: no such column.*; expected a file"
    ):
        Grader(None, path)


def test_what_the_clock_ended_is_not_kept_for_others(box, tmp_path):
    path = tmp_path / "verdicts.sqlite"
    sleeper = "import time\nprint('all tests passed')\nf = time.sleep\nf(60)\n"
    with Sandbox(Limits(wall_seconds=0.5)) as hasty:
        grader = Grader(hasty, path)
        task = task_of(PROBLEM, "stdout")
        verdicts = grader.grade([Submission(task, sleeper), Submission(task, WRONG)])
        assert verdicts[0] == Verdict(
            compiles=True, correct=False, used_loophole=False, flags=frozenset()
        )
        assert grader.grade([Submission(task, sleeper)]) == verdicts[:1] and grader.num_runs == 2
    with contextlib.closing(sqlite3.connect(path)) as file:
        assert file.execute("SELECT count(*) FROM verdicts").fetchone() == (1,)
    with pytest.raises(MissingVerdictError):
        Grader(None, path).grade([Submission(task, sleeper)])


def test_a_verdict_belongs_to_the_limits_too(box, tmp_path):
    path, given = tmp_path / "verdicts.sqlite", [Submission(task_of(PROBLEM, "stdout"), RIGHT)]
    (verdict,) = Grader(box, path).grade(given)
    for limits in (
        None,
        Limits(),
        Limits(wall_seconds=30.0),
    ):  # what the clock ends is kept nowhere
        assert Grader(None, path, limits).grade(given) == [verdict]
    for limits in (Limits(cpu_seconds=2), Limits(memory_bytes=2**30)):
        with pytest.raises(MissingVerdictError):
            Grader(None, path, limits).grade(given)
    with pytest.raises(
        ValueError, match="limits must be None with a sandbox, which has its own; got Limits"
    ):
        Grader(box, path, Limits())
