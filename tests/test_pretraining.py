"""The plant: rows are independent, no measurement moves anything.

A single run is a row of a population.

Past the usual length, because a module's tests stand in one file.
"""

import copy
import itertools
import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from hpenv.lm import architecture, model
from hpenv.lm.data import load_corpus
from hpenv.optim.muon import JORDAN, Muon
from hpenv.optim.optimizers import OPTIMIZERS
from hpenv.optim.rules import Rates
from hpenv.optim.schedules import Constant, PiecewiseConstant, WarmupFlatWarmdown
from hpenv.plant.protocol import Snapshot
from hpenv.pretraining.config import PretrainingConfig
from hpenv.pretraining.plant import PretrainingPlant
from tests import tiny_plants
from tests.tiny_plants import ALL_GROUPS, FINEST, TOGETHER

TINY = PretrainingConfig(data="synthetic", batch_tokens=64, sequence_length=16, eval_tokens=2048)
GROUPS = ("embedding", "unembedding", "matrix")
RUN = (("lr", "run"), ("weight_decay", "run"))
OPTIMIZER = (("lr", "optimizer"), ("weight_decay", "optimizer"))
EVERY_OPTIMIZER = sorted(OPTIMIZERS)


def make(num_rows=1, seeds=None, channels=RUN, **changes):
    plant = PretrainingPlant(replace(TINY, **changes), num_rows, channels)
    plant.reset(list(range(100, 100 + num_rows)) if seeds is None else seeds)
    return plant


def advance(plant, *num_steps):
    return plant.advance(
        np.array(num_steps if len(num_steps) == plant.num_rows else num_steps * plant.num_rows)
    )


def state_of(plant, row=None):
    """Copies of every tensor of the plant, or of one row of them."""
    tensors = plant.snapshot().tensors
    return {name: value if row is None else value[row] for name, value in tensors.items()}


def assert_same(left, right, but=()):
    assert left.keys() == right.keys()
    different = [
        name
        for name in left
        if not torch.equal(left[name], right[name]) and not name.startswith(but)
    ]
    assert different == []


def assert_same_window(left, right, row=slice(None), other=slice(None)):
    for name, value in left.arrays().items():
        assert np.array_equal(value[row], right.arrays()[name][other]), name


@pytest.mark.parametrize("optimizer", EVERY_OPTIMIZER)
def test_training_learns_under_every_optimizer(optimizer):
    free = "prodigy" in optimizer or "dadapt" in optimizer
    base_lr = 0.1 if "sgd" in optimizer else 0.01
    if free:  # a multiplier of the estimate of the rule
        base_lr = dict.fromkeys(("embedding", "unembedding", "matrix"), 0.5)
        base_lr["matrix"] = 0.01 if "muon" in optimizer else 0.5
    num_steps = 60 if free else 12  # the estimate starts at a millionth
    plant = make(optimizer=optimizer, base_lr=base_lr)
    first, last = advance(plant, 0), advance(plant, num_steps)
    assert first["probe_loss"][0] == pytest.approx(math.log(256), abs=0.02)
    assert last["probe_loss"][0] < first["probe_loss"][0] - 0.01
    assert last.steps.tolist() == [num_steps] and last.divergence.tolist() == [0]


def test_a_row_of_a_population_is_the_single_run_of_its_seed():
    """After 12 steps at ten times the base rate.

    On an AMD EPYC with torch 2.13 and one thread the two are bitwise equal. A library that adds up
    a batched product in another order moves the last bits of it; the bounds are a few hundred
    roundings of float32.
    """
    seeds = [11, 2**61, 0, 3, 3]
    population = make(5, seeds)
    population.panel.positions[:] = [0.5, 0.2]
    window = advance(population, 12)
    for row, seed in enumerate(seeds):
        single = make(1, [seed])
        single.panel.positions[:] = [0.5, 0.2]
        alone = advance(single, 12)
        for name in ("train_loss", "probe_loss", "gradient_norm", "momentum_norm"):
            assert window.arrays()[name][row] == pytest.approx(alone.arrays()[name][0], rel=1e-4), (
                name
            )
        for name, weight in single.weights.items():
            torch.testing.assert_close(
                population.weights[name][row], weight[0], rtol=1e-3, atol=1e-4
            )
    assert_same(state_of(population, 3), state_of(population, 4))  # two rows of one seed
    assert len(set(window["probe_loss"].tolist())) == 4


