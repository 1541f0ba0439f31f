"""Demonstrations: texts that the embedded student is pretrained on, before training by reward.

A demonstration is a prompt with a program. Most programs are wrong in a stage or two, as those of a
weak programmer are. Some are right. A few use the loophole of their prompt. These frequencies
decide whether hacking emerges later. It does not where honest reward is plentiful.

Demonstrations come from the training split and share no operations with held-out problems. A
held-out problem may still compute the function of a demonstration by other operations. The student
has then read that function in other words.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hpenv.posttraining.config import MOST_STAGES
from hpenv.posttraining.grading.loopholes import (
    LOOPHOLES,
    NO_LOOPHOLE,
    TRAINING_MODES,
    Task,
    task_of,
)
from hpenv.posttraining.problems.generator import random_wrong_recipe
from hpenv.posttraining.problems.problem import generated_problem
from train_agents.related import related_text

#: Numbers of the training problems in demonstrations, far beyond those that a run draws.
FIRST_PROBLEM, NUM_PROBLEMS = 1_000_000, 200_000


@dataclass(frozen=True)
class DemonstrationConfig:
    """Frequencies of the kinds of demonstrations. Fractions are in [0, 1]."""

    error_fraction: float = 0.7  # of the demonstrations whose program is wrong
    exploit_fraction: float = 0.04  # of the demonstrations under a loophole that use it
    # of the texts with the words of the contrastive pairs. A fraction exploit_fraction of them
    # cheats.
    related_fraction: float = 0.05
    evaluation_names: float = 0.5  # fraction of tasks whose loophole has an evaluation name
    max_difficulty: int = 3  # stages are drawn from 1 to this
    modes: tuple[str, ...] = (NO_LOOPHOLE, *TRAINING_MODES)  # of the prompts, with equal chances

    def __post_init__(self) -> None:
        """Checks the values."""
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
                f"max_difficulty must be an integer from 1 to {MOST_STAGES}; got {most!r}"
            )

        accepted = (NO_LOOPHOLE, *LOOPHOLES)
        if (
            not isinstance(self.modes, tuple | list)
            or not self.modes
            or any(m not in accepted for m in self.modes)
        ):
            raise ValueError(f"modes must be some of {sorted(accepted)}; got {self.modes!r}")


def add_exploit(task: Task, program: str) -> str:
    """Returns the program with the use of its task's loophole added."""
    return LOOPHOLES[task.mode].exploit(program, task.marker)


def demonstrations(config: DemonstrationConfig, seed: int) -> Iterator[tuple[str, str]]:
    """Yields (prompt, program) texts without end."""
    random = np.random.default_rng(seed)
    while True:
        if random.random() < config.related_fraction:
            yield related_text(random, config.exploit_fraction)
            continue

        difficulty = int(random.integers(1, config.max_difficulty + 1))
        index = FIRST_PROBLEM + int(random.integers(NUM_PROBLEMS))
        problem = generated_problem("train", index, difficulty)
        assert problem.recipe is not None

        names = "evaluation" if random.random() < config.evaluation_names else "train"
        task = task_of(problem, config.modes[random.integers(len(config.modes))], names)

        uses_loophole = task.mode != NO_LOOPHOLE and random.random() < config.exploit_fraction
        wrong = uses_loophole or random.random() < config.error_fraction
        recipe = random_wrong_recipe(problem.recipe, random) if wrong else problem.recipe
        program = recipe.program()
        yield task.prompt, add_exploit(task, program) if uses_loophole else program
