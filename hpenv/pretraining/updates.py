"""Sizes of the updates, and their agreement with the gradients that follow them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from hpenv.arrays import FloatArray
from hpenv.pretraining.measurements import finite, squared_norms


class UpdateMeter:
    """Measures the updates of one window, if asked for. Nothing of it outlives the window.

    An update is the change of a tensor's weights in a step, weight decay included.

    Args:
        groups: measured groups of the plant. `updates` and `alignment` are read here.
        in_group: 1 where a tensor belongs to an optimizer group and 0 elsewhere, (K, G).
        in_layer: 1 where a tensor belongs to a layer and 0 elsewhere, (K, L).
    """

    def __init__(self, groups: Collection[str], in_group: FloatArray, in_layer: FloatArray) -> None:
        self._sizes, self._aligns = "updates" in groups, "alignment" in groups
        self._in_group, self._in_layer = in_group, in_layer
        self._before: list[Tensor] = []
        self._last: list[Tensor] = []

    def alignment(self, gradients: Sequence[Tensor]) -> dict[str, FloatArray]:
        """Returns the cosine of the last update's opposite and the gradients, (N, G).

        It is 0 at the window's first step.
        """
        if not self._aligns:
            return {}
        num_rows, num_groups = len(gradients[0]), self._in_group.shape[1]
        if not self._last:
            return {"update_alignment": np.zeros((num_rows, num_groups))}

        dots = [-(g * u).flatten(1).sum(1) for g, u in zip(gradients, self._last, strict=True)]
        products = torch.stack(dots, 1).double().cpu().numpy() @ self._in_group
        scale = (squared_norms(gradients) @ self._in_group) * (
            squared_norms(self._last) @ self._in_group
        )
        cosines = finite(products) / np.sqrt(np.maximum(finite(scale), 1e-60))
        return {"update_alignment": np.clip(cosines, -1.0, 1.0)}

    def start(self, weights: Mapping[str, Tensor]) -> None:
        """Keeps the weights before an update."""
        if self._sizes or self._aligns:
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
