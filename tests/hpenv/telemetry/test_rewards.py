import dataclasses
import math

import numpy as np
import pytest

from hpenv.env import TrainLoopVectorEnv
from hpenv.pretraining.measurements import MEASUREMENTS as OF_PRETRAINING
from hpenv.telemetry.reading import Layout, groups_read
from hpenv.telemetry.rewards import (
    LARGEST_CHANGE,
    REWARD_TERMS,
    check_weights,
    measured_terms,
    reward_terms,
)
from tests.fake_plant import MEASUREMENTS, FakePlant
from tests.hpenv.telemetry.test_telemetry import EXTREMES, reading, trajectory, window


def test_every_term_by_hand():
    terms = reward_terms(REWARD_TERMS, reading())
    assert terms.keys() == REWARD_TERMS.keys()
    assert terms["progress"] == pytest.approx([1.0, 0.5])
    assert terms["loss_change"] == pytest.approx([0.0, 1.0])  # 0 at a run's first decision
    assert terms["same_batch_change"] == pytest.approx([0.5, 0.0])
    assert terms["stability"] == pytest.approx(
        [0.0, -((0.9 / 3.1) ** 2)]
    )  # 4 above the mean 3.1 of 3 and 5
    assert terms["probe_slope"] == pytest.approx([1.0, 0.5])
    assert terms["budget"] == pytest.approx([-0.25, -0.5])
    # The means end at 0.95 * 5.975 + 0.05 * 5, their lowest, and at 0.95 * 3.1 + 0.05 * 4 above
    # their lowest, 3.
    assert terms["late_divergence"] == pytest.approx([0.0, -0.2 * 0.145 / 4.0])
    assert terms["gradient_norm"] == pytest.approx([-1.0, -0.01])
    assert terms["smoothness"] == pytest.approx(
        [0.0, -0.5]
    )  # the first decision jumps from nowhere
    assert terms["divergence"] == pytest.approx([0.0, 0.0])


def test_a_diverged_run_pays_back_what_it_earned_and_one():
    terms = reward_terms(REWARD_TERMS, reading(window=window(divergence=np.array([0, 2]))))
    assert terms["progress"] == pytest.approx([1.0, 3.5 - 4.0])
    assert terms["loss_change"] == pytest.approx([0.0, 0.0])  # it had lost 1, and gets no refund
    assert terms["divergence"] == pytest.approx([0.0, -1.0])


@pytest.mark.parametrize("name", REWARD_TERMS)
@pytest.mark.parametrize("value", [v for v in EXTREMES if v < 1e300])
def test_terms_are_finite_whatever_the_run_does(name, value):
    losses = ((value, value / 2, value), (0.0, value, 0.0))
    extreme = reading(
        window=window(
            **dict.fromkeys(
                ("train_loss", "probe_loss", "gradient_norm", "same_batch_loss"), np.full(2, value)
            ),
            divergence=np.array([1, 0]),
        ),
        trajectory=trajectory(losses, losses),
        previous_train_loss=np.array([0.0, value]),
        positions=np.array([[1.0, -1.0], [-1.0, 1.0]]),
        previous_positions=np.array([[-1.0, 1.0], [1.0, -1.0]]),
    )
    assert np.isfinite(reward_terms([name], extreme)[name]).all()


RELATIVE = ("stability", "budget", "late_divergence", "divergence")


@pytest.mark.parametrize("name", ["loss_change", "same_batch_change", "probe_slope", *RELATIVE])
@pytest.mark.parametrize("value", EXTREMES)
def test_terms_are_bounded_whatever_the_run_does(name, value):
    losses = ((value, 0.0, value), (0.0, value, 0.0))
    for left, right in ((value, 0.0), (0.0, value)):
        extreme = reading(
            window=window(train_loss=np.full(2, left), same_batch_loss=np.full(2, right)),
            trajectory=trajectory(losses, losses),
            previous_train_loss=np.full(2, right),
            initial_probe_loss=np.full(2, value),
            progress=np.ones(2),
        )
        values = reward_terms([name], extreme)[name]
        if name in RELATIVE:
            assert (values <= 0.0).all() and (values >= -1.0).all()
        else:
            assert (abs(values) <= LARGEST_CHANGE).all()


def test_a_loss_below_its_mean_is_stable_and_one_that_doubles_is_as_bad_as_can_be():
    for newest, expected in ((2.0, 0.0), (4.0, 0.0), (5.0, -0.0625), (8.0, -1.0), (400.0, -1.0)):
        past = trajectory(((4.0, newest), (4.0, 4.0)))
        assert reward_terms(["stability"], reading(trajectory=past))["stability"] == pytest.approx(
            [expected, 0.0]
        )


def test_a_late_regression_costs_most():
    past = trajectory(((4.0, 8.0), (4.0, 8.0)))  # their means rise from 4 to 4.2
    term = reward_terms(
        ["late_divergence"], reading(trajectory=past, progress=np.array([0.1, 0.9]))
    )["late_divergence"]
    assert term == pytest.approx([-0.1 * 0.2 / 5.0, -0.9 * 0.2 / 4.0])


def test_only_cells_that_scale_or_shrink_have_a_budget():
    layout = Layout(("a", "b", "c"), ("scale", "clip", "skip"))
    positions = np.array([[0.5, 1.0, 1.0], [0.0, 1.0, -1.0]])
    assert reward_terms(["budget"], reading(positions=positions, layout=layout))[
        "budget"
    ].tolist() == [-0.25, 0.0]
    none = reading(positions=positions[:, 1:], layout=Layout(("b", "c"), ("clip", "skip")))
    assert reward_terms(["budget"], none)["budget"].tolist() == [0.0, 0.0]


