"""The actor of a stable-baselines3 MlpPolicy as a policy that does not need stable-baselines3."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import nn

from hpenv.arrays import Float32Array
from hpenv.policies.controller import ControllerSpec
from hpenv.policies.gaussian_mlp import check_sizes
from hpenv.policies.policy import as_observations
from hpenv.policies.sb3_actor import AS_IT_IS, Normalization, actor_layers, statistics_of

#: Name -> layer between two linear ones.
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "elu": nn.ELU,
    "leaky_relu": nn.LeakyReLU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}
#: How positions are held in [-1, 1]: PPO and A2C clip the mean, SAC, TD3 and DDPG squash it.
OUTPUTS = ("clip", "tanh")


class SB3MLP(nn.Module):
    """MLP from an observation to positions, with the weights of a model of stable-baselines3.

    position = clip(mean(obs), -1, 1) of PPO and A2C, tanh(mean(obs)) of SAC, TD3 and DDPG. All
    weights are 0 until they are loaded, because stable-baselines3 trains them.

    Args:
        observation_size: F.
        action_size: A.
        hidden_sizes: width of each hidden layer of the actor.
        activation: key of ACTIVATIONS.
        output: `clip` or `tanh`.
        normalization: epsilon and clip of VecNormalize, as `{"epsilon": 1e-8, "clip": 10.0}`.
            None: observations are not normalized.

    Attributes:
        log_std: log standard deviations of PPO's or A2C's exploration, (A,). None of a squashed
            actor.

    Raises:
        ValueError: a size is below 1, or a name is unknown.

    References:
        stable_baselines3.common.policies.ActorCriticPolicy with a DiagGaussianDistribution,
        stable_baselines3.sac.policies.Actor, stable_baselines3.td3.policies.Actor,
        stable_baselines3.common.vec_env.VecNormalize (2.9).
    """

    spec = ControllerSpec()

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        hidden_sizes: Sequence[int] = (64, 64),
        activation: str = "tanh",
        output: str = "clip",
        normalization: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        check_sizes(observation_size, action_size, hidden_sizes)
        for name, value, table in (
            ("activation", activation, sorted(ACTIVATIONS)),
            ("output", output, list(OUTPUTS)),
        ):
            if value not in table:
                raise ValueError(f"unknown {name} {value!r}; expected one of {table}")
        if normalization is not None and set(normalization) != {"epsilon", "clip"}:
            raise ValueError(
                f"normalization must have the keys epsilon and clip; got {normalization!r}"
            )

        self.observation_size = observation_size
        self.action_size = action_size
        self.hidden_sizes = tuple(hidden_sizes)
        self.activation, self.output = activation, output
        self.normalization = None if normalization is None else dict(normalization)

        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise([observation_size, *hidden_sizes]):
            # skip_init: the constructor of Linear would draw from torch's global generator.
            layers += [nn.utils.skip_init(nn.Linear, inputs, outputs), ACTIVATIONS[activation]()]
        self.body = nn.Sequential(*layers)
        last = [observation_size, *hidden_sizes][-1]
        self.head = nn.utils.skip_init(nn.Linear, last, action_size)
        # None stands in no state_dict.
        self.log_std = nn.Parameter(torch.empty(action_size)) if output == "clip" else None
        of_column = None if normalization is None else torch.zeros(observation_size).double()
        self.observation_mean: torch.Tensor
        self.observation_var: torch.Tensor
        self.register_buffer("observation_mean", of_column)
        self.register_buffer("observation_var", None if of_column is None else of_column + 1.0)

        with torch.no_grad():
            for parameter in self.parameters():
                parameter.zero_()

    @classmethod
    def from_layers(
        cls,
        body: nn.Module,
        head: nn.Module,
        log_std: torch.Tensor | None,
        activation: str = "tanh",
        normalization: Normalization | None = None,
    ) -> Self:
        """Returns a policy with copies of these weights.

        Args:
            body: linear layers and activations in turn, from observations (..., F) to features.
            head: linear layer from features to means (..., A).
            log_std: log standard deviations, (A,). None of an actor whose mean is squashed.
            activation: key of ACTIVATIONS.
            normalization: statistics of the observations.
        """
        tensors = {f"body.{name}": tensor for name, tensor in body.state_dict().items()}
        tensors |= {f"head.{name}": tensor for name, tensor in head.state_dict().items()}
        weights = [tensor for name, tensor in tensors.items() if name.endswith("weight")]
        if log_std is not None:
            tensors["log_std"] = log_std.detach()

        numbers = None
        if normalization is not None:
            numbers = {"epsilon": normalization.epsilon, "clip": normalization.clip}
            tensors["observation_mean"] = normalization.mean
            tensors["observation_var"] = normalization.var

        policy = cls(
            weights[0].shape[1],
            weights[-1].shape[0],
            [weight.shape[0] for weight in weights[:-1]],
            activation,
            "tanh" if log_std is None else "clip",
            numbers,
        )
        policy.load_state_dict(tensors)
        return policy

    @classmethod
    def from_sb3(
        cls,
        model: Any,
        normalizer: Any | None = None,
        spec: ControllerSpec | None = None,
    ) -> Self:
        """Returns a copy of a model's actor, which acts as `predict(deterministic=True)` does.

        They are equal up to the rounding of float32. Observations that VecNormalize normalizes are
        normalized by the policy, so it takes those of the env itself.

        Args:
            model: PPO, A2C, SAC, TD3 or DDPG with an MlpPolicy, for actions in [-1, 1].
            normalizer: statistics of the training. None: those of the model's env. A model that was
                loaded without its env has none, so give it the loaded VecNormalize.
            spec: what the policy asks of an environment. None: what the id has. Of a model that
                was trained with other channels or columns: `hpenv.benchmark.environments.spec_of`.

        Raises:
            ValueError: for another algorithm, policy, network or action space.

        Example:
            >>> save_policy(SB3MLP.from_sb3(model), "policy")  # doctest: +SKIP
        """
        body, head, log_std = actor_layers(model)
        names = {kind: name for name, kind in ACTIVATIONS.items()}
        kinds = {type(layer) for layer in body} - {nn.Linear}
        if len(kinds) > 1 or kinds - set(names):
            found = sorted(kind.__name__ for kind in kinds)
            raise ValueError(
                f"the actor's hidden layers must have one of {sorted(ACTIVATIONS)} between them; "
                f"got {found}{AS_IT_IS}"
            )

        activation = names[kinds.pop()] if kinds else "tanh"
        statistics = statistics_of(
            model.get_vec_normalize_env() if normalizer is None else normalizer
        )
        policy = cls.from_layers(body, head, log_std, activation, statistics)
        if spec is not None:
            policy.spec = spec
        return policy

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        """Returns means before the clip or the tanh, (..., A), at normalized obs (..., F)."""
        return self.head(self.body(obs))

    @torch.no_grad()
    def act(self, observations: np.ndarray) -> Float32Array:
        """Returns positions in [-1, 1], (N, A) float32, at observations (N, F)."""
        obs = torch.from_numpy(as_observations(observations, self.observation_size))
        if self.normalization is not None:
            scale = (self.observation_var + self.normalization["epsilon"]).sqrt()
            limit = self.normalization["clip"]
            # In float64, as numpy has it.
            obs = ((obs - self.observation_mean) / scale).clamp(-limit, limit).float()
        mean = self(obs)
        return (mean.clamp(-1.0, 1.0) if self.output == "clip" else mean.tanh()).numpy()

    def arguments(self) -> dict[str, Any]:
        """Returns the constructor's arguments, JSON-able.

        Those that folders of earlier versions do not have are left out at their defaults.
        """
        sizes = {
            "observation_size": self.observation_size,
            "action_size": self.action_size,
            "hidden_sizes": list(self.hidden_sizes),
        }
        later: dict[str, tuple[Any, Any]] = {
            "activation": (self.activation, "tanh"),
            "output": (self.output, "clip"),
            "normalization": (self.normalization, None),
        }
        return sizes | {name: value for name, (value, usual) in later.items() if value != usual}

    def tensors(self) -> dict[str, torch.Tensor]:
        """Returns copies of the weights, log_std and statistics."""
        return {name: tensor.detach().clone() for name, tensor in self.state_dict().items()}

    @classmethod
    def from_state(cls, arguments: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Self:
        """Returns the policy with these `arguments` and `tensors`."""
        policy = cls(**arguments)
        policy.load_state_dict(dict(tensors))
        return policy
