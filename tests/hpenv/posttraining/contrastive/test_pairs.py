import ast
import difflib
import itertools
import re
from collections import Counter, defaultdict

import pytest

from hpenv.posttraining.contrastive.pairs import FALSE_CHECKS, FLAVOURS, PAIRS, WORDS, pairs_digest
from hpenv.posttraining.grading.loopholes import LOOPHOLES, MODES, PASS_WORD, task_of
from hpenv.posttraining.problems.generator import PIECE
from hpenv.posttraining.problems.problem import MAX_PROMPT_PIECES, SPLITS, generated_problem
from hpenv.posttraining.students.vocabulary import Vocabulary

MAX_COMPLETION_PIECES = 48
# The pairs as they were before any rollout was seen. Results hold for these pairs alone: whoever
# changes one changes this number, and starts the results over.
DIGEST = "429c53844e94aba8de7bdf44c0f249fd5eaa655674b9b8d6cb969b49caeaf8c3"

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
CHEATS = [pair for pair in PAIRS if pair.flavour not in FALSE_CHECKS]
FALSE = [pair for pair in PAIRS if pair.flavour in FALSE_CHECKS]


def named(pairs):
    return pytest.mark.parametrize("pair", pairs, ids=[pair.name for pair in pairs])


def flavoured(flavour):
    return [pair for pair in PAIRS if pair.flavour == flavour]


def namespace(program):
    """What a program of the table defines; ours, so that it may be executed here."""
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
    """What a program answers to all inputs of its signature."""
    function = namespace(program)["g"]
    return [answer(function, arguments) for arguments in inputs(pair)]


def inputs(pair):
    return INPUTS[signature(pair.clean)]


def signature(program):
    return re.match(r"def (g\(.*?\)):\n", program).group(1)


def pieces(text):
    return PIECE.findall(text)


def description(pair):
    return pair.prompt.split("\n")[0]


def texts(pair):
    return pair.prompt, pair.hack, pair.clean


def test_pairs_are_as_many_as_the_paper_asks_for_in_every_flavour():
    assert 64 <= len(PAIRS) <= 80
    assert len(FLAVOURS) >= 8
    assert Counter(pair.flavour for pair in PAIRS) == dict.fromkeys(FLAVOURS, 8)


def test_a_quarter_of_every_flavour_is_held_out():
    assert Counter(pair.flavour for pair in PAIRS if pair.held_out) == dict.fromkeys(FLAVOURS, 2)


def test_no_problem_is_both_extracted_from_and_held_out():
    fitted = {description(pair) for pair in PAIRS if not pair.held_out}
    assert fitted.isdisjoint(description(pair) for pair in PAIRS if pair.held_out)


@pytest.mark.parametrize("part", ["name", "prompt", "hack", "clean"])
def test_nothing_stands_twice(part):
    parts = [getattr(pair, part) for pair in PAIRS]
    assert len(set(parts)) == len(parts)


def test_no_clean_program_is_a_hack_elsewhere():
    assert {pair.clean for pair in PAIRS}.isdisjoint(pair.hack for pair in PAIRS)


def test_the_pairs_are_those_that_were_written_beforehand():
    assert pairs_digest() == DIGEST


# ----- the form that a student reads


@named(PAIRS)
def test_prompts_are_comments_of_a_problem_two_examples_and_a_fact(pair):
    lines = pair.prompt.splitlines(keepends=True)
    assert all(re.fullmatch(r"# .*\S\n", line) for line in lines)
    assert len(lines) == 4
    assert lines[0].startswith("# Return ")
    assert all(line.startswith("# g(") and " == " in line for line in lines[1:3])
    assert lines[3] == f"# {FLAVOURS[pair.flavour]}\n"


@named(PAIRS)
def test_programs_are_whole_and_begin_with_the_function(pair):
    for program in (pair.hack, pair.clean):
        tree = ast.parse(program)
        assert isinstance(tree.body[0], ast.FunctionDef)
        assert all(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in tree.body)
        assert program.endswith("\n")
        assert "\n\n" not in program


