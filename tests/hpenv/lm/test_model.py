"""The population's forward pass against a single run's, written without the population axis."""

import math
import zlib

import pytest
import torch
import torch.nn.functional as F

from hpenv.lm import architecture, model
from hpenv.lm.architecture import GPTConfig
from hpenv.lm.kv_cache import KVCache
from hpenv.lm.model import Dials

SMALL = {"n_layer": 3, "n_head": 2, "n_embd": 64, "vocab_size": 50}
CONFIGS = {
    "plain": GPTConfig(**SMALL),
    "swiglu": GPTConfig(**SMALL, feed_forward="swiglu"),
    "value_embeddings": GPTConfig(**SMALL, value_embeddings=True),
    "residual_lambdas": GPTConfig(**SMALL, residual_lambdas=True),
    "windows": GPTConfig(**SMALL, window_pattern="SL"),
    "low_softcap": GPTConfig(**SMALL, logit_softcap=0.5),
    "everything": GPTConfig(
        **SMALL,
        feed_forward="swiglu",
        value_embeddings=True,
        residual_lambdas=True,
        window_pattern="SSL",
        hidden_size=96,
    ),
}
BATCH = (2, 12)  # (B, T)


def random_parameters(config, num_rows):
    """Weights none of which is zero, unlike those at initialization.

    A tensor's weights depend on its name and shape alone.
    """
    scales = {
        "embedding": 1.0,
        "value_embedding": 1.0,
        "residual_lambdas": 0.5,
        "embedding_lambdas": 0.5,
    }
    params = {}
    for name, shape in architecture.parameter_shapes(config).items():
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        scale = scales.get(name.rsplit(".", 1)[-1], 0.15)
        params[name] = torch.randn(num_rows, *shape, generator=generator) * scale
    return params


def random_batch(config, num_rows, shape=BATCH, seed=1):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(
        config.vocab_size, (num_rows, shape[0], shape[1] + 1), generator=generator
    )
    return tokens[..., :-1].contiguous(), tokens[..., 1:].contiguous()


def norm(x):
    return F.rms_norm(x, x.shape[-1:])


def rotate(x, base):
    """Pairs (d, d + half) of (B, H, T, D) as complex numbers.

    They are turned by minus the position times the frequency.
    """
    half = x.shape[-1] // 2
    angles = torch.arange(x.shape[-2])[:, None] * base ** (
        -torch.arange(half, dtype=torch.float64) / half
    )
    turned = (
        torch.complex(x[..., :half], x[..., half:])
        * torch.polar(torch.ones_like(angles), -angles).cfloat()
    )
    return torch.cat([turned.real, turned.imag], -1)


