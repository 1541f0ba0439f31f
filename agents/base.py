"""The agent interface (`sample`, `update`, `save`, `load`), its records, and saved optimizers."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import fields
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from hpenv.policies.policy import Policy
from hpenv.policies.store import check_tensors, load_state

Float32Array = NDArray[np.float32]
FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


class Decision(NamedTuple):
    """Actions of an agent for N runs.

    Attributes:
        action: positions for the environment, (N, A) float32 in [-1, 1].
        raw: argument of the agent's density, (N, A) float32. JEL's action is tanh(raw).
        log_prob: log density of `raw`, summed over the cells, (N,) float32 [nats].
    """

    action: Float32Array
    raw: Float32Array
    log_prob: Float32Array


class Rollout(NamedTuple):
    """T decisions of N episodes, all from one version of the agent.

    Attributes:
        observations: observation before each decision, (T, N, F).
        raw: `Decision.raw`, (T, N, A).
        log_prob: `Decision.log_prob`, (T, N).
        rewards: reward of the window that the decision controlled, (T, N).
        alive: True for decisions that were taken, False after the episode has ended, (T, N) bool.
            Where it is False, the other arrays are never read.
        effects: estimated effects of the cells, decreases of a loss per unit of position, (T, N,
            A), for agents that ask for them.
    """

    observations: Float32Array
    raw: Float32Array
    log_prob: Float32Array
    rewards: FloatArray
    alive: BoolArray
    effects: FloatArray | None = None


class Agent(Protocol):
    """A learner of whole rollouts, which its caller collects, and its controller.

    Attributes:
        policy: the controller in training, without exploration. It is scored, saved and attached.
    """

    @property
    def policy(self) -> Policy:
        """The controller in training, without exploration."""

    def sample(self, observations: np.ndarray) -> Decision:
        """Returns decisions with exploration, at observations (N, F)."""

    def update(self, rollout: Rollout) -> dict[str, float]:
        """Learns from whole episodes. Returns metrics under stable-baselines3's tags."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes everything that the next `sample` and `update` depend on to a folder."""

    def load(self, path: str | os.PathLike[str]) -> None:
        """Continues bitwise from a folder that an agent with the same arguments saved."""


def episode_metrics(rollout: Rollout) -> dict[str, float]:
    """Returns mean return and mean length of a rollout's episodes."""
    lengths = rollout.alive.sum(axis=0)
    returns = np.where(rollout.alive, rollout.rewards, 0.0).sum(axis=0)
    return {
        "rollout/ep_rew_mean": float(returns[lengths > 0].mean()),
        "rollout/ep_len_mean": float(lengths[lengths > 0].mean()),
    }


def check_rollout(rollout: Rollout, observation_size: int, action_size: int) -> None:
    """Checks a rollout's shapes and numbers.

    Raises:
        ValueError: shapes disagree, no decision was taken, a decision that was taken has a NaN or
            an infinity, or an episode is alive again after its end.
    """
    if rollout.alive.ndim != 2 or rollout.alive.dtype != np.bool_:
        raise ValueError(
            "rollout.alive must be a boolean array of shape (T, N); "
            f"got {rollout.alive.dtype} of shape {rollout.alive.shape}"
        )

    T, N = rollout.alive.shape
    expected = {
        "observations": (T, N, observation_size),
        "raw": (T, N, action_size),
        "log_prob": (T, N),
        "rewards": (T, N),
    }

    for name, shape in expected.items():
        array = np.asarray(getattr(rollout, name))
        if array.shape != shape:
            raise ValueError(f"rollout.{name} must have shape {shape}; got {array.shape}")
        if not np.isfinite(array[rollout.alive]).all():
            raise ValueError(
                f"rollout.{name} must be finite where alive is True; got a NaN or an infinity"
            )

    if not rollout.alive.any():
        raise ValueError("rollout.alive must be True for at least one decision; got none")
    if (rollout.alive[1:] & ~rollout.alive[:-1]).any():
        raise ValueError(
            "rollout.alive must stay False after an episode has ended; got True again; "
            "an ended episode keeps its column, masked"
        )


