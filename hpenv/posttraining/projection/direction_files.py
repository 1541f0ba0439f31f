"""Direction files: a direction and its origin, as a safetensors file with JSON in its header."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from hpenv.lm.stored import read_tensors, write_tensors
from hpenv.posttraining.projection.direction import Direction, check_direction


@dataclass(frozen=True)
class Provenance:
    """Origin of a direction: the weights, the pairs and the arguments of `extract`."""

    weights_digest: str  # `adapter.weights_digest` of the wrapped layers
    pairs_digest: str  # sha256 of the pairs' text
    method: str
    k: int
    noise_floor: float
    num_pairs: int


def save_direction(path: Path, direction: Direction, provenance: Provenance) -> None:
    """Writes a direction and its origin.

    Raises:
        ValueError: if it is not a direction, or the file cannot be written.
    """
    check_direction(direction)
    tensors = {f"axes/{name}": axes for name, axes in direction.axes.items()}
    tensors |= {f"strengths/{name}": strengths for name, strengths in direction.strengths.items()}

    metadata = {
        "provenance": json.dumps(asdict(provenance)),
        "modules": json.dumps(list(direction.axes)),
    }
    write_tensors(Path(path), tensors, metadata)


def load_direction(path: Path, weights_digest: str | None = None) -> tuple[Direction, Provenance]:
    """Reads a direction.

    Args:
        path: of the file.
        weights_digest: digest of the weights that the direction will be used on. None allows any.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is not a direction, or belongs to other weights, which have other
            singular vectors.
    """
    tensors, metadata = read_tensors("path", Path(path))

    try:
        provenance = _provenance(json.loads(metadata["provenance"]))
        modules = json.loads(metadata["modules"])
        wanted: list[str] = []
        for part in ("axes", "strengths"):
            wanted += [f"{part}/{name}" for name in modules]
        if sorted(wanted) != sorted(tensors):
            raise ValueError(
                f"the tensors must be those of the header, {sorted(wanted)}; got {sorted(tensors)}"
            )
        direction = Direction(
            *({name: tensors[f"{part}/{name}"] for name in modules} for part in Direction._fields)
        )
        check_direction(direction)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"path must be a direction saved by `save_direction`; got {str(path)!r} ({error!r}); "
            "save it again"
        ) from error

    if weights_digest is not None and weights_digest != provenance.weights_digest:
        raise ValueError(
            f"direction file {path} belongs to other model weights (digest "
            f"{provenance.weights_digest}; this model: {weights_digest})"
        )

    return direction, provenance


def _provenance(given: dict[str, object]) -> Provenance:
    kinds = {"str": (str,), "int": (int,), "float": (int, float)}
    provenance = Provenance(**given)  # type: ignore[arg-type]  # checked below
    for entry in fields(Provenance):
        value = getattr(provenance, entry.name)
        if not isinstance(value, kinds[str(entry.type)]) or isinstance(value, bool):
            raise ValueError(f"{entry.name} must be of type {entry.type}; got {value!r}")
    return provenance
