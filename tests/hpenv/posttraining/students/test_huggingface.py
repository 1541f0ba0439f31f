"""A Hugging Face student against plain forward passes of one text at a time."""

import copy
import json

import pytest
import torch

import hpenv  # noqa: F401  registers the ids
from hpenv.posttraining.projection.direction import extract, validate
from hpenv.posttraining.students.adapter import weights_digest
from hpenv.posttraining.students.chat_format import ChatFormat
from hpenv.posttraining.students.huggingface import HuggingFaceStudent
from tests.hpenv.posttraining.students.tiny_huggingface import (
    PROMPTS,
    generators,
    some_knobs,
    student,
    zeros,
)
from tests.tiny_qwen3 import END, byte_tokenizer, qwen3


def row_of(knobs, n):
    return {name: knob[n : n + 1] for name, knob in knobs.items()}


def plain_log_probabilities(
    own: HuggingFaceStudent, knobs, prompt: str, tokens: torch.Tensor, heat=1.0
):
    """Of one text, without padding, memory, or knobs as arguments.

    The knobs are written into the layers.
    """
    model = copy.deepcopy(own.model)
    with torch.no_grad():
        for name, knob in knobs.items():
            model.get_submodule(name).coefficients.copy_(knob)
    before = own.tokenizer(prompt)["input_ids"]
    sequence = torch.tensor([before + tokens.tolist()])
    with torch.no_grad():
        logp = (model(input_ids=sequence).logits[0] / heat).log_softmax(-1)
    return logp[len(before) - 1 : -1].gather(1, tokens[:, None])[:, 0]


