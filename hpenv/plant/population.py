"""Base class of all plants: step counts, seeds, divergence and panel of N runs, and snapshots.

Subclasses call `_keep` in `__init__` once they have a panel. They implement `_tensors` (state to
save) and `description` (configuration that a snapshot must match).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpenv.arrays import IntArray
from hpenv.checks import as_python
from hpenv.control.panel import Panel
from hpenv.plant.protocol import DIVERGENCE_REASONS, Snapshot, Window, check_tensors

#: Largest step count of a run.
MOST_STEPS = 2**53


class Runs(ABC):
    """N runs, each with a step count and a seed.

    Attributes:
        panel: current value of every cell of every run.
        num_rows: N.
        num_layers: L, layers of the model.
        steps: optimizer steps each run has taken, (N,).
        seeds: seed of each run, (N,). 0 .. N - 1 before the first reset.
        divergence: index into plant.DIVERGENCE_REASONS, (N,).
        tiers: measurement groups that `advance` measures.
    """

    kind: str
    gauge_names: tuple[str, ...]
    privileged_names: tuple[str, ...]
    all_tiers: tuple[str, ...]

    def _keep(self, panel: Panel, num_rows: int, num_layers: int) -> None:
        """Sets the attributes for N runs before their first step."""
        self.panel, self.num_rows, self.num_layers = panel, int(num_rows), num_layers
        self.steps: IntArray = np.zeros(num_rows, dtype=np.int64)
        self.seeds: IntArray = np.arange(num_rows, dtype=np.int64)
        self.divergence: IntArray = np.zeros(num_rows, dtype=np.int64)
        self.tiers = frozenset(self.all_tiers) & {"probe", "momentum"}
        self._window = Window.empty(
            num_rows, num_layers, len(self.gauge_names), len(self.privileged_names)
        )

    @abstractmethod
    def _tensors(self) -> dict[str, Tensor]:
        """Returns the trained state by its name in a snapshot, without copies.

        The first axis of each tensor is the run.
        """

    @abstractmethod
    def description(self) -> dict[str, object]:
        """Returns the configuration that a snapshot must match to be restored."""

    def measure(self, tiers: Collection[str]) -> None:
        """Sets the groups of plant.TIERS that `advance` measures.

        Raises:
            ValueError: for a group that this kind of plant does not have.
        """
        unknown = sorted(set(tiers) - set(self.all_tiers))
        if unknown:
            raise ValueError(
                f"unknown measurement groups {unknown} of the {self.kind} plant; "
                f"expected some of {list(self.all_tiers)}"
            )
        self.tiers = frozenset(tiers)

    def _begin(self, seeds: Sequence[int], rows: Sequence[int] | None) -> list[int]:
        """Resets counters and panel of the given rows (default: all). Returns their indices.

        Raises:
            ValueError: unless there is one seed per row.
        """
        chosen = list(range(self.num_rows)) if rows is None else list(rows)
        if len(seeds) != len(chosen):
            raise ValueError(
                f"seeds must be {len(chosen)} numbers, one for each row; got {len(seeds)}"
            )

        self.seeds[chosen], self.steps[chosen], self.divergence[chosen] = seeds, 0, 0
        self.panel.positions[chosen] = 0.0

        cleared = {key: value.copy() for key, value in vars(self._window).items()}
        for value in cleared.values():
            value[chosen] = 0
        self._window = Window(**cleared)

        return chosen

    def _arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        """Returns counters, panel and last window by their names in a snapshot, without copies."""
        rows = {
            "steps": self.steps,
            "seeds": self.seeds,
            "divergence": self.divergence,
            "panel": self.panel.positions,
        }
        window = {f"window/{key}": value for key, value in vars(self._window).items()}
        return {f"rows/{key}": value for key, value in rows.items()} | window

    def snapshot(self) -> Snapshot:
        """Returns the whole state of the runs. The first axis of every tensor is the run.

        Random numbers are functions of seed and step, so no generator is part of the state.
        """
        tensors = {name: value.clone() for name, value in self._tensors().items()}
        tensors |= {name: torch.as_tensor(value.copy()) for name, value in self._arrays().items()}
        return Snapshot(tensors, {"configuration": as_python(self.description())})

    def restore(self, snapshot: Snapshot, keep_panel: bool = False) -> None:
        """Continues from a snapshot, bitwise.

        Args:
            snapshot: snapshot of a plant of the same configuration and number of rows.
            keep_panel: True leaves the panel at its current values.

        Raises:
            ValueError: if the snapshot has another configuration or number of rows.
        """
        self._check(snapshot)

        tensors = snapshot.tensors
        for name, value in self._tensors().items():
            value.copy_(tensors[name])

        rows = {
            key: tensors[f"rows/{key}"].cpu().numpy().copy()
            for key in ("steps", "seeds", "divergence", "panel")
        }
        self.steps, self.seeds, self.divergence = rows["steps"], rows["seeds"], rows["divergence"]
        if not keep_panel:
            self.panel.positions = rows["panel"]

        self._window = Window(
            **{key: tensors[f"window/{key}"].cpu().numpy().copy() for key in vars(self._window)}
        )

    def _check(self, snapshot: Snapshot) -> None:
        """Checks that a snapshot fits these runs, before anything is changed.

        Raises:
            ValueError: naming the difference.
        """
        theirs, ours = snapshot.metadata.get("configuration"), as_python(self.description())
        if not isinstance(theirs, Mapping):
            raise ValueError(
                "the snapshot must be of a plant, with its configuration; "
                f"it holds {sorted(snapshot.metadata)}"
            )

        different = {
            key: (theirs.get(key), ours.get(key))
            for key in dict.fromkeys([*ours, *theirs])
            if key not in theirs or key not in ours or theirs[key] != ours[key]
        }
        if different:
            raise ValueError(
                f"the snapshot's configuration differs, as (snapshot, here): {different}; "
                "restore it under the configuration that it was taken under"
            )

        rows = len(snapshot.tensors.get("rows/steps", torch.empty(0)))
        if rows != self.num_rows:
            raise ValueError(f"the snapshot must have {self.num_rows} rows; got {rows}")

        expected = {name: torch.as_tensor(value) for name, value in self._arrays().items()}
        check_tensors(snapshot.tensors, self._tensors() | expected)

        for name, least, most in (
            ("steps", 0, MOST_STEPS),
            ("seeds", 0, math.inf),
            ("divergence", 0, len(DIVERGENCE_REASONS) - 1),
            ("panel", -1, 1),
        ):
            values = snapshot.tensors[f"rows/{name}"]
            if not ((values >= least) & (values <= most)).all():
                raise ValueError(
                    f"rows/{name} of the snapshot must be from {least} to {most}; "
                    f"got {values.tolist()}; restore another snapshot"
                )
