"""stable-baselines3's own PPO, handed the adapter's VecEnv: its randomness kept at home, its state
out of pickles.

By default as close to JEL as it goes: whole episodes per update, Monte-Carlo returns (gae_lambda
1), no normalization of advantages, no bound on the gradient, 2 x 64 tanh, log_std from -0.5, 4
epochs of minibatches of 64. What stays different: a critic in place of the group's mean; one
log_std for all observations; actions clipped, not squashed; orthogonal initial weights and Adam's
eps of 1e-5 (stable-baselines3's); a row whose run diverges starts another episode within the
rollout, whose return is completed by the critic.

stable-baselines3 samples with torch's global generator and shuffles with numpy's. Both are put
aside while it runs, in exchange for states that belong to the agent, and put back afterwards.
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

from agents.base import config_json, load_trained, optimizer_tensors, restore_optimizer
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

#: Of an episode (JEL, table 2), where nobody says how many there are.
DECISIONS = 12

#: What a saved agent has counted.
COUNTERS = ("num_timesteps", "num_iterations", "n_updates")

#: Wall-clock readings: left out of what `learn` returns, which is the same in every run of the same
#: seed.
CLOCKS = ("time/fps", "time/time_elapsed")


@dataclass(frozen=True)
class PPOAgentConfig:
    """Hyperparameters of PPO; the defaults are JEL's wherever PPO has them."""

    learning_rate: float = 3e-4  # of Adam
    gamma: float = 0.99  # discount per decision
    gae_lambda: float = 1.0  # 1: Monte-Carlo returns, as JEL's; stable-baselines3's default is 0.95
    clip_range: float = 0.2  # eps of the clipped objective
    entropy_coefficient: float = 0.0  # weight of the entropy bonus [reward per nat]
    value_coefficient: float = 0.5  # weight of the critic's squared error
    num_epochs: int = 4  # passes over a rollout
    batch_size: int = 64  # decisions per minibatch; the last one of an epoch may be smaller
    num_decisions: int | None = (
        None  # of an episode, and of every row between two updates; None: JEL's 12
    )
    normalize_advantage: bool = False  # standardize the advantages of each minibatch
    hidden_sizes: tuple[int, ...] = (
        64,
        64,
    )  # widths of the tanh layers of the actor, and of the critic
    initial_log_std: float = -0.5  # a standard deviation of 0.61 over positions
    max_grad_norm: float | None = (
        None  # global L2 norm; None: unbounded; stable-baselines3's default is 0.5
    )

    def __post_init__(self) -> None:
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate {self.learning_rate}; expected a positive number")
        for name in ("gamma", "gae_lambda"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} {getattr(self, name)}; expected a number in [0, 1]")
        if not 0.0 < self.clip_range < 1.0:
            raise ValueError(f"clip_range {self.clip_range}; expected a number between 0 and 1")
        for name in ("entropy_coefficient", "value_coefficient"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} {getattr(self, name)}; expected 0 or more")
        for name in ("num_epochs", "batch_size", "num_decisions"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} {value}; expected at least 1")
        if self.max_grad_norm is not None and not self.max_grad_norm > 0:
            raise ValueError(
                f"max_grad_norm {self.max_grad_norm}; expected a positive number or None"
            )


