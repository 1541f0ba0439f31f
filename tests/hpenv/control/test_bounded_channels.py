"""Caps are dormant in a healthy run, and no weight is ever not finite."""

import numpy as np
import pytest

from hpenv.control.channel import DEAD_ZONE
from hpenv.lm import architecture, model
from hpenv.lm.architecture import GPTConfig
from hpenv.optim.optimizers import OPTIMIZERS
from hpenv.pretraining.config import PretrainingConfig
from hpenv.pretraining.plant import PretrainingPlant
from tests.hpenv.control.every_channel import CHANNELS, applicable, ids
from tests.tiny_plants import (
    ALL_GROUPS,
    FINEST,
    PAIRS,
    TOGETHER,
    advance,
    different,
    make,
    state_of,
)

SAFE = tuple((name, scope) for name, scope in FINEST if CHANNELS[name].kind != "unsafe")


# Caps are dormant


HEALTHY = {
    **architecture.PRESETS,
    "jel-73m": GPTConfig(
        n_layer=6,
        n_head=3,
        n_embd=96,
        value_embeddings=True,
        residual_lambdas=True,
        window_pattern="SSSL",
    ),  # the one preset that is too wide for a test, with a quarter of its width
}


def test_every_preset_is_held_to_dormant_caps():
    original = architecture.PRESETS["jel-73m"]
    for name in (
        "n_layer",
        "n_head",
        "feed_forward",
        "value_embeddings",
        "residual_lambdas",
        "window_pattern",
    ):
        assert getattr(HEALTHY["jel-73m"], name) == getattr(original, name)


@pytest.mark.parametrize("preset", HEALTHY)
@pytest.mark.parametrize("optimizer", ["adamw", "adamw_muon"])
def test_caps_are_far_above_a_healthy_run(preset, optimizer, monkeypatch):
    monkeypatch.setitem(architecture.PRESETS, preset, HEALTHY[preset])
    config = PretrainingConfig(
        preset=preset,
        data="stdlib",
        batch_tokens=128,
        optimizer=optimizer,
        num_probe_batches=1,
        eval_tokens=64,
    )
    caps = [(c.name, scope) for c in CHANNELS.values() if c.kind == "clip" for scope in ("layer",)]
    plain, capped = PretrainingPlant(config, 1, ()), PretrainingPlant(config, 1, caps)
    capped.panel.positions[:] = DEAD_ZONE
    sizes, original = [], model._activation_statistics

    def spy(params, config, sampled):
        sizes.extend(float(stream.square().mean(-1).sqrt().max()) for stream, _ in sampled)
        return original(params, config, sampled)

    monkeypatch.setattr(model, "_activation_statistics", spy)
    norms = []
    for plant in (plain, capped):
        plant.set_measured_groups(("activations",))
        for _ in range(4):
            norms.append(float(advance(plant, 1)["gradient_norm"][0]))
    assert len(sizes) == 2 * 4 * HEALTHY[preset].n_layer
    assert 0.1 < max(sizes) < CHANNELS["state_norm_cap"].neutral / 10
    assert 1e-3 < max(norms) < CHANNELS["grad_clip"].neutral / 10
    assert different(state_of(plain), state_of(capped)) == []


# The worst case of every kind is bounded


def assert_sound(plant):
    for name, tensor in plant.snapshot().tensors.items():
        is_sound = bool(tensor.isfinite().all()) and (
            not name.endswith(("second_moment", "mean_square")) or tensor.min() >= 0
        )
        assert is_sound, name


def drawn_positions(generator, num_rows, num_cells):
    """Actions of three kinds, a third of the rows each.

    They are anywhere, in a corner of {-1, 0, 1}, or have one cell at an end.
    """
    kinds = generator.integers(3, size=num_rows)[:, None]
    anywhere = generator.uniform(-1, 1, (num_rows, num_cells))
    corners = generator.integers(-1, 2, (num_rows, num_cells)).astype(float)
    single = np.zeros((num_rows, num_cells))
    single[np.arange(num_rows), generator.integers(num_cells, size=num_rows)] = generator.choice(
        [-1.0, 1.0], num_rows
    )
    return np.select([kinds == 0, kinds == 1], [anywhere, corners], single)


def torment(plant, num_steps):
    """Takes random actions, one a step, and returns how many were taken.

    A run that diverges, which is an outcome, starts anew.
    """
    generator, taken, seed = np.random.default_rng(1), 0, 1000
    for _ in range(num_steps):
        plant.panel.move(
            drawn_positions(generator, *plant.panel.positions.shape),
            np.ones(plant.num_rows, dtype=bool),
        )
        before = plant.steps.copy()
        window = advance(plant, 1)
        taken += int((plant.steps - before).sum())
        assert_sound(plant)
        assert all(np.isfinite(value).all() for value in window.arrays().values())
        ended = np.flatnonzero(plant.divergence)
        if len(ended):
            plant.reset([seed + i for i in range(len(ended))], ended.tolist())
            seed += len(ended)
    return taken


HARSH = {"base_lr": 0.02, "base_weight_decay": 0.5}


@pytest.mark.parametrize("preset", ["relu2", "swiglu"])
def test_a_thousand_random_actions_leave_every_weight_finite(preset):
    plant = make(25, SAFE, preset, ALL_GROUPS, **HARSH)
    assert torment(plant, 42) > 1000


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["relu2", "swiglu"])
def test_ten_thousand_random_actions_leave_every_weight_finite(preset):
    plant = make(50, SAFE, preset, ALL_GROUPS, **HARSH)
    assert torment(plant, 210) > 10_000


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_random_actions_leave_every_weight_finite_under_every_optimizer(optimizer):
    preset = "swiglu" if optimizer == "muon" else "everything"
    plant = make(6, applicable(SAFE, optimizer, preset), preset, optimizer=optimizer, **HARSH)
    assert torment(plant, 15) > 60


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_muon", "sgd"])
def test_random_actions_at_every_scope_at_once_leave_every_weight_finite(optimizer):
    """The values of several scopes multiply, far beyond the bounds of one."""
    pairs = tuple(
        (n, s)
        for n, s in applicable(TOGETHER, optimizer, "everything")
        if CHANNELS[n].kind != "unsafe"
    )
    assert torment(make(10, pairs, "everything", optimizer=optimizer, **HARSH), 20) > 60


@pytest.mark.parametrize("corner", [-1.0, 1.0])
@pytest.mark.parametrize("pair", [p for p in PAIRS if CHANNELS[p[0]].kind != "unsafe"], ids=ids)
def test_a_channel_held_at_its_end_leaves_every_weight_finite(pair, corner):
    plant = make(2, (pair,), "swiglu", **HARSH)
    plant.panel.positions[:] = corner
    for _ in range(4):
        advance(plant, 2)
        assert_sound(plant)
