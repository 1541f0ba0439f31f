"""Result files and confidence intervals.

A result file is JSON: `kind`, `configuration`, `facts` (`environment_facts`), `rows` (one per run),
`extra`, `notes`. Statistics are pure functions. In comparisons of two samples, lower is better, as
for losses and bits per byte: a positive difference says that `a` is below `b`. Intervals are
Student's. They are over seeds for one method on several seeds. They are over controllers for
several controllers, each averaged over its seeds.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike

from hpenv.arrays import FloatArray
from train_agents.facts import environment_facts
from train_agents.outputs import write_text

#: The data of a result file: a dictionary per run, and a dictionary `extra`.
Rows = tuple[list[dict[str, Any]], dict[str, Any]]

KEYS = ("kind", "configuration", "facts", "rows", "extra", "notes")
#: Smallest number of controllers for an interval. Nothing is claimed of fewer.
FEWEST_CONTROLLERS = 5
#: Significant digits of numbers in lists. Curves are for plots: 6 digits are finer than a pixel.
SIGNIFICANT_DIGITS = 6


class Interval(NamedTuple):
    """A point estimate and the ends of its confidence interval."""

    mean: float
    low: float
    high: float


def write_result(
    path: str | os.PathLike[str],
    kind: str,
    configuration: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Writes a result file atomically, so that a reader never sees half of it.

    Numbers in lists are rounded to 6 significant digits, except under a key with `bpb` in it.
    Single numbers and the configuration are not rounded. A NaN or an infinity becomes null, and
    `notes` says where. A value of a type that JSON does not have becomes its repr. The corpus in
    the facts is that of the rows.
    """
    notes: list[str] = []
    corpora = sorted({str(row["corpus"]) for row in rows if row.get("corpus")})
    parts = {
        "kind": kind,
        "configuration": _plain(configuration, "configuration", notes, rounds=False),
        "facts": environment_facts(corpus=", ".join(corpora) or None),
        "rows": [_plain(row, f"rows[{i}]", notes) for i, row in enumerate(rows)],
        "extra": _plain(extra or {}, "extra", notes),
    }

    text = ",\n".join(
        f' "{key}": {_one_line_each(value)}' for key, value in (parts | {"notes": notes}).items()
    )
    write_text(path, f"{{\n{text}\n}}\n")


def _one_line_each(value: Any) -> str:
    """Returns JSON with one line per item of a list or dictionary, so that a diff shows rows."""
    if not value or not isinstance(value, list | dict):
        return json.dumps(value, allow_nan=False)
    names = (
        [f"{json.dumps(key)}: " for key in value] if isinstance(value, dict) else [""] * len(value)
    )
    items = value.values() if isinstance(value, dict) else value
    lines = [
        name + json.dumps(item, allow_nan=False) for name, item in zip(names, items, strict=True)
    ]
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    return f"{opening}\n  " + ",\n  ".join(lines) + f"\n {closing}"


