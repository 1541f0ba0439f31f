"""Steps of an arena on a GPU: a few launches for all tensors, and statistics from the same pass.

`FusedAdamW(arena).step()` does what `twin.step_adamw(arena)` does. A step of AdamW allocates
nothing and waits for nothing, so that a CUDA graph may record it. It reads 16 bytes and writes 12
bytes a parameter. Caps (`cap_cells`) add a pass that reads the gradients once more.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hpenv.optim.fused import kernels
from hpenv.optim.fused.arena import AdamWArena, MuonArena
from hpenv.optim.fused.layout import BLOCK
from hpenv.optim.fused.twin import orthogonalize_stacks


class _Launches:
    """Tables of the blocks on a device, buffers of one arena, and the launches that all rules need.

    Args:
        arena: the arena that is updated.
        num_scalars: scalars of a segment.
    """

    def __init__(self, arena: AdamWArena | MuonArena, num_scalars: int) -> None:
        layout, device = arena.layout, arena.rates.gate.device
        self.num_segments = layout.num_runs * layout.num_tensors
        self.num_blocks, self.num_tensors = layout.num_blocks, layout.num_tensors
        self.blocks = tuple(
            torch.as_tensor(table, device=device)
            for table in (layout.block_segments, layout.block_starts, layout.block_sizes)
        )
        self._segments = tuple(
            torch.as_tensor(table, device=device)
            for table in (layout.first_blocks, layout.block_counts)
        )
        num_rows = len(arena.statistics)
        self.partials = torch.zeros(num_rows, self.num_blocks, device=device)
        self.scalars = torch.zeros(num_scalars, self.num_segments, device=device)
        self._gradients, self._results = arena.flat["gradients"], arena.statistics.gradient_square
        has_caps = arena.cap_cells is not None
        self._cells = self._segments[1] if arena.cap_cells is None else arena.cap_cells
        self._caps = {"HAS_CAPS": has_caps, "WIDTH": _power_of_two(self.num_tensors)}

    def over_blocks(self, kernel: Any, *arguments: object) -> None:
        """Launches a kernel over all blocks."""
        if self.num_blocks:
            kernel[(self.num_blocks,)](*arguments, BLOCK=BLOCK, **kernels.OPTIONS)

    def write_scalars(self, kernel: Any, *rates: Tensor) -> None:
        """Writes the scalars of all segments: the norms of the gradients first, if there are caps.

        Args:
            kernel: kernel of the rule's scalars.
            rates: its first arguments.
        """
        if self._caps["HAS_CAPS"]:
            self.over_blocks(kernels.square_kernel, self._gradients, *self.blocks, self.partials)
            self._reduce(1, False)
        kernel[(self.num_segments,)](
            *rates, self._results, self._cells, self.scalars, self.num_tensors,
            **self._caps, **kernels.OPTIONS,
        )  # fmt: skip

    def write_statistics(self) -> None:
        """Adds up the partial statistics of all blocks."""
        self._reduce(kernels.NUM_SUMS, True)

    def _reduce(self, num_sums: int, maximum: bool) -> None:
        kernels.reduce_kernel[(self.num_segments,)](
            self.partials, *self._segments, self._results, self.num_blocks,
            SUMS=num_sums, MAXIMUM=maximum, CHUNK=kernels.CHUNK, **kernels.OPTIONS,
        )  # fmt: skip


class FusedAdamW:
    """AdamW over an arena: two launches for the update, and one that adds up the statistics.

    Args:
        arena: its device must be a GPU, unless TRITON_INTERPRET=1 is set.
    """

    def __init__(self, arena: AdamWArena) -> None:
        self._arena, self._launches = arena, _Launches(arena, num_scalars=6)

    def step(self) -> None:
        """Takes one step of all tensors, in place, and writes the statistics."""
        arena, launches = self._arena, self._launches
        launches.write_scalars(kernels.adamw_scalars_kernel, *arena.rates, arena.beta_products)
        slots = ("weights", "gradients", "momentum", "second_moment")
        launches.over_blocks(
            kernels.adamw_kernel, *(arena.flat[slot] for slot in slots), launches.scalars,
            arena.rates.gate, *launches.blocks, launches.partials, launches.num_segments,
        )  # fmt: skip
        launches.write_statistics()


class FusedMuon:
    """Muon over an arena: Newton-Schulz by torch, and the passes before and after it by kernels.

    Args:
        arena: its device must be a GPU, unless TRITON_INTERPRET=1 is set.
        newton_schulz_dtype: key of `muon.NEWTON_SCHULZ_DTYPES`.
    """

    def __init__(self, arena: MuonArena, newton_schulz_dtype: str | None = None) -> None:
        self._arena, self._launches = arena, _Launches(arena, num_scalars=5)
        self._dtype = newton_schulz_dtype

    @torch.no_grad()
    def step(self) -> None:
        """Takes one step of all matrices, in place, and writes the statistics."""
        arena, launches, rates = self._arena, self._launches, self._arena.rates
        scalar_rates = (rates.lr, rates.weight_decay, rates.momentum, rates.momentum_complement)
        launches.write_scalars(
            kernels.muon_scalars_kernel, *scalar_rates, rates.cap, arena.shape_factors
        )
        slots = ("gradients", "momentum", "direction")
        launches.over_blocks(
            kernels.blend_kernel, *(arena.flat[slot] for slot in slots), launches.scalars,
            rates.gate, *launches.blocks, launches.num_segments,
        )  # fmt: skip

        orthogonalize_stacks(arena.layout, arena.flat["direction"], self._dtype)

        slots = ("weights", "gradients", "direction")
        launches.over_blocks(
            kernels.apply_kernel, *(arena.flat[slot] for slot in slots), launches.scalars,
            rates.gate, *launches.blocks, launches.partials, launches.num_segments,
        )  # fmt: skip
        launches.write_statistics()


def _power_of_two(count: int) -> int:
    """Returns the smallest power of two that is not below a count."""
    return 1 << (count - 1).bit_length()