def test_a_row_that_is_reset_leaves_the_others_bitwise_alone_and_starts_anew():
    seeds = [5, 6, 7]
    plant, undisturbed, fresh = make(3, seeds), make(3, seeds), make(3, [5, 40, 7])
    for each in (plant, undisturbed):
        each.panel.positions[:] = [0.3, -0.2]
        advance(each, 7)
    plant.reset([40], [1])
    assert plant.panel.positions.tolist() == [[0.3, -0.2], [0.0, 0.0], [0.3, -0.2]]
    assert plant.steps.tolist() == [7, 0, 7]
    window, expected, anew = advance(plant, 5), advance(undisturbed, 5), advance(fresh, 5)
    for row in (0, 2):
        assert_same(state_of(plant, row), state_of(undisturbed, row))
        assert_same_window(window, expected, row, row)
    assert_same(state_of(plant, 1), state_of(fresh, 1))
    assert_same_window(window, anew, 1, 1)


@pytest.mark.parametrize("optimizer", EVERY_OPTIMIZER)
def test_rows_stand_at_different_clocks(optimizer):
    schedule = WarmupFlatWarmdown(6, warmup_steps=3)
    plant = make(2, [5, 6], optimizer=optimizer, lr_schedule=schedule, base_lr=1e-2)
    advance(plant, 3, 0)
    advance(plant, 1, 4)
    advance(plant, 0, 1)
    for row, (seed, num_steps) in enumerate([(5, 4), (6, 5)]):
        single = make(1, [seed], optimizer=optimizer, lr_schedule=schedule, base_lr=1e-2)
        advance(single, num_steps)
        assert plant.steps[row] == num_steps
        for name, weight in single.weights.items():
            torch.testing.assert_close(plant.weights[name][row], weight[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("optimizer", EVERY_OPTIMIZER)
def test_a_row_that_takes_no_step_does_not_move(optimizer):
    plant = make(3, optimizer=optimizer, base_lr=1e-2)
    before = advance(plant, 4, 2, 4)
    frozen = state_of(plant, 1)
    after = advance(plant, 5, 0, 1)
    assert_same(state_of(plant, 1), frozen)
    assert_same_window(after, before, 1, 1)
    assert after.steps.tolist() == [9, 2, 5]


def test_no_steps_only_measures():
    plant = make(2)
    moved = advance(plant, 3)
    before = state_of(plant)
    for _ in range(2):
        assert_same_window(advance(plant, 0), moved)
    assert_same(state_of(plant), before)


@pytest.mark.parametrize("optimizer", ["adamw_muon", "adamw_muon_nanochat", "adamw_schedule_free"])
def test_advancing_in_one_go_equals_advancing_in_pieces(optimizer):
    arguments = {
        "optimizer": optimizer,
        "base_lr": 1e-2,
        "lr_schedule": WarmupFlatWarmdown(7, warmup_steps=2),
    }
    whole, pieces = make(2, **arguments), make(2, **arguments)
    for plant in (whole, pieces):
        plant.panel.positions[:] = [[0.4, -0.3], [-0.1, 0.9]]
    at_once = advance(whole, 7)
    taken = np.array([(3, 1), (2, 2), (2, 4)])
    windows = [advance(pieces, *numbers) for numbers in taken]
    assert_same(state_of(whole), state_of(pieces), but="window/train_loss")
    mean = (np.array([window["train_loss"] for window in windows]) * taken).sum(0) / 7
    assert mean == pytest.approx(at_once["train_loss"], rel=1e-12)


def test_the_training_loss_is_the_mean_over_the_window():
    plant, one_by_one = make(), make()
    losses = [advance(one_by_one, 1)["train_loss"][0] for _ in range(6)]
    assert advance(plant, 4)["train_loss"][0] == pytest.approx(np.mean(losses[:4]), rel=1e-12)
    assert advance(plant, 2)["train_loss"][0] == pytest.approx(np.mean(losses[4:]), rel=1e-12)


def test_norms_are_those_of_the_last_gradient_and_of_the_first_moments():
    plant = make(optimizer="sgd", base_lr=0.0)
    window = advance(plant, 1)
    buffers = [state["momentum"][0].flatten() for state in plant.optimizer_state.values()]
    # The first heavy-ball buffer is the first gradient.
    assert window["gradient_norm"][0] == pytest.approx(torch.cat(buffers).norm().item(), rel=1e-5)
    assert window["momentum_norm"][0] == pytest.approx(window["gradient_norm"][0], rel=1e-5)
    assert advance(plant, 1)["momentum_norm"][0] > window["momentum_norm"][0]


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
    """Two vocabularies cut one text in two ways; a copy of either file changes nothing."""
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


def test_evaluation_touches_nothing_and_is_the_mean_over_validation_in_bits():
    plant = make(2)
    advance(plant, 5)
    before, versions = state_of(plant), [weight._version for weight in plant.weights.values()]
    measured = plant.evaluate()
    assert np.array_equal(plant.evaluate(), measured)
    assert_same(state_of(plant), before)
    assert [weight._version for weight in plant.weights.values()] == versions
    validation = load_corpus("synthetic", "bytes").validation.long()
    starts = np.linspace(0, len(validation) - 17, 128).astype(np.int64)
    sequences = torch.stack([validation[start : start + 17] for start in starts]).expand(2, -1, -1)
    rope = model.rope_tables(plant.model_config, 16, "cpu")
    losses = model.token_losses(
        plant.weights, plant.model_config, sequences[..., :-1], sequences[..., 1:], rope
    )
    assert measured == pytest.approx(losses.mean(1).numpy() / math.log(2), rel=1e-5)


def test_training_probe_and_validation_are_read_from_their_own_slice(monkeypatch):
    plant = make(1)
    poisoned = {"train": 10, "probe": 20, "validation": 30}
    for part, symbol in poisoned.items():
        plant._tokens[part] = torch.full_like(plant._tokens[part], symbol)
    seen = set()
    for name in ("mean_losses", "token_losses"):
        original = getattr(model, name)

        def spy(weights, config, inputs, targets, rope, *more, original=original):
            seen.update(inputs.unique().tolist(), targets.unique().tolist())
            return original(weights, config, inputs, targets, rope, *more)

        monkeypatch.setattr(model, name, spy)
        plant._loss = spy if name == "mean_losses" else plant._loss
    advance(plant, 0)
    assert seen == {20}
    seen.clear()
    advance(plant, 1)
    assert seen == {10, 20}
    seen.clear()
    plant.evaluate()
    assert seen == {30}


@pytest.mark.parametrize(
    "optimizer", ["sgd_schedule_free", "adamw_schedule_free", "schedule_free_adamw_muon"]
)
def test_a_schedule_free_plant_is_measured_at_the_average(optimizer):
    plant = make(optimizer=optimizer, base_lr=1e-2)
    window, score = advance(plant, 10), plant.evaluate()
    for name, weight in plant.weights.items():
        average = plant._rule(name).evaluation_weights(weight, plant.optimizer_state[name])
        is_averaged = (
            optimizer != "schedule_free_adamw_muon" or architecture.parameter_kind(name) != "matrix"
        )
        assert torch.equal(average, weight) != is_averaged, name
        weight.copy_(average)
        if is_averaged:
            plant.optimizer_state[name]["z"].copy_(
                average
            )  # x = y = z: the same plant, standing at its average
    assert plant.evaluate() == pytest.approx(score, rel=1e-5)
    assert advance(plant, 0)["probe_loss"] == pytest.approx(window["probe_loss"], rel=1e-5)


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("way", ["base_lr", "lr_schedule"])
def test_rates_and_schedules_of_a_group_reach_that_group_alone(group, way):
    off = 0.0 if way == "base_lr" else PiecewiseConstant((0.0,), 1)
    on = 1e-2 if way == "base_lr" else Constant()
    plant = make(**{way: {name: on if name == group else off for name in GROUPS}})
    before = state_of(plant)
    advance(plant, 3)
    moved = {
        name
        for name, weight in plant.weights.items()
        if not torch.equal(before[f"weights/{name}"], weight)
    }
    assert {architecture.parameter_kind(name) for name in moved} == {group}


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("way", ["base_weight_decay", "weight_decay_schedule"])
def test_weight_decay_of_a_group_reaches_that_group_alone(group, way):
    off = 0.0 if way == "base_weight_decay" else PiecewiseConstant((0.0,), 1)
    on = 0.5 if way == "base_weight_decay" else Constant()
    arguments = {"base_weight_decay": 0.5} | {
        way: {name: on if name == group else off for name in GROUPS}
    }
    with_decay, without = make(**arguments), make(base_weight_decay=0.0)
    first = state_of(with_decay)
    advance(with_decay, 1)
    advance(without, 1)
    for name, weight in with_decay.weights.items():
        decay = 1e-3 * 0.5 * first[f"weights/{name}"] * (architecture.parameter_kind(name) == group)
        torch.testing.assert_close(weight, without.weights[name] - decay, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("channels", "column", "kinds"),
    [
        (RUN, 0, set(GROUPS)),
        (OPTIMIZER, 0, {"embedding", "unembedding"}),
        (OPTIMIZER, 1, {"matrix"}),
        ((("lr", "group"),), 0, {"embedding"}),
    ],
)
def test_one_cell_follows_to_the_exact_change_of_every_weight(channels, column, kinds):
    """The first step by hand.

    AdamW moves by lr g / (|g| + eps), Muon by lr times the orthogonalized gradient.
    """
    plant = make(1, channels=channels, base_lr=2e-3, base_weight_decay=0.3)
    plant.panel.positions[0, column] = 0.5  # ten times the base rate
    for weight in plant.weights.values():
        if not weight.any():  # projections that begin at zero let no gradient through
            weight.copy_(
                torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)) * 0.1
            )
    before = {name: weight[0].clone() for name, weight in plant.weights.items()}
    leaves = {name: weight.clone().requires_grad_() for name, weight in plant.weights.items()}
    losses = model.mean_losses(leaves, plant.model_config, *plant._batch(), plant._rope)
    gradients = dict(
        zip(leaves, torch.autograd.grad(losses.sum(), list(leaves.values())), strict=True)
    )
    advance(plant, 1)
    for name, weight in plant.weights.items():
        kind, g = architecture.parameter_kind(name), gradients[name][0]
        lr = 2e-2 if kind in kinds else 2e-3
        assert g.any(), name
        if kind == "matrix":
            tall = g.shape[0] > g.shape[1]
            x = (g.T if tall else g).double()
            x = x / x.norm()
            for a, b, c in JORDAN:
                gram = x @ x.T
                x = a * x + b * gram @ x + c * gram @ gram @ x
            factor = max(1.0, g.shape[0] / g.shape[1]) ** 0.5
            expected = (before[name] * (1 - lr * 0.3) - lr * factor * (x.T if tall else x)).float()
        else:
            expected = before[name] * (1 - lr * 0.3) - lr * g / (g.abs() + 1e-10)
        torch.testing.assert_close(weight[0], expected, rtol=1e-5, atol=lr * 1e-2)
        assert (weight[0] - expected).abs().mean() < lr * 1e-3
        assert not torch.equal(weight[0], before[name])


