"""Forms of a base schedule argument: a name, a mapping, a schedule, or a function.

Each form becomes a schedule of hpenv.optim.schedules, which is data. It can be pickled, compared,
and written as JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

import numpy as np

from hpenv.optim.schedules import SCHEDULES, PiecewiseConstant, Schedule


def schedule_of(argument: str, given: object, num_steps: int) -> Schedule:
    """Returns the schedule of a run from any of its forms.

    Args:
        argument: name of the argument, for errors.
        given: a key of SCHEDULES, a schedule of hpenv.optim.schedules, a function (see `tabulate`),
            or a mapping. A mapping has a key of SCHEDULES as its `name`, and parameters of the
            schedule. Its `num_steps` defaults to that of the run.
        num_steps: steps of the run [steps].

    Raises:
        ValueError: for an unknown name or parameter, an impossible value, or anything else.
    """
    if type(given) in SCHEDULES.values():
        return given  # type: ignore[return-value]
    if isinstance(given, str):
        return _of_data(argument, {"name": given}, num_steps)
    if isinstance(given, Mapping) and "name" in given:
        return _of_data(argument, given, num_steps)
    if callable(given) and not isinstance(given, type):
        return tabulate(given, num_steps, argument)
    raise ValueError(
        f"{argument} must be one of {sorted(SCHEDULES)}, a mapping with such a name, as "
        "{'name': 'cosine', 'warmup_steps': 10}, a schedule of hpenv.optim.schedules, or a "
        f"function of an array of steps; got {given!r}; a schedule of your own does not survive "
        "being written as text, so write its values, as "
        "{'name': 'piecewise_constant', 'interval': 1, 'values': [...]}"
    )


def schedules_of(argument: str, given: object, num_steps: int) -> Schedule | dict[str, Schedule]:
    """Returns one schedule for all groups, or one schedule per group.

    It is one per group if `given` is a mapping without a `name`.

    Raises:
        ValueError: as `schedule_of`.
    """
    if isinstance(given, Mapping) and "name" not in given:
        return {
            group: schedule_of(f"{argument}[{group!r}]", form, num_steps)
            for group, form in given.items()
        }
    return schedule_of(argument, given, num_steps)


def _of_data(argument: str, data: Mapping[Any, Any], num_steps: int) -> Schedule:
    """Returns the schedule of a mapping. See `schedule_of`."""
    name = data["name"]
    if not (isinstance(name, str) and name in SCHEDULES):
        raise ValueError(
            f"unknown {argument} {name!r}; expected one of {sorted(SCHEDULES)}, a mapping with "
            "such a name, as {'name': 'cosine', 'warmup_steps': 10}, a Schedule, or a function of "
            "steps"
        )

    kind = SCHEDULES[name]
    accepted = {entry.name: entry.default is MISSING for entry in fields(kind) if entry.init}
    parameters = {key: value for key, value in data.items() if key != "name"}
    unknown = [key for key in parameters if key not in accepted]
    if unknown:
        raise ValueError(
            f"parameters of {argument} {name!r} must be some of {sorted(accepted)}; got {unknown}"
        )

    if "num_steps" in accepted:
        parameters = {"num_steps": num_steps} | parameters
    if "base" in parameters:
        parameters["base"] = schedule_of(f"{argument}['base']", parameters["base"], num_steps)

    missing = [key for key, needed in accepted.items() if needed and key not in parameters]
    if missing:
        raise ValueError(
            f"parameters of {argument} {name!r} must include {missing}; got {dict(data)}"
        )

    try:
        schedule: Schedule = kind(**parameters)
    except ValueError as error:
        raise ValueError(f"{argument}: {error}") from error
    return schedule


def tabulate(function: Schedule, num_steps: int, argument: str = "function") -> PiecewiseConstant:
    """Returns the table of a function's values at every step of a run.

    The last value holds afterwards. The run trains with the table, and snapshots save and compare
    it, so the function is not needed again.

    Args:
        function: maps an array of steps to an array of as many multipliers.
        num_steps: steps of the run [steps].
        argument: name of the argument, for errors.

    Raises:
        ValueError: for a function that does not map steps to multipliers, or gives one that is not
            finite, or negative.
    """
    steps = np.arange(num_steps)[:, None]  # (T, 1), a column as for one run
    required = (
        f"{argument} must map an array of steps to an array of as many multipliers; "
        f"got {function!r}"
    )
    try:
        multipliers = function(steps)
    except Exception as error:  # whatever the user's function raises
        raise ValueError(f"{required}, which raised {type(error).__name__}: {error}") from error

    is_array = isinstance(multipliers, np.ndarray)
    fits = is_array and multipliers.shape == steps.shape and multipliers.dtype.kind in "fiu"
    if not fits:
        found = repr(multipliers)
        if is_array:
            found = f"an array {multipliers.dtype} of shape {multipliers.shape}"
        raise ValueError(f"{required}, which made {found} of steps of shape {steps.shape}")

    values = multipliers[:, 0].astype(np.float64)
    wrong = np.flatnonzero(~(np.isfinite(values) & (values >= 0)))
    if len(wrong):
        raise ValueError(
            f"{argument} must be finite and not negative at every step of the run; "
            f"got {values[wrong[0]]} at step {wrong[0]}, of {function!r}"
        )
    return PiecewiseConstant(tuple(values.tolist()), 1)
