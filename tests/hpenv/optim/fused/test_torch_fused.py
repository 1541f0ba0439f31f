"""Errors of the twin and of torch's fused AdamW, both in float32, against torch in float64."""

import pytest
import torch

from hpenv.optim.adamw import AdamW
from hpenv.optim.fused.arena import AdamWArena
from hpenv.optim.fused.layout import Layout
from hpenv.optim.fused.twin import step_adamw
from hpenv.optim.rules import Rates

SIZE, NUM_STEPS = 5001, 40


def weights_and_gradients(seed):
    generator = torch.Generator().manual_seed(seed)
    scales = 10.0 ** torch.randint(-3, 2, (NUM_STEPS, 1), generator=generator)
    gradients = torch.randn(NUM_STEPS, SIZE, generator=generator) * scales
    return torch.randn(SIZE, generator=generator), gradients


def by_torch(weights, gradients, rule, lr, weight_decay, dtype, **form):
    parameter = torch.nn.Parameter(weights.to(dtype, copy=True))
    betas = rule.beta1, rule.beta2
    optimizer = torch.optim.AdamW(
        [parameter], lr=lr, weight_decay=weight_decay, betas=betas, eps=rule.eps, **form
    )
    for gradient in gradients:
        parameter.grad = gradient.to(dtype, copy=True)
        optimizer.step()
    return parameter.detach().double()


def by_twin(weights, gradients, rule, lr, weight_decay):
    arena = AdamWArena.empty(Layout({"w": (SIZE,)}, 1))
    arena.views["weights"]["w"].copy_(weights[None])
    one = torch.ones(1, 1, dtype=torch.float64)
    arena.fill(rule, Rates.of(lr * one, weight_decay * one))
    for gradient in gradients:
        arena.views["gradients"]["w"].copy_(gradient[None])
        step_adamw(arena)
    return arena.views["weights"]["w"][0].double()


@pytest.mark.parametrize(
    ("rule", "lr", "weight_decay"),
    [
        (AdamW(0.9, 0.999, 1e-8), 1e-3, 0.1),
        (AdamW(0.9, 0.95, 1e-8), 1e-3, 0.0),
        (AdamW(0.8, 0.95, 1e-10), 0.03, 0.5),
    ],
)
def test_the_error_is_no_larger_than_that_of_torchs_fused_kernel(rule, lr, weight_decay):
    """Both errors are mostly the rounding of the stored weights, which varies by a percent."""
    given = weights_and_gradients(0)
    exact = by_torch(*given, rule, lr, weight_decay, torch.float64, foreach=False)
    fused = by_torch(*given, rule, lr, weight_decay, torch.float32, fused=True)
    twin = by_twin(*given, rule, lr, weight_decay)
    error, bound = ((w - exact).square().mean().sqrt().item() for w in (twin, fused))
    assert 0 < error <= 1.01 * bound
