"""Arguments that cannot be run are refused by name."""

import math

import pytest

from hpenv.posttraining.config import GRPOConfig
from hpenv.posttraining.splits import Curriculum
from tests.tiny_student import make, student

# What cannot be run


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_samples": 1}, "num_samples must be at least 2, .* got 1"),
        ({"num_prompts": 0}, "num_prompts must be .*; got 0"),
        ({"num_prompts": 9}, "need at least 9 train problems; got 8"),
        ({"rule": "sideways"}, r"unknown rule 'sideways'; expected one of \['drift', "),
        ({"direction": "up"}, r"unknown direction 'up'; expected one of \['labelled', 'pairs', "),
        ({"target": "weights"}, r"unknown target 'weights'; expected one of \['grad', 'update'\]"),
        (
            {"advantage_scale": "max"},
            r"unknown advantage_scale 'max'; expected one of \['none', 'std'\]",
        ),
        ({"rebound": "square"}, "unknown rebound 'square'"),
        (
            {"modes": ("run_tests", "zz")},
            r"modes must be a tuple of some of \['equality', .*; got \('run_tests', 'zz'\)",
        ),
        ({"known_modes": ()}, r"known_modes must be a tuple of some of .*; got \(\)"),
        ({"temperature": 0.0}, "temperature must be > 0; got 0"),
        ({"temperature": -1.0}, "temperature must be a finite number >= 0; got -1.0"),
        ({"base_lr": math.inf}, "base_lr must be a finite number >= 0; got inf"),
        ({"noise_floor": 1.0}, r"noise_floor must be in \[0, 1\); got 1.0"),
        ({"num_axes": 2}, "num_axes must be 1 .*; got 2; use direction_method='svd'"),
        (
            {"num_evaluation_problems": 3},
            "num_evaluation_problems must be at least 4, one for each mode; got 3",
        ),
        ({"route": True, "target": "update"}, "target must be 'grad' with route=True, .* 'update'"),
        ({"num_rows": 0}, "num_rows must be a whole number of at least 1; got 0"),
        (
            {"channels": (("weight_decay", "run"),)},
            r"'weight_decay' applies to pretraining alone; expected one of \['direction_refresh'",
        ),
        (
            {"channels": (("projection_strength", "group"),)},
            "'projection_strength' has no scope 'group'",
        ),
    ],
)
def test_what_cannot_be_run_is_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_problems": 10**30}, "num_problems must be at most 1000000; got 10"),
        ({"difficulty": 5}, "difficulty must be at most 4; got 5"),
        ({"modes": None}, r"modes must be a tuple of some of \['equality', .*; got None"),
        (
            {"known_modes": ("run_tests", "zz")},
            r"known_modes must be a tuple of some of \['equality', .*; got \('run_tests', 'zz'\)",
        ),
        ({"rule": []}, r"unknown rule \[\]; expected one of \['drift', "),
        ({"noise_floor": "x"}, "noise_floor must be a finite number >= 0; got 'x'"),
        ({"lr_schedule": 5}, r"lr_schedule must be a schedule of hpenv\.optim\.schedules; got 5"),
        ({"problems": "/nowhere.jsonl"}, "'/nowhere.jsonl' cannot be read"),
    ],
)
def test_arguments_of_other_types_and_sizes_are_refused_by_name(given, message):
    with pytest.raises(ValueError, match=message):
        Curriculum(GRPOConfig(**given), student())
