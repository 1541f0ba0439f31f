import numpy as np
import pytest

from hpenv.control.channels import channel, channels_of
from hpenv.control.panel import Panel, TensorSite

SITES = {
    "embedding": TensorSite("embedding", "adamw"),
    "layer.0.up": TensorSite("matrix", "muon", 0),
    "layer.1.up": TensorSite("matrix", "muon", 1),
    "layer.1.value_embedding": TensorSite("embedding", "adamw", 1),
    "unembedding": TensorSite("unembedding", "adamw"),
}
LAYERED = {
    "layer.0.up": TensorSite("matrix", "adamw", 0),
    "layer.1.up": TensorSite("matrix", "adamw", 1),
}
EVERY_ROW = np.ones(2, dtype=bool)
CHANNELS = channels_of("pretraining")
PAIRS = [(name, scope) for name, found in CHANNELS.items() for scope in found.scopes]


def test_positions_are_logarithms_of_multipliers():
    values = CHANNELS["lr"].values(np.array([-1.0, -0.5, 0.0, 0.25, 0.5, 1.0]))
    assert values == pytest.approx([0.01, 0.1, 1.0, 100**0.25, 10.0, 100.0], rel=1e-12)


KEYS = {
    "run": dict.fromkeys(SITES, "run"),
    "optimizer": {tensor: site.optimizer for tensor, site in SITES.items()},
    "group": {tensor: site.group for tensor, site in SITES.items()},
    "layer": {
        "layer.0.up": "layer.0",
        "layer.1.up": "layer.1",
        "layer.1.value_embedding": "layer.1",
    },
    "tensor": {tensor: tensor for tensor, site in SITES.items() if site.layer is not None},
}


@pytest.mark.parametrize(("name", "scope"), PAIRS)
def test_every_cell_moves_the_tensors_of_its_key_and_no_others(name, scope):
    panel, found = Panel([(name, scope)], SITES, 2, "pretraining"), CHANNELS[name]
    users = {
        t for t, site in SITES.items() if not found.optimizers or site.optimizer in found.optimizers
    }
    keys = {tensor: key for tensor, key in KEYS[scope].items() if tensor in users}
    cells = panel.banks[name, scope].cells
    assert (
        panel.positions.shape
        == (2, len(set(keys.values())))
        == (2, len(panel.names))
        == (2, len(panel.kinds))
    )
    assert cells == tuple(dict.fromkeys(keys.values())), "in the order of the tensors"
    assert panel.table(name) is None
    for column, cell in enumerate(cells):
        panel.positions[:] = 0.0
        panel.positions[1, column] = 0.5
        moved = CHANNELS[name].values(np.array([0.5]))[0]
        assert moved != found.neutral
        expected = [moved if keys.get(tensor) == cell else found.neutral for tensor in SITES]
        assert panel.table(name).tolist() == [[found.neutral] * len(SITES), expected]
        assert panel.values()[1].tolist() == [
            moved if c == column else found.neutral for c in range(len(cells))
        ]


@pytest.mark.parametrize(
    "name", [name for name, found in CHANNELS.items() if "layer" in found.scopes]
)
def test_a_value_of_a_layer_is_that_of_its_tensors_and_one_of_the_run_is_everywhere(name):
    panel = Panel([(name, "layer")], LAYERED, 2, "pretraining")
    assert panel.per_layer(name) is None
    panel.positions[1] = [0.5, 0.9]
    moved = CHANNELS[name].values(np.array([0.5, 0.9])).tolist()
    assert panel.per_layer(name).tolist() == [[CHANNELS[name].neutral] * 2, moved]
    if "run" in CHANNELS[name].scopes:
        panel = Panel([(name, "run")], LAYERED, 2, "pretraining")
        panel.positions[1] = 0.5
        assert (
            panel.per_layer(name)[1].tolist() == moved[:1] * 2
            and panel.per_run(name)[1] == moved[0]
        )


def test_the_layers_are_those_of_the_sites_in_the_order_of_their_number():
    sites = {
        "b": TensorSite("matrix", "adamw", 1),
        "a": TensorSite("matrix", "adamw", 0),
        "c": TensorSite("matrix", "adamw", 1),
    }
    panel = Panel([("lr", "layer"), ("dropout", "layer")], sites, 1, "pretraining")
    panel.positions[:] = [[0.5, 0.0, 0.5, 0.0]]  # the columns are in the order of the tensors
    assert panel.names[:2] == ("lr/layer.1", "lr/layer.0")
    assert panel.per_layer("lr")[0] == pytest.approx([1.0, 10.0])
    assert panel.layers.tolist() == [1, 0, 1]


def test_one_sided_channels_are_not_read_in_their_dead_zone():
    for name in ("dropout", "state_norm_cap", "grad_clip", "grad_skip", "grad_noise"):
        panel = Panel([(name, "layer")], LAYERED, 3, "pretraining")
        panel.positions[:] = [[-1.0, 0.1], [0.0, -0.3], [0.05, 0.1]]
        assert panel.table(name) is None


def test_names_kinds_and_immediacy_follow_the_order_of_the_columns():
    channels = [
        ("lr", "optimizer"),
        ("weight_decay", "run"),
        ("dropout", "layer"),
        ("lr", "group"),
        ("beta2", "run"),
    ]
    panel = Panel(channels, SITES, 1, "pretraining")
    groups = ("lr/embedding", "lr/matrix", "lr/unembedding")
    dropout = ("dropout/layer.0", "dropout/layer.1")
    assert panel.names == ("lr/adamw", "lr/muon", "weight_decay", *dropout, *groups, "beta2")
    assert panel.kinds == (
        "scale",
        "scale",
        "shrink",
        "skip",
        "skip",
        "scale",
        "scale",
        "scale",
        "scale",
    )
    assert panel.immediate == (False, False, False, True, True, False, False, False, False)


