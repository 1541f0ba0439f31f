"""Measurements of updates by hand, and that they are free of effects."""

import numpy as np
import pytest
import torch

from hpenv.plant.step_measurements import NUM_COMPARED_STEPS
from hpenv.pretraining.flat import FlatLayout
from hpenv.pretraining.steps import loss_and_gradients
from hpenv.pretraining.updates import UpdateMeter, gain
from tests.hpenv.pretraining.small_plants import EVERY_OPTIMIZER, advance, make, state_of

GROUPS = ("embedding", "matrix", "unembedding")


def squares_of(gradients):
    """Squared norms, (N, K)."""
    return np.stack([g.flatten(1).double().square().sum(1).numpy() for g in gradients], 1)


def test_ratio_and_cosine_by_hand():
    """Two tensors of two groups, of which the second is of a layer, in two runs."""
    in_group, in_layer = np.eye(2), np.array([[0.0], [1.0]])
    meter = UpdateMeter(in_group, in_layer)
    meter.begin({"updates", "alignment"}, np.array([2, 2]))
    weights = {"a": torch.tensor([[3.0, 4.0], [1.0, 0.0]]), "b": torch.ones(2, 2, 2)}
    gradients = [torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.ones(2, 2, 2)]
    assert meter.before_update(gradients, squares_of(gradients)) == {}  # there is no update yet

    meter.start(weights)
    weights["a"][0] -= torch.tensor([0.0, 4.0])  # to (3, 0): 4 / 3
    weights["b"][1] += 1.0  # from 1 to 2 everywhere: 1 / 2
    found = meter.finish(weights)
    assert found["update_ratio"] == pytest.approx(np.array([[4 / 3, 0.0], [0.0, 0.5]]))
    assert found["layer_update_ratio"] == pytest.approx(np.array([[0.0], [0.5]]))

    gradients[0][0] = torch.tensor([3.0, 4.0])  # against the update (0, -4): 4 / 5
    cosines = meter.before_update(gradients, squares_of(gradients))["update_alignment"]
    assert cosines == pytest.approx(np.array([[0.8, 0.0], [0.0, -1.0]]))
    meter.start(weights)
    weights["a"][0] += torch.tensor([1.0, 0.0])  # the weights before are those after: 1 / 4
    assert meter.finish(weights)["update_ratio"][0] == pytest.approx([1 / 4, 0.0])


def test_sums_of_groups_and_layers_are_those_of_their_tensors():
    """Tensors of mixed order, and a gradient that is a transpose."""
    groups, layers = [1, 0, 1, 1, 0], [0, -1, 1, 0, 1]
    in_group, in_layer = np.eye(2)[groups], np.eye(3)[layers][:, :2]
    layout = FlatLayout(in_group, in_layer)
    torch.manual_seed(0)
    first = [torch.randn(2, k + 1, 3) for k in range(5)]
    second = [torch.randn(2, 3, k + 1).transpose(1, 2) for k in range(5)]
    buffers = layout.empty(first), layout.empty(first)
    layout.copy(first, buffers[0]), layout.copy(second, buffers[1])
    dots = [(a * b).flatten(1).sum(1).numpy() for a, b in zip(first, second, strict=True)]
    products = layout.products(*buffers).numpy()
    assert products == pytest.approx(np.stack(dots, 1) @ in_group, rel=1e-5)
    squares = layout.norms(buffers[1]).square().numpy()
    assert squares @ layout.in_group == pytest.approx(squares_of(second) @ in_group, rel=1e-5)
    assert squares @ layout.in_layer == pytest.approx(squares_of(second) @ in_layer, rel=1e-5)


def test_a_plant_measures_the_change_of_its_weights_over_the_weights():
    plant = make(2, base_lr=0.02)
    plant.set_measured_groups({"updates"})
    before = {name: weight.clone() for name, weight in plant.weights.items()}
    window = advance(plant, 1)
    for index, group in enumerate(plant.panel.groups):
        names = [name for name, own in plant._groups.items() if own == group]
        for row in range(2):
            moved = torch.cat([(plant.weights[n] - before[n])[row].flatten() for n in names])
            size = torch.cat([plant.weights[n][row].flatten() for n in names])
            expected = float(moved.norm() / size.norm())
            assert window["update_ratio"][row, index] == pytest.approx(expected, rel=1e-5)
    assert plant.panel.groups == GROUPS and (window["update_alignment"] == 0).all()


def test_a_window_has_the_mean_over_its_last_steps():
    whole, steps = make(1, base_lr=0.02), make(1, base_lr=0.02)
    whole.set_measured_groups({"updates"}), steps.set_measured_groups({"updates"})
    found = [advance(steps, 1)["update_ratio"] for _ in range(NUM_COMPARED_STEPS + 3)]
    expected = np.mean(found[-NUM_COMPARED_STEPS:], axis=0)
    assert advance(whole, len(found))["update_ratio"] == pytest.approx(expected)
    short = make(1, base_lr=0.02)
    short.set_measured_groups({"updates"})
    assert advance(short, 2)["update_ratio"] == pytest.approx(np.mean(found[:2], axis=0))


