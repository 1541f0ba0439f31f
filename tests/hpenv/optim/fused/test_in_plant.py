"""An arena in the place of the update of the plant of pretraining: the same run, bit for bit."""

import numpy as np
import pytest
import torch

from hpenv.optim.fused.arena import AdamWArena, fill_caps
from hpenv.optim.fused.layout import Layout
from hpenv.optim.fused.twin import step_adamw
from hpenv.optim.rules import Rates
from tests.hpenv.pretraining.small_gradients import SITES, gradients, panel_of, steer
from tests.hpenv.pretraining.small_plants import advance, assert_same, make, state_of

CHANNELS = (
    ("lr", "layer"), ("weight_decay", "run"), ("beta1", "layer"), ("momentum", "run"),
    ("eps", "run"),
)  # fmt: skip


def give_arena(plant):
    """Moves a plant of AdamW into an arena. Returns the arena."""
    arena = AdamWArena.empty(
        Layout({name: tuple(w.shape[1:]) for name, w in plant.weights.items()}, plant.num_rows)
    )
    for name, weight in plant.weights.items():
        arena.views["weights"][name].copy_(weight)
    plant.weights = arena.views["weights"]
    plant.optimizer_state = {
        name: {
            "momentum": arena.views["momentum"][name],
            "second_moment": arena.views["second_moment"][name],
            "beta1_product": arena.beta_products[0, :, k],
            "beta2_product": arena.beta_products[1, :, k],
        }
        for k, name in enumerate(arena.layout.names)
    }
    (rule,) = set(plant._rules.values())

    def update(given, rates, moving):
        columns = torch.empty(len(Rates._fields), *arena.rates.lr.shape, dtype=torch.float64)
        for group, members in plant._members.items():
            columns[:, :, torch.as_tensor(members)] = torch.stack(rates[group])
        for name, view in arena.views["gradients"].items():
            view.copy_(given[name])
        arena.fill(rule, Rates(*columns))
        arena.rates.gate.copy_(torch.as_tensor(moving)[:, None])
        step_adamw(arena)

    plant._update = update
    return arena


def test_a_population_in_an_arena_is_the_same_population():
    """With a panel that has moved, and a row that ends its window earlier."""
    plain, moved = (make(3, channels=CHANNELS, optimizer="adamw") for _ in range(2))
    arena = give_arena(moved)
    for count in ((4, 4, 4), (3, 1, 2)):
        positions = np.random.default_rng(count[1]).uniform(-0.5, 0.5, plain.panel.positions.shape)
        for plant in (plain, moved):
            plant.panel.positions[:] = positions
        windows = [advance(plant, *count) for plant in (plain, moved)]
        assert_same(state_of(plain), state_of(moved))
    norms = arena.statistics.gradient_square.sum(1).sqrt().numpy()
    assert norms[0] == pytest.approx(windows[1].values["gradient_norm"][0], rel=1e-5)


@pytest.mark.parametrize("scope", ["run", "layer"])
def test_caps_of_a_panel_are_the_clip_of_the_plant(scope):
    cells = {"run": {"grad_clip": 0.55}, "layer": {"grad_clip_layer_1": 0.55}}[scope]
    panel, given = panel_of(("grad_clip", scope), **cells), gradients()
    layout = Layout({name: tuple(g.shape[1:]) for name, g in given.items()}, 2)
    capped = AdamWArena.empty(
        layout, cap_cells=[0] * len(SITES) if scope == "run" else panel.layers.tolist()
    )
    fill_caps(capped.rates.cap, torch.as_tensor(panel.table("grad_clip")), neutral=10_000.0)
    clipped = AdamWArena.empty(layout)
    steered = steer(panel, given)
    assert not torch.equal(steered["layer.1.up"], given["layer.1.up"])
    for arena, tensors in ((capped, given), (clipped, steered)):
        arena.rates.beta1_complement.fill_(1.0)
        for name, tensor in tensors.items():
            arena.views["gradients"][name].copy_(tensor)
        step_adamw(arena)
    torch.testing.assert_close(capped.flat["momentum"], clipped.flat["momentum"])
    assert torch.equal(
        capped.views["momentum"]["embedding"][0], clipped.views["momentum"]["embedding"][0]
    )
