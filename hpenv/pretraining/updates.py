"""Sizes of the updates, and their agreement with the gradients that follow them.

A window's last steps are measured alone (`NUM_COMPARED_STEPS`), and those of spread at every step.
A step between two measured ones costs one copy of the weights, into a buffer that is kept.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from hpenv.arrays import FloatArray, IntArray
from hpenv.plant.step_measurements import NUM_COMPARED_STEPS
from hpenv.pretraining.flat import Flat, FlatLayout
from hpenv.pretraining.measurements import finite

#: Buffer whose cosine with a gradient is measured -> the measurement and its sign.
_COSINES = {"update": ("update_alignment", -1.0), "last_gradient": ("gradient_agreement", 1.0)}


class UpdateMeter:
    """Measures updates and gradients of one window after the other, if asked for.

    Nothing outlives a window. An update is the change of a tensor's weights in a step, weight decay
    included.

    Args:
        in_group: 1 where a tensor belongs to an optimizer group and 0 elsewhere, (K, G).
        in_layer: 1 where a tensor belongs to a layer and 0 elsewhere, (K, L).
    """

    def __init__(self, in_group: FloatArray, in_layer: FloatArray) -> None:
        self._in_group, self._layout = in_group, FlatLayout(in_group, in_layer)
        self._members = np.hstack([self._layout.in_group, self._layout.in_layer])
        self._groups: frozenset[str] = frozenset()
        self._ends: list[int] = []  # steps of each run's window
        self._step = -1
        # Buffers, and the number of the step that each of them was filled for.
        self._buffers: dict[str, Flat] = {}
        self._filled: dict[str, int] = {}
        self._squares: dict[str, FloatArray] = {}  # squared norms of the buffers' groups, (N, G)

    def begin(self, groups: Collection[str], num_steps: IntArray) -> None:
        """Begins a window.

        Args:
            groups: measured groups of the plant. `updates`, `alignment`, `agreement`, `spread`,
                `gain` and `probe_gain` are read here.
            num_steps: steps of each run's window, (N,).
        """
        self._groups, self._ends = frozenset(groups), sorted(set(num_steps.tolist()))
        self._step, self._filled = -1, {}

    @property
    def is_last(self) -> bool:
        """True if the present step is the last of a run's window."""
        return self._is_among_last(1, self._step)

    def _is_among_last(self, count: int, step: int) -> bool:
        return any(0 < end - step <= count for end in self._ends)

    def _is_compared(self, step: int) -> bool:
        return self._is_among_last(NUM_COMPARED_STEPS, step)

    def _has(self, name: str) -> bool:
        """Returns True if a buffer holds what the present step begins with."""
        return self._filled.get(name) == self._step

    def _fill(self, name: str, tensors: Sequence[Tensor]) -> Flat:
        buffer = self._buffers.get(name)
        if buffer is None or len(buffer.entries) != len(tensors[0]):
            buffer = self._buffers[name] = self._layout.empty(tensors)
        self._layout.copy(tensors, buffer)
        return buffer

    def _swap(self, first: str, second: str) -> None:
        """Exchanges two buffers, of which the second may not exist yet."""
        kept = self._buffers.pop(first)
        if second in self._buffers:
            self._buffers[first] = self._buffers[second]
        self._buffers[second] = kept

    def before_update(
        self, gradients: Sequence[Tensor], squares: FloatArray
    ) -> dict[str, FloatArray]:
        """Begins a step. Returns what is asked for of its gradients.

        Args:
            gradients: of K tensors, (N, ...) each.
            squares: their squared norms, (N, K).
        """
        self._step += 1
        found: dict[str, FloatArray] = {}
        if "spread" in self._groups:
            norm = finite(np.sqrt(squares.sum(1)))
            found = {"mean_gradient_norm": norm, "mean_squared_gradient_norm": np.square(norm)}

        compares = self._is_compared(self._step)
        aligns = "alignment" in self._groups and compares and self._has("update")
        agrees = "agreement" in self._groups and compares and self._has("last_gradient")
        keeps = "agreement" in self._groups and self._is_compared(self._step + 1)
        if not (aligns or agrees or keeps):
            return found

        gradient, own_squares = self._fill("gradient", gradients), squares @ self._in_group
        others = ["update"] * aligns + ["last_gradient"] * agrees
        if others:
            found |= self._cosines(gradient, own_squares, others)
        if keeps:
            self._swap("gradient", "last_gradient")
            self._squares["last_gradient"] = own_squares
            self._filled["last_gradient"] = self._step + 1
        return found

    def _cosines(
        self, gradient: Flat, squares: FloatArray, others: Sequence[str]
    ) -> dict[str, FloatArray]:
        """Returns the cosines of a gradient, of groups of these squares (N, G), and buffers."""
        products = [self._layout.products(gradient, self._buffers[name]) for name in others]
        scale = np.concatenate([squares * self._squares[name] for name in others], 1)
        with np.errstate(invalid="ignore"):  # of runs that have diverged
            cosines = _array(torch.cat(products, 1)) / np.sqrt(np.maximum(scale, 1e-60))

        found, width = np.clip(finite(cosines), -1.0, 1.0), squares.shape[1]
        return {
            _COSINES[name][0]: _COSINES[name][1] * found[:, i * width : (i + 1) * width]
            for i, name in enumerate(others)
        }

    def _keeps_update(self) -> bool:
        return (
            ("updates" in self._groups and self._is_compared(self._step))
            or ("alignment" in self._groups and self._is_compared(self._step + 1))
            or (bool(self._groups & {"gain", "probe_gain"}) and self.is_last)
        )

    def start(self, weights: Mapping[str, Tensor]) -> None:
        """Keeps the weights before an update."""
        if self._keeps_update() and not self._has("weights"):
            self._fill("weights", list(weights.values()))
            self._filled["weights"] = self._step

    def finish(self, weights: Mapping[str, Tensor]) -> dict[str, FloatArray]:
        """Returns |update| / |weights after it| of each optimizer group (N, G) and layer (N, L)."""
        found: dict[str, FloatArray] = {}
        if self._keeps_update():
            after, old = self._fill("update", list(weights.values())), self._buffers["weights"]
            torch.sub(after.entries, old.entries, out=old.entries)
            self._swap("update", "weights")
            self._filled |= {"update": self._step + 1, "weights": self._step + 1}
            found = self._ratios()
        return found

    def _ratios(self) -> dict[str, FloatArray]:
        """Returns the sizes of the last update, if asked for, and keeps its norms."""
        layout, buffers = self._layout, self._buffers
        sizes = "updates" in self._groups and self._is_compared(self._step)
        if not sizes and "alignment" not in self._groups:
            return {}
        moved = np.square(_array(layout.norms(buffers["update"])))
        self._squares["update"] = moved @ layout.in_group
        if not sizes:
            return {}
        squares, G = np.square(_array(layout.norms(buffers["weights"]))), layout.in_group.shape[1]
        with np.errstate(invalid="ignore"):  # of runs that have diverged
            ratios = moved @ self._members / np.maximum(squares @ self._members, 1e-30)
        found = np.sqrt(finite(ratios))
        return {"update_ratio": found[:, :G], "layer_update_ratio": found[:, G:]}

    def promise(self, gradients: Sequence[Tensor]) -> FloatArray:
        """Returns the decrease of a loss that the last update promised, (N,).

        It is minus the product of the update and the loss's gradient, (N, ...) per tensor.
        """
        gradient = self._fill("gradient", gradients)
        products = self._layout.products(gradient, self._buffers["update"])
        return -finite(_array(products)).sum(1)


def _array(values: Tensor) -> FloatArray:
    return values.double().cpu().numpy()


def gain(decrease: FloatArray, promise: FloatArray) -> FloatArray:
    """Returns decrease / promise, clipped to [-2, 2], and 0 where nothing was promised, (N,)."""
    ratio = decrease / np.where(promise > 0, promise, np.inf)
    return np.clip(finite(ratio), -2.0, 2.0)