@pytest.mark.parametrize("name", ["update_alignment", "gradient_agreement"])
def test_cosines_are_of_the_last_pairs_of_steps(name):
    """A window of two steps has one pair. A longer one ends with such pairs."""
    groups = {"alignment", "agreement"}
    count, pairs = NUM_COMPARED_STEPS + 3, []
    for first in range(count - 1 - NUM_COMPARED_STEPS, count - 1):
        plant = make(1, base_lr=0.02)
        advance(plant, first)
        plant.set_measured_groups(groups)
        pairs.append(advance(plant, 2)[name])
    whole = make(1, base_lr=0.02)
    whole.set_measured_groups(groups)
    assert advance(whole, count)[name] == pytest.approx(np.mean(pairs, axis=0), rel=1e-5, abs=1e-6)
    assert np.ptp(pairs) > 0


def test_a_runs_window_ends_at_its_own_last_step():
    """Runs of a population whose windows have other lengths are measured as single runs."""
    groups = {"updates", "alignment", "agreement", "gain", "probe_gain"}
    lengths = (7, 1, 9)
    together = make(3, base_lr=0.02)
    together.set_measured_groups(groups)
    window = advance(together, *lengths)
    for row, length in enumerate(lengths):
        single = make(1, [100 + row], base_lr=0.02)
        single.set_measured_groups(groups)
        alone = advance(single, length)
        for name in ("update_ratio", "layer_update_ratio", "update_alignment"):
            assert window[name][row] == pytest.approx(alone[name][0], rel=1e-3, abs=1e-5), name
        for name in ("gradient_agreement", "update_gain", "probe_gain"):
            assert window[name][row] == pytest.approx(alone[name][0], rel=2e-2, abs=1e-4), name


def test_measuring_updates_changes_no_weight_and_what_is_not_measured_is_zero():
    plain, measured = make(2, base_lr=0.02), make(2, base_lr=0.02)
    measured.set_measured_groups({"probe", "updates", "alignment"})
    first, second = advance(plain, 5), advance(measured, 5)
    for name, value in state_of(plain).items():
        if not name.startswith("window/"):
            assert torch.equal(value, state_of(measured)[name]), name
    assert (second["update_ratio"] > 0).all() and (second["update_alignment"] != 0).all()
    for name in ("update_ratio", "layer_update_ratio", "update_alignment"):
        assert (first[name] == 0).all()


def test_a_rate_that_is_far_too_high_turns_the_cosine():
    found = []
    for lr in (1e-3, 3.0):
        plant = make(1, optimizer="sgd", base_lr=lr, batch_tokens=512)
        plant.set_measured_groups({"alignment"})
        advance(plant, 5)
        found.append(advance(plant, 20)["update_alignment"])
    assert (found[0] > 0).all() and found[1].mean() < found[0].mean()


def test_agreement_promise_and_spread_by_hand():
    """One tensor of one group: gradients (3, 4), (4, 3), and an update of -0.1 along the first."""
    meter = UpdateMeter(np.ones((1, 1)), np.ones((1, 1)))
    meter.begin({"agreement", "gain", "spread"}, np.array([2]))
    weights, gradient = {"a": torch.tensor([[1.0, 2.0]])}, torch.tensor([[3.0, 4.0]])
    found = meter.before_update([gradient], np.array([[25.0]]))
    assert found == {"mean_gradient_norm": [5.0], "mean_squared_gradient_norm": [25.0]}
    meter.start(weights)
    assert meter.finish(weights) == {} and not meter.is_last
    found = meter.before_update([torch.tensor([[4.0, 3.0]])], np.array([[25.0]]))
    assert found["gradient_agreement"] == pytest.approx(24 / 25) and meter.is_last
    meter.start(weights)
    weights["a"] -= 0.1 * gradient
    assert meter.finish(weights) == {}
    assert meter.promise([gradient]) == pytest.approx(2.5)  # 0.1 |g|^2
    assert gain(np.array([1.25, 1.0, 99.0, np.nan]), np.array([2.5, 0.0, 1.0, 1.0])).tolist() == [
        0.5, 0.0, 2.0, 0.0,
    ]  # fmt: skip


def test_the_gain_is_one_for_small_rates_and_falls_with_the_rate():
    found = []
    for lr in (1e-3, 3.0):
        plant = make(1, optimizer="sgd", base_lr=lr, batch_tokens=512)
        plant.set_measured_groups({"gain"})
        found.append(float(advance(plant, 6)["update_gain"][0]))
    assert found[0] == pytest.approx(1.0, abs=0.05)
    assert found[1] < 0.5


def test_the_gain_is_that_of_the_windows_last_step():
    whole, steps = make(1, base_lr=0.01), make(1, base_lr=0.01)
    whole.set_measured_groups({"gain"}), steps.set_measured_groups({"gain", "same_batch"})
    for _ in range(3):
        last = advance(steps, 1)
    window = advance(whole, 3)
    assert window["update_gain"] == last["update_gain"] != 0
    assert window["same_batch_loss"] == 0 != last["same_batch_loss"]


