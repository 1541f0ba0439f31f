"""Measurements of updates by hand, and that they are free of effects."""

import numpy as np
import pytest
import torch

from hpenv.pretraining.updates import UpdateMeter, gain
from tests.hpenv.pretraining.small_plants import advance, make, state_of

GROUPS = ("embedding", "matrix", "unembedding")


def test_ratio_and_cosine_by_hand():
    """Two tensors of two groups, of which the second is of a layer, in two runs."""
    in_group, in_layer = np.eye(2), np.array([[0.0], [1.0]])
    meter = UpdateMeter({"updates", "alignment"}, in_group, in_layer)
    weights = {"a": torch.tensor([[3.0, 4.0], [1.0, 0.0]]), "b": torch.ones(2, 2, 2)}
    gradients = [torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.ones(2, 2, 2)]
    norms = np.ones(2)
    assert (meter.before_update(gradients, norms)["update_alignment"] == 0).all()

    meter.start(weights)
    weights["a"][0] -= torch.tensor([0.0, 4.0])  # to (3, 0): 4 / 3
    weights["b"][1] += 1.0  # from 1 to 2 everywhere: 1 / 2
    found = meter.finish(weights)
    assert found["update_ratio"] == pytest.approx(np.array([[4 / 3, 0.0], [0.0, 0.5]]))
    assert found["layer_update_ratio"] == pytest.approx(np.array([[0.0], [0.5]]))

    gradients[0][0] = torch.tensor([3.0, 4.0])  # against the update (0, -4): 4 / 5
    cosines = meter.before_update(gradients, norms)["update_alignment"]
    assert cosines == pytest.approx(np.array([[0.8, 0.0], [0.0, -1.0]]))


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


def test_a_window_has_the_mean_over_its_steps():
    whole, steps = make(1, base_lr=0.02), make(1, base_lr=0.02)
    whole.set_measured_groups({"updates"}), steps.set_measured_groups({"updates"})
    found = [advance(steps, 1)["update_ratio"] for _ in range(4)]
    assert advance(whole, 4)["update_ratio"] == pytest.approx(np.mean(found, axis=0))


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
    meter = UpdateMeter({"agreement", "gain", "spread"}, np.ones((1, 1)), np.ones((1, 1)))
    weights, gradient = {"a": torch.tensor([[1.0, 2.0]])}, torch.tensor([[3.0, 4.0]])
    found = meter.before_update([gradient], np.array([5.0]))
    assert found["gradient_agreement"] == 0 and found["mean_squared_gradient_norm"] == 25.0
    assert meter.promise([gradient]) is None
    meter.start(weights)
    weights["a"] -= 0.1 * gradient
    assert meter.finish(weights) == {}
    assert meter.promise([gradient]) == pytest.approx(2.5)  # 0.1 |g|^2
    found = meter.before_update([torch.tensor([[4.0, 3.0]])], np.array([5.0]))
    assert found["gradient_agreement"] == pytest.approx(24 / 25)
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


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_muon", "sgd", "schedule_free_adamw_muon"])
def test_measurements_change_no_weight_and_do_not_see_the_base_rate_alone(optimizer):
    """A tenth of the base rate at ten times the multiplier is the same run."""
    plain, measured = (make(1, base_lr=lr, optimizer=optimizer) for lr in (2e-3, 2e-4))
    measured.panel.positions[:, 0] = 0.5  # 10 of 0.01 to 100
    groups = {"updates", "alignment", "agreement", "spread", "gain"}
    measured.set_measured_groups(groups)
    first, second = advance(plain, 6), advance(measured, 6)
    assert second["train_loss"] == pytest.approx(first["train_loss"], rel=1e-4)
    plain.set_measured_groups(groups)
    first, second = advance(plain, 6), advance(measured, 6)
    for name in ("update_ratio", "gradient_agreement", "update_alignment", "mean_gradient_norm"):
        assert second[name] == pytest.approx(first[name], rel=2e-2, abs=2e-3), name
