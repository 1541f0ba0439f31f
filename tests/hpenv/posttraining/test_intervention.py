"""Projection, routing, quarantine and refresh along the direction."""

import copy
import itertools

import numpy as np
import pytest
import torch

from tests.hpenv.posttraining.small_plants import STRENGTH, gauge, moved
from tests.tiny_student import advance, make, short_pairs

# Projection


def test_full_strength_takes_the_direction_out_of_every_gradient():
    """Two-sided: the first moments, which begin at zero, never have a component along the axes."""
    plant = make(2, STRENGTH, rule="two_sided")
    plant.panel.positions[0] = 1.0
    advance(plant, 3)
    for name, axes in plant.intervention.direction.axes.items():
        momentum = plant.coefficients.states[name]["momentum"]
        along = torch.einsum("nkr,nr->nk", axes, momentum)[:, 0].abs() / momentum.norm(dim=1)
        assert along[0] < 1e-5 and along[1] > 1e-5, name


def test_one_sided_leaves_what_points_away():
    plant = make(2, STRENGTH, num_samples=8)
    plant.panel.positions[:] = 1.0
    window = advance(plant, 1)
    assert (gauge(window, "mean_positive_c") > 0).all() and (
        gauge(window, "mean_negative_c") < 0
    ).all()
    away = [
        torch.einsum("nkr,nr->nk", axes, plant.coefficients.states[name]["momentum"])
        for name, axes in plant.intervention.direction.axes.items()
    ]
    assert torch.cat(away).max() < 1e-7 and torch.cat(away).min() < -1e-5


def test_of_an_update_that_is_projected_nothing_along_the_axes_remains():
    """What the moments put back into it is taken out as well."""
    plants = [make(2, STRENGTH, rule="two_sided", target=target) for target in ("update", "grad")]
    components = []
    for plant in plants:
        plant.panel.positions[:] = 1.0
        advance(plant, 3)
        parts = [
            (
                torch.einsum("nkr,nr->nk", plant.intervention.direction.axes[name], knob)[:, 0]
                / knob.norm(dim=1)
            ).abs()
            for name, knob in plant.coefficients.values.items()
        ]
        components.append(torch.stack(parts).mean())
    assert components[0] < 1e-5 < 1e-2 < components[1]


def test_what_is_routed_goes_to_the_quarantine():
    plant, vanilla = make(2, STRENGTH, rule="two_sided", route=True), make(2, STRENGTH)
    plant.panel.positions[0] = 1.0  # the other run routes nothing
    for _ in range(2):
        advance(plant, 1)
        advance(vanilla, 1)
    for name, knob in plant.coefficients.values.items():
        assert not plant.quarantine.values[name][1].any(), name
        # Rows share the shape of a batch, which its longest completion decides, and with it the
        # last bits of sums.
        torch.testing.assert_close(
            knob[1], vanilla.coefficients.values[name][1], rtol=1e-4, atol=1e-5
        )
        assert plant.quarantine.values[name][0].any(), name
        momentum, axes = (
            plant.quarantine.states[name]["momentum"][0],
            plant.intervention.direction.axes[name][0],
        )
        along = axes.T @ (axes @ momentum)
        torch.testing.assert_close(
            along, momentum, rtol=1e-4, atol=1e-8
        )  # it lies in the axes' span


