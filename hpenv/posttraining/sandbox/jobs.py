"""Records of the sandbox: limits and jobs, which go in, and outcomes, which come out."""

from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import Any

#: `Result.error` of a value that is not plain JSON: a tuple, a NaN, a subclass, too deep or too
#: large.
UNSERIALIZABLE = "Unserializable"


#: Limit -> its smallest and largest value. `returned_bytes` has a minimum of its own, because the
#: program that proves that the layers hold has to answer.
_RANGES = {
    "wall_seconds": (0.001, 86_400),
    "cpu_seconds": (1, 3_600),
    "returned_bytes": (1024, 2**40),
}
_RANGE = (1, 2**40)


class SandboxUnavailable(RuntimeError):  # noqa: N818  (it says what is wrong)
    """The machine lacks something, named in the message with its cure. Nothing was executed."""


@dataclass(frozen=True)
class Limits:
    """Limits of one program. A program that exceeds one is ended."""

    wall_seconds: float = 2.0  # from the start of the job, enforced by the parent
    cpu_seconds: int = 1  # processor time
    memory_bytes: int = 512 * 2**20  # address space
    output_bytes: int = 65_536  # stdout and stderr, each
    returned_bytes: int = 2**20  # all answers of one program, as JSON
    file_bytes: int = 65_536  # one file of the scratch folder
    num_files: int = 8  # files of the scratch folder

    def __post_init__(self) -> None:
        """Checks every limit, and turns numbers of numpy into Python's."""
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
    """Checks a number of workers.

    Raises:
        ValueError: if it is not an integer of at least 1.
    """
    if isinstance(num_workers, bool) or not isinstance(num_workers, Integral) or num_workers < 1:
        raise ValueError(f"num_workers must be an integer of at least 1; got {num_workers!r}")


@dataclass(frozen=True)
class Call:
    """A call to make after the program has run."""

    # A name that the program defines, or an expression of such names, as `Solution().f`, which
    # makes an instance for this call alone. It is evaluated inside the sandbox, without builtins.
    function: str
    arguments: tuple[Any, ...] = ()  # JSON values


@dataclass(frozen=True)
class Job:
    """One program and the calls to make to it.

    The program is loaded as a module whose `__name__` is not "__main__", so a block that is meant
    for the command line does not run.
    """

    source: str
    calls: tuple[Call, ...] = ()
    # Whether the program may write files, into an empty folder that is its working directory.
    scratch: bool = False
    # Sources that are executed before and after the program, in its namespace. The __future__
    # imports of the setup hold in the program too.
    setup: str = ""
    after: str = ""


@dataclass(frozen=True)
class Result:
    """Result of one call: decoded JSON, or the name of the exception it raised."""

    value: Any = None
    error: str = ""  # "" if there is a value, UNSERIALIZABLE if the value is not plain JSON


@dataclass(frozen=True)
class Outcome:
    """Outcome of a program, as the program tells it. A program may lie about itself."""

    stdout: str
    stderr: str
    exit_code: int | None  # None if a signal ended it
    # "", "wall", "cpu", "memory", "output" (too much output or too many files), "signal:<n>", or
    # "zygote"
    killed_by: str
    returned: tuple[Result, ...]  # in the order of the calls, fewer if the program ended before
    compiled: bool  # whether source and setup have no syntax error
    seconds: float  # wall clock [s], never part of a verdict
    files: dict[str, bytes] = field(default_factory=dict)  # content of the scratch folder
