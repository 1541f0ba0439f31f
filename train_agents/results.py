"""Results: the file that holds a number, and an interval around it.

A result file is JSON: `kind`, `configuration`, `facts` (`environment_facts`), `rows` (one per run),
`extra`, `notes`. Statistics are pure functions. Where two samples are compared, lower is better, as
for losses and bits per byte: a positive difference says that `a` lies below `b`. Intervals are
Student's: over seeds where one method is run on several, over controllers where there are several,
each then averaged over its seeds.
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
from numpy.typing import ArrayLike, NDArray

from train_agents.facts import environment_facts
from train_agents.outputs import write_text

FloatArray = NDArray[np.float64]
#: What a result file is made of: a dictionary per run, and what else there is.
Rows = tuple[list[dict[str, Any]], dict[str, Any]]

KEYS = ("kind", "configuration", "facts", "rows", "extra", "notes")
#: Of fewer controllers no interval is given, and nothing is claimed.
FEWEST_CONTROLLERS = 5
SIGNIFICANT_DIGITS = (
    6  # of numbers in lists: curves are for looking at, and 6 digits are more than a pixel
)


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
    """Writes a result file, whole or not at all; a reader never sees half of it.

    Numbers in lists are rounded to 6 significant digits, but for those under a key with `bpb` in
    it; numbers that stand alone, and the configuration, are not. A NaN or an infinity becomes null,
    and `notes` says where. What JSON does not know is written as its repr. The corpus of the facts
    is that of the rows.
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
    """JSON with every item of a list, or entry of a dictionary, on a line of its own, so that a diff shows a row."""
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
    """A value in JSON's own types; `notes` grows by a line per number that JSON cannot hold."""
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
    """What `write_result` wrote; a ValueError names a file that it did not write."""
    try:
        result = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError:
        result = None
    if not isinstance(result, dict) or not set(KEYS) <= set(result):
        raise ValueError(
            f"{path} is no JSON object with the keys {list(KEYS)}; expected what write_result wrote"
        )
    return result


def t_quantile(probability: float, degrees: int) -> float:
    """Quantile of Student's t: the number that a draw stays below with this probability, in [0.5, 1); by bisection."""
    if not 0.5 <= probability < 1.0 or degrees < 1:
        raise ValueError(
            f"probability {probability}, degrees {degrees}; expected [0.5, 1) and at least 1"
        )
    low, high = 0.0, math.pi / 2.0  # of the angle atan(t / sqrt(n))
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (
            (middle, high) if _within(middle, degrees) < 2.0 * probability - 1.0 else (low, middle)
        )
    return math.sqrt(degrees) * math.tan(0.5 * (low + high))


def _within(angle: float, degrees: int) -> float:
    """P(|t| < sqrt(n) tan(angle)), a finite sum for whole n (Abramowitz & Stegun 1964, 26.7.3 and 26.7.4)."""
    odd, term, total = degrees % 2, 1.0, 0.0
    for power in range(odd, degrees - 1, 2):  # cos^odd, then times k / (k + 1) cos^2 each
        term = (
            math.cos(angle) ** odd
            if power == odd
            else term * (power - 1) / power * math.cos(angle) ** 2
        )
        total += term
    return 2.0 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total


def _sample(values: ArrayLike, least: int = 2) -> FloatArray:
    array = np.asarray(values, dtype=np.float64)
    if array.size < least or not np.isfinite(array).all():
        raise ValueError(
            f"got {array.size} values, {array.tolist()}; expected at least {least}, all finite"
        )
    return array


def mean_interval(values: ArrayLike, confidence: float = 0.95) -> Interval:
    """Mean and Student's t interval over independent values, (n,) with n >= 2: one per seed or per controller."""
    array = _sample(values).reshape(-1)
    half = (
        t_quantile(0.5 + confidence / 2.0, array.size - 1)
        * array.std(ddof=1)
        / math.sqrt(array.size)
    )
    return Interval(float(array.mean()), float(array.mean() - half), float(array.mean() + half))


def _paired(a: ArrayLike, b: ArrayLike) -> tuple[FloatArray, FloatArray]:
    first, second = _sample(a), _sample(b)
    if first.shape != second.shape:
        raise ValueError(
            f"got {first.shape} and {second.shape} values; expected one of each per seed"
        )
    return first, second


def paired_interval(a: ArrayLike, b: ArrayLike, confidence: float = 0.95) -> Interval:
    """How far `a` lies below `b`: b - a with a t interval over seeds; both (n,), in the order of the same n seeds."""
    first, second = _paired(a, b)
    return mean_interval(second - first, confidence)


def paired_relative_interval(a: ArrayLike, b: ArrayLike, confidence: float = 0.95) -> Interval:
    """Fraction by which `a` lies below `b`: (b - a) / b, as `paired_interval`; 0.193 is 19.3 % below."""
    first, second = _paired(a, b)
    return mean_interval((second - first) / second, confidence)


def controllers_interval(matrix: ArrayLike, confidence: float = 0.95) -> Interval | None:
    """Mean over controllers, with Student's t interval over their means over the seeds; None of too
    few controllers.

    It speaks of another controller trained the same way, on these seeds. A bootstrap of as few
    values is too narrow: of five it covers 86 % in the place of 95.

    Args:
        matrix: one row per controller, one column per evaluation seed, (C, S).
        confidence: of the interval.

    Raises:
        ValueError: the matrix is none, or not finite.
    """
    array = _sample(matrix, 1)
    if array.ndim != 2:
        raise ValueError(f"got a matrix of shape {array.shape}; expected (controllers, seeds)")
    return mean_interval(array.mean(1), confidence) if len(array) >= FEWEST_CONTROLLERS else None


def markdown_table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; columns without a word in them are aligned to the right.

    Raises:
        ValueError: a row has another number of cells than there are headers.
    """
    for row in rows:
        if len(row) != len(headers):
            raise ValueError(
                f"row {list(row)} has {len(row)} cells; expected {len(headers)}, one per {list(headers)}"
            )
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    numeric = (
        [all(not cell[:1].isalpha() for cell in column) for column in zip(*cells, strict=True)]
        if cells
        else []
    )
    rule = ["---:" if right else "---" for right in numeric or [False] * len(headers)]
    return "\n".join("| " + " | ".join(line) + " |" for line in [list(headers), rule, *cells])
