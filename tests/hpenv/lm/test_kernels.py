"""The chunked functions against plain autograd, with borders of chunks inside the data."""

import pytest
import torch
import torch.nn.functional as F

from hpenv.lm import kernels

LENGTHS = [1, 255, 256, 257, 600]


def normal(*shape, seed=0, scale=1.0, dtype=torch.float32):
    return (
        torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        * scale
    ).to(dtype)


def gradients(value, leaves, weights):
    return torch.autograd.grad((value * weights).sum(), leaves)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("hidden", [24, 64])
def test_feed_forward_equals_plain_autograd(length, hidden):
    N, C = 2, 16
    leaves = [
        normal(N, length, C),
        normal(N, hidden, C, seed=1, scale=0.3),
        normal(N, C, hidden, seed=2, scale=0.3),
    ]
    x, up, down = (leaf.requires_grad_() for leaf in leaves)
    expected = F.relu(x @ up.transpose(1, 2)).square() @ down.transpose(1, 2)
    value = kernels.squared_relu_feed_forward(x, up, down)
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)
    weights = normal(*value.shape, seed=3)
    for ours, theirs in zip(
        gradients(value, (x, up, down), weights),
        gradients(expected, (x, up, down), weights),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_feed_forward_passes_a_numerical_check_of_its_gradient(monkeypatch):
    monkeypatch.setattr(kernels, "CHUNK_TOKENS", 3)
    leaves = [
        normal(*shape, seed=i, dtype=torch.float64).requires_grad_()
        for i, shape in enumerate([(2, 7, 4), (2, 6, 4), (2, 4, 6)])
    ]
    assert torch.autograd.gradcheck(kernels.squared_relu_feed_forward, leaves)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
@pytest.mark.parametrize("softcap", [0.5, 15.0, 60.0])
def test_output_loss_equals_plain_autograd(length, scale, softcap):
    N, C, V = 2, 16, 40
    states, weight = (
        normal(N, length, C).requires_grad_(),
        normal(N, V, C, seed=1, scale=scale).requires_grad_(),
    )
    targets = torch.randint(V, (N, length), generator=torch.Generator().manual_seed(2))
    exact_states, exact_weight = (t.detach().double().requires_grad_() for t in (states, weight))
    capped = softcap * torch.tanh(exact_states @ exact_weight.transpose(1, 2) / softcap)
    exact = F.cross_entropy(capped.transpose(1, 2), targets, reduction="none").mean(1)
    value = kernels.mean_softcapped_cross_entropy(states, weight, targets, softcap)
    plain = kernels.softcapped_cross_entropy(states, weight, targets, softcap)
    torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(plain.mean(1).double(), exact, rtol=1e-5, atol=1e-5)
    row_weights = torch.tensor([1.0, -3.0])
    expected = gradients(exact, (exact_states, exact_weight), row_weights.double())
    for ours, theirs in zip(gradients(value, (states, weight), row_weights), expected, strict=True):
        torch.testing.assert_close(
            ours.double(), theirs, rtol=1e-3, atol=1e-5 * theirs.abs().max().item()
        )


def test_output_loss_is_the_same_with_and_without_gradient():
    states, weight, targets = (
        normal(2, 300, 8),
        normal(2, 20, 8, seed=1),
        torch.zeros(2, 300, dtype=torch.int64),
    )
    without = kernels.mean_softcapped_cross_entropy(states, weight, targets, 15.0)
    with_gradient = kernels.mean_softcapped_cross_entropy(
        states.requires_grad_(), weight, targets, 15.0
    )
    assert not without.requires_grad and with_gradient.requires_grad
    assert torch.equal(without, with_gradient.detach())


def test_output_loss_gradient_of_one_input_alone():
    states, weight = normal(2, 300, 8), normal(2, 20, 8, seed=1).requires_grad_()
    targets = torch.zeros(2, 300, dtype=torch.int64)
    value = kernels.mean_softcapped_cross_entropy(states, weight, targets, 15.0).sum()
    plain = kernels.softcapped_cross_entropy(states, weight, targets, 15.0).mean(1).sum()
    ours, theirs = torch.autograd.grad(value, weight)[0], torch.autograd.grad(plain, weight)[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_output_loss_is_finite_at_logits_no_exponential_could_take():
    states, weight = torch.full((1, 4, 8), 1e4), torch.ones(1, 5, 8)
    weight[:, 2:] = -1.0
    targets = torch.tensor([[0, 1, 2, 3]])
    weight.requires_grad_()
    loss = kernels.mean_softcapped_cross_entropy(states, weight, targets, 60.0)
    assert (
        torch.isfinite(loss).all()
        and torch.isfinite(torch.autograd.grad(loss.sum(), weight)[0]).all()
    )
    assert loss.item() == pytest.approx((2 * 0.6931472 + 2 * (120.0 + 0.6931472)) / 4, rel=1e-5)


def test_a_cap_too_high_for_float32_is_computed_another_way():
    states, weight = torch.full((1, 4, 8), 1e4), torch.ones(1, 5, 8)
    losses = kernels.mean_softcapped_cross_entropy(
        states, weight, torch.zeros(1, 4, dtype=torch.int64), 200.0
    )
    assert losses.item() == pytest.approx(1.609438, rel=1e-5)


def test_nan_stays_in_its_row_and_is_not_hidden():
    x, up, down = normal(2, 300, 8), normal(2, 16, 8, seed=1), normal(2, 8, 16, seed=2)
    clean = kernels.squared_relu_feed_forward(x, up, down)
    up[1, 0, 0] = torch.nan
    value = kernels.squared_relu_feed_forward(x, up, down)
    assert torch.equal(value[0], clean[0]) and torch.isnan(value[1]).all()
    targets = torch.zeros(2, 300, dtype=torch.int64)
    losses = kernels.mean_softcapped_cross_entropy(value, normal(2, 20, 8, seed=3), targets, 15.0)
    assert torch.isfinite(losses[0]) and torch.isnan(losses[1])


def test_bfloat16_is_close_to_float32():
    states, weight = normal(2, 300, 16), normal(2, 40, 16, seed=1, scale=0.3)
    targets = torch.randint(40, (2, 300), generator=torch.Generator().manual_seed(2))
    exact = kernels.mean_softcapped_cross_entropy(states, weight, targets, 15.0)
    half = kernels.mean_softcapped_cross_entropy(
        states.bfloat16(), weight.bfloat16(), targets, 15.0
    )
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, exact, rtol=1e-2, atol=0)


def test_a_second_derivative_is_refused_and_not_silently_wrong(monkeypatch):
    """A penalty on a gradient's length would leave out what goes through the chunks.

    Without chunks it is right.
    """
    states, weight, targets = (
        normal(2, 5, 4),
        normal(2, 7, 4, seed=1),
        torch.arange(10).view(2, 5) % 7,
    )
    up, down = normal(2, 6, 4, seed=2), normal(2, 4, 6, seed=3)
    losses = (
        lambda x: kernels.mean_softcapped_cross_entropy(x, weight, targets, 15.0).sum(),
        lambda x: kernels.squared_relu_feed_forward(x, up, down).square().sum(),
    )
    for loss in losses:
        leaf = states.clone().requires_grad_()
        with pytest.raises(RuntimeError, match="differentiated once; got create_graph=True"):
            torch.autograd.grad(loss(leaf) + leaf.square().sum(), leaf, create_graph=True)
    monkeypatch.setattr(kernels, "in_chunks", lambda x: False)
    for loss in losses:
        leaf = states.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(leaf), leaf, create_graph=True)
        assert torch.autograd.grad(gradient.square().sum(), leaf)[0].abs().max() > 0
