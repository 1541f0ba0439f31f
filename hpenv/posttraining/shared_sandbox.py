"""One sandbox for all graders of a process: started for the first program, ended with the process.

What runs programs here is a name, not a process: it can be pickled and copied, and a process that comes by it, a forked
one too, starts a sandbox of its own.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from hpenv.posttraining.sandbox import Job, Limits, Outcome, Sandbox

#: Processor time is what ends a program; the clock is for those that sleep, and must not end one on a busy machine,
#: where the same program would get another verdict [seconds].
WALL_SECONDS = 10.0


@dataclass(frozen=True)
class SharedSandbox:
    """Runs programs in this process's sandbox with so many workers."""

    num_workers: int = 1  # programs that run at once

    def run_many(self, jobs: Sequence[Job]) -> list[Outcome]:
        """Runs programs; outcomes in the order of the jobs.

        Raises:
            SandboxUnavailable: at the first call, where programs cannot be executed safely.
        """
        return _sandbox(os.getpid(), self.num_workers).run_many(jobs)


@lru_cache(maxsize=4)
def _sandbox(process: int, num_workers: int) -> Sandbox:
    """The sandbox of a process; one that is forgotten ends by itself."""
    return Sandbox(limits=Limits(wall_seconds=WALL_SECONDS), num_workers=num_workers)