class LastValues(KVWriter):
    """Output format of stable-baselines3's logger that keeps the last value of every tag."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def write(
        self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0
    ) -> None:
        """Takes over the finite numbers of one dump."""
        numbers = {key: float(value) for key, value in key_values.items() if key not in CLOCKS}
        self.values.update({key: value for key, value in numbers.items() if math.isfinite(value)})

    def close(self) -> None:
        """Nothing to close."""


class PPOAgent:
    """PPO. It owns its loop: in place of `act` and `update` it has `learn`.

    Args:
        observation_size: F.
        action_size: A.
        config: hyperparameters.
        seed: of the initial weights, the exploration and the order of minibatches.

    Attributes:
        model: stable-baselines3's PPO.
        num_iterations: rollouts learnt from so far; stable-baselines3's own count begins anew at
            every `learn`.
        num_decisions: of an episode, and of every row between two updates.
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
        # Without an env, as PPO.load does: the network needs the spaces alone, and any number of
        # rows can be learnt on.
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
        with self._own_generators():
            model._setup_model()
        return model

    @contextlib.contextmanager
    def _own_generators(self) -> Iterator[None]:
        """Puts the agent's states into the global generators for a while, and everything back afterwards."""
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
        """The actor as it stands, as a copy."""
        actor = self.model.policy
        return SB3MLP.from_layers(actor.mlp_extractor.policy_net, actor.action_net, actor.log_std)

    @property
    def num_decisions_taken(self) -> int:
        """Decisions learnt from so far, all rows counted (stable-baselines3's num_timesteps)."""
        return self.model.num_timesteps

    def set_logger(self, logger: Logger) -> None:
        """Lets stable-baselines3 write its own metrics to this logger's formats from now on.

        Args:
            logger: from `stable_baselines3.common.logger.configure`, or with other formats; the
                caller closes it.
        """
        self.model.set_logger(Logger(logger.get_dir(), [*logger.output_formats, self._last_values]))

    def learn(self, vec_env: VecEnv, num_episodes: int) -> dict[str, float]:
        """Learns from episodes that begin now, an update after every `vec_env.num_envs` of them.

        May be called again and again to continue; every call resets the env first, so that between
        two calls there is nothing to remember of it but its seeds (`vec_env.seed(s)` before the
        call).

        Args:
            vec_env: population as a VecEnv (`hpenv.integrations.sb3`); actions in [-1, 1].
            num_episodes: a multiple of the number of rows.

        Returns:
            The last value of every metric stable-baselines3 recorded in this call, but for
            wall-clock times and NaN. rollout/ep_rew_mean and rollout/ep_len_mean are over this
            call's episodes (the last 100 at most).

        Raises:
            ValueError: the spaces do not fit the agent, or the number of episodes the rows.
        """
        self._check(vec_env, num_episodes)
        model, config = self.model, self.config
        model.observation_space, model.action_space = (
            vec_env.observation_space,
            vec_env.action_space,
        )
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
        with self._own_generators():
            model.learn(num_episodes * self.num_decisions, reset_num_timesteps=False)
        # learn dumps before it trains: what the last update recorded is still to be written.
        model.logger.dump(model.num_timesteps)
        self.num_iterations += num_episodes // vec_env.num_envs
        return self._last_values.values | {"time/iterations": float(self.num_iterations)}

    def _check(self, vec_env: VecEnv, num_episodes: int) -> None:
        if vec_env.observation_space.shape != (self.observation_size,):
            raise ValueError(
                f"observations {vec_env.observation_space}; expected shape ({self.observation_size},)"
            )
        if vec_env.action_space != self.model.policy.action_space:
            raise ValueError(
                f"actions {vec_env.action_space}; expected {self.model.policy.action_space}"
            )
        if num_episodes < 1 or num_episodes % vec_env.num_envs:
            raise ValueError(
                f"num_episodes {num_episodes}; expected a multiple of the {vec_env.num_envs} rows"
            )

    def _identity(self) -> dict[str, object]:
        """What a saved agent must agree in with the one that loads it."""
        return {
            "agent": "ppo",
            "observation_size": self.observation_size,
            "action_size": self.action_size,
            "config": config_json(self.config),
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes actor, critic, Adam's moments and steps, both generators and the counters to a folder."""
        tensors = self._tensors() | optimizer_tensors(self.model.policy.optimizer)
        counters = (self.model.num_timesteps, self.num_iterations, self.model._n_updates)
        save_state(
            path,
            "agent",
            tensors,
            {**self._identity(), **dict(zip(COUNTERS, counters, strict=True))},
        )

    def _tensors(self) -> dict[str, torch.Tensor]:
        """Weights of actor and critic, and both generators."""
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
        """Continues bitwise where the saved agent stood, given the same episodes.

        Raises:
            ValueError: the folder is damaged, or its agent has other sizes, fields or another
                configuration.
        """
        policy = self.model.policy
        tensors, metadata = load_trained(
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
