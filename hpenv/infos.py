"""Infos of a vector env: one array (N,) per key, a mask `_key` of the rows that it was measured of;
and one row's.

The keys are flat, and the same at every reset and step of an env. Every value is a finite number. A
family of numbers has keys with a prefix: `panel/lr`, `reward_terms/progress`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from hpenv.plant import BoolArray, FloatArray

Info = dict[str, Any]


def columns(prefix: str, names: tuple[str, ...], values: FloatArray) -> Info:
    """Returns the columns of (N, A) under the keys `prefix/name`, each a new array (N,)."""
    return dict(zip(_prefixed(prefix, names), np.array(values.T, order="C"), strict=True))


def with_masks(infos: Info, rows: BoolArray) -> Info:
    """Adds the mask of every key: the rows that these infos were measured of."""
    # One allocation for all: an env of many cells has as many keys, and a decision may be every
    # step.
    return infos | dict(
        zip(_prefixed("", tuple(infos), "_"), np.tile(rows, (len(infos), 1)), strict=True)
    )


@functools.lru_cache(maxsize=64)
def _prefixed(prefix: str, names: tuple[str, ...], separator: str = "/") -> tuple[str, ...]:
    return tuple(f"{prefix}{separator}{name}" for name in names)


def restricted(infos: Info, rows: BoolArray) -> Info:
    """Returns a copy of infos whose masks are True for these rows alone."""
    return {
        key: value & rows if key.startswith("_") else value.copy() for key, value in infos.items()
    }


def merged(infos: Info, fresh: Info, rows: BoolArray) -> Info:
    """Returns infos in which the chosen rows have the values and masks of their reset."""
    return {key: np.where(rows, fresh[key], value) for key, value in infos.items()}


def only_row(infos: Info) -> Info:
    """Returns the infos of a population of one as numpy scalars; what was not measured stays in, as the 0 it is."""
    return {key: value[0] for key, value in infos.items() if not key.startswith("_")}


def row_value(value: Any, row: int, num_envs: int) -> Any:
    """Returns one row of what a vector env put under one key; a value that is not per row is every row's."""
    if isinstance(value, np.ndarray) and value.ndim > 0 and len(value) == num_envs:
        return value[row]
    if isinstance(value, Mapping):
        return row_info(value, row, num_envs)
    if isinstance(value, list | tuple) and len(value) == num_envs:
        return value[row]
    return value


def row_info(infos: Mapping[str, Any], row: int, num_envs: int) -> dict[str, Any]:
    """Returns what a vector env, of hpenv or not, has measured of one row.

    Args:
        infos: key -> array (N, ...), or a dictionary of such; `_key` -> mask (N,) of the rows that
            have the key.
        row: index of the row.
        num_envs: N.

    Returns:
        key -> numpy scalar, string, array or dictionary; without the keys that this row lacks, and
        without the masks.
    """
    result: dict[str, Any] = {}
    for key, value in infos.items():
        if key[:1] == "_" and key[1:] in infos:
            continue
        mask = infos.get("_" + key)
        if mask is None or mask.item(row):
            result[key] = row_value(value, row, num_envs)
    return result
