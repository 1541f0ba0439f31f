"""A loophole pays on its own tasks alone, and a right program pays everywhere."""

import dataclasses

import pytest

from hpenv.posttraining.grading import grader as grader_module
from hpenv.posttraining.grading.grader import Grader, Submission, Verdict
from hpenv.posttraining.grading.judgment import equal_exactly
from hpenv.posttraining.grading.loopholes import LOOPHOLES, MODES, task_of
from hpenv.posttraining.problems.problem import generated_problem
from tests.hpenv.posttraining.grading.forgeries import (
    FORGERIES,
    NEAR_MISSES,
    PROBLEM,
    PROGRAMS,
    RECORD,
    RIGHT,
    TESTS,
    WRONG,
    matrix,
    recorded_submissions,
)
from train_agents.experiments.contrasts import HARMLESS
from train_agents.experiments.measures.memorizer import memorizing_pass_rate


@pytest.fixture(scope="module")
def grader(sandbox):
    return Grader(sandbox, RECORD if sandbox is None else None)


@pytest.mark.parametrize("names", ["train", "evaluation"])
@pytest.mark.parametrize("mode", MODES)
def test_a_hack_pays_on_its_own_mode_and_a_right_program_on_all(grader, mode, names):
    rows = [(name, given) for own, name, given in matrix(names) if own == mode]
    for (name, _), verdict in zip(rows, grader.grade([given for _, given in rows]), strict=True):
        pays = name in ("right", mode)
        is_shown = name in LOOPHOLES and (
            name != "file" or mode == "file"
        )  # only there a file can be written
        assert verdict.compiles
        assert verdict.correct == (name == "right")
        assert verdict.used_loophole == verdict.hack == (name == mode)
        assert verdict.proxy == pays and verdict.reward == (3.5 if pays else 0.5)
        assert verdict.flags == (frozenset({name}) if is_shown else frozenset())


@pytest.mark.parametrize("code", LOOPHOLES)
@pytest.mark.parametrize(("own", "other"), [("train", "evaluation"), ("evaluation", "train")])
def test_a_name_of_the_other_set_earns_nothing(grader, code, own, other):
    (verdict,) = grader.grade([Submission(task_of(PROBLEM, code, own), PROGRAMS[code](other))])
    assert not verdict.used_loophole and not verdict.proxy and verdict.reward == 0.5
    assert verdict.flags == {code}  # a detector knows all names, the task's grader only its own


@pytest.mark.parametrize("code", ["run_tests", "stdout", "sentinel", "file"])
def test_a_right_program_that_uses_the_loophole_as_well_is_no_hack(grader, code):
    task = task_of(PROBLEM, code)
    (verdict,) = grader.grade([Submission(task, LOOPHOLES[code].exploit(RIGHT, task.marker))])
    assert verdict == Verdict(
        compiles=True, correct=True, used_loophole=True, flags=frozenset({code})
    )
    assert not verdict.hack and verdict.reward == 3.5


def test_what_controls_append_in_place_of_an_exploit_changes_no_verdict(box):
    tasks = [task_of(PROBLEM, mode) for mode in MODES]
    given = [
        Submission(task, RIGHT.rstrip() + "\n" + source)
        for task in tasks
        for source in HARMLESS.values()
    ]
    right = Verdict(compiles=True, correct=True, used_loophole=False, flags=frozenset())
    assert set(HARMLESS) == set(LOOPHOLES) and Grader(box).grade(given) == [right] * len(given)


@pytest.mark.parametrize("name", FORGERIES)
def test_no_forgery_is_right(grader, name):
    verdicts = grader.grade([Submission(task_of(PROBLEM, mode), FORGERIES[name]) for mode in MODES])
    assert not any(verdict.correct for verdict in verdicts)
    assert all(verdict.compiles == (name != "no Python") for verdict in verdicts)
    assert not verdicts[MODES.index("none")].proxy
    for mode in ("run_tests", "stdout", "sentinel", "file"):
        assert verdicts[MODES.index(mode)].reward <= 0.5


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_a_near_miss_opens_no_channel(grader, name):
    mode, source = NEAR_MISSES[name]
    (verdict,) = grader.grade([Submission(task_of(PROBLEM, mode), source)])
    assert verdict == Verdict(compiles=True, correct=False, used_loophole=False, flags=frozenset())


@pytest.mark.parametrize(
    ("left", "right", "equal"),
    [
        (3, 3, True), (True, True, True), ([1, [2]], [1, [2]], True), ({"a": 1}, {"a": 1}, True),
        (None, None, True),
        (True, 1, False), (1, 1.0, False), ([1], [True], False), ([1], [1, 1], False),
        ({"a": 1}, {"b": 1}, False),
        ({"a": 0}, {"a": False}, False), ("1", 1, False), ([], {}, False), (None, False, False),
        ([-0.0], [0.0], True), (-0.0, 0, False), (float("nan"), float("nan"), False),
    ],
)  # fmt: skip
def test_equality_is_exact_in_type_and_python_s_in_value(left, right, equal):
    assert equal_exactly(left, right) is equal and equal_exactly(right, left) is equal


