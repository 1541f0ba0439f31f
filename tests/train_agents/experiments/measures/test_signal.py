"""Credits and signal of dials, by hand."""

import numpy as np
import pytest

from agents.credits import CreditStream
from agents.sidecar_config import SidecarConfig
from tests.train_agents.experiments.made_up_results import TINY_SIDECAR
from train_agents.experiments.measures.signal import (
    CREDITS,
    ESTIMATED,
    Credit,
    credits_of,
    effect_size,
    measure_signal,
    steps_to_know,
)


def test_credits_and_signal_by_hand():
    terms = {"loss_change": np.array([[1.0, 2.0], [3.0, 5.0], [7.0, 11.0]])}
    np.testing.assert_array_equal(
        credits_of(terms, Credit("loss_change", 1, 1), False), [[3.0, 5.0], [7.0, 11.0]]
    )
    np.testing.assert_array_equal(
        credits_of(terms, Credit("loss_change", 1, 2), False), [[10.0, 16.0]]
    )
    np.testing.assert_array_equal(
        credits_of(terms, Credit("loss_change", 0, 2), True), [[4.0, 7.0], [10.0, 16.0]]
    )
    # Means 2 and 0, variances 2 and 8 over 2 batches: mean of 4 - 1 and 0 - 4 is negative.
    assert effect_size(np.array([[1.0, 2.0], [3.0, -2.0]])) == (
        0.0,
        pytest.approx(np.sqrt((1.0 + 4.0) / 2)),
    )
    assert effect_size(np.array([[3.0], [5.0]])) == (
        pytest.approx(np.sqrt(16.0 - 1.0)),
        pytest.approx(1.0),
    )
    assert steps_to_know(0.5, 10.0) == 1600.0
    with pytest.raises(ValueError, match="at least 2 batches"):
        effect_size(np.array([[3.0, 5.0]]))


@pytest.mark.parametrize("immediate", [False, True])
@pytest.mark.parametrize(("delay", "horizon"), [(0, 1), (0, 2), (1, 1), (1, 3)])
def test_credits_are_those_that_the_agent_learns_from(delay, horizon, immediate):
    rewards = np.random.default_rng(3).normal(size=(7, 2))
    stream = CreditStream(2, [immediate], SidecarConfig(delay=delay, horizon=horizon))
    alive = np.ones(2, dtype=bool)
    learned = [
        found.credits[:, 0] for row in rewards if (found := stream.push(row, alive)) is not None
    ]
    ours = credits_of({"loss_change": rewards}, Credit("loss_change", delay, horizon), immediate)
    np.testing.assert_allclose(ours, learned, rtol=1e-12)


def test_a_dial_that_moves_nothing_has_no_effect_and_a_rate_has_one():
    arguments = TINY_SIDECAR.env_arguments(
        preset="nano", num_steps=60, channels=[["lr", "layer"], ["dropout", "layer"]]
    )
    sizes = {"states": (6,), "layers": (1,), "num_batches": 4, "num_noise_steps": 4}
    rows, _ = measure_signal(
        "TrainLoop-Cell-v0", arguments, 5, sigma={"scale": 0.5, "skip": 0.05}, **sizes
    )
    found = {(row["channel"], row["reward"]): row for row in rows}
    for reward in (*CREDITS, ESTIMATED):
        row = found["dropout", reward]
        assert (
            row["effect"] == row["standard_error"] == 0.0
            and row["snr"] is row["steps_to_know"] is None
        )
    told = found["lr", "same-batch loss change"]
    assert (
        told["effect"] > 2.0 * told["standard_error"]
        and told["snr"] == told["effect"] / told["noise"]
    )
    assert all(row["cells"] == 1 for row in rows)
    # The estimate has no noise where it is 0.
    assert all(row["noise"] > 0.0 for key, row in found.items() if key != ("dropout", ESTIMATED))
    assert found["lr", ESTIMATED]["noise"] < found["lr", "probe loss change"]["noise"]
    # Rows on the same batches share what a batch does to the loss.
    alone, together = (
        found["lr", name] for name in ("next-step loss change", "the same, less other rows'")
    )
    assert together["effect"] == alone["effect"] and together["noise"] < alone["noise"]
    with pytest.raises(
        ValueError,
        match=r"states must be ascending with 21 steps after each, in 60 steps; got \[50\]",
    ):
        measure_signal("TrainLoop-Cell-v0", arguments, 5, sigma={}, **(sizes | {"states": (50,)}))
