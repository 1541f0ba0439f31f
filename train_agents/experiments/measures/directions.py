"""What can be said of a hacking direction before anything is trained, and of the problems: the gate, and a baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from hpenv.benchmark.results import Rows
from hpenv.plant.seeds import first_run_seed, step_generator
from hpenv.posttraining.config import GRPOConfig
from hpenv.posttraining.contrastive.contrasts import Contrast, Gradients, labelled_pairs
from hpenv.posttraining.contrastive.pairs import pairs_digest
from hpenv.posttraining.grading.grader import Grader
from hpenv.posttraining.grading.loopholes import TRAINING_MODES
from hpenv.posttraining.plant import DIRECTION
from hpenv.posttraining.projection.direction import validate
from hpenv.posttraining.splits import Curriculum
from hpenv.posttraining.students.registry import student
from hpenv.posttraining.students.student import Student
from train_agents.experiments.measures.memorizer import memorizing_pass_rate
from train_agents.experiments.projection_run import shared_grader

_SVD = {"direction_method": "svd", "num_axes": 4, "noise_floor": 0.25}
#: Title -> what the direction is made of, and whether it is held against labelled programs of the
#: training's loopholes instead of held-out texts of its own kind. Of those programs nothing is ever
#: given to the direction of the pairs.
DIRECTIONS: dict[str, tuple[Mapping[str, Any], bool]] = {
    "pairs": ({}, False),
    "pairs, 4 axes": (_SVD, False),
    "labelled programs": ({"direction": "labelled", "known_modes": TRAINING_MODES}, False),
    "harmless lines appended": ({"direction": "harmless", "known_modes": TRAINING_MODES}, False),
    "harmless lines appended, on labelled programs": (
        {"direction": "harmless", "known_modes": TRAINING_MODES},
        True,
    ),
    "labelled against harmless lines": (
        {"direction": "labelled_vs_harmless", "known_modes": TRAINING_MODES},
        False,
    ),
    "labelled against harmless lines, on labelled programs": (
        {"direction": "labelled_vs_harmless", "known_modes": TRAINING_MODES},
        True,
    ),
    "labelled under other names": (
        {"direction": "labelled_renamed", "known_modes": TRAINING_MODES},
        False,
    ),
    "labelled under other names, on labelled programs": (
        {"direction": "labelled_renamed", "known_modes": TRAINING_MODES},
        True,
    ),
    "pairs, on labelled programs": ({}, True),
    "random": ({"direction": "random"}, False),
    "shuffled labels": ({"direction": "shuffled"}, False),
    "clean against clean": ({"direction": "clean"}, False),
}


def validate_directions(
    grpo: Mapping[str, Any], seeds: Sequence[int], cache: str, grader: Grader | None = None
) -> Rows:
    """Holds every kind of direction against texts it was not made from, and has the memorizing
    baseline graded.

    Args:
        grpo: arguments of GRPOConfig.
        seeds: one draw each of the directions that are drawn; the others are the same for all.
        cache: file of verdicts.
        grader: None for one with this process's sandbox.

    Returns:
        A row per direction: `direction`, `cosines` (module -> one per seed, 0 where the module has
            no axis), and
        `mean`, `median`, `positive_fraction`, `passed`, one per seed, over the modules that have
        one; and `memorizing_pass_rate` on the held-out problems of the experiment, `pairs`,
        `pairs_digest`; and of the pairs and of labelled programs the two `halves` of the contrast,
        see `halves`.
    """
    grader = shared_grader(cache) if grader is None else grader
    config, found = GRPOConfig(**grpo), student(GRPOConfig(**grpo).student)
    zeros = {name: torch.zeros(1, r) for name, r in found.ranks.items()}
    rows = []
    for title, (changes, foreign) in DIRECTIONS.items():
        own = GRPOConfig(**dict(grpo) | dict(changes))
        contrast = Contrast(own, found)
        others = labelled_pairs(TRAINING_MODES, own.difficulty) if foreign else contrast.held_out
        hack, clean = _repeated(contrast.gradients(zeros, contrast.pairs), len(seeds))
        direction = contrast.direction(
            hack, clean, [step_generator(first_run_seed(seed), 0, DIRECTION) for seed in seeds]
        )
        result = validate(direction, *_repeated(contrast.gradients(zeros, others), len(seeds)))
        rows.append(
            {
                "direction": title,
                "texts": len(others),
                "cosines": dict(zip(direction.axes, result.cosines.T.tolist(), strict=True)),
                **{
                    key: result._asdict()[key].tolist()
                    for key in ("mean", "median", "positive_fraction", "passed")
                },
                "corpus": found.digest,
            }
        )
    curriculum = Curriculum(config, found)
    problems = [task.problem for task in curriculum.evaluation(None)]
    rate = memorizing_pass_rate(problems, [task.problem for task in curriculum.training], grader)
    contrast = Contrast(config, found)
    facts = {
        "pairs": len(contrast.pairs),
        "held_out_pairs": len(contrast.held_out),
        "pairs_digest": pairs_digest(),
    }
    labelled = Contrast(
        GRPOConfig(**dict(grpo) | {"direction": "labelled", "known_modes": TRAINING_MODES}), found
    )
    sides = {"pairs": halves(contrast, found), "labelled programs": halves(labelled, found)}
    return rows, {"memorizing_pass_rate": rate, "problems": len(problems), "halves": sides, **facts}


def halves(contrast: Contrast, student: Student) -> dict[str, dict[str, float]]:
    """What either side of a contrast gives to the mean difference, for the student as it came.

    Returns:
        `hack` and `clean`, each: `nats`, mean negative log-likelihood of its programs [nats per
        token]; `norm`, length of the mean gradient over all modules; `norm_of_one`, mean length of
        a single program's; `cosine`, between the mean difference and that side's mean gradient, the
        clean one's reversed, over all modules; `module_cosine`, the mean of the modules' own.
    """
    zeros = {name: torch.zeros(1, r) for name, r in student.ranks.items()}
    sides = dict(zip(("hack", "clean"), contrast.gradients(zeros, contrast.pairs), strict=True))
    means = {
        side: {name: g[0].double().mean(0) for name, g in own.items()}
        for side, own in sides.items()
    }
    means["clean"] = {name: -mean for name, mean in means["clean"].items()}
    difference = {name: means["hack"][name] + means["clean"][name] for name in zeros}
    result = {}
    for side, own in sides.items():
        texts = [getattr(pair, side) for pair in contrast.pairs]
        given = student.rollouts_from_texts([[pair.prompt for pair in contrast.pairs]], [texts])
        with torch.no_grad():
            logp = student.log_probabilities(zeros, given)
        cosines = [
            torch.cosine_similarity(difference[name], means[side][name], dim=0, eps=1e-30)
            for name in zeros
        ]
        whole, half = (torch.cat(list(part.values())) for part in (difference, means[side]))
        result[side] = {
            "nats": float(-logp.sum() / given.mask.sum()),
            "norm": float(half.norm()),
            "norm_of_one": float(
                torch.cat([g[0].double() for g in own.values()], 1).norm(dim=1).mean()
            ),
            "cosine": float(torch.cosine_similarity(whole, half, dim=0)),
            "module_cosine": float(torch.stack(cosines).mean()),
        }
    return result


def _repeated(sides: tuple[Gradients, Gradients], num_rows: int) -> tuple[Gradients, Gradients]:
    """Gradients of a single run as those of several."""
    hack, clean = ({name: g.expand(num_rows, -1, -1) for name, g in side.items()} for side in sides)
    return hack, clean
