"""Estimated effects against counterfactuals: numbers by hand, and the case in which they agree."""

import numpy as np
import pytest

from hpenv.lm.data import load_corpus
from train_agents.experiments.measures.horizons import (
    HorizonConfig,
    agreement,
    measure_horizons,
)


def test_agreement_by_hand():
    found = agreement(np.array([1.0, -2.0, 2.0]), np.array([2.0, -4.0, -4.0]))
    assert found["sign"] == pytest.approx(2 / 3)
    assert found["ratio"] == pytest.approx(2.0)  # sqrt(36 / 9)
    assert found["slope"] == pytest.approx((2 + 8 - 8) / 9)
    assert set(agreement(np.zeros(2), np.ones(2)).values()) == {None}


def test_small_moves_of_one_step_have_the_effects_that_were_estimated():
    config = HorizonConfig(
        preset="nano", data="synthetic", base_lr=0.01, batch_tokens=64, sequence_length=16,
        num_probe_batches=4, channels=("lr", "feed_forward_gain"), layers=(0, 1), states=(5,),
        lags=(1, 3), hold=1, move=0.03, num_repeats=2,
    )  # fmt: skip
    rows, extra = measure_horizons(config, load_corpus("synthetic", "bytes"))
    found = {(row["channel"], row["lag"], row["estimate"]): row for row in rows}
    assert len(rows) == 8 and len(extra["pairs"]) == 2 * 2 * 4
    now = found["lr", 1, "early"]
    assert (
        now["slope"] == pytest.approx(1.0, abs=0.1)
        and now["sign"] == 1.0
        and now["correlation"] > 0.98
    )
    assert now["floor"] < 0.2 * now["truth"]
    assert found["lr", 1, "late"] == now | {"estimate": "late"}
    # Later steps undo some of the change, so that no slope is promised there.
    late, early = (found["lr", 3, name] for name in ("late", "early"))
    assert late["truth"] == early["truth"] and late["mean_estimate"] != early["mean_estimate"]
    # The dial has gone back after a step, and its direct effect with it.
    gain = found["feed_forward_gain", 3, "late"]
    assert gain["mean_estimate"] == pytest.approx(0.0, abs=1e-6)
    assert 0 < gain["truth"] < found["feed_forward_gain", 1, "early"]["truth"]


def test_sizes_are_checked():
    with pytest.raises(ValueError, match="move must be in"):
        HorizonConfig(move=0.0)
    with pytest.raises(ValueError, match="must ascend"):
        HorizonConfig(lags=(4, 1))
