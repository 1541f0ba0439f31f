"""The gradient channels, by hand on tensors of a few numbers."""

import math

import numpy as np
import pytest
import torch

from hpenv.control.panel import Panel, TensorSite
from hpenv.pretraining.gradient_channels import apply_gradient_channels
from hpenv.pretraining.measurements import gradient_sizes, squared_norms
from tests.hpenv.pretraining.small_gradients import (
    ALL,
    SEEDS,
    SITES,
    STEPS,
    gradients,
    panel_of,
    steer,
)
from tests.tiny_plants import FINEST


def test_nothing_moved_gives_back_the_same_tensors():
    given, tensors = gradients(), [*gradients().values()]
    squares = squared_norms(tensors)
    assert (
        apply_gradient_channels(given, {}, squares, panel_of(*FINEST), SEEDS, STEPS, ALL) is given
    )
    assert all(torch.equal(g, own) for g, own in zip(given.values(), tensors, strict=True))


def test_what_is_multiplied_is_so_in_place_and_what_the_optimizer_remembers_is_not_written():
    given = gradients()
    momenta = {name: torch.full_like(g, 7.0) for name, g in given.items()}
    panel = panel_of(
        ("grad_scale", "layer"),
        ("momentum_blend", "layer"),
        grad_scale_layer_0=0.5,
        momentum_blend_layer_0=1.0,
    )
    tensors = dict(given)
    result = apply_gradient_channels(
        given, momenta, squared_norms(list(given.values())), panel, SEEDS, STEPS, ALL
    )
    assert [name for name, g in result.items() if g is not tensors[name]] == [
        "layer.0.up",
        "layer.0.down",
    ]
    torch.testing.assert_close(result["layer.0.up"][1], torch.full((1, 2), 7.0 * 10**0.5))
    assert all((m == 7.0).all() for m in momenta.values())
    panel.positions[:] = 0.0
    panel.positions[0, 0] = 1.0
    scaled = apply_gradient_channels(
        given, {}, squared_norms(list(given.values())), panel, SEEDS, STEPS, ALL
    )
    assert all(scaled[name] is tensors[name] for name in SITES)
    assert torch.equal(scaled["layer.0.up"][0], gradients()["layer.0.up"][0] * 10)
    assert torch.equal(scaled["layer.0.up"][1], gradients()["layer.0.up"][1])


def test_norms_are_those_of_each_run_and_tensor():
    assert squared_norms(list(gradients().values())) == pytest.approx(
        np.array([[25.0, 100, 225, 400, 625]] * 2)
    )


def test_maxima_are_magnitudes_whatever_the_sign_and_the_order_in_memory():
    g = torch.tensor([[[1.0, -6.0, 2.0], [0.5, 3.0, 4.0]], [[1.0, 2.0, 5.0], [-4.0, 0.0, 0.0]]])
    squares, maxima = gradient_sizes([g, g.transpose(1, 2), torch.zeros(2, 3)], maxima=True)
    assert maxima.tolist() == [[6.0, 6.0, 0.0], [5.0, 5.0, 0.0]]
    assert squares == pytest.approx(np.array([[66.25, 66.25, 0.0], [46.0, 46.0, 0.0]]))
    assert gradient_sizes([g], maxima=False)[1] is None


def test_a_scale_reaches_its_tensor_in_its_row_alone_and_scopes_multiply():
    panel = panel_of(
        ("grad_scale", "tensor"),
        ("grad_scale", "layer"),
        grad_scale_layer_0_up=1.0,
        grad_scale_layer_0=-0.5,
    )
    given = gradients()
    result = steer(panel, given)
    factors = {"layer.0.up": 10 * 10**-0.5, "layer.0.down": 10**-0.5}
    for name, g in given.items():
        assert torch.equal(result[name][0], g[0])
        torch.testing.assert_close(result[name][1], g[1] * factors.get(name, 1.0))


def test_a_clip_of_the_run_holds_all_tensors_together_and_keeps_their_direction():
    panel, given = panel_of(("grad_clip", "run"), grad_clip=0.55), gradients()  # 10^4 10^(-7 / 2)
    result = steer(panel, given)
    total = math.sqrt(25 + 100 + 225 + 400 + 625)
    for name, g in given.items():
        assert torch.equal(result[name][0], g[0])
        torch.testing.assert_close(result[name][1], g[1] * (10**0.5 / total))


