"""State of N episodes between two decisions, as named arrays that a snapshot holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from hpenv.arrays import BoolArray, FloatArray
from hpenv.control.panel import Panel
from hpenv.plant.measurements import Window
from hpenv.plant.seeds import SeedStreams
from hpenv.render import History
from hpenv.telemetry.estimators import Estimates, Estimation, Estimators
from hpenv.telemetry.features import Feature
from hpenv.telemetry.power_law import PowerLaw
from hpenv.telemetry.reading import Layout, Reading
from hpenv.telemetry.trajectory import Trajectory

Arrays = dict[str, NDArray[Any]]


@dataclass
class Episodes:
    """State of N episodes that is not the plant's. The first axis of every array is the run.

    Attributes:
        ended: True where the episode has ended and the next one has not begun, (N,).
        initial: probe loss of the untrained run, (N,).
        previous_positions: positions of the cells before the last window, (N, A).
        observations: last observation of each run, (N, F) float32.
        registers: values of the registers, (N, R) in [-1, 1].
        window: measurements of the last decision.
        trajectory: the losses so far.
        estimators: exponential means of the losses of all steps. None unless a feature reads them.
        power_law: sums for the power law of these losses. None unless a feature reads it.
        streams: random streams from which the rows draw the seeds of their runs.
        histories: data of `render()`, one per run.
        begun: True after the first reset.
    """

    ended: BoolArray
    initial: FloatArray
    previous_positions: FloatArray
    observations: NDArray[np.float32]
    registers: FloatArray
    window: Window
    trajectory: Trajectory
    streams: SeedStreams
    histories: list[History]
    estimators: Estimators | None = None
    power_law: PowerLaw | None = None
    begun: bool = False

    @staticmethod
    def empty(
        window: Window,
        num_cells: int,
        num_columns: int,
        num_registers: int,
        seed_mode: str,
        features: Iterable[Feature] = (),
    ) -> Episodes:
        """Returns the state before the first reset, with the window before any measurement.

        The statistics are those that the features read.
        """
        N, statistics = len(window.steps), {feature.estimates for feature in features}
        return Episodes(
            ended=np.ones(N, dtype=bool),
            initial=np.zeros(N),
            previous_positions=np.zeros((N, num_cells)),
            observations=np.zeros((N, num_columns), dtype=np.float32),
            registers=np.zeros((N, num_registers)),
            window=window,
            trajectory=Trajectory.empty(N),
            streams=SeedStreams(N, seed_mode),
            histories=[History() for _ in range(N)],
            estimators=Estimators.empty(N) if "trends" in statistics else None,
            power_law=PowerLaw.empty(N) if "power_law" in statistics else None,
        )

    def require_reset(self, purpose: str) -> None:
        """Checks that the first episodes have begun.

        Raises:
            gymnasium.error.ResetNeeded: before the first reset.
        """
        if not self.begun:
            raise gym.error.ResetNeeded(
                f"nothing to {purpose} before the first reset(); call reset()"
            )

    def begin(self, rows: BoolArray) -> list[int]:
        """Clears the state of these rows. Returns the seeds of their new runs."""
        for name in ("ended", "previous_positions", "registers"):
            getattr(self, name)[rows] = 0
        self.trajectory = self.trajectory.with_reset(rows)
        if self.estimators is not None:
            self.estimators = self.estimators.with_reset(rows)
        if self.power_law is not None:
            self.power_law = self.power_law.with_reset(rows)

        chosen = np.flatnonzero(rows).tolist()
        for row in chosen:
            self.histories[row] = History()
        return self.streams.draw(chosen)

    def add_window(
        self,
        window: Window,
        moved: BoolArray,
        fresh: BoolArray,
        probes: bool,
        num_steps: int,
        positions: FloatArray,
        layout: Layout,
        estimation: Estimation,
    ) -> Reading:
        """Adds the window of a decision. Returns it with the numbers that it is compared with.

        Args:
            window: measurements of the decision.
            moved: rows that were trained, (N,) bool.
            fresh: rows that were just reset, (N,) bool. Their previous losses are the present ones.
            probes: True if the probe loss is measured.
            num_steps: steps of an episode [steps].
            positions: of the cells during the window, (N, A).
            layout: names and numbers of the observation's columns.
            estimation: constants of the estimators.
        """
        train_loss, probe_loss, previous = window["train_loss"], window["probe_loss"], self.window
        self.window, self.begun = window, True
        self.initial[fresh] = probe_loss[fresh]
        self.trajectory = self.trajectory.with_losses(moved, train_loss)
        if probes:
            self.trajectory = self.trajectory.with_probe_losses(moved | fresh, probe_loss)

        estimates = Estimates.empty(len(moved))
        if self.estimators is not None:
            losses = window.step_losses
            if estimation.every == "window":
                has_stepped = moved & (window.steps > previous.steps)
                losses = np.where(has_stepped, train_loss, np.nan)[None]
            self.estimators = self.estimators.with_losses(estimation, losses)
            estimates = self.estimators.estimates(estimation)

        exponent = np.zeros(len(moved))
        if self.power_law is not None:
            self.power_law = self.power_law.with_losses(previous.steps, window.step_losses)
            exponent = self.power_law.exponents()

        return Reading(
            window=window,
            trajectory=self.trajectory,
            previous_train_loss=np.where(fresh, train_loss, previous["train_loss"]),
            previous_probe_loss=np.where(fresh, probe_loss, previous["probe_loss"]),
            initial_probe_loss=self.initial,
            progress=window.steps / num_steps,
            positions=positions,
            previous_positions=self.previous_positions,
            registers=self.registers,
            estimates=estimates,
            loss_exponent=exponent,
            first=fresh | (previous.steps == 0),
            layout=layout,
        )

    def record(self, rows: BoolArray, loss: str, panel: Panel) -> None:
        """Adds the last window of these rows to the data of `render()`.

        Args:
            rows: (N,) bool.
            loss: name of the measurement that is drawn.
            panel: cells during the window.
        """
        values = panel.values()
        for row in np.flatnonzero(rows):
            self.histories[row].append(
                int(self.window.steps[row]),
                float(self.window[loss][row]),
                panel.positions[row],
                values[row],
            )

    def arrays(self) -> Arrays:
        """Returns all arrays by their names in a snapshot, without copies."""
        own = {name: value for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        parts = {"env": own, "window": self.window.arrays(), "trajectory": vars(self.trajectory)}
        if self.estimators is not None:
            parts["estimators"] = vars(self.estimators)
        if self.power_law is not None:
            parts["power_law"] = vars(self.power_law)
        named: Arrays = {}
        for part, values in parts.items():
            named |= {f"{part}/{name}": value for name, value in values.items()}
        return named

    def rows(self) -> list[dict[str, Any]]:
        """Returns the rest of the state: stream of seeds and history of each row, JSON-able."""
        return [
            {"random": stream, "history": history.state()}
            for stream, history in zip(self.streams.states(), self.histories, strict=True)
        ]

    @staticmethod
    def of(
        arrays: Mapping[str, NDArray[Any]], rows: Sequence[Mapping[str, Any]], seed_mode: str
    ) -> Episodes:
        """Returns the state whose `arrays` and `rows` these are. Arrays are copied."""
        names = ("env", "window", "trajectory", "estimators", "power_law")
        parts: dict[str, Arrays] = {name: {} for name in names}
        for key, value in arrays.items():
            part, name = key.split("/", 1)
            parts[part][name] = value.copy()

        streams = SeedStreams(len(rows), seed_mode)
        streams.restore([row["random"] for row in rows])
        return Episodes(
            **parts["env"],
            window=Window.of_arrays(parts["window"]),
            trajectory=Trajectory(**parts["trajectory"]),
            streams=streams,
            histories=[History(row["history"]) for row in rows],
            estimators=Estimators(**parts["estimators"]) if parts["estimators"] else None,
            power_law=PowerLaw(**parts["power_law"]) if parts["power_law"] else None,
            begun=True,
        )
