"""A restored plant continues bitwise, and another one is refused."""

import copy
from dataclasses import replace

import numpy as np
import pytest

from hpenv.lm import architecture
from hpenv.optim.muon import Muon
from hpenv.optim.optimizers import OPTIMIZERS
from hpenv.optim.schedules import WarmupFlatWarmdown
from hpenv.plant.protocol import Snapshot
from tests import tiny_plants
from tests.hpenv.pretraining.small_plants import (
    EVERY_OPTIMIZER,
    OPTIMIZER,
    advance,
    assert_same,
    assert_same_window,
    make,
    state_of,
)
from tests.tiny_plants import ALL_GROUPS, FINEST, TOGETHER


def test_restoring_a_snapshot_rewinds_the_data():
    plant = make(2)
    advance(plant, 3, 5)
    snapshot = plant.snapshot()
    first = advance(plant, 6)
    advance(plant, 9, 1)
    plant.restore(snapshot)
    assert_same_window(advance(plant, 6), first)
    assert plant.steps.tolist() == [9, 11]


@pytest.mark.parametrize("optimizer", EVERY_OPTIMIZER)
def test_a_restored_plant_continues_bitwise(optimizer):
    plant = make(2, optimizer=optimizer, base_lr=1e-2)
    plant.panel.positions[:] = [[0.5, -0.5], [0.1, 0.0]]
    advance(plant, 3)
    snapshot = plant.snapshot()
    kept = copy.deepcopy(snapshot.tensors)
    expected = advance(plant, 4)
    other = make(2, [0, 1], optimizer=optimizer, base_lr=1e-2)
    other.restore(snapshot)
    assert_same_window(advance(other, 4), expected)
    assert_same(state_of(other), state_of(plant))
    assert_same(snapshot.tensors, kept)


def test_a_snapshot_can_be_restored_under_the_present_panel():
    plant = make(1)
    plant.panel.positions[:] = [[0.5, -0.5]]
    advance(plant, 2)
    snapshot = plant.snapshot()
    plant.panel.positions[:] = [[-0.5, 0.25]]
    counterfactual = advance(plant, 3)
    plant.restore(snapshot, keep_panel=True)
    assert plant.panel.positions.tolist() == [[-0.5, 0.25]]
    assert_same_window(advance(plant, 3), counterfactual)
    plant.restore(snapshot)
    assert plant.panel.positions.tolist() == [[0.5, -0.5]]
    assert advance(plant, 3)["probe_loss"] != counterfactual["probe_loss"]


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"optimizer": "adamw"}, "optimizer"),
        ({"base_lr": 2e-3}, "base_lr"),
        ({"lr_schedule": WarmupFlatWarmdown(10)}, "lr_schedule"),
        ({"weight_decay_schedule": WarmupFlatWarmdown(10)}, "weight_decay_schedule"),
        ({"sequence_length": 32}, "sequence_length"),
        ({"channels": OPTIMIZER}, "channels"),
        ({"channels": ()}, "channels"),
    ],
)
def test_a_snapshot_of_another_configuration_is_refused_and_changes_nothing(change, key):
    snapshot, other = make(2).snapshot(), make(2, **change)
    before = state_of(other)
    with pytest.raises(ValueError, match=f"configuration differs.*'{key}'"):
        other.restore(snapshot)
    assert_same(state_of(other), before)


