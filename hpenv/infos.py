"""Infos of a vector env, and the info of one row.

Infos hold one array (N,) per key, and under `_key` a mask of the rows that the key was measured of.
The keys are flat, and the same at every reset and step of an env. Every value is a finite number. A
family of numbers has keys with a prefix: `panel/lr`, `reward_terms/progress`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpenv.arrays import BoolArray, FloatArray
from hpenv.control.panel import Panel
from hpenv.plant.measurements import Measurement, Window

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


def decision_infos(
    window: Window,
    measurements: Sequence[Measurement],
    panel: Panel,
    terms: Mapping[str, FloatArray],
    moved: BoolArray,
    rows: BoolArray,
    probes: bool,
) -> Info:
    """Returns the state of some rows, and training measurements of those that moved.

    The keys are the same at every call. Measurements of training are 0 for a row that did not move.

    Args:
        window: measurements of the decision.
        measurements: of the plant.
        panel: whose values the rows trained with.
        terms: reward terms without their weights, (N,) each.
        moved: rows that were trained, (N,) bool.
        rows: rows that were trained or reset, (N,) bool.
        probes: True if the probe loss is measured.
    """
    state: Info = {
        "step": window.steps.copy(),
        "train_loss": window["train_loss"].copy(),
        "divergence": window.divergence.copy(),
    }
    if probes:
        state["probe_loss"] = window["probe_loss"].copy()
    state |= columns("panel", panel.names, panel.values())

    trained: Info = {"gradient_norm": np.minimum(window["gradient_norm"], np.finfo(np.float32).max)}
    unweighted = np.array(list(terms.values())).reshape(-1, len(rows)).T + 0.0
    trained |= columns("reward_terms", tuple(terms), unweighted)
    for own in measurements:
        if own.in_info or own.privileged:
            prefix = "privileged" if own.privileged else "gauges"
            trained[f"{prefix}/{own.name}"] = window[own.name].copy()

    for value in trained.values():
        value[~moved] = 0.0
    return with_masks(state, rows) | with_masks(trained, moved)


def infos_of_restart(
    infos: Info, fresh: Info, observations: NDArray[np.float32], ended: BoolArray
) -> Info:
    """Returns the infos of a step after which some rows were reset.

    Args:
        infos: of the step.
        fresh: of the reset.
        observations: of the step, (N, F).
        ended: rows whose episode has ended and that were reset, (N,) bool.

    Returns:
        The infos with the values and masks of the reset in these rows. `final_obs` and `final_info`
        have those of the step, as Gymnasium's vector envs do.
    """
    final_observations = np.empty(len(ended), dtype=object)
    for row in np.flatnonzero(ended):
        final_observations[row] = observations[row].copy()
    final_infos = {
        key: value & ended if key.startswith("_") else value.copy() for key, value in infos.items()
    }

    merged: Info = {key: np.where(ended, fresh[key], value) for key, value in infos.items()}
    merged |= {"final_obs": final_observations, "_final_obs": ended.copy()}
    return merged | {"final_info": final_infos, "_final_info": ended.copy()}


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
