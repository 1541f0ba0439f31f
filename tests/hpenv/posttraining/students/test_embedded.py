"""The embedded student against a plain forward pass of one text at a time."""

import pytest
import torch

from hpenv.posttraining.contrastive.pairs import PAIRS
from hpenv.posttraining.students.embedded import GRADIENT_TEXTS
from hpenv.posttraining.students.vocabulary import END
from tests import tiny_student
from tests.hpenv.posttraining.students.plain_student import (
    PROMPTS,
    G,
    N,
    P,
    each,
    generators,
    knobs_of,
    plain_of_text,
    sampled,
)
from tests.tiny_student import vocabulary


def rows_of(knobs, *rows):
    return {name: knob[list(rows)] for name, knob in knobs.items()}


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_what_was_sampled_has_the_log_probabilities_of_a_plain_forward_pass(student, temperature):
    knobs = knobs_of(student)
    rollouts = sampled(student, knobs, temperature=temperature)
    again = student.log_probabilities(knobs, rollouts)
    assert rollouts.tokens.shape == (N, P * G, student.max_tokens) == again.shape
    for n, m, prompt, numbers in each(rollouts):
        expected, _, _ = plain_of_text(student, knobs, n, prompt, numbers)
        for found in (rollouts.logp[n, m], again[n, m]):
            torch.testing.assert_close(
                found[: len(numbers)].double(), expected, rtol=1e-5, atol=1e-5
            )
            assert not found[len(numbers) :].any()


@pytest.mark.parametrize("temperature", [0.6, 1.7])
def test_probabilities_at_a_temperature_are_of_what_is_sampled_there(student, temperature):
    knobs = knobs_of(student)
    rollouts = sampled(student, knobs, temperature=temperature)
    found = student.log_probabilities(knobs, rollouts, temperature)
    for n, m, prompt, numbers in each(rollouts):
        _, ahead, _ = plain_of_text(student, knobs, n, prompt, numbers)
        expected = (
            (ahead / temperature).log_softmax(-1).gather(1, torch.tensor(numbers)[:, None])[:, 0]
        )
        torch.testing.assert_close(
            found[n, m, : len(numbers)].double(), expected, rtol=1e-5, atol=1e-5
        )


def test_the_entropy_is_the_mean_over_what_was_sampled(student):
    knobs = knobs_of(student)
    rollouts = sampled(student, knobs)
    entropies = [[] for _ in range(N)]
    for n, _, prompt, numbers in each(rollouts):
        _, ahead, _ = plain_of_text(student, knobs, n, prompt, numbers)
        entropies[n] += (-(ahead.exp() * ahead).sum(1)).tolist()
    assert rollouts.entropy.tolist() == pytest.approx(
        [sum(own) / len(own) for own in entropies], rel=1e-5
    )


def test_a_row_of_a_population_is_the_single_run(student):
    knobs = knobs_of(student)
    together = sampled(student, knobs)
    together_logp = student.log_probabilities(knobs, together)
    prompts, completions = zip(
        *[(pair.prompt, pair.hack) for pair in tiny_student.short_pairs()], strict=True
    )
    gradients = student.completion_gradients(knobs, prompts, completions)
    for n in range(N):
        own = rows_of(knobs, n)
        alone = student.sample(own, PROMPTS[n : n + 1], G, generators(n + 1))
        T = alone.tokens.shape[2]  # it ends where its own texts have ended
        assert (
            torch.equal(alone.tokens[0], together.tokens[n, :, :T])
            and not together.mask[n, :, T:].any()
        )
        assert alone.texts[0] == together.texts[n] and alone.entropy[0] == pytest.approx(
            together.entropy[n].item()
        )
        torch.testing.assert_close(alone.logp[0], together.logp[n, :, :T], rtol=1e-5, atol=1e-6)
        logp = student.log_probabilities(own, alone)
        torch.testing.assert_close(logp[0], together_logp[n, :, :T], rtol=1e-5, atol=1e-6)
        for name, gradient in student.completion_gradients(own, prompts, completions).items():
            torch.testing.assert_close(gradient[0], gradients[name][n], rtol=1e-4, atol=1e-6)


def test_knobs_of_zero_are_bitwise_the_model_itself(student):
    zeros = knobs_of(student, scale=0.0)
    one = {next(iter(zeros)): next(iter(zeros.values()))}  # all other matrices as they were read
    rollouts = sampled(student, zeros)
    assert torch.equal(rollouts.tokens, sampled(student, one).tokens)
    base = student.log_probabilities(one, rollouts)
    assert torch.equal(student.log_probabilities(zeros, rollouts), base)
    for name, weight in student._parameters(zeros).items():
        assert torch.equal(weight, student.weights[name].expand_as(weight)), name
    mixed = {
        name: torch.stack([knob[0], knobs_of(student)[name][1], knob[2]])
        for name, knob in zeros.items()
    }
    moved = student.log_probabilities(mixed, rollouts)
    assert torch.equal(moved[[0, 2]], base[[0, 2]]) and not torch.allclose(
        moved[1], base[1], atol=1e-3
    )


