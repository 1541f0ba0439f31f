"""Measures of the projection, by hand."""

import math

import pytest
import torch

from hpenv.posttraining.projection.direction import Direction
from hpenv.posttraining.projection.rules import (
    DRIFT,
    measure,
    project,
    update_moments,
    zero_moments,
)
from tests.hpenv.posttraining.projection.small_directions import ONE, TWO, full, generator


def test_measures_by_hand_rectify_before_they_average():
    # c is (3, -4) in a module of length 13, and (-3, 0) in one of length 5.
    given = {"a": torch.tensor([[3.0, -4.0, 12.0]]), "b": torch.tensor([[-3.0, 0.0, 4.0]])}
    direction = Direction({"a": TWO, "b": TWO}, {"a": torch.ones(1, 2), "b": torch.ones(1, 2)})
    measures = measure(given, direction)
    expected = {
        "mean_cos": (3 / 13 - 4 / 13 - 3 / 5 + 0) / 4,
        "frac_fired": 1 / 2,
        "removed_fraction": (3 / 13 + 0) / 2,
        "mean_c": (3 - 4 - 3 + 0) / 4,
        "mean_positive_c": 3 / 4,
        "mean_negative_c": -7 / 4,
    }
    for name, value in expected.items():
        assert measures._asdict()[name].tolist() == pytest.approx([value]), name


def test_a_gradient_of_zero_has_no_cosine_and_is_no_obstacle():
    given = {"a": torch.zeros(1, 3), "b": torch.tensor([[3.0, 0.0, 4.0]])}
    direction = Direction({"a": ONE, "b": ONE}, {"a": torch.ones(1, 1), "b": torch.ones(1, 1)})
    kept, _ = project(given, direction, "one_sided", full(1.0, 1), full(1.0, 1))
    measures = measure(given, direction)
    assert torch.equal(kept["a"], given["a"])
    assert measures.mean_cos.item() == pytest.approx(1.8 / 5) and measures.frac_fired.item() == 0.5


def test_noise_fires_as_a_signal_does_but_its_mean_is_zero():
    """With noise alone, the one-sided rule leaves the push of -0.4 sd.

    The rule drift is the control for this push.
    """
    k, rows = 1, 4000
    axes = torch.zeros(rows, k, 8)
    axes[:, 0, 0] = 1.0
    given = {"m": torch.randn(rows, 8, generator=generator())}
    direction = Direction({"m": axes}, {"m": torch.ones(rows, k)})
    kept, _ = project(given, direction, "one_sided", full(1.0, rows), full(0.0, rows))
    measures = measure(given, direction)
    standard_error = 1 / math.sqrt(rows)
    assert abs(measures.mean_c.mean()) < 4 * standard_error
    assert measures.mean_positive_c.mean() == pytest.approx(
        1 / math.sqrt(2 * math.pi), abs=4 * standard_error
    )
    torch.testing.assert_close(measures.mean_positive_c + measures.mean_negative_c, measures.mean_c)
    assert kept["m"][:, 0].mean() == pytest.approx(-DRIFT, abs=4 * standard_error)
    assert measures.frac_fired.mean() == pytest.approx(0.5, abs=4 * standard_error)


def test_the_running_spread_is_the_weighted_standard_deviation():
    direction = Direction({"m": TWO}, {"m": torch.ones(1, 2)})
    spread = zero_moments(direction)
    assert spread.deviations()["m"].tolist() == [[0.0, 0.0]]
    values = torch.randn(6, 1, 2, generator=generator())
    for c in values:
        spread = update_moments(spread, {"m": c}, decay=0.8)
    weights = 0.8 ** torch.arange(5, -1, -1.0)[:, None, None]
    mean = (weights * values).sum(0) / weights.sum()
    variance = (weights * (values - mean).square()).sum(0) / weights.sum()
    torch.testing.assert_close(spread.deviations()["m"], variance.sqrt())
