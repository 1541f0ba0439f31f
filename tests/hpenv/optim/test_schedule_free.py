"""Schedule-free optimizers against their package."""

import numpy as np
import pytest
import schedulefree
import torch

from hpenv.optim.schedule_free import ScheduleFreeAdamW, ScheduleFreeSGD
from tests.hpenv.optim.references import EXACT, Rows, assert_twins, rates, reference, same


def package_sgd(rule, warmup_steps=0):
    def make(parameters, weight_decay):
        return schedulefree.SGDScheduleFree(
            parameters,
            momentum=rule.momentum,
            weight_decay=weight_decay,
            weight_lr_power=rule.weight_lr_power,
            warmup_steps=warmup_steps,
        )

    return make


def package_adamw(rule, warmup_steps=0):
    def make(parameters, weight_decay):
        return schedulefree.AdamWScheduleFree(
            parameters,
            betas=(rule.momentum, rule.beta2),
            eps=rule.eps,
            weight_decay=weight_decay,
            weight_lr_power=rule.weight_lr_power,
            warmup_steps=warmup_steps,
        )

    return make


FREE = [
    (ScheduleFreeSGD(), package_sgd),
    (ScheduleFreeSGD(0.5, 0.0), package_sgd),
    (ScheduleFreeAdamW(), package_adamw),
    (ScheduleFreeAdamW(0.95, 0.9, 1e-3, 1.0), package_adamw),
]


@pytest.mark.parametrize("kind", ["constant", "changing", "from zero"])
@pytest.mark.parametrize(("rule", "package"), FREE)
def test_schedule_free_is_the_packages_in_training_and_in_evaluation(rule, package, kind):
    rows = assert_twins(rule, package(rule), rates(0.1, kind), **EXACT)
    assert not torch.allclose(rows.weights[0], rows.evaluated()[0])


@pytest.mark.parametrize(("rule", "package"), FREE)
def test_a_warmup_outside_is_the_packages_own_warmup(rule, package):
    constant, warmed = rates(0.1, "constant"), rates(0.1, "warmup")
    rows = Rows(rule, warmed).run()
    for row in range(3):
        for ours, theirs in zip(
            (rows.weights, rows.evaluated()),
            reference(package(rule, 5), constant, row),
            strict=True,
        ):
            for mine, other in zip(ours, theirs, strict=True):
                torch.testing.assert_close(mine[row], other, **EXACT)


@pytest.mark.parametrize(("lr", "decay", "first"), [(0.5, 1.5, 3), (0.1, 1.0, 16), (0.1, 0.1, 153)])
@pytest.mark.parametrize(
    "rule", [ScheduleFreeSGD(), ScheduleFreeAdamW()], ids=lambda rule: type(rule).__name__
)
def test_schedule_free_decay_flips_a_sign_where_the_package_does_and_shrinks(
    rule, lr, decay, first
):
    """With a gradient of zero, rate 0.5 and decay 1.5, y and z are 1/4 of the start after a step.

    The numbers are computed by hand.
    """
    rows = Rows(rule, rates(1.0, "constant"))
    start = [weight.clone() for weight in rows.weights]
    zeros = [torch.zeros_like(weight) for weight in rows.weights]
    theirs = torch.ones((), dtype=torch.float64, requires_grad=True)
    package = schedulefree.SGDScheduleFree(
        [theirs], lr=lr, momentum=rule.momentum, weight_decay=decay
    )
    package.train()
    scale = [rows.column([lr] * 3)] * 2, [rows.column([decay] * 3)] * 2
    for step in range(1, first + 1):
        theirs.grad = torch.zeros_like(theirs)
        package.step()
        rows.rule.update(rows.weights, zeros, rows.states, same(*scale), np.full(3, step - 1))
        for weight, begin, state in zip(rows.weights, start, rows.states, strict=True):
            torch.testing.assert_close(weight, begin * theirs.item(), rtol=1e-6, atol=1e-9)
            torch.testing.assert_close(
                state["z"], begin * package.state[theirs]["z"].item(), rtol=1e-6, atol=1e-9
            )
            assert (weight.abs() < begin.abs()).all() and (state["z"].abs() < begin.abs()).all()
            assert (state["z"] * begin < 0).all() == (step == first)
            if step == 1 and decay == 1.5:
                torch.testing.assert_close(weight, begin / 4)
