"""One sandbox for all graders of a process, from its first program to the end of the process.

A `SharedSandbox` is a name, not a process: it can be pickled and copied. A process that receives
one, also by forking, starts its sandbox at the first program.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from hpenv.posttraining.sandbox import Job, Limits, Outcome, Sandbox
from hpenv.posttraining.sandbox.jobs import check_num_workers

#: Clock time per processor time. Processor time is the limit that ends a busy program. The clock
#: ends programs that sleep. It must not end one because the machine is busy, since the same program
#: would then get another verdict.
WALL_PER_CPU = 10.0


@dataclass(frozen=True)
class SharedSandbox:
    """Runs programs in the sandbox of this process that has these settings.

    Raises:
        ValueError: if a number of workers or of seconds is out of its range.
    """

    num_workers: int = 1  # programs that run at once
    cpu_seconds: int = 1  # processor time of one program, all its calls together, 1 to 3600 [s]

    def __post_init__(self) -> None:
        """Checks the settings."""
        check_num_workers(self.num_workers)
        Limits(cpu_seconds=self.cpu_seconds)

    @property
    def limits(self) -> Limits:
        """Limits of one program."""
        return Limits(wall_seconds=WALL_PER_CPU * self.cpu_seconds, cpu_seconds=self.cpu_seconds)

    def run_many(self, jobs: Sequence[Job]) -> list[Outcome]:
        """Runs programs and returns their outcomes, in the order of the jobs.

        Raises:
            SandboxUnavailable: at the first call, if programs cannot be executed safely here.
        """
        return _sandbox(os.getpid(), self.num_workers, self.limits).run_many(jobs)


@lru_cache(maxsize=4)
def _sandbox(process: int, num_workers: int, limits: Limits) -> Sandbox:
    """Returns the sandbox of a process. One that drops out of the cache ends by itself."""
    return Sandbox(limits=limits, num_workers=num_workers)
