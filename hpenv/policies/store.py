"""The table of policies, and their files: safetensors and JSON with a manifest, no pickle."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hpenv.plant.protocol import Snapshot
from hpenv.plant.snapshots import MANIFEST, STATE, TENSORS, SnapshotError, load, save
from hpenv.policies.cells import CellMLP
from hpenv.policies.control_law import AdaptiveRL
from hpenv.policies.controller import ControllerSpec
from hpenv.policies.gaussian_mlp import GaussianMLP
from hpenv.policies.neutral import Neutral
from hpenv.policies.policy import Policy
from hpenv.policies.sb3_mlp import SB3MLP
from hpenv.policies.schedule_table import ScheduleTable

#: Cure for a folder whose contents have changed since they were written.
SAVE_AGAIN = "; copy the folder again, or save the policy again"

#: name in a saved folder -> class
POLICIES: dict[str, type[Policy]] = {
    "adaptive_rl": AdaptiveRL,
    "cells": CellMLP,
    "gaussian_mlp": GaussianMLP,
    "neutral": Neutral,
    "sb3_mlp": SB3MLP,
    "schedule_table": ScheduleTable,
}


def save_state(
    path: str | os.PathLike[str],
    kind: str,
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, Any],
) -> None:
    """Writes a folder of named tensors and JSON-able metadata, atomically.

    `load_state` must be called with the same `kind`.
    """
    contents = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
    save(Path(path), Snapshot(contents, {"kind": kind, **metadata}))


def load_state(
    path: str | os.PathLike[str], kind: str
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Returns tensors and metadata of a folder that `save_state` wrote.

    Raises:
        ValueError: the folder is damaged (a SnapshotError that names the file), or holds something
            of another kind.
    """
    snapshot = load(Path(path))
    found = snapshot.metadata.get("kind")
    if found != kind:
        raise ValueError(f"{path} must hold a saved {kind!r}; got {found!r}")
    return snapshot.tensors, snapshot.metadata


def check_tensors(
    path: str | os.PathLike[str],
    found: Mapping[str, torch.Tensor],
    expected: Mapping[str, torch.Tensor],
) -> None:
    """Checks the names, shapes and dtypes of saved tensors.

    Raises:
        ValueError: naming the folder and the first tensor that differs.
    """
    for name in (*expected, *found):
        if name not in found:
            raise ValueError(f"{path} must hold the tensor {name!r}; got {sorted(found)}")
        if name not in expected:
            raise ValueError(f"{path} holds the tensor {name!r}; expected {sorted(expected)} alone")
        got, wanted = found[name], expected[name]
        if (got.shape, got.dtype) != (wanted.shape, wanted.dtype):
            raise ValueError(
                f"{path}: tensor {name!r} must be {wanted.dtype} of shape {tuple(wanted.shape)}; "
                f"got {got.dtype} of shape {tuple(got.shape)}"
            )


def save_policy(policy: Policy, path: str | os.PathLike[str]) -> None:
    """Writes a policy and its spec to a folder.

    Raises:
        ValueError: the policy's class is not in POLICIES, or its spec has not one name per column.
    """
    names = [name for name, kind in POLICIES.items() if type(policy) is kind]
    if not names:
        raise ValueError(
            f"policy must be one of {[c.__name__ for c in POLICIES.values()]}; "
            f"got {type(policy).__name__}"
        )

    check_names(policy)
    metadata = {
        "policy": names[0],
        "arguments": policy.arguments(),
        "spec": policy.spec.values(),
    }
    save_state(path, "policy", policy.tensors(), metadata)


def check_names(policy: Policy) -> None:
    """Checks that the spec of a policy has one name per column, or none.

    Raises:
        ValueError: naming both numbers.
    """
    sizes = {
        "action_names": policy.action_size,
        "observation_names": policy.arguments().get("observation_size"),
    }
    for key, size in sizes.items():
        names = getattr(policy.spec, key)
        if names and size is not None and len(names) != size:
            raise ValueError(
                f"{key} must be {size} names, one per column of the policy; got {list(names)}"
            )


def policy_folder(path: str | os.PathLike[str]) -> Path:
    """Returns the folder of a saved policy: the path, or `policy/` in a training run's folder.

    Raises:
        ValueError: the path is neither.
    """
    folder, inner = Path(path), Path(path) / "policy"
    if folder.is_dir() and not (folder / MANIFEST).exists():
        if inner.is_dir():
            return inner
        raise ValueError(
            f"{folder} must hold a saved policy; got a folder with neither {MANIFEST} nor policy/; "
            "give a folder that save_policy wrote, or that of a training run that has finished"
        )
    return folder


def load_policy(path: str | os.PathLike[str]) -> Policy:
    """Loads the policy in a folder of `save_policy`, or in `policy/` of a training run's folder.

    Raises:
        ValueError: the folder is damaged, holds no policy, or its class, arguments or tensors are
            not valid.
    """
    folder = policy_folder(path)
    tensors, metadata = _load_contents(folder)

    name, arguments = metadata["policy"], metadata["arguments"]
    try:
        policy = POLICIES[name].from_state(arguments, tensors)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        text = " ".join(str(error).split())
        raise ValueError(
            f"{folder / STATE} and {folder / TENSORS} must make a {name!r}; "
            f"got arguments {arguments} and tensors of "
            f"{ {key: tuple(tensor.shape) for key, tensor in tensors.items()} }: {text}{SAVE_AGAIN}"
        ) from error

    # The policy must write what was read: nothing was dropped, cast or filled in.
    written = json.loads(json.dumps(policy.arguments()))
    if written != arguments:
        raise ValueError(
            f"{folder / STATE}: arguments of a {name!r} must be {written}; "
            f"got {arguments}{SAVE_AGAIN}"
        )
    check_tensors(folder / TENSORS, tensors, policy.tensors())

    try:
        policy.spec = ControllerSpec.from_values(metadata["spec"])
        check_names(policy)
    except ValueError as error:
        raise ValueError(f"{folder / STATE}: {error}{SAVE_AGAIN}") from error

    for key, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ValueError(
                f"{folder / TENSORS}: tensor {key!r} must be finite; "
                f"got a NaN or an infinity{SAVE_AGAIN}"
            )

    return policy


def _load_contents(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Returns tensors and metadata of a saved policy, with fields of the right types."""
    try:
        tensors, metadata = load_state(folder, "policy")
    except SnapshotError as error:
        if folder.exists():
            raise SnapshotError(f"{error}{SAVE_AGAIN}") from error
        raise SnapshotError(
            f"no snapshot at {str(folder)!r} in {str(Path.cwd())!r}; expected the folder of a "
            "saved policy, or of a training run"
        ) from error

    expected = {"policy": str, "arguments": dict, "spec": dict}
    for key, kind in expected.items():
        if type(metadata.get(key)) is not kind:
            raise ValueError(
                f"{folder / STATE}: metadata must have {key!r}, a {kind.__name__}; "
                f"got {metadata.get(key)!r}{SAVE_AGAIN}"
            )

    unknown = sorted({*metadata} - {"kind", *expected})
    if unknown:
        raise ValueError(
            f"{folder / STATE}: metadata holds {unknown}; "
            f"expected {sorted(expected)} alone{SAVE_AGAIN}"
        )

    if metadata["policy"] not in POLICIES:
        raise ValueError(
            f"unknown policy {metadata['policy']!r} in {folder}; expected one of {sorted(POLICIES)}"
        )
    return tensors, metadata
