"""One arm: GRPO runs of several seeds, stacked as rows, under a panel that is held constant, and
what became of them.

At regular intervals the runs are asked what is true of them on held-out problems; between, the
means of the gauges over all updates are kept. What is known so far is saved with the plant's
snapshot: an interrupted arm goes on at its last report, bitwise as if it had never stopped, since a
plant's draws are functions of seed and step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hpenv.arrays import FloatArray
from hpenv.benchmark.progress import progress
from hpenv.benchmark.results import Rows
from hpenv.optim.schedules import Cosine
from hpenv.plant import snapshots
from hpenv.plant.protocol import DIVERGENCE_REASONS, Snapshot
from hpenv.plant.seeds import first_run_seed
from hpenv.posttraining.config import GRPOConfig
from hpenv.posttraining.grading.grader import Grader
from hpenv.posttraining.grading.shared_sandbox import SharedSandbox
from hpenv.posttraining.plant import GAUGE_NAMES, GRPOPlant, total_norm
from hpenv.posttraining.projection.rules import coordinates, erase_direction
from hpenv.posttraining.students.registry import student
from train_agents.experiments.projection_arms import PANEL

#: True rates of the rollouts that are kept; those of a single loophole are not, for an update may
#: have no such prompt.
TRAINED = ("hack", "correct", "used_loophole")
#: Means over all updates since the last report; true rates of the rollouts under names with
#: `train_`.
MEANS = (*GAUGE_NAMES, "gradient_norm", *(f"train_{name}" for name in TRAINED))
#: Stands for what overflowed, in JSON (a run that diverged may be infinitely far from where it
#: began).
LARGEST = 1e6
#: Updates of warmup before the cosine (the paper's amendment b).
WARMUP_UPDATES = 10


def schedule(num_updates: int) -> Cosine:
    """The rate of an arm: that of the id, so that its episodes and the arms are the same runs."""
    return Cosine(num_updates, min(WARMUP_UPDATES, num_updates // 2))


class Recording:
    """Runs of an arm, and what was measured of them so far.

    Attributes:
        plant: the runs.
        interval: updates between reports.
        records: of every report: `step`, `report` (deployed), `knob_on` (with the quarantine, of an
            arm that routes), `probe_pass`, and, but for the first, `means` and `module_cos` (since
            the one before; the second 0 if there was no update); numbers are lists of one per row.
    """

    def __init__(
        self,
        plant: GRPOPlant,
        seeds: Sequence[int],
        positions: Mapping[str, float],
        interval: int,
        checkpoint: Path,
    ) -> None:
        """Begins the runs, or goes on with those of the checkpoint.

        Raises:
            ValueError: if the checkpoint is of other runs.
        """
        self.plant, self.interval, self._seeds, self._checkpoint = (
            plant,
            interval,
            list(seeds),
            checkpoint,
        )
        self._about = {"seeds": list(seeds), "positions": dict(positions), "interval": interval}
        self.records: list[dict[str, Any]] = []
        plant.measure(())
        if checkpoint.exists():
            self._resume()
            return
        plant.reset([first_run_seed(seed) for seed in seeds])
        given = np.array(
            [[positions.get(name, 0.0) for name in plant.panel.names]] * plant.num_rows
        )
        plant.panel.move(given, np.ones(plant.num_rows, dtype=bool))
        self._report({})

    @property
    def step(self) -> int:
        """Updates that a row which never diverged has taken."""
        return self.records[-1]["step"]

    def go_on(self, num_updates: int) -> None:
        """Trains to the next report, or to the last update if that comes first; then reports, and saves."""
        plant, rows = self.plant, np.arange(self.plant.num_rows)
        names = (*GAUGE_NAMES, "gradient_norm", *TRAINED)
        count = min(self.interval, num_updates - self.step)
        sums, moves = np.zeros((plant.num_rows, len(MEANS))), np.zeros(plant.num_rows)
        cosines = np.zeros((plant.num_rows, len(plant.names)))
        for _ in range(count):
            before = plant.steps.copy()
            window = plant.advance(np.ones_like(rows))
            moved = plant.steps > before
            seen = np.stack([window[name] for name in names], 1)
            sums[moved] += seen[moved]
            cosines[moved] += plant.module_cos.double().numpy()[moved]
            moves += moved
        last = self.records[-1].get("means", {})
        means = np.where(
            (moves > 0)[:, None],
            sums / np.maximum(moves, 1.0)[:, None],
            np.array([last[name] for name in MEANS]).T if last else 0.0,
        )  # a row that has diverged keeps the last it had
        cosines /= np.maximum(moves, 1.0)[:, None]
        modules = _listed(dict(zip(plant.names, cosines.T, strict=True)))
        found = {"means": _listed(dict(zip(MEANS, means.T, strict=True))), "module_cos": modules}
        self._report(found, self.step + count)

    def _report(self, more: Mapping[str, Any], step: int = 0) -> None:
        plant = self.plant
        plant.measure(("probe",))
        probe_pass = 1.0 - plant.advance(np.zeros(plant.num_rows, dtype=np.int64))["probe_loss"]
        plant.measure(())
        record = {
            "step": step,
            "report": _listed(plant.report()),
            "probe_pass": probe_pass.tolist(),
            **more,
        }
        if plant.config.route:
            record["knob_on"] = _listed(plant.report(deployed=False))
        self.records.append(record)
        self._save()

    def _save(self) -> None:
        found = self.plant.snapshot()
        metadata = found.metadata | {"about": self._about, "records": self.records}
        snapshots.save(self._checkpoint, Snapshot(found.tensors, metadata))

    def _resume(self) -> None:
        found = snapshots.load(self._checkpoint)
        if found.metadata["about"] != self._about:
            raise ValueError(
                f"{self._checkpoint} is of {found.metadata['about']}; expected {self._about}: move it away, or give "
                "another --runs"
            )
        self.plant.restore(found)
        self.records = list(found.metadata["records"])

    def rows(self) -> list[dict[str, Any]]:
        """A dictionary per run: `seed`, `corpus`, `divergence_reason`, `steps`, and curves over
        those steps.

        `reports`, `knob_on` (of an arm that routes) and `probe_pass` have one number per step,
        `means` one less.
        """
        plant, result = self.plant, []
        for row, seed in enumerate(self._seeds):
            entry: dict[str, Any] = {
                "seed": seed,
                "corpus": plant.corpus_digest,
                "divergence_reason": DIVERGENCE_REASONS[plant.divergence[row]]
                if plant.divergence[row]
                else None,
                "steps": [record["step"] for record in self.records],
                "probe_pass": [record["probe_pass"][row] for record in self.records],
                "reports": _curves([record["report"] for record in self.records], row),
                "means": _curves([record["means"] for record in self.records[1:]], row),
                "module_cos": _curves([record["module_cos"] for record in self.records[1:]], row),
            }
            if plant.config.route:
                entry["knob_on"] = _curves([record["knob_on"] for record in self.records], row)
            result.append(entry)
        return result


def along(plant: GRPOPlant) -> FloatArray:
    """Where the knobs of each run stand along its direction, (N,): mean cosine over the modules and their axes."""
    knobs = {name: torch.nn.functional.normalize(knob, dim=1) for name, knob in plant.knobs.items()}
    return torch.cat(list(coordinates(knobs, plant.direction).values()), 1).double().mean(1).numpy()


def _listed(values: Mapping[str, FloatArray]) -> dict[str, list[float]]:
    return {
        name: np.nan_to_num(value, nan=LARGEST, posinf=LARGEST, neginf=-LARGEST).tolist()
        for name, value in values.items()
    }


def _curves(records: Sequence[Mapping[str, list[float]]], row: int) -> dict[str, list[float]]:
    return {
        name: [record[name][row] for record in records] for name in (records[0] if records else ())
    }


def shared_grader(cache: str) -> Grader:
    """A grader with this process's sandbox, and verdicts in a file that other processes may share."""
    Path(cache).parent.mkdir(parents=True, exist_ok=True)
    return Grader(SharedSandbox(), cache)


