"""What an agent is, what it decides, what it learns from, and how an optimizer's state is written down."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict
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
    """What an agent decided for N runs.

    Attributes:
        action: positions for the environment, (N, A) float32 in [-1, 1].
        raw: what the agent's density is over, (N, A) float32; JEL's action is tanh(raw).
        log_prob: log density of `raw`, summed over the cells, (N,) float32 [nats].
    """

    action: Float32Array
    raw: Float32Array
    log_prob: Float32Array


class Rollout(NamedTuple):
    """T decisions of N episodes, all from one version of the agent.

    Attributes:
        observations: what each decision was taken on, (T, N, F).
        raw: `Decision.raw`, (T, N, A).
        log_prob: `Decision.log_prob`, (T, N).
        rewards: of the window that the decision controlled, (T, N).
        alive: True for decisions that were really taken; False after the episode has ended, (T, N)
            bool. What the other arrays hold there is never read.
    """

    observations: Float32Array
    raw: Float32Array
    log_prob: Float32Array
    rewards: FloatArray
    alive: BoolArray


class Agent(Protocol):
    """A controller that learns from whole rollouts that somebody else collects.

    Attributes:
        policy: the part that acts; what is evaluated, saved and attached.
    """

    @property
    def policy(self) -> Policy:
        """The part that acts."""

    def act(self, obs: np.ndarray, deterministic: bool = False) -> Decision:
        """Decides for observations (N, F); deterministic: the policy's mean, without drawing anything."""

    def update(self, rollout: Rollout) -> dict[str, float]:
        """Learns from a rollout; returns metrics under stable-baselines3's tags."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes everything that the next act and update depend on to a folder."""

    def load(self, path: str | os.PathLike[str]) -> None:
        """Continues, bitwise, from a folder that an agent of the same arguments saved."""


def check_rollout(rollout: Rollout, observation_size: int, action_size: int) -> None:
    """Raises a ValueError if a rollout's shapes disagree, or if a decision that was taken holds a NaN or infinity."""
    if rollout.alive.ndim != 2 or rollout.alive.dtype != np.bool_:
        raise ValueError(
            f"rollout.alive of {rollout.alive.dtype} {rollout.alive.shape}; expected bool, (T, N)"
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
            raise ValueError(f"rollout.{name} of shape {array.shape}; expected {shape}")
        if not np.isfinite(array[rollout.alive]).all():
            raise ValueError(
                f"rollout.{name} holds a NaN or an infinity at a decision that was taken"
            )
    if not rollout.alive.any():
        raise ValueError("a rollout without a single decision; expected alive to be True somewhere")
    if (rollout.alive[1:] & ~rollout.alive[:-1]).any():
        raise ValueError(
            "rollout.alive turns True again; an episode that has ended keeps its column, masked"
        )


def config_json(config: Any) -> dict[str, Any]:
    """A configuration (a dataclass) as it is in JSON: tuples are lists."""
    return json.loads(json.dumps(asdict(config)))


def check_saved(metadata: Mapping[str, Any], expected: Mapping[str, Any], path: object) -> None:
    """Raises a ValueError that names the first value in which a saved agent differs from the one that loads it."""
    for name, value in expected.items():
        if metadata.get(name) != value:
            raise ValueError(
                f"{path} was saved with {name} {metadata.get(name)!r}; this agent has {value!r}"
            )


def check_counters(metadata: Mapping[str, Any], names: Iterable[str], path: object) -> None:
    """Raises a ValueError if a saved agent lacks one of these whole numbers."""
    for name in names:
        if type(metadata.get(name)) is not int:
            raise ValueError(
                f"{path} must hold the whole number {name!r}; got {metadata.get(name)!r}: it was saved by another "
                "version of this agent"
            )


def load_trained(
    path: str | os.PathLike[str],
    identity: Mapping[str, Any],
    counters: Collection[str],
    tensors: Mapping[str, torch.Tensor],
    optimizer: torch.optim.Optimizer,
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Returns tensors and metadata of a saved agent that trains with Adam.

    Args:
        path: of the agent's folder.
        identity: what the saved agent must agree in with this one.
        counters: of its metadata; all are 0 before the first update, and none after it.
        tensors: of this agent, without Adam's moments.
        optimizer: of this agent.

    Raises:
        ValueError: the folder is damaged, or its agent differs in identity, fields, shapes or
            dtypes.
    """
    found, metadata = load_state(path, "agent")
    check_saved(metadata, identity, path)
    check_counters(metadata, counters, path)
    moments = adam_tensors(optimizer) if any(metadata[name] for name in counters) else {}
    check_tensors(path, found, {**tensors, **moments})
    return found, metadata


def adam_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Returns zeros under the names and in the shapes that `optimizer_tensors` gives for Adam after its first step."""
    found: dict[str, torch.Tensor] = {}
    for index, parameter in enumerate(
        p for group in optimizer.param_groups for p in group["params"]
    ):
        found[f"optimizer.{index}.step"] = torch.zeros(())
        for key in ("exp_avg", "exp_avg_sq"):
            found[f"optimizer.{index}.{key}"] = torch.zeros_like(parameter, requires_grad=False)
    return found


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """State of an optimizer under flat names `optimizer.<parameter number>.<key>` (Adam: step, exp_avg, exp_avg_sq)."""
    state = optimizer.state_dict()["state"]
    return {
        f"optimizer.{index}.{key}": tensor
        for index, slots in state.items()
        for key, tensor in slots.items()
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]
) -> None:
    """Puts back what `optimizer_tensors` gave; the parameter groups stay as they are."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        prefix, _, rest = name.partition(".")
        if prefix == "optimizer":
            index, _, key = rest.partition(".")
            state.setdefault(int(index), {})[key] = tensor.clone()
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )
