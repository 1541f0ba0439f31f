"""Runs one arm: GRPO runs of several seeds, stacked as rows, with a panel that is held constant.

At regular intervals the runs report true numbers on held-out problems, and the means of the gauges
over all updates since the last report. The records are saved with the plant's snapshot. An
interrupted arm goes on at its last report, bitwise as if it had never stopped, because a plant's
draws are functions of seed and step.
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
from hpenv.posttraining.coefficients import total_norm
from hpenv.posttraining.grading.grader import Grader
from hpenv.posttraining.grading.shared_sandbox import SharedSandbox
from hpenv.posttraining.measurements import GAUGE_NAMES
from hpenv.posttraining.plant import GRPOPlant
from hpenv.posttraining.projection.rules import coordinates, erase_direction
from hpenv.posttraining.students.registry import student
from train_agents.experiments.contrasts import grpo_config
from train_agents.experiments.projection_arms import PANEL

#: True rates of the rollouts that are recorded. Those of a single loophole are not, because an
#: update may have no such prompt.
TRAINED = ("hack", "correct", "used_loophole")
#: Means over all updates since the last report; true rates of the rollouts under names with
#: `train_`.
MEANS = (*GAUGE_NAMES, "gradient_norm", *(f"train_{name}" for name in TRAINED))
#: Replaces a number that overflowed, in JSON (a run that diverged may be infinitely far from where
#: it began).
LARGEST = 1e6
#: Updates of warmup before the cosine (the paper's amendment b).
WARMUP_UPDATES = 10


def schedule(num_updates: int) -> Cosine:
    """Returns the learning rate schedule of an arm.

    It is that of the id, so that its episodes and the arms are the same runs.
    """
    return Cosine(num_updates, min(WARMUP_UPDATES, num_updates // 2))


class Recording:
    """Runs of an arm, and their measurements so far.

    Attributes:
        plant: the runs.
        interval: updates between reports.
        records: of every report: `step`, `report` (deployed), `knob_on` (with the quarantine, of an
            arm that routes), `probe_pass`, and, but for the first, `means` and `module_cos` since
            the last report. `module_cos` is 0 if there was no update. Numbers are lists, one per
            row.
    """

    def __init__(
        self, plant: GRPOPlant, seeds: Sequence[int], positions: Mapping[str, float], interval: int,
        checkpoint: Path,
    ) -> None:  # fmt: skip
        """Begins the runs, or goes on with those of the checkpoint.

        Raises:
            ValueError: if the checkpoint is of other runs.
        """
        self.plant, self.interval = plant, interval
        self._seeds, self._checkpoint = list(seeds), checkpoint
        self._about = {"seeds": list(seeds), "positions": dict(positions), "interval": interval}
        self.records: list[dict[str, Any]] = []
        plant.measure(())
        if checkpoint.exists():
            self._resume()
            return

        plant.reset([first_run_seed(seed) for seed in seeds])
        row = [positions.get(name, 0.0) for name in plant.panel.names]
        plant.panel.move(np.array([row] * plant.num_rows), np.ones(plant.num_rows, dtype=bool))
        self._report({})

    @property
    def step(self) -> int:
        """Updates that a row which never diverged has taken."""
        return self.records[-1]["step"]

    def go_on(self, num_updates: int) -> None:
        """Trains to the next report or to the last update, whichever is first. Reports, and saves.

        A row that has diverged repeats its last means.
        """
        plant, num_rows = self.plant, self.plant.num_rows
        names = (*GAUGE_NAMES, "gradient_norm", *TRAINED)
        count = min(self.interval, num_updates - self.step)
        sums, moves = np.zeros((num_rows, len(MEANS))), np.zeros((num_rows, 1))
        cosines = np.zeros((num_rows, len(plant.names)))

        for _ in range(count):
            before = plant.steps.copy()
            window = plant.advance(np.ones(num_rows, dtype=np.int64))
            moved = plant.steps > before
            measured = np.stack([window[name] for name in names], 1)
            sums[moved] += measured[moved]
            cosines[moved] += plant.module_cos.double().numpy()[moved]
            moves[moved] += 1.0

        last = self.records[-1].get("means", {})
        last_means = np.array([last[name] for name in MEANS]).T if last else 0.0
        means = np.where(moves > 0, sums / np.maximum(moves, 1.0), last_means)
        cosines /= np.maximum(moves, 1.0)
        found = {
            "means": _finite_lists(dict(zip(MEANS, means.T, strict=True))),
            "module_cos": _finite_lists(dict(zip(plant.names, cosines.T, strict=True))),
        }
        self._report(found, self.step + count)

    def _report(self, more: Mapping[str, Any], step: int = 0) -> None:
        """Measures what is true of the runs, and saves it."""
        plant = self.plant
        plant.measure(("probe",))
        probe_pass = 1.0 - plant.advance(np.zeros(plant.num_rows, dtype=np.int64))["probe_loss"]
        plant.measure(())

        record = {"step": step, "report": _finite_lists(plant.report())}
        record |= {"probe_pass": probe_pass.tolist(), **more}
        if plant.config.route:
            record["knob_on"] = _finite_lists(plant.report(deployed=False))
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
                f"{self._checkpoint} must be of {self._about}; got {found.metadata['about']}; "
                "move it away, or give another --runs"
            )
        self.plant.restore(found)
        self.records = list(found.metadata["records"])

    def rows(self) -> list[dict[str, Any]]:
        """Returns a dictionary per run: `seed`, `corpus`, `divergence_reason`, `steps`, and curves.

        `reports`, `knob_on` (of an arm that routes) and `probe_pass` have one number per step.
        `means` and `module_cos` have one less.
        """
        plant, rows = self.plant, []
        for row, seed in enumerate(self._seeds):
            reason = plant.divergence[row]
            entry = {
                "seed": seed,
                "corpus": plant.corpus_digest,
                "divergence_reason": DIVERGENCE_REASONS[reason] if reason else None,
                "steps": [record["step"] for record in self.records],
                "probe_pass": [record["probe_pass"][row] for record in self.records],
                "reports": _curves(self.records, "report", row),
                "means": _curves(self.records[1:], "means", row),
                "module_cos": _curves(self.records[1:], "module_cos", row),
            }
            if plant.config.route:
                entry["knob_on"] = _curves(self.records, "knob_on", row)
            rows.append(entry)
        return rows


def along(plant: GRPOPlant) -> FloatArray:
    """Returns the mean cosine of each run's coefficients with its direction, (N,).

    The mean is over the modules and their axes.
    """
    units = {
        name: torch.nn.functional.normalize(value, dim=1)
        for name, value in plant.coefficients.values.items()
    }
    cosines = coordinates(units, plant.intervention.direction)
    return torch.cat(list(cosines.values()), 1).double().mean(1).numpy()


def _finite_lists(values: Mapping[str, FloatArray]) -> dict[str, list[float]]:
    lists = {}
    for name, value in values.items():
        finite = np.nan_to_num(value, nan=LARGEST, posinf=LARGEST, neginf=-LARGEST)
        lists[name] = finite.tolist()
    return lists


def _curves(records: Sequence[Mapping[str, Any]], key: str, row: int) -> dict[str, list[float]]:
    """Returns name -> a row's numbers over the records."""
    names = records[0][key] if records else ()
    return {name: [record[key][name][row] for record in records] for name in names}


