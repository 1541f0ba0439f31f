"""The sandbox: runs hostile programs, several at once, and returns their outcomes."""

import os
import selectors
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from types import TracebackType

from hpenv.posttraining.sandbox import kernel, syscalls
from hpenv.posttraining.sandbox.jobs import (
    Call,
    Job,
    Limits,
    Outcome,
    Result,
    SandboxUnavailable,
    check_num_workers,
)
from hpenv.posttraining.sandbox.worker import PATIENCE, SCRATCH_PERIOD, ZYGOTE, Run, Worker

#: Program that every new zygote runs once. It tries to open a file, list a folder, open a socket
#: and fork. Each attempt must be refused.
_PROOF = """
import os, socket
def refused(action, *arguments):
    try:
        action(*arguments)
    except PermissionError:
        return True
    return False
def proof(path):
    return [refused(open, path), refused(os.listdir, "/"), refused(socket.socket), refused(os.fork)]
"""


class Sandbox:
    """Runs hostile programs, each in a process that can only compute, print and answer.

    Several threads may use it, and one `run_many` waits for the other. A forked copy of this
    process may not use it.

    Args:
        limits: limits of every program.
        num_workers: number of programs that run at once. Each has a zygote process.

    Raises:
        SandboxUnavailable: if the kernel lacks something, or a layer did not hold. Nothing was
            executed then.
        ValueError: if `limits` is not `Limits`, or the number of workers is below 1.
    """

    def __init__(self, limits: Limits | None = None, num_workers: int = 1) -> None:
        check_num_workers(num_workers)
        if not isinstance(limits, Limits | None):
            raise ValueError(f"limits must be Limits; got {limits!r}")

        missing = kernel.missing_support(syscalls.NUMBERS)
        if missing:
            raise SandboxUnavailable(
                "programs cannot be executed safely here; missing: " + "; ".join(missing)
            )
        self.limits = limits or Limits()
        self._workers: list[Worker] = []
        self._owner = os.getpid()
        self._lock = threading.Lock()
        # Closes a sandbox that nobody closes, at its collection or at the interpreter's end.
        self._finalizer = weakref.finalize(self, _stop_all, self._workers, self._owner)

        try:
            for _ in range(num_workers):
                self._workers.append(Worker(self.limits))
            for worker in self._workers:
                _make_ready(worker)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends all processes and removes their folders. A second call does nothing."""
        self._finalizer()

    def run(self, source: str, calls: Sequence[Call] = (), scratch: bool = False) -> Outcome:
        """Runs one program and makes calls to it.

        Args:
            source: the program, executed as a module.
            calls: calls made one after the other in the same process, once the source has run
                without an exception.
            scratch: whether it may write files, into an empty folder which is its working
                directory.
        """
        return self.run_many([Job(source, tuple(calls), scratch)])[0]

    def run_many(self, jobs: Sequence[Job]) -> list[Outcome]:
        """Runs programs, `num_workers` at once, and returns outcomes in the order of the jobs.

        A zygote can only end while its program runs if it is killed from outside, because a program
        cannot kill it. It is then replaced, and the outcome says `killed_by="zygote"`.
        """
        if not self._finalizer.alive:
            raise ValueError("this sandbox is closed")
        if os.getpid() != self._owner:
            raise ValueError(
                "this sandbox belongs to the process that made it; make one in each process"
            )
        with self._lock:
            return self._run_many(jobs)

    def _run_many(self, jobs: Sequence[Job]) -> list[Outcome]:
        outcomes: dict[int, Outcome] = {}
        waiting = deque(enumerate(jobs))
        idle = list(range(len(self._workers)))
        active: dict[int, tuple[int, Run]] = {}  # worker -> (job, run)

        with selectors.DefaultSelector() as selector:
            try:
                while waiting or active:
                    while waiting and idle:
                        place, (index, job) = idle.pop(), waiting.popleft()
                        active[place] = (index, self._start(place, job, selector))

                    for place in _progress(self._workers, active, selector):
                        index, run = active.pop(place)
                        selector.unregister(self._workers[place].control)
                        for pipe in run.open:
                            selector.unregister(pipe)

                        outcome = run.outcome()
                        if run.status is None:
                            self._replace(place)
                            if not run.has_begun and index not in outcomes:
                                # Nothing of the program has run, so it may run again.
                                waiting.appendleft((index, run.job))
                        elif run.job.scratch:
                            self._workers[place].empty_scratch()

                        outcomes[index] = outcome
                        idle.append(place)
            finally:
                for place, (_, run) in active.items():  # interrupted
                    for pipe in list(run.open):
                        run.close_pipe(pipe)
                    self._replace(place)

        return [outcomes[index] for index in range(len(jobs))]

    def _start(self, place: int, job: Job, selector: selectors.BaseSelector) -> Run:
        try:
            run = self._workers[place].submit(job)
        except ConnectionError:  # the zygote was killed while it had nothing to do
            self._replace(place)
            run = self._workers[place].submit(job)

        selector.register(self._workers[place].control, selectors.EVENT_READ, (place, -1))
        for pipe in run.open:
            selector.register(pipe, selectors.EVENT_READ, (place, pipe))
        return run

    def _replace(self, place: int) -> None:
        self._workers[place].stop()
        self._workers[place] = Worker(self.limits)
        _make_ready(self._workers[place])


def _progress(
    workers: Sequence[Worker], active: dict[int, tuple[int, Run]], selector: selectors.BaseSelector
) -> list[int]:
    """Waits for an event, reads what there is, and stops programs that exceed a limit.

    Returns:
        The workers whose run is over.
    """
    now = time.monotonic()
    wake = min(PATIENCE if run.stop_reason else run.deadline - now for _, run in active.values())
    if any(run.job.scratch for _, run in active.values()):
        wake = min(wake, SCRATCH_PERIOD)

    over = []
    for key, _ in selector.select(max(0.0, wake)):
        place, pipe = key.data
        run = active[place][1]
        if pipe >= 0:
            run.read(pipe)
            if pipe not in run.open:
                selector.unregister(pipe)
        elif workers[place].listen(run):
            over.append(place)

    now = time.monotonic()
    for place, (_, run) in active.items():
        if place not in over and not workers[place].check(run, now):
            over.append(place)

    return over


def _make_ready(worker: Worker) -> None:
    """Waits for a new zygote, and lets a program prove that its layers hold."""
    worker.wait_until_ready()
    outcome = worker.run_alone(Job(_PROOF, (Call("proof", (str(ZYGOTE),)),)))
    if outcome.returned != (Result(value=[True] * 4),):
        worker.stop()
        raise SandboxUnavailable(
            "a program that tried to open a file, list a folder, open a socket and fork was not "
            f"refused all of it; got {outcome.returned or (outcome.killed_by, outcome.stderr)}; "
            "is another seccomp or Landlock policy at work?"
        )


def _stop_all(workers: list[Worker], owner: int) -> None:
    if os.getpid() == owner:
        while workers:
            workers.pop().stop()
