"""What an environment refuses, by name."""

import gymnasium as gym
import pytest

from hpenv import branching
from tests.hpenv.closed_form import make


def test_nothing_is_saved_before_the_first_reset():
    with pytest.raises(gym.error.ResetNeeded, match="before the first reset"):
        branching.snapshot(make(1))


def test_nothing_is_evaluated_before_the_first_reset():
    with pytest.raises(gym.error.ResetNeeded, match="nothing to evaluate before the first reset"):
        make(1).evaluate()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"features": ["progress", "speed"]}, r"unknown feature 'speed'; expected some of \['"),
        (
            {"reward": {"progess": 1.0}},
            r"unknown reward term 'progess'; expected some of \['budget', 'divergence'",
        ),
        (
            {"reward": {"smoothness": -1.0}},
            "weight of reward term 'smoothness' must be a number, .*; got -1.0",
        ),
        (
            {"interval": 0},
            r"interval must be a whole number of .*, from 1 to num_steps=23; got 0",
        ),
        (
            {"interval": 24},
            r"interval must be a whole number of .*, from 1 to num_steps=23; got 24",
        ),
        ({"num_registers": -1}, "num_registers must be a whole number of at least 0; got -1"),
        ({"register_leak": 1.0}, "register_leak must be at least 0 and below 1; got 1.0"),
        (
            {"seed_mode": "same"},
            r"unknown seed_mode 'same'; expected one of \['independent', 'grouped'\]",
        ),
        (
            {"render_mode": "human"},
            r"unknown render_mode 'human'; expected None or one of \['rgb_array', 'ansi'\]",
        ),
        ({"max_episode_steps": 0}, "max_episode_steps must be a whole number of at least 1; got 0"),
        ({"mode": ["NEXT_STEP"]}, r"unknown autoreset_mode \['NEXT_STEP'\]; expected one of"),
        (
            {"mode": "LATER"},
            r"unknown autoreset_mode 'LATER'; expected one of \['DISABLED', 'NEXT_STEP', "
            r"'SAME_STEP'\]",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        make(2, **arguments)
