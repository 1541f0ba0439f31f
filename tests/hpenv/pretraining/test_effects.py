"""Estimated effects of cells against true differences of the probe loss, and by hand."""

import math

import gymnasium as gym
import numpy as np
import pytest
import torch

import hpenv
from hpenv import branching
from hpenv.control.panel import Panel, TensorSite
from hpenv.pretraining.effects import CellEffects
from tests.hpenv.pretraining.small_plants import advance, assert_same, make, state_of

gym.register_envs(hpenv)
DIALS = (
    ("attention_temperature", "layer"),
    ("attention_gain", "run"),
    ("attention_gain", "layer"),
    ("feed_forward_gain", "layer"),
    ("residual_gain", "layer"),
    ("embedding_gain", "run"),
    ("logit_softcap", "run"),
    ("state_norm_cap", "layer"),
)


def _probe_loss(plant, column, position, num_steps=0):
    """Probe loss of copies of a run after steps with one cell moved, [nats per token]."""
    copy = plant.spawn(1)
    copy.restore(plant.snapshot())
    copy.panel.positions[:, column] += position
    if num_steps:
        return advance(copy, num_steps)["probe_loss"][0]
    return copy._probe()[0]


def _measured(name="cell_effect", **arguments):
    plant = make(1, **arguments)
    plant.set_measured_groups({"probe", name})
    advance(plant, 6)
    return plant


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "adamw_muon"])
def test_effects_of_rates_and_decay_are_the_slopes_of_the_next_probe_loss(optimizer):
    channels = (("lr", "group"), ("lr", "layer"), ("weight_decay", "group"))
    base_lr, decay = (0.3, 0.3) if optimizer == "sgd" else (0.01, 3.0)
    plant = _measured(
        channels=channels, optimizer=optimizer, base_lr=base_lr, base_weight_decay=decay
    )
    plant.panel.positions[:, 0] = -0.1
    expected = []
    for column in range(plant.panel.positions.shape[1]):
        low, high = (_probe_loss(plant, column, move, 1) for move in (-0.02, 0.02))
        expected.append((low - high) / 0.04)
    effects = advance(plant, 1)["cell_effect"][0]
    assert np.abs(effects).min() > 0
    assert effects == pytest.approx(expected, rel=0.1, abs=0.03 * np.abs(expected).max())


def test_effects_of_dials_are_the_slopes_of_the_present_probe_loss():
    plant = _measured(channels=DIALS, base_lr=0.02)
    plant.panel.positions[:] = np.random.default_rng(0).uniform(
        -0.4, 0.4, plant.panel.positions.shape
    )
    plant.panel.positions[:, -2:] = 0.75  # caps of about 1.2, which bind
    effects = advance(plant, 1)["cell_effect"][0]
    for column, effect in enumerate(effects):
        low, high = (_probe_loss(plant, column, move) for move in (-0.01, 0.01))
        assert effect == pytest.approx((low - high) / 0.02, rel=0.05, abs=2e-4), column
    assert np.abs(effects).max() > 0.01


def test_the_effect_of_a_gate_is_the_loss_of_what_it_takes_away():
    channels = (("grad_gate", "layer"), ("lr", "layer"))
    plant = _measured(channels=channels, optimizer="sgd", base_lr=0.05)
    # A position of 1 gates every gradient of the layer.
    kept, gated = (_probe_loss(plant, 0, position, 1) for position in (0.0, 1.0))
    effect = advance(plant, 1)["cell_effect"][0, 0]
    assert effect == pytest.approx((kept - gated) / 0.9, rel=0.2, abs=3e-6)
    assert abs(effect) > 1e-5


def test_traces_and_their_memory_by_hand():
    """One tensor of two numbers in two runs, of which only the first takes the second step."""
    sites = {"layer.0.w": TensorSite("matrix", "sgd", 0)}
    panel = Panel((("lr", "layer"),), sites, 2, "pretraining")
    weights = {"layer.0.w": torch.zeros(2, 2)}
    effects, groups = CellEffects(panel, weights), {"cell_effect", "cell_effect_16"}
    for moving in ([True, True], [True, False]):

        def update(_, moving=moving):
            weights["layer.0.w"] += torch.tensor([[1.0, 2.0], [3.0, 4.0]]) * torch.tensor(
                moving
            ).view(2, 1)

        effects.trace(groups, update, {}, weights, weights, np.zeros((2, 1)), np.array(moving))
    found = effects.estimate(groups, [torch.tensor([[1.0, -1.0], [1.0, 1.0]])], ())
    steep, keep = math.log(100), math.exp(-1 / 16)
    # <g, change> is 1 - 2 = -1 of both steps of the first run, and 3 + 4 of the only one.
    assert found["cell_effect"][:, 0] == pytest.approx([2 * steep, -7 * steep])
    assert found["cell_effect_16"][:, 0] == pytest.approx([(1 + keep) * steep, -7 * steep])
    effects.begin_window()
    found = effects.estimate(groups, [torch.ones(2, 2)], ())
    assert not found["cell_effect"].any() and found["cell_effect_16"].any()


@pytest.mark.parametrize("optimizer", ["adamw_muon", "schedule_free_adamw_muon", "sgd"])
def test_measuring_effects_changes_no_weight(optimizer):
    channels = (("lr", "layer"), ("weight_decay", "layer"), ("grad_gate", "layer"))
    plain, measured = (make(2, channels=channels, optimizer=optimizer) for _ in range(2))
    measured.set_measured_groups({"probe", "momentum", "cell_effect", "cell_effect_64"})
    for plant in (plain, measured):
        plant.panel.positions[0] = np.tile([0.3, -0.2], 3)
        window = advance(plant, 5)
    assert window["cell_effect"].shape == (2, 6) and (window["cell_effect"] != 0).any(1).all()
    theirs = {k: v for k, v in state_of(measured).items() if not k.startswith("cell_effect")}
    assert_same(state_of(plain), theirs, but=("window/cell_effect",))


def test_a_restored_run_continues_with_the_same_traces_and_a_reset_clears_them():
    plant, other = (_measured("cell_effect_64", base_lr=0.01) for _ in range(2))
    saved = plant.snapshot()
    expected = advance(plant, 3)["cell_effect_64"]
    advance(other, 4)
    other.restore(saved)
    assert np.array_equal(advance(other, 3)["cell_effect_64"], expected)
    fresh = make(1, base_lr=0.01)
    fresh.set_measured_groups({"probe", "cell_effect_64"})
    other.reset([100])
    assert_same(state_of(other), state_of(fresh), but=("window/", "cell_effect_64"))
    assert np.array_equal(advance(other, 3)["cell_effect_64"], advance(fresh, 3)["cell_effect_64"])


def test_a_fork_measures_what_its_run_measures():
    arguments = {"batch_tokens": 64, "sequence_length": 16, "data": "synthetic"}
    env = gym.make_vec("TrainLoop-Cell-v0", num_envs=1, preset="nano", num_steps=9, **arguments)
    env.plant.set_measured_groups(env.plant.measured_groups | {"cell_effect_16"})
    env.reset(seed=3)
    still = np.zeros((1, len(env.action_names)), dtype=np.float32)
    env.step(still)
    fork = branching.fork(env, 2)
    fork.step(np.tile(still, (2, 1)))
    env.step(still)
    ours, theirs = (e.episodes.window["cell_effect_16"] for e in (env, fork))
    assert ours.any() and theirs == pytest.approx(np.tile(ours, (2, 1)), rel=1e-3, abs=1e-9)
