import math
from dataclasses import replace

import numpy as np
import pytest

from hpenv.plant import Window
from hpenv.telemetry import FEATURES, Reading, bounds, check_features, column_names, observe

NAMES = ("lr", "weight_decay/adamw")


def window(**changes):
    values = {
        "steps": np.array([50, 100]),
        "train_loss": np.array([5.0, 4.0]),
        "probe_loss": np.array([4.0, 3.0]),
        "gradient_norm": np.array([1.0, 0.01]),
        "momentum_norm": np.array([100.0, 1.0]),
        "divergence": np.array([0, 0]),
    }
    return Window(**(values | changes))


def reading(**changes):
    values = {
        "window": window(),
        "previous_probe_loss": np.array([5.0, 3.5]),
        "initial_probe_loss": np.array([5.0, 4.0]),
        "progress": np.array([0.1, 0.2]),
        "positions": np.array([[0.5, -0.5], [1.0, 0.0]]),
        "previous_positions": np.array([[0.0, 0.0], [0.5, 0.5]]),
        "first": np.array([True, False]),
        "action_names": NAMES,
    }
    return Reading(**(values | changes))


def test_every_feature_by_hand():
    expected = {
        "progress": [[0.1], [0.2]],
        "train_loss": [[1.0], [1.0]],
        "probe_loss": [[0.8], [0.75]],
        "probe_loss_change": [[0.2], [0.125]],
        "gradient_norm": [[0.0], [-0.25]],
        "momentum_norm": [[0.25], [0.0]],
        "position": [[0.5, -0.5], [1.0, 0.0]],
    }
    assert expected.keys() == FEATURES.keys()
    for name, values in expected.items():
        assert observe([name], reading()) == pytest.approx(np.array(values)), name


EXTREMES = [0.0, 1e-300, 1e-8, 1e8, 1e300]


@pytest.mark.parametrize("name", FEATURES)
@pytest.mark.parametrize("value", EXTREMES)
@pytest.mark.parametrize("initial", EXTREMES)
def test_features_are_finite_and_within_bounds_whatever_the_run_does(name, value, initial):
    both = np.array([value, -value])
    extreme = reading(
        window=window(train_loss=both, probe_loss=both, gradient_norm=abs(both), momentum_norm=abs(both)),
        previous_probe_loss=-both,
        initial_probe_loss=np.full(2, initial),
        progress=np.array([0.0, 1.0]),
        positions=np.array([[1.0, -1.0], [-1.0, 1.0]]),
    )
    low, high = bounds([name], NAMES)
    values = observe([name], extreme)
    assert values.shape == (2, len(column_names([name], NAMES))) == (2, len(low)) == (2, len(high))
    assert np.isfinite(values).all() and (values >= low).all() and (values <= high).all()
    assert np.isfinite(values.astype(np.float32)).all()


@pytest.mark.parametrize("name", FEATURES)
def test_features_are_not_constant(name):
    values = observe([name], reading())
    other = replace(
        reading(),
        window=window(**{key: vars(window())[key] * 1.1 for key in ("train_loss", "probe_loss")})
        if "loss" in name
        else window(gradient_norm=np.array([2.0, 3.0]), momentum_norm=np.array([2.0, 3.0])),
        progress=np.array([0.5, 0.6]),
        positions=np.array([[0.1, 0.2], [0.3, 0.4]]),
    )
    assert (observe([name], other) != values).all()


@pytest.mark.parametrize("name", FEATURES)
def test_a_row_is_read_from_its_own_numbers(name):
    whole = observe([name], reading())
    for row in range(2):
        part = {key: value[[row]] for key, value in vars(reading()).items() if isinstance(value, np.ndarray)}
        alone = reading(window=Window(**{key: value[[row]] for key, value in vars(window()).items()}), **part)
        assert np.array_equal(observe([name], alone)[0], whole[row])


def test_features_stand_side_by_side_in_the_order_given():
    names = ["progress", "position", "probe_loss"]
    assert column_names(names, NAMES) == ("progress", "position/lr", "position/weight_decay/adamw", "probe_loss")
    assert observe(names, reading())[0] == pytest.approx([0.1, 0.5, -0.5, 0.8])
    low, high = bounds(names, NAMES)
    assert low.tolist() == [0.0, -1.0, -1.0, 0.0] and high.tolist() == [1.0, 1.0, 1.0, 3.0]


def test_norms_are_logarithms_of_eight_decades_either_way():
    norms = window(gradient_norm=np.array([0.0, math.inf]))
    assert observe(["gradient_norm"], reading(window=norms)).tolist() == [[-1.0], [1.0]]


def test_unknown_features_are_refused_by_name():
    with pytest.raises(ValueError, match=r"unknown feature 'loss'; expected some of \['gradient_norm', "):
        check_features(["progress", "loss"])


def test_an_observation_without_the_progress_of_the_run_is_refused():
    with pytest.raises(ValueError, match=r"'probe_loss'.* lack 'progress'"):
        check_features(["probe_loss"])