def test_the_decay_cell_follows_to_the_exact_change_of_a_weight():
    """With no gradient to speak of left out: the difference of two decays is lr (wd' - wd) w."""
    plain, decayed = make(1, base_weight_decay=0.02), make(1, base_weight_decay=0.02)
    decayed.panel.positions[0, 1] = 0.5  # ten times
    first = {name: weight.clone() for name, weight in plain.weights.items()}
    advance(plain, 1)
    advance(decayed, 1)
    for name, weight in decayed.weights.items():
        expected = plain.weights[name] - 1e-3 * (0.2 - 0.02) * first[name]
        torch.testing.assert_close(weight, expected, rtol=0, atol=1e-6)


#: Steps of each decision of a run, the last one cut short by its budget.
DECISIONS = [9] * 4 + [4]


@pytest.mark.parametrize("channels", [RUN, OPTIMIZER], ids=["run", "optimizer"])
def test_a_neutral_panel_is_no_panel(channels):
    """Over a whole run, decision by decision, bitwise."""
    arguments = {"batch_tokens": 32, "lr_schedule": WarmupFlatWarmdown(40)}
    plant, bare = make(channels=channels, **arguments), _bare_run(**arguments)
    for num_steps in DECISIONS:
        plant.panel.move(np.zeros(plant.panel.positions.shape), np.ones(1, dtype=bool))
        advance(plant, num_steps)
    assert plant.steps.tolist() == [40]
    assert_same({name: t for name, t in state_of(plant).items() if name != "rows/panel"}, bare)


