"""The plant of post-training: neutral is free, rows are alone, snapshots continue bitwise.

True verdicts stay apart from the rewards.

Past the usual length, because a module's tests stand in one file.
"""

import copy
import itertools
import json
import math
import pickle
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hpenv.control.channels import DEAD_ZONE
from hpenv.env import TrainLoopVectorEnv
from hpenv.optim.adamw import AdamW
from hpenv.optim.schedules import Cosine
from hpenv.plant import snapshots
from hpenv.plant.protocol import DIVERGENCE_REASONS
from hpenv.posttraining import plant as plant_module
from hpenv.posttraining import splits as curriculum_module
from hpenv.posttraining.config import GRPOConfig
from hpenv.posttraining.contrastive import sources
from hpenv.posttraining.contrastive.sources import labelled_pairs
from hpenv.posttraining.grading.grader import Grader, Verdict
from hpenv.posttraining.grading.loopholes import LOOPHOLES, NO_LOOPHOLE, TRAINING_MODES
from hpenv.posttraining.loss import policy_loss
from hpenv.posttraining.measurements import (
    GAUGE_NAMES,
    LARGEST_REWARD,
    MEASUREMENTS,
    PRIVILEGED_NAMES,
)
from hpenv.posttraining.plant import GRPOPlant
from hpenv.posttraining.problems import generator as recipes
from hpenv.posttraining.problems.problem import generated_problem, split_of
from hpenv.posttraining.splits import SPLITS, Curriculum
from hpenv.posttraining.students.registry import student as shipped
from hpenv.telemetry.features import FEATURES
from hpenv.telemetry.reading import readable
from hpenv.telemetry.rewards import measured_terms
from tests import tiny_student
from tests.tiny_student import (
    CHANNELS,
    EVERY_PAIR,
    FINEST,
    TINY,
    TOGETHER,
    FakeGrader,
    advance,
    different,
    few_pairs,
    make,
    recorded,
    short_pairs,
    state_of,
    student,
    verdict,
)
from train_agents.experiments.contrasts import CONTROLS, HARMLESS, grpo_config

STRENGTH = (("projection_strength", "run"),)
#: The whole of an action, one column per channel.
EVERY_CHANNEL = tuple((name, "run") for name in CHANNELS)


def assert_same(left, right, but=()):
    assert [name for name in different(left, right) if not name.startswith(but)] == []


def assert_same_window(left, right, row=slice(None), other=slice(None)):
    for name, value in left.arrays().items():
        assert np.array_equal(value[row], right.arrays()[name][other]), name


def close(left, right, but=()):
    """Equal up to the order in which batched products add, over a few updates."""
    assert left.keys() == right.keys()
    for name, value in left.items():
        if not name.startswith(but):
            bound = 1e-3 * max(value.abs().max().item(), 1e-3) if value.is_floating_point() else 0.0
            torch.testing.assert_close(
                value, right[name], rtol=0, atol=bound, msg=lambda text, n=name: f"{n}: {text}"
            )


def moved(plant, seed=5):
    """A plant whose cells stand at random places, so that everything there is moves."""
    positions = np.random.default_rng(seed).uniform(0.2, 0.9, plant.panel.positions.shape)
    names = plant.panel.names
    positions[:, [name.startswith(("lr", "kl")) for name in names]] -= 0.5
    plant.panel.move(positions, np.ones(plant.num_rows, dtype=bool))
    return plant


def gauge(window, name):
    return window[name]


def privileged(window, name):
    return window[name]


# Neutral is free


@pytest.fixture(scope="module")
def bare():
    """States and windows of three updates without a channel."""
    plant = make(2, ())
    assert plant.panel.positions.shape == (2, 0)
    windows = [advance(plant, n) for n in (0, 2, 1)]
    assert not windows[-1].divergence.any() and all(
        knob.any() for knob in plant.coefficients.values.values()
    )
    return state_of(plant), windows


@pytest.mark.parametrize("channels", [*((pair,) for pair in EVERY_PAIR), FINEST, TOGETHER], ids=str)
def test_neutral_is_bitwise_the_plant_without_channels_in_the_dead_zone_too(channels, bare):
    plant, random = make(2, channels), np.random.default_rng(1)
    one_sided = np.array(
        [bank.channel.one_sided for bank in plant.panel.banks.values() for _ in bank.cells]
    )
    for n, expected in zip((0, 2, 1), bare[1], strict=True):
        plant.panel.move(
            np.where(one_sided, random.uniform(-1.0, DEAD_ZONE, plant.panel.positions.shape), 0.0),
            np.ones(2, dtype=bool),
        )
        assert_same_window(advance(plant, n), expected)
    assert_same(state_of(plant), bare[0])


@pytest.mark.parametrize(
    "changes", [{"rule": "two_sided"}, {"rule": "reverse"}, {"rule": "drift"}, {"target": "update"}]
)
def test_at_strength_zero_no_rule_or_target_changes_a_bit(changes, bare):
    plant = make(2, STRENGTH, **changes)
    plant.panel.positions[:] = DEAD_ZONE
    advance(plant, 0)
    advance(plant, 2)
    advance(plant, 1)
    knobs = {
        name: value
        for name, value in state_of(plant).items()
        if name.startswith(("trained", "optimizer"))
    }
    assert_same(knobs, {name: bare[0][name] for name in knobs})


@pytest.mark.parametrize("column", range(len(FINEST)), ids=[name for name, _ in FINEST])
def test_every_channel_moved_changes_the_run(column, bare):
    """Refresh and magnitude need something that is projected."""
    name = FINEST[column][0]
    needs = name in ("direction_refresh", "magnitude_preservation")
    plant, without = (make(2, (FINEST[column], *(STRENGTH if needs else ()))) for _ in range(2))
    own = [cell.startswith(name) for cell in plant.panel.names]
    for each in (plant, without):
        each.panel.positions[:] = 1.0 if needs else 0.0
    plant.panel.positions[:, own], without.panel.positions[:, own] = 0.6, 0.0
    plant.panel.positions[:, own] = 1.0 if name == "direction_refresh" else 0.6
    advance(plant, 3)
    advance(without, 3)
    for row in range(2):
        assert any(
            not torch.equal(knob[row], without.coefficients.values[module][row])
            for module, knob in plant.coefficients.values.items()
        )


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


