import math
from dataclasses import replace

import numpy as np
import pytest

from hpenv.plant.measurements import Window, groups_of
from hpenv.posttraining.measurements import MEASUREMENTS as OF_GRPO
from hpenv.pretraining.measurements import MEASUREMENTS as OF_PRETRAINING
from hpenv.telemetry.estimators import Estimates, Estimation, Estimators
from hpenv.telemetry.features import FEATURES, check_features
from hpenv.telemetry.observation import Observation
from hpenv.telemetry.reading import Layout, Reading, groups_read
from hpenv.telemetry.trajectory import Trajectory

OWN = {own.name for own in OF_PRETRAINING}
MEASUREMENTS = (*OF_PRETRAINING, *(own for own in OF_GRPO if own.name not in OWN))
GAUGES = tuple(own.name for own in OF_GRPO if own.in_info)
PER_LAYER = tuple(own.name for own in OF_PRETRAINING if own.per == "layer")
PER_GROUP = tuple(own.name for own in OF_PRETRAINING if own.per == "group")
LAYOUT = Layout(
    ("lr", "weight_decay/adamw"),
    ("scale", "shrink"),
    num_layers=3,
    num_registers=2,
    group_names=("embedding", "matrix"),
)
ALL = np.array([True, True])


def window(**changes):
    values = {
        "train_loss": np.array([5.0, 4.0]),
        "probe_loss": np.array([4.0, 3.0]),
        "gradient_norm": np.array([1.0, 0.01]),
        "momentum_norm": np.array([100.0, 1.0]),
        "same_batch_loss": np.array([4.5, 4.0]),
        "layer_gradient_norm": np.array([[1.0, 0.01, 100.0], [1e4, 1e-4, 0.0]]),
        "layer_gradient_max": np.array([[0.1, 0.001, 10.0], [1e3, 1e-6, 0.0]]),
        "layer_activation_mean": np.array([[1.0, -1.0, 3.0], [0.0, -9.0, 0.25]]),
        "layer_activation_variance": np.array([[1.0, 100.0, 0.01], [1e4, 1e-4, 0.0]]),
        "layer_saturation": np.array([[0.0, 0.5, 1.0], [0.25, 0.75, 0.125]]),
        "update_ratio": np.array([[1.0, 0.01], [1e-4, 0.0]]),
        "layer_update_ratio": np.array([[0.01, 1.0, 100.0], [1e4, 1e-4, 0.0]]),
        "update_alignment": np.array([[0.5, -0.25], [1.0, 0.0]]),
        "gradient_agreement": np.array([[0.25, -0.5], [0.0, 1.0]]),
        "mean_gradient_norm": np.array([3.0, 5.0]),
        "mean_squared_gradient_norm": np.array([10.0, 25.0]),
        "update_gain": np.array([1.0, -2.0]),
        "probe_gain": np.array([0.5, -1.0]),
        "start_distance": np.array([[0.0, 1.0], [0.25, 3.0]]),
    }
    values |= {name: np.array([0.01, 0.02]) * (i + 1) for i, name in enumerate(GAUGES)}
    values |= {"steps": np.array([50, 100]), "divergence": np.array([0, 0])}
    return Window.of_arrays(values | changes)


def trajectory(losses=((6.0, 5.5, 5.0), (3.0, 5.0, 4.0)), probe_losses=((5.0, 4.0), (3.5, 3.0))):
    """Of two runs, their losses in order."""
    result = Trajectory.empty(2)
    for values in zip(*losses, strict=True):
        result = result.with_losses(ALL, np.array(values))
    for values in zip(*probe_losses, strict=True):
        result = result.with_probe_losses(ALL, np.array(values))
    return result


def reading(**changes):
    values = {
        "window": window(),
        "trajectory": trajectory(),
        "previous_train_loss": np.array([5.5, 5.0]),
        "previous_probe_loss": np.array([5.0, 3.5]),
        "initial_probe_loss": np.array([5.0, 4.0]),
        "progress": np.array([0.1, 0.2]),
        "positions": np.array([[0.5, -0.5], [1.0, 0.0]]),
        "previous_positions": np.array([[0.0, 0.0], [0.5, 0.5]]),
        "registers": np.array([[0.25, -0.75], [0.0, 1.0]]),
        "estimates": Estimates(*np.array([[0.5, -1.0], [-0.25, 1.0], [0.75, 2.5], [0.1, 0.9]])),
        "loss_exponent": np.array([-0.25, -3.0]),
        "first": np.array([True, False]),
        "layout": LAYOUT,
    }
    return Reading(**(values | changes))


def observe(names, reading):
    return Observation(names, LAYOUT).read(reading)


