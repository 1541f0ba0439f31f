"""Effects of cells on the probe loss, estimated to first order from one gradient of that loss.

Let g be the gradient of the probe loss at the weights after an update of rate lr. The derivative of
the probe loss by the logarithm of that rate is <g, change>, of the change -lr u of the weights. So
-<g, change> is the decrease that a higher rate would have brought:

- `lr`: the change of the tensors of the cell.
- `weight_decay`: the fraction of the change that is decay, -lr wd w.
- `grad_skip` and `grad_gate`: minus the fraction of the change that the gradient brought, which a
  cell takes away with its probability. A gradient that was skipped brought none.
- Channels of the forward pass: the derivative of the probe loss by the dial. Nothing is known of
  the effect that the dial leaves in the weights.
- All other channels: 0.

An estimate with a memory takes the changes of the last steps with the present gradient, those of k
steps back with the weight exp(-k / memory). That is the derivative of the present loss by rates of
the past, as if the steps in between had taken the two runs along in parallel (their Jacobian is the
identity). With a long memory it is less short-sighted: noise that later steps have undone costs
nothing any more.

References:
    Baydin et al. 2018, arXiv 1703.04782 (the derivative by a rate, of the next training loss). Wu
    et al. 2018, arXiv 1803.02021 (a short horizon makes rates too small). Donini et al. 2020, arXiv
    1910.08525 (a discount in place of a horizon, with the Jacobian).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from hpenv.arrays import BoolArray, FloatArray, IntArray
from hpenv.control.panel import ChannelCells, Panel
from hpenv.lm.model import Dials
from hpenv.optim.rules import Rates, Rule, row_scalars
from hpenv.plant.ranks import ALONE, Ranks
from hpenv.pretraining.evaluation import Losses, loss_gradients
from hpenv.pretraining.forward_channels import dial_leaves
from hpenv.pretraining.measurements import EFFECT_MEMORIES, finite

#: Channel -> the fraction of the change of the weights that its effect is computed from.
PARTS = {"lr": "change", "weight_decay": "decay", "grad_skip": "drive", "grad_gate": "drive"}


class CellEffects:
    """Traces of the changes of N runs' weights, and the cells' effects on the probe loss.

    Args:
        panel: the cells.
        weights: name -> (N, ...), in the order of `panel.tensors`. Read for shapes.
    """

    def __init__(self, panel: Panel, weights: Mapping[str, Tensor]) -> None:
        self._panel, self._like = panel, list(weights.values())
        used = {PARTS[name] for name, _ in panel.banks if name in PARTS}
        self._parts = tuple(part for part in dict.fromkeys(PARTS.values()) if part in used)
        # measurement -> part -> trace of each tensor
        self._traces: dict[str, dict[str, list[Tensor]]] = {}

    def traces(self, groups: Collection[str]) -> dict[str, Tensor]:
        """Returns the traces of measured groups that outlive a window, by a name each."""
        found: dict[str, Tensor] = {}
        for name, memory in EFFECT_MEMORIES.items():
            if name not in groups or not memory:
                continue
            for part, tensors in self._of(name).items():
                named = zip(self._panel.tensors, tensors, strict=True)
                found |= {f"{name}/{part}/{tensor}": trace for tensor, trace in named}
        return found

    def begin_window(self) -> None:
        """Clears the traces that do not outlive a window."""
        for name in [name for name, memory in EFFECT_MEMORIES.items() if not memory]:
            self._traces.pop(name, None)

    def _of(self, name: str) -> dict[str, list[Tensor]]:
        if name not in self._traces:
            zeros = {part: [torch.zeros_like(w) for w in self._like] for part in self._parts}
            self._traces[name] = zeros
        return self._traces[name]

    def are_measured(self, groups: Collection[str]) -> bool:
        """True if one of the measured groups is an effect of the cells."""
        return any(name in groups for name in EFFECT_MEMORIES)

    @torch.no_grad()
    def trace(
        self,
        groups: Collection[str],
        update: Callable[[Mapping[str, Tensor]], None],
        gradients: Mapping[str, Tensor],
        weights: Mapping[str, Tensor],
        state: Mapping[str, Tensor],
        decay: FloatArray,
        moving: BoolArray,
    ) -> None:
        """Updates the weights in place, and adds the change to the traces.

        Args:
            groups: measured groups.
            update: takes gradients, and moves weights and state of the rows that move.
            gradients: those of the update.
            weights: name -> (N, ...).
            state: all tensors that an update moves.
            decay: fraction of each tensor that decays, (N, K). 0 in rows that do not move.
            moving: rows that move, (N,) bool.
        """
        before = [weight.clone() for weight in weights.values()]
        undriven: list[Tensor] = []
        if "drive" in self._parts:  # the same update without a gradient, which is then undone
            copies = [value.clone() for value in state.values()]
            update({name: torch.zeros_like(g) for name, g in gradients.items()})
            undriven = [weight.clone() for weight in weights.values()]
            for value, copy in zip(state.values(), copies, strict=True):
                value.copy_(copy)
        update(gradients)

        after = list(weights.values())
        parts = {"change": [new - old for new, old in zip(after, before, strict=True)]}
        if "decay" in self._parts:
            columns = zip(before, decay.T, strict=True)
            parts["decay"] = [-row_scalars(lost, w) * w for w, lost in columns]
        if "drive" in self._parts:
            parts["drive"] = [new - old for new, old in zip(after, undriven, strict=True)]
        self._add(groups, parts, moving)

    def _add(
        self, groups: Collection[str], parts: Mapping[str, Sequence[Tensor]], moving: BoolArray
    ) -> None:
        for name in (name for name in EFFECT_MEMORIES if name in groups):
            memory = EFFECT_MEMORIES[name]
            keep = np.where(moving & (memory > 0), math.exp(-1.0 / max(memory, 1)), 1.0)
            for part, traces in self._of(name).items():
                for trace, change in zip(traces, parts[part], strict=True):
                    trace.mul_(row_scalars(keep, trace)).add_(change)

    def measure(
        self,
        groups: Collection[str],
        losses_of: Callable[[Mapping[str, Tensor], Dials], Losses],
        weights: Mapping[str, Tensor],
        sequences: tuple[Tensor, IntArray, int, int],
        logit_softcap: float,
        ranks: Ranks = ALONE,
    ) -> dict[str, FloatArray]:
        """Returns the measured effects with the gradient of the probe loss. See `estimate`.

        Args:
            groups: measured groups.
            losses_of: weights and dials -> loss of each target, (N, B T) [nats].
            weights: name -> (N, ...). They stay as they are.
            sequences: tokens, starts, length and number of rows of the probe. See `mean_loss`.
            logit_softcap: that of the model.
            ranks: processes that share the sequences, each of which is given its own.
        """
        own = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
        device = next(iter(own.values())).device
        leaves, dials = dial_leaves(self._panel, logit_softcap, device)
        losses = losses_of(own, dials)
        gradients = loss_gradients(losses, [*own.values(), *leaves.values()], *sequences)
        return self.estimate(groups, ranks.average(gradients), list(leaves))

    def estimate(
        self,
        groups: Collection[str],
        gradients: Sequence[Tensor],
        dials: Sequence[str],
    ) -> dict[str, FloatArray]:
        """Returns the measured effects: name -> (N, A) [nats per token per unit of position].

        A positive effect is a decrease of the probe loss.

        Args:
            groups: measured groups.
            gradients: of the probe loss by all weights, then by the values of the dials in every
                layer (N, L), or in the run (N,).
            dials: channels of the forward pass.
        """
        panel, found, size = self._panel, {}, len(self._like)
        by_dial = {
            dial: gradient.reshape(len(gradient), -1).double().cpu().numpy()
            for dial, gradient in zip(dials, gradients[size:], strict=True)
        }
        values = panel.values()
        for name in (name for name in EFFECT_MEMORIES if name in groups):
            dots = {part: _products(gradients[:size], z) for part, z in self._of(name).items()}
            effects = np.zeros_like(values)
            for (channel, _), bank in panel.banks.items():
                columns, count = bank.columns, len(bank.cells)
                own, slopes = values[:, columns], bank.channel.slopes(panel.positions[:, columns])
                if channel in PARTS:
                    change = _sum_by_cell(dots[PARTS[channel]], bank.index, count)
                    sign = 1.0 if PARTS[channel] == "drive" else -1.0 / own
                    effects[:, columns] = sign * slopes * change
                elif channel in by_dial:
                    effects[:, columns] = -slopes * self._dial(by_dial[channel], bank)
            found[name] = finite(effects)
        return found

    def _dial(self, gradients: FloatArray, bank: ChannelCells) -> FloatArray:
        """Returns the derivative of the probe loss by the value of each cell, (N, cells)."""
        panel, own = self._panel, self._panel.values()[:, bank.columns]
        if gradients.shape[1] == 1:  # a channel of the run
            return gradients
        index = panel.layer_index(bank)
        total = panel.per_layer(bank.channel.name)
        # The value in a layer is the product over the scopes of the channel.
        others = 1.0 if total is None else total / own[:, index]
        return _sum_by_cell(gradients * others, index, len(bank.cells))


def _products(first: Sequence[Tensor], second: Sequence[Tensor]) -> FloatArray:
    """Returns the inner product of two tensors of every run and name, (N, K)."""
    dots = [(a * b).flatten(1).sum(1) for a, b in zip(first, second, strict=True)]
    return torch.stack(dots, 1).double().cpu().numpy()


def _sum_by_cell(values: FloatArray, index: IntArray, num_cells: int) -> FloatArray:
    """Sums values (N, K) over the tensors of each cell, (N, cells). Index -1 is of no cell."""
    return values @ (index[:, None] == np.arange(num_cells)).astype(np.float64)


def decay_fractions(
    rates: Mapping[Rule, Rates], members: Mapping[Rule, IntArray], moving: BoolArray
) -> FloatArray:
    """Returns the fraction of each tensor that decays in a step, (N, K), 0 of frozen rows.

    Args:
        rates: rule -> rates of its tensors, (N, k) each.
        members: rule -> indices of its tensors, (k,).
        moving: True for the runs that move, (N,).
    """
    found = np.zeros((len(moving), sum(map(len, members.values()))))
    for rule, own in rates.items():
        lost = (own.lr * own.weight_decay).clamp(0.0, 1.0)
        found[:, members[rule]] = lost.cpu().numpy()
    return np.where(moving[:, None], found, 0.0)