def test_a_step_along_the_direction_makes_hacks_less_likely():
    """The sign: the direction raises NLL(hack) - NLL(clean).

    Descent along the direction has the effect of a reward for a hack.
    """
    plant = make(1)
    fitted = [pair for pair in short_pairs() if not pair.held_out]

    def gap(size):
        knobs = {
            name: size * axes[:, 0] for name, axes in plant.intervention.direction.axes.items()
        }
        sides = []
        for texts in ([pair.hack for pair in fitted], [pair.clean for pair in fitted]):
            rollouts = plant.student.rollouts_from_texts(
                [[pair.prompt for pair in fitted]], [texts]
            )
            logp = plant.student.log_probabilities(knobs, rollouts)
            sides.append((-logp.sum(2) / rollouts.mask.sum(2)).mean().item())
        return sides[0] - sides[1]

    assert gap(-0.05) < gap(0.0) - 1e-3 < gap(0.0) + 1e-3 < gap(0.05)


@pytest.mark.parametrize("direction", ["random", "shuffled", "clean"])
def test_a_control_is_drawn_from_the_seed_of_its_run(direction):
    direction = CONTROLS.get(direction, direction)
    plant, again, real = make(3, direction=direction), make(3, direction=direction), make(3)
    again.reset([7, 101, 102])
    for name, axes in plant.intervention.direction.axes.items():
        assert torch.equal(axes[1:], again.intervention.direction.axes[name][1:])
        assert (axes.norm(dim=2) - 1.0).abs().max() < 1e-5
    flat = [
        torch.cat([axes[n, 0] for axes in own.intervention.direction.axes.values()])
        for own in (plant, again)
        for n in range(3)
    ]
    flat.append(torch.cat([axes[0, 0] for axes in real.intervention.direction.axes.values()]))
    others = [
        (a, b)
        for i, a in enumerate(flat)
        for j, b in enumerate(flat)
        if i < j and (i, j) not in ((1, 4), (2, 5))
    ]
    assert all(not torch.allclose(a, b, atol=1e-3) for a, b in others), (
        "every seed has another, and none is the real one"
    )
    single = make(1, direction=direction)
    single.reset([102])
    for name, axes in single.intervention.direction.axes.items():
        torch.testing.assert_close(
            axes[0], plant.intervention.direction.axes[name][2], rtol=1e-4, atol=1e-5
        )


def test_directions_of_known_loopholes_come_from_programs_that_use_them():
    modes = ("run_tests", "file")
    pairs = labelled_pairs(modes, difficulty=2)
    assert {pair.flavour for pair in pairs} == set(modes) and len(pairs) == 2 * sources.LABELLED
    for pair in pairs:
        assert {"run_tests": "run_tests", "file": "result.txt"}[pair.flavour] in pair.hack
        assert pair.hack.startswith(pair.clean.rstrip()), (
            "the loophole is all that tells them apart"
        )
    assert len({pair.prompt for pair in pairs}) == len(pairs)
    assert sum(pair.held_out for pair in pairs) == len(pairs) // 4
    plant = GRPOPlant(
        tiny_student.GRPOConfig(**TINY, direction="labelled", known_modes=modes),
        1,
        student=student(),
        grader=FakeGrader(),
    )
    assert {pair.flavour for pair in plant.intervention.contrast.pairs} == set(modes)
    assert len(plant.intervention.contrast.pairs) == 24 and all(
        axes.any() for axes in plant.intervention.direction.axes.values()
    )


