"""The momentum of every rule that has one moves by a multiplier of its odds."""

import numpy as np
import pytest
import torch

from hpenv.control.channels import CHANNELS
from hpenv.optim.adamw import SGD, AdamW
from hpenv.optim.muon import JORDAN, Muon, NanochatMuon, _orthogonalize_all
from hpenv.optim.optimizers import OPTIMIZERS
from hpenv.optim.rules import Rates, move_momentum
from hpenv.optim.schedule_free import ScheduleFreeAdamW, ScheduleFreeSGD

RULES = sorted({rule for rules in OPTIMIZERS.values() for rule in rules.values()}, key=repr)
WITH_MOMENTUM = [rule for rule in RULES if rule.optimizer in CHANNELS["momentum"].optimizers]


def rates(odds, lr=0.1):
    """Rates of two rows and one tensor, with these multipliers of the odds."""
    one = torch.ones(2, 1, dtype=torch.float64)
    return Rates.of(one * lr, one * 0.0)._replace(
        momentum=torch.tensor(odds, dtype=torch.float64)[:, None]
    )


def normal(*shape, seed=0):
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("momentum", [0.0, 0.1, 0.3, 0.8, 0.85, 0.9, 0.95, 0.999])
def test_odds_of_one_keep_every_bit_and_others_multiply_the_odds(momentum):
    moved, complement = move_momentum(
        momentum, 1.0 - momentum, torch.tensor([1.0, 2.0, 1 / 30], dtype=torch.float64)
    )
    assert (moved[0].item(), complement[0].item()) == (momentum, 1.0 - momentum)
    assert (moved + complement).numpy() == pytest.approx(np.ones(3), abs=1e-15)
    odds = momentum / (1.0 - momentum)
    assert (moved / complement).numpy()[1:] == pytest.approx([2.0 * odds, odds / 30.0])


@pytest.mark.parametrize("rule", WITH_MOMENTUM, ids=repr)
def test_a_row_at_neutral_next_to_one_that_moves_keeps_every_bit(rule):
    weights = [[normal(4, 3)] for _ in range(2)]
    states = [[rule.init(own[0])] for own in weights]
    for step in range(4):
        gradient = normal(4, 3, seed=step + 1)
        for own, state, odds in zip(weights, states, ([1.0, 1.0], [1.0, 5.0]), strict=True):
            rule.update(own, [gradient.clone()], state, rates(odds), np.full(2, step))
    plain, moved = weights[0][0], weights[1][0]
    assert torch.equal(plain[0], moved[0]) and not torch.equal(plain[1], moved[1])
    for slot, value in states[0][0].items():
        assert torch.equal(value[0], states[1][0][slot][0]), slot


def test_sgd_by_hand():
    """Odds of 9 at 0.9: 81 and a momentum of 81 / 82. Odds of 1/9: 1, and a half."""
    rule, weight = SGD(0.9), torch.zeros(2, 1, dtype=torch.float64)
    states, buffer, expected = [rule.init(weight)], np.zeros(2), np.zeros(2)
    for step, odds in enumerate(([9.0, 1 / 9], [1.0, 1.0], [1 / 9, 9.0])):
        mu = np.where(np.isclose(odds, 9.0), 81 / 82, np.where(np.isclose(odds, 1.0), 0.9, 0.5))
        buffer = mu * buffer + (step + 1.0)
        expected -= 0.1 * buffer
        gradient = torch.full((2, 1), step + 1.0, dtype=torch.float64)
        rule.update([weight], [gradient], states, rates(odds), np.full(2, step))
    assert weight[:, 0].numpy() == pytest.approx(expected)


def test_muon_by_hand():
    rule, weight = Muon(), normal(4, 4)
    states, before, buffer = [rule.init(weight)], weight.clone(), torch.zeros(2, 4, 4)
    for step, odds in enumerate(([2.0, 0.5], [0.5, 2.0])):
        mu = torch.tensor([19.0 * o / (1.0 + 19.0 * o) for o in odds])[:, None, None]
        g = normal(4, 4, seed=step + 1)
        buffer = mu * buffer + (1.0 - mu) * g
        direction = _orthogonalize_all([(1.0 - mu) * g + mu * buffer], JORDAN)[0]
        before = before - 0.1 * direction
        rule.update([weight], [g.clone()], states, rates(odds), np.full(2, step))
    torch.testing.assert_close(states[0]["momentum"], buffer)
    torch.testing.assert_close(weight, before, rtol=1e-3, atol=1e-3)


def test_nanochats_muon_moves_the_momentum_of_its_warmup():
    rule, g = NanochatMuon(), normal(4, 3, seed=2)
    weight = normal(4, 3)
    states = [rule.init(weight)]
    rule.update([weight], [g.clone()], states, rates([3.0, 1.0]), np.array([0, 300]))
    odds = 3.0 * 0.85 / 0.15
    first = torch.tensor([1.0 / (1.0 + odds), 0.05])[:, None, None]
    torch.testing.assert_close(states[0]["momentum"], first * g)


@pytest.mark.parametrize("rule", [ScheduleFreeSGD(), ScheduleFreeAdamW()], ids=repr)
def test_the_weights_of_schedule_free_are_at_the_new_momentum_between_both_iterates(rule):
    """The average and the base iterate do not notice that y is put elsewhere."""
    weight = normal(4, 3).double()
    states = [rule.init(weight)]
    for step, odds in enumerate(([1.0, 4.0], [1 / 30, 4.0], [1.0, 0.2])):
        y, state = weight.clone(), {key: value.clone() for key, value in states[0].items()}
        g = normal(4, 3, seed=step + 1).double()
        rule.update([y], [g.clone()], [state], rates([1.0, 1.0]), np.full(2, step))
        rule.update([weight], [g.clone()], states, rates(odds), np.full(2, step))
        x = rule.evaluation_weights(weight, states[0])
        torch.testing.assert_close(x, rule.evaluation_weights(y, state))
        torch.testing.assert_close(states[0]["z"], state["z"], rtol=0, atol=0)
        beta = np.array(odds) * 9.0 / (1.0 + 9.0 * np.array(odds))
        beta = torch.as_tensor(beta)[:, None, None]
        torch.testing.assert_close(weight, (1.0 - beta) * state["z"] + beta * x, rtol=1e-6, atol=0)


@pytest.mark.parametrize("multiplier", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("odds", CHANNELS["momentum"].bounds)
def test_both_multipliers_of_beta1_leave_a_mean(multiplier, odds):
    for rule in (AdamW(beta1=0.8), AdamW(), AdamW(beta1=0.95)):
        weight = torch.zeros(2, 1)
        states = [rule.init(weight)]
        values = rates([odds, odds])
        values = values._replace(beta1=values.beta1 * multiplier)
        for step in range(30):
            gradient = torch.full((2, 1), 3.0 if step % 7 == 0 else -1.0)
            rule.update([weight], [gradient], states, values, np.full(2, step))
            assert (states[0]["momentum"].abs() <= 3.0001).all()
            assert ((states[0]["beta1_product"] >= 0) & (states[0]["beta1_product"] < 1)).all()
