"""Arguments: what the factories of the ids do alike with those they are given."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any

from hpenv.configuration import PretrainingConfig, check_count, is_count
from hpenv.schedules import Constant, Schedule, WarmupFlatWarmdown

SCHEDULES = ("none", "warmup_flat_warmdown")


def known(arguments: Mapping[str, Any], config: type[Any], id: str) -> dict[str, Any]:
    """The arguments, all of which are fields of the id's configuration.

    Raises:
        ValueError: naming those that are not, and those that are accepted.
    """
    accepted = {f.name for f in fields(config)}
    unknown = sorted(set(arguments) - accepted)
    if unknown:
        raise ValueError(f"unknown arguments {unknown} of {id}; expected some of {sorted(accepted)}")
    return dict(arguments)


def check_key(name: str, value: object, table: Collection[str], otherwise: str = "") -> None:
    """Refuses what is not a key of a table; `otherwise` says what the argument may be instead of a key.

    Raises:
        ValueError: naming the argument, what was given and what is accepted.
    """
    if not (isinstance(value, str) and value in table):
        accepted = f"{sorted(table)}, or {otherwise}" if otherwise else f"{sorted(table)}"
        raise ValueError(f"unknown {name} {value!r}; expected one of {accepted}")


def check_episode(num_steps: int, interval: int) -> None:
    """Refuses an episode that does not hold a decision.

    Raises:
        ValueError: naming the argument and what was given.
    """
    check_count("num_steps", num_steps)
    if not (is_count(interval) and interval <= num_steps):
        raise ValueError(f"interval={interval} must be between 1 and num_steps={num_steps}")


def base_schedule(
    schedule: str | Schedule | Mapping[str, Schedule], num_steps: int
) -> Schedule | Mapping[str, Schedule]:
    """The base schedule of the learning rate: one of SCHEDULES over an episode, or what is given.

    Raises:
        ValueError: for a name that is not one of SCHEDULES.
    """
    if not isinstance(schedule, str):
        return schedule
    if schedule not in SCHEDULES:
        raise ValueError(f"unknown schedule {schedule!r}; expected a Schedule or one of {list(SCHEDULES)}")
    return Constant() if schedule == "none" else WarmupFlatWarmdown(num_steps)


def plant_config(config: Any) -> PretrainingConfig:
    """What a run is: those fields of an id's configuration that the plant has as well, and the base schedule."""
    shared = {f.name for f in fields(config)} & {f.name for f in fields(PretrainingConfig)}
    schedule = base_schedule(config.schedule, config.num_steps)
    return PretrainingConfig(**{name: getattr(config, name) for name in shared}, lr_schedule=schedule)