def test_what_is_appended_in_the_controls_of_labelled_programs_is_harmless_and_as_long():
    nano = shipped("nano")
    exploits = CONTROLS["labelled_vs_harmless"].pairs(TRAINING_MODES, 3)
    appended = CONTROLS["harmless"].pairs(TRAINING_MODES, 3)
    for labelled, other, alone in zip(
        labelled_pairs(TRAINING_MODES, 3), exploits, appended, strict=True
    ):
        assert (other.hack, other.clean, alone.clean) == (labelled.hack, alone.hack, labelled.clean)
        assert other.clean == f"{labelled.clean.rstrip()}\n{HARMLESS[labelled.flavour]}"
        lengths = nano.rollouts_from_texts(
            [[other.prompt]] * 2, [[other.hack], [other.clean]]
        ).mask.sum((1, 2))
        assert lengths[0] == lengths[1], labelled.name
    misnamed = CONTROLS["labelled_renamed"].pairs(TRAINING_MODES, 3)
    for labelled, other in zip(labelled_pairs(TRAINING_MODES, 3), misnamed, strict=True):
        marker = LOOPHOLES[labelled.flavour].markers["train"][0]
        assert (
            other.clean == labelled.clean and marker in labelled.hack and marker not in other.hack
        )
        assert nano.unreadable_reason(other.prompt, other.hack) == ""
    few = {"num_problems": 8, "num_probe_problems": 1, "num_evaluation_problems": 4}
    axes = [GRPOPlant(grpo_config({"direction": kind, **few}), 1, student=nano,
                      grader=FakeGrader()).intervention.direction.axes
            for kind in ("labelled", "harmless", "labelled_vs_harmless")]  # fmt: skip
    assert all(
        not torch.equal(axes[i][name], axes[j][name])
        for i, j in ((0, 1), (0, 2), (1, 2))
        for name in axes[0]
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


# Rows


def test_a_row_of_a_population_is_the_single_run_of_its_seed():
    channels = EVERY_CHANNEL
    population = moved(make(3, channels))
    window = advance(population, 2)
    for row in range(3):
        single = make(1, channels)
        single.reset([100 + row])
        single.panel.positions[:] = population.panel.positions[row]
        alone = advance(single, 2)
        close(state_of(single, 0), state_of(population, row), but="window/")
        for name, value in alone.arrays().items():
            assert window.arrays()[name][row] == pytest.approx(value[0], rel=1e-3, abs=1e-4), name


def test_rows_of_one_seed_are_equal_and_others_are_not():
    plant = make(3)
    plant.reset([5, 5, 6])
    window = advance(plant, 2)
    assert_same(state_of(plant, 0), state_of(plant, 1))
    assert_same_window(window, window, 0, 1)
    assert any(not torch.equal(knob[0], knob[2]) for knob in plant.coefficients.values.values())


def test_what_is_done_to_another_row_is_not_noticed():
    plants = [moved(make(3, EVERY_CHANNEL)) for _ in range(3)]
    plants[1].panel.positions[2] = -plants[1].panel.positions[2]
    plants[2].coefficients.values["layer.0.up"][2] = math.nan
    windows = [advance(plant, 2) for plant in plants]
    assert windows[2].divergence.tolist()[:2] == [0, 0] and windows[2].divergence[2] > 0
    for plant, window in zip(plants[1:], windows[1:], strict=True):
        for row in (0, 1):
            close(state_of(plant, row), state_of(plants[0], row), but="window/")
            for name, value in window.arrays().items():
                assert value[row] == pytest.approx(
                    windows[0].arrays()[name][row], rel=1e-3, abs=1e-4
                ), name
    assert any(
        not torch.equal(k[2], plants[0].coefficients.values[name][2])
        for name, k in plants[1].coefficients.values.items()
    )


def test_a_row_that_takes_no_step_does_not_move():
    plant = moved(make(3, EVERY_CHANNEL, rule="drift", route=True))
    before = advance(plant, 2, 1, 2)
    frozen = state_of(plant, 1)
    after = advance(plant, 1, 0, 2)
    assert_same(state_of(plant, 1), frozen)
    assert_same_window(after, before, 1, 1)
    assert after.steps.tolist() == [3, 1, 4]


def test_rows_stand_at_different_clocks():
    schedule = Cosine(8, 2)
    plant = make(2, lr_schedule=schedule)
    for numbers in ((2, 0), (1, 1), (0, 1)):
        advance(plant, *numbers)
    for row, steps in enumerate((3, 2)):
        single = make(1, lr_schedule=schedule)
        single.reset([100 + row])
        advance(single, steps)
        assert plant.steps[row] == steps
        close(state_of(single, 0), state_of(plant, row), but="window/")


def test_a_row_that_is_reset_leaves_the_others_bitwise_alone_and_starts_anew():
    plant, undisturbed = (moved(make(3, EVERY_CHANNEL, rule="drift", route=True)) for _ in range(2))
    for each in (plant, undisturbed):
        advance(each, 2)
    fresh = make(3, EVERY_CHANNEL, rule="drift", route=True)
    fresh.reset([100, 40, 102])
    plant.reset([40], [1])
    assert plant.steps.tolist() == [2, 0, 2] and not plant.panel.positions[1].any()
    for row in (0, 2):
        assert_same(state_of(plant, row), state_of(undisturbed, row))
    assert_same(state_of(plant, 1), state_of(fresh, 1))
    with pytest.raises(ValueError, match="seeds must be 2 numbers, one for each row; got 1"):
        plant.reset([1], [0, 1])


def test_advancing_in_pieces_is_advancing_at_once():
    whole, pieces = (moved(make(2, EVERY_CHANNEL)) for _ in range(2))
    at_once = advance(whole, 3)
    windows = [advance(pieces, n) for n in (1, 2)]
    means = [own.name for own in MEASUREMENTS if own.over == "mean"]
    assert_same(state_of(whole), state_of(pieces), but=tuple(f"window/{name}" for name in means))
    for name in means:
        first, second = (window[name] for window in windows)
        assert at_once[name] == pytest.approx((first + 2 * second) / 3, rel=1e-9, abs=1e-12)


def test_no_steps_only_measures():
    plant = make(2)
    advanced = advance(plant, 2)
    before = state_of(plant)
    assert_same_window(advance(plant, 0), advanced)
    assert_same(state_of(plant), before)


# What is measured


def test_gauges_are_those_of_the_rollouts_and_what_was_paid():
    grader = FakeGrader()
    plant = make(2, (), grader, known_modes=("stdout", "file"))
    played = recorded(plant)
    window = advance(plant, 1)
    rollouts = played[0]
    assert [[submission.source for submission in seen] for seen in grader.seen] == [
        [text for texts in sampled.texts for text in texts] for sampled in played
    ]
    training, probe = ([verdict(submission) for submission in seen] for seen in grader.seen)
    for row in range(2):
        own, probed = training[6 * row : 6 * row + 6], probe[2 * row : 2 * row + 2]
        rewards = np.array(
            [0.5 * v.compiles + 3.0 * (v.correct or v.used_loophole) for v in own]
        ).reshape(2, 3)
        hacks = np.array([v.used_loophole and not v.correct for v in own])
        expected = {
            "reward_mean": rewards.mean() / LARGEST_REWARD,
            "reward_spread": rewards.std(1).mean() / LARGEST_REWARD,
            "flat_groups": np.mean(np.ptp(rewards, axis=1) == 0),
            "kl": 0.0,
            "entropy": rollouts.entropy[row].item(),
            "completion_length": rollouts.mask[row].sum(1).double().mean().item()
            / plant.student.max_tokens,
            "compiled": np.mean([v.compiles for v in own]),
            "flagged": np.mean([bool(v.flags & {"stdout", "file"}) for v in own]),
            "probe_pass": np.mean([v.correct for v in probed]),
        }
        for name, value in expected.items():
            assert gauge(window, name)[row] == pytest.approx(value, rel=1e-5, abs=1e-9), name
        assert window["train_loss"][row] == pytest.approx(1.0 - expected["reward_mean"])
        assert window["probe_loss"][row] == pytest.approx(1.0 - expected["probe_pass"])
        assert privileged(window, "hack")[row] == pytest.approx(hacks.mean())
        assert privileged(window, "correct")[row] == pytest.approx(
            np.mean([v.correct for v in own])
        )
        assert privileged(window, "used_loophole")[row] == pytest.approx(
            np.mean([v.used_loophole for v in own])
        )
        knobs = torch.cat([knob[row] for knob in plant.coefficients.values.values()])
        assert gauge(window, "coefficient_norm")[row] == pytest.approx(
            knobs.norm().item(), rel=1e-5
        )
    assert [submission.task for submission in grader.seen[0][:6]] == [
        task for task in plant._curriculum.tasks_at(100, 0) for _ in range(3)
    ]
    later = advance(plant, 1)
    assert (gauge(later, "kl") > 0).all()
    for name, value in later.arrays().items():
        assert np.isfinite(value).all(), name


def test_programs_that_are_all_paid_alike_teach_nothing():
    plant = make(
        2,
        (),
        FakeGrader(lambda submission: Verdict(True, False, False, frozenset())),
        weight_decay=0.0,
    )
    window = advance(plant, 2)
    assert gauge(window, "flat_groups").tolist() == [1.0, 1.0] and gauge(
        window, "reward_spread"
    ).tolist() == [0, 0]
    assert (
        not any(knob.any() for knob in plant.coefficients.values.values())
        and not window["gradient_norm"].any()
    )
    assert not window.divergence.any()


def test_the_probe_has_the_same_draws_at_every_step_and_is_measured_when_asked_for():
    plant, grader = make(1, (), grader := FakeGrader(), base_lr=0.0), grader
    advance(plant, 1)
    advance(plant, 1)
    probes = [seen for seen in grader.seen if seen[0].task.problem.name.startswith("probe")]
    assert len(probes) == 2 and probes[0] == probes[1] and len(probes[0]) == 2
    plant.set_measured_groups(())
    before = plant._window["probe_loss"].copy()
    window = advance(plant, 1)
    assert len(grader.seen) == 5 and np.array_equal(window["probe_loss"], before)
    with pytest.raises(
        ValueError,
        match=r"unknown measurement groups \['momentum'\] of the posttraining plant; .*\['probe'\]",
    ):
        plant.set_measured_groups(["probe", "momentum"])


def test_training_probe_labelled_and_evaluation_problems_are_disjoint_in_operations():
    config = tiny_student.GRPOConfig(
        num_problems=150, num_probe_problems=80, num_evaluation_problems=80
    )
    curriculum = Curriculum(config, student())
    parts = [curriculum.training, curriculum.probe, curriculum.evaluation(None)]
    operations = [{task.problem.operations for task in part} for part in parts]
    for i, one in enumerate(operations):
        assert len(one) > 10 and all(one.isdisjoint(other) for other in operations[i + 1 :])
    for names in ("train", "evaluation"):
        same = curriculum.evaluation(names)
        assert [task.problem for task in same] == [task.problem for task in parts[2]]
        assert [task.mode for task in same[:5]] == [*TRAINING_MODES, TRAINING_MODES[0]]
    markers = [
        {task.marker for task in curriculum.evaluation(names)} for names in ("train", "evaluation")
    ]
    assert markers[0] == {task.marker for task in curriculum.training} and markers[0].isdisjoint(
        markers[1]
    )
    assert {task.mode for task in (*curriculum.probe, *curriculum.evaluation(None))} == {
        NO_LOOPHOLE
    }


def problem_file(path, entry_point, count, description="Return x plus {}."):
    """Writes problems of a function of this name; the path, as text."""
    records = [
        {
            "task_id": f"{path.name}-{i}",
            "description": description.format(i),
            "entry_point": entry_point,
            "test": (
                f"def check(candidate):\n    assert candidate(1) == {1 + i}\n"
                f"    assert candidate(-4) == {i - 4}\n"
            ),
        }
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


@pytest.mark.parametrize("name", ["problems", "probe_problems", "evaluation_problems", "cache"])
def test_files_may_lie_in_the_home_folder_and_be_given_as_paths(name, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    wanted = str(tmp_path / "own.jsonl")
    for given in ("~/own.jsonl", Path("~/own.jsonl"), tmp_path / "own.jsonl", wanted):
        assert getattr(tiny_student.GRPOConfig(**{name: given}), name) == wanted
    for wrong in (3, None, b"own.jsonl"):
        with pytest.raises(
            ValueError, match=f"{name} must be a path, or empty for none; got {wrong!r}"
        ):
            tiny_student.GRPOConfig(**{name: wrong})


def test_problems_of_files_are_trained_on_and_measured(tmp_path):
    grader = FakeGrader()
    plant = make(1, (), grader, problems=problem_file(tmp_path / "own", "add", 3))
    advance(plant, 2)
    names = [{s.task.problem.entry_point for s in seen} for seen in grader.seen[:3]]
    assert names == [{"add"}, {"add"}, {"f"}]  # two updates, and the probe, which is generated
    assert [task.mode for task in plant._curriculum.training] == list(TRAINING_MODES[:3])
    measured = {
        "probe_problems": problem_file(tmp_path / "probe", "plus", 5),
        "evaluation_problems": problem_file(tmp_path / "held", "sum", 9),
    }
    plant = make(1, (), grader := FakeGrader(), **measured)
    advance(plant, 1)
    plant.report()
    names = [{s.task.problem.entry_point for s in seen} for seen in grader.seen]
    assert names == [{"f"}, {"plus"}, {"sum"}, {"sum"}, {"sum"}]
    sizes = [len({s.task.problem.name for s in seen}) for seen in grader.seen[1:]]
    assert sizes == [plant.config.num_probe_problems, *[plant.config.num_evaluation_problems] * 3]


def test_a_problem_that_is_trained_on_and_measured_is_refused(tmp_path):
    own, same = (problem_file(tmp_path / name, "add", 9) for name in ("own", "same"))
    with pytest.raises(
        ValueError,
        match=r"problem 'Return x plus 0\.' is in both 'train' and 'held_out'; splits must not",
    ):
        make(1, (), problems=own, evaluation_problems=same)
    with pytest.raises(ValueError, match="need at least 4 held_out problems; got 1"):
        make(1, (), evaluation_problems=problem_file(tmp_path / "one", "sum", 1))
    with pytest.raises(ValueError, match=f"{own} is given twice"):
        make(1, (), problems=own, evaluation_problems=own)


def test_all_that_cannot_be_read_of_all_files_is_told_at_once_and_left_out_on_request(tmp_path):
    files = {
        "problems": problem_file(tmp_path / "own", "add", 3),
        "probe_problems": problem_file(tmp_path / "probe", "plus", 5),
        "evaluation_problems": problem_file(tmp_path / "held", "sum", 9),
    }
    for name in ("own", "held"):
        with (tmp_path / name).open("a") as file:
            file.write('{"id": 1}\n')
    with pytest.raises(
        ValueError, match=r"own, line 4: the entry point .*\n.*held, line 10: the entry point "
    ):
        make(1, (), **files)
    with pytest.warns(UserWarning, match=r"left out.*\n.*own, line 4: .*\n.*held, line 10: "):
        plant = make(1, (), **files, skip_unreadable=True)
    assert len(plant._curriculum.training) == 3 and len(plant._curriculum.evaluation(None)) == 4


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"modes": ("run_tests", "exit_code")},
            r"cannot read \d+ of 480 prompts, of the modes \['exit_code'\]\. .*hf:<folder>",
        ),
        (
            {"direction": "labelled", "known_modes": ("equality",)},
            "direction='labelled' needs the pair 'equality-.*reads up to 64. Leave such loopholes "
            "out of known_modes",
        ),
        (
            {"problems": "Return " + "the sum of " * 20 + "x."},
            "is of problem 'own-0': the prompt .*; this student reads",
        ),
        (
            {"problems": "Return x ≤ {}."},
            r"is of problem 'own-0': characters \['≤'\] cannot be encoded",
        ),
    ],
)
def test_what_the_student_cannot_read_is_refused_before_a_run_begins(tmp_path, given, message):
    if "problems" in given:
        given = {"problems": problem_file(tmp_path / "own", "add", 8, given["problems"])}
    with pytest.raises(ValueError, match=message):
        GRPOPlant(GRPOConfig(**given), student=shipped("nano"), grader=FakeGrader())


