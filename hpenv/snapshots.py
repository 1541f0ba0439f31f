"""Snapshots on disk: a folder that is either complete and intact, or refused by name.

    <path>/tensors.safetensors    all tensors
    <path>/state.json             order of the tensors, and the metadata
    <path>/MANIFEST.json          size and sha256 of the two, written last, and a digest of itself

A snapshot is written to a hidden folder beside its place, flushed to the disk, and renamed. A
folder cannot be renamed over another, so a snapshot that stands there is first renamed away and
deleted at the end. If the process dies between the two renames, the old one is found under its
hidden name: there is a valid snapshot at every moment. One process uses a path at a time: who reads
while another replaces may be refused, but is never given a mixture.

Past the usual length, because what is written, read, replaced and found is one format.
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

from hpenv.isolation import isolated
from hpenv.plant import Snapshot

TENSORS, STATE, MANIFEST = "tensors.safetensors", "state.json", "MANIFEST.json"
FILES = sorted((TENSORS, STATE))
FORMAT, VERSION = "hpenv.snapshot", 1
#: Names of the files that desktops leave in any folder they show; they are deleted with a snapshot
#: that is replaced.
LITTER = re.compile(r"\.DS_Store|Thumbs\.db|desktop\.ini|\.directory|\._.*", re.IGNORECASE)
CURE = "take another snapshot: hpenv.snapshots.latest(folder) finds the newest one of a folder that is intact"


class SnapshotError(ValueError):
    """A snapshot that is missing, incomplete, damaged or of another version; the message names the file."""


@isolated
def save(path: str | os.PathLike[str], snapshot: Snapshot) -> None:
    """Writes a snapshot to a folder, atomically; one that stands there is replaced, anything else
    is not.

    Of other files in the folder, those that a desktop leaves (LITTER) are deleted with the
    snapshot.

    Tensors come back bit for bit, on the CPU: views are written as what they show, tensors that
    share memory each as their own. The metadata must come back equal and of the same types, so it
    is made of dict with str keys, list, str, int, finite float, bool and None; tuples and numpy
    scalars are refused, not converted.

    Args:
        path: the folder; its parents are made.
        snapshot: what to write; nothing of it is changed.

    Raises:
        ValueError: metadata that is not JSON, a tensor that cannot be written, or a path that holds
            something else.
        OSError: the disk refused; what stood at the path before still loads.
    """
    path = Path(path).resolve()
    files = _encode(snapshot)
    _check_place(path, files)
    made = [folder for folder in path.parents if not folder.exists()]
    for folder in reversed(made):
        folder.mkdir(exist_ok=True)
    token = secrets.token_hex(4)
    new, old = _hidden(path, "new", token), _hidden(path, "old", token)
    try:
        new.mkdir()
        for name, content in files.items():
            with open(new / name, "xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for folder in (new, *(folder.parent for folder in made)):
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
    for kind in ("new", "old"):  # this save's, and those of saves that were killed
        for leftover in _leftovers(path, kind):
            shutil.rmtree(leftover, ignore_errors=True)


def _check_place(path: Path, files: Collection[str]) -> None:
    """Refuses to write where something else stands than a snapshot with these files."""
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
            f"{str(path)!r} must lie in a folder; {str(nearest)!r} is a file: give another path"
        )


@isolated
def load(path: str | os.PathLike[str]) -> Snapshot:
    """Reads a snapshot whose every byte is what was written.

    If nothing stands at the path because a save was killed while it replaced a snapshot, the
    replaced one is read. Other files in the folder are not looked at.

    Raises:
        SnapshotError: anything else, naming the file; damaged content is never returned.
    """
    folder = _resolve(Path(path))
    if folder is None:
        raise SnapshotError(
            f"no snapshot at {str(path)!r}; expected a folder that hpenv.snapshots.save wrote"
        )
    manifest = _read_manifest(folder)
    contents = {}
    for name, entry in manifest["files"].items():
        content = _read(folder / name)
        if len(content) != entry["size"]:
            raise _damaged(folder / name, f"it has {len(content)} bytes instead of {entry['size']}")
        if hashlib.sha256(content).hexdigest() != entry["sha256"]:
            raise _damaged(folder / name, f"its sha256 is not the one in {MANIFEST}")
        contents[name] = content
    state = _decoded_state(folder / STATE, contents[STATE])
    try:
        tensors = safetensors.torch.load(contents[TENSORS])
    except (safetensors.SafetensorError, KeyError, ValueError, TypeError) as error:
        raise _damaged(folder / TENSORS, f"it holds no tensors ({error})") from error
    if sorted(state["tensors"]) != sorted(tensors):
        raise _damaged(folder / STATE, f"it names other tensors than those in {TENSORS}")
    # Copies: what stands in the file's buffer starts anywhere, and a product then takes another way
    # to its last bit.
    return Snapshot({name: tensors[name].clone() for name in state["tensors"]}, state["metadata"])


def latest(folder: str | os.PathLike[str]) -> Path | None:
    """The child of a folder that was saved last and is intact, or None; damaged ones are skipped
    with a warning.

    What counts is the time of saving, which the manifest holds: a copy of the folder has other file
    times. Children that hold no file of a snapshot are other people's, and passed over in silence.
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


