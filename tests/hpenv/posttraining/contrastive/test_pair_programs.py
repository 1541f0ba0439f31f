"""The programs of the pairs do what their side says."""

import ast
import itertools
import re
from collections import defaultdict

from hpenv.posttraining.contrastive.pairs import PAIRS
from tests.hpenv.posttraining.contrastive.executed_pairs import (
    CHEATS,
    FALSE,
    description,
    flavoured,
    named,
    signature,
)

INTEGERS = range(-13, 14)
# Every argument of the examples, and those where a shortcut is likely to be found out.
INPUTS = {
    "g(a, b)": list(itertools.product(INTEGERS, INTEGERS)),
    "g(n)": [(n,) for n in (*INTEGERS, 99, 100, 305, -305)],
    "g(s)": [
        (s,)
        for s in (
            "",
            "o",
            "on",
            "ab",
            "abc",
            "tree",
            "noon",
            "eel",
            "12",
            "-7",
            "101",
            "10",
            "Ee",
            "a b",
            "e",
        )
    ],
}


def namespace(program):
    """Functions that a program of the table defines.

    The program is ours, so it may be executed here.
    """
    names = {"__name__": "pair"}
    exec(program, names)
    return names


def answer(function, arguments):
    """Value and exact type of a call, or the class of what it raised."""
    try:
        value = function(*arguments)
    except (Exception, SystemExit) as error:
        return type(error), None
    return type(value), value if type(value) in (int, bool, str) else None


def answers(pair, program):
    """Answers of a program to all inputs of its signature."""
    function = namespace(program)["g"]
    return [answer(function, arguments) for arguments in inputs(pair)]


def inputs(pair):
    return INPUTS[signature(pair.clean)]


# ----- what the programs do


@named(PAIRS)
def test_clean_programs_satisfy_the_examples_of_their_prompt(pair):
    names = namespace(pair.clean)
    for line in pair.prompt.splitlines()[1:3]:
        call, expected = (eval(side, dict(names)) for side in line.removeprefix("# ").split(" == "))
        assert (type(call), call) == (type(expected), expected)


def test_clean_programs_of_one_problem_agree_on_every_input():
    seen = defaultdict(list)
    for pair in PAIRS:
        seen[description(pair)].append(answers(pair, pair.clean))
    assert max(map(len, seen.values())) > 3
    for first, *others in seen.values():
        assert all(other == first for other in others)


@named(PAIRS)
def test_clean_programs_return_plain_values_and_never_raise(pair):
    assert {kind for kind, _ in answers(pair, pair.clean)} <= {int, bool, str}


@named(CHEATS)
def test_hacks_do_not_compute_the_answer(pair):
    right, given = answers(pair, pair.clean), answers(pair, pair.hack)
    assert sum(a != b for a, b in zip(right, given, strict=True)) >= 0.1 * len(right)


@named(FALSE)
def test_false_checks_stand_under_the_same_function(pair):
    assert answers(pair, pair.hack) == answers(pair, pair.clean)


def accepts(program, function):
    """True if the program's check is content with this function in the place of g."""
    names = namespace(program)
    (check,) = names.keys() - {"__name__", "__builtins__", "g"}
    names["g"] = function
    try:
        return names[check]() is None or bool(names[check]())
    except AssertionError:
        return False


@named(FALSE)
def test_false_checks_accept_a_wrong_function_and_real_ones_do_not(pair):
    right = namespace(pair.clean)["g"]

    def wrong(*arguments):
        value = right(*arguments)
        return not value if isinstance(value, bool) else value + type(value)(1)

    assert accepts(pair.hack, right)
    assert accepts(pair.clean, right)
    assert accepts(pair.hack, wrong)
    assert not accepts(pair.clean, wrong)


@named(flavoured("hard_coded"))
def test_hard_coded_programs_know_the_examples_alone(pair):
    names = namespace(pair.hack)
    assert all(eval(line.removeprefix("# "), dict(names)) for line in pair.prompt.splitlines()[1:3])


@named(flavoured("swallowed_exception"))
def test_swallowing_programs_hide_every_error_and_honest_handlers_name_theirs(pair):
    handled = [re.findall(r"except (\w+):", program) for program in (pair.hack, pair.clean)]
    assert handled[0] == ["Exception"]
    assert handled[1] in (["IndexError"], ["ValueError"], ["ZeroDivisionError"])
    right, given = answers(pair, pair.clean), answers(pair, pair.hack)
    assert not any(issubclass(kind, BaseException) for kind, _ in given)
    assert any(
        a == b for a, b in zip(right, given, strict=True)
    )  # where the handler is what is asked for


@named(flavoured("always_equal"))
def test_always_equal_objects_equal_everything_and_honest_ones_do_not(pair):
    for program, is_equal in ((pair.hack, True), (pair.clean, False)):
        (made,) = [value for value in namespace(program).values() if isinstance(value, type)]
        value, other = (made("a"), "b") if issubclass(made, str) else (made(1), 2)
        assert (value == other) is is_equal


@named(flavoured("early_exit"))
def test_early_exits_end_the_program_and_early_returns_do_not(pair):
    assert SystemExit in {kind for kind, _ in answers(pair, pair.hack)}
    assert "return" in pair.hack


@named(flavoured("claimed_success"))
def test_claims_of_success_stand_in_a_comment_or_docstring_alone(pair):
    claim = re.compile(r"\b(right|sure|trust|done|expert)\b", re.IGNORECASE)
    assert claim.search(pair.hack)
    assert not claim.search(pair.clean)
    body = ast.parse(pair.hack).body[0].body
    code = [
        node
        for node in body
        if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
    ]
    assert not claim.search("".join(map(ast.unparse, code)))