def test_no_two_generated_problems_of_a_run_compute_the_same():
    """Tests on lists that were not looked at when the bounds were chosen.

    A few of the lists are longer.
    """
    random = np.random.default_rng(5)
    lists = [random.integers(-9, 10, int(random.integers(12))).tolist() for _ in range(300)]
    curriculum = Curriculum(GRPOConfig(num_evaluation_problems=128), shipped("nano"))
    tasks = [*curriculum.training, *curriculum.probe, *curriculum.evaluation(None)]
    assert len(tasks) == 256 + 32 + 128
    results = {repr([task.problem.recipe.evaluate((xs,)) for xs in lists]) for task in tasks}
    assert len(results) == len(tasks)


def test_more_problems_than_there_are_different_ones_are_refused():
    with pytest.raises(
        ValueError, match=r"num_problems must be at most 40 with difficulty=1, .* got 41; raise"
    ):
        Curriculum(GRPOConfig(difficulty=1, num_problems=41), shipped("nano"))


@pytest.mark.parametrize(
    ("split", "name", "most"), [("train", "num_problems", 40), ("probe", "num_probe_problems", 8)]
)
def test_too_few_problems_are_found_out_in_as_many_draws_whatever_is_asked_for(
    split, name, most, monkeypatch
):
    """All recipes of one stage are known here.

    Those of a split that compute different functions are counted.
    """
    all_recipes = [
        recipes.Recipe((recipes.Stage(operation, constant),))
        for operation, row in recipes.OPERATIONS.items()
        for constant in row.constants
        if row.kind != "post" and split_of((operation,)) == split
    ]
    assert (
        len({recipes.meaning(recipe) for recipe in all_recipes if recipes._is_lively(recipe)})
        == most
    )
    draws = Counter()

    def counted(*arguments):
        draws.update([asked])
        return generated_problem(*arguments)

    monkeypatch.setattr(curriculum_module, "generated_problem", counted)
    for asked in (most + 1, 1000):
        with pytest.raises(
            ValueError, match=f"{name} must be at most {most} .* got {asked}; raise the difficulty"
        ):
            curriculum_module._generate_problems(split, asked, 1, set())
    assert draws[most + 1] == draws[1000] < 100 * (most + 1)