_BARE = {}


def _bare_run(**arguments):
    """State after the same 40 steps of a plant without channels; trained once."""
    if not _BARE:
        plant = make(channels=(), **arguments)
        assert plant.panel.positions.shape == (1, 0)
        for num_steps in DECISIONS:
            advance(plant, num_steps)
        _BARE.update({name: t for name, t in state_of(plant).items() if name != "rows/panel"})
    return _BARE


def test_bfloat16_stays_close_to_float32_and_keeps_float32_weights():
    exact, half = make(2), make(2, dtype="bfloat16")
    expected, window = advance(exact, 4), advance(half, 4)
    assert {weight.dtype for weight in half.weights.values()} == {torch.float32}
    assert window["probe_loss"] == pytest.approx(expected["probe_loss"], rel=0.01)
    assert half.evaluate() == pytest.approx(exact.evaluate(), rel=0.01)
    assert (window["probe_loss"] != expected["probe_loss"]).all()


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_compiled_plant_stays_close():
    exact, compiled = make(2), make(2, compile=True)
    assert advance(compiled, 3)["probe_loss"] == pytest.approx(
        advance(exact, 3)["probe_loss"], rel=1e-4
    )


@pytest.mark.parametrize("preset", ["cell11", "shakespeare"])
def test_every_preset_that_fits_a_cpu_trains(preset):
    plant = make(preset=preset, batch_tokens=32)
    first, last = advance(plant, 0), advance(plant, 3)
    assert last["probe_loss"] < first["probe_loss"]


