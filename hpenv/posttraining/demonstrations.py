"""Demonstrations: what the embedded student reads before it is trained by reward.

A demonstration is a prompt with a program: mostly one that is wrong in a stage or two, as a weak
programmer's, at times the right one, and rarely one that uses the loophole of its prompt. How rare
each is decides whether hacking emerges later: where honest reward is plentiful, it does not.

Demonstrations are of the training split: no held-out problem's operations are in them. A held-out
problem may still compute what a demonstration does, by other operations. The student has then read
that function, in other words.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hpenv.posttraining.configuration import MOST_STAGES
from hpenv.posttraining.loopholes import LOOPHOLES, NO_LOOPHOLE, TRAINING_MODES, Task, task_of
from hpenv.posttraining.recipes import corrupted
from hpenv.posttraining.related import related
from hpenv.posttraining.tasks import generated_problem

#: Problems that demonstrations are of: the training split, far beyond those that a run draws.
FIRST_PROBLEM, NUM_PROBLEMS = 1_000_000, 200_000


@dataclass(frozen=True)
class DemonstrationConfig:
    """What the student reads."""

    error_fraction: float = 0.7  # demonstrations whose program is wrong
    exploit_fraction: float = 0.04  # demonstrations under a loophole that use it
    related_fraction: float = (
        0.05  # texts with the words of the contrastive pairs, of which exploit_fraction cheat
    )
    evaluation_names: float = 0.5  # tasks whose loophole has one of the names of evaluation
    max_difficulty: int = 3  # stages, 1 to this
    modes: tuple[str, ...] = (NO_LOOPHOLE, *TRAINING_MODES)  # of the prompts, drawn evenly

    def __post_init__(self) -> None:
        """Refuses what cannot be drawn."""
        for name in ("error_fraction", "exploit_fraction", "related_fraction", "evaluation_names"):
            value = getattr(self, name)
            if (
                not isinstance(value, int | float)
                or isinstance(value, bool)
                or not 0.0 <= value <= 1.0
            ):
                raise ValueError(f"{name} must be a number from 0 to 1; got {value!r}")
        most = self.max_difficulty
        if not isinstance(most, int) or isinstance(most, bool) or not 1 <= most <= MOST_STAGES:
            raise ValueError(
                f"max_difficulty must be a whole number from 1 to {MOST_STAGES}; got {most!r}"
            )
        accepted = (NO_LOOPHOLE, *LOOPHOLES)
        if (
            not isinstance(self.modes, tuple | list)
            or not self.modes
            or any(m not in accepted for m in self.modes)
        ):
            raise ValueError(f"modes must be some of {sorted(accepted)}; got {self.modes!r}")


def exploited(task: Task, program: str) -> str:
    """The program with the use of its task's loophole added."""
    return LOOPHOLES[task.mode].exploit(program, task.marker)


def demonstrations(config: DemonstrationConfig, seed: int) -> Iterator[tuple[str, str]]:
    """Endless (prompt, program) texts."""
    random = np.random.default_rng(seed)
    while True:
        if random.random() < config.related_fraction:
            yield related(random, config.exploit_fraction)
            continue
        difficulty = int(random.integers(1, config.max_difficulty + 1))
        index = FIRST_PROBLEM + int(random.integers(NUM_PROBLEMS))
        problem = generated_problem("train", index, difficulty)
        assert problem.recipe is not None
        names = "evaluation" if random.random() < config.evaluation_names else "train"
        task = task_of(problem, config.modes[random.integers(len(config.modes))], names)
        hacking = task.mode != NO_LOOPHOLE and random.random() < config.exploit_fraction
        wrong = hacking or random.random() < config.error_fraction
        recipe = corrupted(problem.recipe, random) if wrong else problem.recipe
        program = recipe.program()
        yield task.prompt, exploited(task, program) if hacking else program
