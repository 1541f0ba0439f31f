"""Decisions of a controller about a run outside of hpenv, and the rails around them."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from hpenv.arrays import FloatArray
from hpenv.control.moves import move_positions
from hpenv.deploy.contract import Contract
from hpenv.deploy.rails import Rails, check_actions, is_usable, position_limits, spend
from hpenv.deploy.readings import Readings
from hpenv.isolation import torch_defaults
from hpenv.policies.controller import Controller, begin, restore_state, state_of

#: Seconds of a clock that does not go back. Tests replace it.
clock: Callable[[], float] = time.monotonic


class ControllerWarning(UserWarning):
    """A controller was switched off, or put back to multiplier 1 for a while."""


@dataclass(frozen=True)
class Decision:
    """One decision.

    Attributes:
        step: steps of the run before it.
        positions: position of each cell, in [-1, 1]. 0 where the rails took over.
        multipliers: channel -> multiplier of each group, within all bounds.
        applied: values of each group at the step after the decision, key -> value.
        reason: reason of the rails to take over. Empty: none.
    """

    step: int
    positions: list[float]
    multipliers: dict[str, list[float]]
    applied: list[dict[str, Any]]
    reason: str = ""


class Pilot:
    """Asks a controller at every decision, and puts its multipliers to 1 if something is wrong.

    Attributes:
        multipliers: channel -> multiplier of each group, (G,). A channel at 1 is left out.
        positions: position of each cell, (1, A).
        fault: reason for which the controller was switched off. Empty: none.
        history: all decisions.
    """

    def __init__(
        self,
        controller: Controller,
        contract: Contract,
        rails: Rails,
        bounds: Mapping[str, tuple[float, float]],
        readings: Readings,
    ) -> None:
        self._controller, self._contract, self._rails = controller, contract, rails
        self._bounds, self._readings = bounds, readings
        self._panel = contract.panel
        self._limits = position_limits(self._panel.channel_names, bounds)

        count = len(self._panel.groups)
        self.multipliers: dict[str, FloatArray] = {}
        self.positions: FloatArray = np.zeros((1, len(self._panel.names)))
        self.fault, self.history = "", list[Decision]()
        self._pause, self._last_step, self._begun = 0, 0, False
        self._spent = {name: np.zeros(count) for name in bounds}
        self._warnings: set[str] = set()
        begin(controller, contract.columns())

    def decide(self, step: int, measured: Mapping[str, np.ndarray]) -> tuple[list[float], str]:
        """Makes the decision of a window. Returns positions, and the reason of the rails.

        Args:
            step: steps of the run so far.
            measured: measurements of the window that ends.
        """
        for name, spent in self._spent.items():
            factors = self.multipliers.get(name)
            if factors is not None:
                spent += np.abs(np.log(factors)) * (step - self._last_step)
        self._last_step = step

        reason = self._alarm(measured)
        usable = {name: value for name, value in measured.items() if np.isfinite(value).all()}
        observation = self._readings.read(step, usable, self.positions)
        self._begun = True
        if reason:
            self.alarm(reason)
        if self._pause:
            self._pause -= 1
            self.neutralize()
            return self.positions[0].tolist(), reason or "pause"

        self.positions = self._ask(observation)
        self._panel.move(self.positions, np.array([True]))
        self._set_multipliers()
        return self.positions[0].tolist(), ""

    def _alarm(self, measured: Mapping[str, np.ndarray]) -> str:
        """Returns the reason to leave the run alone after this window. Empty: none."""
        for name, value in measured.items():
            if not np.isfinite(value).all():
                return f"{name} is not finite"
        loss = float(measured["train_loss"]) if "train_loss" in measured else None
        reads_losses = bool(self._contract.wanted & {"train_loss", "step_losses"})
        if self._begun and not is_usable(loss) and reads_losses:
            return "no loss was observed; call attachment.observe(loss) before optimizer.step()"
        if loss is not None and self._rails.is_spike(loss, self._readings.trajectory):
            return f"the loss is above {self._rails.spike} times its mean"
        return ""

    def _ask(self, observation: np.ndarray) -> FloatArray:
        """Returns the positions that the controller wants, (1, A)."""
        start = clock()
        with torch_defaults(), torch.no_grad():
            given = self._controller.act(observation)
        actions = check_actions(given, len(self._panel.names))
        if (seconds := clock() - start) > self._rails.patience:
            raise TimeoutError(
                f"act took {seconds:.3g} s, more than patience={self._rails.patience:g}"
            )
        if self._contract.moves is None:
            return actions
        positions = move_positions(
            self.positions, actions, self._contract.moves, self._panel.one_sided
        )
        return np.clip(positions, *self._limits)

    def _set_multipliers(self) -> None:
        contract, rails = self._contract, self._rails
        self.multipliers = {}
        for name, (low, high) in self._bounds.items():
            table = self._panel.table(name)
            if table is None:
                continue
            wanted = np.clip(table[0], low, high)
            factors = spend(
                self._spent[name], wanted, contract.every, rails.budget, contract.total_steps
            )
            if (factors != 1.0).any():
                self.multipliers[name] = factors

    def neutralize(self) -> None:
        """Puts all multipliers to 1."""
        self.multipliers, self.positions = {}, np.zeros_like(self.positions)

    def alarm(self, reason: str) -> None:
        """Puts all multipliers to 1 for a pause, with a warning at the first time of a reason."""
        self._pause = self._rails.pause
        self.neutralize()
        self.warn(f"{reason}; the multipliers are 1 for {self._pause} decisions")

    def fail(self, error: BaseException) -> None:
        """Switches the controller off: all multipliers are 1 from now on."""
        if not self.fault:
            self.fault = f"{type(error).__name__}: {error}"
            self.neutralize()
            self.warn(
                f"the controller {type(self._controller).__name__} is switched off and the "
                f"multipliers are 1 for the rest of the run, because of {self.fault}"
            )

    def warn(self, text: str) -> None:
        """Gives a warning, once."""
        if text not in self._warnings:
            self._warnings.add(text)
            warnings.warn(text, ControllerWarning, stacklevel=2)

    def record(self, step: int, decision: tuple[list[float], str], applied: list[Any]) -> None:
        """Adds a decision to the history."""
        ones = np.ones(len(self._panel.groups))
        factors = {name: self.multipliers.get(name, ones).tolist() for name in self._bounds}
        self.history.append(Decision(step, decision[0], factors, applied, decision[1]))

    def state(self) -> dict[str, Any]:
        """Returns all that a resumed run needs: tensors, numbers and texts."""
        return {
            "multipliers": _tensors(self.multipliers),
            "positions": torch.tensor(self.positions),
            "fault": self.fault,
            "pause": self._pause,
            "last_step": self._last_step,
            "begun": self._begun,
            "spent": _tensors(self._spent),
            "warnings": sorted(self._warnings),
            "history": [asdict(decision) for decision in self.history],
            "readings": _tensors(self._readings.arrays()),
            "controller": _tensors(state_of(self._controller)),
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continues from the values of `state`."""
        self.multipliers = _arrays(state["multipliers"])
        self.positions = state["positions"].numpy().copy()
        self._panel.move(self.positions, np.array([True]))
        self.fault, self._pause = state["fault"], state["pause"]
        self._last_step, self._begun = state["last_step"], state["begun"]
        self._spent, self._warnings = _arrays(state["spent"]), set(state["warnings"])
        self.history = [Decision(**values) for values in state["history"]]
        self._readings.set_arrays(_arrays(state["readings"]), self._begun)
        restore_state(self._controller, _arrays(state["controller"]))


def _tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.array(value)) for name, value in arrays.items()}


def _arrays(tensors: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: value.cpu().numpy().copy() for name, value in tensors.items()}
