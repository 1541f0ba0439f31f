"""The design rules of a channel, over the whole table.

Neutral is free, caps are dormant, and no weight is ever not finite.
"""

import math
from functools import lru_cache

import numpy as np
import pytest
import torch

from hpenv.control import channels
from hpenv.control.channels import DEAD_ZONE, channel, channels_of
from hpenv.control.panel import Panel, TensorSite
from hpenv.lm import architecture, model
from hpenv.lm.architecture import GPTConfig
from hpenv.optim.optimizers import OPTIMIZERS
from hpenv.posttraining.intervention import Intervention
from hpenv.posttraining.plant import GRPOPlant
from hpenv.pretraining import forward_channels, rates
from hpenv.pretraining import gradient_channels as gradients
from hpenv.pretraining.config import PretrainingConfig
from hpenv.pretraining.plant import PretrainingPlant
from tests.tiny_plants import (
    ALL_GROUPS,
    FINEST,
    PAIRS,
    PRESETS,
    TOGETHER,
    advance,
    different,
    kept_neutral,
    make,
    state_of,
)

NUM_STEPS = 3
CHANNELS = channels_of("pretraining")
READERS = {
    "rates": rates,
    "forward_channels": forward_channels,
    "GRPOPlant": GRPOPlant,
    "Intervention": Intervention,
    "gradient_channels": gradients,
}
SAFE = tuple((name, scope) for name, scope in FINEST if CHANNELS[name].kind != "unsafe")
OF_ALL_PLANTS = pytest.mark.parametrize("found", channels.CHANNELS.values(), ids=channels.CHANNELS)
EVERY_CHANNEL = pytest.mark.parametrize("found", CHANNELS.values(), ids=CHANNELS)
ids = "{0[0]}-{0[1]}".format


def applicable(pairs, optimizer, preset):
    """Those of the pairs (name, scope) that move a tensor.

    A tensor moves if its rule uses the channel. For a scope finer than the run it must be one of a
    layer.
    """
    rules = OPTIMIZERS[optimizer]
    own = {
        n: rules[architecture.parameter_kind(n)].optimizer
        for n in architecture.parameter_shapes(PRESETS[preset])
    }

    def moves(name, scope):
        users = CHANNELS[name].optimizers or own.values()
        return any(
            own[n] in users and (n.startswith("layer.") or scope not in ("layer", "tensor"))
            for n in own
        )

    return tuple(pair for pair in pairs if moves(*pair))


# Values


@EVERY_CHANNEL
def test_values_are_finite_within_bounds_and_exactly_neutral_at_zero(found):
    positions = np.concatenate(
        [np.linspace(-1, 1, 2001), [1e-300, -1e-300, 1e-17, -1e-17, 0.1, -0.0]]
    )
    values = found.values(positions)
    assert np.isfinite(values).all()
    assert values.min() >= found.bounds[0] and values.max() <= found.bounds[1]
    assert found.values(np.array([0.0, -0.0])).tolist() == [found.neutral] * 2
    assert values.dtype == np.float64 and found.values(np.zeros((2, 0))).shape == (2, 0)


@EVERY_CHANNEL
def test_values_move_strictly_away_from_neutral_on_each_side(found):
    low, high = found.bounds
    if found.one_sided:
        dead = found.values(np.linspace(-1, DEAD_ZONE, 500))
        assert dead.tolist() == [found.neutral] * 500
        far = low if found.neutral == high else high
        moved = found.values(np.linspace(DEAD_ZONE, 1, 500))
        assert found.values(np.array([1.0]))[0] == pytest.approx(far, rel=1e-12, abs=0)
        assert (np.diff(moved) * np.sign(far - found.neutral) > 0).all()
    else:
        assert found.values(np.array([-1.0, 1.0])) == pytest.approx([low, high], rel=1e-12, abs=0)
        assert (np.diff(found.values(np.linspace(-1, 1, 2001))) > 0).all()


@EVERY_CHANNEL
def test_half_the_way_is_half_the_way_of_the_logarithm_or_of_the_value(found):
    far = found.bounds[0] if found.neutral == found.bounds[1] else found.bounds[1]
    position = (1 + DEAD_ZONE) / 2 if found.one_sided else 0.5
    middle = math.sqrt(far * found.neutral) if found.warp == "log" else (far + found.neutral) / 2
    assert found.values(np.array([position])) == pytest.approx([middle], rel=1e-12)


@OF_ALL_PLANTS
def test_the_entry_is_consistent(found):
    assert found.bounds[0] <= found.neutral <= found.bounds[1]
    assert found.warp == "linear" or found.bounds[0] > 0
    assert found.one_sided == (found.kind in ("clip", "skip") or found.name == "grad_noise")
    assert found.immediate <= (found.surface == "forward")
    assert found.unit and found.source
    for reader in found.reads.split(", "):  # each is there
        holder, _, name = reader.partition(".")
        assert callable(vars(READERS[holder])[name]), reader


