"""Parts of an optimizer step: tensors in the panel, gradients, and the update of all tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hpenv.arrays import BoolArray, IntArray
from hpenv.control.panel import TensorSite
from hpenv.optim.rules import Rates, Rule, State
from hpenv.plant.ranks import ALONE, Ranks


class Losses(NamedTuple):
    """Losses of N runs and their gradients.

    Attributes:
        losses: loss of each run, (N,).
        gradients: gradients of the losses by each tensor of the weights, (N, ...) each.
    """

    losses: Tensor
    gradients: list[Tensor]


def tensor_sites(groups: Mapping[str, str], rules: Mapping[str, Rule]) -> dict[str, TensorSite]:
    """Returns the place of every tensor in the panel.

    Args:
        groups: name of a tensor -> its optimizer group.
        rules: optimizer group -> rule.
    """
    return {
        name: TensorSite(
            group, rules[group].optimizer, int(name.split(".")[1]) if "." in name else None
        )
        for name, group in groups.items()
    }


def loss_and_gradients(
    loss: Callable[[Mapping[str, Tensor]], Tensor],
    weights: Mapping[str, Tensor],
    ranks: Ranks = ALONE,
) -> Losses:
    """Returns a loss of the weights, (N,), and its gradients by them.

    Args:
        loss: weights -> loss of each run, (N,). A run's loss depends on its own weights alone.
        weights: name -> (N, ...). They stay as they are.
        ranks: processes over which losses and gradients are averaged.
    """
    leaves = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
    with torch.enable_grad():
        losses = loss(leaves)
        gradients = torch.autograd.grad(losses.sum(), list(leaves.values()))
    mean, *means = ranks.average([losses.detach(), *gradients])
    return Losses(mean, means)


def first_moments(states: Mapping[str, State]) -> dict[str, Tensor]:
    """Returns the first moments, of those tensors whose optimizer has one."""
    return {name: state["momentum"] for name, state in states.items() if "momentum" in state}


def trained_tensors(
    weights: Mapping[str, Tensor], states: Mapping[str, State]
) -> dict[str, Tensor]:
    """Returns weights and optimizer state by their names in a snapshot, without copies.

    Args:
        weights: name -> (N, ...).
        states: name -> state of the rule.
    """
    tensors = {f"weights/{name}": weight for name, weight in weights.items()}
    for name, slots in states.items():
        tensors |= {f"optimizer/{name}/{slot}": value for slot, value in slots.items()}
    return tensors


def tensors_of_rules(
    groups: Mapping[str, str], rules: Mapping[str, Rule]
) -> dict[Rule, dict[str, int]]:
    """Returns the tensors that each rule updates together: rule -> name of a tensor -> its index.

    Groups with the same rule are updated together, since a rule may depend on all its tensors.

    Args:
        groups: name of a tensor -> its optimizer group.
        rules: optimizer group -> rule.
    """
    found: dict[Rule, dict[str, int]] = {}
    for group in dict.fromkeys(groups.values()):
        own = {name: k for k, (name, other) in enumerate(groups.items()) if other == group}
        found.setdefault(rules[group], {}).update(own)
    return found


@torch.no_grad()
def update_weights(
    tensors: Mapping[Rule, Iterable[str]],
    weights: Mapping[str, Tensor],
    states: Mapping[str, State],
    rates: Mapping[Rule, Rates],
    steps: IntArray,
    moving: BoolArray,
    gradients: Mapping[str, Tensor],
) -> None:
    """Applies the update rules to all runs, in place, then restores those that must not move.

    Args:
        tensors: rule -> names of its tensors.
        weights: name -> (N, ...).
        states: name -> state of the rule.
        rates: rule -> rates of its tensors.
        steps: optimizer steps that each run has taken, (N,).
        moving: True for the runs that move, (N,).
        gradients: name -> (N, ...).
    """
    kept: list[Tensor] = []
    if not moving.all():
        device = next(iter(weights.values())).device
        frozen = torch.as_tensor(np.flatnonzero(~moving), device=device)
        kept = list(trained_tensors(weights, states).values())
        copies = [tensor[frozen].clone() for tensor in kept]

    for rule, names in tensors.items():
        rule.update(
            [weights[name] for name in names],
            [gradients[name] for name in names],
            [states[name] for name in names],
            rates[rule],
            steps,
        )

    if kept:
        for tensor, copy in zip(kept, copies, strict=True):
            tensor[frozen] = copy
