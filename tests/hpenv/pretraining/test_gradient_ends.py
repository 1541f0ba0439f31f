"""Gradients that are not finite, or near the end of float32."""

import math

import numpy as np
import pytest
import torch

from hpenv.control.panel import Panel
from hpenv.optim.adamw import AdamW
from hpenv.optim.rules import Rates
from tests.hpenv.pretraining.small_gradients import SITES, gradients, steer
from tests.tiny_plants import TOGETHER, advance, different, make, state_of

# The ends of float32


@pytest.mark.parametrize("fault", [math.nan, math.inf])
def test_a_run_whose_gradient_is_not_finite_disturbs_no_other(fault):
    """Warnings are errors here: infinity times a route of zero would be one."""
    panel = Panel(TOGETHER, SITES, 2, "pretraining")
    panel.positions[:] = 0.9
    momenta = {name: torch.ones_like(g) for name, g in gradients().items()}
    sound, broken = gradients(), gradients()
    for name in ("embedding", "layer.0.up", "layer.1.down"):
        broken[name][0] = fault
    rows = np.array([False, True])
    expected, result = steer(panel, sound, momenta, rows), steer(panel, broken, momenta, rows)
    assert all(torch.equal(result[name][1], expected[name][1]) for name in SITES)
    assert all(result[name][1].isfinite().all() for name in SITES)


def test_a_diverged_run_beside_one_that_is_left_out_and_clipped_raises_no_warning():
    plant = make(2, (("grad_skip", "layer"), ("grad_clip", "run")))
    plant.panel.positions[:] = 1.0
    plant.weights["layer.1.up"][0] = 1e30
    plant.weights["layer.0.down"][0] = math.inf
    alone = make(2, (("grad_skip", "layer"), ("grad_clip", "run")))
    alone.panel.positions[:] = 1.0
    for each in (plant, alone):
        advance(each, 2)
    assert plant.divergence.tolist()[0] > 0
    assert different(state_of(plant, 1), state_of(alone, 1)) == []


@pytest.mark.parametrize("size", [1e17, 3e18, 1.5e19])
@pytest.mark.parametrize("name", ["grad_scale", "lr", "beta2", "beta1", "eps"])
def test_a_gradient_near_the_end_of_float32_leaves_moments_finite_or_ends_the_run(
    name, size, monkeypatch
):
    """At neutral a norm that is finite has a square that is.

    Ten times it must be as safe.
    """
    plant = make(1, ((name, "tensor"),))
    plant.panel.positions[:] = 1.0
    original = torch.autograd.grad

    def grad(*arguments, **keywords):
        result = original(*arguments, **keywords)
        for g in result:
            g.zero_()
        result[1][0, 0, 0] = size
        return result

    monkeypatch.setattr(torch.autograd, "grad", grad)
    for _ in range(3):
        advance(plant, 1)
        for key, value in state_of(plant).items():
            assert bool(value.isfinite().all()), key


def test_adamw_alone_takes_every_gradient_whose_norm_is_finite():
    rule, weight = AdamW(), torch.ones(1, 2, 2)
    state, g = rule.init(weight), torch.full((1, 2, 2), 9e18)
    assert torch.linalg.vector_norm(g).isfinite()
    one = torch.ones(1, 1, dtype=torch.float64)
    for _ in range(5):
        rule.update([weight], [g], [state], Rates.of(one, one), np.zeros(1, dtype=np.int64))
    assert weight.isfinite().all() and state["second_moment"].isfinite().all()