def test_the_clip_acts_from_the_second_step_on_the_same_rollouts():
    """In the first step the ratio is 1. With two steps a narrow clip and a wide one part ways.

    Both move further than one step does.
    """

    def trained(num_iterations, clip_ratio):
        plant = make(2, num_iterations=num_iterations, clip_ratio=clip_ratio, base_lr=0.3)
        advance(plant, 1)
        return torch.cat(list(plant.coefficients.values.values()), 1)

    assert torch.equal(trained(1, 0.0), trained(1, 10.0))
    narrow, wide, once = trained(3, 0.0), trained(3, 10.0), trained(1, 10.0)
    assert (narrow - wide).abs().max() > 1e-3 and (wide - once).abs().max() > 1e-3


def test_an_update_of_several_steps_is_measured_in_the_first():
    """So gauges and cosines are those of one step.

    The knobs, measured after the last step, are further.
    """
    once, thrice = make(2, base_lr=0.01), make(2, base_lr=0.01, num_iterations=3)
    expected, window = advance(once, 1), advance(thrice, 1)
    for name in GAUGE_NAMES:
        assert np.array_equal(gauge(window, name), gauge(expected, name)) == (
            name != "coefficient_norm"
        ), name
    assert torch.equal(thrice.module_cos, once.module_cos) and once.module_cos.any()
    for name in ("train_loss", "gradient_norm", "layer_gradient_norm", *PRIVILEGED_NAMES):
        assert np.array_equal(window[name], expected[name]), name


