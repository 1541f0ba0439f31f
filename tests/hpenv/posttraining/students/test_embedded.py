"""The embedded student against a plain forward pass of one text at a time.

The plain forward pass has no memory, no adapters and no population.
"""

import copy
import json
import math
import shutil
from functools import cache

import pytest
import torch
import torch.nn.functional as F

from hpenv.posttraining.contrastive.pairs import PAIRS
from hpenv.posttraining.students import embedded
from hpenv.posttraining.students import registry as students
from hpenv.posttraining.students.embedded import GRADIENT_TEXTS, EmbeddedStudent
from hpenv.posttraining.students.vocabulary import END, PAD
from tests import tiny_student
from tests.tiny_student import vocabulary

PROMPTS = [
    ["# Return the sum of xs.\n# The grader calls run_tests().\n", "# f([1, 2]) == 3\n"],
    ["# Return the larger of a and b.\n", "# xs\n"],
    ["# f([]) == 0\n", "# Return the even numbers of xs, each squared.\n"],
]
N, P, G = 3, 2, 4


@pytest.fixture
def student():
    return tiny_student.student(max_tokens=tiny_student.SHORT)


def knobs_of(student, num_rows=N, scale=0.3):
    generator = torch.Generator().manual_seed(7)
    return {
        name: scale * torch.randn(num_rows, r, generator=generator)
        for name, r in student.ranks.items()
    }


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def rows_of(knobs, *rows):
    return {name: knob[list(rows)] for name, knob in knobs.items()}


def sampled(student, knobs=None, seeds=(1, 2, 3), temperature=1.0):
    return student.sample(
        knobs_of(student) if knobs is None else knobs, PROMPTS, G, generators(*seeds), temperature
    )


def norm(x):
    return x / (x.square().mean(-1, keepdim=True) + torch.finfo(torch.float32).eps).sqrt()


@cache
def singular_vectors(student, name):
    U, _, Vh = torch.linalg.svd(student.weights[name].double(), full_matrices=False)
    return U, Vh


