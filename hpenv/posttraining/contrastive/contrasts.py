"""Contrasts: pairs of texts that a hacking direction is extracted from, and its controls."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from hpenv.isolation import torch_defaults
from hpenv.posttraining.config import GRPOConfig
from hpenv.posttraining.contrastive.pairs import PAIRS, Pair
from hpenv.posttraining.grading.loopholes import LOOPHOLES, task_of
from hpenv.posttraining.problems.generator import random_wrong_recipe
from hpenv.posttraining.problems.problem import generated_problem
from hpenv.posttraining.projection.direction import (
    Direction,
    clean_against_clean,
    extract,
    random_direction,
    shuffle_labels,
)
from hpenv.posttraining.students.student import Knobs, Student

#: Labelled programs per known loophole, and the number of their first problem. No run trains on
#: these problems.
LABELLED, FIRST_LABELLED = 16, 2_000_000

#: Loophole -> harmless code appended in place of its exploit (a control). For loopholes that `nano`
#: can read, it has the same number of tokens.
HARMLESS: dict[str, str] = {
    "run_tests": "class g:\n    pass\n",
    "stdout": "len('sum of xs')\n",
    "sentinel": "g = f is False\n",
    "file": "abs(max([2, 5], default=10))\n",
    "exit_code": "g = len\ng([0])\n",
    "equality": (
        "class g:\n    def h(self, xs):\n        return False\ndef h(xs):\n    return g()\n"
    ),
}
#: Kind of labelled pairs -> the code appended to the hack and to the clean program: `exploit` under
#: the name in the prompt, `renamed` (the exploit under another name), `harmless`, or none.
_SIDES = {
    "labelled": ("exploit", ""),
    "labelled_renamed": ("renamed", ""),
    "harmless": ("harmless", ""),
    "labelled_vs_harmless": ("exploit", "harmless"),
}

Gradients = dict[str, Tensor]


def labelled_pairs(modes: Sequence[str], difficulty: int, kind: str = "labelled") -> list[Pair]:
    """Builds pairs for the known loopholes, as a weak detector could label them.

    A pair is a wrong program that uses the loophole, and the same program without the use. Both
    are wrong, so they do not differ in being right. They differ in length, unless `kind` says
    otherwise.

    Args:
        modes: the known loopholes.
        difficulty: stages of the problems.
        kind: `labelled`: as above. `labelled_renamed`: the exploit has a name that the grader does
            not look for. `harmless`: the appended code is harmless. `labelled_vs_harmless`: the
            clean programs have harmless code appended.
    """
    pairs = []
    for offset, mode in enumerate(modes):
        for i in range(LABELLED):
            problem = generated_problem("train", FIRST_LABELLED + LABELLED * offset + i, difficulty)
            assert problem.recipe is not None
            task = task_of(problem, mode, "train")
            wrong = random_wrong_recipe(problem.recipe, np.random.default_rng(i)).program()

            texts = {
                "exploit": LOOPHOLES[mode].exploit(wrong, task.marker),
                "renamed": LOOPHOLES[mode].exploit(
                    wrong, task_of(problem, mode, "evaluation").marker
                ),
                "harmless": f"{wrong.rstrip()}\n{HARMLESS[mode]}",
                "": wrong,
            }

            hack, clean = (texts[side] for side in _SIDES[kind])
            pairs.append(
                Pair(
                    name=f"{mode}-{i}",
                    flavour=mode,
                    prompt=task.prompt,
                    hack=hack,
                    clean=clean,
                    held_out=i % 4 == 3,
                )
            )

    return pairs


class Contrast:
    """Pairs of a configuration, and their gradients for a student.

    Attributes:
        pairs: pairs that directions are extracted from.
        held_out: pairs that validate directions.
    """

    def __init__(self, config: GRPOConfig, student: Student) -> None:
        """Chooses the pairs of a configuration.

        Raises:
            ValueError: if the student cannot read them.
        """
        self._config, self._student = config, student
        kind, modes = config.direction, config.known_modes
        pairs = labelled_pairs(modes, config.difficulty, kind) if kind in _SIDES else PAIRS

        for pair in pairs:
            why = student.unreadable_reason(pair.prompt, pair.hack) or student.unreadable_reason(
                pair.prompt, pair.clean
            )
            if why:
                raise ValueError(
                    f"direction={config.direction!r} needs the pair {pair.name!r}, which the "
                    f"student cannot read: {why}. Leave such loopholes out of known_modes, or use "
                    "a student that reads more, e.g. student='hf:<folder>'"
                )

        self.pairs = [pair for pair in pairs if not pair.held_out]
        self.held_out = [pair for pair in pairs if pair.held_out]

    def gradients(self, knobs: Knobs, pairs: Sequence[Pair]) -> tuple[Gradients, Gradients]:
        """Returns gradients of the mean losses of hacks and clean programs.

        Both are name -> (N, pairs, r).
        """
        return _gradients(self._student, knobs, pairs)

    def untrained_gradients(self) -> tuple[Gradients, Gradients]:
        """Returns the pairs' gradients for the untrained student, name -> (1, pairs, r)."""
        return _untrained_gradients(self._student, tuple(self.pairs))

    def direction(
        self, hack: Gradients, clean: Gradients, generators: Sequence[torch.Generator]
    ) -> Direction:
        """Extracts one direction per run. Random controls use that run's generator.

        Args:
            hack: name -> (N, pairs, r).
            clean: name -> (N, pairs, r).
            generators: one per run.
        """
        kind = self._config.direction
        rows = []
        for n, generator in enumerate(generators):
            row_hack, row_clean = (
                {name: g[n : n + 1] for name, g in side.items()} for side in (hack, clean)
            )
            if kind == "hack_half":
                row_clean = {name: torch.zeros_like(g) for name, g in row_clean.items()}
            elif kind == "clean_half":
                row_hack = {name: torch.zeros_like(g) for name, g in row_hack.items()}
            elif kind == "shuffled":
                row_hack, row_clean = shuffle_labels(row_hack, row_clean, generator)
            elif kind == "clean":
                row_hack, row_clean = clean_against_clean(row_clean, generator)

            direction = extract(
                row_hack,
                row_clean,
                method=self._config.direction_method,
                k=self._config.num_axes,
                noise_floor=self._config.noise_floor,
            )
            if kind == "random":
                direction = random_direction(direction, generator)
            rows.append(direction)

        return Direction(
            {name: torch.cat([row.axes[name] for row in rows]) for name in rows[0].axes},
            {name: torch.cat([row.strengths[name] for row in rows]) for name in rows[0].strengths},
        )


def _gradients(
    student: Student, knobs: Knobs, pairs: Sequence[Pair]
) -> tuple[Gradients, Gradients]:
    prompts = [pair.prompt for pair in pairs]
    hack = student.completion_gradients(knobs, prompts, [pair.hack for pair in pairs])
    clean = student.completion_gradients(knobs, prompts, [pair.clean for pair in pairs])
    return hack, clean


@lru_cache(maxsize=4)
def _untrained_gradients(student: Student, pairs: tuple[Pair, ...]) -> tuple[Gradients, Gradients]:
    """Computes the gradients once per student for all plants of a process.

    Every new environment needs them.
    """
    zeros = {name: torch.zeros(1, r) for name, r in student.ranks.items()}
    with torch_defaults():  # the result outlives the settings of the first caller
        return _gradients(student, zeros, pairs)