def test_a_clip_holds_vectors_beside_matrices():
    sites = {
        "lambdas": TensorSite("scalar", "adamw"),
        "layer.0.up": TensorSite("matrix", "adamw", 0),
    }
    panel = Panel([("grad_clip", "run")], sites, 2, "pretraining")
    panel.positions[1] = 0.55  # 10^4 10^(-7 / 2)
    given = {
        "lambdas": torch.tensor([[30.0, 0.0]] * 2),
        "layer.0.up": torch.tensor([[[0.0], [40.0]]] * 2),
    }
    result = steer(panel, given)
    for name, g in given.items():
        assert result[name].shape == g.shape and torch.equal(result[name][0], g[0])
        torch.testing.assert_close(result[name][1], g[1] * (10**0.5 / 50.0))


def test_a_clip_of_a_layer_holds_that_layer_and_is_not_felt_below_its_norm():
    panel = panel_of(("grad_clip", "layer"), grad_clip_layer_0=0.55, grad_clip_layer_1=0.2)
    given = gradients()
    result = steer(panel, given)
    for name in ("layer.0.up", "layer.0.down"):
        torch.testing.assert_close(result[name][1], given[name][1] * (10**0.5 / math.sqrt(325)))
    for name in ("embedding", "layer.1.up", "layer.1.down"):
        assert torch.equal(result[name], given[name])


def test_the_cap_is_on_what_the_scale_and_the_route_have_left():
    panel = panel_of(
        ("grad_clip", "run"), ("grad_scale", "run"), ("grad_skip", "layer"),
        grad_clip=0.55, grad_scale=1.0, grad_skip_layer_0=1.0,
    )  # fmt: skip
    result = steer(panel, gradients())
    norms = np.sqrt(squared_norms(list(result.values())))
    assert norms[1, 1:3].tolist() == [0.0, 0.0]
    assert math.sqrt((norms[1] ** 2).sum()) == pytest.approx(10**0.5, rel=1e-6)
    assert norms[1, 3] / norms[1, 0] == pytest.approx(4.0)


def test_a_clip_of_a_gradient_of_zeros_is_zeros():
    panel = panel_of(("grad_clip", "run"), ("grad_scale", "run"), grad_clip=1.0)
    given = {name: torch.zeros_like(g) for name, g in gradients().items()}
    assert all(not g.any() for g in steer(panel, given).values())


@pytest.mark.parametrize(
    ("positions", "count"),
    [
        ((1.0, 1.0), 2),
        ((1.0, 0.0), 1),
        ((0.0, 1.0), 1),
        ((0.54, 0.0), 0),
        ((0.56, 0.0), 1),
        ((-1.0, 0.1), 0),
    ],
)
def test_truncation_counts_layers_from_the_first_on_whichever_cell_asks(positions, count):
    panel = panel_of(("grad_truncate", "layer"))
    panel.positions[1] = positions
    given = gradients()
    result = steer(panel, given)
    for name, site in SITES.items():
        assert torch.equal(result[name][0], given[name][0])
        assert result[name][1].any() == (site.layer is None or site.layer >= count), name


def test_a_blend_is_between_gradient_and_first_moment_and_beyond():
    given = gradients()
    momenta = {name: torch.full_like(g, 7.0) for name, g in given.items() if name != "layer.1.down"}
    panel = panel_of(
        ("momentum_blend", "layer"), momentum_blend_layer_0=-0.5, momentum_blend_layer_1=1.0
    )
    result = steer(panel, given, momenta)
    torch.testing.assert_close(result["layer.0.up"][1], 1.5 * given["layer.0.up"][1] - 0.5 * 7.0)
    assert torch.equal(result["layer.1.up"][1], momenta["layer.1.up"][1])
    for name in ("embedding", "layer.1.down"):
        assert torch.equal(result[name], given[name])
    assert torch.equal(result["layer.0.up"][0], given["layer.0.up"][0])
    assert all(
        torch.equal(a, b) for a, b in zip(given.values(), gradients().values(), strict=True)
    ), "written into"
