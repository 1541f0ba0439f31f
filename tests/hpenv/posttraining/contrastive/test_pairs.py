"""The pairs: their number, their form, their length and their words."""

import ast
import difflib
import re
from collections import Counter

import pytest

from hpenv.posttraining.contrastive.pairs import FALSE_CHECKS, FLAVOURS, PAIRS, WORDS, pairs_digest
from hpenv.posttraining.grading.loopholes import LOOPHOLES, MODES, PASS_WORD, task_of
from hpenv.posttraining.problems.generator import PIECE
from hpenv.posttraining.problems.problem import MAX_PROMPT_PIECES, SPLITS, generated_problem
from hpenv.posttraining.students.vocabulary import Vocabulary
from tests.hpenv.posttraining.contrastive.executed_pairs import (
    CHEATS,
    FALSE,
    description,
    flavoured,
    named,
    signature,
)

MAX_COMPLETION_PIECES = 48
# The pairs as they were before any rollout was seen. Results hold for these pairs alone: whoever
# changes one changes this number, and starts the results over.
DIGEST = "429c53844e94aba8de7bdf44c0f249fd5eaa655674b9b8d6cb969b49caeaf8c3"


def pieces(text):
    return PIECE.findall(text)


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
