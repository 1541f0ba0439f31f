"""Prodigy and D-Adaptation against numbers of their packages, and rows against single runs."""

import numpy as np
import pytest
import torch

from hpenv.optim.parameter_free import DAdaptAdamW, Prodigy
from hpenv.optim.rules import Rates
from tests.hpenv.optim.references import DECAYS, NUM_TICKS, SHAPES, STARTS, Rows, draw, rates, same

#: Case -> the rule, steps of warmup, decay, and the rate of the second tensor over the first.
CASES = {
    "prodigy": (Prodigy(), 1, 0.1, 1.0),
    "prodigy, bias correction": (Prodigy(bias_correction=True), 1, 0.1, 1.0),
    "prodigy, warmup": (Prodigy(d_coef=0.5, safeguard_warmup=True), 10, 0.1, 1.0),
    "dadapt": (DAdaptAdamW(), 1, 0.1, 1.0),
    "dadapt, bias correction": (DAdaptAdamW(bias_correction=True), 10, 0.1, 1.0),
    "dadapt, layer scale": (DAdaptAdamW(), 1, 0.0, 0.25),
}
TIMES = (1, 10, 30, 60)
#: Numbers of prodigyopt 1.1.2 and dadaptation 3.2 with torch 2 in float64 on the problem below,
#: after 1, 10, 30 and 60 steps: d, the last weight of the first tensor, and the second of the
#: second. Case -> (4, 3).
PACKAGES = {
    "prodigy": (
        (1e-06, 0.2151231289, -0.2555442387),
        (0.003767991951, 0.2259261798, -0.2663413373),
        (0.3936067256, 1.127666522, -1.1502013),
        (0.3936067256, 1.731637501, -1.764305652),
    ),
    "prodigy, bias correction": (
        (1e-06, 0.2151209813, -0.2555420939),
        (1.702694523e-05, 0.215151885, -0.2555729867),
        (0.05751158124, 0.3279057183, -0.3682561191),
        (0.5708649216, 1.598701135, -1.637029105),
    ),
    "prodigy, warmup": (
        (1e-06, 0.2151203022, -0.2555414157),
        (1.299920215e-05, 0.2151847756, -0.2556058728),
        (0.2823838605, 0.7658662124, -0.7942872546),
        (0.2823838605, 1.857722938, -1.886584762),
    ),
    "dadapt": (
        (1e-06, 0.2151231289, -0.2555442387),
        (0.4955473227, 0.4905654125, -0.529584019),
        (3.434332645, 1.79501016, -1.826121705),
        (3.434332645, 1.939957658, -1.96359331),
    ),
    "dadapt, bias correction": (
        (1e-06, 0.2151200874, -0.2555412012),
        (1.926549189e-05, 0.2151311835, -0.2555522739),
        (0.03797192752, 0.2397802152, -0.2801239258),
        (1.802308807, 1.72736379, -1.761563797),
    ),
    "dadapt, layer scale": (
        (1e-06, 0.2151231504, -0.2555418926),
        (0.4958200537, 0.4967139747, -0.3272851253),
        (3.64465654, 1.644242202, -1.336708976),
        (3.64465654, 1.919911668, -2.412029705),
    ),
}


def wave(shape, phase, number):
    index = np.arange(np.prod(shape)).reshape(shape)
    return torch.tensor(np.sin(1.3 * index + phase + 2.1 * number))[None]


def gradients_of(weights, step):
    """A quadratic around 2 wave(1), with a little noise."""
    return [
        w - 2 * wave(w.shape[1:], 1.0, k) + 0.1 * wave(w.shape[1:], 7.0 * step, k)
        for k, w in enumerate(weights)
    ]


@pytest.mark.parametrize("case", CASES)
def test_a_rule_gives_the_numbers_of_its_package(case):
    rule, warmup, decay, scale = CASES[case]
    weights = [wave(shape, 0.0, k) for k, shape in enumerate([(3, 2), (2, 2)])]
    states = [rule.init(weight) for weight in weights]
    found = []
    for step in range(max(TIMES)):
        lr = min(1.0, (step + 1) / warmup) * torch.tensor([[1.0, scale]], dtype=torch.float64)
        given = Rates.of(lr, torch.full_like(lr, decay))
        rule.update(weights, gradients_of(weights, step), states, given, np.array([step]))
        if step + 1 in TIMES:
            last, second = weights[0][0, 2, 1].item(), weights[1][0, 0, 1].item()
            found.append((states[0]["d"].item(), last, second))
    assert np.array(found) == pytest.approx(np.array(PACKAGES[case]), rel=1e-6)


@pytest.mark.parametrize("rule", [Prodigy(d0=0.02), DAdaptAdamW(d0=0.02)])
def test_a_row_is_the_single_run_and_d_is_one_number_over_all_tensors(rule):
    lrs = rates(1.0, "changing")
    rows = Rows(rule, lrs).run()
    for row in range(3):
        weights = [draw(s, row, 999 - i, torch.float64)[None] for i, s in enumerate(SHAPES)]
        states = [rule.init(weight) for weight in weights]
        for step in range(NUM_TICKS - STARTS[row]):
            given = [draw(s, row, 50 * i + step, torch.float64)[None] for i, s in enumerate(SHAPES)]
            lr, decay = (
                torch.full((1, 1, 1), value, dtype=torch.float64)
                for value in (lrs[row, step], DECAYS[row])
            )
            rule.update(weights, given, states, same([lr] * 2, [decay] * 2), np.array([step]))
        for mine, other in zip(rows.weights, weights, strict=True):
            torch.testing.assert_close(mine[row], other[0], rtol=1e-9, atol=1e-11)
    for slot in ("d", "d_numerator"):
        first, second = (state[slot] for state in rows.states)
        assert torch.equal(first, second)
    assert len(set(rows.states[0]["d"].tolist())) == 3  # every run has its own


@pytest.mark.parametrize("rule", [Prodigy(), DAdaptAdamW()])
def test_a_run_without_a_gradient_stays_where_it_is(rule):
    weight = torch.ones(2, 3, 2)
    state, one = rule.init(weight), torch.ones(2, 1, dtype=torch.float64)
    for step in range(3):
        gradient = torch.stack([torch.zeros(3, 2), torch.ones(3, 2)])
        rule.update([weight], [gradient], [state], Rates.of(one, one), np.full(2, step))
    assert (weight[0] == 1).all() and (weight[1] < 1).all() and state["d"][0] == 1e-6


@pytest.mark.parametrize("rule", [Prodigy(), DAdaptAdamW()])
def test_d_finds_the_scale_of_the_distance_and_never_shrinks(rule):
    """The same quadratic a hundred times as large: d grows in proportion (of a noiseless run)."""
    found = []
    for size in (1.0, 100.0):
        weight, seen = torch.zeros(1, 4, 1, dtype=torch.float64), []
        target = size * torch.tensor([1.0, -1.0, 0.5, 2.0], dtype=torch.float64)[None, :, None]
        state, one = rule.init(weight), torch.ones(1, 1, dtype=torch.float64)
        for step in range(60):
            rates = Rates.of(one, 0 * one)
            rule.update([weight], [weight - target], [state], rates, np.array([step]))
            seen.append(state["d"].item())
        assert seen == sorted(seen)
        found.append(seen[-1])
    assert 0.1 < found[0] < 10 and 10 < found[1] / found[0] < 1000
