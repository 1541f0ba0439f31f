"""All tensors of a population in one buffer, for measurements that pass over all of them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hpenv.arrays import FloatArray, IntArray


class Flat(NamedTuple):
    """Tensors of N runs side by side.

    Attributes:
        entries: (N, P).
        views: views of `entries` with the shapes of the tensors, in the order of the layout.
        parts: views of the tensors of each group and layer, (N, n) each.
        rows: views of the tensors of each optimizer group, (N, 1, n) each.
        columns: the same as (N, n, 1).
    """

    entries: Tensor
    views: list[Tensor]
    parts: list[Tensor]
    rows: list[Tensor]
    columns: list[Tensor]


class FlatLayout:
    """Order of K tensors in a buffer: those of one optimizer group and layer are neighbors.

    A sum over a group or a layer is then one operation over a range, or over few of them.

    Args:
        in_group: 1 where a tensor belongs to an optimizer group and 0 elsewhere, (K, G).
        in_layer: 1 where a tensor belongs to a layer and 0 elsewhere, (K, L).
    """

    def __init__(self, in_group: FloatArray, in_layer: FloatArray) -> None:
        groups = in_group.argmax(1)
        layers = np.where(in_layer.any(1), in_layer.argmax(1) if in_layer.size else 0, -1)
        self._order = np.lexsort((layers, groups)).tolist()
        sorted_groups, sorted_layers = groups[self._order], layers[self._order]
        self._groups = _starts(sorted_groups)
        self._parts = _starts(sorted_groups * (in_layer.shape[1] + 1) + sorted_layers + 1)
        first = [self._order[k] for k in self._parts[:-1]]
        self.in_group, self.in_layer = in_group[first], in_layer[first]  # (S, G), (S, L)

    def empty(self, tensors: Sequence[Tensor]) -> Flat:
        """Returns a buffer for tensors of these shapes, (N, ...) each."""
        chosen = [tensors[k] for k in self._order]
        sizes = [tensor[0].numel() for tensor in chosen]
        entries = chosen[0].new_empty(len(chosen[0]), sum(sizes))
        ends = np.cumsum([0, *sizes])
        views = [
            p.unflatten(1, t.shape[1:])
            for p, t in zip(entries.split(sizes, 1), chosen, strict=True)
        ]
        parts, groups = (
            [entries[:, slice(*pair)] for pair in pairwise(ends[starts].tolist())]
            for starts in (self._parts, self._groups)
        )
        rows, columns = [g[:, None] for g in groups], [g[:, :, None] for g in groups]
        return Flat(entries, views, parts, rows, columns)

    def copy(self, tensors: Sequence[Tensor], buffer: Flat) -> None:
        """Copies K tensors into a buffer."""
        torch._foreach_copy_(buffer.views, [tensors[k] for k in self._order])

    @staticmethod
    def norms(buffer: Flat) -> Tensor:
        """Returns the norms of the tensors of each group and layer, (N, S)."""
        return torch.cat(
            [torch.linalg.vector_norm(part, dim=1, keepdim=True) for part in buffer.parts], 1
        )

    @staticmethod
    def products(first: Flat, second: Flat) -> Tensor:
        """Returns the inner products of the tensors of each optimizer group, (N, G)."""
        return torch.cat(list(map(torch.bmm, first.rows, second.columns)), 1)[..., 0]


def _starts(labels: IntArray) -> IntArray:
    """Returns the index of the first entry of each run of equal labels, and their number."""
    return np.flatnonzero(np.concatenate([[True], labels[1:] != labels[:-1], [True]]))
