"""Problems from JSONL: the forms of common sets are read."""

import json
import re

import pytest

from hpenv.posttraining.problems.files import read_problem_files, read_problems
from tests.hpenv.posttraining.problems.problem_lines import SOLUTION, read, with_tests, write

LEETCODE = {
    "task_id": "pick-one",
    "problem_description": "Return item k of xs.",
    "prompt": "from typing import *\nimport math\n",
    "starter_code": "class Solution:\n    def pick(self, xs: List[int], k: int) -> int:\n        ",
    "entry_point": "Solution().pick",
    "completion": SOLUTION,
    "test": (
        "def check(candidate):\n    assert candidate(k=1, xs=[4, 5]) == 5\n"
        "    assert candidate(xs=[-7]) == -7\n"
    ),
}
HUMAN_EVAL = {
    "task_id": 7,
    "prompt": 'def half(x):\n    """Half of x, rounded down."""\n',
    "canonical_solution": "    return x // 2\n",
    "entry_point": "half",
    "test": "def check(candidate):\n    assert candidate(5) == 2\n    assert 0 == candidate(1)\n",
}
PLAIN = {
    "question": "Return whether x is large.\nLarge is above 9.",
    "func_name": "is_large",
    "gt_answer": [
        "assert is_large(10) is True",
        "assert not is_large(3)",
        "assert is_large(11), 'eleven'",
    ],
}


def test_a_set_with_classes_keeps_setup_starter_and_the_order_of_parameters(tmp_path):
    (problem,) = read(tmp_path, LEETCODE)
    assert (problem.name, problem.entry_point, problem.class_name) == (
        "pick-one",
        "pick",
        "Solution",
    )
    assert problem.setup == LEETCODE["prompt"] and problem.solution == SOLUTION
    assert problem.tests == ((([4, 5], 1), 5), (([-7],), -7))
    assert problem.statement == (
        "# Return item k of xs.\n# class Solution:\n"
        "#     def pick(self, xs: List[int], k: int) -> int:\n"
    )


def test_a_solution_that_continues_its_prompt_is_put_together(tmp_path):
    (problem,) = read(tmp_path, HUMAN_EVAL)
    assert problem.solution == HUMAN_EVAL["prompt"] + HUMAN_EVAL["canonical_solution"]
    assert problem.tests == (((5,), 2), ((1,), 0))
    assert (problem.name, problem.class_name, problem.setup) == ("7", "", "")


def test_asserts_of_every_form_and_several_lines(tmp_path):
    first, second = read(tmp_path, PLAIN, HUMAN_EVAL)
    assert first.tests == (((10,), True), ((3,), False), ((11,), True))
    assert first.name == "line 1" and first.solution == "" and second.entry_point == "half"
    assert first.statement == "# Return whether x is large.\n# Large is above 9.\n"


@pytest.mark.parametrize(
    "tests",
    [
        [{"input": [[4, 5], 1], "output": 5}],
        [{"input": {"k": 1, "xs": [4, 5]}, "output": 5, "explanation": "an extra field"}],
        [{"input": "xs = [4, 5], k = 1", "output": "5"}],
        [{"input": "  [4, 5],\n 1", "output": " 5\n"}],
        [{"input": "k = 1, xs = [4, 5]  # the last", "output": 5}],
        "assert pick([4, 5], 1) == 5",
        "  assert pick([4, 5], k=1) == 5",
        "\n    def check(candidate):\n        assert candidate([4, 5], 1) == 5\n",
    ],
)
def test_tests_of_every_form_are_the_same_case(tmp_path, tests):
    (problem,) = read(tmp_path, with_tests(tests=tests, examples=tests))
    assert problem.tests == problem.examples == ((([4, 5], 1), 5),)
    assert problem.statement.endswith("# pick([4, 5], 1) == 5\n")


