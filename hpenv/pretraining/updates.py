"""Sizes of the updates, and their agreement with the gradients that follow them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from torch import Tensor

from hpenv.arrays import FloatArray
from hpenv.pretraining.measurements import finite, products, squared_norms


class UpdateMeter:
    """Measures updates and gradients of one window, if asked for. Nothing outlives the window.

    An update is the change of a tensor's weights in a step, weight decay included.

    Args:
        groups: measured groups of the plant. `updates`, `alignment`, `agreement`, `spread` and
            `gain` are read here.
        in_group: 1 where a tensor belongs to an optimizer group and 0 elsewhere, (K, G).
        in_layer: 1 where a tensor belongs to a layer and 0 elsewhere, (K, L).
    """

    def __init__(self, groups: Collection[str], in_group: FloatArray, in_layer: FloatArray) -> None:
        self._sizes, self._aligns = "updates" in groups, "alignment" in groups
        self._agrees, self._gains = "agreement" in groups, "gain" in groups
        self._spreads = "spread" in groups
        self._in_group, self._in_layer = in_group, in_layer
        self._before: list[Tensor] = []
        self._last: list[Tensor] = []
        self._gradients: list[Tensor] = []

    def before_update(
        self, gradients: Sequence[Tensor], norms: FloatArray
    ) -> dict[str, FloatArray]:
        """Returns what is asked for of a step's gradients and their norms (N,)."""
        found = self._alignment(gradients) | self._agreement(gradients)
        if self._spreads:
            found |= {
                "mean_gradient_norm": finite(norms),
                "mean_squared_gradient_norm": finite(np.square(finite(norms))),
            }
        return found

    def _agreement(self, gradients: Sequence[Tensor]) -> dict[str, FloatArray]:
        """Returns the cosine of the gradients and those of the step before, (N, G).

        It is 0 at the window's first step.
        """
        if not self._agrees:
            return {}
        last, self._gradients = self._gradients, [gradient.clone() for gradient in gradients]
        if not last:
            return {"gradient_agreement": np.zeros((len(gradients[0]), self._in_group.shape[1]))}
        return {"gradient_agreement": self._cosines(gradients, last)}

    def promise(self, gradients: Sequence[Tensor]) -> FloatArray | None:
        """Returns the decrease of the loss that the last update promised, (N,) [nats per token].

        It is minus the product of the update and the gradient that the optimizer got. None if it is
        not asked for, or nothing has moved.
        """
        if not self._gains or not self._last:
            return None
        return -finite(products(gradients, self._last)).sum(1)

    def _alignment(self, gradients: Sequence[Tensor]) -> dict[str, FloatArray]:
        """Returns the cosine of the last update's opposite and the gradients, (N, G).

        It is 0 at the window's first step.
        """
        if not self._aligns:
            return {}
        if not self._last:
            return {"update_alignment": np.zeros((len(gradients[0]), self._in_group.shape[1]))}
        return {"update_alignment": -self._cosines(gradients, self._last)}

    def _cosines(self, first: Sequence[Tensor], second: Sequence[Tensor]) -> FloatArray:
        """Returns the cosine of two lists of tensors in every optimizer group, (N, G)."""
        dots = products(first, second) @ self._in_group
        scale = (squared_norms(first) @ self._in_group) * (squared_norms(second) @ self._in_group)
        cosines = finite(dots) / np.sqrt(np.maximum(finite(scale), 1e-60))
        return np.clip(cosines, -1.0, 1.0)

    def start(self, weights: Mapping[str, Tensor]) -> None:
        """Keeps the weights before an update."""
        if self._sizes or self._aligns or self._gains:
            self._before = [weight.clone() for weight in weights.values()]

    def finish(self, weights: Mapping[str, Tensor]) -> dict[str, FloatArray]:
        """Returns |update| / |weights after it| of each optimizer group (N, G) and layer (N, L)."""
        if not self._before:
            return {}
        self._last = [w - old for w, old in zip(weights.values(), self._before, strict=True)]
        if not self._sizes:
            return {}

        moved, norms = finite(squared_norms(self._last)), squared_norms(list(weights.values()))
        found = {}
        for name, members in (
            ("update_ratio", self._in_group),
            ("layer_update_ratio", self._in_layer),
        ):
            size = np.maximum(finite(norms) @ members, 1e-30)
            found[name] = np.sqrt(moved @ members / size)
        return found


def gain(decrease: FloatArray, promise: FloatArray) -> FloatArray:
    """Returns decrease / promise, clipped to [-2, 2], and 0 where nothing was promised, (N,)."""
    ratio = decrease / np.where(promise > 0, promise, np.inf)
    return np.clip(finite(ratio), -2.0, 2.0)
