"""Features without a dimension hardly change with batch, width, depth and vocabulary.

The update-to-weight ratio of the matrices is the number that a law holds on runs that it has not
seen. Muon's update has a norm that its shape fixes, AdamW's nearly so.
"""

import numpy as np
import pytest

from hpenv.envs.jel import make_vector_env

#: Feature -> largest difference of its mean over a run, in units of the observation. One eighth is
#: a factor of ten of the update ratio: 0.0125 is a factor of 1.26.
TOLERANCE = {
    "update_ratio/matrix": 0.0125,
    "update_gain": 0.07,
    "start_distance/matrix": 0.04,
    "loss_exponent": 0.06,
    "gradient_norm_spread": 0.08,
}
CHANGES = {
    "a fourth of the batch": {"batch_tokens": 64},
    "four times the batch": {"batch_tokens": 1024},
    "twice the width": {"preset": "nano-wide"},
    "four times the depth": {"preset": "nano-deep"},
    "twice the vocabulary": {"tokenizer": "bpe:512", "data": "stdlib@1/16"},
    "twice the length": {"sequence_length": 64},
}


def _means(**changes):
    """Returns feature -> its mean over runs and decisions, without the first decision."""
    names = dict.fromkeys(name.partition("/")[0] for name in TOLERANCE)
    sizes = {"preset": "nano", "batch_tokens": 256, "sequence_length": 32, "num_steps": 60}
    arguments = {"base_lr": 1e-2, "schedule": "none", "interval": 20} | sizes | changes
    env = make_vector_env(
        2, observation=("progress", *names), autoreset_mode="DISABLED", **arguments
    )
    env.reset(seed=0)
    still = np.zeros((2, len(env.action_names)), np.float32)
    observations = [env.step(still)[0] for _ in range(env.num_decisions)]
    return dict(zip(env.observation_names, np.mean(observations[1:], axis=(0, 1)), strict=True))


@pytest.fixture(scope="module")
def plain():
    """Mean features of the run that the others differ from, by optimizer."""
    return {"adamw_muon": _means(), "adamw": _means(optimizer="adamw", base_lr=3e-3)}


@pytest.mark.parametrize("change", CHANGES)
def test_features_of_a_run_with_muon_hardly_change(plain, change):
    found = _means(**CHANGES[change])
    differences = {name: abs(found[name] - plain["adamw_muon"][name]) for name in TOLERANCE}
    assert all(differences[name] < limit for name, limit in TOLERANCE.items()), differences


@pytest.mark.parametrize("change", CHANGES)
def test_the_update_ratio_of_a_run_with_adamw_hardly_changes(plain, change):
    found = _means(optimizer="adamw", base_lr=3e-3, **CHANGES[change])
    name = "update_ratio/matrix"
    assert found[name] == pytest.approx(plain["adamw"][name], abs=TOLERANCE[name])


def test_the_update_ratio_shows_the_rate_that_the_others_leave_out(plain):
    found = _means(base_lr=1e-3)
    name = "update_ratio/matrix"
    assert found[name] == pytest.approx(plain["adamw_muon"][name] - 1 / 8, abs=TOLERANCE[name])
