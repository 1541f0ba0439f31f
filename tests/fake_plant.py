"""A plant whose losses are a closed form, for tests of the environment alone: instant, diverging when told to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from hpenv.panel import Panel, Site
from hpenv.plant import DIVERGENCE_REASONS, BoolArray, FloatArray, IntArray, Snapshot, Window

INITIAL_LOSS = 5.0


class FakePlant:
    """Every step takes the loss of row i from x to x (1 - 0.01 m), where m is its multiplier of the learning rate.

    Row i of seed s starts at INITIAL_LOSS + (s mod 1000) / 1000.

    Args:
        num_rows: N.
        diverges: row -> steps after which its first run diverges.
        reason: of those divergences.

    Attributes:
        measurements: how often `advance` was called.
    """

    def __init__(
        self, num_rows: int = 1, diverges: Mapping[int, int] | None = None, reason: str = "loss_nonfinite"
    ) -> None:
        self.num_rows, self.corpus_digest = num_rows, "0" * 64
        self.panel = Panel(
            [("lr", "run"), ("weight_decay", "run")], {"w": Site("matrix", "muon")}, num_rows, "pretraining"
        )
        self.losses: FloatArray = np.full(num_rows, INITIAL_LOSS)
        self.steps: IntArray = np.zeros(num_rows, dtype=np.int64)
        self.divergence: IntArray = np.zeros(num_rows, dtype=np.int64)
        self.seeds: list[int] = [0] * num_rows
        self.ends: IntArray = np.full(num_rows, np.iinfo(np.int64).max)
        for row, step in (diverges or {}).items():
            self.ends[row] = step
        self.arranged: BoolArray = np.zeros(num_rows, dtype=bool)  # the run that diverges has begun
        self.reason = DIVERGENCE_REASONS.index(reason)
        self.measurements = 0

    def reset(self, seeds: Sequence[int], rows: Sequence[int] | None = None) -> None:
        for row, seed in zip(range(self.num_rows) if rows is None else rows, seeds, strict=True):
            self.seeds[row] = int(seed)
            self.losses[row] = INITIAL_LOSS + seed % 1000 / 1000
            self.steps[row] = self.divergence[row] = 0
            self.panel.positions[row] = 0.0
            if self.arranged[row]:
                self.ends[row] = np.iinfo(np.int64).max
            self.arranged[row] = True

    def advance(self, num_steps: IntArray) -> Window:
        self.measurements += 1
        before = self.losses.copy()
        taken = np.where(self.divergence > 0, 0, np.minimum(num_steps, self.ends - self.steps))
        rates = self.panel.multiplier("lr", "w")
        assert rates is not None
        self.losses = self.losses * np.maximum(1.0 - 0.01 * rates, 0.0) ** taken
        self.steps = self.steps + taken
        self.divergence = np.where(self.steps >= self.ends, self.reason, self.divergence)
        return Window(
            steps=self.steps.copy(),
            train_loss=(before + self.losses) / 2,
            probe_loss=np.where(self.divergence > 0, before, self.losses),
            gradient_norm=self.losses / 10,
            momentum_norm=self.losses / 20,
            divergence=self.divergence.copy(),
        )

    def evaluate(self) -> FloatArray:
        return self.losses.copy()

    def _arrays(self) -> dict[str, np.ndarray]:
        return {
            "losses": self.losses,
            "steps": self.steps,
            "divergence": self.divergence,
            "ends": self.ends,
            "arranged": self.arranged,
            "panel": self.panel.positions,
        }

    def snapshot(self) -> Snapshot:
        return Snapshot({name: torch.as_tensor(value.copy()) for name, value in self._arrays().items()})

    def restore(self, snapshot: Snapshot, keep_panel: bool = False) -> None:
        for name, value in self._arrays().items():
            if name != "panel" or not keep_panel:
                value[...] = snapshot.tensors[name].numpy()

    def spawn(self, num_rows: int) -> FakePlant:
        return FakePlant(num_rows, reason=DIVERGENCE_REASONS[self.reason])