def _plain(
    value: Any, where: str, notes: list[str], rounds: bool = True, listed: bool = False
) -> Any:
    """Returns a value in JSON's types. Adds a line to `notes` per number that JSON cannot hold."""
    if isinstance(value, np.ndarray | np.generic | torch.Tensor):
        value = value.tolist()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            notes.append(f"{where} was {value}")
            return None
        return float(f"{value:.{SIGNIFICANT_DIGITS}g}") if listed and rounds else value

    if isinstance(value, Mapping):
        return {
            str(key): _plain(item, f"{where}.{key}", notes, rounds and "bpb" not in str(key))
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [
            _plain(item, f"{where}[{i}]", notes, rounds, listed=True)
            for i, item in enumerate(value)
        ]

    return str(value) if isinstance(value, Path) else repr(value)


def read_result(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a file that `write_result` wrote.

    Raises:
        ValueError: it is no such file.
    """
    try:
        result = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError:
        result = None
    if not isinstance(result, dict) or not set(KEYS) <= set(result):
        raise ValueError(
            f"{path} must be a JSON object with the keys {list(KEYS)}, from write_result"
        )
    return result


def t_quantile(probability: float, degrees: int) -> float:
    """Returns the quantile of Student's t at a probability in [0.5, 1), by bisection."""
    if not 0.5 <= probability < 1.0 or degrees < 1:
        raise ValueError(
            "probability must be in [0.5, 1), and degrees must be >= 1; "
            f"got {probability} and {degrees}"
        )

    low, high = 0.0, math.pi / 2.0  # bounds of the angle atan(t / sqrt(n))
    for _ in range(60):
        middle = 0.5 * (low + high)
        if _within(middle, degrees) < 2.0 * probability - 1.0:
            low = middle
        else:
            high = middle

    return math.sqrt(degrees) * math.tan(0.5 * (low + high))


def _within(angle: float, degrees: int) -> float:
    """Returns P(|t| < sqrt(n) tan(angle)), a finite sum for integers n.

    References:
        Abramowitz & Stegun 1964, 26.7.3 and 26.7.4.
    """
    odd, term, total = degrees % 2, 1.0, 0.0
    for power in range(odd, degrees - 1, 2):  # cos^odd, then times k / (k + 1) cos^2 each
        if power == odd:
            term = math.cos(angle) ** odd
        else:
            term = term * (power - 1) / power * math.cos(angle) ** 2
        total += term
    return 2.0 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total


def _sample(values: ArrayLike, least: int = 2) -> FloatArray:
    array = np.asarray(values, dtype=np.float64)
    if array.size < least or not np.isfinite(array).all():
        raise ValueError(
            f"values must be at least {least}, all finite; got {array.size}, {array.tolist()}"
        )
    return array


def mean_interval(values: ArrayLike, confidence: float = 0.95) -> Interval:
    """Returns mean and Student's t interval over n >= 2 independent values, (n,).

    There is one value per seed or per controller.
    """
    array = _sample(values).reshape(-1)
    half = (
        t_quantile(0.5 + confidence / 2.0, array.size - 1)
        * array.std(ddof=1)
        / math.sqrt(array.size)
    )
    return Interval(float(array.mean()), float(array.mean() - half), float(array.mean() + half))


def _pairs(a: ArrayLike, b: ArrayLike) -> tuple[FloatArray, FloatArray]:
    first, second = _sample(a), _sample(b)
    if first.shape != second.shape:
        raise ValueError(
            f"a and b must have one value of each per seed; got {first.shape} and {second.shape}"
        )
    return first, second


def paired_interval(a: ArrayLike, b: ArrayLike, confidence: float = 0.95) -> Interval:
    """Returns the mean of b - a with a t interval over seeds.

    Both are (n,), in the order of the same n seeds.
    """
    first, second = _pairs(a, b)
    return mean_interval(second - first, confidence)


def paired_relative_interval(a: ArrayLike, b: ArrayLike, confidence: float = 0.95) -> Interval:
    """Returns the fraction (b - a) / b as `paired_interval`. 0.193: `a` is 19.3 % below `b`."""
    first, second = _pairs(a, b)
    return mean_interval((second - first) / second, confidence)


def controllers_interval(matrix: ArrayLike, confidence: float = 0.95) -> Interval | None:
    """Returns the mean over controllers, with Student's t interval over their means over seeds.

    The interval is for another controller of the same training, on these seeds. A bootstrap of so
    few values is too narrow: with five values it covers 86 % instead of 95.

    Args:
        matrix: one row per controller, one column per evaluation seed, (C, S).
        confidence: coverage of the interval.

    Returns:
        The interval, or None if there are fewer than FEWEST_CONTROLLERS.

    Raises:
        ValueError: the matrix has no two dimensions, or is not finite.
    """
    array = _sample(matrix, 1)
    if array.ndim != 2:
        raise ValueError(f"matrix must have shape (controllers, seeds); got {array.shape}")
    return mean_interval(array.mean(1), confidence) if len(array) >= FEWEST_CONTROLLERS else None


def markdown_table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Returns a Markdown table. Columns without words are aligned to the right.

    Raises:
        ValueError: a row does not have one cell per header.
    """
    for row in rows:
        if len(row) != len(headers):
            raise ValueError(
                f"row {list(row)} must have {len(headers)} cells, one per {list(headers)}; "
                f"got {len(row)}"
            )

    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    numeric: list[bool] = []

    for column in zip(*cells, strict=True):
        numeric.append(all(not cell[:1].isalpha() for cell in column))

    rule = ["---:" if right else "---" for right in numeric or [False] * len(headers)]
    return "\n".join("| " + " | ".join(line) + " |" for line in [list(headers), rule, *cells])
