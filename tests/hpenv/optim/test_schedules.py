"""Base schedules: each is its closed form at every step, whatever shape the steps come in."""

import dataclasses
import json
import math
import pickle

import numpy as np
import pytest

from hpenv.optim.schedules import (
    SCHEDULES,
    Constant,
    Cosine,
    LinearDecay,
    LogLinear,
    PiecewiseConstant,
    PowerDecay,
    SqrtCooldown,
    WarmupFlatWarmdown,
    check_schedule,
    setting_description,
)

STEPS = np.arange(130)  # past the end of every schedule below


def ramp(t, warmup):
    return min(1.0, (t + 1) / warmup) if warmup else 1.0


def cosine(t, num_steps, warmup=0, final=0.0):
    if t < warmup:
        return (t + 1) / warmup
    if t >= num_steps:
        return final
    return final + (1 - final) * math.cos(math.pi / 2 * (t - warmup) / (num_steps - warmup)) ** 2


def trapezoid(t, num_steps, warmup, warmdown, final=0.0):
    """nanochat's get_lr_multiplier, but its warmup and warmdown are not exclusive branches."""
    down = 1.0 if t <= num_steps - warmdown else max(0.0, (num_steps - t) / warmdown)
    return ramp(t, warmup) * (final + (1 - final) * down)


def cooled(t, num_steps, cooldown):
    """Fraction of a cooldown that has passed."""
    return min(1.0, max(0.0, (t - (num_steps - cooldown)) / cooldown)) if cooldown else 0.0


def sqrt_cooldown(t, num_steps, warmup, cooldown):
    return ramp(t, warmup) * (1 - math.sqrt(cooled(t, num_steps, cooldown)))


def power(t, num_steps, warmup, flat, cooldown, exponent=0.51):
    """The law between warmup and cooldown, which are straight lines from and to its ends."""

    def law(n):
        return min(1.0, (n / flat) ** -exponent)

    if t < warmup:
        return (t + 1) / warmup * law(warmup)
    last = max(warmup, num_steps - cooldown)
    return law(max(1, min(t + 1, last))) * (1 - cooled(t, num_steps, cooldown))


def linear(t, num_steps):
    return max(0.0, (num_steps - t) / num_steps)


def log_line(t, num_steps, values):
    """Between its neighbors, a value is their geometric mean, weighted by the distances."""
    place = min(t, num_steps - 1) * (len(values) - 1) / (num_steps - 1)
    left = min(int(place), len(values) - 2)
    right = place - left
    return values[left] ** (1 - right) * values[left + 1] ** right