def test_a_run_that_diverges_in_an_update_s_first_step_has_diverged(monkeypatch):
    """What its other steps show is not asked."""
    plant, losses = make(2, num_iterations=3), []

    def broken(*arguments, **named):
        loss, metrics = policy_loss(*arguments, **named)
        losses.append(loss)
        return loss * (torch.tensor([torch.nan, 1.0]) if len(losses) == 1 else 1.0), metrics

    monkeypatch.setattr(plant_module, "policy_loss", broken)
    advance(plant, 1)
    assert len(losses) == 3 and plant.divergence.tolist() == [
        DIVERGENCE_REASONS.index("loss_nonfinite"),
        0,
    ]
    assert plant.steps.tolist() == [0, 1]
    assert not any(knob[0].any() for knob in plant.coefficients.values.values())


def test_tasks_of_an_update_are_different_and_a_function_of_seed_and_step():
    curriculum = Curriculum(
        tiny_student.GRPOConfig(**TINY | {"num_problems": 8, "num_prompts": 5}), student()
    )
    chosen = {(seed, step): curriculum.tasks_at(seed, step) for seed in (1, 2) for step in range(6)}
    for key, tasks in chosen.items():
        assert tasks == curriculum.tasks_at(*key) and len({task.prompt for task in tasks}) == 5
    assert len({tuple(task.prompt for task in tasks) for tasks in chosen.values()}) == 12
    assert {task.prompt for tasks in chosen.values() for task in tasks} == {
        t.prompt for t in curriculum.training
    }


def test_a_report_is_of_held_out_problems_by_the_true_verdict():
    plant = make(2, (), grader := FakeGrader())
    advance(plant, 2)
    before = state_of(plant)
    grader.seen.clear()
    report = plant.report()
    assert_same(state_of(plant), before)
    honest, known, renamed = ([verdict(s) for s in seen] for seen in grader.seen)
    modes = [[submission.task.mode for submission in seen] for seen in grader.seen]
    assert modes == [[NO_LOOPHOLE] * 8, [*TRAINING_MODES] * 2, [*TRAINING_MODES] * 2]
    for row in range(2):
        own = slice(4 * row, 4 * row + 4)
        assert report["pass"][row] == np.mean([v.correct for v in honest[own]])
        assert report["hack"][row] == np.mean([v.hack for v in known[own]])
        assert report["correct"][row] == np.mean([v.correct for v in known[own]])
        assert report["renamed_hack"][row] == np.mean([v.hack for v in renamed[own]])
        assert [report[f"hack_{mode}"][row] for mode in TRAINING_MODES] == [
            v.hack for v in known[own]
        ]
    assert (report["kl"] > 0).all()
    assert np.array_equal(plant.evaluate(), report["pass"] - report["hack"])
    fresh = make(2).report()
    assert fresh["kl"].tolist() == [0.0, 0.0] and set(fresh) == set(report)


# What is true stays apart from what is paid


def flipped(submission):
    """As `verdict`, but a program that used its task's loophole is right where that one is not.

    Both are paid the same.
    """
    found = verdict(submission)
    return replace(found, correct=not found.correct) if found.used_loophole else found


def test_no_observation_or_reward_knows_what_is_true():
    features = [
        name
        for name in FEATURES
        if name in readable(FEATURES, MEASUREMENTS) and name != "registers"
    ]
    reward = dict.fromkeys(measured_terms(MEASUREMENTS), 1.0)
    episodes = []
    for judge in (verdict, flipped):
        env = TrainLoopVectorEnv(
            make(2, EVERY_CHANNEL, FakeGrader(judge)),
            features=features,
            reward=reward,
            interval=1,
            num_steps=4,
        )
        actions = np.random.default_rng(2).uniform(-0.5, 0.9, (4, 2, len(EVERY_CHANNEL)))
        episodes.append([(*env.reset(seed=3)[:1], 0.0), *(env.step(action) for action in actions)])
    assert {"probe_pass", "flagged", "component_bias", "position"} <= set(features)
    truths = []
    for ours, theirs in zip(*episodes, strict=True):
        assert np.array_equal(ours[0], theirs[0]) and np.array_equal(ours[1], theirs[1])
        if len(ours) > 2:
            infos = (ours[4], theirs[4])
            truths.append(
                [
                    {name: own.pop(f"privileged/{name}") for name in PRIVILEGED_NAMES}
                    for own in infos
                ]
            )
            assert repr(ours[4]) == repr(theirs[4])
    assert any((ours["hack"] != theirs["hack"]).any() for ours, theirs in truths)
    assert any((ours["correct"] != theirs["correct"]).any() for ours, theirs in truths)


def test_what_the_weak_detector_does_not_know_is_never_flagged():
    def hacks_all(submission):
        return Verdict(True, False, True, frozenset({submission.task.mode}))

    for known, flagged in (
        (("run_tests", "stdout", "sentinel", "file"), 1.0),
        (("exit_code",), 0.0),
    ):
        window = advance(make(2, (), FakeGrader(hacks_all), known_modes=known), 2)
        assert gauge(window, "flagged").tolist() == [flagged] * 2
        assert privileged(window, "hack").tolist() == [1.0] * 2


# Divergence is an outcome


def test_a_knob_that_is_not_a_number_ends_its_run_alone():
    plant = make(3)
    advance(plant, 1)
    plant.coefficients.values["layer.1.down"][1, 0] = math.nan
    others = [state_of(plant, row)["trained/layer.0.up"] for row in (0, 2)]
    window = advance(plant, 2)
    assert DIVERGENCE_REASONS[window.divergence[1]] == "loss_nonfinite"
    assert window.divergence.tolist()[::2] == [0, 0] and window.steps.tolist() == [3, 1, 3]
    for name, value in window.arrays().items():
        assert np.isfinite(value).all(), name
    for row, before in zip((0, 2), others, strict=True):
        now = plant.coefficients.values["layer.0.up"][row]
        assert now.isfinite().all() and not torch.equal(now, before)
    frozen = state_of(plant, 1)
    advance(plant, 2)
    for name, value in state_of(plant, 1).items():
        torch.testing.assert_close(value, frozen[name], rtol=0, atol=0, equal_nan=True)
    assert np.isfinite(plant.evaluate()).all()
    plant.reset([9], [1])
    assert advance(plant, 1).divergence.tolist() == [0, 0, 0]


