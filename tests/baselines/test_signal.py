"""Comparison of the worst constant rate, the best one and the reference."""

import pytest

from baselines.field import TUNED, read_searches
from baselines.signal import BEST, DIVERGED, WORST, WorstConstant, compare, worst_point
from hpenv.benchmark.instances import load_suite
from hpenv.benchmark.methods import REFERENCE


def _rows(method, values, instance, diverged=()):
    return [
        {
            "method": method,
            "instance_digest": instance.digest,
            "seed": seed,
            "final": value,
            "divergence_reason": "loss" if seed in diverged else None,
        }
        for seed, value in enumerate(values)
    ]


def test_differences_are_positive_where_each_method_beats_the_one_before():
    suite = load_suite("jel-nano")
    (instance,) = suite.test
    rows = [
        *_rows(WORST, [9.0, 5.0, 5.5], instance, diverged=(1,)),
        *_rows(BEST, [3.0, 3.1, 3.2], instance),
        *_rows(REFERENCE, [2.5, 2.6, 2.7], instance),
    ]
    (found,) = compare(suite, rows)
    worst = [DIVERGED, DIVERGED, 5.5]  # a run worse than a guess, a diverged one, a finished one
    expected = sum(a - b for a, b in zip(worst, [3.0, 3.1, 3.2], strict=True)) / 3
    assert found["worst_minus_best"][0] == pytest.approx(expected)
    assert found["best_minus_reference"] == pytest.approx([0.5, 0.5, 0.5])


def test_methods_must_have_the_same_seeds():
    suite = load_suite("jel-nano")
    (instance,) = suite.test
    rows = [row for name in (WORST, BEST, REFERENCE) for row in _rows(name, [3.0, 3.1], instance)]
    with pytest.raises(ValueError, match="same seeds"):
        compare(suite, rows[:-1])


def test_worst_constant_has_the_largest_loss_of_its_search():
    (instance,) = load_suite("jel-nano").test
    search = read_searches(BEST, TUNED)[instance.digest]
    losses = {lr: loss for lr, loss in search["points"]}
    point = WorstConstant().point(instance)
    assert losses[point["lr"]] == max(losses.values())
    assert point == worst_point(search) != search["point"]