def test_a_spawned_plant_shares_nothing_with_its_origin():
    plant = make(2)
    before = state_of(plant)
    spawned = plant.spawn(3)
    advance(spawned, 2)
    assert spawned.num_rows == 3
    assert_same(state_of(plant), before)


@pytest.mark.parametrize("optimizer", EVERY_OPTIMIZER)
def test_every_corner_of_the_panel_is_finite_or_an_outcome(optimizer):
    corners = list(itertools.product([-1.0, 1.0], repeat=2))
    plant = make(4, optimizer=optimizer, base_lr=0.1, base_weight_decay=0.5, batch_tokens=16)
    plant.panel.positions[:] = corners
    for _ in range(2):
        window = advance(plant, 4)
        for name, value in window.arrays().items():
            assert np.isfinite(value).all(), name


def test_a_step_to_the_corner_never_flips_the_sign_of_a_weight():
    plant = make(1, optimizer="sgd", base_lr=1.0, base_weight_decay=1.0)
    plant.panel.positions[:] = 1.0
    gradients = state_of(plant)
    plant._update(
        {name: torch.zeros_like(w) for name, w in plant.weights.items()},
        _rates(plant),
        np.array([True]),
    )
    for name, weight in plant.weights.items():
        assert (weight * gradients[f"weights/{name}"] >= 0).all()


def _rates(plant):
    plant._begin_window(1)
    return {group: Rates(*(field[0] for field in fields)) for group, fields in plant._rates.items()}


CONFIG, PLANT = partial(replace, TINY), partial(make)