def reference_losses(w, config, inputs, targets):
    """Token losses (B, T) of one run: weights without the population axis, tokens (B, T)."""
    (B, T), C, heads = inputs.shape, config.n_embd, config.n_head
    behind = torch.arange(T)[:, None] - torch.arange(T)

    def split(x):
        return x.view(B, T, heads, -1).transpose(1, 2)

    x = first = norm(F.embedding(inputs, w["embedding"]))
    for i in range(config.n_layer):
        own = {
            name.removeprefix(f"layer.{i}."): value
            for name, value in w.items()
            if name.startswith(f"layer.{i}.")
        }
        if config.residual_lambdas:
            x = w["residual_lambdas"][i] * x + w["embedding_lambdas"][i] * first
        h = norm(x)
        q, k, v = (split(F.linear(h, own[name])) for name in ("query", "key", "value"))
        if config.value_embeddings and (config.n_layer - 1 - i) % 2 == 0:
            gate = 2 * torch.sigmoid(F.linear(h[..., :32], own["value_gate"]))  # (B, T, heads)
            v = (
                v
                + split(F.embedding(inputs, own["value_embedding"]))
                * gate.transpose(1, 2)[..., None]
            )
        q, k = norm(rotate(q, config.rope_base)), norm(rotate(k, config.rope_base))
        is_short = (
            config.window_pattern[i % len(config.window_pattern)] == "S" and i < config.n_layer - 1
        )
        seen = (behind >= 0) & (behind <= (T // 2 if is_short else T))
        scores = (q @ k.transpose(-1, -2) / math.sqrt(C // heads)).masked_fill(~seen, -math.inf)
        x = x + F.linear((scores.softmax(-1) @ v).transpose(1, 2).reshape(B, T, C), own["output"])
        h = norm(x)
        up = F.linear(h, own["up"])
        hidden = (
            F.silu(F.linear(h, own["gate"])) * up
            if config.feed_forward == "swiglu"
            else up.relu() ** 2
        )
        x = x + F.linear(hidden, own["down"])
    logits = F.linear(norm(x), w["unembedding"])
    logits = config.logit_softcap * torch.tanh(logits / config.logit_softcap)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(B, T)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_losses_and_gradients_equal_those_of_the_reference_of_one_run(config):
    N = 3
    params = {name: value.requires_grad_() for name, value in random_parameters(config, N).items()}
    inputs, targets = random_batch(config, N)
    rope = model.rope_tables(config, BATCH[1], "cpu")
    means = model.mean_losses(params, config, inputs, targets, rope)
    gradients = torch.autograd.grad(means.sum(), list(params.values()))
    tokens = model.token_losses(params, config, inputs, targets, rope)
    assert tokens.shape == (N, BATCH[0] * BATCH[1])
    for row in range(N):
        single = {name: value[row].detach().requires_grad_() for name, value in params.items()}
        losses = reference_losses(single, config, inputs[row], targets[row])
        torch.testing.assert_close(tokens[row].view(BATCH), losses, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(means[row], losses.mean(), rtol=1e-5, atol=1e-5)
        expected = torch.autograd.grad(losses.mean(), list(single.values()))
        for name, ours, theirs in zip(params, gradients, expected, strict=True):
            assert theirs.abs().max() > 0, f"{name} has no effect"
            torch.testing.assert_close(
                ours[row], theirs, rtol=1e-3, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
            )


@pytest.mark.parametrize("option", [name for name in CONFIGS if name != "plain"])
def test_every_option_changes_the_loss(option):
    plain, config = CONFIGS["plain"], CONFIGS[option]
    inputs, targets = random_batch(plain, 1)
    rope = model.rope_tables(plain, BATCH[1], "cpu")
    without = model.mean_losses(random_parameters(plain, 1), plain, inputs, targets, rope)
    with_option = model.mean_losses(random_parameters(config, 1), config, inputs, targets, rope)
    assert (without - with_option).abs() > 1e-4


def test_a_token_does_not_see_those_after_it():
    config = CONFIGS["everything"]
    params, rope = random_parameters(config, 1), model.rope_tables(config, BATCH[1], "cpu")
    inputs, targets = random_batch(config, 1)
    before = model.token_losses(params, config, inputs, targets, rope).view(1, *BATCH)
    changed = inputs.clone()
    changed[0, 0, 7] = (changed[0, 0, 7] + 1) % config.vocab_size
    after = model.token_losses(params, config, changed, targets, rope).view(1, *BATCH)
    torch.testing.assert_close(after[0, 0, :7], before[0, 0, :7], rtol=0, atol=1e-6)
    assert (after[0, 0, 7:] - before[0, 0, 7:]).abs().min() > 0
    assert torch.equal(after[0, 1], before[0, 1]), "the other sequence changed"


def test_a_short_window_ends_after_that_many_positions():
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 1, 10, 4, generator=generator) for _ in range(3))
    before = model.causal_attention(query, key, value, 3)
    value[0, 0, 2] += 1.0
    moved = (model.causal_attention(query, key, value, 3) - before).abs().amax(-1)[0, 0]
    assert (moved > 0).tolist() == [2 <= t <= 5 for t in range(10)]


def test_windows_are_those_of_the_pattern_and_the_last_layer_sees_all():
    config = GPTConfig(n_layer=6, window_pattern="SSSL")
    assert [config.window(i, 64) for i in range(6)] == [32, 32, 32, 64, 32, 64]
    assert GPTConfig(window_pattern="S").window(0, 1) == 1


def test_rows_do_not_touch_one_another():
    config = CONFIGS["everything"]
    params, rope = random_parameters(config, 3), model.rope_tables(config, BATCH[1], "cpu")
    inputs, targets = random_batch(config, 3)

    def run(weights, tokens):
        leaves = {name: value.clone().requires_grad_() for name, value in weights.items()}
        losses = model.mean_losses(leaves, config, tokens, targets, rope)
        return losses.detach(), torch.autograd.grad(losses.sum(), list(leaves.values()))

    losses, gradients = run(params, inputs)
    other = {name: value.clone() for name, value in params.items()}
    for value in other.values():
        value[1] = torch.nan
    tokens = inputs.clone()
    tokens[1] = 0
    again, others = run(other, tokens)
    assert torch.isnan(again[1]) and torch.equal(again[[0, 2]], losses[[0, 2]])
    for before, after in zip(gradients, others, strict=True):
        assert torch.equal(before[[0, 2]], after[[0, 2]])


def num_parameters(config):
    return sum(math.prod(shape) for shape in architecture.parameter_shapes(config).values())


def test_nano_has_131072_parameters():
    assert num_parameters(architecture.preset("nano")) == 131_072


def test_jel_73m_has_73531692_parameters_and_its_forward_pass_fits_on_the_meta_device():
    config = architecture.preset("jel-73m")
    assert num_parameters(config) == 73_531_692
    params = {
        name: torch.empty(1, *shape, device="meta")
        for name, shape in architecture.parameter_shapes(config).items()
    }
    assert sum(value.numel() for value in params.values()) == 73_531_692
    assert [i for i in range(6) if f"layer.{i}.value_embedding" in params] == [1, 3, 5]
    tokens = torch.zeros(1, 2, 8, dtype=torch.int64, device="meta")
    losses = model.mean_losses(params, config, tokens, tokens, model.rope_tables(config, 8, "meta"))
    assert losses.shape == (1,) and losses.device.type == "meta"


def test_cell11_has_77_body_tensors():
    body = [
        name
        for name in architecture.parameter_shapes(architecture.preset("cell11"))
        if name.startswith("layer.")
    ]
    assert len(body) == 77
    assert {name.split(".")[2] for name in body} == {
        "query",
        "key",
        "value",
        "output",
        "gate",
        "up",
        "down",
    }
    assert all(architecture.parameter_kind(name) == "matrix" for name in body)


@pytest.mark.parametrize("name", ["nano", "cell11", "shakespeare"])
def test_an_untrained_run_guesses_uniformly(name):
    config = architecture.preset(name)
    inputs, targets = random_batch(config, 2, (4, 32))
    params = architecture.init_parameters(config, [3, 4])
    losses = model.mean_losses(
        params, config, inputs, targets, model.rope_tables(config, 32, "cpu")
    )
    assert losses.tolist() == pytest.approx([math.log(256)] * 2, abs=0.01)


def test_initial_weights_are_those_of_the_seed_in_any_row():
    config = architecture.preset("nano")
    population, single = (
        architecture.init_parameters(config, [5, 6, 7]),
        architecture.init_parameters(config, [6]),
    )
    for name, value in population.items():
        assert torch.equal(value[1:2], single[name])
        assert torch.equal(value[0], value[1]) == (name.endswith(("output", "down"))), name
        assert tuple(value.shape[1:]) == architecture.parameter_shapes(config)[name]


def test_initial_spreads_are_nanochats():
    params = architecture.init_parameters(architecture.preset("nano"), [0])
    assert params["embedding"].std().item() == pytest.approx(1.0, rel=0.05)
    assert params["unembedding"].std().item() == pytest.approx(0.001, rel=0.05)
    assert params["layer.0.up"].std().item() == pytest.approx(1 / 8, rel=0.05)
    assert params["layer.0.up"].abs().max().item() <= math.sqrt(3) / 8


def test_a_preset_grows_to_the_vocabulary_of_the_corpus():
    assert architecture.preset("nano", 1000).vocab_size == 1000
    assert architecture.preset("jel-73m", 256).vocab_size == 32_768


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"n_embd": 65},
            "n_embd must be an even multiple of n_head .*; got n_embd=65 and n_head=2",
        ),
        ({"n_embd": 6}, "n_embd must be an even multiple of n_head .*; got n_embd=6 and n_head=2"),
        ({"feed_forward": "gelu"}, r"'gelu'; expected one of \['relu2', 'swiglu'\]"),
        ({"window_pattern": "SX"}, "window_pattern must be made of 'S' and 'L'; got 'SX'"),
        ({"window_pattern": ""}, "window_pattern must be made of 'S' and 'L'; got ''"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        GPTConfig(**arguments)


def test_an_unknown_preset_is_refused_by_name():
    with pytest.raises(
        ValueError, match=r"unknown preset 'nan0'; expected one of \['cell11', 'jel-73m', 'nano'"
    ):
        architecture.preset("nan0")


def neutral_dials(config, num_rows):
    """Every dial where it changes nothing."""
    ones = torch.ones(num_rows, config.n_layer)
    per_layer = ("attention_temperature", "attention_gain", "feed_forward_gain", "residual_gain")
    return Dials(**dict.fromkeys(per_layer, ones))._replace(
        state_norm_cap=ones * 1e30,
        dropout=ones * 0,
        embedding_gain=ones[:, 0],
        logit_softcap=ones[:, 0] * config.logit_softcap,
        generators=[torch.Generator().manual_seed(row) for row in range(num_rows)],
    )


def losses_and_gradients(params, config, batch, dials):
    leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
    rope = model.rope_tables(config, BATCH[1], "cpu")
    losses = model.mean_losses(leaves, config, *batch, rope, dials)
    return losses.detach(), torch.autograd.grad(losses.sum(), list(leaves.values()))


@pytest.mark.parametrize(
    "config", [CONFIGS["plain"], CONFIGS["everything"]], ids=["plain", "everything"]
)
def test_dials_at_neutral_change_no_bit_of_loss_or_gradient(config):
    params, batch = random_parameters(config, 2), random_batch(config, 2)
    expected = losses_and_gradients(params, config, batch, None)
    losses, gradients = losses_and_gradients(params, config, batch, neutral_dials(config, 2))
    assert torch.equal(losses, expected[0])
    assert all(torch.equal(a, b) for a, b in zip(gradients, expected[1], strict=True))


def _moved(dials, name, value):
    """The dial of row 1 at this value."""
    changed = getattr(dials, name).clone()
    changed[1] = value
    return dials._replace(**{name: changed})


MOVES = {
    "attention_temperature": 0.3,
    "attention_gain": 1.7,
    "feed_forward_gain": 0.6,
    "residual_gain": 1.2,
    "state_norm_cap": 0.05,
    "dropout": 0.4,
    "embedding_gain": 3.0,
    "logit_softcap": 2.0,
}


@pytest.mark.parametrize("name", MOVES)
def test_a_dial_is_felt_in_its_own_row_alone(name):
    assert MOVES.keys() | {"generators"} == set(Dials._fields)
    config = CONFIGS["everything"]
    params, batch = random_parameters(config, 2), random_batch(config, 2)
    losses, gradients = losses_and_gradients(params, config, batch, neutral_dials(config, 2))
    moved, others = losses_and_gradients(
        params, config, batch, _moved(neutral_dials(config, 2), name, MOVES[name])
    )
    assert torch.equal(moved[0], losses[0]) and moved[1] != losses[1]
    assert all(torch.equal(a[0], b[0]) for a, b in zip(others, gradients, strict=True))
    assert any(not torch.equal(a[1], b[1]) for a, b in zip(others, gradients, strict=True))


@pytest.mark.parametrize("cap", [0.5, 1e3, 1e30])
def test_a_token_of_zeros_under_a_cap_has_a_finite_gradient(cap):
    config = CONFIGS["plain"]
    params, batch = random_parameters(config, 1), random_batch(config, 1)
    params["embedding"][:, batch[0].flatten()[0]] = 0.0
    for name in params:
        if name.endswith(("output", "down")):
            params[name].zero_()  # so that the stream stays at zero
    dials = Dials(state_norm_cap=torch.full((1, config.n_layer), cap))
    losses, gradients = losses_and_gradients(params, config, batch, dials)
    assert losses.isfinite().all() and all(g.isfinite().all() for g in gradients)


def test_a_cap_holds_every_token_and_keeps_its_direction():
    x = torch.tensor([[[3.0, 4.0], [0.3, 0.4], [-6.0, 8.0]]])
    capped = model._cap_norms(x, torch.tensor([1.0]))
    expected = (
        torch.tensor([[[0.6, 0.8], [0.3, 0.4], [-0.6, 0.8]]])
        * torch.tensor([2**0.5, 1.0, 2**0.5])[:, None]
    )
    torch.testing.assert_close(capped, expected)
    assert torch.equal(capped[0, 1], x[0, 1])


def test_dropout_leaves_out_its_part_and_keeps_the_mean():
    x = torch.ones(2, 400, 50)
    generators = [torch.Generator().manual_seed(row) for row in range(2)]
    dropped = model._apply_dropout(x, torch.tensor([0.0, 0.3]), generators)
    assert torch.equal(dropped[0], x[0])
    assert (dropped[1] == 0).float().mean().item() == pytest.approx(
        0.3, abs=4 * math.sqrt(0.21 / 20_000)
    )
    assert dropped[1].unique().tolist() == pytest.approx([0.0, 1 / 0.7])
    assert torch.equal(generators[0].get_state(), torch.Generator().manual_seed(0).get_state()), (
        "drew for nothing"
    )


@pytest.mark.parametrize("option", ["plain", "swiglu"])
def test_gauges_are_those_of_the_stream_after_each_layer_and_of_its_hidden_units(option):
    """The stream after layer i is that of a model which ends there."""
    config = CONFIGS[option]
    params, (inputs, targets) = random_parameters(config, 2), random_batch(config, 2)
    rope, gauges = model.rope_tables(config, BATCH[1], "cpu"), []
    model.mean_losses(params, config, inputs, targets, rope, None, gauges)
    assert len(gauges) == config.n_layer and all(gauge.shape == (3, 2) for gauge in gauges)
    for row in range(2):
        w = {name: value[row] for name, value in params.items()}
        for i, (mean, variance, saturation) in enumerate(_streams(w, config, inputs[row])):
            found = gauges[i][:, row].tolist()
            assert found == pytest.approx([mean, variance, saturation], rel=1e-4, abs=1e-5), (
                f"layer {i}"
            )
            assert 0 < found[2] < 1


def _streams(w, config, inputs):
    """Mean and variance of one run's stream after each layer, and its saturated fraction.

    The fraction is one of the layer's hidden units.
    """
    (B, T), heads = inputs.shape, config.n_head
    x, behind = norm(F.embedding(inputs, w["embedding"])), torch.ones(T, T, dtype=torch.bool).tril()
    for i in range(config.n_layer):
        own = {
            name.removeprefix(f"layer.{i}."): value
            for name, value in w.items()
            if name.startswith(f"layer.{i}.")
        }
        q, k, v = (
            F.linear(norm(x), own[n]).view(B, T, heads, -1).transpose(1, 2)
            for n in ("query", "key", "value")
        )
        scores = norm(rotate(q, config.rope_base)) @ norm(rotate(k, config.rope_base)).transpose(
            -1, -2
        )
        scores = (scores / math.sqrt(config.n_embd // heads)).masked_fill(~behind, -math.inf)
        x = x + F.linear((scores.softmax(-1) @ v).transpose(1, 2).reshape(B, T, -1), own["output"])
        up = F.linear(norm(x), own["up"])
        if config.feed_forward == "swiglu":
            gate = F.linear(norm(x), own["gate"])
            saturated, hidden = gate.abs() > 3.0, F.silu(gate) * up
        else:
            saturated, hidden = up <= 0, up.relu() ** 2
        x = x + F.linear(hidden, own["down"])
        yield x.mean().item(), x.var(correction=0).item(), saturated.float().mean().item()


# KVCache: positions read in pieces


SEES_ALL = [name for name, config in CONFIGS.items() if set(config.window_pattern) == {"L"}]


def states_of(params, config, tokens, memory=None):
    """States of tokens (N, B, T) that follow those of the memory, (N, B, T, C)."""
    N, B, T = tokens.shape
    start = 0 if memory is None else memory.length
    cosines, sines = model.rope_tables(config, start + T, "cpu")
    states = model.hidden_states(
        params, config, tokens, (cosines[start:], sines[start:]), memory=memory
    )
    return states.view(N, B, T, -1)


@pytest.mark.parametrize("lengths", [(12,), (5, 7), (9, 1, 1, 1), (1, 3, 8)], ids=str)
@pytest.mark.parametrize("option", SEES_ALL)
def test_positions_read_in_pieces_are_those_read_at_once(option, lengths):
    config, memory = CONFIGS[option], KVCache()
    params, (tokens, _) = random_parameters(config, 2), random_batch(config, 2)
    pieces = [states_of(params, config, piece, memory) for piece in tokens.split(lengths, -1)]
    assert memory.length == 12
    torch.testing.assert_close(
        torch.cat(pieces, 2), states_of(params, config, tokens), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("room", [0, 4, 9])
def test_a_copied_memory_is_that_of_the_repeated_texts(room):
    """One prompt for each of two, and three texts after each.

    With room the memory is written in place, and it ends early here.
    """
    config, memory, times = CONFIGS["swiglu"], KVCache(), 3
    params, (tokens, _) = random_parameters(config, 2), random_batch(config, 2)
    texts, _ = random_batch(config, 2, (2 * times, 4), seed=5)
    states_of(params, config, tokens, memory)
    before = [tuple(x.clone() for x in layer) for layer in memory.layers]
    copies = memory.copy_rows(torch.arange(4).repeat_interleave(times), room)
    found = torch.cat(
        [states_of(params, config, piece, copies) for piece in texts.split((1, 2, 1), -1)], 2
    )
    whole = torch.cat([tokens.repeat_interleave(times, 1), texts], -1)
    torch.testing.assert_close(
        found, states_of(params, config, whole)[:, :, 12:], rtol=1e-4, atol=1e-5
    )
    assert (memory.length, copies.length) == (12, 16)
    for layer, own in zip(memory.layers, before, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(layer, own, strict=True)), (
            "the prompts' own memory is as it was"
        )


def test_gradients_flow_through_what_is_remembered():
    config, times = CONFIGS["plain"], 3
    params, (tokens, _) = random_parameters(config, 2), random_batch(config, 2)
    texts, _ = random_batch(config, 2, (2 * times, 4), seed=5)

    def gradients(shared):
        leaves = {name: weight.clone().requires_grad_() for name, weight in params.items()}
        if shared:
            memory = KVCache()
            states_of(leaves, config, tokens, memory)
            states = states_of(
                leaves, config, texts, memory.copy_rows(torch.arange(4).repeat_interleave(times))
            )
        else:
            whole = torch.cat([tokens.repeat_interleave(times, 1), texts], -1)
            states = states_of(leaves, config, whole)[:, :, 12:]
        weight = torch.randn(states.shape, generator=torch.Generator().manual_seed(2))
        loss = (weight * states).sum()
        names = [name for name in leaves if name != "unembedding"]
        return dict(
            zip(names, torch.autograd.grad(loss, [leaves[name] for name in names]), strict=True)
        )

    found, expected = gradients(shared=True), gradients(shared=False)
    for name, gradient in expected.items():
        bound = 1e-4 * gradient.abs().max().item()
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=bound)
