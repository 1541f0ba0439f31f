"""Limits and jobs, which go into the sandbox, and outcomes, which come out."""

from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import Any

#: `Result.error` of a value that is not plain JSON: a tuple, a NaN, a subclass, too deep, too
#: large.
UNSERIALIZABLE = "Unserializable"


#: Limit -> the least and the most that it may be. More answers than the least are needed to prove
#: that the layers hold.
_RANGES = {
    "wall_seconds": (0.001, 86_400),
    "cpu_seconds": (1, 3_600),
    "returned_bytes": (1024, 2**40),
}
_RANGE = (1, 2**40)


class SandboxUnavailable(RuntimeError):  # noqa: N818  (it says what is the matter)
    """The machine lacks what the sandbox needs; nothing was executed. The message names it and the cure."""


@dataclass(frozen=True)
class Limits:
    """Limits of what one program may use before it is ended."""

    wall_seconds: float = 2.0  # from the start of the job; enforced by the parent
    cpu_seconds: int = 1  # processor time
    memory_bytes: int = 512 * 2**20  # address space
    output_bytes: int = 65_536  # stdout and stderr, each
    returned_bytes: int = 2**20  # all answers of one program, as JSON
    file_bytes: int = 65_536  # one file of the scratch folder
    num_files: int = 8  # files of the scratch folder

    def __post_init__(self) -> None:
        """Refuses what cannot be a limit; numbers of numpy become Python's."""
        for entry in fields(self):
            value: Any = getattr(self, entry.name)
            least, most = _RANGES.get(entry.name, _RANGE)
            is_whole = entry.name != "wall_seconds"
            is_number = isinstance(value, Integral if is_whole else Real) and not isinstance(
                value, bool
            )
            if not (is_number and least <= value <= most):
                noun = "an integer" if is_whole else "a number"
                raise ValueError(
                    f"{entry.name} must be {noun} from {least} to {most}; got {value!r}"
                )
            object.__setattr__(self, entry.name, int(value) if is_whole else float(value))


def check_num_workers(num_workers: object) -> None:
    """Refuses what is no number of workers.

    Raises:
        ValueError: naming the argument and what was given.
    """
    if isinstance(num_workers, bool) or not isinstance(num_workers, Integral) or num_workers < 1:
        raise ValueError(f"num_workers must be an integer of at least 1; got {num_workers!r}")


@dataclass(frozen=True)
class Call:
    """A call to make once the program has run."""

    # a name that the program defines, or an expression of such names, as `Solution().f`, which
    # makes an instance for this call alone; evaluated inside the sandbox, where no builtin is in
    # reach of it
    function: str
    arguments: tuple[Any, ...] = ()  # JSON values


@dataclass(frozen=True)
class Job:
    """One program and the calls to make to it.

    The program is loaded as a module whose `__name__` is not "__main__", so that a block which is
    meant for the command line is not run.
    """

    source: str
    calls: tuple[Call, ...] = ()
    scratch: bool = (
        False  # whether it may write files, into an empty folder that is its working directory
    )
    # executed before and after the source, in its namespace but as sources of their own; the
    # __future__ imports of the first hold in the program too
    setup: str = ""
    after: str = ""


@dataclass(frozen=True)
class Result:
    """Result of one call: decoded JSON, or the name of the exception it raised."""

    value: Any = None
    error: str = ""  # "" where there is a value; UNSERIALIZABLE where the value is not plain JSON


@dataclass(frozen=True)
class Outcome:
    """Outcome of a program. All of it is the program's word, and a program may lie about itself."""

    stdout: str
    stderr: str
    exit_code: int | None  # None where it was ended by a signal
    killed_by: str  # "", "wall", "cpu", "memory", "output" (too much of it, or of files), "signal:<n>", "zygote"
    returned: tuple[
        Result, ...
    ]  # in the order of the calls; shorter where the program ended before
    compiled: bool  # whether neither the source nor its setup has a syntax error
    seconds: float  # wall clock [s]; never part of a verdict
    files: dict[str, bytes] = field(default_factory=dict)  # what it left in the scratch folder
