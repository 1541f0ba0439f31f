"""One sandbox for all graders of a process: started for the first program, ended with the process.

What runs programs here is a name, not a process: it can be pickled and copied, and a process that
comes by it, a forked one too, starts a sandbox of its own.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from hpenv.posttraining.sandbox import Job, Limits, Outcome, Sandbox
from hpenv.posttraining.sandbox.jobs import check_num_workers

#: Clock time per processor time. Processor time is what ends a program; the clock is for those that
#: sleep, and must not end one on a busy machine, where the same program would get another verdict.
WALL_PER_CPU = 10.0


@dataclass(frozen=True)
class SharedSandbox:
    """Runs programs in this process's sandbox with so many workers.

    Raises:
        ValueError: for what is no number of workers or of seconds.
    """

    num_workers: int = 1  # programs that run at once
    cpu_seconds: int = 1  # processor time of one program, all its calls together, 1 to 3600 [s]

    def __post_init__(self) -> None:
        """Refuses what no sandbox can be started with."""
        check_num_workers(self.num_workers)
        Limits(cpu_seconds=self.cpu_seconds)

    @property
    def limits(self) -> Limits:
        """Limits of one program."""
        return Limits(wall_seconds=WALL_PER_CPU * self.cpu_seconds, cpu_seconds=self.cpu_seconds)

    def run_many(self, jobs: Sequence[Job]) -> list[Outcome]:
        """Runs programs; outcomes in the order of the jobs.

        Raises:
            SandboxUnavailable: at the first call, where programs cannot be executed safely.
        """
        return _sandbox(os.getpid(), self.num_workers, self.limits).run_many(jobs)


@lru_cache(maxsize=4)
def _sandbox(process: int, num_workers: int, limits: Limits) -> Sandbox:
    """The sandbox of a process; one that is forgotten ends by itself."""
    return Sandbox(limits=limits, num_workers=num_workers)