FORMULAS = {
    "constant": (Constant(), lambda t: 1.0),
    "constant, warmup": (Constant(7), lambda t: ramp(t, 7)),
    "cosine": (Cosine(100), lambda t: cosine(t, 100)),
    "cosine, warmup, tenth": (Cosine(100, 10, 0.1), lambda t: cosine(t, 100, 10, 0.1)),
    "warmdown": (WarmupFlatWarmdown(100), lambda t: trapezoid(t, 100, 0, 40)),
    "warmdown of a length that is rounded": (
        WarmupFlatWarmdown(107),
        lambda t: trapezoid(t, 107, 0, 43),
    ),
    "warmup, warmdown, tenth": (
        WarmupFlatWarmdown(100, 5, 0.2, 0.1),
        lambda t: trapezoid(t, 100, 5, 20, 0.1),
    ),
    "warmup that meets the warmdown": (
        WarmupFlatWarmdown(100, 60, 0.6),
        lambda t: trapezoid(t, 100, 60, 60),
    ),
    "no warmdown": (WarmupFlatWarmdown(100, 3, 0.0), lambda t: ramp(t, 3)),
    "linear": (LinearDecay(100), lambda t: linear(t, 100)),
    "sqrt cooldown": (SqrtCooldown(100), lambda t: sqrt_cooldown(t, 100, 0, 20)),
    "sqrt cooldown, warmup": (
        SqrtCooldown(107, 5, 0.35),
        lambda t: sqrt_cooldown(t, 107, 5, 37),
    ),
    "no cooldown": (SqrtCooldown(100, 3, 0.0), lambda t: ramp(t, 3)),
    "power": (PowerDecay(100, 5, 20), lambda t: power(t, 100, 5, 20, 10)),
    "power that the warmup ends in": (
        PowerDecay(100, 10, 4, 0.7, 0.0),
        lambda t: power(t, 100, 10, 4, 0, 0.7),
    ),
    "power from the first step": (
        PowerDecay(100, 0, 1, 1.0, 0.3),
        lambda t: power(t, 100, 0, 1, 30, 1.0),
    ),
    "pieces": (PiecewiseConstant((2.0, 0.5, 3.0), 40), lambda t: (2.0, 0.5, 3.0)[min(t // 40, 2)]),
    "pieces of a base": (
        PiecewiseConstant((2.0, 0.5), 50, Cosine(100, 10)),
        lambda t: (2.0, 0.5)[min(t // 50, 1)] * cosine(t, 100, 10),
    ),
    "four knots": (
        LogLinear((1.0, 8.0, 8.0, 0.001), 100),
        lambda t: log_line(t, 100, (1.0, 8.0, 8.0, 0.001)),
    ),
    "knots between steps": (
        LogLinear((3.0, 0.5, 0.7), 107),
        lambda t: log_line(t, 107, (3.0, 0.5, 0.7)),
    ),
    "one knot": (LogLinear((0.3,), 100), lambda t: 0.3),
    "knots of one step": (LogLinear((0.3, 0.1), 1), lambda t: 0.1 if t else 0.3),
}


@pytest.fixture(params=FORMULAS)
def pair(request):
    return FORMULAS[request.param]


@pytest.mark.parametrize(
    "schedule", [None, "cosine", Cosine, lambda steps: np.ones(steps.shape), {"name": "cosine"}]
)
def test_a_plant_takes_schedules_of_this_module_alone(schedule):
    with pytest.raises(
        ValueError,
        match=r"^lr must be a schedule of hpenv\.optim\.schedules; got .*tabulate\(function, ",
    ):
        check_schedule("lr", schedule)


def test_every_schedule_is_in_the_table_under_its_own_name(pair):
    schedule = pair[0]
    check_schedule("lr", schedule)
    assert (
        type(schedule) is SCHEDULES[schedule.name]
        and dataclasses.asdict(schedule)["name"] == schedule.name
    )
    assert (
        len({id(kind) for kind in SCHEDULES.values()}) == len(SCHEDULES) - 1
    )  # `none` is `constant`


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: Constant(-1),
            "warmup_steps of Constant must be a whole number of at least 0; got -1",
        ),
        (
            lambda: Constant(2.0),
            "warmup_steps of Constant must be a whole number of at least 0; got 2.0",
        ),
        (lambda: Cosine(-12), "num_steps of Cosine must be a whole number of at least 1; got -12"),
        (lambda: Cosine(0), "num_steps of Cosine must be a whole number of at least 1; got 0"),
        (
            lambda: Cosine(True),
            "num_steps of Cosine must be a whole number of at least 1; got True",
        ),
        (
            lambda: Cosine("12"),
            "num_steps of Cosine must be a whole number of at least 1; got '12'",
        ),
        (lambda: Cosine(12, 13), "warmup_steps of Cosine must be at most num_steps=12; got 13"),
        (
            lambda: Cosine(12, 0, -0.5),
            "final_fraction of Cosine must be finite and not negative; got -0.5",
        ),
        (
            lambda: Cosine(12, 0, math.nan),
            "final_fraction of Cosine must be finite and not negative; got nan",
        ),
        (
            lambda: WarmupFlatWarmdown(-3),
            "num_steps of WarmupFlatWarmdown must be a whole number of at least 1",
        ),
        (
            lambda: WarmupFlatWarmdown(9, 10),
            "warmup_steps of WarmupFlatWarmdown must be at most num_steps=9; got 10",
        ),
        (
            lambda: WarmupFlatWarmdown(9, 0, 1.5),
            "warmdown_fraction of .* must be a number from 0 to 1; got 1.5",
        ),
        (
            lambda: WarmupFlatWarmdown(9, 0, 0.4, math.inf),
            "final_fraction of .* must be finite and not negative",
        ),
        (
            lambda: LinearDecay(0),
            "num_steps of LinearDecay must be a whole number of at least 1; got 0",
        ),
        (
            lambda: SqrtCooldown(9, 0, 1.5),
            "cooldown_fraction of SqrtCooldown must be a number from 0 to 1; got 1.5",
        ),
        (
            lambda: PowerDecay(9, 0, 0),
            "flat_steps of PowerDecay must be a whole number of at least 1; got 0",
        ),
        (
            lambda: PowerDecay(9, 0, 1, -0.5),
            "exponent of PowerDecay must be finite and not negative; got -0.5",
        ),
        (
            lambda: PiecewiseConstant((), 1),
            r"values of PiecewiseConstant must be numbers, at least one; got \(\)",
        ),
        (
            lambda: PiecewiseConstant("12", 1),
            "values of PiecewiseConstant must be numbers, at least one; got '12'",
        ),
        (
            lambda: PiecewiseConstant((1.0, -2.0), 1),
            "must be finite and not negative; got -2.0 at place 1",
        ),
        (
            lambda: PiecewiseConstant((1.0, math.nan), 1),
            "must be finite and not negative; got nan at place 1",
        ),
        (
            lambda: PiecewiseConstant((1.0,), 0),
            "interval of PiecewiseConstant must be a whole number of at least 1",
        ),
        (
            lambda: PiecewiseConstant((1.0,), 1, None),
            "base of PiecewiseConstant must be a schedule of hpenv.optim.schedules",
        ),
        (
            lambda: LogLinear((1.0, 0.0), 9),
            "values of LogLinear must be finite and above 0; got 0.0 at place 1",
        ),
        (
            lambda: LogLinear((1.0, math.inf), 9),
            "values of LogLinear must be finite and above 0; got inf at place 1",
        ),
        (
            lambda: LogLinear((1.0,), 0),
            "num_steps of LogLinear must be a whole number of at least 1; got 0",
        ),
    ],
)
def test_parameters_that_are_impossible_are_refused_by_name(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_numbers_of_numpy_make_the_same_schedule_as_those_of_python():
    for ours, theirs in (
        (Cosine(np.int64(20), np.int32(5), np.float64(0.5)), Cosine(20, 5, 0.5)),
        (
            WarmupFlatWarmdown(np.int64(20), warmdown_fraction=np.array(0.25)),
            WarmupFlatWarmdown(20, 0, 0.25),
        ),
        (PiecewiseConstant(np.array([1.0, 0.5]), np.int8(3)), PiecewiseConstant((1.0, 0.5), 3)),
        (PiecewiseConstant([1, np.float32(0.5)], 3), PiecewiseConstant((1, 0.5), 3)),
    ):
        assert (
            ours == theirs
            and setting_description(ours) == setting_description(theirs)
            and "np." not in repr(ours)
        )
        json.dumps(dataclasses.asdict(ours))


def test_a_schedule_is_described_by_its_parameters_and_a_long_one_by_their_digest():
    assert setting_description({"matrix": Cosine(3), "embedding": (1, 2.0)}) == {
        "matrix": repr(Cosine(3)),
        "embedding": [1, 2.0],
    }
    long, same, other = (PiecewiseConstant((1.0,) * 999 + (end,), 1) for end in (0.5, 0.5, 0.25))
    assert (
        setting_description(long) == setting_description(same) != setting_description(other)
        and len(setting_description(long)) < 100
    )


def test_a_schedule_is_its_closed_form_at_every_step(pair):
    schedule, formula = pair
    values = schedule(STEPS)
    assert values.dtype == np.float64
    assert values == pytest.approx([formula(int(t)) for t in STEPS], rel=1e-12, abs=1e-15)


def test_a_schedule_does_not_care_for_the_shape_of_its_steps(pair):
    schedule, _ = pair
    values = schedule(STEPS)
    assert np.array_equal(schedule(STEPS.reshape(2, 5, 13)), values.reshape(2, 5, 13))
    for t in (0, 41, 129):
        assert np.shape(schedule(np.int64(t))) == ()
        assert float(schedule(np.int64(t))) == float(schedule(t)) == values[t]
    assert schedule(STEPS[:0]).shape == (0,)


def test_a_schedule_is_never_negative_and_survives_pickling(pair):
    schedule, _ = pair
    assert (schedule(STEPS) >= 0).all()
    assert pickle.loads(pickle.dumps(schedule)) == schedule


def test_the_papers_warmdown_is_224_steps_that_end_above_zero():
    """Of 561 steps, 40 %, as nanochat's get_lr_multiplier gives them."""
    values = WarmupFlatWarmdown(561)(np.arange(561))
    assert (values[:338] == 1.0).all() and values[338] < 1.0
    assert values[[350, 400, 450, 500, 550]] == pytest.approx(
        [0.942, 0.719, 0.496, 0.272, 0.049], abs=5e-4
    )
    assert values[560] == pytest.approx(1 / 224)


@pytest.mark.parametrize(
    "schedule",
    [Constant(5), Cosine(20, 5), WarmupFlatWarmdown(20, 5), SqrtCooldown(20, 5), PowerDecay(20, 5)],
)
def test_no_step_of_a_warmup_is_wasted_and_the_last_is_full(schedule):
    assert schedule(np.arange(5)) == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


@pytest.mark.parametrize(
    "schedule",
    [Cosine(20), WarmupFlatWarmdown(20), LinearDecay(20), SqrtCooldown(20), PowerDecay(20)],
)
def test_the_last_step_of_a_schedule_that_ends_at_zero_still_moves(schedule):
    assert schedule(19) > 0 and schedule(20) == 0


def test_the_cooldown_of_haegele_et_al_by_hand():
    """4 steps of cooldown: 1 - sqrt of 0, 1/4, 1/2 and 3/4."""
    values = SqrtCooldown(20)(np.arange(15, 21))
    assert values == pytest.approx([1.0, 1.0, 0.5, 1 - 0.5**0.5, 1 - 0.75**0.5, 0.0])


def test_a_power_decay_does_not_depend_on_the_length_of_the_run_until_its_cooldown():
    short, long = PowerDecay(100, 5, 10), PowerDecay(1000, 5, 10)
    assert np.array_equal(short(np.arange(90)), long(np.arange(90)))
    assert short(39) == pytest.approx(4**-0.51)
