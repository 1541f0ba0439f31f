"""Wraps stable-baselines3's PPO: networks, sampling and `train` are its own, episodes are ours.

Global random state is isolated, and checkpoints hold no pickles.

The defaults are as close to JEL as possible: whole episodes per update, Monte-Carlo returns
(gae_lambda 1), no normalization of advantages, no bound on the gradient, 2 x 64 tanh, log_std from
-0.5, 4 epochs of minibatches of 64. These differences remain:

- A critic takes the place of the group's mean.
- One log_std serves all observations.
- Actions are clipped, not squashed.
- Initial weights are orthogonal, and Adam's eps is 1e-5 (stable-baselines3's).

Every episode ends within its rollout, so no return is completed by the critic.

stable-baselines3 samples with torch's global generator and shuffles with numpy's. While it runs,
both hold the agent's states. Afterwards their previous states are restored.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from agents.base import (
    Decision,
    Rollout,
    check_rollout,
    config_json,
    episode_metrics,
    load_agent,
    optimizer_tensors,
    restore_optimizer,
)
from agents.returns import gae
from hpenv.policies.policy import as_observations
from hpenv.policies.sb3_mlp import SB3MLP
from hpenv.policies.store import save_state

try:
    from stable_baselines3 import PPO
    from stable_baselines3.common.buffers import RolloutBuffer
    from stable_baselines3.common.logger import Logger
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "agents.ppo needs stable-baselines3; install it with: pip install 'hpenv[agents]'",
        name=error.name,
    ) from error

#: Names of the counters in a saved agent's metadata.
COUNTERS = ("num_decisions", "num_updates")


@dataclass(frozen=True)
class PPOAgentConfig:
    """Hyperparameters of PPO. The defaults are JEL's where JEL has the same hyperparameter."""

    learning_rate: float = 3e-4  # of Adam
    gamma: float = 0.99  # discount per decision
    gae_lambda: float = 1.0  # 1: Monte-Carlo returns, as JEL (stable-baselines3: 0.95)
    clip_range: float = 0.2  # eps of the clipped objective
    entropy_coefficient: float = 0.0  # weight of the entropy bonus [reward per nat]
    value_coefficient: float = 0.5  # weight of the critic's squared error
    num_epochs: int = 4  # passes over a rollout
    batch_size: int = 64  # decisions per minibatch (the last one of an epoch may be smaller)
    normalize_advantage: bool = False  # standardize the advantages of each minibatch
    hidden_sizes: tuple[int, ...] = (64, 64)  # widths of the tanh layers of actor and critic
    initial_log_std: float = -0.5  # a standard deviation of 0.61 over positions
    max_grad_norm: float | None = None  # global L2 norm; None: unbounded (stable-baselines3: 0.5)

    def __post_init__(self) -> None:
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be > 0; got {self.learning_rate}")
        for name in ("gamma", "gae_lambda"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must be in [0, 1]; got {getattr(self, name)}")

        if not 0.0 < self.clip_range < 1.0:
            raise ValueError(f"clip_range must be between 0 and 1; got {self.clip_range}")
        for name in ("entropy_coefficient", "value_coefficient"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be >= 0; got {getattr(self, name)}")

        for name in ("num_epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1; got {getattr(self, name)}")

        if self.max_grad_norm is not None and not self.max_grad_norm > 0:
            raise ValueError(f"max_grad_norm must be > 0 or None; got {self.max_grad_norm}")


class PPOAgent:
    """A PPO agent.

    Args:
        observation_size: F.
        action_size: A.
        config: hyperparameters.
        seed: seed of the initial weights, the exploration and the order of minibatches.

    Attributes:
        model: stable-baselines3's PPO.
        num_updates: number of calls of `update` so far.
    """

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        config: PPOAgentConfig | None = None,
        seed: int = 0,
    ) -> None:
        self.config = PPOAgentConfig() if config is None else config
        self.observation_size = observation_size
        self.action_size = action_size
        torch_seed, numpy_seed = (
            int(word) for word in np.random.SeedSequence(seed).generate_state(2)
        )

        self._torch_state = torch.Generator().manual_seed(torch_seed).get_state()
        self._numpy_state: Any = np.random.RandomState(numpy_seed).get_state(legacy=False)
        self.num_updates = 0
        self.model = self._build()

    def _build(self) -> PPO:
        config = self.config
        # Without an env, as in PPO.load. The network needs only the spaces.
        model = PPO(
            "MlpPolicy",
            env=None,  # type: ignore[arg-type]
            learning_rate=config.learning_rate,
            batch_size=config.batch_size,
            n_epochs=config.num_epochs,
            gamma=config.gamma,
            gae_lambda=config.gae_lambda,
            clip_range=config.clip_range,
            normalize_advantage=config.normalize_advantage,
            ent_coef=config.entropy_coefficient,
            vf_coef=config.value_coefficient,
            max_grad_norm=math.inf if config.max_grad_norm is None else config.max_grad_norm,
            policy_kwargs={
                "net_arch": list(config.hidden_sizes),
                "activation_fn": torch.nn.Tanh,
                "log_std_init": config.initial_log_std,
            },
            seed=None,  # a number would seed the global generators
            device="cpu",
            _init_setup_model=False,
        )

        model.observation_space = spaces.Box(-np.inf, np.inf, (self.observation_size,), np.float32)
        model.action_space = spaces.Box(-1.0, 1.0, (self.action_size,), np.float32)
        model.n_envs = 1

        with self._private_generators():
            model._setup_model()

        model.policy.set_training_mode(False)
        model.set_logger(Logger(folder=None, output_formats=[]))
        return model

    @contextlib.contextmanager
    def _private_generators(self) -> Iterator[None]:
        """Puts the agent's states into the global generators during the block."""
        outer_torch = torch.get_rng_state()
        outer_numpy = np.random.get_state(legacy=False)  # noqa: NPY002

        torch.set_rng_state(self._torch_state)
        np.random.set_state(self._numpy_state)  # noqa: NPY002
        try:
            yield
        finally:
            self._torch_state = torch.get_rng_state()
            self._numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002
            torch.set_rng_state(outer_torch)
            np.random.set_state(outer_numpy)  # noqa: NPY002

    @property
    def policy(self) -> SB3MLP:
        """A copy of the current actor."""
        actor = self.model.policy
        return SB3MLP.from_layers(actor.mlp_extractor.policy_net, actor.action_net, actor.log_std)

    @torch.no_grad()
    def sample(self, observations: np.ndarray) -> Decision:
        """Samples raw ~ N(mean, std) and returns the action clip(raw, -1, 1), at (N, F)."""
        inputs = torch.from_numpy(as_observations(observations, self.observation_size))
        with self._private_generators():
            raw, _, log_prob = self.model.policy(inputs)
        return Decision(raw.clamp(-1.0, 1.0).numpy(), raw.numpy(), log_prob.numpy())

    def update(self, rollout: Rollout) -> dict[str, float]:
        """Learns from whole episodes with stable-baselines3's `PPO.train`.

        Returns:
            The metrics that stable-baselines3 recorded under `train/`, and mean return and length.

        Raises:
            ValueError: the rollout's shapes disagree, or it holds a NaN or no decision at all.
        """
        check_rollout(rollout, self.observation_size, self.action_size)
        model, alive = self.model, rollout.alive
        model.rollout_buffer = self._buffer(rollout)

        with self._private_generators():
            model.train()
        model.policy.set_training_mode(False)
        model.num_timesteps += int(alive.sum())
        self.num_updates += 1

        recorded = {key: float(value) for key, value in model.logger.name_to_value.items()}
        metrics = {key: value for key, value in recorded.items() if math.isfinite(value)}
        return metrics | episode_metrics(rollout)

    def _buffer(self, rollout: Rollout) -> RolloutBuffer:
        """Returns the decisions that were taken, run after run, as stable-baselines3's buffer."""
        alive, config = rollout.alive, self.config
        shown = np.where(alive[..., None], rollout.observations, 0.0).astype(np.float32)
        with torch.no_grad():
            values = self.model.policy.predict_values(torch.from_numpy(shown).flatten(0, 1))
        predicted = values.numpy().reshape(alive.shape)

        advantages = gae(rollout.rewards, predicted, alive, config.gamma, config.gae_lambda)
        columns = {
            "observations": shown,
            "actions": rollout.raw,
            "values": predicted,
            "log_probs": rollout.log_prob,
            "advantages": advantages,
            "returns": advantages + predicted,
        }

        buffer = RolloutBuffer(
            int(alive.sum()),
            self.model.observation_space,
            self.model.action_space,
            device="cpu",
            gae_lambda=config.gae_lambda,
            gamma=config.gamma,
            n_envs=1,
        )
        for name, array in columns.items():
            taken = array.swapaxes(0, 1)[alive.T]  # (M, ...)
            setattr(buffer, name, taken[:, None].astype(np.float32))
        buffer.full = True
        return buffer

    def _identity(self) -> dict[str, object]:
        """Returns the metadata that must be equal in a saved agent and in the one that loads it."""
        return {
            "agent": "ppo",
            "observation_size": self.observation_size,
            "action_size": self.action_size,
            "config": config_json(self.config),
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes actor, critic, Adam's moments and steps, generators and counters to a folder."""
        tensors = self._tensors() | optimizer_tensors(self.model.policy.optimizer)
        counters = (self.model.num_timesteps, self.num_updates)
        metadata = {**self._identity(), **dict(zip(COUNTERS, counters, strict=True))}
        save_state(path, "agent", tensors, metadata)

    def _tensors(self) -> dict[str, torch.Tensor]:
        """Returns the weights of actor and critic, and the states of both generators."""
        weights = {
            f"policy.{name}": tensor for name, tensor in self.model.policy.state_dict().items()
        }
        numpy_state = self._numpy_state
        place = [int(numpy_state["state"]["pos"]), int(numpy_state["has_gauss"])]
        return weights | {
            "torch_generator": self._torch_state,
            "numpy_generator": torch.from_numpy(numpy_state["state"]["key"].astype(np.int64)),
            "numpy_generator.place": torch.tensor(place),
            "numpy_generator.gauss": torch.tensor(float(numpy_state["gauss"]), dtype=torch.float64),
        }

    def load(self, path: str | os.PathLike[str]) -> None:
        """Continues bitwise from the saved agent's state, given the same episodes.

        Raises:
            ValueError: the folder is damaged, or its agent has other sizes, other fields or another
                configuration.
        """
        policy = self.model.policy
        tensors, metadata = load_agent(
            path, self._identity(), COUNTERS, self._tensors(), policy.optimizer
        )
        policy.load_state_dict({name: tensors[f"policy.{name}"] for name in policy.state_dict()})
        restore_optimizer(policy.optimizer, tensors)

        self._torch_state = tensors["torch_generator"].clone()
        pos, has_gauss = tensors["numpy_generator.place"].tolist()
        self._numpy_state = {
            "bit_generator": "MT19937",
            "state": {"key": tensors["numpy_generator"].numpy().astype(np.uint32), "pos": pos},
            "has_gauss": has_gauss,
            "gauss": tensors["numpy_generator.gauss"].item(),
        }

        self.model.num_timesteps, self.num_updates = (metadata[name] for name in COUNTERS)
        self.model._n_updates = self.num_updates * self.config.num_epochs
