"""Wraps stable-baselines3's PPO. Global random state is isolated, and checkpoints hold no pickles.

The defaults are as close to JEL as possible: whole episodes per update, Monte-Carlo returns
(gae_lambda 1), no normalization of advantages, no bound on the gradient, 2 x 64 tanh, log_std from
-0.5, 4 epochs of minibatches of 64. These differences remain:

- A critic takes the place of the group's mean.
- One log_std serves all observations.
- Actions are clipped, not squashed.
- Initial weights are orthogonal, and Adam's eps is 1e-5 (stable-baselines3's).
- A row whose run diverges starts another episode within the rollout. The critic completes the
  return of that episode.

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

from agents.base import config_json, load_agent, optimizer_tensors, restore_optimizer
from hpenv.policies.sb3_mlp import SB3MLP
from hpenv.policies.store import save_state

try:
    from stable_baselines3 import PPO
    from stable_baselines3.common.buffers import RolloutBuffer
    from stable_baselines3.common.logger import KVWriter, Logger
    from stable_baselines3.common.vec_env import VecEnv
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "agents.ppo needs stable-baselines3; install it with: pip install 'hpenv[agents]'",
        name=error.name,
    ) from error

#: Default number of decisions of an episode (JEL, table 2).
DECISIONS = 12

#: Names of the counters in a saved agent's metadata.
COUNTERS = ("num_timesteps", "num_iterations", "n_updates")

#: Wall-clock metrics. `learn` leaves them out, so that it returns the same numbers for a seed.
CLOCKS = ("time/fps", "time/time_elapsed")


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
    # decisions of an episode, and of every row between two updates; None: 12, as JEL
    num_decisions: int | None = None
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

        for name in ("num_epochs", "batch_size", "num_decisions"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be >= 1; got {value}")

        if self.max_grad_norm is not None and not self.max_grad_norm > 0:
            raise ValueError(f"max_grad_norm must be > 0 or None; got {self.max_grad_norm}")


class LastValues(KVWriter):
    """Output format for stable-baselines3's logger. It keeps the last value of every tag."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def write(
        self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0
    ) -> None:
        """Stores the finite numbers of one dump, without wall-clock metrics."""
        numbers = {key: float(value) for key, value in key_values.items() if key not in CLOCKS}
        self.values.update({key: value for key, value in numbers.items() if math.isfinite(value)})

    def close(self) -> None:
        """Does nothing, because no file is open."""


class PPOAgent:
    """A PPO agent. It has `learn` in place of `act` and `update`, because it runs the episodes.

    Args:
        observation_size: F.
        action_size: A.
        config: hyperparameters.
        seed: seed of the initial weights, the exploration and the order of minibatches.

    Attributes:
        model: stable-baselines3's PPO.
        num_iterations: number of rollouts in all updates so far. stable-baselines3's counter
            starts again at every `learn`.
        num_decisions: decisions of an episode, and of every row between two updates.
    """

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        config: PPOAgentConfig | None = None,
        seed: int = 0,
    ) -> None:
        self.config = PPOAgentConfig() if config is None else config
        self.num_decisions = self.config.num_decisions or DECISIONS
        self.observation_size = observation_size
        self.action_size = action_size
        torch_seed, numpy_seed = (
            int(word) for word in np.random.SeedSequence(seed).generate_state(2)
        )

        self._torch_state = torch.Generator().manual_seed(torch_seed).get_state()
        self._numpy_state: Any = np.random.RandomState(numpy_seed).get_state(legacy=False)

        self._last_values = LastValues()
        self.num_iterations = 0
        self.model = self._build()
        self.set_logger(Logger(folder=None, output_formats=[]))

    def _build(self) -> PPO:
        config = self.config
        # Without an env, as in PPO.load. The network needs only the spaces, and `learn` may use any
        # number of rows.
        model = PPO(
            "MlpPolicy",
            env=None,  # type: ignore[arg-type]
            learning_rate=config.learning_rate,
            n_steps=self.num_decisions,
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

    @property
    def num_taken_decisions(self) -> int:
        """Number of decisions in all updates so far, over all rows (num_timesteps)."""
        return self.model.num_timesteps

    def set_logger(self, logger: Logger) -> None:
        """Adds the output formats of a logger to those of stable-baselines3's metrics.

        Args:
            logger: from `stable_baselines3.common.logger.configure`, or with other formats. The
                caller closes it.
        """
        self.model.set_logger(Logger(logger.get_dir(), [*logger.output_formats, self._last_values]))

    def learn(self, vec_env: VecEnv, num_episodes: int) -> dict[str, float]:
        """Learns from new episodes, with an update after every `vec_env.num_envs` of them.

        A further call continues the training. Every call resets the env first, so its seeds are the
        only state that remains between calls (`vec_env.seed(s)` before the call).

        Args:
            vec_env: population as a VecEnv (`hpenv.integrations.sb3`), with actions in [-1, 1].
            num_episodes: a multiple of the number of rows.

        Returns:
            The last value of every metric that stable-baselines3 recorded in this call, except
            wall-clock times and NaN. rollout/ep_rew_mean and rollout/ep_len_mean are over this
            call's episodes (the last 100 at most).

        Raises:
            ValueError: the spaces do not fit the agent, or num_episodes is not a positive multiple
                of the number of rows.
        """
        self._check(vec_env, num_episodes)
        model, config = self.model, self.config
        model.observation_space = vec_env.observation_space
        model.action_space = vec_env.action_space
        model.n_envs = vec_env.num_envs
        model.rollout_buffer = RolloutBuffer(
            self.num_decisions,
            model.observation_space,
            model.action_space,
            device="cpu",
            gae_lambda=config.gae_lambda,
            gamma=config.gamma,
            n_envs=model.n_envs,
        )
        model.set_env(vec_env)  # forces a reset
        model.ep_info_buffer = None
        self._last_values.values.clear()

        with self._private_generators():
            model.learn(num_episodes * self.num_decisions, reset_num_timesteps=False)

        # `model.learn` dumps before it trains, so the last update's metrics are not written yet.
        model.logger.dump(model.num_timesteps)

        self.num_iterations += num_episodes // vec_env.num_envs
        return self._last_values.values | {"time/iterations": float(self.num_iterations)}

    def _check(self, vec_env: VecEnv, num_episodes: int) -> None:
        if vec_env.observation_space.shape != (self.observation_size,):
            raise ValueError(
                f"vec_env.observation_space must have shape ({self.observation_size},); "
                f"got {vec_env.observation_space}"
            )
        if vec_env.action_space != self.model.policy.action_space:
            raise ValueError(
                f"vec_env.action_space must be {self.model.policy.action_space}; "
                f"got {vec_env.action_space}"
            )
        if num_episodes < 1 or num_episodes % vec_env.num_envs:
            raise ValueError(
                f"num_episodes must be a positive multiple of the {vec_env.num_envs} rows; "
                f"got {num_episodes}"
            )

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
        counters = (self.model.num_timesteps, self.num_iterations, self.model._n_updates)
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

        self.model.num_timesteps, self.num_iterations, self.model._n_updates = (
            metadata[name] for name in COUNTERS
        )
