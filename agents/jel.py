"""JEL: a Gaussian policy, PPO's clipped objective, group-relative advantages, and no critic.

An update takes N episodes, which are N runs of the same task. A decision's advantage is its
discounted return minus the mean return of the runs at the same decision. The policy trains for 4
epochs over the samples in minibatches of 64.

Choices where the paper (Lee & Ndubuaku, "Just Enough Learning", section 3.5 and table 2) is silent:

- The log_std head starts with zero weights (`hpenv.policies.gaussian_mlp`).
- The last minibatch of an epoch may be smaller (96 samples are 64 + 32).
- An episode that diverged stays in its column. Its missing decisions count in no baseline and no
  loss.
- The gradient norm is unbounded by default.
- Adam is torch's (betas 0.9 and 0.999, eps 1e-8).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Literal, get_args

import numpy as np
import torch
from torch import nn

from agents import returns
from agents.base import (
    ADDED,
    BoolArray,
    Decision,
    FloatArray,
    Rollout,
    check_rollout,
    config_json,
    episode_metrics,
    load_agent,
    optimizer_tensors,
    restore_optimizer,
    set_fields,
)
from agents.losses import approximate_kl, clipped_surrogate, gaussian_entropy, gaussian_log_prob
from hpenv.policies.gaussian_mlp import GaussianMLP
from hpenv.policies.policy import as_observations
from hpenv.policies.store import save_state

# The choices of the command line.
Normalization = Literal["none", "per_step_std", "batch_std", "grpo"]
Start = Literal["random", "neutral"]
Advantages = tuple[FloatArray, FloatArray]  # advantages and weights of the decisions, (T, N) each


def _none(rewards: FloatArray, alive: BoolArray, gamma: float) -> Advantages:
    togo = returns.discounted_returns(rewards, alive, gamma)
    return returns.centered_returns(togo, alive), np.ones(alive.shape)


def _per_step_std(rewards: FloatArray, alive: BoolArray, gamma: float) -> Advantages:
    togo = returns.discounted_returns(rewards, alive, gamma)
    return returns.standardize_per_step(togo, alive), np.ones(alive.shape)


def _batch_std(rewards: FloatArray, alive: BoolArray, gamma: float) -> Advantages:
    advantages, weights = _none(rewards, alive, gamma)
    return returns.standardize_batch(advantages, alive), weights


def _grpo(rewards: FloatArray, alive: BoolArray, gamma: float) -> Advantages:
    return returns.grpo_outcome(rewards, alive), returns.episode_weights(alive)


#: (rewards, alive, gamma) -> advantages and weights. `none` is JEL. `grpo` is the standard GRPO of
#: its paper. The two between only divide by a standard deviation: per decision, or per batch as in
#: stable-baselines3's PPO.
NORMALIZATIONS: dict[Normalization, Callable[[FloatArray, BoolArray, float], Advantages]] = {
    "none": _none,
    "per_step_std": _per_step_std,
    "batch_std": _batch_std,
    "grpo": _grpo,
}


@dataclass(frozen=True)
class JELAgentConfig:
    """Hyperparameters of JEL. The defaults are the paper's (table 2)."""

    learning_rate: float = 3e-4  # of Adam
    gamma: float = 0.99  # discount per decision
    clip_range: float = 0.2  # eps of the clipped objective
    entropy_coefficient: float = 0.0  # weight of the entropy bonus [reward per nat]
    num_epochs: int = 4  # passes over a rollout
    batch_size: int = 64  # decisions per minibatch
    normalize: Normalization = "none"  # divisor of the advantages, see NORMALIZATIONS
    hidden_sizes: tuple[int, ...] = (64, 64)  # widths of the policy's tanh layers
    initial_log_std: float = -0.5  # a standard deviation of 0.61 over raw actions
    log_std_bounds: tuple[float, float] = (-5.0, 2.0)  # smallest and largest log_std
    max_grad_norm: float | None = None  # global L2 norm; None: unbounded
    # Mean of the first policy: `random` is a random network's (the paper's), most often within a
    # factor of five of the base; `neutral` is 0 at every observation
    start: Start = field(default="random", metadata=ADDED)

    def __repr__(self) -> str:
        """Names what `set_fields` does, so that it keys results of earlier versions too."""
        values = ", ".join(f"{name}={value!r}" for name, value in set_fields(self).items())
        return f"{type(self).__name__}({values})"

    def __post_init__(self) -> None:
        if self.normalize not in NORMALIZATIONS:
            raise ValueError(
                f"normalize must be one of {list(NORMALIZATIONS)}; got {self.normalize!r}"
            )
        if self.start not in get_args(Start):
            raise ValueError(f"start must be one of {get_args(Start)}; got {self.start!r}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be > 0; got {self.learning_rate}")
        if not 0.0 <= self.gamma <= 1.0:
            raise ValueError(f"gamma must be in [0, 1]; got {self.gamma}")
        if not 0.0 < self.clip_range < 1.0:
            raise ValueError(f"clip_range must be between 0 and 1; got {self.clip_range}")
        if not self.entropy_coefficient >= 0:
            raise ValueError(f"entropy_coefficient must be >= 0; got {self.entropy_coefficient}")

        if self.num_epochs < 1 or self.batch_size < 1:
            raise ValueError(
                "num_epochs and batch_size must be >= 1; "
                f"got {self.num_epochs} and {self.batch_size}"
            )
        if self.max_grad_norm is not None and not self.max_grad_norm > 0:
            raise ValueError(f"max_grad_norm must be > 0 or None; got {self.max_grad_norm}")


