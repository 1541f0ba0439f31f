"""Rates and decays reach their own group, down to every weight."""

import pytest
import torch

from hpenv.lm import architecture, model
from hpenv.optim.muon import JORDAN
from hpenv.optim.schedules import Constant, PiecewiseConstant
from tests.hpenv.pretraining.small_plants import GROUPS, OPTIMIZER, RUN, advance, make, state_of


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("way", ["base_lr", "lr_schedule"])
def test_rates_and_schedules_of_a_group_reach_that_group_alone(group, way):
    off = 0.0 if way == "base_lr" else PiecewiseConstant((0.0,), 1)
    on = 1e-2 if way == "base_lr" else Constant()
    plant = make(**{way: {name: on if name == group else off for name in GROUPS}})
    before = state_of(plant)
    advance(plant, 3)
    moved = {
        name
        for name, weight in plant.weights.items()
        if not torch.equal(before[f"weights/{name}"], weight)
    }
    assert {architecture.parameter_kind(name) for name in moved} == {group}


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("way", ["base_weight_decay", "weight_decay_schedule"])
def test_weight_decay_of_a_group_reaches_that_group_alone(group, way):
    off = 0.0 if way == "base_weight_decay" else PiecewiseConstant((0.0,), 1)
    on = 0.5 if way == "base_weight_decay" else Constant()
    arguments = {"base_weight_decay": 0.5} | {
        way: {name: on if name == group else off for name in GROUPS}
    }
    with_decay, without = make(**arguments), make(base_weight_decay=0.0)
    first = state_of(with_decay)
    advance(with_decay, 1)
    advance(without, 1)
    for name, weight in with_decay.weights.items():
        decay = 1e-3 * 0.5 * first[f"weights/{name}"] * (architecture.parameter_kind(name) == group)
        torch.testing.assert_close(weight, without.weights[name] - decay, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("channels", "column", "kinds"),
    [
        (RUN, 0, set(GROUPS)),
        (OPTIMIZER, 0, {"embedding", "unembedding"}),
        (OPTIMIZER, 1, {"matrix"}),
        ((("lr", "group"),), 0, {"embedding"}),
    ],
)
def test_one_cell_follows_to_the_exact_change_of_every_weight(channels, column, kinds):
    """The first step by hand.

    AdamW moves by lr g / (|g| + eps), Muon by lr times the orthogonalized gradient.
    """
    plant = make(1, channels=channels, base_lr=2e-3, base_weight_decay=0.3)
    plant.panel.positions[0, column] = 0.5  # ten times the base rate
    for weight in plant.weights.values():
        if not weight.any():  # projections that begin at zero let no gradient through
            weight.copy_(
                torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)) * 0.1
            )
    before = {name: weight[0].clone() for name, weight in plant.weights.items()}
    leaves = {name: weight.clone().requires_grad_() for name, weight in plant.weights.items()}
    losses = model.mean_losses(leaves, plant.model_config, *plant._batch(), plant._rope)
    gradients = dict(
        zip(leaves, torch.autograd.grad(losses.sum(), list(leaves.values())), strict=True)
    )
    advance(plant, 1)
    for name, weight in plant.weights.items():
        kind, g = architecture.parameter_kind(name), gradients[name][0]
        lr = 2e-2 if kind in kinds else 2e-3
        assert g.any(), name
        if kind == "matrix":
            tall = g.shape[0] > g.shape[1]
            x = (g.T if tall else g).double()
            x = x / x.norm()
            for a, b, c in JORDAN:
                gram = x @ x.T
                x = a * x + b * gram @ x + c * gram @ gram @ x
            factor = max(1.0, g.shape[0] / g.shape[1]) ** 0.5
            expected = (before[name] * (1 - lr * 0.3) - lr * factor * (x.T if tall else x)).float()
        else:
            expected = before[name] * (1 - lr * 0.3) - lr * g / (g.abs() + 1e-10)
        torch.testing.assert_close(weight[0], expected, rtol=1e-5, atol=lr * 1e-2)
        assert (weight[0] - expected).abs().mean() < lr * 1e-3
        assert not torch.equal(weight[0], before[name])


def test_the_decay_cell_follows_to_the_exact_change_of_a_weight():
    """With no gradient to speak of left out: the difference of two decays is lr (wd' - wd) w."""
    plain, decayed = make(1, base_weight_decay=0.02), make(1, base_weight_decay=0.02)
    decayed.panel.positions[0, 1] = 0.5  # ten times
    first = {name: weight.clone() for name, weight in plain.weights.items()}
    advance(plain, 1)
    advance(decayed, 1)
    for name, weight in decayed.weights.items():
        expected = plain.weights[name] - 1e-3 * (0.2 - 0.02) * first[name]
        torch.testing.assert_close(weight, expected, rtol=0, atol=1e-6)