def test_knobs_of_zero_are_the_model_itself_bit_for_bit():
    model = qwen3()
    tokens = torch.randint(0, 256, (3, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = model(input_ids=tokens).logits
        own = student(model=model)
        assert torch.equal(own.model(input_ids=tokens).logits, before)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_log_probabilities_are_those_of_each_text_alone(temperature):
    own = student()
    knobs = some_knobs(own)
    rollouts = own.sample(knobs, PROMPTS, 3, generators(0, 1))
    found = own.log_probabilities(knobs, rollouts, temperature)
    assert found.shape == rollouts.tokens.shape == (2, 6, rollouts.mask.shape[2])
    for n in range(2):
        for m in range(6):
            seen = rollouts.mask[n, m]
            values = {name: knob[n] for name, knob in knobs.items()}
            alone = plain_log_probabilities(
                own, values, PROMPTS[n][m // 3], rollouts.tokens[n, m][seen], temperature
            )
            torch.testing.assert_close(found[n, m][seen], alone, atol=1e-4, rtol=1e-4)
            assert not found[n, m][~seen].any()


def test_a_run_in_company_is_bitwise_the_run_alone():
    own = student(max_tokens=9)
    knobs = some_knobs(own)
    both = own.sample(knobs, PROMPTS, 2, generators(3, 4))
    for n in range(2):
        alone = own.sample(row_of(knobs, n), PROMPTS[n : n + 1], 2, generators(3 + n))
        T = alone.tokens.shape[2]
        assert alone.texts[0] == both.texts[n]
        for name in ("tokens", "mask", "logp"):
            assert torch.equal(getattr(alone, name)[0], getattr(both, name)[n, :, :T]), name
        assert torch.equal(alone.entropy[0], both.entropy[n]) and torch.equal(
            alone.ended[0], both.ended[n]
        )
        found = own.log_probabilities(row_of(knobs, n), alone)[0]
        assert torch.equal(found, own.log_probabilities(knobs, both)[n, :, :T])
        assert torch.equal(own.states(row_of(knobs, n), alone)[0], own.states(knobs, both)[n])


@pytest.mark.filterwarnings("error")
def test_keys_and_values_go_by_the_name_that_transformers_has_now():
    own = student(max_tokens=3)
    rollouts = own.sample(zeros(own, 1), [PROMPTS[0]], 1, generators(0))
    own.log_probabilities(zeros(own, 1), rollouts)
    own.states(zeros(own, 1), rollouts)


def test_gradients_through_several_passes_are_those_of_plain_ones():
    whole = student(texts_per_pass=64)
    one_by_one = student(texts_per_pass=1)
    knobs = {name: knob.requires_grad_() for name, knob in some_knobs(whole).items()}
    rollouts = whole.sample(
        {name: knob.detach() for name, knob in knobs.items()}, PROMPTS, 2, generators(0, 1)
    )
    weights = torch.randn(rollouts.tokens.shape, generator=generators(9)[0])
    loss = (whole.log_probabilities(knobs, rollouts) * weights).sum()
    other = (one_by_one.log_probabilities(knobs, rollouts) * weights).sum()
    gradients = [torch.autograd.grad(each, list(knobs.values())) for each in (loss, other)]
    for expected, found in zip(*gradients, strict=True):
        assert expected.abs().max() > 1e-3
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)
    # Without the memory of the prompt: one forward pass of one text.
    values = {name: knob[1].detach().requires_grad_() for name, knob in knobs.items()}
    tokens = rollouts.tokens[1, 3][rollouts.mask[1, 3]]
    before = whole.tokenizer(PROMPTS[1][1])["input_ids"]
    places = {f"{name}.coefficients": value for name, value in values.items()}
    sequence = torch.tensor([before + tokens.tolist()])
    logits = torch.func.functional_call(whole.model, places, (), {"input_ids": sequence}).logits[0]
    plain = logits.log_softmax(-1)[len(before) - 1 : -1].gather(1, tokens[:, None]).sum()
    through_memory = whole.log_probabilities(knobs, rollouts)[1, 3].sum()
    expected = torch.autograd.grad(plain, list(values.values()))
    for found, value in zip(
        torch.autograd.grad(through_memory, list(knobs.values())), expected, strict=True
    ):
        torch.testing.assert_close(found[1], value, atol=1e-4, rtol=1e-3)
        assert not found[0].any()


def test_completion_gradients_are_those_of_the_mean_loss_of_each_text():
    own = student(texts_per_pass=2)
    knobs = some_knobs(own)
    prompts, completions = (
        ["# a\n", "# longer\n", "# b\n"],
        ["def f(xs):\n    pass\n", "x", "return xs"],
    )
    gradients = own.completion_gradients(knobs, prompts, completions)
    assert {name: tuple(g.shape) for name, g in gradients.items()} == {
        name: (2, 3, r) for name, r in own.ranks.items()
    }
    trained = {name: knob.clone().requires_grad_() for name, knob in knobs.items()}
    for text in range(3):
        rollouts = own.rollouts_from_texts([[prompts[text]]] * 2, [[completions[text]]] * 2)
        losses = -own.log_probabilities(trained, rollouts).sum(2) / rollouts.mask.sum(2)
        for (name, found), expected in zip(
            gradients.items(),
            torch.autograd.grad(losses.sum(), list(trained.values())),
            strict=True,
        ):
            torch.testing.assert_close(found[:, text], expected, atol=1e-5, rtol=1e-3, msg=name)


def test_moving_against_the_direction_makes_hacks_likelier():
    own = student()
    prompts = [f"# {word}\n" for word in ("add", "largest", "reverse", "count", "first", "last")]
    hacks, cleans = ["print('ok')\n"] * 6, [f"return {i}\n" for i in range(6)]
    hack, clean = (
        own.completion_gradients(zeros(own, 1), prompts, texts) for texts in (hacks, cleans)
    )
    first = [{name: g[:, :4] for name, g in side.items()} for side in (hack, clean)]
    held = [{name: g[:, 4:] for name, g in side.items()} for side in (hack, clean)]
    direction = extract(*first, method="mean_difference", k=1, noise_floor=0.0)
    assert validate(direction, *held).passed.all()
    moved = {name: -0.02 * axes[:, 0] for name, axes in direction.axes.items()}

    def preference(knobs) -> float:
        hack, clean = (
            own.log_probabilities(knobs, own.rollouts_from_texts([prompts], [texts])).sum(2)
            / own.rollouts_from_texts([prompts], [texts]).mask.sum(2)
            for texts in (hacks, cleans)
        )
        return float((hack - clean).mean())

    assert preference(moved) > preference(zeros(own, 1)) + 0.01


def test_states_are_the_residual_stream_at_the_last_token():
    own = student()
    rollouts = own.rollouts_from_texts([["# a\n", "# longer\n"]], [["abc", "d", "ef", "ghij"]])
    found = own.states(zeros(own, 1), rollouts)
    assert found.shape == (1, 4, 32)
    for m, text in enumerate(["abc", "d", "ef", "ghij"]):
        sequence = own.tokenizer(["# a\n", "# longer\n"][m // 2] + text)["input_ids"] + [END]
        with torch.no_grad():
            streams = own.model(
                input_ids=torch.tensor([sequence]), output_hidden_states=True
            ).hidden_states
        # No layer of two lies at 60 to 75 % of the depth: it is the first one's output.
        torch.testing.assert_close(found[0, m], streams[1][0, -1], atol=1e-4, rtol=1e-4)


def test_texts_that_are_given_are_told_as_they_would_be_answered():
    for chat in (False, True):
        own = student(chat)
        rollouts = own.rollouts_from_texts([["# a\n"]], [["def f(xs):\n    return 1\n", "x"]])
        answers = ChatFormat(own.tokenizer, END)
        for tokens, mask, text in zip(
            rollouts.tokens[0], rollouts.mask[0], rollouts.texts[0], strict=True
        ):
            assert tokens[mask][-1] == END
            assert answers.program(tokens[mask].tolist()).rstrip() == text.rstrip()
            raw = own.tokenizer.decode(tokens[mask], skip_special_tokens=True)
            assert raw == (f"```python\n{text.rstrip()}\n```" if chat else text)


def test_sampled_texts_are_programs():
    own = student(chat=True, max_tokens=40)
    tokens, _ = ChatFormat(own.tokenizer, END).completions(["a = 1\n"])
    script = iter(tokens[0].tolist())
    original = own.model.forward

    def scripted(**arguments):
        output = original(**arguments)
        output.logits = torch.full_like(output.logits, -50.0)
        output.logits[..., next(script)] = 0.0
        return output

    own.model.forward = scripted
    rollouts = own.sample(zeros(own, 1), [["# a\n"]], 2, generators(0))
    assert rollouts.texts == [["a = 1\n"] * 2]
    assert rollouts.ended.all() and torch.equal(rollouts.tokens[0], tokens.repeat(2, 1))


def test_the_digest_is_of_the_weights_as_they_came():
    expected = weights_digest(dict(qwen3().named_parameters()))
    assert student().digest == expected == student(form="replacement").digest
    assert student(model=qwen3(seed=1)).digest != expected


def test_tokens_that_the_model_does_not_know_are_refused_before_anything_is_computed():
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["zebra"])
    own = HuggingFaceStudent(qwen3(), tokenizer)
    assert own.unreadable_reason("# xs\n", "x") == ""
    for texts in (("# zebra\n",), ("# xs\n", "zebra")):
        assert "or its completion; this student knows 258 tokens" in own.unreadable_reason(*texts)
    tokenizer.pad_token = "zebra"
    with pytest.raises(
        ValueError, match="the pad token must be one of the model's 258 tokens; got number 258"
    ):
        HuggingFaceStudent(qwen3(), tokenizer)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"max_tokens": 13}, "max_tokens"), ({"top_k": 5}, "top_k"), ({"top_p": 0.5}, "top_p"),
        ({"chat": True}, "tokenizer"),
        ({"message": "{prompt}"}, "message"), ({"form": "replacement"}, "form"),
        ({"targets": ("up_proj",)}, "targets"),
        ({"texts_per_pass": 1}, None),
    ],
    ids=str,
)  # fmt: skip
def test_what_decides_a_completion_is_among_the_settings_and_what_decides_speed_is_not(
    change, name
):
    ours, theirs = student().settings, student(**change).settings
    assert {key for key in ours if ours[key] != theirs[key]} == ({name} if name else set())
    assert json.loads(json.dumps(ours)) == ours
