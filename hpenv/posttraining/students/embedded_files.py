"""Shape of an embedded student, and its files `student.json` and `student.safetensors`."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from hashlib import sha256
from pathlib import Path
from typing import Any

from torch import Tensor

from hpenv.isolation import torch_defaults
from hpenv.lm.architecture import GPTConfig, parameter_shapes
from hpenv.lm.stored import check_folder, read_object, read_tensors, write_tensors

DESCRIPTION, WEIGHTS = "student.json", "student.safetensors"
#: Folders of the shipped students.
SHIPPED = Path(__file__).parent / "shipped"

#: Largest number in a shape. The checks of a description take little time below it.
MOST_UNITS = 2**20

#: Longest prompt or completion [tokens]. The tables of so many positions fit any machine.
MOST_TOKENS = 2**16

#: Fields of the file and their types. `notes` is a further field with free contents.
KEYS = {"config": dict, "digest": str, "pieces": list}
CONFIG_KEYS = {"gpt": dict, "prompt_tokens": int, "max_tokens": int}


@dataclass(frozen=True)
class EmbeddedConfig:
    """Shape of an embedded student."""

    gpt: GPTConfig
    prompt_tokens: int = 64  # every prompt is padded to this length [tokens]
    max_tokens: int = 48  # longest completion, END included [tokens]

    def __post_init__(self) -> None:
        """Checks the lengths."""
        for name in ("prompt_tokens", "max_tokens"):
            value = getattr(self, name)
            if (
                not isinstance(value, int)
                or isinstance(value, bool)
                or not 1 <= value <= MOST_TOKENS
            ):
                raise ValueError(
                    f"{name} must be an integer from 1 to {MOST_TOKENS}; got {value!r}"
                )


@dataclass(frozen=True)
class Description:
    """Description of a student, as read from its file.

    Attributes:
        gpt: arguments of GPTConfig, each of its type and in range.
        prompt_tokens: length of a prompt [tokens].
        max_tokens: longest completion [tokens].
        digest: sha256 of the weights.
        pieces: pieces of the vocabulary.
    """

    gpt: dict[str, Any]
    prompt_tokens: int
    max_tokens: int
    digest: str
    pieces: list[str]


def embedded_folder(name: str | os.PathLike[str]) -> Path:
    """Returns the folder of a student. A name without a slash is that of a shipped student."""
    if isinstance(name, str) and "/" not in name:
        return SHIPPED / name
    return Path(os.path.expanduser(name))


def read_student(folder: str | Path) -> tuple[Path, Description, dict[str, Tensor]]:
    """Reads a folder's description and weights, and returns them with the description's path.

    Args:
        folder: of the student, `~` being the home folder. A name without a slash is that of a
            shipped student.

    Raises:
        ValueError: if there is no student, its files are damaged, or its weights are not those of
            its description.
    """
    if not isinstance(folder, str | os.PathLike):
        raise ValueError(
            f"student must be the name of a shipped student or a folder; got {folder!r}"
        )

    path = embedded_folder(folder)
    if not (path / DESCRIPTION).is_file():
        shipped = sorted(entry.parent.name for entry in SHIPPED.glob(f"*/{DESCRIPTION}"))
        raise ValueError(
            f"no student in {path}; expected one of {shipped}, a folder with student.json "
            "(with a slash in its name: './mine'), or 'hf:<folder>' for a Hugging Face model"
        )

    description = read_description(path / DESCRIPTION)
    with torch_defaults():
        weights, _ = read_tensors("student", path / WEIGHTS)
        if digest_of(weights) != description.digest:
            raise ValueError(
                f"{path / WEIGHTS} must be the file that student.json describes; got a file with "
                "another digest"
            )
    return path / DESCRIPTION, description, weights


def write_student(
    folder: Path, content: Mapping[str, object], weights: Mapping[str, Tensor]
) -> None:
    """Writes the description and the weights of a student.

    Raises:
        ValueError: if the folder cannot be written to.
    """
    check_folder("folder", folder)
    write_tensors(folder / WEIGHTS, weights, {})
    (folder / DESCRIPTION).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def digest_of(weights: Mapping[str, Tensor]) -> str:
    """Returns the sha256 of names, shapes and bytes, in the order of the names."""
    total = sha256()
    for name in sorted(weights):
        weight = weights[name].detach().float().contiguous()
        total.update(f"{name} {tuple(weight.shape)}\n".encode() + weight.numpy().tobytes())
    return total.hexdigest()


def read_description(path: Path) -> Description:
    """Reads the description of a student.

    Raises:
        ValueError: names the file and the field that is missing, unknown, or of another type or
            range.
    """
    content = read_object("student", path)
    content.pop("notes", None)
    _check_fields(path, "", content, KEYS)
    _check_fields(path, "config.", content["config"], CONFIG_KEYS)
    _check_shape(path, content["config"]["gpt"])
    if strange := [piece for piece in content["pieces"] if not isinstance(piece, str)]:
        raise ValueError(f"{path}: pieces must be texts; got {strange[0]!r}")
    return Description(**content["config"], digest=content["digest"], pieces=content["pieces"])


def _check_fields(
    path: Path, where: str, given: Mapping[str, Any], kinds: Mapping[str, type]
) -> None:
    if set(given) != set(kinds):
        missing, unknown = sorted(set(kinds) - set(given)), sorted(set(given) - set(kinds))
        raise ValueError(
            f"{path}: fields {where}* must be {sorted(kinds)}; missing are {missing}, unknown "
            f"{unknown}"
        )
    for name, kind in kinds.items():
        if not isinstance(given[name], kind) or isinstance(given[name], bool):
            raise ValueError(
                f"{path}: {where}{name} must be of type {kind.__name__}; got {given[name]!r}"
            )


def _check_shape(path: Path, given: dict[str, Any]) -> None:
    """Checks that GPTConfig has these arguments, and that values are of the types of its defaults.

    Numbers must also be in range.
    """
    defaults = {entry.name: entry.default for entry in fields(GPTConfig)}
    if unknown := sorted(set(given) - set(defaults)):
        raise ValueError(
            f"{path}: config.gpt has the unknown fields {unknown}; expected some of "
            f"{sorted(defaults)}"
        )

    for name, value in given.items():
        default = 1 if name == "hidden_size" and value is not None else defaults[name]
        if isinstance(default, bool) or isinstance(default, str) or default is None:
            is_fine, wanted = isinstance(value, type(default)), f"of type {type(default).__name__}"
        elif isinstance(default, int):
            is_fine = (
                isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MOST_UNITS
            )
            wanted = f"an integer from 1 to {MOST_UNITS}"
        else:
            is_fine = (
                isinstance(value, int | float)
                and not isinstance(value, bool)
                and 0 < value < math.inf
            )
            wanted = "a number above 0"

        if not is_fine:
            raise ValueError(f"{path}: config.gpt.{name} must be {wanted}; got {value!r}")


def check_weights(gpt: GPTConfig, weights: Mapping[str, Tensor]) -> None:
    """Checks that weights have the names and shapes of the model, and are finite.

    Raises:
        ValueError: names up to three weights that differ.
    """
    # Before the shapes are listed, which takes long for an absurd number of layers.
    if gpt.n_layer > len(weights):
        raise ValueError(
            f"n_layer must fit the {len(weights)} weights, several for each layer; got "
            f"{gpt.n_layer}"
        )

    shapes = parameter_shapes(gpt)
    given = {name: tuple(weight.shape) for name, weight in weights.items()}
    if wrong := [name for name in {**shapes, **given} if given.get(name) != shapes.get(name)]:
        differences = {name: (given.get(name), shapes.get(name)) for name in wrong[:3]}
        raise ValueError(
            f"{len(wrong)} weights do not fit the shape, as name: (given, expected): {differences}"
        )

    for name, weight in weights.items():
        if not (weight.is_floating_point() and bool(weight.isfinite().all())):
            raise ValueError(
                f"{name}: weights must be finite floating-point numbers; got {weight.dtype}, or "
                "others"
            )
