"""The beginning of a program: its configuration from the command line, and refusals of one line.

A program has two phases. In the first it checks all that it was asked for: arguments, folders,
files. What it refuses there is a mistake of its user: one line on stderr, and exit code 2. In the
second it works. An error there is a defect, and keeps its traceback.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import gymnasium as gym

from hpenv.posttraining.sandbox import SandboxUnavailable
from train_agents.logs import describe

Config = TypeVar("Config")
#: Exit code for what was asked for and cannot be done, as that of argparse and tyro.
REFUSED = 2


def configuration(
    kind: type[Config],
    program: str,
    description: str | None,
    arguments: Sequence[str] | None,
    completed: Callable[[Config], Config] = lambda config: config,
) -> Config:
    """Reads a program's configuration and prints all of it; a command line that does not fit it
    ends the program.

    Args:
        kind: a dataclass, whose fields are the options.
        program: the module that is run, as `train_agents.train`.
        description: for --help.
        arguments: None for those of the command line.
        completed: makes the configuration that is run of the one that was given.
    """
    with refusals():
        try:
            import tyro
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"{program} needs tyro; install it with: pip install 'hpenv[agents]'"
            ) from error
        config = completed(
            tyro.cli(kind, prog=f"python -m {program}", args=arguments, description=description)
        )
    describe(config)
    return config


@contextmanager
def refusals() -> Iterator[None]:
    """Ends the program with one line on stderr and exit code 2 if the block refuses what it was asked for."""
    try:
        yield
    except (ValueError, OSError, ModuleNotFoundError, gym.error.Error, SandboxUnavailable) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        raise SystemExit(REFUSED) from None


def check_counts(config: Any, *names: str, least: int = 1) -> None:
    """Refuses fields of a configuration that are below `least`.

    Raises:
        ValueError: naming the field and what was given.
    """
    for name in names:
        value = getattr(config, name)
        if value < least:
            raise ValueError(f"{name} must be at least {least}; got {value}")