def test_the_table_is_that_of_the_paper_and_its_further_dials():
    surfaces = {
        s: {c.name for c in CHANNELS.values() if c.surface == s}
        for s in ("forward", "optimizer", "backward")
    }
    assert surfaces["backward"] == {"grad_skip", "grad_gate", "grad_truncate", "momentum_blend"}
    assert surfaces["optimizer"] == {"beta1", "beta2", "eps", "grad_clip", "grad_noise"}
    assert {c.name for c in CHANNELS.values() if c.kind == "unsafe"} == {
        "grad_noise",
        "momentum_blend",
    }
    assert {c.name for c in CHANNELS.values() if c.kind == "clip"} == {
        "grad_clip",
        "state_norm_cap",
    }
    assert all(
        found.immediate == found.reads.endswith("forward_dials") for found in CHANNELS.values()
    )


# Neutral is free


@lru_cache(maxsize=32)
def bare(preset, optimizer, **arguments):
    """State after each step of two runs without channels."""
    plant = make(preset=preset, optimizer=optimizer, groups=ALL_GROUPS, **arguments)
    return [state_of(plant) for _ in range(NUM_STEPS) if advance(plant, 1)]


def assert_neutral_is_free(pairs, preset, optimizer="adamw", **arguments):
    """Both rows at neutral, and then row 0 at neutral next to a row 1 that is moved at random.

    Row 1 must notice.
    """
    generator = np.random.default_rng(0)
    expected = bare(preset, optimizer, **arguments)
    beside_itself, beside_another = (
        make(2, pairs, preset, ALL_GROUPS, optimizer=optimizer, **arguments) for _ in range(2)
    )
    num_cells = beside_another.panel.positions.shape[1]
    assert num_cells > 0
    for step in range(NUM_STEPS):
        beside_itself.panel.move(
            np.stack([kept_neutral(beside_itself, generator)] * 2), np.ones(2, dtype=bool)
        )
        moved = generator.uniform(0.5, 1.0, num_cells) if step else np.ones(num_cells)
        beside_another.panel.move(
            np.stack([kept_neutral(beside_another, generator), moved]), np.ones(2, dtype=bool)
        )
        for plant in (beside_itself, beside_another):
            advance(plant, 1)
        assert different(state_of(beside_itself), expected[step]) == [], f"step {step}"
        row = {name: value[0] for name, value in expected[step].items()}
        assert different(state_of(beside_another, 0), row) == [], (
            f"step {step}, beside a run that is moved"
        )
        if not beside_another.divergence[1]:
            other = {name: value[1] for name, value in expected[step].items()}
            weights = [
                n
                for n in different(state_of(beside_another, 1), other)
                if n.startswith(("weights", "optim"))
            ]
            assert weights or (pairs[0][0] == "momentum_blend" and step == 0), (
                "the channel has no effect at all"
            )


@pytest.mark.parametrize("preset", ["relu2", "swiglu"])
@pytest.mark.parametrize("pair", PAIRS, ids=ids)
def test_neutral_of_a_channel_alone_is_bitwise_no_channel(pair, preset):
    assert_neutral_is_free((pair,), preset)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_neutral_of_all_channels_together_is_bitwise_no_channel(optimizer, preset):
    if optimizer == "muon" and PRESETS[preset].residual_lambdas:
        pytest.skip("muon updates matrices only")
    assert_neutral_is_free(applicable(TOGETHER, optimizer, preset), preset, optimizer)


def test_neutral_is_free_in_bfloat16():
    assert_neutral_is_free(TOGETHER, "swiglu", dtype="bfloat16")


def test_neutral_is_free_under_rates_that_are_no_powers_of_two():
    assert_neutral_is_free(TOGETHER, "relu2", base_lr=0.0123, base_weight_decay=0.377)


@pytest.mark.parametrize("pair", PAIRS, ids=ids)
def test_moving_one_cell_of_one_row_leaves_the_other_rows_bitwise_alone(pair):
    """Three runs in three different places of the panel.

    Then only the middle one's cells change.
    """
    plants = [make(3, (pair,), "swiglu") for _ in range(2)]
    for value, plant in zip((0.95, -0.95), plants, strict=True):
        plant.panel.positions[:] = np.array([0.7, 0.0, -0.6])[:, None]
        plant.panel.positions[1] = value
        advance(plant, 2)
    for row in (0, 2):
        assert different(state_of(plants[0], row), state_of(plants[1], row)) == []


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
        plant.measure(("activations",))
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


# What does not fit is refused


SITES = {
    "embedding": TensorSite("embedding", "adamw"),
    "layer.0.up": TensorSite("matrix", "muon", 0),
    "layer.1.up": TensorSite("matrix", "muon", 1),
    "unembedding": TensorSite("unembedding", "adamw"),
}


