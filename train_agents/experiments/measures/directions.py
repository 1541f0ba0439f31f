"""Measures hacking directions before any training: the gate, and the memorizing baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from hpenv.benchmark.results import Rows
from hpenv.plant.seeds import DIRECTION, first_run_seed, step_generator
from hpenv.posttraining.contrast import Contrast
from hpenv.posttraining.contrastive.pairs import pairs_digest
from hpenv.posttraining.contrastive.sources import Gradients, labelled_pairs
from hpenv.posttraining.grading.grader import Grader
from hpenv.posttraining.grading.loopholes import TRAINING_MODES
from hpenv.posttraining.projection.direction import validate
from hpenv.posttraining.splits import Curriculum
from hpenv.posttraining.students.registry import student
from hpenv.posttraining.students.student import Student
from train_agents.experiments.contrasts import grpo_config
from train_agents.experiments.measures.memorizer import memorizing_pass_rate
from train_agents.experiments.projection_run import shared_grader

_SVD = {"direction_method": "svd", "num_axes": 4, "noise_floor": 0.25}
_LABELLED, _HARMLESS, _AGAINST, _RENAMED = (
    {"direction": kind, "known_modes": TRAINING_MODES}
    for kind in ("labelled", "harmless", "labelled_vs_harmless", "labelled_renamed")
)
#: Title -> changes of GRPOConfig; and True if the direction is compared with labelled programs of
#: the training's loopholes instead of held-out texts of its kind. The direction of the pairs is
#: made without those programs.
DIRECTIONS: dict[str, tuple[Mapping[str, Any], bool]] = {
    "pairs": ({}, False),
    "pairs, 4 axes": (_SVD, False),
    "labelled programs": (_LABELLED, False),
    "harmless lines appended": (_HARMLESS, False),
    "harmless lines appended, on labelled programs": (_HARMLESS, True),
    "labelled against harmless lines": (_AGAINST, False),
    "labelled against harmless lines, on labelled programs": (_AGAINST, True),
    "labelled under other names": (_RENAMED, False),
    "labelled under other names, on labelled programs": (_RENAMED, True),
    "pairs, on labelled programs": ({}, True),
    "random": ({"direction": "random"}, False),
    "shuffled labels": ({"direction": "shuffled"}, False),
    "clean against clean": ({"direction": "clean"}, False),
}


def validate_directions(
    grpo: Mapping[str, Any], seeds: Sequence[int], cache: str, grader: Grader | None = None
) -> Rows:
    """Validates every kind of direction on other texts, and grades the memorizing baseline.

    Args:
        grpo: arguments of GRPOConfig.
        seeds: one draw each of the random directions. The others are the same for all.
        cache: file of verdicts.
        grader: None for one with this process's sandbox.

    Returns:
        A row per direction: `direction`, `cosines` (module -> one per seed, 0 where the module has
        no axis), and `mean`, `median`, `positive_fraction`, `passed`, one per seed, over the
        modules that have an axis. The extra has `memorizing_pass_rate` on the held-out problems of
        the experiment, `pairs`, `pairs_digest`, and `halves` (see `halves`) of the contrasts of
        pairs and of labelled programs.
    """
    grader = shared_grader(cache) if grader is None else grader
    config = grpo_config(grpo)
    found = student(config.student)
    zeros = _zeros(found)
    rows = []

    for title, (changes, is_foreign) in DIRECTIONS.items():
        changed = grpo_config(dict(grpo) | dict(changes))
        contrast, difficulty = Contrast(changed, found), changed.difficulty
        others = labelled_pairs(TRAINING_MODES, difficulty) if is_foreign else contrast.held_out
        hack, clean = _repeat_rows(contrast.gradients(zeros, contrast.pairs), len(seeds))
        draws = [step_generator(first_run_seed(seed), 0, DIRECTION) for seed in seeds]
        direction = contrast.direction(hack, clean, draws)
        result = validate(direction, *_repeat_rows(contrast.gradients(zeros, others), len(seeds)))
        row = {"direction": title, "texts": len(others), "corpus": found.digest}
        row["cosines"] = dict(zip(direction.axes, result.cosines.T.tolist(), strict=True))
        for key in ("mean", "median", "positive_fraction", "passed"):
            row[key] = getattr(result, key).tolist()
        rows.append(row)

    curriculum = Curriculum(config, found)
    problems = [task.problem for task in curriculum.evaluation(None)]
    rate = memorizing_pass_rate(problems, [task.problem for task in curriculum.training], grader)
    contrast = Contrast(config, found)
    labelled = Contrast(grpo_config(dict(grpo) | _LABELLED), found)
    return rows, {
        "memorizing_pass_rate": rate,
        "problems": len(problems),
        "halves": {"pairs": halves(contrast, found), "labelled programs": halves(labelled, found)},
        "pairs": len(contrast.pairs),
        "held_out_pairs": len(contrast.held_out),
        "pairs_digest": pairs_digest(),
    }


def halves(contrast: Contrast, student: Student) -> dict[str, dict[str, float]]:
    """Returns the parts of the mean difference from either side of a contrast, before training.

    Returns:
        `hack` and `clean`, each: `nats`, mean negative log-likelihood of its programs [nats per
        token]; `norm`, length of the mean gradient over all modules; `norm_of_one`, mean length of
        a single program's; `cosine`, between the mean difference and that side's mean gradient, the
        clean one's reversed, over all modules; `module_cosine`, the mean of the modules' cosines.
    """
    zeros = _zeros(student)
    sides = dict(zip(("hack", "clean"), contrast.gradients(zeros, contrast.pairs), strict=True))
    means = {}
    for side, gradients in sides.items():
        means[side] = {name: g[0].double().mean(0) for name, g in gradients.items()}
    means["clean"] = {name: -mean for name, mean in means["clean"].items()}
    difference = {name: means["hack"][name] + means["clean"][name] for name in zeros}
    prompts = [pair.prompt for pair in contrast.pairs]

    result = {}
    for side, gradients in sides.items():
        texts = [getattr(pair, side) for pair in contrast.pairs]
        rollouts = student.rollouts_from_texts([prompts], [texts])
        with torch.no_grad():
            logp = student.log_probabilities(zeros, rollouts)
        pairs = [(difference[name], means[side][name]) for name in zeros]
        cosines = [torch.cosine_similarity(*pair, dim=0, eps=1e-30) for pair in pairs]
        whole, half = (torch.cat(list(part.values())) for part in (difference, means[side]))
        singles = torch.cat([g[0].double() for g in gradients.values()], 1)
        result[side] = {
            "nats": float(-logp.sum() / rollouts.mask.sum()),
            "norm": float(half.norm()),
            "norm_of_one": float(singles.norm(dim=1).mean()),
            "cosine": float(torch.cosine_similarity(whole, half, dim=0)),
            "module_cosine": float(torch.stack(cosines).mean()),
        }
    return result


def _zeros(student: Student) -> dict[str, torch.Tensor]:
    return {name: torch.zeros(1, rank) for name, rank in student.ranks.items()}


def _repeat_rows(sides: tuple[Gradients, Gradients], num_rows: int) -> tuple[Gradients, Gradients]:
    """Returns gradients of a single run as those of several."""
    hack, clean = ({name: g.expand(num_rows, -1, -1) for name, g in side.items()} for side in sides)
    return hack, clean
