"""Gauges are those of the last step, and no measurement moves anything."""

import itertools
import math

import numpy as np
import pytest
import torch

from hpenv.lm import model
from hpenv.lm.data import load_corpus
from tests import tiny_plants
from tests.hpenv.pretraining.small_plants import advance, assert_same, make, state_of
from tests.tiny_plants import ALL_GROUPS, FINEST


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
    plant.set_measured_groups([other for other in ALL_GROUPS if other != group])
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
        plant.set_measured_groups(["probe", "hessian"])
    assert plant.measured_groups == {"probe", "momentum"}
    plant.set_measured_groups(["activations"])
    assert plant.spawn(2).measured_groups == {"activations"}


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