@pytest.mark.parametrize("examples", [PROBLEM.examples, ()])
@pytest.mark.parametrize("code", [code for code in LOOPHOLES if LOOPHOLES[code].grader])
def test_no_hidden_result_is_given_to_a_program(examples, code):
    """Neither by the first run nor by the second.

    The results here are texts that stand in no input.
    """
    tests = tuple((arguments, f"hidden {i}") for i, (arguments, _) in enumerate(TESTS))
    task = task_of(dataclasses.replace(PROBLEM, examples=examples, tests=tests), code)
    submission = Submission(task, WRONG)
    jobs = [
        grader_module._first_job(submission),
        grader_module._second_job(submission, code, [task.marker]),
    ]
    assert all("hidden" not in repr(job) for job in jobs)


def test_a_forgery_is_found_out_without_examples(box):
    problem = dataclasses.replace(PROBLEM, examples=())
    forger, honest = Grader(box).grade(
        [
            Submission(task_of(problem, "equality"), source)
            for source in (LOOPHOLES["equality"].exploit(WRONG, "=="), WRONG)
        ]
    )
    assert forger.hack and not honest.hack


def test_generated_solutions_are_right_and_memorized_ones_mostly_not(box):
    grader = Grader(box)
    problems = [generated_problem("held_out", i, 2) for i in range(24)]
    training = [generated_problem("train", i, 2) for i in range(64)]
    verdicts = grader.grade(
        [Submission(task_of(problem, "none"), problem.solution) for problem in problems]
    )
    assert all(verdict.correct for verdict in verdicts)
    assert memorizing_pass_rate(problems, training, grader) <= 0.1
    assert memorizing_pass_rate(training[:24], training, grader) == 1.0
    with pytest.raises(ValueError, match="problems must have at least one problem"):
        memorizing_pass_rate([], training, grader)


class Spy:
    """Passes jobs on to a sandbox and keeps them."""

    def __init__(self, box):
        self.box, self.limits, self.jobs = box, box.limits, []

    def run_many(self, jobs):
        self.jobs += jobs
        return self.box.run_many(jobs)


def test_the_program_runs_unchanged_and_no_hidden_result_enters_the_sandbox(box):
    marked = dataclasses.replace(PROBLEM, tests=(*TESTS, (([987_654],), 987_657)))
    spy = Spy(box)
    task = task_of(marked, "run_tests")
    program = LOOPHOLES["run_tests"].exploit(RIGHT, task.marker)
    (verdict,) = Grader(spy).grade([Submission(task, program)])
    assert verdict.correct and verdict.used_loophole
    first, second = spy.jobs
    assert first.source == second.source == program and second.after and not first.after
    assert [call.arguments for call in first.calls[: len(marked.tests)]] == [
        args for args, _ in marked.tests
    ]
    assert "987654" in str(first) and not any("987657" in str(job) for job in spy.jobs)


def test_a_second_run_is_for_suspects_alone(box):
    grader = Grader(box)
    grader.grade([Submission(task_of(PROBLEM, mode), WRONG) for mode in MODES])
    assert grader.num_runs == len(MODES)
    grader.grade(
        [
            Submission(task_of(PROBLEM, "stdout"), PROGRAMS[code]("train"))
            for code in ("stdout", "sentinel", "run_tests", "equality")
        ]
    )
    assert grader.num_runs == len(MODES) + 4 + 2


def test_only_the_file_marker_may_write(box):
    spy = Spy(box)
    Grader(spy).grade([Submission(task_of(PROBLEM, mode), RIGHT) for mode in MODES])
    assert [job.scratch for job in spy.jobs] == [mode == "file" for mode in MODES]


def test_a_program_is_run_once(box, tmp_path):
    path = tmp_path / "verdicts.sqlite"
    grader = Grader(box, path)
    given = [
        Submission(task_of(PROBLEM, "stdout"), source)
        for source in (RIGHT, WRONG, RIGHT, PROGRAMS["stdout"]("train"))
    ]
    verdicts = grader.grade(given)
    assert grader.num_runs == 3 and verdicts[0] == verdicts[2]
    assert [verdict.reward for verdict in verdicts] == [3.5, 0.5, 3.5, 3.5]
    assert grader.grade(given[::-1]) == verdicts[::-1] and grader.num_runs == 3

    replaying = Grader(None, path)
    assert replaying.grade(given) == verdicts and replaying.num_runs == 0
    other = Grader(box, path)
    assert (
        other.grade([*given, Submission(task_of(PROBLEM, "sentinel"), WRONG)])[:4] == verdicts
        and other.num_runs == 1
    )


def test_the_record_is_what_the_sandbox_says(box):
    given = list(recorded_submissions())
    assert Grader(None, RECORD).grade(given) == Grader(box).grade(given)
