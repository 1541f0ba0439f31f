"""The decisions that REINFORCE learns from: those that wait for their credit, and the last others.

A decision has four parts: observation, raw, log density, and a last one of the size of raw. The
last one is (raw - mean) / std while the decision waits, and its advantages afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch


class Replay:
    """The waiting decisions of N rows, the oldest first, and the last S decisions with a credit.

    Args:
        num_rows: N.
        observation_size: F.
        num_outputs: M, the size of raw.
        size: S.
        has_slopes: samples have a fifth part, the slopes of `credits.Advantages`.
    """

    def __init__(
        self,
        num_rows: int,
        observation_size: int,
        num_outputs: int,
        size: int,
        has_slopes: bool = False,
    ) -> None:
        self._sizes = (observation_size, num_outputs, num_outputs, num_outputs)
        self._waiting = torch.zeros(0, num_rows, sum(self._sizes))
        self._more = (num_outputs,) if has_slopes else ()
        self._samples = torch.zeros(num_rows, size, sum((*self._sizes, *self._more)))
        self._count = torch.zeros((), dtype=torch.int64)

    def parts(self, decisions: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Returns the four parts of decisions (..., F + 3 M), or the five of samples."""
        more = self._more if decisions.shape[-1] > sum(self._sizes) else ()
        return decisions.split((*self._sizes, *more), dim=-1)

    def add(self, decision: torch.Tensor) -> None:
        """Adds a decision (N, F + 3 M) whose credit is not complete."""
        self._waiting = torch.cat([self._waiting, decision[None]])

    def complete(self, advantages: torch.Tensor, *slopes: torch.Tensor) -> torch.Tensor:
        """Moves the oldest waiting decision to the samples, with its advantages (N, M).

        `slopes` are those of the decision, (N, M), if samples have them.

        Returns:
            (raw - mean) / std of that decision, (N, M).
        """
        obs, raw, log_density, noise = self.parts(self._waiting[0])
        slot = int(self._count) % self._samples.shape[1]
        self._samples[:, slot] = torch.cat([obs, raw, log_density, advantages, *slopes], dim=-1)
        self._waiting = self._waiting[1:]
        self._count = self._count + 1
        return noise

    def samples(self) -> torch.Tensor:
        """Returns the last decisions that have a credit, (N, at most S, F + 3 M or F + 4 M)."""
        return self._samples[:, : int(self._count)]

    def restart(self) -> None:
        """Drops the waiting decisions, whose runs have ended. The samples stay."""
        self._waiting = self._waiting[:0]

    def arrays(self) -> dict[str, torch.Tensor]:
        """Returns the state that the next `complete` depends on."""
        return {"waiting": self._waiting, "samples": self._samples, "count": self._count}

    def restore(self, arrays: Mapping[str, torch.Tensor]) -> None:
        """Restores the state that `arrays` returned."""
        self._waiting = arrays["waiting"].clone()
        self._samples, self._count = arrays["samples"].clone(), arrays["count"].clone()
