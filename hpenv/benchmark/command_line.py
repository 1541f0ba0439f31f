"""The start of a program: its configuration from the command line, and error messages of one line.

A program has two phases. In the first it checks its arguments, folders and files. An error there is
a mistake of the user: one line on stderr, and exit code 2. In the second it works. An error there
is a defect, and keeps its traceback.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import gymnasium as gym

from hpenv.benchmark.progress import describe
from hpenv.posttraining.sandbox import SandboxUnavailable

Config = TypeVar("Config")
#: Exit code for mistakes of the user, as in argparse and tyro.
REFUSED = 2


def configuration(
    kind: type[Config],
    program: str,
    description: str | None,
    arguments: Sequence[str] | None,
    completed: Callable[[Config], Config] = lambda config: config,
) -> Config:
    """Reads a program's configuration from the command line, and prints it.

    A command line that does not fit ends the program.

    Args:
        kind: a dataclass whose fields are the options.
        program: the module of the program, such as `train_agents.train`.
        description: text for --help.
        arguments: the arguments. None: those of the command line.
        completed: function from the given configuration to the one that runs.
    """
    with refusals():
        try:
            import tyro
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"{program} needs tyro; install it with: pip install 'hpenv[agents]'"
            ) from error
        given = tyro.cli(kind, prog=f"python -m {program}", args=arguments, description=description)
        config = completed(given)

    describe(config)
    return config


@contextmanager
def refusals() -> Iterator[None]:
    """Turns a user's error in the block into one line on stderr and exit code 2."""
    try:
        yield
    except (ValueError, OSError, ModuleNotFoundError, gym.error.Error, SandboxUnavailable) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        raise SystemExit(REFUSED) from None


def check_counts(config: Any, *names: str, least: int = 1) -> None:
    """Checks that fields of a configuration are at least `least`.

    Raises:
        ValueError: a field is smaller. It names the field and its value.
    """
    for name in names:
        value = getattr(config, name)
        if value < least:
            raise ValueError(f"{name} must be at least {least}; got {value}")