@pytest.mark.parametrize(
    ("given", "output", "case"),
    [
        ("true, [null, false]", "true", ((True, [None, False]), True)),
        ("True, [None, False]", "[true, null]", ((True, [None, False]), [True, None])),
        ("'a', -1", '"\\u00e9\\/"', (("a", -1), "é/")),
        ('"b", 0.5', "'b'", (("b", 0.5), "b")),
        ('[], {"a": [true]}', "None", (([], {"a": [True]}), None)),
    ],
)
def test_texts_of_tests_may_spell_values_as_json_or_as_python_does(tmp_path, given, output, case):
    (problem,) = read(tmp_path, with_tests(tests=[{"input": given, "output": output}]))
    assert problem.tests == (case,)
    (problem,) = read(tmp_path, with_tests(tests=f"assert pick({given}) == {output}"))
    assert problem.tests[0][0] == case[0]


def test_a_field_that_nothing_reads_may_hold_anything(tmp_path):
    (tmp_path / "p.jsonl").write_text(
        '{"question": "q", "entry_point": "f", "tests": "assert f(1) == 1", "rating": NaN, '
        '"big": %s, "twice": {"a": 1, "a": 2}, "starter_code": null, "far": 1e999, "prompt": ["p"]}'
        % ("9" * 5000)
    )
    (problem,) = read_problems(tmp_path / "p.jsonl")
    assert problem.tests == (((1,), 1),)


def test_the_line_of_an_error_counts_empty_lines_and_broken_json_is_one(tmp_path):
    path = tmp_path / "broken.jsonl"
    path.write_text(json.dumps(PLAIN) + "\n\n{'task_id': 1}\n", encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"broken.jsonl, line 3: Expecting property name .* at column 2"
    ):
        read_problems(path)


def test_tests_are_read_and_never_executed(tmp_path):
    proof = tmp_path / "executed"
    hostile = f"open({str(proof)!r}, 'w')\nassert pick([1], 0) == 1\nassert pick([2], 0) == 2\n"
    (problem,) = read(tmp_path, with_tests(tests=hostile))
    assert len(problem.tests) == 2 and not proof.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\n", "must have at least one problem"),
        (b"", "must have at least one problem"),
        (b"\xef\xbb\xbf \n\xc2\xa0\n", "must have at least one problem"),
        (b'{"question": "q", "entry_point": "f", "tests": [{"input": [1], "output": NaN}]}',
         "'tests': numbers must be JSON"),
        (b'{"question": "q", "entry_point": "f", "tests": [{"input": [%s], "output": 1}]}'
         % (b"9" * 5000),
         "line 1: field 'tests': integers must have at most 4300 digits"),
        (b'{"question": "q", "entry_point": "f", '
         b'"tests": [{"input": {"a": 1, "a": 2}, "output": 1}]}',
         "line 1: field 'tests': the keys of an object must be different; got 'a' twice"),
        (b'{"question": "q", "question": "r"}',
         "line 1: the keys .* must be different; got 'question' twice"),
        (b"[" * 100_000, "line 1: lists and objects are nested too deep"),
        (b"\x80", "line 1: must be UTF-8; got .*0x80 at byte 1"),
        ("{}".encode("utf-16"), "must be JSONL in UTF-8; got UTF-16"),
        (b"\x1f\x8b\x08rest\n", "must be JSONL in UTF-8; got a gzip file"),
        (b'[\n  {"question": "q"},\n  {"question": "r"}\n]\n',
         "one object a line; got one JSON value of several lines"),
    ],
)  # fmt: skip
def test_what_is_no_json_or_nothing_is_refused_with_its_place(content, message, tmp_path):
    path = tmp_path / "problems.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_problems(path)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize("path", ["folder", "none.jsonl", "a\0b", "x" * 300, 3, None])
def test_a_path_that_is_no_file_is_refused(tmp_path, path):
    (tmp_path / "folder").mkdir()
    given = tmp_path / path if isinstance(path, str) else path
    with pytest.raises(ValueError, match=r"cannot be read|must be given by its path") as caught:
        read_problems(given)
    assert (repr(path)[1:-1] if isinstance(path, str) else repr(path)) in str(caught.value)


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b"])
def test_only_line_feeds_and_carriage_returns_end_a_line(tmp_path, separator):
    text = f"First.{separator}Second."
    record = json.dumps(PLAIN | {"question": text}, ensure_ascii=separator == "\x0b")
    path = tmp_path / "problems.jsonl"
    for end in ("\n", "\r\n", "\r"):
        path.write_bytes(f"{record}{end}{end}{record}{end}".encode())
        first, second = read_problems(path)
        assert first.description == second.description == text and second.name == "line 3"
        assert first.statement == "# First.\n# Second.\n"  # every line of the prompt is a comment