@pytest.mark.parametrize(
    ("build", "arguments", "message"),
    [
        (CONFIG, {"base_lr": -1e-3}, "base_lr must be finite and not negative; got -0.001"),
        (CONFIG, {"base_lr": math.nan}, "base_lr must be finite and not negative; got nan"),
        (CONFIG, {"base_lr": math.inf}, "base_lr must be finite and not negative; got inf"),
        (CONFIG, {"base_lr": "fast"}, "base_lr must be finite and not negative; got 'fast'"),
        (
            CONFIG,
            {"base_weight_decay": {"matrix": -1.0}},
            "base_weight_decay must be finite and not negative; got {'matrix': -1.0}",
        ),
        (CONFIG, {"batch_tokens": 0}, "batch_tokens must be a whole number of at least 1; got 0"),
        (
            CONFIG,
            {"sequence_length": -4},
            "sequence_length must be a whole number of at least 1; got -4",
        ),
        (
            CONFIG,
            {"num_probe_batches": 0},
            "num_probe_batches must be a whole number of at least 1; got 0",
        ),
        (
            CONFIG,
            {"batch_tokens": 100},
            "batch_tokens must be a multiple of sequence_length=16; got 100",
        ),
        (
            CONFIG,
            {"dtype": "float16"},
            r"unknown dtype 'float16'; expected one of \['bfloat16', 'float32'\]",
        ),
        (
            CONFIG,
            {"divergence_multiple": 1.0},
            "divergence_multiple must be a number above 1; got 1.0",
        ),
        (PLANT, {"num_rows": 0}, "num_rows must be a whole number of at least 1; got 0"),
        (PLANT, {"optimizer": "adam"}, r"unknown optimizer 'adam'; expected one of \['adamw', "),
        (PLANT, {"preset": "giant"}, r"unknown preset 'giant'; expected one of \['cell11', "),
        (
            PLANT,
            {"data": "wikipedia"},
            "unknown data 'wikipedia'; expected one of 'stdlib', 'synthetic",
        ),
        (
            PLANT,
            {"channels": [("speed", "run")]},
            r"unknown channel 'speed'; expected one of \['attention_gain', ",
        ),
        (
            PLANT,
            {"base_lr": {"matrix": 1e-3}},
            r"base_lr must have .* the groups \['emb.*; got the groups \['matrix'\]",
        ),
        (
            PLANT,
            {"base_weight_decay": dict.fromkeys((*GROUPS, "scalar"), 0.1)},
            "base_weight_decay must have one value, or one for each of the groups",
        ),
        (
            PLANT,
            {"lr_schedule": {"matrices": Constant()}},
            r"lr_schedule must have .*; got the groups \['matrices'\]",
        ),
        (PLANT, {"num_rows": 2, "seeds": [1]}, "seeds must be 2 numbers, one for each row; got 1"),
    ],
)
def test_what_cannot_be_run_is_refused_by_name(build, arguments, message):
    with pytest.raises(ValueError, match=message):
        build(**arguments)


def test_a_corpus_that_is_too_short_is_refused_with_both_numbers(tmp_path):
    text = tmp_path / "short.txt"
    text.write_text("x" * 1000)
    with pytest.raises(ValueError, match=r"probe slice .* at least 80 tokens; got 50"):
        make(data=str(text))


def test_a_snapshot_owns_its_memory():
    plant = make(1)
    snapshot: Snapshot = plant.snapshot()
    before = {name: value.clone() for name, value in snapshot.tensors.items()}
    advance(plant, 2)
    plant.panel.positions[:] = 0.5
    assert_same(snapshot.tensors, before)


# What a window holds, group by group


TIER_FIELDS = {
    "momentum": ("momentum_norm",),
    "gradient_max": ("layer_gradient_max",),
    "activations": ("layer_activation_mean", "layer_activation_variance", "layer_saturation"),
    "same_batch": ("same_batch_loss",),
}
FREE_FIELDS = ("steps", "train_loss", "gradient_norm", "divergence", "layer_gradient_norm")


def measured_by_hand(plant):
    """Losses and gradients of the step ahead, (N,) and name -> (N, ...), from the plain model."""
    leaves = {name: weight.clone().requires_grad_() for name, weight in plant.weights.items()}
    losses = model.mean_losses(leaves, plant.model_config, *plant._batch(), plant._rope)
    return losses.detach(), dict(
        zip(leaves, torch.autograd.grad(losses.sum(), list(leaves.values())), strict=True)
    )


