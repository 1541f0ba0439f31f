import math

import numpy as np
import pytest

from agents.credits import CreditStream


def stream(num_rows=1, immediate=(False,), delay=0, horizon=1, gamma=1.0, baseline="own", **changes) -> CreditStream:
    settings = {"baseline_decay": 0.5, "scale_decay": 0.5, "bound": 100.0} | changes
    return CreditStream(num_rows, immediate, delay, horizon, gamma, baseline, **settings)


def push(credits, *rewards, alive=None):
    return credits.push(np.array(rewards), np.ones(len(rewards), dtype=bool) if alive is None else np.array(alive))


def test_credits_by_hand():
    # delay 1, horizon 2, gamma 1/2: reward 1 + reward 2 / 2; the immediate cell has reward 0 beside them, in full
    credits = stream(immediate=(False, True), delay=1, horizon=2, gamma=0.5)
    assert push(credits, 7.0) is None
    assert push(credits, 3.0) is None and credits.num_waiting == 2
    assert push(credits, 4.0).credits.tolist() == [[5.0, 12.0]]
    assert push(credits, -2.0).credits.tolist() == [[3.0, 6.0]]
    assert credits.num_waiting == 2


def test_the_immediate_credit_of_falling_losses_leaves_out_the_loss_of_the_decisions_own_step():
    losses = [5.0, 4.0, 99.0, 3.5]
    credits = stream(immediate=(False, True), delay=1)
    push(credits, losses[0] - losses[1])
    push(credits, losses[1] - losses[2])
    assert push(credits, losses[2] - losses[3]).credits.tolist() == [[99.0 - 3.5, 4.0 - 3.5]]


def test_own_baseline_and_scale_by_hand():
    credits = stream()
    first = push(credits, 4.0)
    assert first.values.tolist() == [[0.0]] and first.rms.tolist() == [[0.0]]  # no baseline: nothing learned
    second = push(credits, 2.0)
    assert second.baseline.tolist() == [[4.0]]
    assert second.rms.tolist() == [[2.0]]
    assert math.isclose(second.values.item(), -1.0, rel_tol=1e-6)
    third = push(credits, 8.0)
    # mean (4 + 2 * 2) / 3; squares (4 + 2 * (16 / 3)^2) / 3
    assert math.isclose(third.baseline.item(), 8 / 3)
    rms = math.sqrt((4.0 + 2 * (16 / 3) ** 2) / 3)
    assert math.isclose(third.rms.item(), rms)
    assert math.isclose(third.values.item(), (16 / 3) / rms, rel_tol=1e-6)


def test_population_baseline_by_hand():
    credits = stream(num_rows=3, baseline="population")
    assert push(credits, 1.0, 2.0, 6.0).baseline.tolist() == [[4.0], [3.5], [1.5]]
    assert push(credits, 1.0, np.nan, 6.0, alive=[True, False, True]).baseline.tolist() == [[6.0], [0.0], [1.0]]
    alone = push(credits, 9.0, np.nan, np.nan, alive=[True, False, False])
    assert not alone.values.any()


@pytest.mark.parametrize("baseline", ["own", "population"])
def test_the_unit_of_the_reward_does_not_matter(baseline):
    values = []
    for unit in (1.0, 1e-3):
        credits = stream(num_rows=4, baseline=baseline)
        rows = np.random.default_rng(0).normal(size=(6, 4))
        values.append([push(credits, *(unit * row)).values for row in rows])
    assert np.allclose(values[0], values[1], atol=1e-3)


def test_advantages_are_bounded():
    credits = stream(scale_decay=0.99, bound=1.5)
    rewards = [0.0, *[1.0, -1.0] * 20, 50.0]
    assert push(credits, 0.0) is not None
    assert [push(credits, r) for r in rewards][-1].values.item() == 1.5


def test_what_has_ended_is_not_read_and_keeps_its_means():
    credits = stream(num_rows=2)
    push(credits, 4.0, 4.0)
    push(credits, 2.0, 2.0)
    before = credits.arrays()
    ended = push(credits, 3.0, np.inf, alive=[True, False])
    assert ended.values[1].tolist() == [0.0] and np.isfinite(ended.values).all()
    after = credits.arrays()
    for name in ("mean", "square", "mean_count", "square_count"):
        assert np.array_equal(before[name][1], after[name][1])
        assert not np.array_equal(before[name][0], after[name][0])


def test_restored_it_continues_identically():
    credits, other = stream(delay=1, horizon=2), stream(delay=1, horizon=2)
    for reward in (1.0, 3.0, -2.0):
        push(credits, reward)
    other.restore(credits.arrays())
    for reward in (0.5, 4.0):
        assert np.array_equal(push(credits, reward).values, push(other, reward).values)