def test_gradients_of_large_batches_agree_more():
    found = []
    for tokens in (32, 2048):
        plant = make(1, base_lr=1e-6, batch_tokens=tokens)
        plant.set_measured_groups({"agreement"})
        found.append(advance(plant, 12)["gradient_agreement"][0])
    assert (found[1] > found[0]).all()


def test_the_gain_on_the_probe_by_hand():
    """From the loss, its gradient and the weights before and after the last of three steps."""
    plant, gradients = make(2, base_lr=0.02), {}
    advance(plant, 2)
    before = {name: weight.clone() for name, weight in plant.weights.items()}
    losses, found = loss_and_gradients(plant._probe_batch_loss, before)
    gradients = dict(zip(before, found, strict=True))
    advance(plant, 1)
    decrease = losses - plant._probe_batch_loss(plant.weights)
    promise = sum(
        (gradients[n] * (before[n] - w)).flatten(1).sum(1) for n, w in plant.weights.items()
    )
    expected = (decrease / promise).numpy()
    assert (promise > 0).all() and (0 < expected).all()

    measured = make(2, base_lr=0.02)
    measured.set_measured_groups({"probe_gain"})
    assert advance(measured, 3)["probe_gain"] == pytest.approx(expected, rel=1e-2)
    for name, weight in plant.weights.items():
        assert torch.equal(weight, measured.weights[name])


def test_the_gain_on_the_probe_is_one_for_small_rates_and_falls_with_the_rate():
    found = []
    for lr in (1e-3, 3.0):
        plant = make(1, optimizer="sgd", base_lr=lr, batch_tokens=512)
        plant.set_measured_groups({"probe_gain"})
        found.append(float(advance(plant, 6)["probe_gain"][0]))
    assert found[0] == pytest.approx(1.0, abs=0.05)
    assert found[1] < 0.5


def test_the_distance_is_that_from_the_runs_first_weights():
    """Also after a reset of one row, and after a restore into another plant."""
    plant = make(2, base_lr=0.02)
    plant.set_measured_groups({"distance"})
    start = {name: weight.clone() for name, weight in plant.weights.items()}
    assert (advance(plant, 0)["start_distance"] == 0).all()
    window = advance(plant, 3)
    for index, group in enumerate(plant.panel.groups):
        names = [name for name, own in plant._groups.items() if own == group]
        for row in range(2):
            moved = torch.cat([(plant.weights[n] - start[n])[row].flatten() for n in names])
            size = torch.cat([start[n][row].flatten() for n in names])
            expected = float(moved.norm() / size.norm())
            assert window["start_distance"][row, index] == pytest.approx(expected, rel=1e-5)

    other = make(2, base_lr=0.02)
    other.set_measured_groups({"distance"})
    other.restore(plant.snapshot())
    assert (advance(other, 0)["start_distance"] == window["start_distance"]).all()
    plant.reset([7], [1])
    again = advance(plant, 0)["start_distance"]
    assert (again[0] == window["start_distance"][0]).all() and (again[1] == 0).all()


@pytest.mark.parametrize("optimizer", EVERY_OPTIMIZER)
def test_measurements_change_no_weight_and_do_not_see_the_base_rate_alone(optimizer):
    """A tenth of the base rate at ten times the multiplier is the same run.

    Prodigy and D-Adaptation multiply the base rate by an estimate of their own, and begin at 1.
    """
    base = 1.0 if optimizer.startswith(("prodigy", "dadapt")) else 2e-3
    plain, measured = (make(1, base_lr=lr, optimizer=optimizer) for lr in (base, base / 10))
    measured.panel.positions[:, 0] = 0.5  # 10 of 0.01 to 100
    groups = {"updates", "alignment", "agreement", "spread", "gain", "probe_gain", "distance"}
    measured.set_measured_groups(groups)
    first, second = advance(plain, 6), advance(measured, 6)
    assert second["train_loss"] == pytest.approx(first["train_loss"], rel=1e-4)
    plain.set_measured_groups(groups)
    first, second = advance(plain, 6), advance(measured, 6)
    for name in ("update_ratio", "update_alignment", "start_distance"):
        assert second[name] == pytest.approx(first[name], rel=2e-2, abs=2e-3), name
    for name in ("gradient_agreement", "mean_gradient_norm", "update_gain", "probe_gain"):
        assert second[name] == pytest.approx(first[name], rel=2e-2, abs=1e-2), name
    assert (first["start_distance"] > 0).all()


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_muon", "schedule_free_adamw_muon"])
def test_the_probe_and_the_distance_see_the_rate_that_the_run_has(optimizer):
    """A base rate ten times as high without a panel that makes up for it is another number."""
    found = []
    for lr in (2e-4, 2e-3):
        plant = make(1, base_lr=lr, optimizer=optimizer)
        plant.set_measured_groups({"updates", "distance"})
        found.append(advance(plant, 6))
    ratios = found[1]["update_ratio"] / found[0]["update_ratio"]
    distances = found[1]["start_distance"] / found[0]["start_distance"]
    is_large = np.array([group != "unembedding" for group in plant.panel.groups])  # from the start
    for ratio in (ratios[:, is_large], distances):
        assert (ratio > 5).all() and (ratio < 20).all(), ratio
