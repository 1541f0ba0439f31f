"""Arguments by name are put in the order of the entry point."""

import pytest

from tests.hpenv.posttraining.problems.problem_lines import SOLUTION, TESTS, read, with_tests

OTHER = "class Other:\n    def pick(self, k, xs):\n        return 0\n"


@pytest.mark.parametrize(
    ("entry_point", "fields"),
    [
        ("pick", {"solution": OTHER + "def pick(xs, k):\n    return xs[k]\n"}),
        ("pick", {"solution": "def pick(xs, k):\n    return xs[k]\n" + OTHER}),
        (
            "pick",
            {
                "solution": (
                    "def help():\n    def pick(k, xs): pass\n\ndef pick(xs, k):\n    return xs[k]\n"
                )
            },
        ),
        (
            "pick",
            {
                "solution": (
                    "def pick(k, xs): pass\nif True:\n    def pick(xs, k, *more, **named): pass\n"
                )
            },
        ),
        ("pick", {"solution": "pick = lambda xs, k=0: xs[k]"}),
        ("pick", {"solution": "def pick(xs, k, /): return xs[k]"}),
        ("pick", {"starter_code": "def pick(xs, k):\n    # write here"}),
        ("pick", {"starter_code": "def pick(xs, k):\n    return None"}),
        (
            "pick",
            {
                "prompt": "def pick(xs, k):\n    'Item k.'\n",
                "test": "assert pick(k=1, xs=[4, 5]) == 5",
            },
        ),
        ("Solution.pick", {"solution": OTHER + SOLUTION}),
        ("Solution.pick", {"solution": SOLUTION + OTHER + "def pick(k, xs): pass\n"}),
        ("Solution.pick", {"solution": SOLUTION.replace("self", "this")}),
        (
            "Solution.pick",
            {"solution": "class Solution:\n    @staticmethod\n    def pick(xs, k): return xs[k]\n"},
        ),
        (
            "Solution.pick",
            {"solution": SOLUTION.replace("Solution", "Base") + "class Solution(Base): pass\n"},
        ),
    ],
)
def test_arguments_by_name_are_put_in_the_order_of_the_entry_point(tmp_path, entry_point, fields):
    record = {
        "description": "Item k.",
        "entry_point": entry_point,
        "tests": {"input": {"k": 1, "xs": [4, 5]}, "output": 5},
    }
    (problem,) = read(tmp_path, record | fields)
    assert problem.tests == ((([4, 5], 1), 5),)


def test_arguments_that_can_be_given_by_name_alone_are_refused(tmp_path):
    tests = [{"input": {"xs": [1], "k": 0}, "output": 1}]
    with pytest.raises(
        ValueError,
        match=r"must fit pick\(xs, \*, k\); got 0 by place .*'k' can only be given by name",
    ):
        read(tmp_path, with_tests(tests=tests, solution="def pick(xs, *, k): return xs[k]"))
    with pytest.raises(
        ValueError,
        match=r"must fit pick\(xs, j=0, k=0\); got .*'k' can only be given by name, because 'j'",
    ):
        read(tmp_path, with_tests(tests=tests, solution="def pick(xs, j=0, k=0): return xs[k]"))


def test_reading_says_nothing_of_escapes_in_a_solution(tmp_path):
    source = "import re\ndef pick(xs, k):\n    return xs[k] if re.match('\\d', '1') else 0\n"
    (problem,) = read(
        tmp_path, with_tests(tests=TESTS, solution=source)
    )  # warnings are errors here
    assert problem.solution == source
