"""The table of policies, and their way to disk and back: safetensors and JSON with a manifest, no pickle."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from hpenv.plant import Snapshot
from hpenv.policies.cells import CellMLP
from hpenv.policies.gaussian_mlp import GaussianMLP
from hpenv.policies.neutral import Neutral
from hpenv.policies.policy import Policy
from hpenv.policies.sb3_mlp import SB3MLP
from hpenv.policies.schedule_table import ScheduleTable
from hpenv.snapshots import load, save

#: name in a saved folder -> class
POLICIES: dict[str, type[Policy]] = {
    "cells": CellMLP,
    "gaussian_mlp": GaussianMLP,
    "neutral": Neutral,
    "sb3_mlp": SB3MLP,
    "schedule_table": ScheduleTable,
}


def save_state(
    path: str | os.PathLike[str], kind: str, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, Any]
) -> None:
    """Writes a folder of named tensors and JSON-able metadata, atomically; `kind` says what they are."""
    contents = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
    save(Path(path), Snapshot(contents, {"kind": kind, **metadata}))


def load_state(path: str | os.PathLike[str], kind: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and metadata of a folder that `save_state` wrote.

    Raises:
        ValueError: the folder is damaged (a SnapshotError that names the file), or holds something of another kind.
    """
    snapshot = load(Path(path))
    found = snapshot.metadata.get("kind")
    if found != kind:
        raise ValueError(f"{path} holds a saved {found!r}; expected {kind!r}")
    return snapshot.tensors, snapshot.metadata


def save_policy(
    policy: Policy,
    path: str | os.PathLike[str],
    observation_names: Sequence[str] = (),
    action_names: Sequence[str] = (),
) -> None:
    """Writes a policy to a folder, with the names of the columns that it was made for, if they are given.

    Raises:
        ValueError: its class is not in POLICIES.
    """
    names = [name for name, kind in POLICIES.items() if type(policy) is kind]
    if not names:
        raise ValueError(
            f"cannot save a {type(policy).__name__}; expected one of {[c.__name__ for c in POLICIES.values()]}"
        )
    columns = {"observation_names": list(observation_names), "action_names": list(action_names)}
    save_state(path, "policy", policy.tensors(), {"policy": names[0], "arguments": policy.arguments()} | columns)


def check_columns(path: str | os.PathLike[str], observation_names: Sequence[str], action_names: Sequence[str]) -> None:
    """Refuses an environment whose columns are not those that the policy in a folder was made for.

    Raises:
        ValueError: naming both.
    """
    _, metadata = load_state(path, "policy")
    for key, given in (("observation_names", observation_names), ("action_names", action_names)):
        saved = metadata.get(key)
        if saved and saved != list(given):
            raise ValueError(
                f"the policy in {path} was made for the {key} {saved}; the environment has {list(given)}: give it the "
                "arguments of the policy's training"
            )


def load_policy(path: str | os.PathLike[str]) -> Policy:
    """The policy in a folder that `save_policy` wrote.

    Raises:
        ValueError: the folder is damaged, holds no policy, or one whose name is not in POLICIES.
    """
    tensors, metadata = load_state(path, "policy")
    name = metadata["policy"]
    if name not in POLICIES:
        raise ValueError(f"unknown policy {name!r}; expected one of {sorted(POLICIES)}")
    return POLICIES[name].from_saved(metadata["arguments"], tensors)
