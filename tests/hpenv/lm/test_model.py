"""The population's forward pass against a single run's."""

import math

import pytest
import torch
import torch.nn.functional as F

from hpenv.lm import model
from hpenv.lm.architecture import GPTConfig
from tests.hpenv.lm.reference_model import (
    BATCH,
    CONFIGS,
    norm,
    random_batch,
    random_parameters,
    rotate,
)


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