def test_two_scopes_of_one_channel_multiply():
    panel = Panel([("lr", "run"), ("lr", "group"), ("lr", "layer")], SITES, 1, "pretraining")
    panel.move(np.array([[0.5, 0.0, -0.5, 0.25, 0.0, 0.5]]), np.array([True]))
    expected = {
        "embedding": 10.0,
        "layer.0.up": 1.0,
        "layer.1.up": 10.0,
        "layer.1.value_embedding": 100.0,
        "unembedding": 10 * 100**0.25,
    }
    assert panel.table("lr")[0] == pytest.approx([expected[tensor] for tensor in panel.tensors])


def test_scopes_that_undo_each_other_are_neutral_up_to_rounding():
    panel = Panel([("lr", "run"), ("lr", "layer")], SITES, 1, "pretraining")
    panel.positions[:] = [[0.7, -0.7, -0.7]]
    assert panel.table("lr")[0, 1:4] == pytest.approx(np.ones(3), rel=1e-12)


@pytest.mark.parametrize(
    "name", [name for name, found in CHANNELS.items() if len(found.scopes) == 5]
)
def test_the_product_of_all_scopes_stays_within_the_bounds(name):
    sites = {"layer.0.up": TensorSite("matrix", "adamw", 0)}
    panel = Panel([(name, scope) for scope in CHANNELS[name].scopes], sites, 3, "pretraining")
    panel.positions[:] = [[1.0] * 5, [-1.0] * 5, [0.0] * 5]
    assert panel.table(name)[:, 0] == pytest.approx(
        [CHANNELS[name].bounds[1], CHANNELS[name].bounds[0], 1.0]
    )


def test_the_order_in_which_scopes_are_named_does_not_matter():
    """Twice up and once down is once up, wherever the bound is met on the way."""
    sites = {"layer.0.up": TensorSite("matrix", "adamw", 0)}
    for order in (
        ("run", "layer", "tensor"),
        ("run", "tensor", "layer"),
        ("layer", "run", "tensor"),
    ):
        panel = Panel([("lr", scope) for scope in order], sites, 1, "pretraining")
        panel.positions[0, [order.index(scope) for scope in ("run", "layer", "tensor")]] = [
            1.0,
            1.0,
            -1.0,
        ]
        assert panel.table("lr") == pytest.approx(np.array([[100.0]])), order


def test_a_channel_that_is_not_there_has_no_table():
    panel = Panel([("lr", "run")], SITES, 1, "pretraining")
    panel.positions[:] = 0.5
    assert panel.table("weight_decay") is None
    assert panel.per_layer("dropout") is None and panel.per_run("logit_softcap") is None
    assert Panel([], SITES, 3, "pretraining").values().shape == (3, 0)


def test_every_cell_of_a_whole_surface_has_the_value_of_its_own_channel():
    pairs = [pair for pair in PAIRS if CHANNELS[pair[0]].neutral == 1.0 or pair[1] == "layer"]
    panel = Panel(pairs, SITES, 2, "pretraining")
    panel.positions[:] = np.random.default_rng(0).uniform(-1.0, 1.0, panel.positions.shape)
    values = panel.values()
    for bank in panel.banks.values():
        own = bank.channel.values(panel.positions[:, bank.columns])
        assert values[:, bank.columns].tolist() == own.tolist(), bank.channel.name


def test_what_is_read_follows_the_positions_and_is_the_readers_own():
    panel = Panel([("lr", "layer"), ("dropout", "layer")], LAYERED, 1, "pretraining")
    for position in (0.5, -0.5, 0.5):
        panel.positions[:] = position
        expected = CHANNELS["lr"].values(np.array([position]))[0]
        for _ in range(2):  # what the first reader writes into it does not reach the second
            table, values = panel.table("lr"), panel.values()
            assert (table == expected).all() and (values[:, :2] == expected).all()
            table[:], values[:] = 3.0, 3.0
        assert (panel.per_layer("dropout") is None) == (position < 0)
    panel.positions = np.zeros_like(panel.positions)
    assert panel.table("lr") is None and (panel.values()[:, :2] == 1.0).all()


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
        (
            ("learning_rate", "run"),
            "pretraining",
            r"'learning_rate'; expected one of \['attention_gain', .*'weight_noise'\]",
        ),
        (
            ("lr", "head"),
            "pretraining",
            r"'lr' has no scope 'head'; expected one of \['run', 'optimizer', 'group', 'la",
        ),
        (
            ("grad_skip", "run"),
            "pretraining",
            r"'grad_skip' has no scope 'run'; expected one of \['layer'\]",
        ),
        (
            ("beta1", "run"),
            "posttraining",
            r"'beta1' applies to pretraining alone; expected one of \['direction_refresh', ",
        ),
    ],
)
def test_channels_that_do_not_fit_are_refused_by_name(pair, plant, message):
    with pytest.raises(ValueError, match=message):
        channel(*pair, plant, ["adamw"])
    with pytest.raises(ValueError, match=message):
        Panel([pair], SITES, 1, plant)


def test_a_pair_given_twice_is_refused():
    with pytest.raises(ValueError, match="twice"):
        Panel([("lr", "run"), ("lr", "run")], SITES, 1, "pretraining")
