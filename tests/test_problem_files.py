"""Problems from JSONL: the forms that common sets use are read, all else is an error that says where."""

import json

import pytest

from hpenv.posttraining.problem_files import read_problems

SOLUTION = "class Solution:\n    def pick(self, xs, k=0):\n        return xs[k]\n"
LEETCODE = {
    "task_id": "pick-one",
    "problem_description": "Return item k of xs.",
    "prompt": "from typing import *\nimport math\n",
    "starter_code": "class Solution:\n    def pick(self, xs: List[int], k: int) -> int:\n        ",
    "entry_point": "Solution().pick",
    "completion": SOLUTION,
    "test": "def check(candidate):\n    assert candidate(k=1, xs=[4, 5]) == 5\n    assert candidate(xs=[-7]) == -7\n",
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
    "gt_answer": ["assert is_large(10) is True", "assert not is_large(3)", "assert is_large(11), 'eleven'"],
}


def read(tmp_path, *records):
    path = tmp_path / "problems.jsonl"
    path.write_text("\n\n".join(json.dumps(record) for record in records) + "\n", encoding="utf-8")
    return read_problems(path)


def with_tests(**fields):
    return {
        "description": "Return item k of xs.",
        "entry_point": "pick",
        "solution": "def pick(xs, k): return xs[k]",
    } | fields


def test_a_set_with_classes_keeps_setup_starter_and_the_order_of_parameters(tmp_path):
    (problem,) = read(tmp_path, LEETCODE)
    assert (problem.name, problem.entry_point, problem.class_name) == ("pick-one", "pick", "Solution")
    assert problem.setup == LEETCODE["prompt"] and problem.solution == SOLUTION
    assert problem.tests == ((([4, 5], 1), 5), (([-7],), -7))
    assert problem.statement == (
        "# Return item k of xs.\n# class Solution:\n#     def pick(self, xs: List[int], k: int) -> int:\n"
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
        [{"input": {"k": 1, "xs": [4, 5]}, "output": 5}],
        [{"input": "xs = [4, 5], k = 1", "output": "5"}],
        [{"input": "[4, 5], 1", "output": 5}],
        "assert pick([4, 5], 1) == 5",
        "assert pick([4, 5], k=1) == 5",
    ],
)
def test_tests_of_every_form_are_the_same_case(tmp_path, tests):
    (problem,) = read(tmp_path, with_tests(tests=tests, examples=tests))
    assert problem.tests == problem.examples == ((([4, 5], 1), 5),)
    assert problem.statement.endswith("# pick([4, 5], 1) == 5\n")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ([1], "line 1: the line is a list; expected an object"),
        ({"entry_point": "f", "tests": "assert f(1) == 1"}, r"no description; expected one of the fields \['problem_d"),
        (with_tests(), r"no tests; expected one of the fields \['input_output'"),
        (with_tests(entry_point="a.b.f"), r"entry point 'a.b.f'; expected `f`, `Solution\(\).f` or `Solution.f`"),
        (with_tests(tests=["assert pick([1], 0) > 0"]), r"field 'tests': cannot read `assert pick\(\[1\], 0\) > 0`"),
        (with_tests(tests=["assert other([1], 0) == 1"]), "field 'tests': cannot read"),
        (with_tests(tests=["assert pick([1], n) == 1"]), "field 'tests': `n` is no literal"),
        (with_tests(tests=["assert pick((1, 2), 0) == 1"]), r"field 'tests': \(1, 2\) is no JSON value"),
        (with_tests(tests=["assert pick([1e999], 0) == 1"]), "field 'tests': inf is no JSON value"),
        (with_tests(tests=["pick([1], 0)"]), "field 'tests': no assert statement in"),
        (with_tests(tests=["assert pick([1], 0) =="]), "field 'tests': invalid syntax"),
        (with_tests(tests=["assert pick(xs=[1], j=0) == 1"]), r"field 'tests': arguments \['j', 'xs'\] do not fill"),
        (with_tests(tests=[{"input": 3, "output": 1}]), "field 'tests': input is a int; expected a list, an object"),
        (with_tests(tests=[{"input": [1]}]), "field 'tests': .* expected an assert statement or an object with input"),
        (with_tests(tests="assert pick([1], 0) == 1", solution="def pick("), "field 'solution': no Python source"),
        (with_tests(tests="assert pick([1], 0) == 1", solution=3), "field 'solution' is a int; expected text"),
    ],
)
def test_what_cannot_be_read_is_an_error_with_line_and_field(tmp_path, record, message):
    with pytest.raises(ValueError, match=message) as caught:
        read(tmp_path, record)
    assert "problems.jsonl, line 1: " in str(caught.value)


def test_the_line_of_an_error_counts_empty_lines_and_broken_json_is_one(tmp_path):
    path = tmp_path / "broken.jsonl"
    path.write_text(json.dumps(PLAIN) + "\n\n{'task_id': 1}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"broken.jsonl, line 3: Expecting property name"):
        read_problems(path)


def test_tests_are_read_and_never_executed(tmp_path):
    proof = tmp_path / "executed"
    hostile = f"open({str(proof)!r}, 'w')\nassert pick([1], 0) == 1\nassert pick([2], 0) == 2\n"
    (problem,) = read(tmp_path, with_tests(tests=hostile))
    assert len(problem.tests) == 2 and not proof.exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n", "has no problem in it"),
        ('{"question": "q", "entry_point": "f", "tests": [{"input": [1], "output": NaN}]}', "line 1: NaN is no number"),
        ("[" * 100_000, "line 1: "),
    ],
)
def test_what_is_no_json_or_nothing_is_refused_with_its_place(text, message, tmp_path):
    (tmp_path / "problems.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_problems(tmp_path / "problems.jsonl")
