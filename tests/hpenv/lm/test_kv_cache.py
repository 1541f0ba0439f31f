"""Positions read in pieces are those read at once."""

import pytest
import torch

from hpenv.lm import model
from hpenv.lm.kv_cache import KVCache
from tests.hpenv.lm.reference_model import CONFIGS, random_batch, random_parameters

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
