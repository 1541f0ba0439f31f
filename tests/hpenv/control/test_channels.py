"""The table of channels: values, entries, and where each is refused."""

import math

import numpy as np
import pytest
import torch

from hpenv.control import channels
from hpenv.control.channel import DEAD_ZONE
from hpenv.control.channels import channel
from hpenv.control.panel import Panel, TensorSite
from hpenv.optim.optimizers import OPTIMIZERS
from hpenv.posttraining.intervention import Intervention
from hpenv.posttraining.plant import GRPOPlant
from hpenv.pretraining import exploration, forward_channels, rates
from hpenv.pretraining import gradient_channels as gradients
from tests.hpenv.control.every_channel import CHANNELS
from tests.tiny_plants import TOGETHER, advance, make

READERS = {
    "rates": rates,
    "forward_channels": forward_channels,
    "GRPOPlant": GRPOPlant,
    "Intervention": Intervention,
    "gradient_channels": gradients,
    "exploration": exploration,
}
OF_ALL_PLANTS = pytest.mark.parametrize("found", channels.CHANNELS.values(), ids=channels.CHANNELS)
EVERY_CHANNEL = pytest.mark.parametrize("found", CHANNELS.values(), ids=CHANNELS)


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
    start = found.floor or found.neutral
    middle = math.sqrt(far * start) if found.warp == "log" else (far + start) / 2
    assert found.values(np.array([position])) == pytest.approx([middle], rel=1e-12)


@OF_ALL_PLANTS
def test_the_entry_is_consistent(found):
    assert found.bounds[0] <= found.neutral <= found.bounds[1]
    assert found.warp == "linear" or found.bounds[0] > 0 or 0 < found.floor < found.bounds[1]
    assert found.floor == 0 or (found.neutral == 0 and found.one_sided)
    is_noise = found.kind == "unsafe" and found.name.endswith(("noise", "exploration"))
    assert found.one_sided == (found.kind in ("clip", "skip") or is_noise)
    assert found.immediate <= (found.surface == "forward")
    assert found.unit and found.source
    for reader in found.reads.split(", "):  # each is there
        holder, _, name = reader.partition(".")
        assert callable(vars(READERS[holder])[name]), reader


@pytest.mark.parametrize("name", ["exploration", "weight_noise"])
def test_noise_moves_in_its_logarithm_above_the_floor_and_is_exactly_off_at_it(name):
    found = CHANNELS[name]
    low, high = found.floor, found.bounds[1]
    assert found.values(np.array([-1.0, 0.0, DEAD_ZONE])).tolist() == [0.0, 0.0, 0.0]
    just_above = found.values(np.array([DEAD_ZONE + 1e-6]))[0]
    assert just_above == pytest.approx(low, rel=1e-4) and just_above > low
    thirds = found.values(np.array([0.4, 0.7, 1.0]))
    ratio = (high / low) ** (1 / 3)
    assert thirds == pytest.approx([low * ratio, low * ratio**2, high], rel=1e-12)
    for value in (low, low / 2):
        with pytest.raises(ValueError, match=f"{name} must be 0.0 or above its floor of"):
            found.position(value)


def test_a_factor_moves_a_value_by_the_same_position_wherever_it_stands():
    for name in ("lr", "momentum", "exploration"):
        found = CHANNELS[name]
        for position in (0.2, 0.35, 0.5):
            up, down = found.move_of(1.2), found.move_of(0.9)
            before, higher, lower = found.values(
                np.array([position, position + up, position + down])
            )
            assert higher / before == pytest.approx(1.2) and lower / before == pytest.approx(0.9)
    with pytest.raises(ValueError, match="grad_noise must move up in the logarithm"):
        CHANNELS["grad_noise"].move_of(1.2)


def test_the_momentum_reaches_beyond_the_bounds_of_the_paper_around_its_base():
    for base in (0.8, 0.9, 0.95):
        odds = base / (1 - base) * CHANNELS["momentum"].values(np.array([-1.0, 1.0]))
        low, high = odds / (1 + odds)
        assert low < 0.85 and high > 0.99


def test_the_table_is_that_of_the_paper_and_its_further_dials():
    surfaces = {
        s: {c.name for c in CHANNELS.values() if c.surface == s}
        for s in ("forward", "optimizer", "backward")
    }
    assert surfaces["backward"] == {"grad_skip", "grad_gate", "grad_truncate", "momentum_blend"}
    of_adaptive = {"momentum", "exploration", "weight_noise"}
    of_sidecar = {"beta1", "beta2", "eps", "grad_clip", "grad_noise"}
    assert surfaces["optimizer"] == of_sidecar | of_adaptive
    assert {c.name for c in CHANNELS.values() if c.kind == "unsafe"} == {
        "exploration",
        "grad_noise",
        "momentum_blend",
        "weight_noise",
    }
    assert {c.name for c in CHANNELS.values() if c.kind == "clip"} == {
        "grad_clip",
        "state_norm_cap",
    }
    assert all(
        found.immediate == found.reads.endswith("forward_dials") for found in CHANNELS.values()
    )


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


@pytest.mark.parametrize(
    "name", ["dropout", "state_norm_cap", "grad_clip", "grad_noise", "exploration"]
)
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


@pytest.mark.parametrize("dial", CHANNELS.values(), ids=lambda dial: dial.name)
def test_slopes_are_the_derivatives_of_the_values(dial):
    positions = np.array([-0.9, -0.31, 0.2, 0.55, 0.95])
    numeric = (dial.values(positions + 1e-6) - dial.values(positions - 1e-6)) / 2e-6
    is_moved = (positions > 0.1) if dial.one_sided else np.ones(5, dtype=bool)
    assert dial.slopes(positions)[is_moved] == pytest.approx(numeric[is_moved], rel=1e-5)
    # In its dead zone a channel has the slope at the end of the zone.
    if dial.one_sided:
        assert dial.slopes(np.array([-0.5])) == dial.slopes(np.array([0.1]))
