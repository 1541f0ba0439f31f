"""Tests of a problem that cannot be read are an error with line and field."""

import pytest

from hpenv.posttraining.problems import cases
from hpenv.posttraining.sandbox import Limits
from tests.hpenv.posttraining.problems.problem_lines import TESTS, read, with_tests


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ([1], r"line 1: must be an object; got \[1\]"),
        (None, "line 1: must be an object; got None"),
        (
            {"entry_point": "f", "tests": "assert f(1) == 1"},
            r"the description must be in one of the fields \['problem_d",
        ),
        (with_tests(), r"the tests must be in one of the fields \['input_output'"),
        (
            with_tests(tests=TESTS, description=" \n"),
            "field 'description' must be text that is not blank; got ' ",
        ),
        (
            with_tests(tests=TESTS, description=["a"]),
            r"field 'description' must be text; got \['a'\]",
        ),
        (
            with_tests(tests=TESTS, description="\ud800"),
            "field 'description': .*half of a surrogate pair",
        ),
        (
            with_tests(tests=TESTS, name=["a"]),
            r"field 'name' must be text or a whole number; got \['a'\]",
        ),
        (
            with_tests(tests=TESTS, name=True),
            "field 'name' must be text or a whole number; got True",
        ),
        (with_tests(tests=TESTS, name=""), "field 'name' must be text that is not blank; got ''"),
        (
            with_tests(tests=TESTS, id=float("nan")),
            "field 'id' must be text or a whole number; got NaN",
        ),
        (
            with_tests(entry_point="a.b.f"),
            r"'entry_point' must be `f`, `Solution\(\).f` or `Solution.f`; got 'a.b.f'",
        ),
        (
            with_tests(tests=TESTS, entry_point="lambda"),
            "field 'entry_point' must be .*; got 'lambda'",
        ),
        (
            with_tests(tests=TESTS, entry_point="f()"),
            r"field 'entry_point' must be .*; got 'f\(\)'",
        ),
        (with_tests(tests=TESTS, entry_point=7), "field 'entry_point' must be text; got 7"),
        (
            with_tests(tests=["assert pick([1], 0) > 0"]),
            r"field 'tests': an assert must be .*; got `assert pick\(\[1\], 0\) > 0`",
        ),
        (with_tests(tests=["assert other([1], 0) == 1"]), "field 'tests': an assert must be `pick"),
        (
            with_tests(tests=["assert Other().pick([1], 0) == 1"]),
            "field 'tests': an assert must be `pick",
        ),
        (
            with_tests(tests=["assert [1].pick([1], 0) == 1"]),
            "field 'tests': an assert must be `pick",
        ),
        (
            with_tests(tests=["assert pick([1], n) == 1"]),
            "field 'tests': must be a literal; got `n`",
        ),
        (
            with_tests(tests=["assert pick(*[[1], 0]) == 1"]),
            r"field 'tests': must be a literal; got `\*\[\[1\], 0\]`",
        ),
        (
            with_tests(tests=["assert pick(**{'xs': [1]}) == 1"]),
            r"field 'tests': arguments must be .*; got `\*\*\{'xs': \[1\]\}`",
        ),
        (
            with_tests(tests=["assert pick(xs=[1], xs=[2]) == 1"]),
            "field 'tests': arguments must be given once; got 'xs' twice",
        ),
        (with_tests(tests=["assert pick({[]: 1}, 0) == 1"]), "field 'tests': must be a literal"),
        (
            with_tests(tests=["assert pick((1, 2), 0) == 1"]),
            r"field 'tests': must be a JSON value; got \(1, 2\)",
        ),
        (
            with_tests(tests=["assert pick({1: 2}, 0) == 1"]),
            r"field 'tests': keys must be text; got 1",
        ),
        (
            with_tests(tests=["assert pick([1e999], 0) == 1"]),
            "field 'tests': must be a JSON value; got inf",
        ),
        (
            with_tests(tests=["assert pick(['\\ud83d\\ude00'], 0) == 1"]),
            "field 'tests': .*half of a surrogate pair",
        ),
        (with_tests(tests=["pick([1], 0)"]), "field 'tests': must have an assert statement; got"),
        (with_tests(tests=["assert pick([1], 0) =="]), "field 'tests': invalid syntax"),
        (
            with_tests(tests=["assert pick(xs=[1], j=0) == 1"]),
            r"field 'tests': .* must fit pick\(xs, k\); .*'k'",
        ),
        (
            with_tests(tests=["assert pick([1]) == 1"]),
            r"field 'tests': .* must fit pick\(xs, k\); .*'k'",
        ),
        (
            with_tests(tests=[{"input": [1, 2, 3], "output": 1}]),
            r"must fit pick\(xs, k\); .*: too many",
        ),
        (
            with_tests(tests=[{"input": 3, "output": 1}]),
            "field 'tests': input must be a list, an object or text; got 3",
        ),
        (
            with_tests(tests=[{"input": [1]}]),
            "field 'tests': must be an assert statement or an object with input and",
        ),
        (
            with_tests(tests=3),
            "field 'tests': must be an assert statement or an object with input and output; got 3",
        ),
        (with_tests(tests=[]), "field 'tests': must have at least one test"),
        (
            with_tests(tests=[{"input": "1), g(2", "output": 1}]),
            "field 'tests': input must be arguments; got '1",
        ),
        (
            with_tests(tests=[{"input": "1)(2", "output": 1}]),
            "field 'tests': input must be arguments; got '1",
        ),
        (
            with_tests(tests=[{"input": "1) + (2", "output": 1}]),
            "field 'tests': input must be arguments; got '1",
        ),
        (
            with_tests(tests=[{"input": "'\\d', 0", "output": 1}]),
            "field 'tests': invalid escape sequence",
        ),
        (with_tests(tests=[{"input": "1 2", "output": 1}]), "field 'tests': invalid syntax"),
        (
            with_tests(tests=[{"input": "[1], 0", "output": "one"}]),
            "field 'tests': must be a literal; got `one`",
        ),
        (
            with_tests(tests=[{"input": "[1], 0", "output": "NaN"}]),
            "field 'tests': numbers must be JSON numbers; got NaN",
        ),
        (
            with_tests(tests=[{"input": [[float("inf")], 0], "output": 1}]),
            "field 'tests': numbers must be JSON numbers; got Infinity",
        ),
        (
            with_tests(tests=TESTS, examples=[{"input": [[1], 0], "output": float("nan")}]),
            "'examples': numbers must be JSON numbers; got NaN",
        ),
        (with_tests(tests=[{"input": [[], 0], "output": "0x" + "f" * 4000}]), None),
        (
            with_tests(tests=[{"input": "[], 0", "output": "0x" + "f" * 4000}]),
            "'tests': integers must have at most 4300",
        ),
        (
            with_tests(tests=[{"input": "-" * 9999 + "1, 0", "output": 1}]),
            "field 'tests': .*nested too deep",
        ),
        (
            with_tests(tests=[{"input": "1" + "+1" * 900 + ", 0", "output": 1}]),
            "field 'tests': must be a literal",
        ),
        (
            with_tests(tests=[{"input": "[" * 90 + "]" * 90 + ", 0", "output": 1}]),
            "field 'tests': .* nested at most 64 deep",
        ),
        (
            with_tests(tests=TESTS, solution="def pick("),
            "field 'solution' must be Python source .*never closed",
        ),
        (
            with_tests(tests=TESTS, solution="return 3"),
            "field 'solution' must be Python source .'return' outside function",
        ),
        (
            with_tests(tests=TESTS, solution="x" + ".a" * 9999),
            "field 'solution' must be Python source .*nested too deep",
        ),
        (with_tests(tests=TESTS, solution=3), "field 'solution' must be text; got 3"),
        (
            with_tests(tests=TESTS, setup_code="import"),
            "field 'setup_code' must be Python source .invalid syntax",
        ),
        (with_tests(tests=TESTS, setup_code=["import math"]), "field 'setup_code' must be text"),
        (with_tests(tests=TESTS, starter_code=1.5), "field 'starter_code' must be text; got 1.5"),
    ],
)
def test_what_cannot_be_read_is_an_error_with_line_and_field(tmp_path, record, message):
    if message is None:  # the text of a large number is a text like any other
        assert read(tmp_path, record)
        return
    with pytest.raises(ValueError, match=message) as caught:
        read(tmp_path, record)
    assert "problems.jsonl, line 1: " in str(caught.value)


def test_more_than_a_program_can_be_given_or_can_answer_is_refused(tmp_path, monkeypatch):
    assert cases.MOST_OUTPUT_BYTES == Limits().returned_bytes
    monkeypatch.setattr(cases, "MOST_INPUT_BYTES", 2**10)
    monkeypatch.setattr(cases, "MOST_OUTPUT_BYTES", 2**9)
    tests = [
        {"input": ["x" * 900, i], "output": "é" * 70} for i in range(2)
    ]  # of ASCII alone, 6 bytes each
    assert read(tmp_path, with_tests(tests=tests[:1]))
    with pytest.raises(
        ValueError,
        match=r"line 1: field 'tests': the inputs .* at most 1024 bytes of JSON; got 18\d\d",
    ):
        read(tmp_path, with_tests(tests=tests))
    tests = [{"input": ["", i], "output": "é" * 70} for i in range(2)]
    with pytest.raises(
        ValueError, match=r"field 'tests': the outputs .* at most 512 bytes of JSON; got 8\d\d"
    ):
        read(tmp_path, with_tests(tests=tests))