def test_a_snapshot_belongs_to_its_text_and_tokens_wherever_they_lie(tmp_path):
    """Two vocabularies cut one text in two ways.

    A copy of either file changes nothing.
    """
    names = [tmp_path / f"{name}.txt" for name in ("one", "copy", "other")]
    for name, text in zip(names, ("ab cd ", "ab cd ", "ab ce "), strict=True):
        name.write_text(text * 400)
    one, copied, other = ({"data": str(name), "batch_tokens": 16} for name in names)
    make(1, **copied).restore(make(1, **one).snapshot())
    with pytest.raises(ValueError, match=r"configuration differs, as .*: {'corpus': \("):
        make(1, **other).restore(make(1, **one).snapshot())
    library = pytest.importorskip("tokenizers")
    for name, merges in (("a", [("a", "b")]), ("a-copy", [("a", "b")]), ("c", [("c", "d")])):
        alphabet = sorted(library.pre_tokenizers.ByteLevel.alphabet())
        words = {word: number for number, word in enumerate([*alphabet, "".join(merges[0])])}
        encoder = library.Tokenizer(library.models.BPE(words, merges))
        encoder.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
        encoder.decoder = library.decoders.ByteLevel()
        encoder.save(str(tmp_path / f"{name}.json"))
    a, a_copy, c = (
        {**one, "tokenizer": str(tmp_path / f"{name}.json")} for name in ("a", "a-copy", "c")
    )
    snapshot = make(1, **a).snapshot()
    make(1, **a_copy).restore(snapshot)
    with pytest.raises(ValueError, match=r"configuration differs, as .*: {'tokens': \("):
        make(1, **c).restore(snapshot)


@pytest.mark.parametrize("change", [{"newton_schulz_dtype": "bfloat16"}, {"momentum": 0.9}])
def test_a_snapshot_of_a_run_under_another_rule_of_the_same_name_is_refused(change, monkeypatch):
    snapshot = make(1, optimizer="muon").snapshot()
    monkeypatch.setitem(OPTIMIZERS, "muon", dict.fromkeys(OPTIMIZERS["muon"], Muon(**change)))
    with pytest.raises(
        ValueError, match=rf"configuration differs, as .*'rule_matrix': .*{next(iter(change))}="
    ):
        make(1, optimizer="muon").restore(snapshot)


def test_a_snapshot_of_a_preset_of_another_shape_is_refused_by_what_differs(monkeypatch):
    snapshot = make(1).snapshot()
    monkeypatch.setitem(
        architecture.PRESETS, "nano", replace(architecture.PRESETS["nano"], logit_softcap=30.0)
    )
    with pytest.raises(
        ValueError, match=r"configuration differs, as .*: {'model_logit_softcap': \(15.0, 30.0\)}"
    ):
        make(1).restore(snapshot)


def test_a_snapshot_of_another_number_of_rows_is_refused():
    with pytest.raises(ValueError, match="the snapshot must have 2 rows; got 3"):
        make(2).restore(make(3).snapshot())


def test_a_snapshot_owns_its_memory():
    plant = make(1)
    snapshot: Snapshot = plant.snapshot()
    before = {name: value.clone() for name, value in snapshot.tensors.items()}
    advance(plant, 2)
    plant.panel.positions[:] = 0.5
    assert_same(snapshot.tensors, before)


@pytest.mark.parametrize("preset", ["relu2", "everything"])
@pytest.mark.parametrize("channels", [FINEST, TOGETHER], ids=["finest", "together"])
def test_a_run_with_every_dial_moved_continues_bitwise_from_a_snapshot(channels, preset):
    """Dropout, noise, skips and gates draw from (seed, step): there is nothing to remember."""
    plant, other = (tiny_plants.make(2, channels, preset, ALL_GROUPS) for _ in range(2))
    positions = np.random.default_rng(5).uniform(-0.4, 0.4, plant.panel.positions.shape)
    plant.panel.move(positions, np.ones(2, dtype=bool))
    advance(plant, 2, 3)
    snapshot = plant.snapshot()
    expected = advance(plant, 2)
    assert not expected.divergence.any()
    other.reset([1, 2])
    other.restore(snapshot)
    assert_same_window(advance(other, 2), expected)
    assert_same(state_of(other), state_of(plant))
    plant.restore(snapshot)
    pieces = [advance(plant, 1), advance(plant, 1)][-1]
    means = ("window/train_loss", "window/update_", "window/layer_update_")  # over other windows
    assert_same(state_of(plant), state_of(other), but=means)
    assert np.array_equal(pieces["layer_gradient_max"], expected["layer_gradient_max"])
