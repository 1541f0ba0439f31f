import math

import pytest
import torch

from agents import losses


def test_log_prob_by_hand():
    # standard normal at 0 and at 1; standard deviation 2 at one deviation from its mean
    log_prob = losses.gaussian_log_prob(
        torch.tensor([[0.0, 1.0], [3.0, 0.0]]),
        torch.tensor([[0.0, 0.0], [1.0, 0.0]]),
        torch.tensor([[0.0, 0.0], [math.log(2.0), 0.0]]),
    )
    constant = 0.5 * math.log(2 * math.pi)
    assert torch.allclose(
        log_prob, torch.tensor([-2 * constant - 0.5, -2 * constant - 0.5 - math.log(2.0)])
    )


def test_log_prob_and_entropy_equal_torchs():
    generator = torch.Generator().manual_seed(0)
    raw, mean, log_std = torch.randn(3, 5, 4, 2, generator=generator)
    normal = torch.distributions.Normal(mean, log_std.exp())
    assert torch.allclose(
        losses.gaussian_log_prob(raw, mean, log_std), normal.log_prob(raw).sum(-1), atol=1e-5
    )
    assert torch.allclose(losses.gaussian_entropy(log_std), normal.entropy().sum(-1))


def test_log_density_of_each_cell_adds_up_to_the_log_prob():
    raw, mean, log_std = torch.randn(3, 5, 4, 2, generator=torch.Generator().manual_seed(0))
    density = losses.gaussian_log_density(raw, mean, log_std)
    assert torch.allclose(
        density, torch.distributions.Normal(mean, log_std.exp()).log_prob(raw), atol=1e-5
    )
    assert torch.equal(density.sum(-1), losses.gaussian_log_prob(raw, mean, log_std))


def test_initial_entropy_is_the_papers():
    assert math.isclose(losses.gaussian_entropy(torch.tensor([-0.5])).item(), 0.919, abs_tol=5e-4)


def test_clipped_surrogate_by_hand():
    ratio = torch.tensor([1.0, 1.5, 1.5, 0.5, 0.5])
    advantages = torch.tensor([2.0, 2.0, -2.0, 2.0, -2.0])
    objective = losses.clipped_surrogate(ratio.log(), torch.zeros(5), advantages, 0.2)
    assert torch.allclose(objective, torch.tensor([2.0, 2.4, -3.0, 1.0, -1.6]))


def test_only_what_moved_too_far_in_the_wanted_direction_has_no_gradient():
    log_prob = torch.tensor([1.0, 1.5, 1.5, 0.5, 0.5]).log().requires_grad_()
    advantages = torch.tensor([2.0, 2.0, -2.0, 2.0, -2.0])
    losses.clipped_surrogate(log_prob, torch.zeros(5), advantages, 0.2).sum().backward()
    assert torch.allclose(log_prob.grad, torch.tensor([2.0, 0.0, -3.0, 1.0, 0.0]))


def test_at_ratio_1_the_gradient_is_reinforces():
    generator = torch.Generator().manual_seed(0)
    raw, mean, log_std = torch.randn(3, 6, 2, generator=generator)
    advantages = torch.randn(6, generator=generator)
    gradients = []
    for objective in (
        lambda log_prob: losses.clipped_surrogate(log_prob, log_prob.detach(), advantages, 0.2),
        lambda log_prob: advantages * log_prob,
    ):
        leaves = [mean.clone().requires_grad_(), log_std.clone().requires_grad_()]
        objective(losses.gaussian_log_prob(raw, *leaves)).mean().backward()
        gradients.append([leaf.grad for leaf in leaves])
    for clipped, reinforce in zip(*gradients, strict=True):
        assert torch.allclose(clipped, reinforce, atol=1e-7)


def test_kl_estimate_is_zero_at_the_old_policy_and_positive_elsewhere():
    old = torch.tensor([-1.0, -2.0, 0.5])
    assert losses.approximate_kl(old, old) == 0.0
    shift = torch.tensor([0.1, -0.3, 0.0])
    expected = sum(math.exp(d) - 1 - d for d in shift.tolist()) / 3
    assert math.isclose(losses.approximate_kl(old + shift, old).item(), expected, rel_tol=1e-4)


def test_a_scaled_gradient_leaves_the_values_bitwise_as_they_are():
    values = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    for shape in ((4, 5, 3), (4, 1, 3), (3,), ()):
        factor = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        scaled = losses.scale_gradient(values, factor)
        assert torch.equal(scaled, values)
        upstream = torch.arange(60.0).view(4, 5, 3)
        (gradient,) = torch.autograd.grad((upstream * scaled).sum(), values)
        assert torch.allclose(gradient, upstream * factor)
    (gradient,) = torch.autograd.grad(
        losses.scale_gradient(values, torch.zeros(3)).square().sum(), values
    )
    assert not gradient.any()


def test_a_scaled_gradient_reaches_what_the_values_were_made_of_and_not_the_factor():
    x, factor = torch.tensor([2.0, 3.0], requires_grad=True), torch.tensor([0.5, 4.0])
    losses.scale_gradient(x**2, factor).sum().backward()
    assert x.grad.tolist() == [0.5 * 4.0, 4.0 * 6.0]


@pytest.mark.parametrize(
    "call",
    [
        lambda: losses.gaussian_log_prob(torch.zeros(3, 2), torch.zeros(3, 2), torch.zeros(2)),
        lambda: losses.clipped_surrogate(torch.zeros(3), torch.zeros(3), torch.zeros(3, 1), 0.2),
        lambda: losses.clipped_surrogate(
            torch.zeros(3, 1), torch.zeros(3, 1), torch.zeros(3, 1), 0.2
        ),
        lambda: losses.approximate_kl(torch.zeros(3), torch.zeros(2)),
    ],
)
def test_shapes_are_asserted(call):
    with pytest.raises(AssertionError):
        call()
