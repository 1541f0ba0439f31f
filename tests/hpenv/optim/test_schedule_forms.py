"""Forms of a schedule: name, mapping, object and function give one schedule.

Anything else is refused by name.
"""

import dataclasses
import functools
import json
import math

import numpy as np
import pytest

from hpenv.optim.schedule_forms import schedule_of, schedules_of, tabulate
from hpenv.optim.schedules import (
    SCHEDULES,
    Constant,
    Cosine,
    LinearDecay,
    LogLinear,
    PiecewiseConstant,
    WarmupFlatWarmdown,
)

T = 12


def of(given):
    return schedule_of("schedule", given, T)


def hyperbola(steps, scale=1.0):
    return 1.0 / (1.0 + steps * scale)


class Hyperbola:
    def __call__(self, steps):
        return hyperbola(steps)


@dataclasses.dataclass(frozen=True)
class Scaled:
    scale: float = 1.0

    def __call__(self, steps):
        return hyperbola(steps, self.scale)


class Halved(Cosine):
    def __call__(self, steps):
        return 0.5 * super().__call__(steps)


SAME = {
    "function": hyperbola,
    "lambda": lambda steps: 1.0 / (1.0 + steps),
    "partial": functools.partial(hyperbola, scale=1.0),
    "closure": (lambda scale: lambda steps: hyperbola(steps, scale))(1.0),
    "object": Hyperbola(),
    "dataclass": Scaled(),
}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("none", Constant()),
        ("cosine", Cosine(T)),
        ("warmup_flat_warmdown", WarmupFlatWarmdown(T)),
        ("linear_decay", LinearDecay(T)),
        ({"name": "constant", "warmup_steps": 2}, Constant(2)),
        ({"name": "cosine", "warmup_steps": 2}, Cosine(T, 2)),
        ({"name": "cosine", "num_steps": 8, "final_fraction": np.float64(0.5)}, Cosine(8, 0, 0.5)),
        (
            {"name": "piecewise_constant", "values": [1, 0.5], "interval": 5},
            PiecewiseConstant((1, 0.5), 5),
        ),
        (
            {
                "name": "piecewise_constant",
                "values": [1.0],
                "interval": 5,
                "base": {"name": "cosine"},
            },
            PiecewiseConstant((1.0,), 5, Cosine(T)),
        ),
        ({"name": "log_linear", "values": [1, 0.5]}, LogLinear((1, 0.5), T)),
        (Cosine(8, 2), Cosine(8, 2)),
    ],
    ids=str,
)
def test_every_form_gives_its_schedule_and_that_survives_being_written_as_json(given, expected):
    assert of(given) == expected
    assert of(json.loads(json.dumps(dataclasses.asdict(expected)))) == expected


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_name_needs_no_more_than_a_run_has_or_says_what_it_needs(name):
    if name == "piecewise_constant":
        with pytest.raises(
            ValueError,
            match=r"must include \['values', 'interval'\]; got {'name': 'piecewise_const",
        ):
            of(name)
    elif name == "log_linear":
        with pytest.raises(ValueError, match=r"must include \['values'\]; got {'name': 'log_lin"):
            of(name)
    else:
        assert type(of(name)) is SCHEDULES[name]


@pytest.mark.parametrize("kind", SAME)
def test_functions_that_give_the_same_at_every_step_are_the_same_schedule(kind):
    schedule = of(SAME[kind])
    assert schedule == of(hyperbola) == tabulate(hyperbola, T)
    assert np.array_equal(schedule(np.arange(T)), hyperbola(np.arange(T)))
    assert schedule(np.array([[T + 5]])) == hyperbola(
        T - 1
    )  # a row of another clock may be asked beyond the end
    assert schedule != of(functools.partial(hyperbola, scale=0.5)) and schedule != of(Scaled(0.5))


def test_a_schedule_that_is_derived_from_one_of_ours_is_a_function():
    assert of(Halved(T)) == PiecewiseConstant(tuple((0.5 * Cosine(T)(np.arange(T))).tolist()), 1)


def test_each_group_may_have_a_form_of_its_own():
    given = {"matrix": "cosine", "embedding": {"name": "constant"}, "unembedding": hyperbola}
    expected = {
        "matrix": Cosine(T),
        "embedding": Constant(),
        "unembedding": tabulate(hyperbola, T),
    }
    assert schedules_of("schedule", given, T) == expected
    assert schedules_of("schedule", {"name": "cosine"}, T) == Cosine(T)
    with pytest.raises(ValueError, match=r"unknown schedule\['matrix'\] 'cosin'; expected one of"):
        schedules_of("schedule", {"matrix": "cosin"}, T)


@pytest.mark.parametrize(
    ("bad", "found"),
    [
        (lambda steps: 1.0 - steps / 5.0, "got -0.19.* at step 6, of <function"),
        (lambda steps: np.where(steps == 11, np.nan, 1.0), "got nan at step 11"),
        (lambda steps: np.where(steps > 3, np.inf, 1.0), "got inf at step 4"),
        (lambda steps: -np.ones(steps.shape), "got -1.0 at step 0"),
    ],
)
def test_a_function_is_refused_by_its_first_step_that_is_wrong(bad, found):
    with pytest.raises(
        ValueError,
        match=rf"^schedule must be finite and not negative at every step of the run; {found}",
    ):
        of(bad)


@pytest.mark.parametrize(
    ("bad", "found"),
    [
        (lambda steps: 1.0, r"which made 1.0 of steps of shape \(12, 1\)"),
        (lambda steps: np.ones(3), r"which made an array float64 of shape \(3,\)"),
        (lambda steps: steps > 3, "which made an array bool"),
        (lambda: 1.0, "which raised TypeError: "),
        (lambda steps: 1.0 if steps < 3 else 0.5, "which raised ValueError: .*ambiguous"),
        (lambda steps: np.ones(3)[steps], "which raised IndexError: "),
    ],
)
def test_what_does_not_map_steps_to_multipliers_is_refused_with_what_it_did(bad, found):
    with pytest.raises(
        ValueError, match=rf"^schedule must map an array of steps to an array of as many .*{found}"
    ):
        of(bad)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("cosin", r"unknown schedule 'cosin'; expected one of \['constant', 'cosine', "),
        ({"name": None}, r"unknown schedule None; expected one of \['constant', "),
        (
            {"name": "cosine", "warmup": 3},
            r"parameters of schedule 'cosine' must be some of .*; got \['warmup'\]",
        ),
        (
            {"name": "cosine", "num_steps": -12},
            "schedule: num_steps of Cosine must be .* at least 1; got -12",
        ),
        (
            {"name": "cosine", "warmup_steps": 13},
            "schedule: warmup_steps of Cosine must be at most num_steps=12",
        ),
        (
            {"name": "piecewise_constant", "values": [1], "interval": 1, "base": 3},
            r"schedule\['base'\] must be one of",
        ),
        (5, r"schedule must be one of \['constant', .*; got 5"),
        (None, r"schedule must be one of \['constant', .*; got None"),
        (Cosine, r"schedule must be one of \['constant', .*; got <class"),
        (math.nan, r"schedule must be one of \['constant', .*; got nan"),
        (
            dataclasses.asdict(Scaled(2.0)),
            "got {'scale': 2.0}; a schedule of your own does not survive being written",
        ),
    ],
    ids=str,
)
def test_what_is_no_form_of_a_schedule_is_refused_with_what_is(bad, message):
    with pytest.raises(ValueError, match=message):
        of(bad)
