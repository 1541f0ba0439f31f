"""Intervention: what the panel does to the rewards and to the gradients of N runs.

An update calls `refresh` (extracts a new direction), `penalized_rewards` (Rebound), and, once per
optimizer step, `project` (removes the direction from the gradients, or from the optimizer's
update).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from hpenv.arrays import FloatArray, IntArray
from hpenv.control.channels import CHANNELS
from hpenv.control.panel import Panel
from hpenv.plant.seeds import DIRECTION, REFRESH, step_generator
from hpenv.posttraining.config import GRPOConfig
from hpenv.posttraining.contrast import Contrast
from hpenv.posttraining.projection.direction import Direction
from hpenv.posttraining.projection.rebound import concept_direction, concept_scores, rebound
from hpenv.posttraining.projection.rules import (
    Measures,
    coordinates,
    measure,
    module_cosines,
    project,
    update_moments,
    zero_moments,
)
from hpenv.posttraining.students.student import Coefficients, Rollouts, Student


def run_values(panel: Panel, channel: str, rows: IntArray) -> FloatArray:
    """Returns a channel of scope `run` for these rows, (n,). A missing one is at neutral."""
    values = panel.per_run(channel)
    return np.full(len(rows), CHANNELS[channel].neutral) if values is None else values[rows]


class Intervention:
    """Directions of N runs, and what the panel does with them.

    Attributes:
        contrast: pairs of texts that directions are extracted from.
        direction: the hacking direction of each run.
    """

    def __init__(
        self, config: GRPOConfig, student: Student, panel: Panel, seeds: Sequence[int]
    ) -> None:
        """Begins with the directions of the untrained student.

        Args:
            config: of the runs.
            student: the frozen model.
            panel: of the runs, whose modules are those of the student.
            seeds: of the runs.

        Raises:
            ValueError: if the student cannot read the pairs.
        """
        self._config, self._student, self._panel = config, student, panel
        self.contrast = Contrast(config, student)
        self._concept: Tensor | None = None
        self.direction = self._untrained_direction(seeds)
        self._moments = zero_moments(self.direction)

    def reset(self, rows: Sequence[int], seeds: Sequence[int]) -> None:
        """Gives some runs the direction of the untrained student."""
        self._set_direction(rows, self._untrained_direction(seeds))

    def refresh(
        self, rows: IntArray, seeds: IntArray, steps: IntArray, coefficients: Coefficients
    ) -> None:
        """Extracts a new direction from the present student, for the rows that draw a refresh.

        Args:
            rows: indices of the runs, (n,).
            seeds: of these runs, (n,).
            steps: updates that they have taken, (n,).
            coefficients: of these runs, without the quarantine, module -> (n, r).
        """
        chances = run_values(self._panel, "direction_refresh", rows)
        drawn = [
            i
            for i, chance in enumerate(chances)
            if chance > 0 and _uniform_number(seeds[i], steps[i]) < chance
        ]
        if not drawn:
            return

        hack, clean = self.contrast.gradients(
            {name: value[drawn] for name, value in coefficients.items()}, self.contrast.pairs
        )
        # A run with gradients that are not finite is not refreshed. This update ends it.
        finite = torch.stack(
            [g.isfinite().flatten(1).all(1) for g in (*hack.values(), *clean.values())]
        ).all(0)
        sound = torch.nonzero(finite)[:, 0].tolist()
        if sound:
            hack, clean = ({name: g[sound] for name, g in side.items()} for side in (hack, clean))
            chosen = [drawn[i] for i in sound]
            generators = [step_generator(seeds[i], steps[i], DIRECTION) for i in chosen]
            new = self.contrast.direction(hack, clean, generators)
            self._set_direction([int(rows[i]) for i in chosen], new)

    def penalized_rewards(
        self, rows: IntArray, rewards: Tensor, rollouts: Rollouts, coefficients: Coefficients
    ) -> Tensor:
        """Returns the rewards minus the penalty of Rebound, where the panel asks for it.

        Args:
            rows: indices of the runs, (n,).
            rewards: (n, P, G).
            rollouts: of these runs.
            coefficients: that they were sampled with, module -> (n, r).
        """
        weights = run_values(self._panel, "rebound_weight", rows)
        if not weights.any():
            return rewards

        states = self._student.states(coefficients, rollouts)  # (n, P G, C)
        axis = self._concept_axis().expand(len(rows), -1)
        scores = concept_scores(states.view(*rewards.shape, -1), axis)
        alpha = torch.as_tensor(weights, dtype=torch.float32)
        return rebound(rewards, scores, alpha, self._config.rebound)

    def project(
        self, rows: IntArray, vectors: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Removes the direction from gradients or updates, at the strengths of the panel.

        Call it once per optimizer step, since the rule `drift` averages over the calls.

        Args:
            rows: indices of the runs, (n,).
            vectors: module -> (n, r).

        Returns:
            The vectors that remain and what was removed, module -> (n, r) each.
        """
        direction = self.direction.of_rows(torch.as_tensor(rows))
        table = self._panel.table("projection_strength")
        strengths = torch.zeros(len(rows), len(direction.axes))
        if table is not None:
            strengths = torch.as_tensor(table[rows], dtype=torch.float32)

        deviations = None
        if self._config.rule == "drift":
            deviations = self._deviations(torch.as_tensor(rows), coordinates(vectors, direction))

        magnitude = run_values(self._panel, "magnitude_preservation", rows)
        return project(
            vectors,
            direction,
            self._config.rule,
            dict(zip(direction.axes, strengths.T, strict=True)),
            torch.as_tensor(magnitude, dtype=torch.float32),
            deviations,
        )

    def measures(self, rows: IntArray, gradients: Mapping[str, Tensor]) -> tuple[Measures, Tensor]:
        """Measures gradients, module -> (n, r), along the direction.

        Returns:
            The measures, (n,) each, and the cosine of every module's gradient, (n, modules).
        """
        direction = self.direction.of_rows(torch.as_tensor(rows))
        return measure(gradients, direction), module_cosines(gradients, direction)

    def tensors(self) -> dict[str, Tensor]:
        """Returns directions and moments by their names in a snapshot, without copies."""
        return {
            **{f"direction/{name}": axes for name, axes in self.direction.axes.items()},
            **{f"strength/{name}": values for name, values in self.direction.strengths.items()},
            **{f"mean/{name}": mean for name, mean in self._moments.means.items()},
            **{f"square/{name}": square for name, square in self._moments.squares.items()},
            "spread": self._moments.weight,
        }

    def _untrained_direction(self, seeds: Sequence[int]) -> Direction:
        return self.contrast.untrained_direction(
            [step_generator(seed, 0, DIRECTION) for seed in seeds]
        )

    def _set_direction(self, rows: Sequence[int], direction: Direction) -> None:
        """Replaces the direction of some runs, and resets their running moments."""
        index = torch.as_tensor(rows)
        self.direction.set_rows(index, direction)
        self._moments.set_rows(index, zero_moments(direction))

    def _deviations(self, index: Tensor, components: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the running standard deviation of each component, module -> (n, k).

        This step is included.
        """
        new = update_moments(self._moments.of_rows(index), components)
        self._moments.set_rows(index, new)
        return new.deviations()

    def _concept_axis(self) -> Tensor:
        """Returns the mean difference of the pairs' states in the untrained student, (1, C)."""
        if self._concept is None:
            pairs, student = self.contrast.pairs, self._student
            zeros = {name: torch.zeros(1, r) for name, r in student.ranks.items()}
            prompts = [[pair.prompt for pair in pairs]]
            hack, clean = (
                student.states(zeros, student.rollouts_from_texts(prompts, [texts]))
                for texts in ([pair.hack for pair in pairs], [pair.clean for pair in pairs])
            )
            self._concept = concept_direction(hack, clean)
        return self._concept


def _uniform_number(seed: int, step: int) -> float:
    """Returns the number in [0, 1) that decides a run's refresh at a step."""
    return torch.rand((), generator=step_generator(seed, step, REFRESH)).item()
