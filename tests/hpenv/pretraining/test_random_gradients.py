"""Noise and left-out gradients are those of seed and step."""

import math
from statistics import NormalDist

import numpy as np
import pytest
import torch

from hpenv.control.panel import Panel, TensorSite
from hpenv.plant.seeds import DROPOUT, NOISE, ROUTE, step_generator
from hpenv.pretraining.gradient_channels import apply_gradient_channels
from hpenv.pretraining.measurements import squared_norms
from tests.hpenv.pretraining.small_gradients import ALL, SEEDS, SITES, gradients, panel_of, steer


@pytest.mark.parametrize(("name", "together"), [("grad_skip", True), ("grad_gate", False)])
def test_a_probability_is_how_often_a_gradient_is_left_out(name, together):
    panel = panel_of((name, "layer"), **{f"{name}_layer_1": 0.1 + 0.9 * 0.3})
    given, left_out = gradients(), []
    for step in range(600):
        own = {tensor: g.clone() for tensor, g in given.items()}
        result = apply_gradient_channels(
            own, {}, squared_norms(list(given.values())), panel, SEEDS, np.array([step, step]), ALL
        )
        zeroed = [not result[tensor][1].any() for tensor in ("layer.1.up", "layer.1.down")]
        left_out.append(zeroed)
        assert all(torch.equal(result[tensor][0], given[tensor][0]) for tensor in SITES)
        assert all(
            torch.equal(result[tensor][1], given[tensor][1])
            for tensor in ("embedding", "layer.0.up")
        )
    often = np.array(left_out)
    assert often.mean(0) == pytest.approx([0.3, 0.3], abs=4 * math.sqrt(0.21 / 600))
    assert (often[:, 0] == often[:, 1]).all() == together
    assert often.all(1).mean() == pytest.approx(
        0.3 if together else 0.09, abs=4 * math.sqrt(0.21 / 600)
    )


def test_noise_is_a_part_of_the_root_mean_square_and_has_no_mean():
    sites = {"layer.0.up": TensorSite("matrix", "adamw", 0)}
    panel = Panel([("grad_noise", "layer")], sites, 1, "pretraining")
    panel.positions[:] = 0.1 + 0.9 * 0.5
    g = torch.full((1, 40, 50), 3.0)
    result = apply_gradient_channels(
        {"layer.0.up": g},
        {},
        squared_norms([g]),
        panel,
        np.array([1]),
        np.array([2]),
        np.ones(1, dtype=bool),
    )["layer.0.up"]
    added = (result - g).numpy().ravel()
    assert added.std() == pytest.approx(1.5, rel=0.08) and abs(added.mean()) < 0.15
    assert np.quantile(added, 0.9) == pytest.approx(1.5 * NormalDist().inv_cdf(0.9), rel=0.15)


def test_random_numbers_are_those_of_seed_step_and_stream_alone():
    def first(*key):
        return torch.rand(4, generator=step_generator(*key)).tolist()

    keys = [(s, t, k) for s in (0, 1, 2**62) for t in (0, 1, 2) for k in (ROUTE, NOISE, DROPOUT)]
    assert len({tuple(first(*key)) for key in keys}) == len(keys)
    assert all(first(*key) == first(*key) for key in keys)
    assert first(np.int64(5), np.int64(6), ROUTE) == first(5, 6, ROUTE)


def test_a_run_draws_the_same_beside_any_other():
    panel = panel_of(("grad_gate", "layer"), ("grad_noise", "layer"))
    panel.positions[:] = 0.5
    both = steer(panel, gradients())
    alone = steer(panel, gradients(), rows=np.array([False, True]))
    assert all(torch.equal(both[name][1], alone[name][1]) for name in SITES)