def test_every_feature_by_hand():
    expected = {
        "progress": [[0.1], [0.2]],
        "train_loss": [[1.0], [1.0]],
        "probe_loss": [[0.8], [0.75]],
        "probe_loss_change": [[0.2], [0.125]],
        "gradient_norm": [[0.0], [-0.25]],
        "momentum_norm": [[0.25], [0.0]],
        "position": [[0.5, -0.5], [1.0, 0.0]],
        "layer_gradient_norm": [[0.0, -0.25, 0.25], [0.5, -0.5, -1.0]],
        "layer_gradient_max": [[-0.125, -0.375, 0.125], [0.375, -0.75, -1.0]],
        "layer_activation_mean": [[0.5, -0.5, 0.75], [0.0, -0.9, 0.2]],
        "layer_activation_variance": [[0.0, 0.25, -0.25], [0.5, -0.5, -1.0]],
        "layer_saturation": [[0.0, 0.5, 1.0], [0.25, 0.75, 0.125]],
        "update_ratio": [[0.0, -0.25], [-0.5, -1.0]],
        "layer_update_ratio": [[-0.25, 0.0, 0.25], [0.5, -0.5, -1.0]],
        "update_alignment": [[0.5, -0.25], [1.0, 0.0]],
        "gradient_agreement": [[0.25, -0.5], [0.0, 1.0]],
        "gradient_norm_spread": [[0.25], [0.0]],  # of 1 / 3
        "update_gain": [[0.5], [-1.0]],
        "probe_gain": [[0.25], [-0.5]],
        "start_distance": [[0.0, 0.5], [0.2, 0.75]],
        "loss_exponent": [[-0.25], [-1.0]],
        "registers": [[0.25, -0.75], [0.0, 1.0]],
        "loss_trend": [[0.5], [-1.0]],
        "reward_trend": [[-0.25], [1.0]],
        "loss_variance_ratio": [[0.75], [2.5]],
        "plateau": [[0.1], [0.9]],
        "loss_slope": [[-1.0], [1.0]],  # -0.5 and 0.5 per decision, times 16 / initial, clipped
        "loss_curvature": [[0.0], [-0.75]],
        # exponential means of those before: 6 - 0.05 * 0.5 and 3 + 0.05 * 2
        "loss_ema_deviation": [[(5.0 - 5.975) / 5.0], [(4.0 - 3.1) / 4.0]],
    }
    for name in FEATURES:  # a gauge as it is: the i-th is 0.01 (i + 1) and twice that
        if name in GAUGES and name not in ("kl", "entropy", "coefficient_norm"):
            expected[name] = [[0.01 * (GAUGES.index(name) + 1)], [0.02 * (GAUGES.index(name) + 1)]]
    for name in ("kl", "coefficient_norm"):
        expected[name] = [
            [math.log10(0.01 * (GAUGES.index(name) + 1)) / 8],
            [math.log10(0.02 * (GAUGES.index(name) + 1)) / 8],
        ]
    entropy = 0.01 * (GAUGES.index("entropy") + 1)
    expected["entropy"] = [[entropy / (1 + entropy)], [2 * entropy / (1 + 2 * entropy)]]
    expected["component_bias"] = [[1.0], [1.0]]
    assert expected.keys() == FEATURES.keys()
    for name, values in expected.items():
        assert observe([name], reading()) == pytest.approx(np.array(values)), name


EXTREMES = [0.0, 1e-300, 1e-8, 1e8, 1e300]


@pytest.mark.parametrize("name", FEATURES)
@pytest.mark.parametrize("value", EXTREMES)
@pytest.mark.parametrize("initial", EXTREMES)
def test_features_are_finite_and_within_bounds_whatever_the_run_does(name, value, initial):
    both = np.array([value, -value])
    layers = np.tile(both[:, None], (1, 3))
    extreme = reading(
        window=window(
            **dict.fromkeys(("train_loss", "probe_loss"), both),
            **dict.fromkeys(("gradient_norm", "momentum_norm"), abs(both)),
            **dict.fromkeys(PER_LAYER, layers) | {"layer_saturation": abs(layers)},
            **dict.fromkeys(PER_GROUP, layers[:, :2]),
            **dict.fromkeys(GAUGES, abs(both)),
        ),
        trajectory=trajectory(np.stack([both, both / 2, -both, both], axis=1)),
        previous_probe_loss=-both,
        initial_probe_loss=np.full(2, initial),
        progress=np.array([0.0, 1.0]),
        positions=np.array([[1.0, -1.0], [-1.0, 1.0]]),
        estimates=Estimators.empty(2)
        .with_losses(Estimation(), np.array([both, both / 2, -both, both]))
        .estimates(Estimation()),
    )
    columns = Observation([name], LAYOUT)
    values = columns.read(extreme)
    assert values.shape == (2, len(columns.names))
    assert columns.low.shape == columns.high.shape == (len(columns.names),)
    assert np.isfinite(values).all()
    assert (values >= columns.low).all() and (values <= columns.high).all()
    assert np.isfinite(values.astype(np.float32)).all()


