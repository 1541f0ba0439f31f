"""Criteria of the hypotheses at their borders."""

import numpy as np
import pytest

from tests.train_agents.experiments.short_arms import arm, curves, sampled
from train_agents.experiments.projection_arms import MAIN, MAIN_REBOUND, VANILLA
from train_agents.experiments.projection_claims import answer, h1, h3, h4, plateau
from train_agents.experiments.projection_run import pay


def test_pay_is_passes_of_the_probe_less_flags():
    row = {
        "probe_pass": [0.9, 0.5, 0.7],
        "means": {"flagged": [0.1, 0.3]},
        "divergence_reason": None,
    }
    assert pay(row) == pytest.approx((0.4 + 0.4) / 2)
    assert pay(row | {"divergence_reason": "kl_above_limit"}) == pytest.approx(-0.6)


def noisy(hack, noise, passes=0.3):
    return sampled(**{"hack": hack + np.array([-noise, 0.0, noise]), "pass": np.full(3, passes)})


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [
        (arm(0.2), "supported"),  # 30 points exactly
        (arm(0.2 + 1e-6), "neither"),
        (arm(0.35), "neither"),  # 15 exactly is not below
        (arm(0.35 + 1e-6), "falsified"),
        (arm(0.6), "falsified"),
        (arm(0.1, 0.2), "supported"),  # a drop of 10 exactly
        (arm(0.1, 0.2 - 1e-6), "neither"),
        (arm(0.1, 0.15), "neither"),  # 15 exactly is not more
        (arm(0.1, 0.15 - 1e-6), "falsified"),
        (arm(0.1, 0.9), "supported"),
        (noisy(0.15, 0.7), "falsified"),  # 35 points, SEM 40
    ],
)
def test_h1_at_its_borders(ours, verdict):
    assert h1({VANILLA: arm(0.5), MAIN: ours}).verdict == verdict


def test_h1_says_why_and_what_is_missing():
    found = h1({VANILLA: arm(0.05), MAIN: arm(0.01)})
    assert found.verdict == "falsified" and "below 15 points" in found.evidence
    assert "vanilla hacks 5.0 % of the time" in found.evidence
    assert h1({VANILLA: arm(0.5)}).verdict == "not measured"


@pytest.mark.parametrize(
    ("rebound", "verdict"),
    [
        (arm(0.3), "supported"),
        (arm(0.2), "falsified"),  # matches
        (arm(0.1), "falsified"),  # beats
        (noisy(0.25, 0.0866), "supported"),  # ahead by 5.00, SEM 4.99 or so
        (noisy(0.25, 0.0875), "falsified"),  # SEM 5.05
        (arm(0.0, 0.2), "falsified"),  # at a pass rate 10 points lower
        (arm(0.0, 0.2 - 1e-6), "neither"),  # no longer matched
        (arm(0.9, 0.4), "supported"),
        (arm(0.9, 0.4 + 1e-6), "neither"),  # projection has fewer hacks, and 10 points fewer passes
        (arm(0.1, 0.9), "falsified"),
    ],
)
def test_h3_at_its_borders(rebound, verdict):
    ours = (
        sampled(**{"hack": np.full(3, 0.2), "pass": np.full(3, 0.3)})
        if rebound["hack"].values.std() > 0.05
        else arm(0.2)
    )
    assert h3({MAIN: ours, MAIN_REBOUND: rebound}).verdict == verdict


def test_h3_is_measured_against_the_one_arm_of_rebound_that_was_named_beforehand():
    found = h3({MAIN: arm(0.2), MAIN_REBOUND: arm(0.3), "rebound_additive_5": arm(0.0)})
    assert found.verdict == "supported" and "hacks +10.0 points (SEM 0.0)" in found.evidence
    assert h3({MAIN: arm(0.2), "rebound_additive_5": arm(0.0)}).verdict == "not measured"


@pytest.mark.parametrize(
    ("at_200", "verdict"), [(0.3, "neither"), (0.301, "supported"), (0.299, "falsified")]
)
def test_h4_at_its_border(at_200, verdict):
    assert h4(curves(at_200, at_200)).verdict == verdict


def test_h4_says_where_every_seed_hacks():
    found = h4(curves(0.2, 0.5))
    assert found.verdict == "supported" and "all seeds above 30 % first at: 300" in found.evidence
    assert (
        "1.0 % before the first update (the paper: under 3 %)" in found.evidence
        and "35.0 % at 200 (20.0, 50.0)" in found.evidence
    )
    short = h4(curves(0.9, steps=(0, 50, 100, 150)))
    assert short.verdict == "not measured" and "150 updates" in short.evidence


def test_a_plateau_begins_where_the_curve_stays_high():
    steps = np.array([0, 25, 50, 75, 100, 125])
    assert plateau(steps, np.array([0.0, 0.2, 0.46, 0.4, 0.5, 0.5])) == 100
    assert plateau(steps, np.array([0.0, 0.2, 0.46, 0.45, 0.5, 0.5])) == 50
    assert plateau(steps, np.full(6, 0.3)) == 0


def test_answers_go_by_the_interval():
    assert answer([0.2, 0.1, 0.3]) == "yes" and answer([0.1, -0.1, 0.3]) == "not shown"
    assert (
        answer([-0.2, -0.3, -0.1]) == "no, the reverse"
        and answer([]) == answer([0.2]) == "not measured"
    )
