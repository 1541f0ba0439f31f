"""Arenas: weights, gradients, state, rates and statistics of a population on one device.

Every number that an update reads is in a tensor that keeps its place: a panel fills the rates in
place, and a recorded CUDA graph reads the new values. No number travels to the processor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from hpenv.optim.adamw import AdamW
from hpenv.optim.fused.layout import Layout
from hpenv.optim.muon import Muon
from hpenv.optim.rules import Rates, move_momentum


class AdamWRates(NamedTuple):
    """Rates of AdamW, (N, K) float64 each: one number per run and tensor.

    Attributes:
        lr: learning rate.
        weight_decay: decoupled, multiplied by the learning rate.
        beta1_complement: 1 - beta1.
        beta2_complement: 1 - beta2.
        eps: epsilon.
        gate: 0 leaves weights and state of the tensor as they are. Any other number updates them.
        cap: largest L2 norm of the gradient of the tensor's cell. See `AdamWArena.cap_cells`.
    """

    lr: Tensor
    weight_decay: Tensor
    beta1_complement: Tensor
    beta2_complement: Tensor
    eps: Tensor
    gate: Tensor
    cap: Tensor


class MuonRates(NamedTuple):
    """Rates of Muon, (N, K) float64 each: one number per run and tensor.

    Attributes:
        lr: learning rate, without the factor of the matrix's shape.
        weight_decay: decoupled, multiplied by the learning rate.
        momentum: of the first moment and of Nesterov's blend.
        momentum_complement: 1 - momentum.
        gate: 0 leaves weights and state of the tensor as they are. Any other number updates them.
        cap: largest L2 norm of the gradient of the tensor's cell. See `MuonArena.cap_cells`.
    """

    lr: Tensor
    weight_decay: Tensor
    momentum: Tensor
    momentum_complement: Tensor
    gate: Tensor
    cap: Tensor


class Statistics(NamedTuple):
    """Statistics of the last update, (N, K) float64 each: one number per run and tensor.

    g is the gradient as it was given, before the cap. u is the change of the weights, weight decay
    included, and p the weights after it. u is 0 where the gate is 0.

    Attributes:
        gradient_square: sum of g^2.
        weight_square: sum of p^2.
        update_square: sum of u^2.
        weight_update: sum of p u.
        gradient_update: sum of g u, to first order the change of the loss.
        gradient_max: largest |g|. NaN if a gradient is NaN.
    """

    gradient_square: Tensor
    weight_square: Tensor
    update_square: Tensor
    weight_update: Tensor
    gradient_update: Tensor
    gradient_max: Tensor


@dataclass(frozen=True)
class AdamWArena:
    """Buffers of AdamW. `empty` makes one.

    Attributes:
        layout: places of the tensors.
        flat: slot -> flat buffer, of `weights`, `gradients`, `momentum` and `second_moment`.
        views: slot -> name -> view (N, ...) of its buffer.
        rates: filled in place between two updates.
        beta_products: products of beta1 and of beta2 over the updates so far, (2, N, K) float64.
            They are the step counter of the bias correction: beta^t if the betas never moved.
        statistics: written by every update.
        cap_cells: cell of each tensor, (K,). A cap bounds the norm over all tensors of a cell. None
            leaves the caps out, and saves the pass over the gradients that measures their norm.
    """

    layout: Layout
    flat: dict[str, Tensor]
    views: dict[str, dict[str, Tensor]]
    rates: AdamWRates
    beta_products: Tensor
    statistics: Statistics
    cap_cells: Tensor | None

    @staticmethod
    def empty(
        layout: Layout,
        device: torch.device | str = "cpu",
        cap_cells: Sequence[int] | None = None,
    ) -> AdamWArena:
        """Returns an arena of zeros: rates 0, gates open, and caps that are infinite."""
        flat, views = _buffers(
            layout, ("weights", "gradients", "momentum", "second_moment"), device
        )
        rates = AdamWRates(*_rates(layout, AdamWRates._fields, device))
        products = torch.ones(2, *_table(layout), dtype=torch.float64, device=device)
        cells, found = _cells(layout, cap_cells, device), _statistics(layout, device)
        return AdamWArena(layout, flat, views, rates, products, found, cells)

    def fill(self, rule: AdamW, rates: Rates) -> None:
        """Fills the rates in place from a rule and the plant's rates (`pretraining.rates`).

        With all multipliers at 1 the values are the rule's own, bit for bit.
        """
        new1, new2 = (1.0 - rule.beta1) * rates.beta1, (1.0 - rule.beta2) * rates.beta2
        _, new1 = move_momentum(1.0 - new1, new1, rates.momentum)
        given = (rates.lr, rates.weight_decay, new1, new2, rule.eps * rates.eps)
        for own, value in zip(self.rates, given, strict=False):
            own.copy_(value)


@dataclass(frozen=True)
class MuonArena:
    """Buffers of Muon. `empty` makes one.

    Attributes:
        layout: places of the matrices.
        flat: slot -> flat buffer, of `weights`, `gradients`, `momentum` and `direction`. The last
            holds the orthogonalized momentum.
        views: slot -> name -> view (N, rows, columns) of its buffer.
        rates: filled in place between two updates.
        shape_factors: sqrt(max(1, rows / columns)) of each matrix, (K,) float32.
        statistics: written by every update.
        cap_cells: see `AdamWArena`.
    """

    layout: Layout
    flat: dict[str, Tensor]
    views: dict[str, dict[str, Tensor]]
    rates: MuonRates
    shape_factors: Tensor
    statistics: Statistics
    cap_cells: Tensor | None

    @staticmethod
    def empty(
        layout: Layout,
        device: torch.device | str = "cpu",
        cap_cells: Sequence[int] | None = None,
    ) -> MuonArena:
        """Returns an arena of zeros: rates 0, gates open, and caps that are infinite.

        Raises:
            ValueError: for a tensor that is not a matrix.
        """
        for name, shape in zip(layout.names, layout.shapes, strict=True):
            if len(shape) != 2:
                raise ValueError(f"tensors of muon must be matrices; got {name!r} of shape {shape}")
        flat, views = _buffers(layout, ("weights", "gradients", "momentum", "direction"), device)
        rates = MuonRates(*_rates(layout, MuonRates._fields, device))
        factors = [max(1.0, rows / columns) ** 0.5 for rows, columns in layout.shapes]
        shape_factors = torch.tensor(factors, dtype=torch.float32, device=device)
        cells, found = _cells(layout, cap_cells, device), _statistics(layout, device)
        return MuonArena(layout, flat, views, rates, shape_factors, found, cells)

    def fill(self, rule: Muon, rates: Rates) -> None:
        """Fills the rates in place from a rule and the plant's rates (`pretraining.rates`).

        With all multipliers at 1 the values are the rule's own, bit for bit.
        """
        moved, new = move_momentum(rule.momentum, 1.0 - rule.momentum, rates.momentum)
        given = (rates.lr, rates.weight_decay, moved, new)
        for own, value in zip(self.rates, given, strict=False):
            own.copy_(value)


def fill_caps(cap: Tensor, table: Tensor, neutral: float) -> None:
    """Fills caps in place from the panel's table of `grad_clip`, whose caps start dormant.

    Args:
        cap: of an arena, (N, K).
        table: `panel.table("grad_clip")`, (N, K), equal within a cell.
        neutral: value of the channel at neutral. A cap of this size or more is dormant.
    """
    values = table.to(cap)
    cap.copy_(torch.where(values < neutral, values, torch.inf))


def _table(layout: Layout) -> tuple[int, int]:
    return layout.num_runs, layout.num_tensors


def _buffers(
    layout: Layout, slots: Sequence[str], device: torch.device | str
) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    flat = {slot: layout.empty(device) for slot in slots}
    return flat, {slot: layout.views(buffer) for slot, buffer in flat.items()}


def _rates(layout: Layout, fields: Sequence[str], device: torch.device | str) -> list[Tensor]:
    """Returns arrays of rates at 0, gates at 1 and caps at infinity."""
    values = {"gate": 1.0, "cap": torch.inf}
    return [
        torch.full(_table(layout), values.get(field, 0.0), dtype=torch.float64, device=device)
        for field in fields
    ]


def _statistics(layout: Layout, device: torch.device | str) -> Statistics:
    """Returns statistics at 0. They are neighbors in memory, in the order of the fields."""
    shape = len(Statistics._fields), *_table(layout)
    return Statistics(*torch.zeros(shape, dtype=torch.float64, device=device).unbind(0))


def _cells(
    layout: Layout, cap_cells: Sequence[int] | None, device: torch.device | str
) -> Tensor | None:
    if cap_cells is None:
        return None
    if len(cap_cells) != layout.num_tensors:
        raise ValueError(
            f"cap_cells must have one cell for each of the {layout.num_tensors} tensors; "
            f"got {len(cap_cells)}"
        )
    return torch.as_tensor(list(cap_cells), dtype=torch.int32, device=device)
