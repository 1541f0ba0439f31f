"""Stored tensors and descriptions: safetensors and JSON files.

Files are written whole. Errors of reading name the argument and the file.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from hpenv.lm.sources import check_file, read_file


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file that is complete or not there.

    The file is written under another name, flushed, and then renamed.

    Raises:
        ValueError: if the file cannot be written.
    """
    content = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")

    try:
        check_folder("path", path.parent)
        with draft.open("xb") as file:
            file.write(safetensors.torch.save(content, metadata=dict(metadata)))
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        raise ValueError(
            f"path must be a file that can be written; got {str(path)!r} ({error})"
        ) from error
    finally:
        if draft.parent.is_dir():
            draft.unlink(missing_ok=True)


def check_folder(argument: str, folder: Path) -> None:
    """Creates a folder if it is missing, and checks that files can be written to it.

    Raises:
        ValueError: names the argument and the folder.
    """
    probe = folder / f".{secrets.token_hex(8)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch(exist_ok=False)
        probe.unlink()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise ValueError(
            f"{argument} must be a folder that can be written to; got {str(folder)!r} ({error}); "
            "name another"
        ) from error


def read_tensors(argument: str, path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Reads the tensors of a safetensors file and the metadata of its header.

    The tensors are copies. Later changes of the file do not reach them. A tensor in a mapped file
    may start anywhere in memory, and its start decides the last bit of a product.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a safetensors file, or is damaged.
    """
    check_file(argument, str(path))
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}
            return tensors, file.metadata() or {}
    except (safetensors.SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"{argument} must be a whole safetensors file; got {str(path)!r} ({error}); delete it "
            "or write it again"
        ) from error


def read_object(argument: str, path: Path) -> dict[str, Any]:
    """Reads a file that holds one JSON object.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be read or holds anything else.
    """
    content = read_file(argument, str(path))
    try:
        value = json.loads(content.text())
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{argument} must be a JSON file; got {str(path)!r} ({error}); write it again"
        ) from error

    if not isinstance(value, dict):
        raise ValueError(
            f"{argument} must hold a JSON object; got {str(path)!r}, which holds a "
            f"{type(value).__name__}"
        )

    return value
