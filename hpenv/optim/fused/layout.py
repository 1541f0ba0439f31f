"""Places of the tensors of a population in a flat buffer, and the blocks of a kernel.

A segment is one tensor of one run. The segments of a tensor follow each other in the order of the
runs, and tensors of equal shape are neighbors. A segment begins at a multiple of `ALIGNMENT`
entries, so that a kernel reads 16 bytes at a time. The entries between two segments stay unused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hpenv.arrays import IntArray
from hpenv.checks import check_count

#: Entries of a block. A fixed number: a kernel that works in place must not be tuned by trials.
BLOCK = 1024
#: A segment begins at a multiple of this number of entries: 64 bytes of float32.
ALIGNMENT = 16


@dataclass(frozen=True)
class _Place:
    """Place of one tensor: entry of its first run, entries from run to run, shape of one run."""

    start: int
    stride: int
    shape: tuple[int, ...]

    def view(self, flat: Tensor, count: int) -> Tensor:
        """Returns `count` tensors that begin here, as a view (count, ...) of a flat buffer."""
        inner = np.cumprod([1, *self.shape[:0:-1]])[::-1].tolist() if self.shape else []
        return flat.as_strided((count, *self.shape), (self.stride, *inner), self.start)


class Layout:
    """Order of K tensors of N runs in a flat buffer.

    Attributes:
        names: names of the tensors, K of them. Arrays (N, K) have this order.
        shapes: shape of each tensor of one run.
        num_runs: N.
        size: entries of a flat buffer.
        block_segments: segment n K + k of each block, (B,) int32.
        block_starts: first entry of each block, (B,) int64.
        block_sizes: entries of each block, (B,) int32, at most `BLOCK`.
        first_blocks: first block of each segment, (N K,) int64. Blocks of a segment are neighbors.
        block_counts: number of blocks of each segment, (N K,) int32. 0 for an empty tensor.

    Args:
        shapes: name -> shape of the tensor of one run.
        num_runs: N.

    Raises:
        ValueError: without tensors, or without runs.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], num_runs: int) -> None:
        check_count("num_runs", num_runs)
        if not shapes:
            raise ValueError("shapes must have at least one tensor; got none")
        self.names, self.num_runs = tuple(shapes), int(num_runs)
        self.shapes = tuple(tuple(int(n) for n in shape) for shape in shapes.values())
        self._order = sorted(range(len(self.names)), key=lambda k: self.shapes[k])
        places: dict[int, _Place] = {}
        self.size = 0
        for k in self._order:
            stride = -(-math.prod(self.shapes[k]) // ALIGNMENT) * ALIGNMENT
            places[k] = _Place(self.size, stride, self.shapes[k])
            self.size += stride * self.num_runs
        self._places = [places[k] for k in range(len(self.names))]
        self._cut_blocks()

    @property
    def num_tensors(self) -> int:
        """K."""
        return len(self.names)

    @property
    def num_blocks(self) -> int:
        """Number of blocks of all segments."""
        return len(self.block_segments)

    def _cut_blocks(self) -> None:
        """Cuts every segment into blocks, in the order of the segments in memory."""
        segments, starts, sizes, num_blocks = [], [], [], 0
        first_blocks = np.zeros(self.num_runs * self.num_tensors, dtype=np.int64)
        counts = np.zeros_like(first_blocks)
        for k in self._order:
            place, entries = self._places[k], math.prod(self.shapes[k])
            for run in range(self.num_runs):
                segment = run * self.num_tensors + k
                begins = np.arange(0, entries, BLOCK)
                first_blocks[segment], counts[segment] = num_blocks, len(begins)
                num_blocks += len(begins)
                segments.append(np.full(len(begins), segment))
                starts.append(place.start + run * place.stride + begins)
                sizes.append(np.minimum(BLOCK, entries - begins))
        self.block_segments: IntArray = np.concatenate(segments).astype(np.int32)
        self.block_starts: IntArray = np.concatenate(starts).astype(np.int64)
        self.block_sizes: IntArray = np.concatenate(sizes).astype(np.int32)
        self.first_blocks: IntArray = first_blocks
        self.block_counts: IntArray = counts.astype(np.int32)

    def empty(self, device: torch.device | str = "cpu") -> Tensor:
        """Returns a flat buffer of zeros, (size,) float32. Unused entries have to stay zeros."""
        return torch.zeros(self.size, dtype=torch.float32, device=device)

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """Returns the tensors of a flat buffer: name -> view (N, ...)."""
        return {
            name: place.view(flat, self.num_runs)
            for name, place in zip(self.names, self._places, strict=True)
        }

    def stacks(self, flat: Tensor) -> list[Tensor]:
        """Returns the tensors of a flat buffer, those of one shape as one view (M N, ...)."""
        counts: dict[tuple[int, ...], int] = {}
        for k in self._order:
            counts[self.shapes[k]] = counts.get(self.shapes[k], 0) + 1
        firsts = {self.shapes[k]: self._places[k] for k in reversed(self._order)}
        return [firsts[shape].view(flat, m * self.num_runs) for shape, m in counts.items()]
