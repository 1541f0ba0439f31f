"""Directions of controls and of known loopholes."""

import pytest
import torch

from hpenv.posttraining.contrastive import sources
from hpenv.posttraining.contrastive.sources import labelled_pairs
from hpenv.posttraining.grading.loopholes import LOOPHOLES, TRAINING_MODES
from hpenv.posttraining.plant import GRPOPlant
from hpenv.posttraining.students.registry import student as shipped
from tests import tiny_student
from tests.tiny_student import TINY, FakeGrader, make, short_pairs, student
from train_agents.experiments.contrasts import CONTROLS, HARMLESS, grpo_config


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