def test_a_byte_order_mark_is_no_part_of_a_line(tmp_path):
    path = tmp_path / "problems.jsonl"
    whole = json.dumps(PLAIN).encode("utf-8-sig")
    path.write_bytes(whole + b"\n" + whole)  # as of two files put together
    assert len(read_problems(path)) == 2


def test_every_line_that_cannot_be_read_is_told_at_once(tmp_path):
    bad, worse = tmp_path / "bad.jsonl", tmp_path / "worse.jsonl"
    lines = [json.dumps(PLAIN), "{", "[]", json.dumps(PLAIN | {"name": "good"}), "[]", "[]"]
    bad.write_bytes("\n".join(lines).encode() + b"\n\xff\n")
    good = write(tmp_path / "good.jsonl", HUMAN_EVAL)
    write(worse, LEETCODE, 3)
    with pytest.raises(ValueError) as caught:
        read_problem_files([bad, good, worse, tmp_path / "none.jsonl"])
    said = str(caught.value).splitlines()
    assert said[0] == "3 files of problems cannot be read:"
    assert [line.strip().partition(": ")[0] for line in said[1:]] == [
        f"{bad}, line 2", f"{bad}, lines 3, 5-6", f"{bad}, line 7", f"{worse}, line 3",
        f"{str(tmp_path / 'none.jsonl')!r} cannot be read ([Errno 2] No such file or directory",
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"bad.jsonl, line 2: .*\n.*\n.*\n.*skip_unreadable=True"):
        read_problem_files([good, bad])


def test_the_lines_that_can_be_read_are_had_on_request_and_the_others_told(tmp_path):
    bad, good = tmp_path / "bad.jsonl", write(tmp_path / "good.jsonl", HUMAN_EVAL)
    bad.write_text(f"{{\n{json.dumps(PLAIN)}\n[]\n")
    with pytest.warns(UserWarning) as told:
        first, second = read_problem_files([bad, good], skip_unreadable=True)
    assert [problem.name for problem in (*first, *second)] == ["line 2", "7"]
    assert re.search(
        r"left out.*\n.*bad.jsonl, line 1: .*\n.*bad.jsonl, line 3: ", str(told[0].message)
    )
    bad.write_text("{\n")  # of a file nothing has to be left
    with pytest.raises(ValueError, match=r"bad.jsonl, line 1: "):
        read_problems(bad, skip_unreadable=True)
    with pytest.raises(ValueError, match=r"none.jsonl' cannot be read"):
        read_problem_files([good, tmp_path / "none.jsonl"], skip_unreadable=True)


def test_a_name_is_given_once_in_all_files(tmp_path):
    twice = write(
        tmp_path / "twice.jsonl", HUMAN_EVAL, PLAIN | {"name": "seven"}, PLAIN | {"id": "7"}
    )
    other = write(
        tmp_path / "other.jsonl", PLAIN | {"name": "seven"}, PLAIN, PLAIN | {"name": "line 3"}
    )
    with pytest.raises(
        ValueError,
        match=r"twice.jsonl, line 5: field 'id' must be a new name; got '7', .*twice.jsonl, line 1",
    ):
        read_problems(twice)
    with pytest.raises(
        ValueError,
        match=r"other.jsonl, line 5: .*must be a new name; got 'line 3', .*other.jsonl, line 3",
    ):
        read_problems(other)
    with pytest.raises(
        ValueError,
        match=r"other.jsonl, line 1: .*must be a new name; got 'seven', .*twice.jsonl, line 3",
    ):
        read_problem_files([twice, other])
    with pytest.raises(ValueError, match=r"other.jsonl is given twice"):
        read_problem_files([other, other])
    unnamed = [write(tmp_path / f"{i}.jsonl", PLAIN) for i in range(2)]
    assert [[problem.name for problem in found] for found in read_problem_files(unnamed)] == [
        ["line 1"]
    ] * 2
