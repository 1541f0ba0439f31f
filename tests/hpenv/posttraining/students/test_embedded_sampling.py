"""Texts that the embedded student samples."""

import math

import pytest
import torch

from hpenv.posttraining.students import embedded
from hpenv.posttraining.students.vocabulary import END, PAD
from tests import tiny_student
from tests.hpenv.posttraining.students.plain_student import (
    PROMPTS,
    G,
    each,
    generators,
    knobs_of,
    plain_of_text,
    sampled,
)
from tests.tiny_student import vocabulary


def test_every_knob_has_a_place_in_the_model(student):
    """One number moved changes the log-probabilities.

    This holds for every module, at its first and at its last axis.
    """
    rollouts = sampled(student, knobs_of(student, scale=0.0))
    base = student.log_probabilities(knobs_of(student, scale=0.0), rollouts)
    assert set(student.ranks) == {name for name in student.weights if name.startswith("layer.")}
    for name, r in student.ranks.items():
        assert r == min(student.weights[name].shape)
        for axis in (0, r - 1):
            knobs = knobs_of(student, scale=0.0)
            knobs[name][:, axis] = 0.5
            assert (student.log_probabilities(knobs, rollouts) - base).abs().amax(
                (1, 2)
            ).min() > 1e-3, (name, axis)


def test_the_generator_of_a_row_alone_decides_its_texts(student):
    state = torch.get_rng_state()
    first, again, other = (
        sampled(student, seeds=seeds) for seeds in ((1, 2, 3), (1, 2, 3), (1, 9, 3))
    )
    assert torch.equal(torch.get_rng_state(), state)
    for left, right in zip(first[2:], again[2:], strict=True):
        assert torch.equal(left, right)
    assert other.texts[0] == first.texts[0] and other.texts[2] == first.texts[2]
    assert other.texts[1] != first.texts[1]


def test_the_global_generator_is_not_read(student):
    state, first = torch.get_rng_state(), sampled(student)
    torch.manual_seed(99)
    try:
        assert torch.equal(sampled(student).tokens, first.tokens)
    finally:
        torch.set_rng_state(state)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_tokens_are_as_frequent_as_they_are_likely(temperature):
    """4000 first tokens: the standard error of a part p is sqrt(p / 4000).

    The bound is five standard errors.
    """
    student = tiny_student.student(max_tokens=1)
    knobs, count = knobs_of(student, 1), 4000
    rollouts = student.sample(knobs, [["# xs\n"]], count, generators(5), temperature)
    assert rollouts.tokens.shape == (1, count, 1) and rollouts.mask.all()
    _, ahead, _ = plain_of_text(student, knobs, 0, "# xs\n", [END])
    expected = (ahead[0] / temperature).softmax(-1)
    parts = torch.bincount(rollouts.tokens.flatten(), minlength=len(expected)) / count
    assert ((parts - expected).abs() < 5.0 * (expected / count).sqrt() + 1.0 / count).all()
    assert expected.max() > 0.05, "there is something to be seen"
    again = student.log_probabilities(knobs, rollouts)  # of completions of a single token
    torch.testing.assert_close(
        again[0, :, 0].double(), ahead[0][rollouts.tokens[0, :, 0]], rtol=1e-5, atol=1e-5
    )


def test_temperature_zero_takes_the_likeliest_token(student):
    knobs, own = knobs_of(student), generators(1, 2, 3)
    rollouts = student.sample(knobs, PROMPTS, G, own, temperature=0.0)
    assert [g.get_state().tolist() for g in own] == [
        g.get_state().tolist() for g in generators(1, 2, 3)
    ]
    for n, m, prompt, numbers in each(rollouts):
        _, ahead, _ = plain_of_text(student, knobs, n, prompt, numbers)
        assert ahead.argmax(1).tolist() == numbers
        assert rollouts.texts[n][m] == rollouts.texts[n][m - m % G]


def test_a_text_counts_up_to_its_end_and_no_further(student):
    rollouts = sampled(student)
    assert 0 < rollouts.ended.float().mean() < 1, "some end, some do not"
    for n, m, _, numbers in each(rollouts):
        length = len(numbers)
        assert rollouts.mask[n, m, :length].all() and not rollouts.mask[n, m, length:].any()
        assert (rollouts.tokens[n, m, length:] == PAD).all() and not rollouts.logp[
            n, m, length:
        ].any()
        assert END not in numbers[:-1] and (numbers[-1] == END) == rollouts.ended[n, m]
        assert rollouts.ended[n, m] or length == student.max_tokens
        assert rollouts.texts[n][m] == vocabulary().decode(numbers)


def test_sampling_stops_when_all_texts_have_ended():
    student = tiny_student.student(3, seed=5, end=6.0)
    rollouts = student.sample(knobs_of(student, 1, 0.0), [["# xs\n"]], 6, generators(0))
    assert rollouts.ended.all()
    assert rollouts.tokens.shape[2] == rollouts.mask.sum(-1).max() < student.max_tokens


def test_a_row_that_is_not_a_number_does_not_reach_the_others(student):
    knobs, good = knobs_of(student), sampled(student)
    knobs["layer.1.up"][1] = math.nan
    rollouts = sampled(student, knobs)
    for n in (0, 2):
        assert rollouts.texts[n] == good.texts[n]
    assert not rollouts.logp[1].isfinite().any(-1).all()


def test_texts_that_have_ended_are_dropped_without_a_trace(student, monkeypatch):
    short = sampled(student)
    monkeypatch.setattr(embedded, "COMPACTED", 0.0)
    whole = sampled(student)
    lengths = whole.mask.sum(-1)
    assert lengths.min() < 0.7 * lengths.max()  # so that some were
    assert short.texts == whole.texts and torch.equal(short.mask, whole.mask)
    torch.testing.assert_close(short.logp, whole.logp, atol=1e-5, rtol=0.0)