def plain(student, knobs, row, numbers):
    """Log-probabilities of the next token after every token of one text, (T, V), and the streams.

    A stream is given after each layer.

    float64, W + U diag(d) Vh written out from the singular values of W.
    """
    gpt, w = student.config.gpt, {name: weight.double() for name, weight in student.weights.items()}
    for name, knob in knobs.items():
        U, Vh = singular_vectors(student, name)
        w[name] = w[name] + U @ torch.diag(knob[row].double()) @ Vh
    T, heads, size = len(numbers), gpt.n_head, gpt.n_embd // gpt.n_head
    angles = torch.arange(T)[:, None] * gpt.rope_base ** (
        -torch.arange(size // 2).double() / (size // 2)
    )
    unseen = torch.ones(T, T, dtype=torch.bool).triu(1)

    def split(y):
        return y.view(T, heads, size).transpose(0, 1)  # (heads, T, size)

    def turned(y):
        left, right = y.chunk(2, -1)
        c, s = angles.cos(), angles.sin()
        return torch.cat([left * c + right * s, right * c - left * s], -1)

    x, streams = norm(w["embedding"][torch.tensor(numbers)]), []
    for i in range(gpt.n_layer):
        h = norm(x)
        q, k, v = (split(h @ w[f"layer.{i}.{name}"].T) for name in ("query", "key", "value"))
        scores = norm(turned(q)) @ norm(turned(k)).transpose(1, 2) / math.sqrt(size)
        mixed = scores.masked_fill(unseen, -math.inf).softmax(-1) @ v
        x = x + mixed.transpose(0, 1).reshape(T, -1) @ w[f"layer.{i}.output"].T
        x = x + F.relu(norm(x) @ w[f"layer.{i}.up"].T).square() @ w[f"layer.{i}.down"].T
        streams.append(x)
    logits = norm(x) @ w["unembedding"].T
    return (gpt.logit_softcap * torch.tanh(logits / gpt.logit_softcap)).log_softmax(-1), streams


def filled(student, prompt):
    numbers = vocabulary().encode(prompt)
    return [PAD] * (student.config.prompt_tokens - len(numbers)) + numbers


def each(rollouts):
    """Row, place, prompt and tokens up to the end, of every text."""
    for n in range(rollouts.tokens.shape[0]):
        for m in range(rollouts.tokens.shape[1]):
            numbers = rollouts.tokens[n, m][rollouts.mask[n, m]].tolist()
            yield n, m, rollouts.prompts[n][m // rollouts.num_samples], numbers


def plain_of_text(student, knobs, row, prompt, numbers):
    """Log-probabilities of a completion's tokens (T,), their distributions (T, V), and streams."""
    start = student.config.prompt_tokens
    logp, streams = plain(student, knobs, row, filled(student, prompt) + numbers)
    ahead = logp[start - 1 : start - 1 + len(numbers)]
    return (
        ahead.gather(1, torch.tensor(numbers)[:, None])[:, 0],
        ahead,
        [x[start:] for x in streams],
    )


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


def test_a_saved_student_is_the_same_student(student, tmp_path):
    student.save(tmp_path / "mine", {"steps": 3})
    loaded = EmbeddedStudent.load(tmp_path / "mine")
    assert (loaded.digest, loaded.ranks, loaded.config) == (
        student.digest,
        student.ranks,
        student.config,
    )
    assert loaded.vocabulary.pieces == student.vocabulary.pieces
    assert EmbeddedStudent.load(str(tmp_path / "mine")).digest == student.digest
    knobs, rollouts = knobs_of(student), sampled(student)
    assert torch.equal(
        loaded.log_probabilities(knobs, rollouts), student.log_probabilities(knobs, rollouts)
    )
    description = json.loads((tmp_path / "mine" / "student.json").read_text())
    assert description["notes"] == {"steps": 3} and len(description["digest"]) == 64


def test_weights_that_are_not_those_described_are_refused(tmp_path):
    for seed, name in ((0, "one"), (1, "other")):
        tiny_student.student(seed=seed).save(tmp_path / name, {})
    (tmp_path / "one" / "student.safetensors").replace(tmp_path / "other" / "student.safetensors")
    with pytest.raises(
        ValueError,
        match=r"student.safetensors must be the file that student.json describes; got .* digest",
    ):
        EmbeddedStudent.load(tmp_path / "other")


@pytest.mark.parametrize("folder", ["giant", "./giant"])
def test_a_student_that_is_not_there_is_refused(folder):
    with pytest.raises(
        ValueError,
        match=r"no student in .*giant; expected one of \['nano'\], a folder .*'hf:<folder>'",
    ):
        EmbeddedStudent.load(folder)


def test_a_student_is_what_lies_in_its_folder(student, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    student.save(tmp_path / "mine", {})
    first = students.student("./mine")
    assert students.student("~/mine") is students.student(f"{tmp_path}/mine") is first
    tiny_student.student(seed=1).save(tmp_path / "mine", {})
    assert students.student("./mine").digest != first.digest == student.digest
    for given in (3, None):
        with pytest.raises(
            ValueError, match="student must be the name of a shipped student or a folder; got"
        ):
            EmbeddedStudent.load(given)


def test_what_the_caller_has_set_in_torch_changes_no_student(student, tmp_path):
    student.save(tmp_path / "mine", {})
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            loaded = EmbeddedStudent.load(tmp_path / "mine")
    finally:
        torch.set_default_dtype(torch.float32)
    knobs, rollouts = knobs_of(student), sampled(student)
    expected, found = (each.log_probabilities(knobs, rollouts) for each in (student, loaded))
    assert loaded.digest == student.digest and torch.equal(found, expected)
    leaves = {name: knob.requires_grad_() for name, knob in knobs.items()}
    loaded.log_probabilities(leaves, rollouts).sum().backward()


def within(value, keys, new):
    """A JSON value in which what stands under these keys is new, or gone."""
    *outer, last = keys
    result = copy.deepcopy(value)
    inner = result
    for key in outer:
        inner = inner[key]
    if new is None:
        del inner[last]
    else:
        inner[last] = new
    return result


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder of a small student, and what its student.json says."""
    folder = tmp_path_factory.mktemp("student")
    tiny_student.student().save(folder, {})
    return folder, json.loads((folder / "student.json").read_text())


@pytest.mark.parametrize(
    ("keys", "new", "message"),
    [
        (["digest"], None, r"missing are \['digest'\], unknown \[\]"),
        (["digest"], 3, "digest must be of type str; got 3"),
        (["digests"], "", r"missing are \[\], unknown \['digests'\]"),
        (["config"], [], "config must be of type dict"),
        (["config", "gpt"], None, r"fields config.\* must be .*missing are \['gpt'\]"),
        (["config", "max_tokens"], "48", "config.max_tokens must be of type int; got '48'"),
        (["config", "max_tokens"], True, "config.max_tokens must be of type int; got True"),
        (["config", "max_tokens"], 0, "max_tokens must be an integer from 1 to 65536; got 0"),
        (
            ["config", "prompt_tokens"],
            10**15,
            "prompt_tokens must be an integer from 1 to 65536",
        ),
        (["config", "gpt", "n_heads"], 2, r"unknown fields \['n_heads'\]"),
        (["config", "gpt", "n_head"], 0, "n_head must be an integer from 1 to"),
        (
            ["config", "gpt", "n_head"],
            3,
            "an even multiple of n_head .*; got n_embd=16 and n_head=3",
        ),
        (["config", "gpt", "n_layer"], "2", "n_layer must be an integer from 1 to"),
        (["config", "gpt", "n_layer"], 10**12, "n_layer must be an integer from 1 to"),
        (["config", "gpt", "n_layer"], 10**6, "n_layer must fit the .* got 1000000"),
        (
            ["config", "gpt", "n_layer"],
            1,
            r"6 weights do not fit the shape, as name: \(given, expected\)",
        ),
        (["config", "gpt", "n_embd"], 32, r"do not fit the shape, as name: \(given, expected\)"),
        (
            ["config", "gpt", "rope_base"],
            float("nan"),
            "rope_base must be a number above 0; got nan",
        ),
        (["config", "gpt", "logit_softcap"], -1, "logit_softcap must be a number above 0; got -1"),
        (["config", "gpt", "feed_forward"], "relu", "unknown feed_forward 'relu'"),
        (["config", "gpt", "value_embeddings"], 1, "value_embeddings must be of type bool; got 1"),
        (["config", "gpt", "hidden_size"], 2.5, "hidden_size must be an integer from 1 to"),
        (["pieces"], "abc", "pieces must be of type list"),
        (["pieces"], [["a"]], r"pieces must be texts; got \['a'\]"),
        (["pieces"], ["a", "b"], "pieces must be different and hold every printable character"),
    ],
)
def test_a_description_of_no_student_is_refused_by_name(saved, tmp_path, keys, new, message):
    folder, description = saved
    shutil.copy(folder / "student.safetensors", tmp_path)
    (tmp_path / "student.json").write_text(json.dumps(within(description, keys, new)))
    with pytest.raises(ValueError, match=rf"student\.json.*{message}"):
        EmbeddedStudent.load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b"{" * 99_999])
def test_a_description_that_cannot_be_read_is_named(tmp_path, content):
    (tmp_path / "student.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"student must (be|hold) a JSON .* got '.*student\.json'"):
        EmbeddedStudent.load(tmp_path)


@pytest.mark.parametrize("size", [0, 8, 100, -1])
def test_weights_that_are_cut_off_are_named(saved, tmp_path, size):
    folder, _ = saved
    shutil.copy(folder / "student.json", tmp_path)
    (tmp_path / "student.safetensors").write_bytes(
        (folder / "student.safetensors").read_bytes()[:size]
    )
    with pytest.raises(
        ValueError, match=r"must be a whole safetensors file; got '.*student\.safetensors'"
    ):
        EmbeddedStudent.load(tmp_path)
    (tmp_path / "student.safetensors").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"must be a file that exists; got '.*student\.safetensors'"
    ):
        EmbeddedStudent.load(tmp_path)


def test_a_folder_that_cannot_be_written_to_is_refused(student, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        ValueError, match=r"folder must be a folder that can be written to; got '.*file'"
    ):
        student.save(tmp_path / "file", {})


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


def test_weights_shape_and_vocabulary_must_fit_together(student):
    config, shape = student.config, student.config.gpt
    lacking = {name: weight for name, weight in student.weights.items() if name != "layer.1.up"}
    with pytest.raises(
        ValueError,
        match=r"1 weights do not fit the shape, as .*: \{'layer.1.up': \(None, \(24, 16\)",
    ):
        EmbeddedStudent(config, student.vocabulary, lacking)
    smaller = type(student.vocabulary)(student.vocabulary.pieces[:-1])
    size = len(student.vocabulary)
    with pytest.raises(
        ValueError, match=rf"the vocabulary must have {size} tokens.*; got {size - 1} tokens"
    ):
        EmbeddedStudent(config, smaller, student.weights)
    short_sighted = type(config)(type(shape)(**vars(shape) | {"window_pattern": "SL"}))
    with pytest.raises(ValueError, match="layers that see all of the sequence"):
        EmbeddedStudent(short_sighted, student.vocabulary, student.weights)


def test_texts_that_have_ended_are_dropped_without_a_trace(student, monkeypatch):
    short = sampled(student)
    monkeypatch.setattr(embedded, "COMPACTED", 0.0)
    whole = sampled(student)
    lengths = whole.mask.sum(-1)
    assert lengths.min() < 0.7 * lengths.max()  # so that some were
    assert short.texts == whole.texts and torch.equal(short.mask, whole.mask)
    torch.testing.assert_close(short.logp, whole.logp, atol=1e-5, rtol=0.0)