def _damaged(file: Path, why: str) -> SnapshotError:
    return SnapshotError(f"{file} is damaged: {why}; {CURE}")


def _decoded_state(file: Path, content: bytes) -> dict[str, Any]:
    """The order of the tensors, and the metadata."""
    try:
        state = json.loads(content)
        _check_json(state, "state")
    except (ValueError, RecursionError) as error:
        raise _damaged(file, f"it is not JSON as it is written here ({error})") from error
    names = (
        state.get("tensors")
        if isinstance(state, dict) and sorted(state) == ["metadata", "tensors"]
        else None
    )
    if not (
        isinstance(names, list)
        and all(type(name) is str for name in names)
        and type(state["metadata"]) is dict
    ):
        raise _damaged(
            file, "it must hold the names of the tensors, and the metadata, and nothing else"
        )
    decoded: dict[str, Any] = state
    return decoded


def _encode(snapshot: Snapshot) -> dict[str, bytes]:
    """File name -> content, the manifest last."""
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
        if type(name) is not str or name == "__metadata__":  # the key safetensors keeps for itself
            raise ValueError(
                f"a tensor's name must be a str other than '__metadata__', not {name!r}"
            )
        if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided or tensor.is_meta:
            raise ValueError(
                f"tensor {name!r} must be a dense torch.Tensor with data, not {type(tensor).__name__}"
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
                f"tensor {name!r} has dtype {tensor.dtype}, which safetensors cannot hold"
            ) from error
    return safetensors.torch.save(copies)


def _check_json(value: Any, where: str) -> None:
    if type(value) is dict:
        for key, item in value.items():
            if type(key) is not str:
                raise ValueError(
                    f"{where} has the key {key!r} of type {type(key).__name__}; keys must be str"
                )
            _check_json(item, f"{where}[{key!r}]")
    elif type(value) is list:
        for index, item in enumerate(value):
            _check_json(item, f"{where}[{index}]")
    elif type(value) is float:
        if not math.isfinite(value):
            raise ValueError(
                f"{where} is {value}; JSON holds finite numbers alone, so put it into a tensor"
            )
    elif value is not None and type(value) not in (str, int, bool):
        accepted = "dict, list, str, int, float, bool or None (of numpy scalars take `.item()`, of tuples a list)"
        raise ValueError(f"{where} is a {type(value).__name__}: {value!r}; expected {accepted}")


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
        is_intact = (
            _sign(body) == content
        )  # every byte: the form that is written is the only one accepted
    except (ValueError, AttributeError, RecursionError):
        is_intact = False
    if not is_intact:
        raise _damaged(folder / MANIFEST, "it does not agree with its own sha256")
    given, expected = (body.get("format"), body.get("version")), (FORMAT, VERSION)
    if given != expected:
        raise SnapshotError(
            f"{folder / MANIFEST} is of format and version {given}; expected {expected}: load it with the hpenv that "
            "wrote it"
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
        raise _damaged(
            folder / MANIFEST,
            f"it must hold the time of saving, size and sha256 of {FILES}, and no more",
        )
    return body


def _hidden(path: Path, kind: str, token: str) -> Path:
    return path.with_name(f".{path.name}.{kind}-{token}")


def _leftovers(path: Path, kind: str) -> list[Path]:
    siblings = path.parent.iterdir() if path.parent.is_dir() else ()
    return [sibling for sibling in siblings if _hidden_name(sibling) == (path.name, kind)]


def _hidden_name(path: Path) -> tuple[str, str] | None:
    """The name and kind from which `_hidden` made this path, or None."""
    match = re.fullmatch(r"\.(.+)\.(new|old)-[0-9a-f]{8}", path.name)
    return match and (match[1], match[2])


def _resolve(path: Path) -> Path | None:
    """The folder to read for a path: itself, or the newest of those that killed saves had renamed away."""
    if path.exists():
        return path
    found = []
    for leftover in _leftovers(path, "old"):
        with contextlib.suppress(SnapshotError):  # one whose deletion had begun
            found.append((_read_manifest(leftover)["saved_unix_ns"], leftover))
    return max(found)[1] if found else None


def _names(folder: Path) -> set[str]:
    """Names of the children that are, were or look like snapshots."""
    names = set()
    for child in folder.iterdir() if folder.is_dir() else ():
        hidden = _hidden_name(child)
        if hidden and hidden[1] == "old":
            names.add(hidden[0])
        elif not hidden and any((child / name).exists() for name in (TENSORS, STATE, MANIFEST)):
            names.add(child.name)
    return names


def _sync_folder(folder: Path) -> None:
    """Makes the names in a folder durable; Windows cannot open a folder, and does this by itself."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
