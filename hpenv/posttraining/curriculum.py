"""Which tasks a run trains on, is probed on and is evaluated on: pure functions of its configuration, seed and step."""

from __future__ import annotations

import numpy as np

from hpenv.posttraining.configuration import GRPOConfig
from hpenv.posttraining.loopholes import Task, task_of
from hpenv.posttraining.problem_files import read_problems
from hpenv.posttraining.tasks import Problem, generated_problem

#: Stream of a run's choices of tasks; see gradients.draws for what else draws.
TASKS = 11


class Curriculum:
    """The tasks of a configuration.

    Attributes:
        training: one task per training problem; problem i has the i-th loophole, in turn.
        probe: tasks without a loophole that the reward may see.
    """

    def __init__(self, config: GRPOConfig) -> None:
        """Generates, or reads, the problems."""
        self._config = config
        if config.problems:
            problems: list[Problem] = read_problems(config.problems)
        else:
            problems = [generated_problem("train", i, config.difficulty) for i in range(config.num_problems)]
        if len(problems) < config.num_prompts:
            raise ValueError(f"{len(problems)} training problems are fewer than num_prompts={config.num_prompts}")
        modes = config.modes
        self.training = [task_of(problem, modes[i % len(modes)], "train") for i, problem in enumerate(problems)]
        self.probe = self._honest("probe", config.num_probe_problems)

    def _honest(self, split: str, count: int) -> list[Task]:
        return [task_of(generated_problem(split, i, self._config.difficulty), "none", "train") for i in range(count)]

    def chosen(self, seed: int, step: int) -> list[Task]:
        """The P tasks of one update, all different."""
        random = np.random.default_rng(np.random.SeedSequence(int(seed), spawn_key=(TASKS, int(step))))
        picked = random.choice(len(self.training), self._config.num_prompts, replace=False)
        return [self.training[i] for i in picked]

    def evaluation(self, names: str | None) -> list[Task]:
        """Held-out tasks: without a loophole, or with those of the training in turn, under these names."""
        count = self._config.num_evaluation_problems
        if names is None:
            return self._honest("held_out", count)
        modes = self._config.modes
        problems = [generated_problem("held_out", i, self._config.difficulty) for i in range(count)]
        return [task_of(problem, modes[i % len(modes)], names) for i, problem in enumerate(problems)]
