"""Files of an embedded student: description in `student.json`, weights in `student.safetensors`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from hpenv.lm.architecture import GPTConfig, parameter_shapes
from hpenv.lm.stored import read_object

DESCRIPTION, WEIGHTS = "student.json", "student.safetensors"

#: Largest number in a shape. The checks of a description take little time below it.
MOST_UNITS = 2**20

#: Fields of the file and their types. `notes` is a further field with free contents.
KEYS = {"config": dict, "digest": str, "pieces": list}
CONFIG_KEYS = {"gpt": dict, "prompt_tokens": int, "max_tokens": int}


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
