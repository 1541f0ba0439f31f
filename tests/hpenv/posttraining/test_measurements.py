"""Gauges and reports are those of the rollouts, and the truth stays apart."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from hpenv.env import TrainLoopVectorEnv
from hpenv.plant.protocol import DIVERGENCE_REASONS
from hpenv.posttraining import plant as plant_module
from hpenv.posttraining.grading.grader import Verdict
from hpenv.posttraining.grading.loopholes import NO_LOOPHOLE, TRAINING_MODES
from hpenv.posttraining.loss import policy_loss
from hpenv.posttraining.measurements import (
    GAUGE_NAMES,
    LARGEST_REWARD,
    MEASUREMENTS,
    PRIVILEGED_NAMES,
)
from hpenv.telemetry.features import FEATURES
from hpenv.telemetry.reading import readable
from hpenv.telemetry.rewards import measured_terms
from tests.hpenv.posttraining.small_plants import EVERY_CHANNEL, assert_same, gauge
from tests.tiny_student import FakeGrader, advance, make, recorded, state_of, verdict


def privileged(window, name):
    return window[name]


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
        match=r"unknown measurement groups \['momentum'\] of the posttraining plant; .*'probe'",
    ):
        plant.set_measured_groups(["probe", "momentum"])


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
    """The measurements of its other steps are not looked at."""
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


def test_gauges_are_those_that_are_measured():
    names = [own.name for own in MEASUREMENTS]
    assert len(set(names)) == len(names)
    assert {own.name for own in MEASUREMENTS if own.privileged} == set(PRIVILEGED_NAMES)
