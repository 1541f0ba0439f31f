"""Problems from JSONL: the forms of common sets are read.

Every other form is an error that names the file and line.
"""

import json
import re

import pytest

from hpenv.posttraining.problems import cases
from hpenv.posttraining.problems.files import read_problem_files, read_problems
from hpenv.posttraining.sandbox import Limits

SOLUTION = "class Solution:\n    def pick(self, xs, k=0):\n        return xs[k]\n"
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


def write(path, *records):
    path.write_text("\n\n".join(json.dumps(record) for record in records) + "\n", encoding="utf-8")
    return path


def read(tmp_path, *records):
    return read_problems(write(tmp_path / "problems.jsonl", *records))


def with_tests(**fields):
    return {
        "description": "Return item k of xs.",
        "entry_point": "pick",
        "solution": "def pick(xs, k): return xs[k]",
    } | fields


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


TESTS = "assert pick([1], 0) == 1"


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
