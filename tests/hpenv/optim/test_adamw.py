"""AdamW and SGD against those of torch, with betas that move."""

import math

import numpy as np
import pytest
import torch

from hpenv.control.channels import CHANNELS
from hpenv.optim.adamw import SGD, AdamW
from hpenv.optim.optimizers import OPTIMIZERS
from hpenv.optim.rules import Rates
from tests.hpenv.optim.references import EXACT, Rows, assert_twins, rates


@pytest.mark.parametrize("kind", ["constant", "changing"])
@pytest.mark.parametrize("rule", [AdamW(), AdamW(0.8, 0.95, 1e-10), AdamW(0.95, 0.999, 1e-3)])
def test_adamw_is_torchs(rule, kind):
    def make(parameters, weight_decay):
        return torch.optim.AdamW(
            parameters,
            betas=(rule.beta1, rule.beta2),
            eps=rule.eps,
            weight_decay=weight_decay,
            foreach=False,
        )

    assert_twins(rule, make, rates(0.03, kind), **EXACT)


@pytest.mark.parametrize("kind", ["constant", "changing"])
@pytest.mark.parametrize("rule", [SGD(), SGD(0.5, nesterov=True), SGD(0.0)])
def test_sgd_is_torchs(rule, kind):
    """Without weight decay, which is decoupled here and added to the gradient there."""

    def make(parameters, weight_decay):
        return torch.optim.SGD(
            parameters, lr=0.1, momentum=rule.momentum, nesterov=rule.nesterov, foreach=False
        )

    assert_twins(rule, make, rates(0.03, kind), decays=(0.0, 0.0, 0.0), **EXACT)


def test_the_decay_of_sgd_is_decoupled():
    lrs = rates(0.03, "constant")
    without = Rows(SGD(0.0), lrs, (0.0, 0.0, 0.0)).run(1)
    with_decay = Rows(SGD(0.0), lrs, (0.5, 0.5, 0.5)).run(1)
    start = Rows(SGD(0.0), lrs).weights[0][0]
    torch.testing.assert_close(
        without.weights[0][0] - with_decay.weights[0][0], start * 0.03 * 0.5, **EXACT
    )


def test_moving_betas_by_hand():
    """Over three steps the corrected moments are weighted means of all gradients so far.

    The weights sum to one.
    """
    rule, weight = (
        AdamW(beta1=0.9, beta2=0.8, eps=1e-3),
        torch.tensor([[2.0], [-3.0]], dtype=torch.float64),
    )
    state, seen = rule.init(weight), [[1.0, -2.0], [3.0, 0.5], [-4.0, 6.0]]
    new1 = np.array([[0.1 * 5, 0.1 * 0.1, 0.1 * 2], [0.1, 0.1, 0.1]])  # row 1 stays: beta^t
    new2 = np.array(
        [[0.2 * 0.1, 0.2 * 5, 0.2 * 3], [0.2, 0.2, 0.2]]
    )  # at 0.2 * 5 there is no memory left
    eps, expected = np.array([[10.0, 0.1, 1.0], [1.0, 1.0, 1.0]]), weight.numpy().copy()[:, 0]
    for t, gradient in enumerate(seen):
        column = [
            torch.as_tensor(v)
            for v in (new1[:, t : t + 1] / 0.1, new2[:, t : t + 1] / 0.2, eps[:, t : t + 1])
        ]
        lr, decay = (
            torch.full((2, 1), 0.5, dtype=torch.float64),
            torch.full((2, 1), 0.1, dtype=torch.float64),
        )
        g = torch.tensor(gradient, dtype=torch.float64)[:, None]
        rule.update(
            [weight], [g], [state], Rates(lr, decay, *column, torch.ones_like(lr)), np.full(2, t)
        )
        for row in range(2):
            shares1, shares2 = (
                np.array([new[row, i] * np.prod(1 - new[row, i + 1 : t + 1]) for i in range(t + 1)])
                for new in (new1, new2)
            )
            gs = np.array(seen)[: t + 1, row]
            m, v = shares1 / shares1.sum() @ gs, shares2 / shares2.sum() @ gs**2
            assert (shares1 / shares1.sum()).sum() == pytest.approx(1) and abs(m) <= abs(gs).max()
            product1, product2 = (
                1 - state["beta1_product"][row].item(),
                1 - state["beta2_product"][row].item(),
            )
            assert (shares1.sum(), shares2.sum()) == pytest.approx((product1, product2))
            assert state["momentum"][row, 0].item() / product1 == pytest.approx(m)
            assert state["second_moment"][row, 0].item() / product2 == pytest.approx(v)
            expected[row] = expected[row] * (1 - 0.5 * 0.1) - 0.5 * m / (
                math.sqrt(v) + 1e-3 * eps[row, t]
            )
        assert weight[:, 0].tolist() == pytest.approx(expected.tolist())


@pytest.mark.parametrize("multiplier", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("field", ["beta1", "beta2", "eps"])
@pytest.mark.parametrize(
    "rule",
    sorted(
        {rule for rules in OPTIMIZERS.values() for rule in rules.values() if type(rule) is AdamW},
        key=repr,
    ),
)
def test_the_ends_of_a_constant_keep_every_adamw_a_mean_of_what_it_saw(rule, field, multiplier):
    """1 - beta beyond 1 would leave the second moment negative.

    The bounds of the channels have to fit every rule.
    """
    assert CHANNELS["beta1"].bounds == CHANNELS["beta2"].bounds == (0.1, 5.0)
    weight = torch.zeros(1, 1)
    state, one = rule.init(weight), torch.ones(1, 1, dtype=torch.float64)
    rates = Rates.of(one * 1e-3, one * 0)._replace(**{field: one * multiplier})
    for step in range(60):
        g = torch.full((1, 1), 3.0 if step % 7 == 0 else 0.01)
        rule.update([weight], [g], [state], rates, np.array([step]))
        assert (
            0 <= state["second_moment"].item() <= 9.0001 and abs(state["momentum"].item()) <= 3.0001
        )
        assert abs(weight.item()) <= 60 * 1e-3 * 3.0 / 0.01, (
            "more than every step at the largest over the smallest"
        )


def test_the_products_of_the_betas_are_those_of_every_tensor_and_row():
    rule, weights = AdamW(), [torch.ones(2, 1, 1), torch.ones(2, 1, 1)]
    states, one = [rule.init(w) for w in weights], torch.ones(2, 2, dtype=torch.float64)
    rates = Rates.of(one, one)._replace(
        beta1=torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
    )
    for step in range(2):
        rule.update(weights, [torch.ones(2, 1, 1)] * 2, states, rates, np.full(2, step))
    products = torch.stack([state["beta1_product"] for state in states], 1)
    assert products.numpy() == pytest.approx(np.array([[0.9, 0.8], [0.7, 0.6]]) ** 2)
