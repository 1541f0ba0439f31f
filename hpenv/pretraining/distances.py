"""Distances of the weights from those that the runs began with."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from hpenv.arrays import FloatArray, IntArray
from hpenv.lm import architecture
from hpenv.pretraining.flat import Flat, FlatLayout
from hpenv.pretraining.measurements import finite


class DistanceMeter:
    """Measures |w - w0| / |w0| of every optimizer group.

    The initial weights w0 are functions of the seeds. They are drawn again where the seeds change,
    so no snapshot holds them.

    Args:
        config: shape of the model.
        in_group: 1 where a tensor belongs to an optimizer group and 0 elsewhere, (K, G).
        in_layer: 1 where a tensor belongs to a layer and 0 elsewhere, (K, L).
    """

    def __init__(
        self, config: architecture.GPTConfig, in_group: FloatArray, in_layer: FloatArray
    ) -> None:
        self._config, self._layout = config, FlatLayout(in_group, in_layer)
        self._seeds: tuple[int, ...] = ()
        self._start: Flat | None = None
        self._difference: Flat | None = None
        self._sizes: FloatArray = np.zeros(0)

    def measure(self, weights: Mapping[str, Tensor], seeds: IntArray) -> FloatArray:
        """Returns the distances, (N, G), finite.

        Args:
            weights: name -> (N, ...).
            seeds: seed of each run, (N,).
        """
        tensors, layout = list(weights.values()), self._layout
        if self._start is None or self._difference is None or self._seeds != tuple(seeds.tolist()):
            self._seeds = tuple(seeds.tolist())
            start = architecture.init_parameters(self._config, list(self._seeds), tensors[0].device)
            self._start, self._difference = layout.empty(tensors), layout.empty(tensors)
            layout.copy(list(start.values()), self._start)
            self._sizes = _squares(layout.norms(self._start)) @ layout.in_group

        layout.copy(tensors, self._difference)
        self._difference.entries.sub_(self._start.entries)
        moved = finite(_squares(layout.norms(self._difference))) @ layout.in_group
        return np.sqrt(moved / np.maximum(self._sizes, 1e-30))


def _squares(norms: Tensor) -> FloatArray:
    return norms.double().square().cpu().numpy()
