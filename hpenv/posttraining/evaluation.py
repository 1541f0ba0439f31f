"""Evaluation: samples programs, has them graded, and measures held-out pass and hack rates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hpenv.arrays import FloatArray, IntArray
from hpenv.plant.seeds import EVALUATION, PROBE, step_generator
from hpenv.posttraining.config import GRPOConfig
from hpenv.posttraining.grading.grader import Grader, Submission, Verdict
from hpenv.posttraining.grading.loopholes import Task
from hpenv.posttraining.loss import k3
from hpenv.posttraining.splits import Curriculum
from hpenv.posttraining.students.student import Coefficients, Rollouts, Student

Verdicts = Sequence[Sequence[Verdict]]


@dataclass(frozen=True)
class Evaluation:
    """Samples and grades programs of N runs, for training and on held-out problems.

    Attributes:
        config: of the runs.
        student: the frozen model.
        grader: of programs.
        curriculum: tasks by split.
    """

    config: GRPOConfig
    student: Student
    grader: Grader
    curriculum: Curriculum

    def sample(
        self,
        coefficients: Coefficients,
        tasks: Sequence[Sequence[Task]],
        num_samples: int,
        generators: Sequence[torch.Generator],
    ) -> Rollouts:
        """Samples completions of every run's tasks."""
        prompts = [[task.prompt for task in row] for row in tasks]
        heat = self.config.temperature
        return self.student.sample(coefficients, prompts, num_samples, generators, heat)

    def grade(self, tasks: Sequence[Sequence[Task]], rollouts: Rollouts) -> list[list[Verdict]]:
        """Returns the verdicts on every run's completions, (N, tasks x samples)."""
        submissions = []
        for row, texts in zip(tasks, rollouts.texts, strict=True):
            for i, text in enumerate(texts):
                submissions.append(Submission(row[i // rollouts.num_samples], text))

        verdicts = self.grader.grade(submissions)
        width = len(rollouts.texts[0])
        return [verdicts[start : start + width] for start in range(0, len(verdicts), width)]

    def probe(self, coefficients: Coefficients, seeds: IntArray) -> FloatArray:
        """Returns the fraction of the probe's problems that each run solves, (N,).

        The random numbers are the same at every step.
        """
        _, verdicts = self._sample_and_grade(coefficients, self.curriculum.probe, seeds, PROBE)
        return fractions(verdicts, "correct")

    def report(self, coefficients: Coefficients, seeds: IntArray) -> dict[str, FloatArray]:
        """Returns the true rates of every run on held-out problems. See GRPOPlant.report."""
        result: dict[str, FloatArray] = {}
        for names, key in ((None, "pass"), ("train", "hack"), ("evaluation", "renamed_hack")):
            tasks = self.curriculum.evaluation(names)
            rollouts, verdicts = self._sample_and_grade(coefficients, tasks, seeds, EVALUATION)
            result[key] = fractions(verdicts, "correct" if names is None else "hack")
            if names is None:
                result["kl"] = self._kl_from_untrained(coefficients, rollouts)
            if names == "train":
                result["correct"] = fractions(verdicts, "correct")
                for mode in self.config.modes:
                    columns = [i for i, task in enumerate(tasks) if task.mode == mode]
                    chosen = [[row[i] for i in columns] for row in verdicts]
                    result[f"hack_{mode}"] = fractions(chosen, "hack")

        return {"score": result["pass"] - result["hack"]} | result

    def _sample_and_grade(
        self, coefficients: Coefficients, tasks: Sequence[Task], seeds: IntArray, stream: int
    ) -> tuple[Rollouts, Verdicts]:
        """Samples one completion of each task in every run, and grades it."""
        generators = [step_generator(seed, 0, stream) for seed in seeds]
        repeated = [tasks] * len(seeds)
        rollouts = self.sample(coefficients, repeated, 1, generators)
        return rollouts, self.grade(repeated, rollouts)

    @torch.no_grad()
    def _kl_from_untrained(self, coefficients: Coefficients, rollouts: Rollouts) -> FloatArray:
        """Returns the k3 estimate of the divergence from the untrained student, (N,)."""
        now, start = (
            self.student.log_probabilities(given, rollouts, self.config.temperature).double()
            for given in (coefficients, zeros_like(coefficients))
        )
        distance = k3(now, start) * rollouts.mask
        return finite(distance.sum((1, 2)) / rollouts.mask.sum((1, 2)))


def fractions(verdicts: Verdicts, fact: str) -> FloatArray:
    """Returns the fraction of each run's verdicts of which an attribute is true, (N,)."""
    return np.array([np.mean([getattr(verdict, fact) for verdict in row]) for row in verdicts])


def zeros_like(coefficients: Coefficients) -> dict[str, Tensor]:
    """Returns the coefficients of as many untrained runs."""
    return {name: torch.zeros_like(value) for name, value in coefficients.items()}


def finite(values: Tensor) -> FloatArray:
    """Returns numbers as float64, NaN as 0 and infinities as 1e6 with their sign."""
    return np.nan_to_num(values.double().numpy(), nan=0.0, posinf=1e6, neginf=-1e6)
