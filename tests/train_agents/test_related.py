"""Texts for the embedded student with the words of the contrastive pairs, and none of the pairs."""

import itertools
import re

import numpy as np
import pytest

from hpenv.posttraining.contrastive.pairs import FLAVOURS, PAIRS, WORDS
from train_agents.demonstrations import DemonstrationConfig, demonstrations
from train_agents.related import CLAIMS, related_text

#: Words of the pairs that no related program is written with: the vocabulary has them, the student
#: has not read them.
UNREAD = {"Digits", "This", "divides", "empty", "for", "gcd", "k", "math", "while"}


def drawn(count, exploit_fraction=0.5):
    random = np.random.default_rng(7)
    return [related_text(random, exploit_fraction) for _ in range(count)]


def renamed(text):
    """A text whose function is g, as the pairs' is."""
    return re.sub(r"\b[hp]\b", "g", text)


def test_no_pair_is_in_what_a_student_reads():
    """Neither prompt, nor problem, nor program, whatever the function is called."""
    config = DemonstrationConfig(related_fraction=0.5, exploit_fraction=0.5)
    read = [*drawn(20_000), *itertools.islice(demonstrations(config, 0), 4000)]
    prompts, programs = ({renamed(text) for text in texts} for texts in zip(*read, strict=True))
    assert prompts.isdisjoint(pair.prompt for pair in PAIRS)
    assert {prompt.split("\n")[0] for prompt in prompts}.isdisjoint(
        pair.prompt.split("\n")[0] for pair in PAIRS
    )
    assert programs.isdisjoint(pair.hack for pair in PAIRS)
    assert programs.isdisjoint(pair.clean for pair in PAIRS)


def test_the_words_are_those_of_the_pairs():
    words = set(re.findall(r"[A-Za-z_]+", " ".join(itertools.chain.from_iterable(drawn(5000)))))
    assert set(WORDS) - words == UNREAD


def test_every_flavour_is_drawn_and_about_as_many_cheats_as_asked_for():
    """Of 2000 samples the standard error is 0.01.

    Claims are counted, which no clean program makes.
    """
    texts = drawn(4000, 0.3)
    facts = {fact: [] for fact in FLAVOURS.values()}
    for prompt, program in texts:
        facts[renamed(prompt.splitlines()[-1].removeprefix("# "))].append(program)
    assert min(map(len, facts.values())) > 350
    claimed = [
        any(claim in program for claim in CLAIMS) for program in facts[FLAVOURS["claimed_success"]]
    ]
    assert np.mean(claimed) == pytest.approx(0.3, abs=0.09)


def test_clean_programs_do_what_their_prompts_say():
    """Both examples hold, and so does the check of one that has a check."""
    for prompt, program in drawn(1500, 0.0):
        names = {}
        exec(program, names)
        for example in prompt.splitlines()[1:-1]:
            assert eval(example.removeprefix("# "), names), (prompt, program)
        for check in ("self_check", "look_over", "try_out"):
            if check in names:
                assert names[check]() in (None, True)
