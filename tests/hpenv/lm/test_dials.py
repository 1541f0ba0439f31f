"""Every dial of the forward pass: free at neutral, and felt in its own row alone."""

import math

import pytest
import torch
import torch.nn.functional as F

from hpenv.lm import model
from hpenv.lm.model import Dials
from tests.hpenv.lm.reference_model import (
    BATCH,
    CONFIGS,
    norm,
    random_batch,
    random_parameters,
    rotate,
)


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
    assert MOVES.keys() | {"generators", "share"} == set(Dials._fields)
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