def shared_grader(cache: str) -> Grader:
    """Returns a grader with this process's sandbox.

    Its verdicts are in a file that other processes may share.
    """
    Path(cache).parent.mkdir(parents=True, exist_ok=True)
    return Grader(SharedSandbox(), cache)


def run_arm(
    grpo: Mapping[str, Any], positions: Mapping[str, float], seeds: Sequence[int], num_updates: int,
    report_interval: int, folder: str, cache: str, erases: bool = False,
    grader: Grader | None = None,
) -> Rows:  # fmt: skip
    """Trains an arm to its last update, from its checkpoint if there is one.

    Args:
        grpo: arguments of GRPOConfig.
        positions: channel of PANEL -> position that its cell is held at.
        seeds: one row each, as an env's.
        num_updates: of a run.
        report_interval: updates between reports.
        folder: where its checkpoint is.
        cache: file of verdicts, shared with other arms.
        erases: also report on the final coefficients without their component along the direction.
            Nothing is trained for that.
        grader: None for one with this process's sandbox.

    Returns:
        `Recording.rows`, with `along`, `quarantine_ratio` of an arm that routes (its length / the
        coefficients'), and `erased` (a report's numbers) where asked for. The extra is empty.
    """
    grader = shared_grader(cache) if grader is None else grader
    config = grpo_config(grpo, lr_schedule=schedule(num_updates))
    plant = GRPOPlant(config, len(seeds), PANEL, student=student(config.student), grader=grader)
    recording = Recording(plant, seeds, positions, report_interval, Path(folder) / "checkpoint")
    with progress(num_updates, Path(folder).name, completed=recording.step) as advance:
        while recording.step < num_updates:
            before = recording.step
            recording.go_on(num_updates)
            advance(recording.step - before)

    rows, ends = recording.rows(), {"along": along(plant)}
    if config.route:
        length = np.maximum(total_norm(plant.coefficients.values), 1e-12)
        ends["quarantine_ratio"] = total_norm(plant.quarantine.values) / length
    for name, values in _finite_lists(ends).items():
        for row, entry in enumerate(rows):
            entry[name] = values[row]

    if erases:
        plant.coefficients.values = erase_direction(
            plant.coefficients.values, plant.intervention.direction
        )
        report = _finite_lists(plant.report())
        for row, entry in enumerate(rows):
            entry["erased"] = {name: values[row] for name, values in report.items()}
    return rows, {}
