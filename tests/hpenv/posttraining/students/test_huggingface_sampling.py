"""Texts that a Hugging Face student samples."""

import pytest
import torch

import hpenv  # noqa: F401  registers the ids
from hpenv.posttraining.students import reading
from hpenv.posttraining.students.sampling import sample_tokens, sampling_weights
from tests.hpenv.posttraining.students.tiny_huggingface import (
    PROMPTS,
    generators,
    some_knobs,
    student,
    zeros,
)
from tests.tiny_qwen3 import END, PAD, qwen3


def test_sampling_reports_the_log_probabilities_of_what_it_drew():
    own = student()
    knobs = some_knobs(own)
    rollouts = own.sample(knobs, PROMPTS, 3, generators(0, 1))
    torch.testing.assert_close(
        rollouts.logp, own.log_probabilities(knobs, rollouts), atol=1e-4, rtol=1e-4
    )


def test_sampling_reads_its_own_generators_alone():
    own = student()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = own.sample(zeros(own), PROMPTS, 4, generators(0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    again, other = (
        own.sample(zeros(own), PROMPTS, 4, generators(0, 1)),
        own.sample(zeros(own), PROMPTS, 4, generators(0, 2)),
    )
    assert torch.equal(first.tokens, again.tokens)
    assert first.texts[0] == other.texts[0] and first.texts[1] != other.texts[1]


def test_a_completion_ends_with_its_end_and_nothing_is_seen_behind_it():
    own = student(max_tokens=24)
    own.model.lm_head.weight.data[END] *= 3.0
    knobs = zeros(own, 1)
    prompts = [[f"# {number}\n" for number in range(8)]]
    rollouts = own.sample(knobs, prompts, 4, generators(0))
    for tokens, mask, ended in zip(
        rollouts.tokens[0], rollouts.mask[0], rollouts.ended[0], strict=True
    ):
        seen = tokens[mask]
        assert torch.equal(mask, torch.arange(len(mask)) < len(seen))
        assert (seen[-1] == END) == bool(ended) and not (seen[:-1] == END).any()
        assert (tokens[~mask] == PAD).all()
    assert rollouts.ended.any() and not rollouts.ended.all()


def test_temperature_zero_takes_the_likeliest_tokens():
    own = student(max_tokens=6)
    knobs = some_knobs(own, 1)
    rollouts = own.sample(knobs, [PROMPTS[0]], 1, generators(0), temperature=0.0)
    with torch.no_grad():
        for name, knob in knobs.items():
            own.model.get_submodule(name).coefficients.copy_(knob[0])
        for prompt, tokens, mask in zip(
            PROMPTS[0], rollouts.tokens[0], rollouts.mask[0], strict=True
        ):
            before = own.tokenizer(prompt)["input_ids"]
            logits = own.model(input_ids=torch.tensor([before + tokens[mask].tolist()])).logits[0]
            assert torch.equal(logits[len(before) - 1 : -1].argmax(-1), tokens[mask])


def test_drawn_tokens_by_hand():
    logp = torch.tensor([[0.5, 0.3, 0.2]]).log().repeat(5, 1)
    numbers = torch.tensor([0.0, 0.49, 0.51, 0.79, 0.81])
    assert sample_tokens(logp, numbers, 1.0).tolist() == [0, 0, 1, 1, 2]
    assert sample_tokens(logp, numbers, 0.0).tolist() == [0] * 5
    # Squared and normalized: 25/38, 9/38, 4/38, with steps at 0.658 and 0.895.
    assert sample_tokens(logp, numbers, 0.5).tolist() == [0, 0, 0, 1, 1]
    # Two tokens left, with a step at 0.625.
    assert sample_tokens(
        logp, torch.tensor([0.0, 0.62, 0.63, 0.9, 0.999]), 1.0, top_k=2
    ).tolist() == [
        0,
        0,
        1,
        1,
        1,
    ]
    assert sample_tokens(
        logp, torch.tensor([0.0, 0.62, 0.63, 0.9, 0.999]), 1.0, top_p=0.6
    ).tolist() == [
        0,
        0,
        1,
        1,
        1,
    ]
    assert sample_tokens(logp.flip(1), numbers, 1.0, top_p=0.5).tolist() == [2] * 5


@pytest.mark.parametrize("arguments", [{}, {"top_k": 2}, {"top_p": 0.5}])
def test_log_probabilities_are_of_the_distribution_that_is_drawn_from(arguments):
    """Over the tokens that are kept they add up to 1.

    A token that is not kept is measured among them, and is finite.
    """
    logits = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    prompts = reading.Prompts(None, torch.ones(3, 1, dtype=torch.bool), logits[:, None])
    weights = sampling_weights(
        logits.double() / 0.7, arguments.get("top_k", 0), arguments.get("top_p", 1.0)
    )
    probabilities = weights / weights.sum(1, keepdim=True)
    for token in range(6):
        tokens = torch.full((3, 1), token)
        found = reading.log_probabilities(None, {}, prompts, tokens, tokens >= 0, 0.7, **arguments)[
            :, 0
        ]
        is_kept = weights[:, token] > 0
        torch.testing.assert_close(
            found[is_kept].exp().double(), probabilities[is_kept, token], rtol=1e-5, atol=0.0
        )
        assert bool(found.isfinite().all())
    assert bool(((weights > 0).sum(1) < 6).all()) == bool(arguments)


@pytest.mark.parametrize("config", [{"top_k": 3}, {"top_p": 0.5}, {"top_k": 1}], ids=str)
@pytest.mark.parametrize("texts_per_pass", [1, 16])
def test_a_student_s_log_probabilities_are_of_the_tokens_that_its_settings_keep(
    config, texts_per_pass
):
    """By hand from the whole distribution of each text alone.

    The gradient agrees, too, in one pass and in several.
    """
    own = student(texts_per_pass=texts_per_pass, **config)
    knobs = {name: knob.requires_grad_() for name, knob in some_knobs(own).items()}
    rollouts = own.sample(knobs, PROMPTS, 2, generators(0, 1), 0.8)
    found = own.log_probabilities(knobs, rollouts, 0.8)
    plain = student()
    shares = []
    for n, m in ((0, 0), (0, 3), (1, 2)):
        prompt = plain.tokenizer(PROMPTS[n][m // 2])["input_ids"]
        tokens = rollouts.tokens[n, m][rollouts.mask[n, m]]
        places = {f"{name}.coefficients": knob[n].detach() for name, knob in knobs.items()}
        sequence = torch.tensor([prompt + tokens.tolist()])
        logits = torch.func.functional_call(
            plain.model, places, (), {"input_ids": sequence}
        ).logits[0]
        weights = sampling_weights(
            logits[len(prompt) - 1 : -1].double() / 0.8,
            config.get("top_k", 0),
            config.get("top_p", 1.0),
        )
        chosen = weights.gather(1, tokens[:, None])[:, 0]
        assert (chosen > 0).all()
        expected = (chosen / weights.sum(1)).log().float()
        torch.testing.assert_close(found[n, m][rollouts.mask[n, m]], expected, atol=1e-4, rtol=1e-4)
        shares.append(weights.count_nonzero(1))
    assert torch.cat(shares).max() <= config.get("top_k", 258)
    gradients = torch.autograd.grad(found.sum(), list(knobs.values()))
    assert any(g.any() for g in gradients) == (
        config != {"top_k": 1}
    )  # one token alone has probability 1 always


def test_what_a_model_s_generation_config_says_of_sampling_is_not_read():
    model = qwen3()
    model.generation_config.update(do_sample=True, top_k=1, top_p=0.1, temperature=0.1)
    own, plain = student(model=model), student()
    found, expected = (s.sample(zeros(s), PROMPTS, 2, generators(0, 1)) for s in (own, plain))
    assert torch.equal(found.tokens, expected.tokens)
    assert torch.equal(
        own.log_probabilities(zeros(own), found), plain.log_probabilities(zeros(plain), expected)
    )


def test_a_diverged_distribution_draws_tokens_that_exist():
    logp = torch.full((3, 5), torch.nan)
    for arguments in ({}, {"top_k": 2}, {"top_p": 0.5}):
        tokens = sample_tokens(logp, torch.tensor([0.0, 0.5, 0.999]), 1.0, **arguments)
        assert ((tokens >= 0) & (tokens < 5)).all()


def test_drawn_tokens_follow_the_distribution():
    logp = torch.tensor([0.05, 0.0, 0.6, 0.35]).log().repeat(20_000, 1)
    numbers = torch.rand(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    frequencies = sample_tokens(logp, numbers, 1.0).bincount(minlength=4) / 20_000
    assert frequencies[1] == 0
    torch.testing.assert_close(
        frequencies, torch.tensor([0.05, 0.0, 0.6, 0.35]), atol=0.015, rtol=0
    )


def test_every_token_that_the_model_ends_with_ends_a_completion():
    model = qwen3()
    model.generation_config.eos_token_id = [END, *range(128)]
    own = student(model=model)
    rollouts = own.sample(zeros(own, 1), [PROMPTS[0]], 8, generators(0))
    last = [
        int(tokens[mask][-1])
        for tokens, mask in zip(rollouts.tokens[0], rollouts.mask[0], strict=True)
    ]
    assert rollouts.ended.any() and any(token < 128 for token in last)
    for token, tokens, mask in zip(last, rollouts.tokens[0], rollouts.mask[0], strict=True):
        assert not (tokens[mask][:-1] < 128).any(), token
