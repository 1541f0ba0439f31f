import numpy as np
import pytest

from hpenv.channels import CHANNELS, channel
from hpenv.panel import Panel, Site

SITES = {
    "embedding": Site("embedding", "adamw"),
    "layer.0.up": Site("matrix", "muon", 0),
    "layer.1.up": Site("matrix", "muon", 1),
    "unembedding": Site("unembedding", "adamw"),
}
EVERY_ROW = np.ones(2, dtype=bool)
PAIRS = [(name, scope) for name, found in CHANNELS.items() for scope in found.scopes]


@pytest.mark.parametrize("found", CHANNELS.values(), ids=CHANNELS)
def test_values_are_exactly_neutral_at_zero_and_within_bounds_everywhere(found):
    positions = np.linspace(-1, 1, 2001)
    values = found.values(positions)
    assert found.values(np.zeros(3)).tolist() == [found.neutral] * 3
    assert values.min() >= found.bounds[0] and values.max() <= found.bounds[1]
    assert found.values(np.array([-1.0, 1.0])) == pytest.approx(found.bounds)
    assert (np.diff(values) > 0).all()


def test_positions_are_logarithms_of_multipliers():
    values = CHANNELS["lr"].values(np.array([-1.0, -0.5, 0.0, 0.25, 0.5, 1.0]))
    assert values == pytest.approx([0.01, 0.1, 1.0, 100**0.25, 10.0, 100.0], rel=1e-12)


@pytest.mark.parametrize(("name", "scope"), PAIRS)
def test_every_cell_moves_the_tensors_of_its_key_and_no_others(name, scope):
    panel = Panel([(name, scope)], SITES, 2, "pretraining")
    keys = {
        "run": dict.fromkeys(SITES, "run"),
        "optimizer": {tensor: site.optimizer for tensor, site in SITES.items()},
        "group": {tensor: site.group for tensor, site in SITES.items()},
    }[scope]
    assert panel.positions.shape == (2, len(set(keys.values()))) == (2, len(panel.names)) == (2, len(panel.kinds))
    for column, cell in enumerate(panel.banks[name, scope].cells):
        panel.positions[:] = 0.0
        panel.positions[1, column] = 0.5
        for tensor in SITES:
            moved = CHANNELS[name].values(np.array([0.5]))[0] if keys[tensor] == cell else CHANNELS[name].neutral
            assert panel.multiplier(name, tensor).tolist() == [CHANNELS[name].neutral, moved]


def test_names_and_kinds_follow_the_order_of_the_columns():
    panel = Panel([("lr", "optimizer"), ("weight_decay", "run"), ("lr", "group")], SITES, 1, "pretraining")
    groups = ("lr/embedding", "lr/matrix", "lr/unembedding")
    assert panel.names == ("lr/adamw", "lr/muon", "weight_decay", *groups)
    assert panel.kinds == ("scale", "scale", "shrink", "scale", "scale", "scale")


def test_two_scopes_of_one_channel_multiply():
    panel = Panel([("lr", "run"), ("lr", "group")], SITES, 1, "pretraining")
    panel.move(np.array([[0.5, 0.0, -0.5, 0.25]]), np.array([True]))
    assert panel.multiplier("lr", "embedding") == pytest.approx([10.0])
    assert panel.multiplier("lr", "layer.1.up") == pytest.approx([1.0])
    assert panel.multiplier("lr", "unembedding") == pytest.approx([10 * 100**0.25])


def test_a_channel_that_is_not_there_has_no_multiplier():
    panel = Panel([("lr", "run")], SITES, 1, "pretraining")
    assert panel.multiplier("weight_decay", "embedding") is None
    assert Panel([], SITES, 3, "pretraining").values().shape == (3, 0)


def test_moves_are_clipped_and_reach_the_chosen_rows_alone():
    panel = Panel([("lr", "run"), ("weight_decay", "run")], SITES, 2, "pretraining")
    panel.move(np.array([[0.5, -0.5], [0.5, -0.5]]), EVERY_ROW)
    panel.move(np.array([[7.0, -7.0], [0.9, 0.9]]), np.array([True, False]))
    assert panel.positions.tolist() == [[1.0, -1.0], [0.5, -0.5]]
    assert panel.values()[0] == pytest.approx([100.0, 0.01])


def test_the_panel_keeps_no_hold_of_the_action():
    panel = Panel([("lr", "run")], SITES, 2, "pretraining")
    action = np.array([[0.5], [0.5]])
    panel.move(action, EVERY_ROW)
    action[:] = -1.0
    assert panel.positions.tolist() == [[0.5], [0.5]]
    panel.values()[:] = 3.0
    assert panel.values() == pytest.approx(np.full((2, 1), 10.0))


@pytest.mark.parametrize(
    ("pair", "plant", "message"),
    [
        (("learning_rate", "run"), "pretraining", r"'learning_rate'; expected one of \['lr', 'weight_decay'\]"),
        (("lr", "layer"), "pretraining", r"'lr' has no scope 'layer'; expected one of \['run', 'optimizer', 'group'\]"),
        (("lr", "run"), "posttraining", r"'lr' does not apply to the plant 'posttraining'; it applies to \['pretrain"),
    ],
)
def test_channels_that_do_not_fit_are_refused_by_name(pair, plant, message):
    with pytest.raises(ValueError, match=message):
        channel(*pair, plant)
    with pytest.raises(ValueError, match=message):
        Panel([pair], SITES, 1, plant)


def test_a_pair_given_twice_is_refused():
    with pytest.raises(ValueError, match="twice"):
        Panel([("lr", "run"), ("lr", "run")], SITES, 1, "pretraining")
