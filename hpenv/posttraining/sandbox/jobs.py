"""What goes into the sandbox and what comes out: limits, jobs, outcomes."""

import math
from dataclasses import dataclass, field, fields
from typing import Any

#: `Result.error` of a value that is not plain JSON: a tuple, a NaN, a subclass, too deep, too large.
UNSERIALIZABLE = "Unserializable"


class SandboxUnavailable(RuntimeError):  # noqa: N818  (it says what is the matter)
    """The machine lacks what the sandbox needs; nothing was executed. The message names it and the cure."""


@dataclass(frozen=True)
class Limits:
    """What one program may use before it is ended."""

    wall_seconds: float = 2.0  # from the start of the job; enforced by the parent
    cpu_seconds: int = 1  # processor time
    memory_bytes: int = 512 * 2**20  # address space
    output_bytes: int = 65_536  # stdout and stderr, each
    returned_bytes: int = 2**20  # all answers of one program, as JSON
    file_bytes: int = 65_536  # one file of the scratch folder
    num_files: int = 8  # files of the scratch folder

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            whole = entry.name != "wall_seconds"
            if not (math.isfinite(value) and value > 0 and (not whole or value == int(value))):
                raise ValueError(f"{entry.name} is {value}; expected a positive {'integer' if whole else 'number'}")


@dataclass(frozen=True)
class Call:
    """A call to make once the program has run."""

    function: str  # a name of the program's namespace, dotted if need be; looked up inside the sandbox
    arguments: tuple[Any, ...] = ()  # JSON values


@dataclass(frozen=True)
class Job:
    """One program and the calls to make to it."""

    source: str
    calls: tuple[Call, ...] = ()
    scratch: bool = False  # whether it may write files, into an empty folder that is its working directory


@dataclass(frozen=True)
class Result:
    """What one call gave: decoded JSON, or the name of the exception it raised."""

    value: Any = None
    error: str = ""  # "" where there is a value; UNSERIALIZABLE where the value is not plain JSON


@dataclass(frozen=True)
class Outcome:
    """What a program did. All of it is the program's word, and a program may lie about itself."""

    stdout: str
    stderr: str
    exit_code: int | None  # None where it was ended by a signal
    killed_by: str  # "", "wall", "cpu", "memory", "output" (too much of it, or of files), "signal:<n>", "zygote"
    returned: tuple[Result, ...]  # in the order of the calls; shorter where the program ended before
    compiled: bool  # whether the source has no syntax error
    seconds: float  # wall clock [s]; never part of a verdict
    files: dict[str, bytes] = field(default_factory=dict)  # what it left in the scratch folder
