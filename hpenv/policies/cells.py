"""The Sidecar's policy: N stacked networks, one per run, that set every cell of the panel."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import nn

from hpenv.arrays import Float32Array
from hpenv.policies.controller import ControllerSpec
from hpenv.policies.gaussian_mlp import check_sizes
from hpenv.policies.policy import as_observations


class _ClampWithReturn(torch.autograd.Function):
    """Clamp that keeps the gradient outside of the bounds if a step along it leads back inside.

    torch's clamp has no gradient there: a standard deviation that a step took out of its bounds
    would stay there for good.
    """

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, low: float, high: float) -> torch.Tensor:
        ctx.save_for_backward(values)
        ctx.bounds = (low, high)
        return values.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (values,), (low, high), (gradient,) = ctx.saved_tensors, ctx.bounds, gradients
        outward = ((values <= low) & (gradient > 0)) | ((values >= high) & (gradient < 0))
        return gradient.masked_fill(outward, 0.0), None, None


class CellMLP(nn.Module):
    """N networks, one per run, from an observation to a Gaussian over each cell's position.

    raw ~ N(mean(obs), std), independent from cell to cell. The position of a cell is
    clip(raw, -1, 1). The network has two tanh layers and a linear head: mean = tanh(head). std is
    one number per cell, within its bounds. Weights are (N, inputs, outputs), so that rows do not
    mix.

    The head's weights start at 0. So at every observation the mean starts at `initial_mean` and the
    standard deviation at `initial_std`. The default mean is 0: neutral, the static configuration
    (Sidecar, section 3). The tanh layers start as torch initializes a Linear (uniform within
    1/sqrt(inputs) of 0). The input of the head is divided by sqrt(hidden_size), so that at any
    width a step moves a mean about as far through the head's weights as through its bias. A
    standard deviation that was an output of the network let the noise of all cells rise and fall
    together, fourfold within one run.

    With `common`, each of K groups of cells has one more Gaussian. A cell's position is then
    clip(raw of the cell + raw of its group, -1, 1). A change that all cells of a group share is
    learned from one number.

    Args:
        num_rows: N.
        observation_size: F.
        action_size: A, cells.
        hidden_size: width H of both tanh layers.
        initial_mean: positions at which the means start, within (-1, 1), (A + K,) or one for all.
        initial_std: standard deviations at the start, (A + K,) or one for all [position].
        std_bounds: smallest and largest standard deviation.
        common: group of each cell, 0 ... K - 1. Empty: no groups, K = 0.
        seeds: seeds of each row's initial weights, (N,). The default is 0 ... N - 1.

    References:
        Sidecar (paper 000), sections 2.3 and 3. Of the network it states the number of parameters
        only.
    """

    spec = ControllerSpec()

    def __init__(
        self,
        num_rows: int,
        observation_size: int,
        action_size: int,
        hidden_size: int = 256,
        initial_mean: float | Sequence[float] = 0.0,
        initial_std: float | Sequence[float] = 0.1,
        std_bounds: tuple[float, float] = (1e-3, 0.5),
        common: Sequence[int] = (),
        seeds: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        check_sizes(observation_size, action_size, [hidden_size])
        if num_rows < 1:
            raise ValueError(f"num_rows must be at least 1; got {num_rows}")
        if len(common) not in (0, action_size) or set(common) != set(
            range(max(common, default=-1) + 1)
        ):
            raise ValueError(
                f"common must be empty or give a group number for each of the {action_size} cells; "
                f"got {list(common)}"
            )

        self.num_rows = num_rows
        self.observation_size = observation_size
        self.action_size = action_size
        self.hidden_size = hidden_size
        self.common = tuple(common)
        self.output_size = action_size + max(common, default=-1) + 1  # M = A + K
        self.initial_mean = self._per_output("initial_mean", initial_mean)
        self.initial_std = self._per_output("initial_std", initial_std)
        self.std_bounds = (std_bounds[0], std_bounds[1])
        self.seeds = tuple(range(num_rows) if seeds is None else seeds)

        low, high = self.std_bounds
        if not 0.0 < low < high:
            raise ValueError(f"std_bounds must be 0 < smallest < largest; got {self.std_bounds}")
        if not all(-1.0 < mean < 1.0 for mean in self.initial_mean):
            raise ValueError(
                f"initial_mean must be positions between -1 and 1; got {self.initial_mean}"
            )
        if not all(low <= std <= high for std in self.initial_std):
            raise ValueError(
                f"initial_std must be within std_bounds [{low}, {high}]; got {self.initial_std}"
            )
        if len(self.seeds) != num_rows:
            raise ValueError(
                f"seeds must be {num_rows} numbers, one for each row; got {len(self.seeds)}"
            )

        N, H, M = num_rows, hidden_size, self.output_size
        self.weight_1 = nn.Parameter(torch.empty(N, observation_size, H))
        self.bias_1 = nn.Parameter(torch.empty(N, 1, H))
        self.weight_2 = nn.Parameter(torch.empty(N, H, H))
        self.bias_2 = nn.Parameter(torch.empty(N, 1, H))
        self.head_weight = nn.Parameter(torch.zeros(N, H, M))
        self.head_bias = nn.Parameter(torch.empty(N, 1, M))
        self.log_std = nn.Parameter(torch.empty(N, 1, M))
        self._groups = torch.tensor(self.common, dtype=torch.int64)
        self._initialize()

    def _per_output(self, name: str, values: float | Sequence[float]) -> tuple[float, ...]:
        if isinstance(values, int | float):
            return (float(values),) * self.output_size
        if len(values) != self.output_size:
            raise ValueError(
                f"{name} must be one number or {self.output_size}; got {len(values)} numbers"
            )
        return tuple(float(value) for value in values)

    @torch.no_grad()
    def _initialize(self) -> None:
        for row, seed in enumerate(self.seeds):
            generator = torch.Generator().manual_seed(seed)
            for weight, bias in ((self.weight_1, self.bias_1), (self.weight_2, self.bias_2)):
                bound = 1.0 / math.sqrt(weight.shape[1])
                weight[row].uniform_(-bound, bound, generator=generator)
                bias[row].uniform_(-bound, bound, generator=generator)

        self.head_bias[:] = torch.tensor([math.atanh(mean) for mean in self.initial_mean])
        self.log_std[:] = torch.tensor([math.log(std) for std in self.initial_std])

    def forward(self, obs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns mean and log standard deviation of raw, (N, B, A + K) each.

        Args:
            obs: B observations of each row, (N, B, F).
        """
        hidden = torch.tanh(torch.baddbmm(self.bias_1, obs, self.weight_1))
        hidden = torch.tanh(torch.baddbmm(self.bias_2, hidden, self.weight_2))
        head = torch.baddbmm(
            self.head_bias, hidden, self.head_weight, alpha=1.0 / math.sqrt(self.hidden_size)
        )
        low, high = self.std_bounds
        log_std = _ClampWithReturn.apply(self.log_std, math.log(low), math.log(high))
        return torch.tanh(head), log_std.expand_as(head)

    def positions(self, raw: torch.Tensor) -> torch.Tensor:
        """Maps raw (..., A + K) to positions (..., A): cell plus group, clipped to [-1, 1]."""
        positions = raw[..., : self.action_size]
        if self.common:
            positions = positions + raw[..., self.action_size :][..., self._groups]
        return positions.clamp(-1.0, 1.0)

    def as_rows(self, observations: np.ndarray) -> torch.Tensor:
        """Checks observations (R, F) and returns them per network.

        N networks take one row each, (N, 1, F). A single network takes any number, (1, R, F).

        Raises:
            ValueError: another number of rows or columns, or a number that is not finite.
        """
        batch = as_observations(observations, self.observation_size)
        if self.num_rows > 1 and len(batch) != self.num_rows:
            raise ValueError(
                f"observations must have {self.num_rows} rows, one for each network; "
                f"got {len(batch)}"
            )
        return torch.from_numpy(batch).reshape(self.num_rows, -1, self.observation_size)

    @torch.no_grad()
    def act(self, observations: np.ndarray) -> Float32Array:
        """Returns the positions of the means, (R, A) float32, at observations (R, F)."""
        mean, _ = self(self.as_rows(observations))
        return self.positions(mean.reshape(-1, self.output_size)).numpy()

    def arguments(self) -> dict[str, Any]:
        """Returns the constructor's arguments, JSON-able."""
        return {
            "num_rows": self.num_rows,
            "observation_size": self.observation_size,
            "action_size": self.action_size,
            "hidden_size": self.hidden_size,
            "initial_mean": list(self.initial_mean),
            "initial_std": list(self.initial_std),
            "std_bounds": list(self.std_bounds),
            "common": list(self.common),
            "seeds": list(self.seeds),
        }

    def tensors(self) -> dict[str, torch.Tensor]:
        """Returns copies of the weights."""
        return {name: tensor.detach().clone() for name, tensor in self.state_dict().items()}

    @classmethod
    def from_state(cls, arguments: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Self:
        """Returns the policy with these `arguments` and `tensors`."""
        policy = cls(**arguments)
        policy.load_state_dict(dict(tensors))
        return policy
