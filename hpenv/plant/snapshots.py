"""Snapshots on disk: folders that are either intact, or refused with the name of the bad file.

    <path>/tensors.safetensors    all tensors
    <path>/state.json             order of the tensors, and the metadata
    <path>/MANIFEST.json          size and sha256 of the two, written last, and a digest of itself

A snapshot is written to a hidden folder next to its path, flushed to the disk, and renamed. A
folder cannot be renamed over another, so an older snapshot at the path is first renamed away and
deleted at the end. If the process dies between the two renames, the older snapshot is found under
its hidden name. So there is a valid snapshot at every moment. Only one process may use a path at a
time. A reader meanwhile may be refused, but never gets a mixture. Writer and reader are both here.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import time
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from hpenv.isolation import with_torch_defaults
from hpenv.plant.protocol import Snapshot

TENSORS, STATE, MANIFEST = "tensors.safetensors", "state.json", "MANIFEST.json"
FILES = sorted((TENSORS, STATE))
FORMAT, VERSION = "hpenv.snapshot", 1
#: Names of the files that desktops leave in any folder they show. `save` deletes them with the
#: snapshot that it replaces.
LITTER = re.compile(r"\.DS_Store|Thumbs\.db|desktop\.ini|\.directory|\._.*", re.IGNORECASE)
CURE = (
    "take another snapshot: "
    "hpenv.plant.snapshots.latest(folder) finds the newest intact one of a folder"
)


class SnapshotError(ValueError):
    """A snapshot is missing, incomplete, damaged or of another version.

    The message names the file.
    """


@with_torch_defaults
def save(path: str | os.PathLike[str], snapshot: Snapshot) -> None:
    """Writes a snapshot to a folder, atomically, and replaces a snapshot that is there.

    A folder with anything else in it is refused, except for the files that a desktop leaves
    (LITTER): these are deleted with the old snapshot.

    Tensors come back bit for bit, on the CPU. A view is written as its visible entries. Tensors
    that share memory are written separately. The metadata must come back equal and of the same
    types, so it may hold dict with str keys, list, str, int, finite float, bool and None. Tuples
    and numpy scalars are refused, not converted.

    Args:
        path: the folder. Missing parents are made.
        snapshot: the snapshot, which is not changed.

    Raises:
        ValueError: metadata that is not JSON, a tensor that cannot be written, or a path that holds
            something else.
        OSError: the disk refused. The snapshot that was at the path before still loads.
    """
    path = Path(path).resolve()
    files = _encode(snapshot)
    _check_place(path, files)

    missing = [folder for folder in path.parents if not folder.exists()]
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)

    token = secrets.token_hex(4)
    new, old = _hidden_path(path, "new", token), _hidden_path(path, "old", token)
    try:
        new.mkdir()
        for name, content in files.items():
            with open(new / name, "xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for folder in (new, *(folder.parent for folder in missing)):
            _sync_folder(folder)

        if path.exists():
            os.rename(path, old)
        os.rename(new, path)
        _sync_folder(path.parent)
    except BaseException:
        if old.exists() and not path.exists():
            os.rename(old, path)
        shutil.rmtree(new, ignore_errors=True)
        raise

    for kind in ("new", "old"):  # of this save, and of saves that were killed
        for leftover in _leftovers(path, kind):
            shutil.rmtree(leftover, ignore_errors=True)


def _check_place(path: Path, files: Collection[str]) -> None:
    """Checks that a path is free or holds a snapshot with these files alone.

    Raises:
        ValueError: naming the path and what it holds.
    """
    where = f"{str(path)!r} exists and is not a snapshot"
    cure = "expected a new path or one to replace"

    if path.is_dir():
        others = sorted(child.name for child in path.iterdir() if child.name not in files)
        others = [name for name in others if not LITTER.fullmatch(name)]
        if others:
            raise ValueError(f"{where}: it holds {others[:5]}, which would be deleted; {cure}")
    elif path.exists():
        raise ValueError(f"{where}: it is a file; {cure}")

    nearest = next(parent for parent in path.parents if parent.exists())
    if not nearest.is_dir():
        raise ValueError(
            f"{str(path)!r} must lie in a folder; {str(nearest)!r} is a file; give another path"
        )


@with_torch_defaults
def load(path: str | os.PathLike[str]) -> Snapshot:
    """Reads a snapshot after checking that every byte is as it was written.

    If a save was killed while it replaced a snapshot, so that the path is missing, the older
    snapshot is read. Other files in the folder are ignored.

    Raises:
        SnapshotError: if the snapshot is missing or damaged, naming the file.
    """
    folder = _resolve(Path(path))
    if folder is None:
        raise SnapshotError(
            f"no snapshot at {str(path)!r}; expected a folder that hpenv.plant.snapshots.save wrote"
        )

    manifest = _read_manifest(folder)
    contents = {}
    for name, entry in manifest["files"].items():
        content = _read(folder / name)
        if len(content) != entry["size"]:
            why = f"it has {len(content)} bytes instead of {entry['size']}"
            raise _damage_error(folder / name, why)
        if hashlib.sha256(content).hexdigest() != entry["sha256"]:
            raise _damage_error(folder / name, f"its sha256 is not the one in {MANIFEST}")
        contents[name] = content

    state = _decode_state(folder / STATE, contents[STATE])
    try:
        tensors = safetensors.torch.load(contents[TENSORS])
    except (safetensors.SafetensorError, KeyError, ValueError, TypeError) as error:
        raise _damage_error(folder / TENSORS, f"it holds no tensors ({error})") from error
    if sorted(state["tensors"]) != sorted(tensors):
        raise _damage_error(folder / STATE, f"it names other tensors than those in {TENSORS}")

    # Copies, because tensors in the file's buffer may be misaligned. A matrix product then computes
    # in another order, and its last bit may differ.
    return Snapshot({name: tensors[name].clone() for name in state["tensors"]}, state["metadata"])


def latest(folder: str | os.PathLike[str]) -> Path | None:
    """Returns the newest intact snapshot among the children of a folder, or None.

    Damaged snapshots are skipped with a warning. The newest is the one whose manifest has the
    latest time of saving, because a copy of the folder has other file times. Children without any
    file of a snapshot are skipped silently.
    """
    folder = Path(folder)

    found: list[tuple[int, str]] = []
    for name in _names(folder):
        try:
            manifest = _read_manifest(_resolve(folder / name) or folder / name)
            found.append((manifest["saved_unix_ns"], name))
        except SnapshotError as error:
            warnings.warn(f"skipped a snapshot: {error}", stacklevel=2)

    for _, name in sorted(found, reverse=True):
        try:
            load(folder / name)
        except SnapshotError as error:
            warnings.warn(f"skipped a snapshot: {error}", stacklevel=2)
        else:
            return folder / name

    return None


def _damage_error(file: Path, why: str) -> SnapshotError:
    return SnapshotError(f"{file} is damaged: {why}; {CURE}")


def _decode_state(file: Path, content: bytes) -> dict[str, Any]:
    """Returns the names of the tensors in their order, and the metadata."""
    try:
        state: dict[str, Any] = json.loads(content)
        _check_json(state, "state")
    except (ValueError, RecursionError) as error:
        raise _damage_error(file, f"it is not JSON as it is written here ({error})") from error

    fits = (
        type(state) is dict
        and sorted(state) == ["metadata", "tensors"]
        and type(state["metadata"]) is dict
        and type(state["tensors"]) is list
        and all(type(name) is str for name in state["tensors"])
    )
    if not fits:
        raise _damage_error(file, "it must hold the tensors' names and the metadata, and no more")
    return state


def _encode(snapshot: Snapshot) -> dict[str, bytes]:
    """Returns file name -> content, with the manifest last."""
    _check_json(snapshot.metadata, "metadata")
    state = {"tensors": list(snapshot.tensors), "metadata": snapshot.metadata}
    files = {TENSORS: _encode_tensors(snapshot.tensors), STATE: _dump(state)}
    entries = {
        n: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for n, content in files.items()
    }
    body = {"format": FORMAT, "version": VERSION, "saved_unix_ns": time.time_ns(), "files": entries}
    return {**files, MANIFEST: _sign(body)}


def _encode_tensors(tensors: dict[str, torch.Tensor]) -> bytes:
    copies = {}
    for name, tensor in tensors.items():
        if type(name) is not str or name == "__metadata__":  # a reserved key of safetensors
            raise ValueError(
                f"a tensor's name must be a str other than '__metadata__'; got {name!r}"
            )
        if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided or tensor.is_meta:
            raise ValueError(
                f"tensor {name!r} must be a dense torch.Tensor with data; "
                f"got {type(tensor).__name__}"
            )

        copies[name] = (
            tensor.detach()
            .cpu()
            .resolve_conj()
            .resolve_neg()
            .clone(memory_format=torch.contiguous_format)
        )
        try:
            safetensors.torch.save({name: copies[name].flatten()[:0]})
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"tensor {name!r} must have a dtype of safetensors; got {tensor.dtype}"
            ) from error

    return safetensors.torch.save(copies)


def _check_json(value: Any, where: str) -> None:
    if type(value) is dict:
        for key, item in value.items():
            if type(key) is not str:
                raise ValueError(
                    f"keys of {where} must be str; got {key!r} of type {type(key).__name__}"
                )
            _check_json(item, f"{where}[{key!r}]")
    elif type(value) is list:
        for index, item in enumerate(value):
            _check_json(item, f"{where}[{index}]")
    elif type(value) is float:
        if not math.isfinite(value):
            raise ValueError(
                f"{where} must be finite, because it is saved as JSON; got {value}; "
                "put it into a tensor"
            )
    elif value is not None and type(value) not in (str, int, bool):
        raise ValueError(
            f"{where} must be dict, list, str, int, float, bool or None; got a "
            f"{type(value).__name__}: {value!r}; give `.item()` of a numpy scalar, or a list in "
            "place of a tuple"
        )


def _dump(value: Any) -> bytes:
    return (json.dumps(value, allow_nan=False, indent=1) + "\n").encode("ascii")


def _sign(body: dict[str, Any]) -> bytes:
    return _dump({**body, "sha256_of_the_above": hashlib.sha256(_dump(body)).hexdigest()})


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError as error:
        raise SnapshotError(f"{file} is missing; {CURE}") from error
    except OSError as error:
        raise SnapshotError(f"{file} cannot be read ({error}); {CURE}") from error


def _read_manifest(folder: Path) -> dict[str, Any]:
    content = _read(folder / MANIFEST)
    try:
        manifest = json.loads(content)
        body = {key: value for key, value in manifest.items() if key != "sha256_of_the_above"}
        is_intact = _sign(body) == content  # every byte: only the form that `save` writes is valid
    except (ValueError, AttributeError, RecursionError):
        is_intact = False
    if not is_intact:
        raise _damage_error(folder / MANIFEST, "its content does not match the sha256 in it")

    given, expected = (body.get("format"), body.get("version")), (FORMAT, VERSION)
    if given != expected:
        raise SnapshotError(
            f"{folder / MANIFEST} is of format and version {given}; expected {expected}; "
            "load it with the version of hpenv that wrote it"
        )

    files = body.get("files")
    whole = (
        sorted(body) == ["files", "format", "saved_unix_ns", "version"]
        and type(body["saved_unix_ns"]) is int
        and type(files) is dict
        and sorted(files) == FILES
        and all(
            type(entry) is dict and sorted(entry) == ["sha256", "size"] for entry in files.values()
        )
    )
    if not whole:
        raise _damage_error(
            folder / MANIFEST,
            f"it must hold the time of saving, size and sha256 of {FILES}, and no more",
        )

    return body


def _hidden_path(path: Path, kind: str, token: str) -> Path:
    return path.with_name(f".{path.name}.{kind}-{token}")


def _leftovers(path: Path, kind: str) -> list[Path]:
    siblings = path.parent.iterdir() if path.parent.is_dir() else ()
    return [sibling for sibling in siblings if _hidden_name(sibling) == (path.name, kind)]


def _hidden_name(path: Path) -> tuple[str, str] | None:
    """Returns the name and kind from which `_hidden_path` made this path, or None."""
    match = re.fullmatch(r"\.(.+)\.(new|old)-[0-9a-f]{8}", path.name)
    return match and (match[1], match[2])


def _resolve(path: Path) -> Path | None:
    """Returns the folder to read for a path, or None.

    If the path is missing, this is the newest folder that a killed save had renamed away.
    """
    if path.exists():
        return path

    found = []
    for leftover in _leftovers(path, "old"):
        with contextlib.suppress(SnapshotError):  # a folder whose deletion had begun
            found.append((_read_manifest(leftover)["saved_unix_ns"], leftover))
    return max(found)[1] if found else None


def _names(folder: Path) -> set[str]:
    """Returns the names of the children that are, were or look like snapshots."""
    names = set()
    for child in folder.iterdir() if folder.is_dir() else ():
        hidden = _hidden_name(child)
        if hidden and hidden[1] == "old":
            names.add(hidden[0])
        elif not hidden and any((child / name).exists() for name in (TENSORS, STATE, MANIFEST)):
            names.add(child.name)
    return names


def _sync_folder(folder: Path) -> None:
    """Flushes the names in a folder to the disk. Windows does this without a call."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
