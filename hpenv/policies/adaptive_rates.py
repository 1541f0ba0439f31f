"""Controllers that adapt the learning rate within a run by a fixed law, without training.

Each keeps the logarithm of a multiplier of the base rate for every run and cell, and moves it at
every decision. The multiplier stays within the bounds of the channel `lr`. The base schedule still
multiplies it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from hpenv.arrays import Float32Array, FloatArray
from hpenv.control.channels import CHANNELS
from hpenv.policies.controller import Columns, ControllerSpec
from hpenv.policies.policy import as_observations

#: Logarithm of the largest multiplier, at position 1. Minus that is at -1.
LARGEST = math.log(CHANNELS["lr"].bounds[1])


def _positions(logs: FloatArray) -> Float32Array:
    return (logs / LARGEST).astype(np.float32)


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be a number above 0; got {value!r}")


class UpdateRatio:
    """Holds the update-to-weight ratio of every optimizer group, or layer, at a target.

    The ratio is |update| / |weights|, its mean over the last steps of a window. At every decision
    log lr <- log lr + gain (log target - log ratio). A constant relative size of updates is the
    equilibrium of AdamW with decay (Kosson et al. 2023, arXiv 2305.17212), and LARS (You et al.
    2017, arXiv 1708.03888) enforces one per layer. The feedback is our choice, and so is the
    warmdown of the target. Without that, the law would undo a base schedule that ends at zero.

    Weights that start near zero, as the unembedding, grow by a factor of about 1 + target a step.

    Args:
        target: ratio of an update to the weights, of all cells, or group (layer) -> ratio.
        scope: `group` or `layer`.
        gain: fraction of the error that a decision removes, in (0, 1].
        warmdown: fraction of the run, at its end, over which the target falls linearly to zero.
        interval: steps per decision [steps].

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        target: float | Mapping[str, float] = 1e-2,
        scope: str = "group",
        gain: float = 0.5,
        warmdown: float = 0.4,
        interval: int = 10,
    ) -> None:
        targets = target if isinstance(target, Mapping) else {"target": target}
        _check_positive(**targets, gain=gain)
        features = {"group": "update_ratio", "layer": "layer_update_ratio"}
        if scope not in features or gain > 1 or not 0 <= warmdown <= 1:
            raise ValueError(
                "scope must be 'group' or 'layer', gain at most 1, and warmdown from 0 to 1; "
                f"got {scope!r}, {gain} and {warmdown}"
            )
        self._target, self._gain, self._warmdown = target, gain, warmdown
        self._log_targets: FloatArray = np.zeros(0)
        self._logs: FloatArray = np.zeros((0, 0))
        self.spec = ControllerSpec(
            [["lr", scope]], ["progress", features[scope]], interval, mapping="position"
        )

    def reset(self, columns: Columns) -> None:
        """Starts at the base rates.

        Raises:
            ValueError: a cell has no target.
        """
        self._logs = np.zeros((columns.num_runs, len(columns.action_names)))
        cells = [name.partition("/")[2] for name in columns.action_names]
        targets = self._target
        if not isinstance(targets, Mapping):
            targets = dict.fromkeys(cells, targets)
        if missing := sorted(set(cells) - set(targets)):
            raise ValueError(
                f"target must have a ratio for each of {cells}; got {dict(targets)}; add {missing}"
            )
        self._log_targets = np.log([targets[cell] for cell in cells])

    def state(self) -> dict[str, FloatArray]:
        """Returns the logarithms of the multipliers."""
        return {"logs": self._logs}

    def set_state(self, arrays: Mapping[str, FloatArray]) -> None:
        """Continues from the arrays of `state`."""
        self._logs = np.array(arrays["logs"])

    def act(self, observations: FloatArray) -> Float32Array:
        """Returns positions (N, A) at observations (N, 1 + A): progress, and a ratio per cell."""
        batch = as_observations(observations, 1 + self._logs.shape[1]).astype(np.float64)
        left = (1.0 - batch[:, :1]) / max(self._warmdown, 1e-9)
        targets = self._log_targets + np.log(np.clip(left, 1e-3, 1.0))
        ratios = batch[:, 1:] * 8.0 * math.log(10.0)
        measured = batch[:, 1:] > -1.0  # the feature's end: nothing has moved yet
        moves = np.where(measured, self._gain * (targets - ratios), 0.0)
        self._logs = np.clip(self._logs + moves, -LARGEST, LARGEST)
        return _positions(self._logs)


