from dataclasses import fields

import numpy as np
import pytest

from hpenv.telemetry.trajectory import (
    MEAN_DECAY,
    NUM_LOSSES,
    NUM_PROBE_LOSSES,
    Trajectory,
    curvature,
    slope,
)


def remembered(losses):
    """Trajectory of one run with these losses, in order."""
    result = Trajectory.empty(1)
    for loss in losses:
        result = result.with_losses(np.array([True]), np.array([loss]))
    return result


@pytest.mark.parametrize("count", range(2, 24))
def test_the_slope_is_that_of_a_least_squares_line(count):
    losses = np.random.default_rng(count).uniform(1.0, 5.0, count)
    past = remembered(losses)
    last = losses[-NUM_LOSSES:]
    assert slope(past.losses, past.num_losses) == pytest.approx(
        [np.polyfit(np.arange(len(last)), last, 1)[0]]
    )


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([], 0.0),
        ([4.0, 1.0], 0.0),
        ([4.0, 1.0, 2.0], 4.0),
        ([1.0, 3.0, 5.0, 7.0], 0.0),
        ([1.0, 0.0, 4.0, 2.0, 2.0, 3.0, 1.0], 0.5 - 16 / 3 + 2.0),  # thirds of 2, 3 and 2
        (
            [9.0] * 9 + [float(t * t) for t in range(16)],
            6.0 - 2 * 355 / 6 + 171.0,
        ),  # 5, 6 and 5 of the last 16
    ],
)
def test_the_curvature_is_the_second_difference_of_three_parts(losses, expected):
    past = remembered(losses)
    assert curvature(past.losses, past.num_losses) == pytest.approx([expected])


def test_a_line_has_its_slope_and_no_curvature_from_the_second_loss_on():
    past = Trajectory.empty(1)
    for t in range(40):
        past = past.with_losses(np.array([True]), np.array([5.0 - 0.1 * t]))
        assert slope(past.losses, past.num_losses) == pytest.approx([-0.1 if t else 0.0])
        assert curvature(past.losses, past.num_losses) == pytest.approx([0.0], abs=1e-12)


def test_the_mean_begins_at_the_first_loss_and_its_lowest_is_kept():
    past = remembered([4.0])
    assert (past.mean[0], past.mean_before[0], past.lowest_mean[0]) == pytest.approx(
        (4.0, 4.0, 4.0)
    )
    past = remembered([4.0, 2.0])
    second = MEAN_DECAY * 4.0 + (1 - MEAN_DECAY) * 2.0
    assert (past.mean[0], past.mean_before[0], past.lowest_mean[0]) == pytest.approx(
        (second, 4.0, second)
    )
    past = remembered([4.0, 2.0, 8.0])
    assert (past.mean_before[0], past.lowest_mean[0]) == pytest.approx(
        (second, second)
    ) and past.mean[0] > second


def test_probe_losses_are_kept_beside():
    past = Trajectory.empty(1)
    for t in range(11):
        past = past.with_probe_losses(np.array([True]), np.array([9.0 - t]))
    assert past.probe_losses[0].tolist() == [9.0 - t for t in range(11 - NUM_PROBE_LOSSES, 11)]
    assert slope(past.probe_losses, past.num_probe_losses) == pytest.approx([-1.0])
    assert past.num_losses.tolist() == [0]


def test_rows_are_independent():
    """Each row of a population remembers the same as alone.

    The other rows move or begin anew at any time.
    """
    random = np.random.default_rng(0)
    whole, alone = Trajectory.empty(3), [Trajectory.empty(1) for _ in range(3)]
    for _ in range(30):
        rows, fresh = random.random(3) < 0.7, random.random(3) < 0.1
        losses = random.uniform(1.0, 5.0, 3)
        whole = whole.with_reset(fresh).with_losses(rows, losses).with_probe_losses(rows, losses)
        for i in range(3):
            cleared, part, loss = fresh[[i]], rows[[i]], losses[[i]]
            alone[i] = (
                alone[i].with_reset(cleared).with_losses(part, loss).with_probe_losses(part, loss)
            )
    for field in fields(Trajectory):
        together = getattr(whole, field.name)
        assert np.array_equal(
            together, np.concatenate([getattr(one, field.name) for one in alone])
        ), field.name


def test_a_trajectory_never_changes_in_place():
    past = remembered([4.0, 2.0])
    before = {key: value.copy() for key, value in vars(past).items()}
    past.with_losses(np.array([True]), np.array([1.0])).with_reset(np.array([True]))
    assert all(np.array_equal(value, before[key]) for key, value in vars(past).items())
