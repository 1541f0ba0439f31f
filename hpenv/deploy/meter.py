"""Measurements of a training loop, added up on the device of its parameters.

Nothing is read before the end of a window: `Meter.read` is the one place that waits for a device.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpenv.deploy.tensors import Gradients, cosines, kept_gradients, norm, stack, where, wide
from hpenv.plant.measurements import Measurement, step_losses
from hpenv.plant.step_measurements import NUM_COMPARED_STEPS, STEP_MEASUREMENTS

#: Measurements of any training loop with a torch optimizer.
MEASUREMENTS = (
    Measurement("train_loss", "loss", "mean of the observed losses", over="mean"),
    step_losses("loss"),
    Measurement("probe_loss", "loss", "result of `probe`", group="probe"),
    *STEP_MEASUREMENTS,
)

#: Measurements that are means over the steps of a window.
MEANS = frozenset(own.name for own in MEASUREMENTS if own.over == "mean") - {"train_loss"}

#: Moments of the gradient's norm over a window.
SPREAD = ("mean_gradient_norm", "mean_squared_gradient_norm")

#: Names of first moments in the state of an optimizer.
MOMENTS = ("exp_avg", "momentum_buffer")

Parameters = Sequence[Sequence[Tensor]]


def parameters_of(optimizer: torch.optim.Optimizer) -> list[list[Tensor]]:
    """Returns the parameters of every group."""
    return [list(group["params"]) for group in optimizer.param_groups]


class Meter:
    """Measures the steps of a window, as far as it is asked to.

    Update ratio and alignment need a copy of all weights during a step, alignment another one
    between steps. Agreement needs a copy of all gradients between steps. They are taken at the last
    NUM_COMPARED_STEPS steps of a window, and at further ones if a GradScaler skips some of these.

    Args:
        wanted: names of measurements.
    """

    def __init__(self, wanted: Collection[str]) -> None:
        self._wanted = frozenset(wanted)
        self._sums: dict[str, Tensor] = {}
        self._pending: tuple[Tensor | float, int] = (0.0, 0)
        self._losses: list[Tensor] = []
        self._held: dict[str, Tensor] = {}
        self._before: list[list[Tensor]] = []
        self._gradients: Gradients = []
        self._coming: Gradients = []
        self._last: list[list[Tensor]] = []
        self._sizes = self._aligns = False

    @property
    def pending_loss(self) -> float | None:
        """Mean of the losses since the last step. None without any. It waits for their device."""
        total, count = self._pending
        return float(total) / count if count else None

    def observe(self, loss: Tensor | float) -> bool:
        """Adds a loss of the coming step. Returns False if it is known not to be finite.

        The number of an accelerator is not known yet.

        Raises:
            ValueError: a tensor of several numbers.
        """
        total, count = self._pending
        value: Tensor | float
        if isinstance(loss, Tensor):
            if loss.numel() != 1:
                raise ValueError(
                    f"loss must be one number; got shape {tuple(loss.shape)}; give its mean"
                )
            value = wide(loss.detach().reshape(()))
        else:
            value = float(loss)
        self._pending = (total + value, count + 1)
        return (isinstance(value, Tensor) and value.device.type != "cpu") or math.isfinite(
            float(value)
        )

    @torch.no_grad()
    def start_step(
        self, groups: Parameters, keep: Tensor | None, scale: Tensor | None, left: int
    ) -> None:
        """Measures gradients, and keeps the weights before the step.

        Args:
            groups: parameters of every group.
            keep: 1 for a step that moves the weights, 0 for one that a GradScaler skips. None: 1.
            scale: the gradients are this many times too large. None: 1.
            left: steps of the window that are left, with this one, unless some are skipped. After
                the last window: 0 or less.
        """
        self._held, self._before, self._coming = {}, [], []
        compares, keeps = (0 < n <= NUM_COMPARED_STEPS for n in (left, left - 1))
        gradients = [[p.grad for p in group] for group in groups]
        spreads = not self._wanted.isdisjoint(SPREAD)
        if spreads or ("gradient_norm" in self._wanted and (left == 1 or keep is not None)):
            size = norm([g for group in gradients for g in group if g is not None])
            size = size if scale is None else size / scale
            if "gradient_norm" in self._wanted:
                self._set("gradient_norm", size, keep)
            if spreads:
                self._held |= dict(zip(SPREAD, (size, size.square()), strict=True))
        if "update_alignment" in self._wanted and self._last and compares:
            self._held["update_alignment"] = -cosines(gradients, self._last)
        if "gradient_agreement" in self._wanted:
            if self._gradients and compares:
                self._held["gradient_agreement"] = cosines(gradients, self._gradients)
            if keeps or (compares and keep is not None):
                self._coming = kept_gradients(gradients, self._gradients, keep)
        self._sizes = "update_ratio" in self._wanted and compares
        self._aligns = "update_alignment" in self._wanted and (
            keeps or (compares and keep is not None)
        )
        if self._sizes or self._aligns:
            self._before = [[p.detach().clone() for p in group] for group in groups]

    @torch.no_grad()
    def finish_step(self, groups: Parameters, keep: Tensor | None) -> None:
        """Measures the update, and adds the step and its losses to the window."""
        total, count = self._pending
        if count:
            mean = total / count
            loss = mean if isinstance(mean, Tensor) else _number(mean)
            self._add("train_loss", loss, keep)
            if "step_losses" in self._wanted:
                self._losses.append(loss if keep is None else where(keep, loss, torch.nan))
            self._add("num_losses", _number(1.0), keep)
            self._pending = (0.0, 0)

        for name, value in self._held.items():
            self._add(name, value, keep)
        self._gradients = self._coming
        if not self._before:
            self._last = []
            return

        updates = [
            [p.detach() - old for p, old in zip(group, olds, strict=True)]
            for group, olds in zip(groups, self._before, strict=True)
        ]
        if self._sizes:
            moved = stack([norm(group) for group in updates])
            sizes = stack([norm([p.detach() for p in group]) for group in groups])
            self._add("update_ratio", moved / sizes.clamp(min=1e-15), keep)
        self._before, self._last = [], updates if self._aligns else []

    def read(self, optimizer: torch.optim.Optimizer) -> dict[str, np.ndarray]:
        """Returns the window's measurements and begins the next window.

        A name without a number is left out: the loss, if none was observed. `step_losses` has the
        finite losses of the steps, (S,).
        """
        sums = {name: value.double().cpu().numpy() for name, value in self._sums.items()}
        losses = float(sums.pop("num_losses", 0.0))
        found = {
            name: sums[name] / max(float(sums[f"num_{name}"]), 1.0)
            for name in sums
            if name in MEANS
        }
        if "step_losses" in self._wanted:
            step_losses = self._read_losses()
            found["step_losses"] = step_losses[np.isfinite(step_losses)]

        if losses:
            found["train_loss"] = sums["train_loss"] / losses
        if "gradient_norm" in sums:
            found["gradient_norm"] = sums["gradient_norm"]
        if "momentum_norm" in self._wanted:
            states = optimizer.state.values()
            moments = [s[name] for s in states for name in MOMENTS if s.get(name) is not None]
            found["momentum_norm"] = norm(moments).double().cpu().numpy()

        self._sums, self._last, self._losses = {}, [], []
        self._gradients = self._coming = []
        return found

    def _read_losses(self) -> np.ndarray:
        """Returns the loss of every step so far, (S,). NaN for one that is skipped."""
        return stack(self._losses).double().cpu().numpy() if self._losses else np.zeros(0)

    def _add(self, name: str, value: Tensor, keep: Tensor | None) -> None:
        """Adds a number to the window. That of a step that is skipped counts as 0.

        Of a mean the steps are counted.
        """
        value = wide(value)
        if keep is not None:
            value = where(keep, value, 0.0)
        self._sums[name] = self._sums[name] + value if name in self._sums else value
        if name in MEANS:
            self._add(f"num_{name}", _number(1.0), keep)

    def _set(self, name: str, value: Tensor, keep: Tensor | None) -> None:
        """Sets a number of the window, unless the step is skipped."""
        value = wide(value)
        if keep is not None:
            old = self._sums.get(name, torch.zeros_like(value))
            value = where(keep, value, old)
        self._sums[name] = value

    def state(self) -> dict[str, Any]:
        """Returns the window so far: tensors and numbers."""
        total, count = self._pending
        return {
            "sums": {name: value.clone() for name, value in self._sums.items()},
            "pending": [float(total), count],
            "last": [[update.clone() for update in group] for group in self._last],
            "step_losses": torch.from_numpy(self._read_losses().copy()),
            "gradients": kept_gradients(self._gradients, [], None),
        }

    def set_state(self, state: Mapping[str, Any], groups: Parameters) -> None:
        """Continues a window of `state`, on the devices of the parameters."""
        home = groups[0][0].device
        self._sums = {name: value.to(home) for name, value in state["sums"].items()}
        self._pending = (float(state["pending"][0]), int(state["pending"][1]))
        self._last = [
            [update.to(p.device) for update, p in zip(updates, group, strict=True)]
            for updates, group in zip(state["last"], groups, strict=bool(state["last"]))
        ]
        self._losses = list(state["step_losses"].to(home).unbind())
        self._gradients = [
            [None if g is None else g.to(p.device) for g, p in zip(own, group, strict=True)]
            for own, group in zip(state["gradients"], groups, strict=bool(state["gradients"]))
        ]
        self._coming = self._gradients


def _number(value: float) -> Tensor:
    """Returns a number in the memory of the host."""
    return torch.tensor(value, dtype=torch.float64, device="cpu")
