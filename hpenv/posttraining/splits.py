"""Task splits: the tasks a run trains on, is probed on and is evaluated on.

All are pure functions of configuration, seed and step.
"""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256

import numpy as np

from hpenv.plant.seeds import TASKS
from hpenv.posttraining.config import GRPOConfig
from hpenv.posttraining.grading.loopholes import Task, task_of
from hpenv.posttraining.problems.files import read_problem_files
from hpenv.posttraining.problems.generator import meaning
from hpenv.posttraining.problems.problem import Problem, generated_problem
from hpenv.posttraining.students.student import Student

#: Split -> the configuration fields that hold its file and its number of problems.
SPLITS = {
    "train": ("problems", "num_problems"),
    "probe": ("probe_problems", "num_probe_problems"),
    "held_out": ("evaluation_problems", "num_evaluation_problems"),
}
#: Repeats in a row, per problem found, after which a split is said to have no more problems. The
#: rarest of n different problems of two stages is every 7 n-th problem.
MOST_REPEATS = 50


class Curriculum:
    """The tasks of a configuration, by split.

    Attributes:
        training: one task per training problem. Problem i has loophole i, modulo their number.
        probe: tasks without a loophole that the reward may see.
        contents: split -> number and digest of its problems, independent of their files.
    """

    def __init__(self, config: GRPOConfig, student: Student) -> None:
        """Generates or reads the problems.

        Raises:
            ValueError: if a file cannot be read, there are too few problems, two splits share a
                problem, or the student cannot read a problem.
        """
        self._num_prompts = config.num_prompts
        self._modes, self._problems = config.modes, _problems(config)
        for split, least in (
            ("train", config.num_prompts),
            ("probe", 1),
            ("held_out", len(config.modes)),
        ):
            if len(self._problems[split]) < least:
                raise ValueError(
                    f"need at least {least} {split} problems; got {len(self._problems[split])}"
                )

        self._check_disjoint()

        self.contents = {split: _content(problems) for split, problems in self._problems.items()}
        self.training = self._tasks_with_loopholes("train", "train")
        self.probe = self._tasks_without_loophole("probe")

        # Read every task now. Otherwise a run would fail in its middle.
        tasks = [*self.training, *self.probe]
        for names in (None, "train", "evaluation"):
            tasks += self.evaluation(names)
        refused = [(task, why) for task in tasks if (why := student.unreadable_reason(task.prompt))]
        if refused:
            task, why = refused[0]
            raise ValueError(
                f"the student cannot read {len(refused)} of {len(tasks)} prompts, of the modes "
                f"{sorted({task.mode for task, _ in refused})}. The first is of problem "
                f"{task.problem.name!r}: {why}. Leave such problems or modes out, or use a student "
                "that reads more, e.g. student='hf:<folder>'"
            )

    def _check_disjoint(self) -> None:
        """Refuses a problem that is in two splits."""
        splits: dict[tuple[str, str], str] = {}
        for split, problems in self._problems.items():
            keys = dict.fromkeys((problem.entry_point, problem.description) for problem in problems)
            for key in keys:
                if key in splits:
                    raise ValueError(
                        f"problem {key[1][:80]!r} is in both {splits[key]!r} and {split!r}; "
                        "splits must not share problems"
                    )
                splits[key] = split

    def _tasks_without_loophole(self, split: str) -> list[Task]:
        return [task_of(problem, "none", "train") for problem in self._problems[split]]

    def _tasks_with_loopholes(self, split: str, names: str) -> list[Task]:
        """Returns the tasks of a split. Problem i has loophole i, modulo their number."""
        modes, problems = self._modes, self._problems[split]
        return [
            task_of(problem, modes[i % len(modes)], names) for i, problem in enumerate(problems)
        ]

    def tasks_at(self, seed: int, step: int) -> list[Task]:
        """Returns the P tasks of one update, all different."""
        random = np.random.default_rng(
            np.random.SeedSequence(int(seed), spawn_key=(TASKS, int(step)))
        )
        picked = random.choice(len(self.training), self._num_prompts, replace=False)
        return [self.training[i] for i in picked]

    def evaluation(self, names: str | None) -> list[Task]:
        """Returns the held-out tasks.

        Args:
            names: None for tasks without a loophole. Otherwise the kind of names under which the
                loopholes of the training appear, in turn.
        """
        if names is None:
            return self._tasks_without_loophole("held_out")
        return self._tasks_with_loopholes("held_out", names)


def _content(problems: list[Problem]) -> str:
    """Returns number and digest of problems, without their names, which tell the file."""
    nameless = [replace(problem, name="") for problem in problems]
    return f"{len(problems)} of sha256 {sha256(repr(nameless).encode()).hexdigest()}"


def _problems(config: GRPOConfig) -> dict[str, list[Problem]]:
    """Returns the problems of each split, read from files or generated.

    All problems of a training file are used, and the first ones of the other files. No two
    generated problems compute the same function, so none is a training problem in other words.
    """
    files = {
        split: getattr(config, file) for split, (file, _) in SPLITS.items() if getattr(config, file)
    }
    found = dict(
        zip(files, read_problem_files(list(files.values()), config.skip_unreadable), strict=True)
    )

    taken: set[str] = set()
    for split, (_, number) in SPLITS.items():
        count = getattr(config, number)
        if split not in found:
            found[split] = _generate_problems(split, count, config.difficulty, taken)
        elif split != "train":
            found[split] = found[split][:count]

    return found


def _generate_problems(split: str, count: int, difficulty: int, taken: set[str]) -> list[Problem]:
    """Returns the first problems of a split that compute no function in `taken`.

    Adds the functions they compute to `taken`.

    Raises:
        ValueError: if there are fewer than `count`.
    """
    found: list[Problem] = []
    index = num_repeats = 0

    while len(found) < count and num_repeats < MOST_REPEATS * (len(found) + 1):
        problem = generated_problem(split, index, difficulty)
        assert problem.recipe is not None
        function = meaning(problem.recipe)
        index, num_repeats = index + 1, num_repeats + 1
        if function not in taken:
            taken.add(function)
            found.append(problem)
            num_repeats = 0

    if len(found) < count:
        raise ValueError(
            f"{SPLITS[split][1]} must be at most {len(found)} with difficulty={difficulty}, which "
            f"has no more different {split} problems; got {count}; raise the difficulty or ask for "
            "fewer"
        )

    return found