class JELAgent:
    """The JEL controller. Its random numbers come from its private generators.

    Args:
        observation_size: F.
        action_size: A.
        config: hyperparameters.
        seed: seed of the initial weights, the exploration and the order of minibatches.

    Attributes:
        policy: the GaussianMLP in training.
        num_updates: number of calls of `update` so far.
    """

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        config: JELAgentConfig | None = None,
        seed: int = 0,
    ) -> None:
        self.config = JELAgentConfig() if config is None else config
        # Two streams, or the first noise would repeat the initial weights.
        weights_seed, draws_seed = (
            int(word) for word in np.random.SeedSequence(seed).generate_state(2)
        )

        self.policy = GaussianMLP(
            observation_size,
            action_size,
            self.config.hidden_sizes,
            self.config.initial_log_std,
            self.config.log_std_bounds,
            weights_seed,
        )
        if self.config.start == "neutral":
            self.policy.center()
        self.num_updates = 0

        self._optimizer = torch.optim.Adam(self.policy.parameters(), lr=self.config.learning_rate)
        self._generator = torch.Generator().manual_seed(draws_seed)

    @torch.no_grad()
    def sample(self, observations: np.ndarray) -> Decision:
        """Samples raw ~ N(mean, std) and returns the action tanh(raw), at observations (N, F)."""
        inputs = torch.from_numpy(as_observations(observations, self.policy.observation_size))
        mean, log_std = self.policy(inputs)
        raw = mean + torch.exp(log_std) * torch.randn(mean.shape, generator=self._generator)

        return Decision(
            torch.tanh(raw).numpy(), raw.numpy(), gaussian_log_prob(raw, mean, log_std).numpy()
        )

    def update(self, rollout: Rollout) -> dict[str, float]:
        """Learns from a rollout of N episodes.

        Returns:
            Metrics under stable-baselines3's tags, with its meanings. policy_gradient_loss,
            entropy_loss, loss and clip_fraction are means over all minibatches (in
            stable-baselines3, `loss` is that of the last one). approx_kl is a mean over the
            minibatches of the last epoch. n_updates counts epochs. Further metrics are
            train/entropy summed over the cells, train/entropy_per_cell [nats] and train/std after
            the update, and train/gradient_norm before any bound.

        Raises:
            ValueError: the rollout's shapes disagree, or it holds a NaN or no decision at all.
        """
        check_rollout(rollout, self.policy.observation_size, self.policy.action_size)
        alive = rollout.alive
        rewards = np.asarray(rollout.rewards, dtype=np.float64)
        advantages, weights = NORMALIZATIONS[self.config.normalize](
            rewards, alive, self.config.gamma
        )

        def samples(array: np.ndarray) -> torch.Tensor:  # (M, ...)
            return torch.from_numpy(np.ascontiguousarray(array[alive], dtype=np.float32))

        columns = [
            samples(array)
            for array in (rollout.observations, rollout.raw, rollout.log_prob, advantages, weights)
        ]
        epochs = [self._epoch(columns) for _ in range(self.config.num_epochs)]
        self.num_updates += 1

        steps = list(chain.from_iterable(epochs))
        with torch.no_grad():
            _, log_std = self.policy(columns[0])
            entropy = gaussian_entropy(log_std).mean().item()

        return {
            "train/policy_gradient_loss": _mean(steps, "policy_gradient_loss"),
            "train/entropy_loss": _mean(steps, "entropy_loss"),
            "train/loss": _mean(steps, "loss"),
            "train/approx_kl": _mean(epochs[-1], "approx_kl"),
            "train/clip_fraction": _mean(steps, "clip_fraction"),
            "train/gradient_norm": _mean(steps, "gradient_norm"),
            "train/std": torch.exp(log_std).mean().item(),
            "train/entropy": entropy,
            "train/entropy_per_cell": entropy / self.policy.action_size,
            "train/learning_rate": self.config.learning_rate,
            "train/clip_range": self.config.clip_range,
            "train/n_updates": float(self.num_updates * self.config.num_epochs),
        } | episode_metrics(rollout)

    def _epoch(self, columns: Sequence[torch.Tensor]) -> list[dict[str, float]]:
        """Passes once over the samples in random order. Returns the metrics of each minibatch."""
        order = torch.randperm(len(columns[0]), generator=self._generator)
        return [
            self._step(*(column[batch] for column in columns))
            for batch in order.split(self.config.batch_size)
        ]

    def _step(
        self,
        obs: torch.Tensor,
        raw: torch.Tensor,
        old_log_prob: torch.Tensor,
        advantages: torch.Tensor,
        weights: torch.Tensor,
    ) -> dict[str, float]:
        """Takes one step of Adam on one minibatch."""
        mean, log_std = self.policy(obs)
        log_prob = gaussian_log_prob(raw, mean, log_std)
        objective = clipped_surrogate(log_prob, old_log_prob, advantages, self.config.clip_range)
        policy_gradient_loss = -(weights * objective).mean()
        entropy_loss = -gaussian_entropy(log_std).mean()
        loss = policy_gradient_loss + self.config.entropy_coefficient * entropy_loss

        self._optimizer.zero_grad()
        loss.backward()
        bound = float("inf") if self.config.max_grad_norm is None else self.config.max_grad_norm
        gradient_norm = nn.utils.clip_grad_norm_(self.policy.parameters(), bound)
        self._optimizer.step()

        with torch.no_grad():
            outside = (torch.exp(log_prob - old_log_prob) - 1.0).abs() > self.config.clip_range
            return {
                "policy_gradient_loss": policy_gradient_loss.item(),
                "entropy_loss": entropy_loss.item(),
                "loss": loss.item(),
                "approx_kl": approximate_kl(log_prob, old_log_prob).item(),
                "clip_fraction": outside.float().mean().item(),
                "gradient_norm": gradient_norm.item(),
            }

    def _identity(self) -> dict[str, object]:
        """Returns the metadata that must be equal in a saved agent and in the one that loads it."""
        return {
            "agent": "jel",
            "observation_size": self.policy.observation_size,
            "action_size": self.policy.action_size,
            "config": config_json(self.config),
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes weights, Adam's moments and steps, the generator and the counter to a folder."""
        tensors = self._tensors() | optimizer_tensors(self._optimizer)
        save_state(path, "agent", tensors, {**self._identity(), "num_updates": self.num_updates})

    def _tensors(self) -> dict[str, torch.Tensor]:
        """Returns the weights and the generator's state."""
        weights = {f"policy.{name}": tensor for name, tensor in self.policy.tensors().items()}
        return weights | {"generator": self._generator.get_state()}

    def load(self, path: str | os.PathLike[str]) -> None:
        """Continues bitwise from the saved agent's state.

        Raises:
            ValueError: the folder is damaged, or its agent has other sizes, other fields or another
                configuration.
        """
        tensors, metadata = load_agent(
            path, self._identity(), ["num_updates"], self._tensors(), self._optimizer
        )
        self.policy.load_state_dict(
            {name: tensors[f"policy.{name}"] for name in self.policy.state_dict()}
        )
        restore_optimizer(self._optimizer, tensors)
        self._generator.set_state(tensors["generator"])
        self.num_updates = metadata["num_updates"]


def _mean(steps: Sequence[dict[str, float]], key: str) -> float:
    return float(np.mean([step[key] for step in steps]))
