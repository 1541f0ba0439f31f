"""Behavior cloning: an MLP that repeats the actions of an expert at the states of its runs.

The policy is that of JEL (`hpenv.policies.gaussian_mlp`), of which the mean alone is trained: its
action tanh(mean) is fitted to the expert's by least squares. Inputs are standardized in training,
and the standardization is then folded into the first layer, so that the policy takes the
environment's observations.

A clone that errs reaches states that no expert has shown. DAgger's cure is in the data, which its
caller collects: rounds of runs under the clone, labelled by the expert, all fitted together (Ross,
Gordon and Bagnell 2011, arXiv 1011.0686).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from hpenv.policies.gaussian_mlp import GaussianMLP

#: Smallest standard deviation by which an input is divided. All features are bounded by about 1. A
#: column that hardly moves in the data would otherwise decide alone where it moves later (ours).
LEAST_DEVIATION = 1e-2


@dataclass(frozen=True)
class ImitationConfig:
    """Hyperparameters of behavior cloning. All are ours."""

    hidden_sizes: tuple[int, ...] = (32, 32)  # widths of the tanh layers
    num_updates: int = 1500  # steps of Adam, each on all samples
    learning_rate: float = 3e-3  # of the first step, from which it falls linearly to 0
    weight_decay: float = 1e-4  # decoupled, times the learning rate

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            ValueError: a value is out of its range.
        """
        if self.num_updates < 1 or not self.learning_rate > 0 or not self.weight_decay >= 0:
            raise ValueError(
                "num_updates must be at least 1, learning_rate above 0 and weight_decay at least "
                f"0; got {self.num_updates}, {self.learning_rate} and {self.weight_decay}"
            )


def clone_behavior(
    observations: np.ndarray,
    actions: np.ndarray,
    config: ImitationConfig | None = None,
    seed: int = 0,
) -> tuple[GaussianMLP, float]:
    """Fits a policy to an expert's actions.

    Args:
        observations: (M, F).
        actions: actions of the expert there, (M, A) in [-1, 1].
        config: hyperparameters.
        seed: seed of the initial weights.

    Returns:
        The policy, and its mean squared error on the samples.

    Raises:
        ValueError: there are no samples, their numbers differ, or one is not finite or an action
            not in [-1, 1].
    """
    config = ImitationConfig() if config is None else config
    _check_samples(observations, actions)

    inputs = torch.as_tensor(np.asarray(observations, dtype=np.float32))
    targets = torch.as_tensor(np.asarray(actions, dtype=np.float32))
    mean, deviation = inputs.mean(0), inputs.std(0, correction=0).clamp(min=LEAST_DEVIATION)
    standardized = (inputs - mean) / deviation

    policy = GaussianMLP(inputs.shape[1], targets.shape[1], config.hidden_sizes, seed=seed)
    optimizer = torch.optim.AdamW(
        policy.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    for update in range(config.num_updates):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * (1.0 - update / config.num_updates)
        loss = _error(policy, standardized, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    fold_standardization(policy, mean, deviation)
    with torch.no_grad():
        return policy, _error(policy, inputs, targets).item()


@torch.no_grad()
def fold_standardization(policy: GaussianMLP, mean: torch.Tensor, deviation: torch.Tensor) -> None:
    """Changes the first layer so that the policy of (x - mean) / deviation becomes one of x.

    W (x - m) / s + b = (W / s) x + b - (W / s) m.

    Args:
        policy: the policy, which is changed.
        mean: of the inputs, (F,).
        deviation: of the inputs, (F,), above 0.
    """
    first = next(layer for layer in [*policy.body, policy.head] if isinstance(layer, nn.Linear))
    first.weight.div_(deviation)
    first.bias.sub_(first.weight @ mean)


def _error(policy: GaussianMLP, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    mean, _ = policy(inputs)
    return (torch.tanh(mean) - targets).square().mean()


def _check_samples(observations: np.ndarray, actions: np.ndarray) -> None:
    seen, done = np.asarray(observations), np.asarray(actions)
    if seen.ndim != 2 or done.ndim != 2 or len(seen) != len(done) or not len(seen):
        raise ValueError(
            "observations (M, F) and actions (M, A) must have the same M of at least 1; "
            f"got shapes {seen.shape} and {done.shape}"
        )
    if not (np.isfinite(seen).all() and (np.abs(done) <= 1.0).all()):
        raise ValueError("observations must be finite, and actions in [-1, 1]")
