"""Coefficients of N runs: their optimizer's steps, and the norms of their gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from hpenv.arrays import FloatArray, IntArray
from hpenv.optim.rules import Rates, Rule, State

Vectors = dict[str, Tensor]


class TrainedCoefficients:
    """Trained coefficients of N runs, with the state of their optimizer.

    Attributes:
        values: module -> (N, r).
        states: module -> slot -> (N, r).
    """

    def __init__(self, ranks: Mapping[str, int], num_rows: int, rule: Rule) -> None:
        """Begins with coefficients of zero.

        Args:
            ranks: module -> r.
            num_rows: N.
            rule: the optimizer.
        """
        self._rule = rule
        self.values: Vectors = {name: torch.zeros(num_rows, r) for name, r in ranks.items()}
        self.states: dict[str, State] = {name: rule.init(v) for name, v in self.values.items()}

    def reset(self, rows: list[int]) -> None:
        """Sets some runs to zero, and their optimizer to its start."""
        for name, value in self.values.items():
            value[rows] = 0.0
            for slot, start in self._rule.init(value[rows]).items():
                self.states[name][slot][rows] = start

    def update(
        self,
        rows: IntArray,
        gradients: Mapping[str, Tensor],
        rates: Rates,
        steps: IntArray,
        project: Callable[[Vectors], tuple[Vectors, Vectors]] | None = None,
    ) -> None:
        """Takes one optimizer step of these rows. The others stay bit for bit as they are.

        Args:
            rows: indices of the runs, (n,).
            gradients: module -> (n, r).
            rates: one per run and module, (n, K).
            steps: optimizer steps that the runs have taken, (n,).
            project: splits the optimizer's update into what is subtracted and what is removed,
                module -> (n, r) each. None subtracts the update. Where nothing is removed, the
                weights are exactly the optimizer's.
        """
        index = torch.as_tensor(rows)
        weights = {name: value[index] for name, value in self.values.items()}
        states = {
            name: {slot: value[index] for slot, value in state.items()}
            for name, state in self.states.items()
        }
        before = {name: weight.clone() for name, weight in weights.items()}
        self._rule.update(
            list(weights.values()),
            [gradients[name] for name in weights],
            list(states.values()),
            rates,
            steps,
        )

        if project is not None:
            update = {name: before[name] - weight for name, weight in weights.items()}
            for name, kept in project(update)[0].items():
                is_whole = (kept == update[name]).all(1, keepdim=True)
                weights[name] = torch.where(is_whole, weights[name], before[name] - kept)

        for name, weight in weights.items():
            self.values[name][index] = weight
            for slot, value in states[name].items():
                self.states[name][slot][index] = value

    def tensors(self, prefix: str = "") -> dict[str, Tensor]:
        """Returns values and optimizer state by their names in a snapshot, without copies."""
        result = {f"trained/{prefix}{name}": value for name, value in self.values.items()}
        for name, state in self.states.items():
            for slot, value in state.items():
                result[f"optimizer/{prefix}{name}/{slot}"] = value
        return result


def total_norm(vectors: Mapping[str, Tensor]) -> FloatArray:
    """Returns the L2 norm of each run's vectors together, module -> (N, r) to (N,)."""
    return torch.cat([t.double() for t in vectors.values()], 1).norm(dim=1).numpy()


def layer_of(name: str) -> int:
    """Returns the layer of a module: the first number in its name."""
    return next(int(part) for part in name.split(".") if part.isdigit())


def layer_norms(vectors: Mapping[str, Tensor], num_layers: int) -> FloatArray:
    """Returns the L2 norm of each run's vectors in each layer, module -> (N, r) to (N, layers)."""
    layers: list[Vectors] = [{} for _ in range(num_layers)]
    for name, vector in vectors.items():
        layers[layer_of(name)][name] = vector
    return np.stack([total_norm(layer) for layer in layers], 1)