@OF_ALL_PLANTS
@pytest.mark.parametrize("plant", ["pretraining", "posttraining"])
def test_every_channel_is_refused_at_a_scope_it_does_not_have_and_for_a_plant_that_has_it_not(
    found, plant
):
    for scope in {"run", "optimizer", "group", "layer", "tensor", "head"} - set(found.scopes):
        with pytest.raises(
            ValueError, match=f"'{found.name}' has no scope '{scope}'; expected one of .*'"
        ):
            channel(found.name, scope, plant, ["adamw"])
    for scope in found.scopes:
        if plant in found.plants:
            assert channel(found.name, scope, plant, ["adamw"]) is found
            continue
        with pytest.raises(
            ValueError, match=f"'{found.name}' applies to .* alone; expected one of"
        ):
            channel(found.name, scope, plant, ["adamw"])


@EVERY_CHANNEL
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_channel_is_refused_under_optimizers_that_have_no_use_for_it(found, optimizer):
    rules = [rule.optimizer for rule in OPTIMIZERS[optimizer].values()]
    if not found.optimizers or set(rules) & set(found.optimizers):
        assert channel(found.name, found.scopes[0], "pretraining", rules) is found
    else:
        with pytest.raises(
            ValueError,
            match=rf"{sorted(set(rules))[0]}.*have no use for the channel '{found.name}'",
        ):
            channel(found.name, found.scopes[0], "pretraining", rules)


@pytest.mark.parametrize("optimizer", ["muon", "sgd"])
@pytest.mark.parametrize("name", ["beta1", "beta2", "eps"])
def test_an_optimizer_without_a_constant_refuses_its_channel(name, optimizer):
    """A plant of SGD, and a panel of nothing but Muon, which updates no table."""
    with pytest.raises(
        ValueError, match=f"optimizers \\['{optimizer}'\\] have no use for the channel '{name}'"
    ):
        Panel([(name, "run")], {"layer.0.up": TensorSite("matrix", optimizer, 0)}, 1, "pretraining")


@pytest.mark.parametrize("name", ["dropout", "state_norm_cap", "grad_clip", "grad_noise"])
def test_what_is_no_multiplier_is_refused_at_two_scopes(name):
    with pytest.raises(
        ValueError, match=f"'{name}' is not a multiplier, so it can be asked for at one scope only"
    ):
        Panel([(name, "run"), (name, "layer")], SITES, 1, "pretraining")


@pytest.mark.parametrize("name", ["beta1", "beta2", "eps"])
def test_under_a_hybrid_a_constant_of_adamw_has_cells_for_adamws_tensors_alone(name):
    sites = SITES | {"layer.1.value_embedding": TensorSite("embedding", "adamw", 1)}
    scopes = ("tensor", "layer", "optimizer", "group")
    panel = Panel([(name, scope) for scope in scopes], sites, 1, "pretraining")
    cells = ("layer.1.value_embedding", "layer.1", "adamw", "embedding", "unembedding")
    assert panel.names == tuple(f"{name}/{cell}" for cell in cells)
    panel.positions[:] = 0.25
    quarter, half = CHANNELS[name].values(np.array([0.25, 0.5]))
    table = dict(zip(panel.tensors, panel.table(name)[0], strict=True))
    assert table["layer.0.up"] == table["layer.1.up"] == 1.0
    assert table["unembedding"] == pytest.approx(half), "two scopes"
    assert table["layer.1.value_embedding"] == pytest.approx(quarter**4), "four"


@pytest.mark.parametrize("scope", ["layer", "tensor"])
@pytest.mark.parametrize("name", ["beta1", "beta2", "eps"])
def test_a_channel_that_would_have_no_cell_at_all_is_refused(name, scope):
    """Every matrix of the hybrid's layers belongs to Muon: there is no AdamW to move there."""
    with pytest.raises(ValueError, match=name):
        Panel([(name, scope)], SITES, 1, "pretraining")


def test_a_plant_refuses_what_its_panel_refuses():
    with pytest.raises(ValueError, match="have no use for the channel 'beta2'"):
        make(1, (("beta2", "run"),), optimizer="sgd")
    with pytest.raises(
        ValueError, match=r"unknown channel 'beta3'; expected one of \['attention_gain', "
    ):
        make(1, (("beta3", "run"),))


def test_momentum_is_not_blended_where_there_is_none():
    with pytest.raises(ValueError, match="have no use for the channel 'momentum_blend'"):
        make(1, (("momentum_blend", "layer"),), optimizer="adamw_schedule_free")


def test_no_draw_of_a_channel_touches_the_global_generator():
    plant = make(2, TOGETHER, "swiglu")
    plant.panel.positions[:] = 0.5
    before = torch.get_rng_state()
    advance(plant, 2)
    assert torch.equal(torch.get_rng_state(), before)


@OF_ALL_PLANTS
def test_the_position_of_a_value_is_the_inverse_of_values(found):
    reachable = np.linspace(-1.0, 1.0, 21)
    if found.one_sided:
        reachable = reachable[reachable > DEAD_ZONE]
    for position in reachable:
        value = float(found.values(np.array(position)))
        assert found.position(value) == pytest.approx(position, abs=1e-9)
    assert found.position(found.neutral) == 0.0
    with pytest.raises(ValueError, match=f"{found.name} must be from "):
        found.position(2.0 * found.bounds[1] + 1.0)
