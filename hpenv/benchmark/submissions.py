"""Submissions: folders with `submission.toml`, a controller, and its rows."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from hpenv.benchmark.methods import Method, method_of

FILE = "submission.toml"
#: Keys of `submission.toml`.
KEYS = {
    "name": "name on the board",
    "suite": "name of the suite",
    "controller": "file.py:Class, or the folder of a saved policy, below the submission",
    "authors": "list of names",
    "description": "what the controller does, in a few sentences",
    "meta_training": "cost of its training [runs of an instance, by tokens]",
    "tuning": "cost of its tuning [runs of an instance, by tokens]",
}


def is_submission(folder: str | Path) -> bool:
    """Returns True if a path is the folder of a submission."""
    return (Path(folder) / FILE).is_file()


def read_submission(folder: Path) -> dict[str, Any]:
    """Returns the values of `submission.toml`.

    Raises:
        ValueError: the file is missing, or has other keys.
    """
    file = folder / FILE
    if not file.is_file():
        raise ValueError(f"submission must be a folder with submission.toml; got {folder}")
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{file} must be TOML; {error}") from error
    if set(values) != set(KEYS):
        about = "; ".join(f"{key}: {text}" for key, text in KEYS.items())
        raise ValueError(f"{file} must have the keys {sorted(KEYS)}; got {sorted(values)}; {about}")
    return values


def submitted_method(folder: Path) -> Method:
    """Returns the controller of a submission, under its name and with its costs.

    Raises:
        ValueError: see `read_submission` and `method_of`.
    """
    values = read_submission(folder)
    costs = {name: values[name] for name in ("meta_training", "tuning")}
    return method_of(str(folder / values["controller"]), values["name"], costs)
