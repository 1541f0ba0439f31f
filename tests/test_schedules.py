"""Base schedules: each is its closed form at every step, whatever shape the steps come in."""

import math
import pickle

import numpy as np
import pytest

from hpenv.schedules import (
    Constant,
    Cosine,
    LinearDecay,
    PiecewiseConstant,
    WarmupFlatWarmdown,
    check_schedule,
    described,
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
    """nanochat's get_lr_multiplier, but for its warmup and warmdown not being exclusive branches."""
    down = 1.0 if t <= num_steps - warmdown else max(0.0, (num_steps - t) / warmdown)
    return ramp(t, warmup) * (final + (1 - final) * down)


def linear(t, num_steps):
    return max(0.0, (num_steps - t) / num_steps)


FORMULAS = {
    "constant": (Constant(), lambda t: 1.0),
    "constant, warmup": (Constant(7), lambda t: ramp(t, 7)),
    "cosine": (Cosine(100), lambda t: cosine(t, 100)),
    "cosine, warmup, tenth": (Cosine(100, 10, 0.1), lambda t: cosine(t, 100, 10, 0.1)),
    "warmdown": (WarmupFlatWarmdown(100), lambda t: trapezoid(t, 100, 0, 40)),
    "warmdown of a length that is rounded": (WarmupFlatWarmdown(107), lambda t: trapezoid(t, 107, 0, 43)),
    "warmup, warmdown, tenth": (WarmupFlatWarmdown(100, 5, 0.2, 0.1), lambda t: trapezoid(t, 100, 5, 20, 0.1)),
    "warmup that meets the warmdown": (WarmupFlatWarmdown(100, 60, 0.6), lambda t: trapezoid(t, 100, 60, 60)),
    "no warmdown": (WarmupFlatWarmdown(100, 3, 0.0), lambda t: ramp(t, 3)),
    "linear": (LinearDecay(100), lambda t: linear(t, 100)),
    "pieces": (PiecewiseConstant((2.0, 0.5, 3.0), 40), lambda t: (2.0, 0.5, 3.0)[min(t // 40, 2)]),
    "pieces of a base": (
        PiecewiseConstant((2.0, 0.5), 50, Cosine(100, 10)),
        lambda t: (2.0, 0.5)[min(t // 50, 1)] * cosine(t, 100, 10),
    ),
}


@pytest.fixture(params=FORMULAS)
def pair(request):
    return FORMULAS[request.param]


@pytest.mark.parametrize(
    "schedule",
    [
        None, "cosine", Cosine, lambda steps: 1.0, lambda steps: np.ones(3), lambda steps: np.full(steps.shape, np.nan),
        lambda steps: -np.ones(steps.shape), lambda steps: steps / 0 if steps[0, 0] else 1 / 0, lambda: 1.0,
    ],
)  # fmt: skip
def test_what_does_not_map_steps_to_multipliers_is_refused(schedule):
    with pytest.raises(ValueError, match=r"^lr=.* must be a Schedule \(see hpenv\.schedules\): what maps an array"):
        check_schedule("lr", schedule)


def test_a_schedule_passes_and_a_function_is_called_by_its_name(pair):
    check_schedule("lr", pair[0])
    check_schedule("lr", ramp_of_ten)
    assert described(ramp_of_ten) == f"{__name__}.ramp_of_ten" and described(Cosine(3)) == repr(Cosine(3))


def ramp_of_ten(steps):
    return np.minimum(1.0, (steps + 1) / 10)


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
    """JEL: 561 steps, 40 %; numbers as nanochat's get_lr_multiplier gives them."""
    values = WarmupFlatWarmdown(561)(np.arange(561))
    assert (values[:338] == 1.0).all() and values[338] < 1.0
    assert values[[350, 400, 450, 500, 550]] == pytest.approx([0.942, 0.719, 0.496, 0.272, 0.049], abs=5e-4)
    assert values[560] == pytest.approx(1 / 224)


@pytest.mark.parametrize("schedule", [Constant(5), Cosine(20, 5), WarmupFlatWarmdown(20, 5)])
def test_no_step_of_a_warmup_is_wasted_and_the_last_is_full(schedule):
    assert schedule(np.arange(5)) == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


@pytest.mark.parametrize("schedule", [Cosine(20), WarmupFlatWarmdown(20), LinearDecay(20)])
def test_the_last_step_of_a_schedule_that_ends_at_zero_still_moves(schedule):
    assert schedule(19) > 0 and schedule(20) == 0