@pytest.mark.parametrize("preset", ["swiglu", "everything"])
def test_gauges_of_the_layers_are_those_of_the_last_steps_gradient(preset):
    plant = tiny_plants.make(2, (), preset, ALL_GROUPS)
    tiny_plants.advance(plant, 2)
    _, gradients = measured_by_hand(plant)
    window = tiny_plants.advance(plant, 1)
    for row, i in itertools.product(range(2), range(plant.num_layers)):
        own = torch.cat(
            [g[row].flatten() for name, g in gradients.items() if name.startswith(f"layer.{i}.")]
        )
        assert window["layer_gradient_norm"][row, i] == pytest.approx(own.norm().item(), rel=1e-5)
        assert window["layer_gradient_max"][row, i] == pytest.approx(
            own.abs().max().item(), rel=1e-5
        )
    everything = torch.cat([g.flatten(1) for g in gradients.values()], 1)
    assert window["gradient_norm"] == pytest.approx(everything.norm(dim=1).numpy(), rel=1e-5)
    body = torch.cat(
        [g.flatten(1) for name, g in gradients.items() if name.startswith("layer.")], 1
    )
    assert (window["layer_gradient_norm"] ** 2).sum(1) == pytest.approx(
        body.square().sum(1).numpy(), rel=1e-5
    )


def test_the_largest_gradient_may_be_a_negative_one(monkeypatch):
    plant = tiny_plants.make(1, (), groups=("gradient_max",))
    original = torch.autograd.grad

    def grad(outputs, inputs, **keywords):
        result = [torch.zeros_like(g) for g in original(outputs, inputs, **keywords)]
        result[3][0, 2, 1], result[3][0, 0, 0] = -5.0, 2.0  # of layer 0
        result[8][0, 0, 0] = 4.0  # of layer 1
        return result

    monkeypatch.setattr(torch.autograd, "grad", grad)
    assert tiny_plants.advance(plant, 1)["layer_gradient_max"].tolist() == [[5.0, 4.0, 0.0]]


def test_activations_are_those_of_the_last_forward_pass():
    plant = tiny_plants.make(2, (), "swiglu", ALL_GROUPS)
    tiny_plants.advance(plant, 2)
    gauges = []
    model.mean_losses(plant.weights, plant.model_config, *plant._batch(), plant._rope, None, gauges)
    window, names = tiny_plants.advance(plant, 1), TIER_FIELDS["activations"]
    for i, gauge in enumerate(gauges):
        for name, values in zip(names, gauge, strict=True):
            assert window.arrays()[name][:, i] == pytest.approx(values.numpy(), rel=1e-5), name


@pytest.mark.parametrize("positions", [0.0, 0.6])
def test_the_same_batch_is_measured_after_its_update_under_the_dials_of_its_step(positions):
    """A temperature is part of the model: the loss before and the loss after are of one model.

    So is their difference.
    """
    plant = tiny_plants.make(
        2, (("attention_temperature", "layer"),), "swiglu", ALL_GROUPS, base_lr=1e-2
    )
    plant.panel.positions[:] = positions
    tiny_plants.advance(plant, 1)
    batch, dials = plant._batch(), None
    if positions:
        dials = model.Dials(attention_temperature=torch.full((2, 3), 4.0**positions))
    before = model.mean_losses(plant.weights, plant.model_config, *batch, plant._rope, dials)
    window = tiny_plants.advance(plant, 1)
    after = model.mean_losses(plant.weights, plant.model_config, *batch, plant._rope, dials)
    assert window["train_loss"] == pytest.approx(before.numpy(), rel=1e-6)
    assert window["same_batch_loss"] == pytest.approx(after.numpy(), rel=1e-6)
    assert (window["same_batch_loss"] < window["train_loss"]).all()


def test_what_is_moved_by_dropout_alone_earns_nothing_on_the_same_batch():
    """At a learning rate of zero nothing is learned under any action.

    The batch's two losses must agree.
    """
    plant = tiny_plants.make(2, (("dropout", "layer"),), "swiglu", ALL_GROUPS, base_lr=0.0)
    plant.panel.positions[1] = 1.0
    for _ in range(3):
        window = tiny_plants.advance(plant, 1)
        assert window["same_batch_loss"] == pytest.approx(window["train_loss"], rel=1e-6)


@pytest.mark.parametrize("groups", [(), *((group,) for group in TIER_FIELDS)], ids=str)
def test_what_is_not_measured_is_zero_and_moves_nothing(groups):
    plant, full = tiny_plants.make(2, (), groups=groups), tiny_plants.make(2, (), groups=ALL_GROUPS)
    for num_steps in (0, 2, 1):
        window, expected = (
            tiny_plants.advance(plant, num_steps),
            tiny_plants.advance(full, num_steps),
        )
    for name in FREE_FIELDS:
        assert np.array_equal(window.arrays()[name], expected.arrays()[name]), name
    for group, names in TIER_FIELDS.items():
        for name in names:
            assert expected.arrays()[name].any()
            assert np.array_equal(
                window.arrays()[name], expected.arrays()[name] * (group in groups)
            ), name
    for name, weight in plant.weights.items():
        assert torch.equal(weight, full.weights[name])


