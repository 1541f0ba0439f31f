"""JEL: a Gaussian policy trained with PPO's clipped objective on group-relative advantages, no
critic.

Per update: N episodes are N runs of the same task; a decision's advantage is its discounted return
minus the mean return of the runs at the same decision; 4 epochs over the samples in minibatches of
64.

Departs from the paper (Lee & Ndubuaku, "Just Enough Learning", section 3.5 and table 2) where it is
silent: the log_std head starts with zero weights (`hpenv.policies.gaussian_mlp`); the last
minibatch of an epoch may be smaller (96 samples are 64 + 32); an episode that diverged stays in its
column and its missing decisions count in no baseline and no loss; the gradient norm is unbounded
unless asked for; Adam is torch's (betas 0.9 and 0.999, eps 1e-8).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import nn

from agents import returns
from agents.base import (
    BoolArray,
    Decision,
    FloatArray,
    Rollout,
    check_rollout,
    config_json,
    load_trained,
    optimizer_tensors,
    restore_optimizer,
)
from agents.losses import approximate_kl, clipped_surrogate, gaussian_entropy, gaussian_log_prob
from hpenv.policies.gaussian_mlp import GaussianMLP
from hpenv.policies.policy import as_observations
from hpenv.policies.store import save_state

Normalization = Literal[
    "none", "per_step_std", "batch_std", "grpo"
]  # the command line offers these
Advantages = tuple[FloatArray, FloatArray]  # advantages and weights of the decisions, (T, N) each


def _none(rewards: FloatArray, alive: BoolArray, gamma: float) -> Advantages:
    return returns.centered_returns(
        returns.discounted_returns(rewards, alive, gamma), alive
    ), np.ones(alive.shape)


def _per_step_std(rewards: FloatArray, alive: BoolArray, gamma: float) -> Advantages:
    return returns.per_step_standardized(
        returns.discounted_returns(rewards, alive, gamma), alive
    ), np.ones(alive.shape)


def _batch_std(rewards: FloatArray, alive: BoolArray, gamma: float) -> Advantages:
    advantages, weights = _none(rewards, alive, gamma)
    return returns.batch_standardized(advantages, alive), weights


def _grpo(rewards: FloatArray, alive: BoolArray, gamma: float) -> Advantages:
    return returns.grpo_outcome(rewards, alive), returns.episode_weights(alive)


#: (rewards, alive, gamma) -> advantages and weights. `none` is JEL, `grpo` what it calls standard
#: GRPO; the two between bring back a standard deviation alone, per decision or, as
#: stable-baselines3's PPO does, per batch.
NORMALIZATIONS: dict[Normalization, Callable[[FloatArray, BoolArray, float], Advantages]] = {
    "none": _none,
    "per_step_std": _per_step_std,
    "batch_std": _batch_std,
    "grpo": _grpo,
}


@dataclass(frozen=True)
class JELAgentConfig:
    """Hyperparameters of JEL; the defaults are the paper's (table 2)."""

    learning_rate: float = 3e-4  # of Adam
    gamma: float = 0.99  # discount per decision
    clip_range: float = 0.2  # eps of the clipped objective
    entropy_coefficient: float = 0.0  # weight of the entropy bonus [reward per nat]
    num_epochs: int = 4  # passes over a rollout
    batch_size: int = 64  # decisions per minibatch
    normalize: Normalization = "none"  # what the advantages are divided by: see NORMALIZATIONS
    hidden_sizes: tuple[int, ...] = (64, 64)  # widths of the policy's tanh layers
    initial_log_std: float = -0.5  # a standard deviation of 0.61 over raw actions
    log_std_bounds: tuple[float, float] = (-5.0, 2.0)  # log_std is clamped to these
    max_grad_norm: float | None = None  # global L2 norm; None: unbounded

    def __post_init__(self) -> None:
        if self.normalize not in NORMALIZATIONS:
            raise ValueError(
                f"unknown normalize {self.normalize!r}; expected one of {list(NORMALIZATIONS)}"
            )
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate {self.learning_rate}; expected a positive number")
        if not 0.0 <= self.gamma <= 1.0:
            raise ValueError(f"gamma {self.gamma}; expected a number in [0, 1]")
        if not 0.0 < self.clip_range < 1.0:
            raise ValueError(f"clip_range {self.clip_range}; expected a number between 0 and 1")
        if not self.entropy_coefficient >= 0:
            raise ValueError(f"entropy_coefficient {self.entropy_coefficient}; expected 0 or more")
        if self.num_epochs < 1 or self.batch_size < 1:
            raise ValueError(
                f"num_epochs {self.num_epochs}, batch_size {self.batch_size}; expected at least 1 each"
            )
        if self.max_grad_norm is not None and not self.max_grad_norm > 0:
            raise ValueError(
                f"max_grad_norm {self.max_grad_norm}; expected a positive number or None"
            )


