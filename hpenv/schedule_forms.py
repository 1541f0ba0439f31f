"""Forms in which a base schedule is given: a name, a mapping, a schedule of hpenv.schedules, or any
function.

Each becomes a schedule of hpenv.schedules, which is data: it can be pickled, compared, and written
as JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

import numpy as np

from hpenv.schedules import SCHEDULES, PiecewiseConstant, Schedule


def schedule_of(argument: str, given: object, num_steps: int) -> Schedule:
    """Returns the schedule of a run, in whatever form it is given.

    Args:
        argument: name of the argument, for errors.
        given: a key of SCHEDULES; a mapping with such a key as its `name`, and parameters of the
            schedule, of which `num_steps` is that of the run unless it is given; a schedule of
            hpenv.schedules; or a function, see `tabulated`.
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
        return tabulated(given, num_steps, argument)
    raise ValueError(
        f"{argument} must be one of {sorted(SCHEDULES)}, a mapping with such a name, as {{'name': 'cosine', "
        f"'warmup_steps': 10}}, a schedule of hpenv.schedules, or a function of an array of steps; got {given!r}. "
        "A schedule of your own does not survive being written as text: write its values, as "
        "{'name': 'piecewise_constant', 'interval': 1, 'values': [...]}"
    )


def schedules_of(argument: str, given: object, num_steps: int) -> Schedule | dict[str, Schedule]:
    """Returns the schedule of all groups, or that of each, if a mapping without a `name` gives them
    by group.

    Raises:
        ValueError: as `schedule_of`.
    """
    if isinstance(given, Mapping) and "name" not in given:
        return {
            group: schedule_of(f"{argument}[{group!r}]", own, num_steps)
            for group, own in given.items()
        }
    return schedule_of(argument, given, num_steps)


def _of_data(argument: str, data: Mapping[Any, Any], num_steps: int) -> Schedule:
    """Returns the schedule of a mapping; see `schedule_of`."""
    name = data["name"]
    if not (isinstance(name, str) and name in SCHEDULES):
        raise ValueError(
            f"unknown {argument} {name!r}; expected one of {sorted(SCHEDULES)}, a mapping with such a name, as "
            "{'name': 'cosine', 'warmup_steps': 10}, a Schedule, or a function of steps"
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
        made: Schedule = kind(**parameters)
    except ValueError as error:
        raise ValueError(f"{argument}: {error}") from error
    return made


def tabulated(function: Schedule, num_steps: int, argument: str = "function") -> PiecewiseConstant:
    """Returns the table of a function's values at every step of a run; past the last one it stays
    where it is.

    The table is what is trained with, saved and compared, so nobody has to find the function again.

    Args:
        function: maps an array of steps to an array of as many multipliers.
        num_steps: steps of the run [steps].
        argument: name of the argument, for errors.

    Raises:
        ValueError: for what does not map steps to multipliers, or gives one that is not finite, or
            negative.
    """
    steps = np.arange(num_steps)[:, None]  # (T, 1), a column as for one run
    wanted = f"{argument} must map an array of steps to an array of as many multipliers; got {function!r}"
    try:
        made = function(steps)
    except Exception as error:  # whatever somebody else's function raises
        raise ValueError(f"{wanted}, which raised {type(error).__name__}: {error}") from error
    if not (
        isinstance(made, np.ndarray) and made.shape == steps.shape and made.dtype.kind in "fiu"
    ):
        found = (
            f"an array {made.dtype} of shape {made.shape}"
            if isinstance(made, np.ndarray)
            else repr(made)
        )
        raise ValueError(f"{wanted}, which made {found} of steps of shape {steps.shape}")
    values = made[:, 0].astype(np.float64)
    wrong = np.flatnonzero(~(np.isfinite(values) & (values >= 0)))
    if len(wrong):
        raise ValueError(
            f"{argument} must be finite and not negative at every step of the run; got {values[wrong[0]]} at step "
            f"{wrong[0]}, of {function!r}"
        )
    return PiecewiseConstant(tuple(values.tolist()), 1)
