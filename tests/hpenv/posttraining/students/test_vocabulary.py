"""The vocabulary: nothing printable is lost, common words are short.

Text that cannot be encoded is refused.
"""

import itertools

import numpy as np
import pytest

from hpenv.posttraining.contrastive.pairs import PAIRS
from hpenv.posttraining.grading.loopholes import LOOPHOLES, MODES, task_of
from hpenv.posttraining.problems.problem import generated_problem
from hpenv.posttraining.students.vocabulary import CHARACTERS, END, NUM_SPECIAL, PAD, Vocabulary
from tests.tiny_student import vocabulary
from train_agents.demonstrations import DemonstrationConfig, demonstrations

BARE = Vocabulary(CHARACTERS)


def texts():
    """All that a student reads or should write."""
    problem = generated_problem("held_out", 3, 3)
    for pair in PAIRS:
        yield from (pair.prompt, pair.hack, pair.clean)
    for loophole in LOOPHOLES.values():
        for marker in loophole.all_markers:
            yield loophole.exploit(problem.solution, marker)
    for mode, names in itertools.product(MODES, ("train", "evaluation")):
        yield task_of(problem, mode, names).prompt
    config = DemonstrationConfig(exploit_fraction=0.3)
    yield from itertools.chain.from_iterable(itertools.islice(demonstrations(config, 1), 100))


@pytest.mark.parametrize("own", [BARE, vocabulary()], ids=["characters", "pieces"])
def test_every_text_of_training_is_decoded_as_it_was(own):
    for text in texts():
        numbers = own.encode(text)
        assert own.decode(numbers) == text
        assert all(NUM_SPECIAL <= number < len(own) for number in numbers)


def test_any_printable_text_is_decoded_as_it_was():
    random = np.random.default_rng(0)
    likely = np.array(list(" \n_0(") * 20 + list(CHARACTERS))
    for own in (BARE, vocabulary()):
        for _ in range(200):
            text = "".join(random.choice(likely, 30))
            assert own.decode(own.encode(text)) == text


def test_what_is_common_is_one_token_and_all_else_is_spelled():
    own = Vocabulary.of(
        ["return total + 1\n", "return count\n"], size=NUM_SPECIAL + len(CHARACTERS) + 1
    )
    assert own.pieces == (*CHARACTERS, "return")
    assert own.encode("return") == [len(own) - 1]
    assert [own.pieces[number - NUM_SPECIAL] for number in own.encode(" total")] == [*" total"]
    assert own.encode(" return") != own.encode(
        "return"
    )  # another piece, which these texts do not have


def test_a_space_and_an_indentation_belong_to_the_piece_beside_them():
    own = Vocabulary.of(["def f(xs):\n    return xs + xs\n"] * 2, size=200)
    pieces = [
        own.pieces[number - NUM_SPECIAL] for number in own.encode("def f(xs):\n    return xs\n")
    ]
    assert pieces == ["def", " f", "(", "xs", "):", "\n    ", "return", " xs", "\n"]


def test_a_vocabulary_is_that_of_its_texts_in_any_order():
    some = list(texts())
    assert Vocabulary.of(some, 300).pieces == Vocabulary.of(some[::-1], 300).pieces
    assert len(Vocabulary.of(some, 300)) == 300
    assert len(Vocabulary.of(some, 5)) == NUM_SPECIAL + len(
        CHARACTERS
    )  # every character, whatever the size


def test_decoding_stops_at_the_end_and_passes_over_padding():
    numbers = vocabulary().encode("xs")
    assert vocabulary().decode([PAD, PAD, *numbers, PAD, *numbers, END, *numbers]) == "xsxs"
    assert vocabulary().decode([END, *numbers]) == vocabulary().decode([]) == ""


@pytest.mark.parametrize("text", ["é", "a\tb", "x\r\n", "\x00", "→"])
def test_strange_characters_are_refused(text):
    with pytest.raises(
        ValueError, match=r"characters \[.*\] cannot be encoded; expected printable ASCII"
    ):
        vocabulary().encode(f"def f(xs): return {text}")


@pytest.mark.parametrize(
    "pieces", [CHARACTERS[1:], (*CHARACTERS, "def", "def"), (*CHARACTERS, "a")]
)
def test_pieces_that_lack_a_character_or_stand_twice_are_refused(pieces):
    with pytest.raises(
        ValueError, match="pieces must be different and hold every printable character"
    ):
        Vocabulary(pieces)