@pytest.mark.parametrize("name", FEATURES)
def test_features_are_not_constant(name):
    values = observe([name], reading())
    moved = {own: value * 0.9 + 0.02 for own, value in window().values.items()}
    for number, own in enumerate(GAUGES):
        moved[own] = window()[GAUGES[-1 - number]] ** 2 * (-1 if own == "mean_negative_c" else 1)
    other = replace(
        reading(),
        window=window(**moved),
        trajectory=trajectory(((5.1, 5.0, 4.8), (3.9, 4.0, 4.2))),
        registers=np.array([[0.3, -0.7], [0.1, 0.9]]),
        progress=np.array([0.5, 0.6]),
        positions=np.array([[0.1, 0.2], [0.3, 0.4]]),
        estimates=Estimates(*np.full((4, 2), 0.35)),
        loss_exponent=np.array([-0.1, 0.2]),
    )
    assert (observe([name], other) != values).all()


@pytest.mark.parametrize("name", FEATURES)
def test_a_row_is_read_from_its_own_numbers(name):
    whole = observe([name], reading())
    for row in range(2):
        part = {
            key: value[[row]]
            for key, value in vars(reading()).items()
            if isinstance(value, np.ndarray)
        }
        own = Window.of_arrays({key: value[[row]] for key, value in window().arrays().items()})
        past = Trajectory(**{key: value[[row]] for key, value in vars(trajectory()).items()})
        estimates = Estimates(*(value[[row]] for value in reading().estimates))
        alone = reading(window=own, trajectory=past, estimates=estimates, **part)
        assert np.array_equal(observe([name], alone)[0], whole[row])


def test_features_stand_side_by_side_in_the_order_given():
    names = ["progress", "position", "probe_loss"]
    assert Observation(names, LAYOUT).names == (
        "progress",
        "position/lr",
        "position/weight_decay/adamw",
        "probe_loss",
    )
    assert observe(names, reading())[0] == pytest.approx([0.1, 0.5, -0.5, 0.8])
    assert Observation(names, LAYOUT).low.tolist() == [0.0, -1.0, -1.0, 0.0]
    assert Observation(names, LAYOUT).high.tolist() == [1.0, 1.0, 1.0, 3.0]


def test_norms_are_logarithms_of_eight_decades_either_way():
    norms = window(gradient_norm=np.array([0.0, math.inf]))
    assert observe(["gradient_norm"], reading(window=norms)).tolist() == [[-1.0], [1.0]]


def test_unknown_features_are_refused_by_name():
    with pytest.raises(
        ValueError, match=r"unknown feature 'loss'; expected some of \['gradient_agreement', "
    ):
        check_features(["progress", "loss"], OF_PRETRAINING)


def test_an_observation_without_the_progress_of_the_run_is_refused():
    with pytest.raises(ValueError, match=r"features must include 'progress'; got .*'probe_loss'"):
        check_features(["probe_loss"], OF_PRETRAINING)


def test_columns_of_layers_and_registers_are_counted():
    per_layer = Observation(["layer_saturation"], LAYOUT)
    assert per_layer.names == tuple(f"layer_saturation/{i}" for i in range(3))
    assert Observation(["registers"], LAYOUT).names == ("registers/0", "registers/1")
    per_group = Observation(["update_ratio"], LAYOUT).names
    assert per_group == ("update_ratio/embedding", "update_ratio/matrix")
    none = Observation(["progress", "registers", "layer_gradient_max"], Layout())
    assert none.names == ("progress",)


def test_a_run_without_losses_shows_none():
    empty = reading(trajectory=Trajectory.empty(2))
    for name in ("loss_slope", "loss_curvature", "loss_ema_deviation"):
        assert observe([name], empty).tolist() == [[0.0], [0.0]]


def groups_of_features(names):
    return groups_read([FEATURES[name] for name in names], MEASUREMENTS)


def test_features_name_what_the_plant_must_measure():
    # Cells are as many as a panel has, so no feature reads what is measured of each.
    of_runs = [own for own in MEASUREMENTS if own.per != "cell"]
    assert groups_of_features(FEATURES) == set(groups_of(of_runs)) - {"same_batch"}
    free = ["progress", "train_loss", "gradient_norm", "layer_gradient_norm", "registers"]
    assert groups_of_features(free) == set()
    some = ["layer_saturation", "probe_loss"]
    assert groups_of_features(some) == {"activations", "probe"}