def test_a_quarantine_is_part_of_the_model_that_trains_and_not_of_the_one_that_is_deployed():
    plant = moved(make(2, STRENGTH, rule="two_sided", route=True))
    advance(plant, 2)
    seen, original = [], plant.student.log_probabilities
    together = {
        name: knob + plant.quarantine.values[name]
        for name, knob in plant.coefficients.values.items()
    }
    samples = []
    own_sample = plant.student.sample
    plant.student = copy.copy(plant.student)
    plant.student.log_probabilities = lambda knobs, *more: (
        seen.append(knobs) or original(knobs, *more)
    )
    plant.student.sample = lambda knobs, *more: samples.append(knobs) or own_sample(knobs, *more)
    expected_deployed = {name: knob.clone() for name, knob in plant.coefficients.values.items()}
    assert not torch.equal(together["layer.0.up"], expected_deployed["layer.0.up"])
    advance(plant, 1)
    for name in plant.names:
        assert torch.equal(samples[0][name], together[name]) and torch.equal(
            seen[1][name].detach(), together[name]
        )
        assert not seen[0][name].any()  # the reference
        assert torch.equal(samples[1][name], plant.coefficients.values[name])  # the probe
    samples.clear()
    plant.report()
    plant.report(quarantine=True)
    for name in plant.names:
        assert all(
            torch.equal(given[name], plant.coefficients.values[name]) for given in samples[:3]
        )
        assert all(
            torch.equal(
                given[name], plant.coefficients.values[name] + plant.quarantine.values[name]
            )
            for given in samples[3:]
        )


# The direction


def test_the_direction_of_a_run_is_that_of_the_pairs_that_are_not_held_out():
    plant = make(1)
    fitted = [pair for pair in short_pairs() if not pair.held_out]
    prompts = [pair.prompt for pair in fitted]
    zeros = {name: torch.zeros(1, r) for name, r in plant.student.ranks.items()}
    hack = plant.student.completion_gradients(zeros, prompts, [pair.hack for pair in fitted])
    clean = plant.student.completion_gradients(zeros, prompts, [pair.clean for pair in fitted])
    for name, axes in plant.intervention.direction.axes.items():
        mean = (hack[name] - clean[name]).mean(1)
        torch.testing.assert_close(
            axes[:, 0], mean / mean.norm(dim=1, keepdim=True), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("position", [0.0, 1.0])
def test_a_refresh_extracts_the_direction_of_the_student_as_it_is(position):
    plant = make(2, (("direction_refresh", "run"),))
    plant.panel.positions[0] = position
    history = [plant.intervention.direction.axes["layer.1.up"].clone()]
    for _ in range(3):
        knobs = {name: knob.clone() for name, knob in plant.coefficients.values.items()}
        advance(plant, 1)
        history.append(plant.intervention.direction.axes["layer.1.up"].clone())
    for before, after in itertools.pairwise(history[1:]):
        assert torch.equal(before[0], after[0]) == (position == 0.0)
        assert torch.equal(before[1], after[1])
    if position:
        hack, clean = plant.intervention.contrast.gradients(
            knobs, plant.intervention.contrast.pairs
        )
        mean = (hack["layer.1.up"] - clean["layer.1.up"]).mean(1)[0]
        torch.testing.assert_close(history[-1][0, 0], mean / mean.norm(), rtol=1e-4, atol=1e-5)


def test_a_refresh_that_is_drawn_now_and_then_is_drawn_from_seed_and_step():
    plant, again = (make(3, (("direction_refresh", "run"),)) for _ in range(2))
    changed = []
    for each in (plant, again):
        each.panel.positions[:] = 0.1 + 0.9 * 0.5
        own = []
        for _ in range(3):
            before = each.intervention.direction.axes["layer.0.up"].clone()
            advance(each, 1)
            own.append(
                (each.intervention.direction.axes["layer.0.up"] != before)
                .flatten(1)
                .any(1)
                .tolist()
            )
        changed.append(own)
    assert changed[0] == changed[1]
    total = np.sum(changed[0][1:])  # at step 0 the student is the one that the direction is of
    assert 0 < total < 6


def test_a_refresh_forgets_the_spread_along_the_old_axes():
    plant = make(2, (("direction_refresh", "run"), *STRENGTH), rule="drift")
    plant.panel.positions[:] = [[0.0, 1.0], [1.0, 1.0]]
    advance(plant, 3)
    assert plant.intervention._moments.weight.tolist() == pytest.approx([1 - 0.95**3, 0.05])
