"""Keys and values of earlier positions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class KVCache:
    """Keys and values of the positions so far, so that they are not computed again.

    They stay differentiable, unless room for more positions was reserved. Then they are written in
    place.

    Attributes:
        length: number of positions so far [tokens].
        layers: keys and values of each layer, (rows, heads, positions, size) each.
    """

    def __init__(self) -> None:
        self.length, self.layers = 0, list[tuple[Tensor, Tensor]]()
        self._in_place = False

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Adds the newest positions of a layer, (rows, heads, T, size). Returns all positions."""
        if layer == len(self.layers):
            self.layers.append((key, value))
            return key, value
        keys, values = self.layers[layer]
        if not self._in_place:
            self.layers[layer] = torch.cat([keys, key], 2), torch.cat([values, value], 2)
            return self.layers[layer]

        end = self.length + key.shape[2]
        keys[:, :, self.length : end], values[:, :, self.length : end] = key, value
        return keys[:, :, :end], values[:, :, :end]

    def select(self, rows: Tensor) -> None:
        """Keeps only these rows (k,) int64, in this order."""
        self.layers = [(keys[rows], values[rows]) for keys, values in self.layers]

    def copy_rows(self, rows: Tensor, room: int = 0) -> KVCache:
        """Returns a copy of these rows, which may repeat.

        Args:
            rows: (k,) int64.
            room: number of further positions to reserve [tokens].
        """
        result = KVCache()
        result.length, result._in_place = self.length, room > 0
        for pair in self.layers:
            keys, values = (x.index_select(0, rows) for x in pair)
            if room:
                keys, values = F.pad(keys, (0, 0, 0, room)), F.pad(values, (0, 0, 0, room))
            result.layers.append((keys, values))
        return result
