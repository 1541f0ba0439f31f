"""Which tasks a run trains on, is probed on and is evaluated on: pure functions of its configuration, seed and step."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256

import numpy as np

from hpenv.posttraining.configuration import GRPOConfig
from hpenv.posttraining.loopholes import Task, task_of
from hpenv.posttraining.problem_files import read_problem_files
from hpenv.posttraining.recipes import meaning
from hpenv.posttraining.student import Student
from hpenv.posttraining.tasks import Problem, generated_problem

#: Kind of problems -> the arguments that name a file of them, and how many there are.
SPLITS = {
    "train": ("problems", "num_problems"),
    "probe": ("probe_problems", "num_probe_problems"),
    "held_out": ("evaluation_problems", "num_evaluation_problems"),
}
#: Stream of a run's choices of tasks; see gradients.draws for what else draws.
TASKS = 11
#: Problems in a row that repeat another, for each that was found, after which there are said to be
#: no more. The rarest of n different ones of two stages is every 7 n-th problem.
MOST_REPEATS = 50


class Curriculum:
    """The tasks of a configuration.

    Attributes:
        training: one task per training problem; problem i has the i-th loophole, in turn.
        probe: tasks without a loophole that the reward may see.
        contents: key of SPLITS -> number and digest of its problems, the same wherever they were
            read.
    """

    def __init__(self, config: GRPOConfig, student: Student) -> None:
        """Generates, or reads, the problems.

        Raises:
            ValueError: if a file cannot be read, if there are too few problems, if one stands in
                two files, or if the student cannot read them all, which it would be told in the
                middle of a run.
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
                    f"{len(self._problems[split])} {split} problems are too few; expected at least {least}"
                )
        self._check_disjoint()
        self.contents = {split: _content(problems) for split, problems in self._problems.items()}
        self.training = self._with_loopholes("train", "train")
        self.probe = self._honest("probe")
        tasks = [*self.training, *self.probe]
        for names in (None, "train", "evaluation"):
            tasks += self.evaluation(names)
        refused = [(task, why) for task in tasks if (why := student.refusal(task.prompt))]
        if refused:
            task, why = refused[0]
            raise ValueError(
                f"the student cannot read {len(refused)} of {len(tasks)} prompts, of the modes "
                f"{sorted({task.mode for task, _ in refused})}; the first is of problem {task.problem.name!r}: {why}. "
                "Leave such problems or modes out, or take a student that reads more, as student='hf:<folder>'"
            )

    def _check_disjoint(self) -> None:
        """Refuses a problem that is trained on and measured, or measured twice."""
        splits: dict[tuple[str, str], str] = {}
        for split, problems in self._problems.items():
            for key in dict.fromkeys(
                (problem.entry_point, problem.description) for problem in problems
            ):
                if key in splits:
                    raise ValueError(
                        f"the problem {key[1][:80]!r} is in {splits[key]} and in {split}; expected one"
                    )
                splits[key] = split

    def _honest(self, split: str) -> list[Task]:
        return [task_of(problem, "none", "train") for problem in self._problems[split]]

    def _with_loopholes(self, split: str, names: str) -> list[Task]:
        """The i-th problem has the i-th loophole, in turn."""
        modes, problems = self._modes, self._problems[split]
        return [
            task_of(problem, modes[i % len(modes)], names) for i, problem in enumerate(problems)
        ]

    def chosen(self, seed: int, step: int) -> list[Task]:
        """The P tasks of one update, all different."""
        random = np.random.default_rng(
            np.random.SeedSequence(int(seed), spawn_key=(TASKS, int(step)))
        )
        picked = random.choice(len(self.training), self._num_prompts, replace=False)
        return [self.training[i] for i in picked]

    def evaluation(self, names: str | None) -> list[Task]:
        """Held-out tasks: without a loophole, or with those of the training in turn, under these names."""
        return (
            self._honest("held_out") if names is None else self._with_loopholes("held_out", names)
        )


def _content(problems: list[Problem]) -> str:
    """Returns number and digest of problems; their names, which tell the file, are left out."""
    nameless = [replace(problem, name="") for problem in problems]
    return f"{len(problems)} of sha256 {sha256(repr(nameless).encode()).hexdigest()}"


def _problems(config: GRPOConfig) -> dict[str, list[Problem]]:
    """Generated problems, or those of files: all that are trained on, the first ones of those that
    measure.

    No two of the generated ones compute the same: what is measured is not what was trained on in
    other words.
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
            found[split] = _generated(split, count, config.difficulty, taken)
        elif split != "train":
            found[split] = found[split][:count]
    return found


def _generated(split: str, count: int, difficulty: int, taken: set[str]) -> list[Problem]:
    """The first problems of a split that compute what none before them does; adds what they compute
    to `taken`.

    Raises:
        ValueError: there are not so many.
    """
    found: list[Problem] = []
    index = num_repeats = 0
    while len(found) < count and num_repeats < MOST_REPEATS * (len(found) + 1):
        problem = generated_problem(split, index, difficulty)
        assert problem.recipe is not None
        computes = meaning(problem.recipe)
        index, num_repeats = index + 1, num_repeats + 1
        if computes not in taken:
            taken.add(computes)
            found.append(problem)
            num_repeats = 0
    if len(found) < count:
        raise ValueError(
            f"{SPLITS[split][1]} must be at most {len(found)} with difficulty={difficulty}, of which there are no more "
            f"different {split} problems; got {count}: raise the difficulty, or ask for fewer"
        )
    return found
