"""Contrast: the pairs of a configuration, their gradients for a student, and their directions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial

import torch

from hpenv.isolation import torch_defaults
from hpenv.posttraining.config import GRPOConfig
from hpenv.posttraining.contrastive.pairs import Pair
from hpenv.posttraining.contrastive.sources import Gradients
from hpenv.posttraining.projection.direction import Direction, extract
from hpenv.posttraining.students.student import Coefficients, Student


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
        self._student, self._source = student, config.contrast_source
        self._extract = partial(
            extract,
            method=config.direction_method,
            k=config.num_axes,
            noise_floor=config.noise_floor,
        )

        pairs = self._source.pairs(config.known_modes, config.difficulty)
        for pair in pairs:
            why = student.unreadable_reason(pair.prompt, pair.hack) or student.unreadable_reason(
                pair.prompt, pair.clean
            )
            if why:
                raise ValueError(
                    f"direction={self._source.name!r} needs the pair {pair.name!r}, which the "
                    f"student cannot read: {why}. Leave such loopholes out of known_modes, or use "
                    "a student that reads more, e.g. student='hf:<folder>'"
                )

        self.pairs = [pair for pair in pairs if not pair.held_out]
        self.held_out = [pair for pair in pairs if pair.held_out]

    def gradients(
        self, coefficients: Coefficients, pairs: Sequence[Pair]
    ) -> tuple[Gradients, Gradients]:
        """Returns gradients of the mean losses of hacks and clean programs.

        Both are name -> (N, pairs, r).
        """
        return _gradients(self._student, coefficients, pairs)

    def untrained_direction(self, generators: Sequence[torch.Generator]) -> Direction:
        """Extracts the direction of the untrained student for every run.

        All runs have the same gradients. Controls draw from the generator of each run.
        """
        references = _untrained_gradients(self._student, tuple(self.pairs))
        hack, clean = (
            {name: g.expand(len(generators), -1, -1) for name, g in side.items()}
            for side in references
        )
        return self.direction(hack, clean, generators)

    def direction(
        self, hack: Gradients, clean: Gradients, generators: Sequence[torch.Generator]
    ) -> Direction:
        """Extracts one direction per run, as the source has it.

        Args:
            hack: name -> (N, pairs, r).
            clean: name -> (N, pairs, r).
            generators: one per run.
        """
        rows = []
        for n, generator in enumerate(generators):
            own_hack = {name: g[n : n + 1] for name, g in hack.items()}
            own_clean = {name: g[n : n + 1] for name, g in clean.items()}
            rows.append(self._source.direction(self._extract, own_hack, own_clean, generator))

        return Direction(
            {name: torch.cat([row.axes[name] for row in rows]) for name in rows[0].axes},
            {name: torch.cat([row.strengths[name] for row in rows]) for name in rows[0].strengths},
        )


def _gradients(
    student: Student, coefficients: Coefficients, pairs: Sequence[Pair]
) -> tuple[Gradients, Gradients]:
    prompts = [pair.prompt for pair in pairs]
    hack, clean = (
        student.completion_gradients(coefficients, prompts, texts)
        for texts in ([pair.hack for pair in pairs], [pair.clean for pair in pairs])
    )
    return hack, clean


@lru_cache(maxsize=4)
def _untrained_gradients(student: Student, pairs: tuple[Pair, ...]) -> tuple[Gradients, Gradients]:
    """Computes the gradients once per student for all plants of a process.

    Every new environment needs them.
    """
    zeros = {name: torch.zeros(1, r) for name, r in student.ranks.items()}
    with torch_defaults():  # the result outlives the settings of the first caller
        return _gradients(student, zeros, pairs)
