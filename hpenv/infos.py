"""Infos of a vector env, and the info of one row.

Infos hold one array (N,) per key, and under `_key` a mask of the rows that the key was measured of.
The keys are flat, and the same at every reset and step of an env. Every value is a finite number. A
family of numbers has keys with a prefix: `panel/lr`, `reward_terms/progress`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from hpenv.arrays import BoolArray, FloatArray

Info = dict[str, Any]


def columns(prefix: str, names: tuple[str, ...], values: FloatArray) -> Info:
    """Returns the columns of (N, A) under the keys `prefix/name`, each a new array (N,)."""
    return dict(zip(_prefix_names(prefix, names), np.array(values.T, order="C"), strict=True))


def with_masks(infos: Info, rows: BoolArray) -> Info:
    """Returns the infos with a mask for every key: the rows that these infos were measured of."""
    # One allocation for all masks: an env of many cells has as many keys, and a decision may be
    # every step.
    return infos | dict(
        zip(_prefix_names("", tuple(infos), "_"), np.tile(rows, (len(infos), 1)), strict=True)
    )


@functools.lru_cache(maxsize=64)
def _prefix_names(prefix: str, names: tuple[str, ...], separator: str = "/") -> tuple[str, ...]:
    return tuple(f"{prefix}{separator}{name}" for name in names)


def mask_rows(infos: Info, rows: BoolArray) -> Info:
    """Returns a copy of infos whose masks are True for at most these rows."""
    return {
        key: value & rows if key.startswith("_") else value.copy() for key, value in infos.items()
    }


def overwrite_rows(infos: Info, fresh: Info, rows: BoolArray) -> Info:
    """Returns infos in which these rows have the values and masks of their reset."""
    return {key: np.where(rows, fresh[key], value) for key, value in infos.items()}


def only_row(infos: Info) -> Info:
    """Returns the infos of a population of one as numpy scalars.

    Keys that were not measured stay in, with the value 0.
    """
    return {key: value[0] for key, value in infos.items() if not key.startswith("_")}


def row_value(value: Any, row: int, num_envs: int) -> Any:
    """Returns the part of a value that belongs to one row.

    A value that is not given per row is returned as it is.
    """
    if isinstance(value, np.ndarray) and value.ndim > 0 and len(value) == num_envs:
        return value[row]
    if isinstance(value, Mapping):
        return row_info(value, row, num_envs)
    if isinstance(value, list | tuple) and len(value) == num_envs:
        return value[row]
    return value


def row_info(infos: Mapping[str, Any], row: int, num_envs: int) -> dict[str, Any]:
    """Returns the info of one row of a vector env, of hpenv or not.

    Args:
        infos: key -> array (N, ...), or a dictionary of such. `_key` -> mask (N,) of the rows that
            have the key.
        row: index of the row.
        num_envs: N.

    Returns:
        key -> numpy scalar, string, array or dictionary. Masks, and keys that the row lacks, are
        left out.
    """
    result: dict[str, Any] = {}

    for key, value in infos.items():
        if key[:1] == "_" and key[1:] in infos:
            continue
        mask = infos.get("_" + key)
        if mask is None or mask.item(row):
            result[key] = row_value(value, row, num_envs)

    return result