def run_arm(
    grpo: Mapping[str, Any],
    positions: Mapping[str, float],
    seeds: Sequence[int],
    num_updates: int,
    report_interval: int,
    folder: str,
    cache: str,
    erases: bool = False,
    grader: Grader | None = None,
) -> Rows:
    """Trains an arm to its last update, from its checkpoint if there is one.

    Args:
        grpo: arguments of GRPOConfig.
        positions: channel of PANEL -> position that its cell is held at.
        seeds: one row each, as an env's.
        num_updates: of a run.
        report_interval: updates between reports.
        folder: where its checkpoint is.
        cache: file of verdicts, shared with other arms.
        erases: also report on the final knobs without their part along the direction; nothing is
            trained for that.
        grader: None for one with this process's sandbox.

    Returns:
        `Recording.rows`, with `along`, `quarantine_ratio` of an arm that routes (its length / the
        knobs'), and `erased` (a report's numbers) where asked for; and nothing else.
    """
    grader = shared_grader(cache) if grader is None else grader
    config = GRPOConfig(**grpo, lr_schedule=schedule(num_updates))
    plant = GRPOPlant(config, len(seeds), PANEL, student=student(config.student), grader=grader)
    recording = Recording(plant, seeds, positions, report_interval, Path(folder) / "checkpoint")
    with progress(num_updates, Path(folder).name, completed=recording.step) as advance:
        while recording.step < num_updates:
            before = recording.step
            recording.go_on(num_updates)
            advance(recording.step - before)
    rows = recording.rows()
    moved = {"along": along(plant)}
    if config.route:
        moved["quarantine_ratio"] = total_norm(plant.quarantine) / np.maximum(
            total_norm(plant.knobs), 1e-12
        )
    for name, values in _listed(moved).items():
        for row, entry in enumerate(rows):
            entry[name] = values[row]
    if erases:
        plant.knobs = erase_direction(plant.knobs, plant.direction)
        report = _listed(plant.report())
        for row, entry in enumerate(rows):
            entry["erased"] = {name: values[row] for name, values in report.items()}
    return rows, {}