class JELAgent:
    """The JEL controller. All it draws comes from generators of its own.

    Args:
        observation_size: F.
        action_size: A.
        config: hyperparameters.
        seed: of the initial weights, the exploration and the order of minibatches.

    Attributes:
        policy: the GaussianMLP being trained.
        num_updates: calls of `update` so far.
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
        self.num_updates = 0
        self._optimizer = torch.optim.Adam(self.policy.parameters(), lr=self.config.learning_rate)
        self._generator = torch.Generator().manual_seed(draws_seed)

    @torch.no_grad()
    def act(self, obs: np.ndarray, deterministic: bool = False) -> Decision:
        """Draws raw ~ N(mean, std) and decides tanh(raw).

        Args:
            obs: observations, (N, F).
            deterministic: raw is the mean, and the generator is not advanced.
        """
        mean, log_std = self.policy(
            torch.from_numpy(as_observations(obs, self.policy.observation_size))
        )
        raw = mean
        if not deterministic:
            raw = mean + torch.exp(log_std) * torch.randn(mean.shape, generator=self._generator)
        return Decision(
            torch.tanh(raw).numpy(), raw.numpy(), gaussian_log_prob(raw, mean, log_std).numpy()
        )

    def update(self, rollout: Rollout) -> dict[str, float]:
        """One update from the rollout of N episodes.

        Returns:
            Metrics under stable-baselines3's tags, with its meanings: policy_gradient_loss,
            entropy_loss, loss, clip_fraction are means over all minibatches (its `loss` is that of
            the last one), approx_kl over those of the last epoch, n_updates counts epochs. Beside
            them, after the update: train/entropy, summed over the cells, train/entropy_per_cell
                [nats], train/std; and train/gradient_norm before any bound.

        Raises:
            ValueError: the rollout's shapes disagree, or it holds a NaN or no decision at all.
        """
        check_rollout(rollout, self.policy.observation_size, self.policy.action_size)
        alive = rollout.alive
        rewards = np.asarray(rollout.rewards, dtype=np.float64)
        advantages, weights = NORMALIZATIONS[self.config.normalize](
            rewards, alive, self.config.gamma
        )

        def samples(array: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(
                np.ascontiguousarray(array[alive], dtype=np.float32)
            )  # (M, ...)

        columns = [
            samples(array)
            for array in (rollout.observations, rollout.raw, rollout.log_prob, advantages, weights)
        ]
        epochs = [self._epoch(columns) for _ in range(self.config.num_epochs)]
        self.num_updates += 1

        steps = [step for epoch in epochs for step in epoch]
        with torch.no_grad():
            _, log_std = self.policy(columns[0])
            entropy = gaussian_entropy(log_std).mean().item()
        lengths = alive.sum(axis=0)
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
            "rollout/ep_rew_mean": float(
                np.where(alive, rewards, 0.0).sum(axis=0)[lengths > 0].mean()
            ),
            "rollout/ep_len_mean": float(lengths[lengths > 0].mean()),
        }

    def _epoch(self, columns: Sequence[torch.Tensor]) -> list[dict[str, float]]:
        """Passes once over the samples in a drawn order; the numbers of each minibatch."""
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
        """One step of Adam on one minibatch."""
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
        """What a saved agent must agree in with the one that loads it."""
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
        """Weights and generator."""
        weights = {f"policy.{name}": tensor for name, tensor in self.policy.tensors().items()}
        return weights | {"generator": self._generator.get_state()}

    def load(self, path: str | os.PathLike[str]) -> None:
        """Continues bitwise where the saved agent stood.

        Raises:
            ValueError: the folder is damaged, or its agent has other sizes, fields or another
                configuration.
        """
        tensors, metadata = load_trained(
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
