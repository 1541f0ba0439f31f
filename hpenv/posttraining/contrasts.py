"""Contrasts: the texts a hacking direction is extracted from, and the direction of a configuration or a control."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from hpenv.isolation import torch_defaults
from hpenv.posttraining.configuration import GRPOConfig
from hpenv.posttraining.direction import (
    Direction,
    clean_against_clean,
    extract,
    random_direction,
    shuffled,
)
from hpenv.posttraining.loopholes import LOOPHOLES, task_of
from hpenv.posttraining.pairs import PAIRS, Pair
from hpenv.posttraining.recipes import corrupted
from hpenv.posttraining.student import Knobs, Student
from hpenv.posttraining.tasks import generated_problem

#: Labelled programs per known loophole, and where their problems begin: no run trains on those.
LABELLED, FIRST_LABELLED = 16, 2_000_000

#: Loophole -> source that stands after the program as its exploit does, is of no use, and, of those
#: that `nano` can read, has as many of its tokens.
HARMLESS: dict[str, str] = {
    "rt": "class g:\n    pass\n",
    "so": "len('sum of xs')\n",
    "se": "g = f is False\n",
    "fm": "abs(max([2, 5], default=10))\n",
    "xc": "g = len\ng([0])\n",
    "eq": "class g:\n    def h(self, xs):\n        return False\ndef h(xs):\n    return g()\n",
}
#: Kind of labelled programs -> what either side has after the program: the exploit, under the name
#: in the prompt or under another, the harmless source, or nothing.
_SIDES = {
    "modes": ("exploit", ""),
    "misnamed": ("misnamed", ""),
    "appended": ("harmless", ""),
    "exploits": ("exploit", "harmless"),
}

Gradients = dict[str, Tensor]


def labelled_pairs(modes: Sequence[str], difficulty: int, kind: str = "modes") -> list[Pair]:
    """What a weak detector would hand over: programs that use the loopholes it knows, beside the
    same without.

    Both are wrong, so that right and wrong is not what tells them apart. Their length is, unless
    `kind` says otherwise.

    Args:
        modes: the loopholes that are known.
        difficulty: of the problems.
        kind: `modes`; or `misnamed`, in which the exploit goes by a name that the grader does not
            look for; or `appended`, in which what is appended is harmless; or `exploits`, in which
            the programs without one have something harmless appended.
    """
    pairs = []
    for offset, mode in enumerate(modes):
        for i in range(LABELLED):
            problem = generated_problem("train", FIRST_LABELLED + LABELLED * offset + i, difficulty)
            assert problem.recipe is not None
            task = task_of(problem, mode, "train")
            wrong = corrupted(problem.recipe, np.random.default_rng(i)).program()
            texts = {
                "exploit": LOOPHOLES[mode].exploit(wrong, task.marker),
                "misnamed": LOOPHOLES[mode].exploit(
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
    """Pairs, read by a student.

    Attributes:
        pairs: what directions are extracted from; the others validate them.
        held_out: those others.
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
            if why := student.refusal(pair.prompt, pair.hack) or student.refusal(
                pair.prompt, pair.clean
            ):
                raise ValueError(
                    f"direction={config.direction!r} needs the pair {pair.name!r}, which the student cannot read: "
                    f"{why}. Leave such loopholes out of known_modes, or take a student that reads more, as "
                    "student='hf:<folder>'"
                )
        self.pairs = [pair for pair in pairs if not pair.held_out]
        self.held_out = [pair for pair in pairs if pair.held_out]

    def gradients(self, knobs: Knobs, pairs: Sequence[Pair]) -> tuple[Gradients, Gradients]:
        """Gradients of the hacks' and the clean completions' mean losses, name -> (N, pairs, r)."""
        return _gradients(self._student, knobs, pairs)

    def untrained_gradients(self) -> tuple[Gradients, Gradients]:
        """Those of the pairs for the student as it came, name -> (1, pairs, r)."""
        return _untrained_gradients(self._student, tuple(self.pairs))

    def direction(
        self, hack: Gradients, clean: Gradients, generators: Sequence[torch.Generator]
    ) -> Direction:
        """The direction of each row, from gradients (N, pairs, r); controls draw from the rows' own generators."""
        rows = []
        for n, generator in enumerate(generators):
            own_hack, own_clean = (
                {name: g[n : n + 1] for name, g in side.items()} for side in (hack, clean)
            )
            if self._config.direction == "hack_half":
                own_clean = {name: torch.zeros_like(g) for name, g in own_clean.items()}
            elif self._config.direction == "clean_half":
                own_hack = {name: torch.zeros_like(g) for name, g in own_hack.items()}
            elif self._config.direction == "shuffled":
                own_hack, own_clean = shuffled(own_hack, own_clean, generator)
            elif self._config.direction == "clean":
                own_hack, own_clean = clean_against_clean(own_clean, generator)
            found = extract(
                own_hack,
                own_clean,
                method=self._config.direction_method,
                k=self._config.num_axes,
                noise_floor=self._config.noise_floor,
            )
            rows.append(
                random_direction(found, generator) if self._config.direction == "random" else found
            )
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
    """Computed once for all plants of a process that share a student: every new environment needs them."""
    with torch_defaults():  # they outlive the settings of whoever asks first
        return _gradients(
            student, {name: torch.zeros(1, r) for name, r in student.ranks.items()}, pairs
        )
