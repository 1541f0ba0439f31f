import math

import numpy as np
import pytest

from hpenv.env import TrainLoopVectorEnv
from hpenv.rewards import REWARD_TERMS, check_weights, reward_terms
from tests.fake_plant import FakePlant
from tests.test_telemetry import EXTREMES, reading, window


def test_every_term_by_hand():
    terms = reward_terms(reading())
    assert terms.keys() == REWARD_TERMS.keys() == {"progress", "gradient_norm", "smoothness", "divergence"}
    assert terms["progress"] == pytest.approx([1.0, 0.5])
    assert terms["gradient_norm"] == pytest.approx([-1.0, -0.01])
    assert terms["smoothness"] == pytest.approx([0.0, -0.5])  # the first decision jumps from nowhere
    assert terms["divergence"] == pytest.approx([0.0, 0.0])


def test_a_diverged_run_pays_back_what_it_earned_and_one():
    terms = reward_terms(reading(window=window(divergence=np.array([0, 2]))))
    assert terms["progress"] == pytest.approx([1.0, 3.5 - 4.0])
    assert terms["divergence"] == pytest.approx([0.0, -1.0])


@pytest.mark.parametrize("name", REWARD_TERMS)
@pytest.mark.parametrize("value", [v for v in EXTREMES if v < 1e300])
def test_terms_are_finite_whatever_the_run_does(name, value):
    extreme = reading(
        window=window(probe_loss=np.full(2, value), gradient_norm=np.full(2, value), divergence=np.array([1, 0])),
        positions=np.array([[1.0, -1.0], [-1.0, 1.0]]),
        previous_positions=np.array([[-1.0, 1.0], [1.0, -1.0]]),
    )
    assert np.isfinite(reward_terms(extreme)[name]).all()


def episode(reward, actions=None):
    env = TrainLoopVectorEnv(FakePlant(2), reward=reward, interval=10, horizon=23, autoreset_mode="DISABLED")
    env.reset(seed=3)
    steps = [env.step(np.full((2, 2), action)) for action in actions or (0.5, -0.25, 0.0)]
    return np.array([step[1] for step in steps]), [step[4]["reward_terms"] for step in steps]


@pytest.mark.parametrize("name", REWARD_TERMS)
def test_weight_zero_changes_nothing_and_every_term_is_reported_unweighted(name):
    rewards, terms = episode({"progress": 1.0})
    again, reported = episode({"progress": 1.0, name: 1.0 if name == "progress" else 0.0})
    assert np.array_equal(rewards, again)
    for left, right in zip(terms, reported, strict=True):
        assert np.array_equal(left[name], right[name])
        assert set(left) == {key for term in REWARD_TERMS for key in (term, f"_{term}")}


@pytest.mark.parametrize("name", REWARD_TERMS)
def test_the_reward_is_the_weighted_sum_of_the_terms(name):
    rewards, terms = episode({"progress": 0.5, name: 2.0})
    weights = {"progress": 0.5} | {name: 2.0}
    expected = [sum(weight * term[key] for key, weight in weights.items()) for term in terms]
    assert rewards == pytest.approx(np.array(expected), rel=1e-12)


def test_smoothness_is_zero_at_the_first_decision_and_then_the_squared_change():
    _, terms = episode({"smoothness": 1.0}, (0.5, -0.25, 0.0))
    assert [term["smoothness"].tolist() for term in terms] == [[0.0] * 2, [-2 * 0.75**2] * 2, [-2 * 0.25**2] * 2]


@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf, "much", None])
def test_weights_that_are_not_finite_and_not_negative_are_refused(weight):
    with pytest.raises(ValueError, match=rf"weight {weight!r} of reward term 'smoothness' must be finite"):
        check_weights({"smoothness": weight})


def test_unknown_terms_are_refused_by_name():
    with pytest.raises(ValueError, match=r"unknown reward term 'progess'; expected some of \['divergence', "):
        check_weights({"progess": 1.0})