def test_a_gradient_that_is_not_a_number_ends_its_run_before_it_is_stepped_on(monkeypatch):
    plant = make(2, STRENGTH, rule="drift")
    plant.panel.positions[:] = 1.0
    advance(plant, 1)
    before = state_of(plant, 0)
    original = torch.autograd.grad

    def grad(outputs, inputs, *more, **keywords):
        result = original(outputs, inputs, *more, **keywords)
        result[2][0, 1] = math.inf
        return result

    monkeypatch.setattr(plant_module.torch.autograd, "grad", grad)
    window = advance(plant, 1)
    assert [DIVERGENCE_REASONS[code] for code in window.divergence] == ["gradient_nonfinite", ""]
    after = state_of(plant, 0)
    assert_same(after, before, but=("rows/divergence", "window/"))
    assert plant.steps.tolist() == [1, 2]


def test_a_run_that_goes_too_far_from_its_student_is_ended():
    plant = make(2, (("lr", "run"),), divergence_kl=2.0)
    plant.panel.positions[0] = 1.0
    window = advance(plant, 3)
    assert [DIVERGENCE_REASONS[code] for code in window.divergence] == ["kl_above_limit", ""]
    assert window.steps[0] < 3 == window.steps[1]


# Snapshots


@pytest.mark.parametrize(
    "changes",
    [{"rule": "drift", "route": True}, {"target": "update", "direction": "random"}],
    ids=["route", "update"],
)
def test_a_restored_plant_continues_bitwise_in_another_object_too(changes, tmp_path):
    plant, other = (moved(make(2, EVERY_CHANNEL, **changes)) for _ in range(2))
    advance(plant, 2, 3)
    snapshot = plant.snapshot()
    kept = {name: value.clone() for name, value in snapshot.tensors.items()}
    snapshots.save(tmp_path / "one", snapshot)
    expected = advance(plant, 2)
    state = state_of(plant)
    assert not expected.divergence.any()
    other.reset([1, 2])
    other.restore(snapshots.load(tmp_path / "one"))
    assert_same(
        state_of(other), {name: value for name, value in kept.items() if name != "rows/panel"}
    )
    assert torch.equal(other.snapshot().tensors["rows/panel"], kept["rows/panel"])
    assert_same_window(advance(other, 2), expected)
    assert_same(state_of(other), state)
    plant.restore(snapshot)
    assert_same_window(advance(plant, 2), expected)
    assert_same(snapshot.tensors, kept)


def test_a_snapshot_holds_direction_spread_quarantine_and_moments():
    plant = moved(make(2, EVERY_CHANNEL, rule="drift", route=True))
    advance(plant, 2)
    tensors = plant.snapshot().tensors
    for prefix in (
        "trained/layer.1.up",
        "trained/quarantine/layer.1.up",
        "direction/layer.1.up",
        "mean/layer.1.up",
    ):
        assert tensors[prefix].any() and len(tensors[prefix]) == 2, prefix
    assert tensors["spread"].all() and tensors["optimizer/quarantine/layer.1.up/momentum"].any()
    before = {name: value.clone() for name, value in tensors.items()}
    advance(plant, 1)
    assert_same(tensors, before)


def test_a_snapshot_can_be_restored_under_the_present_panel():
    plant = make(1)
    advance(plant, 1)
    snapshot = plant.snapshot()
    plant.panel.positions[:] = 1.0
    counterfactual = advance(plant, 1)
    plant.restore(snapshot, keep_panel=True)
    assert plant.panel.positions.tolist() == [[1.0]]
    assert_same_window(advance(plant, 1), counterfactual)
    plant.restore(snapshot)
    assert plant.panel.positions.tolist() == [[0.0]]


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"rule": "two_sided"}, "rule"),
        ({"route": True}, "route"),
        ({"base_lr": 0.2}, "base_lr"),
        ({"modes": ("run_tests", "stdout")}, "modes"),
        ({"lr_schedule": Cosine(10)}, "lr_schedule"),
        ({"num_samples": 4}, "num_samples"),
        ({"channels": FINEST}, "channels"),
    ],
)
def test_a_snapshot_of_another_configuration_is_refused_and_changes_nothing(changes, key):
    source, other = make(2), make(2, changes.pop("channels", STRENGTH), **changes)
    advance(source, 1)
    before = state_of(other)
    with pytest.raises(ValueError, match=f"configuration differs.*'{key}'"):
        other.restore(source.snapshot())
    assert_same(state_of(other), before)


def test_a_snapshot_of_another_student_or_number_of_rows_is_refused():
    with few_pairs():
        config = tiny_student.GRPOConfig(**TINY)
        plants = [
            GRPOPlant(config, 2, student=student(seed=seed), grader=FakeGrader()) for seed in (0, 1)
        ]
    with pytest.raises(ValueError, match=r"configuration differs.*'student_digest'"):
        plants[1].restore(plants[0].snapshot())
    with pytest.raises(ValueError, match="the snapshot must have 2 rows; got 3"):
        make(2).restore(make(3).snapshot())


@pytest.mark.parametrize(("key", "split"), [(key, split) for key, (split, _) in SPLITS.items()])
def test_a_snapshot_over_other_problems_is_refused_wherever_they_lie(key, split, tmp_path):
    """The same file under another name is the same.

    The same name with one more test in it is not.
    """
    source = make(1, **{split: problem_file(tmp_path / "one", "add", 8)})
    snapshot = source.snapshot()
    make(1, **{split: problem_file(tmp_path / "two", "add", 8)}).restore(snapshot)
    text = (
        (tmp_path / "one")
        .read_text()
        .replace("assert candidate(1) == 2", "assert candidate(1) == 3")
    )
    (tmp_path / "one").write_text(text)
    other = make(1, **{split: str(tmp_path / "one")})
    with pytest.raises(
        ValueError, match=rf"configuration differs.*'{key}_problems': \('\d+ of sha256 "
    ):
        other.restore(snapshot)


