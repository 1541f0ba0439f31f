"""A vector env's info: an array (N,) per key beside a `_key` mask of its rows, nested alike; and one row's share."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from hpenv.plant import BoolArray, FloatArray

Info = dict[str, Any]


def by_name(names: tuple[str, ...], values: FloatArray) -> Info:
    """Columns of (N, A) under their names, each an array (N,) of its own."""
    return dict(zip(names, np.ascontiguousarray(values.T), strict=True))


def with_masks(infos: Info, rows: BoolArray) -> Info:
    """Adds the mask of every key, at every level: the rows that these infos are of."""
    # One allocation for all: an env of many cells has as many keys, and a decision may be every step.
    masks = zip(_mask_keys(tuple(infos)), np.tile(rows, (len(infos), 1)), strict=True)
    return {key: with_masks(value, rows) if isinstance(value, dict) else value for key, value in infos.items()} | dict(
        masks
    )


@functools.lru_cache(maxsize=64)
def _mask_keys(keys: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"_{key}" for key in keys)


def restricted(infos: Info, rows: BoolArray) -> Info:
    """A copy of infos of which only some rows count."""
    return {
        key: restricted(value, rows)
        if isinstance(value, dict)
        else (value & rows if key.startswith("_") else value.copy())
        for key, value in infos.items()
    }


def merged(infos: Info, fresh: Info, rows: BoolArray) -> Info:
    """Infos with the chosen rows taken from those of their reset; what a reset does not report is masked out."""
    result: Info = {}
    for key, value in infos.items():
        if isinstance(value, dict):
            result[key] = merged(value, fresh.get(key, {}), rows)
        elif key.startswith("_"):
            result[key] = np.where(rows, fresh.get(key, np.zeros_like(value)), value)
        else:
            result[key] = np.where(rows, fresh[key], value) if key in fresh else value
    return result | {key: value for key, value in fresh.items() if key not in infos}


def row_value(value: Any, row: int, num_envs: int) -> Any:
    """Value of one row of what a vector env put under one key; what is not per row is every row's."""
    if isinstance(value, np.ndarray) and value.ndim > 0 and len(value) == num_envs:
        return value.item(row) if value.ndim == 1 else value[row]
    if isinstance(value, Mapping):
        return row_info(value, row, num_envs)
    if isinstance(value, list | tuple) and len(value) == num_envs:
        return value[row]
    return value


def row_info(infos: Mapping[str, Any], row: int, num_envs: int) -> dict[str, Any]:
    """Information of one row of a vector env, as a single env would have given it.

    Args:
        infos: key -> array (N, ...), or a dictionary of such; `_key` -> mask (N,) of the rows that have the key.
        row: which one.
        num_envs: N.

    Returns:
        key -> Python scalar, string, array or dictionary; without the keys that this row lacks, and without the masks.
    """
    result: dict[str, Any] = {}
    for key, value in infos.items():
        if key[:1] == "_" and key[1:] in infos:
            continue
        mask = infos.get("_" + key)
        if mask is None or mask.item(row):
            result[key] = row_value(value, row, num_envs)
    return result