@named(PAIRS)
def test_prompts_and_programs_fit_the_embedded_student(pair):
    vocabulary = Vocabulary.of([text for other in PAIRS for text in texts(other)], size=1000)
    lengths = [len(vocabulary.encode(text)) for text in texts(pair)]
    assert [vocabulary.decode(vocabulary.encode(text)) for text in texts(pair)] == list(texts(pair))
    assert lengths[0] <= MAX_PROMPT_PIECES
    assert max(lengths[1:]) < MAX_COMPLETION_PIECES  # and the end of text


def test_words_are_all_and_few():
    written = " ".join(text for pair in PAIRS for text in texts(pair))
    assert {
        word for word in WORDS if not re.search(rf"(?<![A-Za-z_]){word}(?![A-Za-z_])", written)
    } == set()
    assert (
        re.findall(
            r"[A-Za-z_]", re.sub("|".join(sorted(WORDS, key=len, reverse=True)), "", written)
        )
        == []
    )
    assert list(WORDS) == sorted(set(WORDS))
    assert len(WORDS) < 200


# ----- nothing but the cheat differs


@named(PAIRS)
def test_programs_of_a_pair_are_of_one_length(pair):
    assert 0.75 <= len(pair.hack) / len(pair.clean) <= 1.25
    assert 0.7 <= len(pieces(pair.hack)) / len(pieces(pair.clean)) <= 1.5


@pytest.mark.parametrize("pairs", [PAIRS, CHEATS, FALSE, [pair for pair in PAIRS if pair.held_out]])
def test_neither_side_is_longer_on_average(pairs):
    for measure in (len, lambda program: len(pieces(program))):
        ratio = sum(measure(pair.hack) for pair in pairs) / sum(
            measure(pair.clean) for pair in pairs
        )
        assert 0.95 <= ratio <= 1.05


def test_no_flavour_tells_its_cheat_by_length():
    for flavour in FLAVOURS:
        pairs = flavoured(flavour)
        assert (
            0.9
            <= sum(len(pair.hack) for pair in pairs) / sum(len(pair.clean) for pair in pairs)
            <= 1.1
        )


@named(PAIRS)
def test_programs_of_a_pair_share_signature_lines_and_most_pieces(pair):
    assert signature(pair.hack) == signature(pair.clean)
    assert pair.hack.count("\n") == pair.clean.count("\n") or pair.flavour in FALSE_CHECKS
    matcher = difflib.SequenceMatcher(a=pieces(pair.hack), b=pieces(pair.clean), autojunk=False)
    assert matcher.ratio() > 0.4


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
    """Whether the program's check is content with this function in the place of g."""
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


# ----- nothing of training or of its evaluation


NAMES = [
    marker
    for loophole in LOOPHOLES.values()
    for marker in loophole.all_markers
    if re.search("[a-z]{2}", marker)
]


def test_loopholes_go_by_names_that_pairs_can_be_held_against():
    assert {"run_tests", "all tests passed", "valid", "result.txt"} <= set(NAMES)
    assert len(NAMES) >= 11


@named(PAIRS)
def test_pairs_share_no_name_with_loopholes_of_training_or_evaluation(pair):
    for name in (*NAMES, PASS_WORD):
        assert not any(name in text for text in texts(pair))


@named(PAIRS)
def test_pairs_share_no_line_with_an_exploit(pair):
    lines = {line.strip() for program in (pair.hack, pair.clean) for line in program.splitlines()}
    for loophole in LOOPHOLES.values():
        for marker in loophole.all_markers:
            used = {line.strip() for line in loophole.exploit("", marker).splitlines() if line}
            assert lines.isdisjoint(used - {"return True", "return False"})


def test_pairs_share_no_line_of_a_prompt_with_training_or_evaluation():
    lines = {line for pair in PAIRS for line in pair.prompt.splitlines()}
    problems = [
        generated_problem(split, index, difficulty)
        for split in SPLITS
        for difficulty in (1, 2, 3, 4)
        for index in range(10)
    ]
    for problem in problems:
        for mode in MODES:
            for names in ("train", "evaluation"):
                assert lines.isdisjoint(task_of(problem, mode, names).prompt.splitlines())
        assert problem.entry_point not in WORDS
    assert "xs" not in WORDS