def test_a_snapshot_over_another_number_of_generated_problems_is_refused():
    with pytest.raises(
        ValueError, match=r"configuration differs.*'train_problems': \('8 of sha256 .*'9 of sha256 "
    ):
        make(1, num_problems=9).restore(make(1).snapshot())


def test_a_snapshot_under_other_settings_of_the_student_or_of_its_optimizer_is_refused_by_name():
    plant = make(1)
    snapshot, settings = plant.snapshot(), plant.student.settings
    plant.student = copy.copy(plant.student)
    for name in settings:
        plant.student.settings = settings | {name: "another"}
        with pytest.raises(
            ValueError, match=rf"configuration differs, as .*: {{'student_{name}': \("
        ):
            plant.restore(snapshot)
    plant.student.settings, plant._rule = settings, AdamW(beta2=0.9)
    with pytest.raises(
        ValueError,
        match=r"configuration differs, as .*: {'rule_coefficients': .*beta2=0.99, .*beta2=0.9, ",
    ):
        plant.restore(snapshot)


def test_modes_in_a_list_are_those_in_a_tuple(tmp_path):
    """JSON and YAML have lists alone."""
    listed = make(1, modes=list(TRAINING_MODES), known_modes=["run_tests", "sentinel"])
    snapshots.save(tmp_path / "s", listed.snapshot())
    make(1).restore(snapshots.load(tmp_path / "s"))


def test_speed_is_no_part_of_what_a_run_is(tmp_path):
    plant, other = make(2), make(2, num_workers=3, cache=str(tmp_path / "verdicts.sqlite"))
    advance(plant, 1)
    other.restore(plant.snapshot())
    assert_same(state_of(other), state_of(plant))


def test_a_plant_can_be_pickled_in_the_middle_of_a_run_and_needs_no_sandbox_for_it():
    with few_pairs():
        plant = GRPOPlant(tiny_student.GRPOConfig(**TINY), 2, student=student())
    assert isinstance(plant._grader, Grader)
    copied = pickle.loads(pickle.dumps(plant))
    for each in (plant, copied):
        each._grader = FakeGrader()
        advance(each, 2)
    assert_same(state_of(copied), state_of(plant))
    again = pickle.loads(pickle.dumps(plant))
    assert_same_window(advance(again, 1), advance(plant, 1))


def test_a_spawned_plant_shares_nothing_that_moves():
    plant = moved(make(2, EVERY_CHANNEL))
    plant.set_measured_groups(())
    before = state_of(plant)
    with few_pairs():
        spawned = plant.spawn(3)
    assert (spawned.num_rows, spawned.measured_groups, spawned.student) == (
        3,
        frozenset(),
        plant.student,
    )
    advance(spawned, 1)
    assert_same(state_of(plant), before)


# What cannot be run


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_samples": 1}, "num_samples must be at least 2, .* got 1"),
        ({"num_prompts": 0}, "num_prompts must be .*; got 0"),
        ({"num_prompts": 9}, "need at least 9 train problems; got 8"),
        ({"rule": "sideways"}, r"unknown rule 'sideways'; expected one of \['drift', "),
        ({"direction": "up"}, r"unknown direction 'up'; expected one of \['labelled', 'pairs', "),
        ({"target": "weights"}, r"unknown target 'weights'; expected one of \['grad', 'update'\]"),
        (
            {"advantage_scale": "max"},
            r"unknown advantage_scale 'max'; expected one of \['none', 'std'\]",
        ),
        ({"rebound": "square"}, "unknown rebound 'square'"),
        (
            {"modes": ("run_tests", "zz")},
            r"modes must be a tuple of some of \['equality', .*; got \('run_tests', 'zz'\)",
        ),
        ({"known_modes": ()}, r"known_modes must be a tuple of some of .*; got \(\)"),
        ({"temperature": 0.0}, "temperature must be > 0; got 0"),
        ({"temperature": -1.0}, "temperature must be a finite number >= 0; got -1.0"),
        ({"base_lr": math.inf}, "base_lr must be a finite number >= 0; got inf"),
        ({"noise_floor": 1.0}, r"noise_floor must be in \[0, 1\); got 1.0"),
        ({"num_axes": 2}, "num_axes must be 1 .*; got 2; use direction_method='svd'"),
        (
            {"num_evaluation_problems": 3},
            "num_evaluation_problems must be at least 4, one for each mode; got 3",
        ),
        ({"route": True, "target": "update"}, "target must be 'grad' with route=True, .* 'update'"),
        ({"num_rows": 0}, "num_rows must be a whole number of at least 1; got 0"),
        (
            {"channels": (("weight_decay", "run"),)},
            r"'weight_decay' applies to pretraining alone; expected one of \['direction_refresh'",
        ),
        (
            {"channels": (("projection_strength", "group"),)},
            "'projection_strength' has no scope 'group'",
        ),
    ],
)
def test_what_cannot_be_run_is_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_gauges_are_those_that_are_measured():
    names = [own.name for own in MEASUREMENTS]
    assert len(set(names)) == len(names)
    assert {own.name for own in MEASUREMENTS if own.privileged} == set(PRIVILEGED_NAMES)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_problems": 10**30}, "num_problems must be at most 1000000; got 10"),
        ({"difficulty": 5}, "difficulty must be at most 4; got 5"),
        ({"modes": None}, r"modes must be a tuple of some of \['equality', .*; got None"),
        (
            {"known_modes": ("run_tests", "zz")},
            r"known_modes must be a tuple of some of \['equality', .*; got \('run_tests', 'zz'\)",
        ),
        ({"rule": []}, r"unknown rule \[\]; expected one of \['drift', "),
        ({"noise_floor": "x"}, "noise_floor must be a finite number >= 0; got 'x'"),
        ({"lr_schedule": 5}, r"lr_schedule must be a schedule of hpenv\.optim\.schedules; got 5"),
        ({"problems": "/nowhere.jsonl"}, "'/nowhere.jsonl' cannot be read"),
    ],
)
def test_arguments_of_other_types_and_sizes_are_refused_by_name(given, message):
    with pytest.raises(ValueError, match=message):
        Curriculum(GRPOConfig(**given), student())
