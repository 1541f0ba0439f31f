"""The gradient channels, by hand on tensors of a few numbers, and at the ends of float32."""

import math
from statistics import NormalDist

import numpy as np
import pytest
import torch

from hpenv.control.panel import Panel, TensorSite
from hpenv.optim.adamw import AdamW
from hpenv.optim.rules import Rates
from hpenv.plant.seeds import DROPOUT, NOISE, ROUTE, step_generator
from hpenv.pretraining.gradient_channels import apply_gradient_channels
from hpenv.pretraining.measurements import gradient_sizes, squared_norms
from tests.tiny_plants import FINEST, TOGETHER, advance, different, make, state_of

SITES = {
    "embedding": TensorSite("embedding", "adamw"),
    "layer.0.up": TensorSite("matrix", "adamw", 0),
    "layer.0.down": TensorSite("matrix", "adamw", 0),
    "layer.1.up": TensorSite("matrix", "adamw", 1),
    "layer.1.down": TensorSite("matrix", "adamw", 1),
}
SEEDS, STEPS, ALL = np.array([3, 4]), np.array([0, 7]), np.ones(2, dtype=bool)


def gradients(scale=1.0):
    """Two runs; the norms are 5, 10, ... times the scale."""
    unit = torch.tensor([[[3.0, 4.0]], [[-4.0, 3.0]]]) * scale
    return {name: unit * (k + 1) for k, name in enumerate(SITES)}


def steer(panel, given, momenta=None, rows=ALL):
    """What becomes of copies: what is only multiplied is so in place."""
    own = {name: g.clone() for name, g in given.items()}
    return apply_gradient_channels(
        own, momenta or {}, squared_norms(list(given.values())), panel, SEEDS, STEPS, rows
    )


def panel_of(*channels, **positions):
    """A panel whose row 1 has these positions: cell -> position.

    Underscores stand for slashes and dots.
    """
    panel = Panel(channels, SITES, 2, "pretraining")
    names = [name.replace("/", "_").replace(".", "_") for name in panel.names]
    for name, position in positions.items():
        panel.positions[1, names.index(name)] = position
    return panel


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
    """At neutral a norm that is finite has a square that is; ten times it must be as safe."""
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
