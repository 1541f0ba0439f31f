"""A plant whose losses have a closed form, for tests of the environment alone.

It computes nothing else, and its runs diverge when they are told to.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import torch

from hpenv.arrays import BoolArray, FloatArray, IntArray
from hpenv.control.panel import Panel, TensorSite
from hpenv.plant.measurements import Measurement, Window, groups_of
from hpenv.plant.protocol import DIVERGENCE_REASONS, Score, Snapshot
from hpenv.posttraining.measurements import GAUGES as GRPO_GAUGES
from hpenv.pretraining.measurements import EFFECT_MEMORIES
from hpenv.pretraining.measurements import MEASUREMENTS as OF_PRETRAINING

INITIAL_LOSS = 5.0
NUM_LAYERS = 2
CHANNELS = (("lr", "run"), ("weight_decay", "run"))
PROBE_PASS = Measurement("probe_pass", "1", "a gauge", group="probe", in_info=True)
TRUTH = Measurement("truth", "1", "the loss", privileged=True)
MEASUREMENTS = (*OF_PRETRAINING, *GRPO_GAUGES, PROBE_PASS, TRUTH)
GROUPS = groups_of(MEASUREMENTS)


class FakePlant:
    """Every step takes the loss of row i from x to x (1 - 0.01 m).

    m is the row's multiplier of the learning rate.

    Row i of seed s starts at INITIAL_LOSS + (s mod 1000) / 1000. The loss of the last batch after
    its update is 0.99 of the run's, layer j's numbers are 1 / (j + 1) of those of the run. It has
    every gauge there is, at a twentieth of the loss before the window, and one privileged number,
    the loss.

    Args:
        num_rows: N.
        diverges: row -> steps after which its first run diverges.
        reason: of those divergences.
        channels: of the panel; the learning rate alone has an effect.
        before_update: report the training loss before the window's steps, as a plant does at one
            step per window; otherwise the mean of those before and after.

    Attributes:
        measured_groups: what is measured.
        num_measured: how often `advance` was called.
    """

    kind = "pretraining"
    measurements = MEASUREMENTS
    score = Score("bpb", "what is left of the loss", "nats/token")
    stacked = True

    def __init__(
        self,
        num_rows: int = 1,
        diverges: Mapping[int, int] | None = None,
        reason: str = "loss_nonfinite",
        channels: Sequence[tuple[str, str]] = CHANNELS,
        before_update: bool = False,
    ) -> None:
        self.before_update = before_update
        self.num_rows, self.corpus_digest, self.num_layers, self.channels = (
            num_rows,
            "0" * 64,
            NUM_LAYERS,
            channels,
        )
        sites = {f"layer.{i}.w": TensorSite("matrix", "adamw", i) for i in range(NUM_LAYERS)}
        self.panel = Panel(channels, sites, num_rows, "pretraining")
        self.measured_groups = frozenset({"probe", "momentum"})
        self.probes: FloatArray = np.zeros(num_rows)
        self.losses: FloatArray = np.full(num_rows, INITIAL_LOSS)
        self.steps: IntArray = np.zeros(num_rows, dtype=np.int64)
        self.divergence: IntArray = np.zeros(num_rows, dtype=np.int64)
        self.seeds: list[int] = [0] * num_rows
        self.ends: IntArray = np.full(num_rows, np.iinfo(np.int64).max)
        for row, step in (diverges or {}).items():
            self.ends[row] = step
        self.arranged: BoolArray = np.zeros(num_rows, dtype=bool)  # the run that diverges has begun
        self.reason = DIVERGENCE_REASONS.index(reason)
        self.num_measured = 0

    def set_measured_groups(self, groups: Collection[str]) -> None:
        assert set(groups) <= set(GROUPS)
        self.measured_groups = frozenset(groups)

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
        self.num_measured += 1
        step_losses = self._step_losses(num_steps)
        before = self.losses.copy()
        taken = np.where(self.divergence > 0, 0, np.minimum(num_steps, self.ends - self.steps))
        table = self.panel.table("lr")
        rates = np.ones(self.num_rows) if table is None else table.mean(1)
        self.losses = self.losses * np.maximum(1.0 - 0.01 * rates, 0.0) ** taken
        self.steps = self.steps + taken
        self.divergence = np.where(self.steps >= self.ends, self.reason, self.divergence)
        probed = (self.divergence == 0) & (("probe" in self.measured_groups) | (self.steps == 0))
        self.probes = np.where(probed, self.losses, self.probes)
        layers = self.losses[:, None] / (1.0 + np.arange(NUM_LAYERS))  # (N, L)
        values = {
            "train_loss": before if self.before_update else (before + self.losses) / 2,
            "probe_loss": self.probes.copy(),
            "gradient_norm": self.losses / 10,
            "momentum_norm": self._if("momentum", self.losses / 20),
            "same_batch_loss": self._if("same_batch", 0.99 * self.losses),
            "layer_gradient_norm": layers / 10,
            "layer_gradient_max": self._if("gradient_max", layers / 100),
            "layer_activation_mean": self._if("activations", layers - 3),
            "layer_activation_variance": self._if("activations", layers),
            "layer_saturation": self._if("activations", layers / 10),
            "update_ratio": self._if("updates", self.losses[:, None] / 1000),
            "layer_update_ratio": self._if("updates", layers / 1000),
            "update_alignment": self._if("alignment", 0.5 - self.losses[:, None] / 20),
            "gradient_agreement": self._if("agreement", 0.4 - self.losses[:, None] / 20),
            "mean_gradient_norm": self._if("spread", self.losses),
            "mean_squared_gradient_norm": self._if("spread", self.losses**2 + before),
            "update_gain": self._if("gain", 1.0 - self.losses / 20),
            "probe_gain": self._if("probe_gain", 1.0 - self.losses / 30),
            "start_distance": self._if("distance", 1.0 / (1.0 + self.losses[:, None])),
            **{
                name: self._if(name, self.panel.positions - self.losses[:, None])
                for name in EFFECT_MEMORIES
            },
            **{own.name: before / 20 for own in GRPO_GAUGES},
            "probe_pass": self._if("probe", self.losses / 20),
            "truth": self.losses.copy(),
        }
        return Window(self.steps.copy(), self.divergence.copy(), values, step_losses)

    def _step_losses(self, num_steps: IntArray) -> FloatArray:
        """The loss before each step of the window ahead, (S, N)."""
        if "step_losses" not in self.measured_groups:
            return np.zeros((0, self.num_rows))
        taken = np.where(self.divergence > 0, 0, np.minimum(num_steps, self.ends - self.steps))
        table = self.panel.table("lr")
        rates = np.ones(self.num_rows) if table is None else table.mean(1)
        number = np.arange(taken.max(initial=0))[:, None]
        losses = self.losses * np.maximum(1.0 - 0.01 * rates, 0.0) ** number
        return np.where(number < taken, losses, np.nan)

    def _if(self, group: str, values: FloatArray) -> FloatArray:
        return values if group in self.measured_groups else np.zeros_like(values)

    def evaluate(self) -> FloatArray:
        return self.losses.copy()

    def report(self) -> dict[str, FloatArray]:
        return {self.score.key: self.evaluate()}

    def _arrays(self) -> dict[str, np.ndarray]:
        return {
            "losses": self.losses,
            "steps": self.steps,
            "divergence": self.divergence,
            "ends": self.ends,
            "arranged": self.arranged,
            "probes": self.probes,
            "panel": self.panel.positions,
        }

    def snapshot(self) -> Snapshot:
        return Snapshot(
            {name: torch.as_tensor(value.copy()) for name, value in self._arrays().items()}
        )

    def restore(self, snapshot: Snapshot, keep_panel: bool = False) -> None:
        for name, value in self._arrays().items():
            if name != "panel" or not keep_panel:
                value[...] = snapshot.tensors[name].numpy()

    def spawn(self, num_rows: int) -> FakePlant:
        return FakePlant(
            num_rows, None, DIVERGENCE_REASONS[self.reason], self.channels, self.before_update
        )