class Hypergradient:
    """Hypergradient descent on the rate of every optimizer group.

    The derivative of a step's loss by the rate of the step before it is -<g, u>, of the gradient g
    and the direction u that the weights were moved in (Baydin et al. 2018, arXiv 1703.04782). Their
    multiplicative form makes it a cosine: log lr <- log lr + rate cos(g, u) at every step. Here a
    decision applies the steps of its window at once, with the mean cosine of the last ones. The
    update itself stands for u, so that the law is the same for every optimizer. The first step of a
    window has no update to compare with.

    In small batches the cosine is 0.4 at a rate that is far too low, and only -0.03 at one that is
    far too high, since noise drowns it. So `rate` is large, and a decision's move is bounded. Both
    are our choice.

    Args:
        rate: change of log lr at a step whose cosine is 1.
        most: largest change of log lr at a decision.
        interval: steps per decision, at least 2 [steps].

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(self, rate: float = 0.5, most: float = 0.3, interval: int = 10) -> None:
        _check_positive(rate=rate, most=most)
        if interval < 2:
            raise ValueError(f"interval must be at least 2; got {interval}")
        self._step, self._most = rate * interval, most
        self._logs: FloatArray = np.zeros((0, 0))
        self.spec = ControllerSpec(
            [["lr", "group"]], ["progress", "update_alignment"], interval, mapping="position"
        )

    def reset(self, columns: Columns) -> None:
        """Starts at the base rates."""
        self._logs = np.zeros((columns.num_runs, len(columns.action_names)))

    def state(self) -> dict[str, FloatArray]:
        """Returns the logarithms of the multipliers."""
        return {"logs": self._logs}

    def set_state(self, arrays: Mapping[str, FloatArray]) -> None:
        """Continues from the arrays of `state`."""
        self._logs = np.array(arrays["logs"])

    def act(self, observations: FloatArray) -> Float32Array:
        """Returns positions (N, A) at observations (N, 1 + A): progress, and a cosine per cell."""
        batch = as_observations(observations, 1 + self._logs.shape[1]).astype(np.float64)
        moves = np.clip(self._step * batch[:, 1:], -self._most, self._most)
        self._logs = np.clip(self._logs + moves, -LARGEST, LARGEST)
        return _positions(self._logs)


class AdaLRS:
    """Searches the learning rate online by the loss's descent velocity.

    AdaLRS (Dong et al. 2025, arXiv 2506.13274) fits the slope of the training loss over k steps,
    multiplies the rate, keeps the new rate if the loss then falls faster, and otherwise goes back
    and tries with factors nearer to 1. There is no public code. What follows is chosen here:

    - Velocity is the decrease of the mean log loss from the trial before it, by the log of time,
      which depends on time less than the loss's slope does. (Slopes within a trial of a small batch
      are noise.) The first window after a change is left out of the mean.
    - A trial must be faster than the trial before it, and the second must lower the loss.
    - A failed trial turns the direction. Weights are not taken back to those before the trial.
    - The search ends after `search` of the run. The last rate that was kept holds from there on.

    It raises a rate that is far too low. It does not reliably lower one that is far too high: in
    batches of 128 tokens the noise of the loss hides the difference.

    Args:
        factor: first multiplier of the rate, above 1.
        shrink: exponent of the factor after each failed trial, in (0, 1).
        windows: windows of a trial, at least 3.
        search: fraction of the run in which rates are tried.
        interval: steps per window [steps].

    Raises:
        ValueError: an argument is out of its range.
    """

    _ARRAYS = ("mean_loss", "kept", "moves", "level", "logs")

    def __init__(
        self,
        factor: float = 3.0,
        shrink: float = 0.7,
        windows: int = 3,
        search: float = 0.6,
        interval: int = 5,
    ) -> None:
        if not (factor > 1 and 0 < shrink < 1 and windows >= 3 and 0 < search <= 1):
            raise ValueError(
                "factor must be above 1, shrink in (0, 1), windows at least 3, and search in "
                f"(0, 1]; got {factor}, {shrink}, {windows} and {search}"
            )
        self._factor, self._shrink, self._windows = math.log(factor), shrink, windows
        self._search = search
        self.spec = ControllerSpec(
            [["lr", "run"]], ["progress", "train_loss"], interval, mapping="position"
        )
        self._losses: list[FloatArray] = []
        self._time, self._mean_loss = 0.0, np.zeros(0)
        self._kept, self._moves, self._level = np.zeros(0), np.zeros(0), np.zeros(0)
        self._logs: FloatArray = np.zeros(0)

    def reset(self, columns: Columns) -> None:
        """Starts at the base rate, with a trial of that."""
        count = columns.num_runs
        self._losses, self._time, self._mean_loss = [], 0.0, np.zeros(count)
        self._kept, self._logs = np.zeros(count), np.zeros(count)
        self._moves, self._level = np.full(count, self._factor), np.full(count, -1e3)

    def state(self) -> dict[str, FloatArray]:
        """Returns the losses of all windows, and the arrays of the search."""
        losses = np.stack(self._losses) if self._losses else np.zeros((0, len(self._logs)))
        arrays = {name: getattr(self, f"_{name}") for name in self._ARRAYS}
        return arrays | {"losses": losses, "time": np.array(self._time)}

    def set_state(self, arrays: Mapping[str, FloatArray]) -> None:
        """Continues from the arrays of `state`."""
        for name in self._ARRAYS:
            setattr(self, f"_{name}", np.array(arrays[name]))
        self._losses, self._time = list(np.array(arrays["losses"])), float(arrays["time"])

    def act(self, observations: FloatArray) -> Float32Array:
        """Returns positions (N, 1) at observations (N, 2): progress, and the window's loss."""
        batch = as_observations(observations, 2).astype(np.float64)
        if batch[0, 0] > 0:
            self._losses.append(np.log(np.maximum(batch[:, 1], 1e-6)))
        if batch[0, 0] > self._search:
            self._logs = self._kept
        elif self._losses and len(self._losses) % self._windows == 0:
            self._judge()
        return _positions(self._logs)[:, None]

    def _judge(self) -> None:
        """Keeps the rate of the last trial or goes back, and begins the next trial."""
        number = len(self._losses)
        time = np.log(np.arange(number - self._windows + 2, number + 1)).mean()
        loss = np.mean(self._losses[1 - self._windows :], axis=0)
        velocity = (self._mean_loss - loss) / (time - self._time)
        self._mean_loss, self._time = loss, time

        better = velocity > self._level
        self._kept = np.where(better, self._logs, self._kept)
        self._level = velocity if number > self._windows else np.zeros_like(velocity)
        self._moves = np.where(better, self._moves, -self._shrink * self._moves)
        self._logs = np.clip(self._kept + self._moves, -LARGEST, LARGEST)