#: Metadata of a field of a configuration that agents were saved without.
ADDED = {"is_added": True}


def set_fields(config: Any) -> dict[str, Any]:
    """Returns the fields of a configuration (a dataclass), without an ADDED one at its default.

    An agent that was saved before the field was there is then equal to one made today.
    """
    values = {each.name: getattr(config, each.name) for each in fields(config)}
    for each in fields(config):
        if each.metadata == ADDED and values[each.name] == each.default:
            del values[each.name]
    return values


def config_json(config: Any) -> dict[str, Any]:
    """Returns the fields of `set_fields` in JSON's types: tuples become lists."""
    return json.loads(json.dumps(set_fields(config)))


def check_identity(metadata: Mapping[str, Any], expected: Mapping[str, Any], path: object) -> None:
    """Compares a saved agent's metadata with that of the agent that loads it.

    Raises:
        ValueError: a value differs. It names the first one.
    """
    for name, value in expected.items():
        if metadata.get(name) != value:
            raise ValueError(
                f"{path} must have {name} {value!r}, as this agent; got {metadata.get(name)!r}"
            )


def check_counters(metadata: Mapping[str, Any], names: Iterable[str], path: object) -> None:
    """Checks that a saved agent's metadata has these counters.

    Raises:
        ValueError: a counter is missing or is not an int.
    """
    for name in names:
        if type(metadata.get(name)) is not int:
            raise ValueError(
                f"{path} must have the integer {name!r}; got {metadata.get(name)!r}; "
                "another version of this agent saved it"
            )


def load_agent(
    path: str | os.PathLike[str],
    identity: Mapping[str, Any],
    counters: Collection[str],
    tensors: Mapping[str, torch.Tensor],
    optimizer: torch.optim.Optimizer,
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Returns tensors and metadata of a saved agent that trains with Adam.

    Args:
        path: folder of the saved agent.
        identity: metadata that must be equal in the saved agent and in this one.
        counters: names of counters in the metadata. All are 0 before the first update, none after.
        tensors: this agent's tensors, without Adam's moments.
        optimizer: this agent's optimizer.

    Raises:
        ValueError: the folder is damaged, or its agent differs in identity, fields, shapes or
            dtypes.
    """
    found, metadata = load_state(path, "agent")
    check_identity(metadata, identity, path)
    check_counters(metadata, counters, path)

    moments = adam_tensors(optimizer) if any(metadata[name] for name in counters) else {}
    check_tensors(path, found, {**tensors, **moments})
    return found, metadata


def adam_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Returns zeros with the names and shapes of `optimizer_tensors` after Adam's first step."""
    found: dict[str, torch.Tensor] = {}
    parameters: list[torch.Tensor] = []
    for group in optimizer.param_groups:
        parameters.extend(group["params"])

    for index, parameter in enumerate(parameters):
        found[f"optimizer.{index}.step"] = torch.zeros(())
        for key in ("exp_avg", "exp_avg_sq"):
            found[f"optimizer.{index}.{key}"] = torch.zeros_like(parameter, requires_grad=False)
    return found


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Returns an optimizer's state under flat names `optimizer.<parameter number>.<key>`.

    Adam's keys are step, exp_avg and exp_avg_sq.
    """
    found: dict[str, torch.Tensor] = {}
    for index, slots in optimizer.state_dict()["state"].items():
        for key, tensor in slots.items():
            found[f"optimizer.{index}.{key}"] = tensor
    return found


def restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]
) -> None:
    """Restores the state that `optimizer_tensors` returned. Parameter groups do not change."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        prefix, _, rest = name.partition(".")
        if prefix == "optimizer":
            index, _, key = rest.partition(".")
            state.setdefault(int(index), {})[key] = tensor.clone()

    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )
