import math

import numpy as np
import pytest

from agents.credits import CreditStream, Evidence
from agents.sidecar_config import SidecarConfig


def stream(
    num_rows=1, immediate=(False,), delay=0, horizon=1, gamma=1.0, baseline="own", **changes
) -> CreditStream:
    settings = {"baseline_decay": 0.5, "scale_decay": 0.5, "advantage_clip": 100.0} | changes
    config = SidecarConfig(delay=delay, horizon=horizon, gamma=gamma, baseline=baseline, **settings)
    return CreditStream(num_rows, immediate, config)


def push(credits, *rewards, alive=None):
    return credits.push(
        np.array(rewards), np.ones(len(rewards), dtype=bool) if alive is None else np.array(alive)
    )


def test_credits_by_hand():
    # delay 1, horizon 2, gamma 1/2: reward 1 + reward 2 / 2; the immediate cell also has reward 0
    # them, twice
    credits = stream(immediate=(False, True), delay=1, horizon=2, gamma=0.5)
    assert push(credits, 7.0) is None
    assert push(credits, 3.0) is None and credits.num_waiting == 2
    assert push(credits, 4.0).credits.tolist() == [[5.0, 19.0]]
    assert push(credits, -2.0).credits.tolist() == [[3.0, 9.0]]
    assert credits.num_waiting == 2


def test_the_immediate_credit_of_falling_losses_is_what_the_dial_did_and_what_it_left_behind():
    losses = [5.0, 4.0, 99.0, 3.5]
    credits = stream(immediate=(False, True), delay=1)
    push(credits, losses[0] - losses[1])
    push(credits, losses[1] - losses[2])
    assert push(credits, losses[2] - losses[3]).credits.tolist() == [
        [99.0 - 3.5, (4.0 - 99.0) + (4.0 - 3.5)]
    ]


def test_own_baseline_and_scale_by_hand():
    credits = stream()
    first = push(credits, 4.0)
    assert first.values.tolist() == [[0.0]] and first.rms.tolist() == [
        [0.0]
    ]  # no baseline: nothing learned
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


def test_the_own_baseline_is_that_of_the_moment_of_the_decision():
    # delay 1, so that credits are 2, 8, -1, 5 and 3 of decisions 0 ... 4; when decision 2 was
    # taken, that of 0 was in.
    credits = stream(delay=1)
    found = [push(credits, reward) for reward in (7.0, 2.0, 8.0, -1.0, 5.0, 3.0)]
    assert found[0] is None
    assert [now.credits.item() for now in found[1:]] == [2.0, 8.0, -1.0, 5.0, 3.0]
    assert [now.values.any() for now in found[1:]] == [False, False, True, True, True]
    baselines = [
        2.0,
        (2.0 + 2 * 8.0) / 3,
        (2.0 + 2 * 8.0 - 4 * 1.0) / 7,
    ]  # the newest weighs twice as much as the one before
    assert np.allclose([now.baseline.item() for now in found[3:]], baselines)


def test_population_baseline_by_hand():
    credits = stream(num_rows=3, baseline="population")
    assert push(credits, 1.0, 2.0, 6.0).baseline.tolist() == [[4.0], [3.5], [1.5]]
    assert push(credits, 1.0, np.nan, 6.0, alive=[True, False, True]).baseline.tolist() == [
        [6.0],
        [0.0],
        [1.0],
    ]
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
    credits = stream(scale_decay=0.99, advantage_clip=1.5)
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
    for reward in (1.0, 3.0, -2.0, 2.5, 7.0):
        push(credits, reward)
    other.restore(credits.arrays())
    for reward in (0.5, 4.0):
        ours, theirs = push(credits, reward), push(other, reward)
        assert (
            ours.values.any()
        )  # of the fourth and the fifth decision, the first that have a baseline
        assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(("delay", "horizon"), [(1, 1), (0, 4), (1, 16)])
def test_the_baseline_of_a_decision_holds_nothing_that_the_decision_did(delay, horizon):
    """Each reward is the sample of its decision. Later rewards must not cancel its effect."""
    credits = stream(
        num_rows=400, immediate=(True,), delay=delay, horizon=horizon, baseline_decay=0.5
    )
    draws = np.random.default_rng(0).normal(size=(60, 400))
    found = [credits.push(row, np.ones(400, dtype=bool)) for row in draws]
    lag = delay + horizon - 1
    products = [
        (now.baseline[:, 0] * draws[t - lag]).mean()
        for t, now in enumerate(found)
        if now is not None and t > 2 * lag
    ]
    assert abs(np.mean(products)) < 4 / np.sqrt(400 * len(products))


def test_evidence_by_hand():
    evidence = Evidence((1, 2), 0.5)
    assert evidence.gates(0.0).tolist() == [[0.0, 0.0]]
    for value in ([2.0, 1.0], [4.0, -1.0]):
        evidence.push(np.array([value]), np.array([True]))
    # sums 5 and -0.5, squares 0.25 * 4 + 16 and 0.25 + 1: t^2 = 25 / 17 and 0.2
    assert np.allclose(evidence.gates(1.0), [[1.0 - 17.0 / 25.0, 0.0]])
    assert np.allclose(evidence.gates(0.2), [[1.0 - 0.04 * 17.0 / 25.0, 1.0 - 0.04 / 0.2]])
    assert evidence.gates(0.0).tolist() == [[1.0, 1.0]]
    evidence.push(np.array([[9.0, 9.0]]), np.array([False]))
    assert np.allclose(evidence.gates(1.0), [[1.0 - 17.0 / 25.0, 0.0]])


def test_noise_seldom_passes_the_gate_and_a_signal_does():
    generator = np.random.default_rng(0)
    evidence = Evidence((2000, 2), 0.999)
    for _ in range(1000):
        noise = generator.normal(size=(2000, 2)) * 1e-3
        evidence.push(noise + np.array([0.0, 2e-4]), np.ones(2000, dtype=bool))
    passed = (evidence.gates(2.0) > 0).mean(axis=0)
    assert 0.03 < passed[0] < 0.06 and passed[1] > 0.99  # 4.6 % of normal samples are beyond 2


@pytest.mark.parametrize("unit", [1e-6, 1e6])
def test_the_unit_of_a_statistic_does_not_matter_to_its_gate(unit):
    draws = np.random.default_rng(0).normal(0.2, 1.0, size=(50, 30))
    evidence, scaled = Evidence((30,), 0.9), Evidence((30,), 0.9)
    for row in draws:
        (
            evidence.push(row, np.ones(30, dtype=bool)),
            scaled.push(unit * row, np.ones(30, dtype=bool)),
        )
    gates = evidence.gates(1.0)
    assert 0 < (gates > 0).sum() < 30 and gates.max() < 1.0
    assert np.allclose(gates, scaled.gates(1.0))


def test_restored_evidence_continues_identically():
    evidence, other = Evidence((2, 3), 0.9), Evidence((2, 3), 0.9)
    draws = np.random.default_rng(0).normal(1.0, 1.0, size=(6, 2, 3))
    for row in draws[:3]:
        evidence.push(row, np.array([True, True]))
    handed = evidence.arrays()
    other.restore(handed)
    for row in draws[3:]:
        evidence.push(row, np.array([True, False])), other.push(row, np.array([True, False]))
    assert evidence.gates(0.5).any() and np.array_equal(evidence.gates(0.5), other.gates(0.5))
    for name, array in evidence.arrays().items():
        assert np.array_equal(array[1], handed[name][1]) and not np.array_equal(
            array[0], handed[name][0]
        )