@pytest.mark.parametrize("group", TIER_FIELDS)
def test_what_is_no_longer_measured_is_zero_and_not_what_it_was(group):
    plant = tiny_plants.make(2, (), groups=ALL_GROUPS)
    tiny_plants.advance(plant, 2)
    plant.measure([other for other in ALL_GROUPS if other != group])
    window = tiny_plants.advance(plant, 1)
    for other, names in TIER_FIELDS.items():
        for name in names:
            assert window.arrays()[name].any() == (other != group), name


def test_without_its_tier_the_probe_is_measured_at_the_first_step_alone(monkeypatch):
    plant, calls = tiny_plants.make(2, (), groups=("momentum",)), []
    original = plant._probe
    monkeypatch.setattr(plant, "_probe", lambda: calls.append(None) or original())
    first = tiny_plants.advance(plant, 0)
    assert (
        len(calls) == 1
        and first["probe_loss"].any()
        and np.array_equal(first["train_loss"], first["probe_loss"])
    )
    for _ in range(3):
        window = tiny_plants.advance(plant, 1)
        assert len(calls) == 1 and np.array_equal(window["probe_loss"], first["probe_loss"])
    plant.reset([9], [1])
    anew = tiny_plants.advance(plant, 0)
    assert (
        len(calls) == 2
        and anew["probe_loss"][0] == first["probe_loss"][0]
        and anew["probe_loss"][1] != first["probe_loss"][1]
    )
    assert (
        anew["train_loss"][0] == window["train_loss"][0]
        and anew["train_loss"][1] == anew["probe_loss"][1]
    )
    assert tiny_plants.advance(plant, 1)["probe_loss"].tolist() == anew["probe_loss"].tolist()


def test_tiers_that_are_not_in_the_table_are_refused_and_those_of_a_plant_are_those_of_its_copies():
    plant = make(1)
    with pytest.raises(
        ValueError,
        match=r"unknown measurement groups .*hessian.* of the pretraining plant; .*probe",
    ):
        plant.measure(["probe", "hessian"])
    assert plant.measured_groups == {"probe", "momentum"}
    plant.measure(["activations"])
    assert plant.spawn(2).measured_groups == {"activations"}


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
    assert_same(state_of(plant), state_of(other), but=("window/train_loss",))
    assert np.array_equal(pieces["layer_gradient_max"], expected["layer_gradient_max"])


def test_rows_that_stand_still_or_have_diverged_do_not_notice_the_dials_of_others():
    plant = tiny_plants.make(3, FINEST, "swiglu", ALL_GROUPS)
    plant.panel.positions[:] = 0.3
    advance(plant, 2)
    plant.weights["layer.1.up"][2] = math.nan
    advance(plant, 1)
    assert plant.divergence.tolist()[2] > 0 and not plant.divergence[:2].any()
    frozen = {row: state_of(plant, row) for row in (1, 2)}
    for position in (-1.0, 0.9):
        plant.panel.positions[0] = position
        window = advance(plant, 1, 0, 1)
        for row in (1, 2):
            now = state_of(plant, row)
            for name, value in frozen[row].items():
                both = (value, now[name])
                assert (
                    all(t.isnan().any() for t in both)
                    or torch.equal(*both)
                    or name == "window/probe_loss"
                ), name
        assert all(np.isfinite(value).all() for value in window.arrays().values())


@pytest.mark.parametrize("optimizer", ["prodigy", "dadapt_adamw_muon"])
def test_a_rule_with_an_estimate_has_one_for_all_groups_of_the_rule(optimizer):
    plant = make(2, optimizer=optimizer, base_lr=1.0)
    advance(plant, 20)
    found = [state["d"] for state in plant.optimizer_state.values() if "d" in state]
    assert len(found) == (2 if "muon" in optimizer else len(plant.weights))
    assert all(torch.equal(d, found[0]) for d in found) and (found[0] > 1e-6).all()
