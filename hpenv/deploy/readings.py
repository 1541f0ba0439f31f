"""Observations of one training run outside of hpenv, with the features of `hpenv.telemetry`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from hpenv.arrays import Float32Array, FloatArray
from hpenv.deploy.meter import MEASUREMENTS
from hpenv.plant.measurements import Window
from hpenv.telemetry.episodes import Episodes
from hpenv.telemetry.estimators import Estimation
from hpenv.telemetry.features import FEATURES
from hpenv.telemetry.observation import Observation
from hpenv.telemetry.reading import Layout
from hpenv.telemetry.trajectory import Trajectory

_YES, _NO = np.array([True]), np.array([False])


class Readings:
    """The measurements of a run so far, N = 1.

    Losses are divided by that of the first step, or by the first result of `probe`, if there is
    one. hpenv divides by the probe loss of the untrained run.

    Args:
        features: keys of FEATURES.
        layout: names of cells and groups.
        total_steps: steps of the run.
        probes: True if `probe_loss` is measured.
        estimation: constants of the estimators.
    """

    def __init__(
        self,
        features: Sequence[str],
        layout: Layout,
        total_steps: int,
        probes: bool,
        estimation: Estimation,
    ) -> None:
        self._layout, self._total, self._probes = layout, total_steps, probes
        self._estimation = estimation
        self._observation = Observation(features, layout)
        self.names = self._observation.names
        window = Window.empty(1, 0, len(layout.group_names), MEASUREMENTS)
        cells = len(layout.cell_names)
        seen = [FEATURES[name] for name in features]
        self._episodes = Episodes.empty(window, cells, len(self.names), 0, "independent", seen)

    @property
    def trajectory(self) -> Trajectory:
        """The losses so far."""
        return self._episodes.trajectory

    def read(
        self, step: int, measured: Mapping[str, np.ndarray], positions: FloatArray
    ) -> Float32Array:
        """Adds a window of measurements and returns the observation, (1, F) float32.

        Args:
            step: steps that the run has taken.
            measured: measurements of the window, finite. At the first decision, the losses of the
                run that has not moved yet. A name that is missing keeps its last value. The
                `step_losses` are (S,).
            positions: positions of the cells during the window, (1, A).
        """
        episodes, first = self._episodes, not self._episodes.begun
        values = {name: value.copy() for name, value in episodes.window.values.items()}
        measured = dict(measured)
        step_losses = measured.pop("step_losses", np.zeros(0)).reshape(-1, 1)
        for name, value in measured.items():
            values[name] = np.asarray(value, dtype=np.float64).reshape(values[name].shape)
        if not self._probes and "train_loss" in measured and episodes.initial[0] == 0.0:
            values["probe_loss"] = values["train_loss"].copy()
            episodes.initial = values["probe_loss"].copy()

        steps = np.array([min(step, self._total)], dtype=np.int64)
        window = Window(steps, np.zeros(1, dtype=np.int64), values, step_losses)
        moved = _YES if "train_loss" in measured and not first else _NO
        fresh = _YES if first else _NO
        reading = episodes.add_window(
            window,
            moved,
            fresh,
            self._probes,
            self._total,
            positions,
            self._layout,
            self._estimation,
        )
        observed = self._observation.read(reading).astype(np.float32)
        episodes.previous_positions = positions.copy()
        return observed

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns all arrays by their names, without copies."""
        return self._episodes.arrays()

    def set_arrays(self, arrays: Mapping[str, np.ndarray], begun: bool) -> None:
        """Continues from the arrays of `arrays`, after the first decision if `begun`."""
        self._episodes = Episodes.of(arrays, self._episodes.rows(), "independent")
        self._episodes.begun = begun