def test_terms_name_what_the_plant_must_measure():
    assert groups_read(REWARD_TERMS.values(), MEASUREMENTS) == {"probe", "same_batch"}
    some = [REWARD_TERMS[name] for name in ("same_batch_change", "stability")]
    assert groups_read(some, MEASUREMENTS) == {"same_batch"}
    grouped = {"progress", "probe_slope", "same_batch_change", "probe_pass"}
    assert set(REWARD_TERMS) - set(measured_terms(MEASUREMENTS, ())) == grouped
    assert set(REWARD_TERMS) - set(measured_terms(OF_PRETRAINING)) == {
        "probe_pass",
        "flagged_hacks",
    }
    assert set(measured_terms(MEASUREMENTS, ["probe", "same_batch"])) == set(REWARD_TERMS)


def test_a_term_of_a_gauge_that_the_plant_lacks_is_refused():
    with pytest.raises(
        ValueError, match=r"reward term 'flagged_hacks' reads what this plant does not measure"
    ):
        check_weights({"flagged_hacks": 1.0}, OF_PRETRAINING)


def test_an_update_is_answered_after_the_delay_that_the_term_states():
    """One decision of the two differs.

    The terms answer at that decision or at the next, as they say.
    """
    names = [
        name
        for name, term in REWARD_TERMS.items()
        if name not in ("gradient_norm", "divergence", "smoothness")
    ]
    rewards = []
    for position in (0.0, 0.5):
        plant = FakePlant(1, before_update=True)
        env = TrainLoopVectorEnv(plant, reward=dict.fromkeys(names, 1.0), interval=1, num_steps=23)
        env.reset(seed=0)
        env.step(np.zeros((1, 2)))
        rewards.append([terms_of(env.step(np.array([[u, 0.0]]))[4]) for u in (position, 0.0)])
    for name in names:
        same = [
            np.array_equal(left[name], right[name]) for left, right in zip(*rewards, strict=True)
        ]
        if name not in ("stability", "late_divergence"):  # a loss that falls answers with zero
            assert same.index(False) == REWARD_TERMS[name].delay, name


def terms_of(infos):
    prefix = "reward_terms/"
    return {
        key.removeprefix(prefix): value for key, value in infos.items() if key.startswith(prefix)
    }


def episode(reward, actions=None):
    env = TrainLoopVectorEnv(
        FakePlant(2), reward=reward, interval=10, num_steps=23, autoreset_mode="DISABLED"
    )
    env.reset(seed=3)
    steps = [env.step(np.full((2, 2), action)) for action in actions or (0.5, -0.25, 0.0)]
    return np.array([step[1] for step in steps]), [terms_of(step[4]) for step in steps]


@pytest.mark.parametrize("name", REWARD_TERMS)
def test_weight_zero_changes_nothing_and_every_term_is_reported_unweighted(name):
    rewards, terms = episode({"progress": 1.0})
    again, reported = episode({"progress": 1.0, name: 1.0 if name == "progress" else 0.0})
    assert np.array_equal(rewards, again)
    for left, right in zip(terms, reported, strict=True):
        assert all(np.array_equal(left[key], right[key]) for key in left)
        measured = measured_terms(MEASUREMENTS, {"probe"})
        assert set(left) == set(measured) <= set(right)


@pytest.mark.parametrize("name", REWARD_TERMS)
def test_the_reward_is_the_weighted_sum_of_the_terms(name):
    rewards, terms = episode({"progress": 0.5, name: 2.0})
    weights = {"progress": 0.5} | {name: 2.0}
    expected = [sum(weight * term[key] for key, weight in weights.items()) for term in terms]
    assert rewards == pytest.approx(np.array(expected), rel=1e-12)


def test_smoothness_is_zero_at_the_first_decision_and_then_the_squared_change():
    _, terms = episode({"smoothness": 1.0}, (0.5, -0.25, 0.0))
    assert [term["smoothness"].tolist() for term in terms] == [
        [0.0] * 2,
        [-2 * 0.75**2] * 2,
        [-2 * 0.25**2] * 2,
    ]


@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf, "much", None])
def test_weights_that_are_not_finite_and_not_negative_are_refused(weight):
    with pytest.raises(
        ValueError,
        match=rf"weight of reward term 'smoothness' must be a number, .*; got {weight!r}",
    ):
        check_weights({"smoothness": weight}, OF_PRETRAINING)


def test_unknown_terms_are_refused_by_name():
    with pytest.raises(
        ValueError,
        match=r"unknown reward term 'progess'; expected some of \['budget', 'divergence', ",
    ):
        check_weights({"progess": 1.0}, OF_PRETRAINING)


@pytest.mark.parametrize("term", ["progress", "loss_change"])
@pytest.mark.parametrize("before", [1.0, 3.9, 4.1, 50.0])
def test_a_divergence_never_pays(term, before):
    seen = reading(
        window=window(divergence=np.array([3, 3])), previous_probe_loss=np.full(2, before)
    )
    seen = dataclasses.replace(
        seen, previous_train_loss=np.full(2, before), first=np.zeros(2, dtype=bool)
    )
    assert (reward_terms(REWARD_TERMS, seen)[term] <= 0.0).all()


def test_numbers_of_numpy_are_weights():
    check_weights({"smoothness": np.float32(0.5), "progress": np.int64(1)}, OF_PRETRAINING)