def test_the_gradient_of_log_probabilities_is_that_of_unshared_forward_passes(student):
    knobs = {name: knob.requires_grad_() for name, knob in knobs_of(student, scale=0.2).items()}
    with torch.no_grad():
        rollouts = sampled(student, knobs)
    weight = torch.randn(rollouts.logp.shape, generator=torch.Generator().manual_seed(3))
    found = torch.autograd.grad(
        (weight * student.log_probabilities(knobs, rollouts)).sum(), list(knobs.values())
    )
    total = torch.zeros((), dtype=torch.float64)
    for n, m, prompt, numbers in each(rollouts):
        logp, _, _ = plain_of_text(student, knobs, n, prompt, numbers)
        total = total + (weight[n, m, : len(numbers)] * logp).sum()
    for gradient, expected in zip(
        found, torch.autograd.grad(total, list(knobs.values())), strict=True
    ):
        torch.testing.assert_close(
            gradient, expected.float(), rtol=1e-3, atol=1e-4 * expected.abs().max().item()
        )


def test_gradients_of_completions_are_those_of_one_text_at_a_time():
    student = tiny_student.student()
    texts = [(pair.prompt, text) for pair in PAIRS for text in (pair.hack, pair.clean)][
        : GRADIENT_TEXTS + 3
    ]
    knobs = knobs_of(student, 2, 0.2)
    found = student.completion_gradients(knobs, *zip(*texts, strict=True))
    assert all(not gradient.requires_grad for gradient in found.values())
    for n, i in [
        (0, 0),
        (1, 0),
        (0, GRADIENT_TEXTS - 1),
        (1, GRADIENT_TEXTS),
        (0, GRADIENT_TEXTS + 2),
    ]:
        leaves = {name: knob.clone().requires_grad_() for name, knob in knobs.items()}
        numbers = [*vocabulary().encode(texts[i][1]), END]
        logp, _, _ = plain_of_text(student, leaves, n, texts[i][0], numbers)
        (-logp.mean()).backward()
        for name, leaf in leaves.items():
            expected = leaf.grad[n]
            assert found[name].shape == (2, len(texts), student.ranks[name])
            bound = 1e-4 * expected.abs().max().item()
            torch.testing.assert_close(found[name][n, i], expected, rtol=1e-3, atol=bound)


def test_given_texts_are_as_if_they_had_been_sampled(student):
    pairs = tiny_student.short_pairs()[:3]
    rollouts = student.rollouts_from_texts(
        [[pair.prompt for pair in pairs]], [[pair.hack for pair in pairs]]
    )
    assert rollouts.texts == [[pair.hack for pair in pairs]] and rollouts.num_samples == 1
    assert rollouts.ended.all()
    knobs = knobs_of(student, 1)
    logp = student.log_probabilities(knobs, rollouts)
    for n, m, prompt, numbers in each(rollouts):
        assert numbers == [*vocabulary().encode(pairs[m].hack), END] and prompt == pairs[m].prompt
        expected, _, _ = plain_of_text(student, knobs, n, prompt, numbers)
        torch.testing.assert_close(
            logp[n, m, : len(numbers)].double(), expected, rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize(("n_layer", "layers"), [(3, [1]), (2, [0]), (5, [2])])
def test_states_are_the_stream_at_the_last_token_in_the_middle_of_the_depth(n_layer, layers):
    """Layers at 60 to 75 % of the depth: the second of three and the third of five.

    If no layer is there, it is the one before.
    """
    student = tiny_student.student(n_layer, tiny_student.SHORT)
    knobs = knobs_of(student)
    rollouts = sampled(student, knobs)
    states = student.states(knobs, rollouts)
    assert states.shape == (N, P * G, student.config.gpt.n_embd) and not states.requires_grad
    for n, m, prompt, numbers in each(rollouts):
        _, _, streams = plain_of_text(student, knobs, n, prompt, numbers)
        expected = torch.stack([streams[i][-1] for i in layers]).mean(0)
        torch.testing.assert_close(states[n, m].double(), expected, rtol=1e-4, atol=1e-4)


def test_texts_that_do_not_fit_are_refused_with_both_numbers(student):
    zeros = knobs_of(student, 1, 0.0)
    with pytest.raises(
        ValueError, match=r"the prompt '# xs.*' has 103 tokens; this student reads up to 64"
    ):
        student.sample(zeros, [["# xs" + " xs" * 100 + "\n"]], 2, generators(0))
    with pytest.raises(
        ValueError, match=r"the completion 'xs.*' has 25 tokens; this student writes up to 24"
    ):
        student.rollouts_from_texts([["# xs\n"]], [["xs" + " xs" * 23]])
    assert student.rollouts_from_texts([["# xs\n"]], [["xs" + " xs" * 22]]).mask.all()
    with pytest.raises(ValueError, match=r"characters \['é'\] cannot be encoded"):
        student.completion_gradients(zeros, ["# xs\n"], ["é"])
