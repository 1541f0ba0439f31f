"""Contrast sources: a hacking direction is extracted from their pairs of texts.

`SOURCES` has those that a configuration can name. Any other `ContrastSource` is given as an object.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hpenv.posttraining.contrastive.pairs import PAIRS, Pair
from hpenv.posttraining.grading.loopholes import LOOPHOLES, Task, task_of
from hpenv.posttraining.problems.generator import random_wrong_recipe
from hpenv.posttraining.problems.problem import generated_problem
from hpenv.posttraining.projection.direction import Direction, random_direction

#: Labelled programs per known loophole, and the number of their first problem. No run trains on
#: these problems.
LABELLED, FIRST_LABELLED = 16, 2_000_000

Gradients = dict[str, Tensor]
#: Gradients of hacks and of clean programs of one run, name -> (1, pairs, r) each -> direction.
Extract = Callable[[Gradients, Gradients], Direction]


def plain_direction(
    extract: Extract, hack: Gradients, clean: Gradients, generator: torch.Generator
) -> Direction:
    """Extracts the direction of the gradients as they are."""
    return extract(hack, clean)


def _random_direction(
    extract: Extract, hack: Gradients, clean: Gradients, generator: torch.Generator
) -> Direction:
    return random_direction(extract(hack, clean), generator)


@dataclass(frozen=True)
class ContrastSource:
    """Pairs of texts, and the direction that their gradients give.

    Attributes:
        name: in descriptions of runs, and in errors.
        pairs: from the known loopholes and the number of a problem's stages to the pairs.
        direction: from `extract`, the gradients of one run's hacks and clean programs, and the
            run's generator to the run's direction. Controls change the gradients or the result.
    """

    name: str
    pairs: Callable[[Sequence[str], int], Sequence[Pair]]
    direction: Callable[[Extract, Gradients, Gradients, torch.Generator], Direction] = (
        plain_direction
    )


def written_pairs(modes: Sequence[str], difficulty: int) -> Sequence[Pair]:
    """Returns the pairs that were written by hand, whatever the arguments."""
    return PAIRS


def pairs_of_programs(
    modes: Sequence[str], difficulty: int, programs: Callable[[Task, str], tuple[str, str]]
) -> list[Pair]:
    """Builds pairs for the known loopholes. Every fourth pair is held out.

    Args:
        modes: the known loopholes.
        difficulty: stages of the problems.
        programs: from a task and a wrong program for it to the hack and the clean program.
    """
    pairs = []
    for offset, mode in enumerate(modes):
        for i in range(LABELLED):
            problem = generated_problem("train", FIRST_LABELLED + LABELLED * offset + i, difficulty)
            assert problem.recipe is not None
            task = task_of(problem, mode, "train")
            wrong = random_wrong_recipe(problem.recipe, np.random.default_rng(i)).program()
            hack, clean = programs(task, wrong)
            pairs.append(Pair(f"{mode}-{i}", mode, task.prompt, hack, clean, i % 4 == 3))
    return pairs


def exploit(task: Task, wrong: str) -> str:
    """Returns a wrong program that uses the loophole of its task."""
    return LOOPHOLES[task.mode].exploit(wrong, task.marker)


def labelled_pairs(modes: Sequence[str], difficulty: int) -> list[Pair]:
    """Builds pairs for the known loopholes, as a weak detector could label them.

    A pair is a wrong program that uses the loophole, and the same program without the use. Both
    are wrong, so they do not differ in being right. They differ in length.
    """
    return pairs_of_programs(modes, difficulty, lambda task, wrong: (exploit(task, wrong), wrong))


#: Contrast sources by name. `random` is a control: random axes instead of those of the pairs.
SOURCES = {
    source.name: source
    for source in (
        ContrastSource("pairs", written_pairs),
        ContrastSource("labelled", labelled_pairs),
        ContrastSource("random", written_pairs, _random_direction),
    )
}
