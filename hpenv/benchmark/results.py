"""Result files: how a number is written down, with what it depends on.

A result file is JSON: `kind`, `configuration`, `facts` (`environment_facts`), `rows` (one per run),
`extra` and `notes`.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hpenv.benchmark.facts import environment_facts
from hpenv.benchmark.files import write_text

#: The data of a result file: a dictionary per run, and a dictionary `extra`.
Rows = tuple[list[dict[str, Any]], dict[str, Any]]

KEYS = ("kind", "configuration", "facts", "rows", "extra", "notes")
#: Significant digits of numbers in lists. Curves are for plots: 6 digits are finer than a pixel.
SIGNIFICANT_DIGITS = 6


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
