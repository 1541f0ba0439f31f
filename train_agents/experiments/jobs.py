"""Independent jobs on several processes, each with a result file of its own: what has one is not done again."""

from __future__ import annotations

import json
import multiprocessing
import signal
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from train_agents.logs import progress
from train_agents.results import Rows, write_result


@dataclass(frozen=True)
class Job:
    """One piece of work: `run(**arguments)` gives (rows, extra), which is written to `<folder>/<name>.json`."""

    name: str
    run: Callable[..., Rows]
    arguments: dict[str, Any] = field(default_factory=dict)

    def file(self, folder: Path) -> Path:
        """Where its result is."""
        return folder / f"{self.name}.json"


def _execute(job: Job, folder: Path) -> float:
    torch.set_num_threads(1)
    start = time.monotonic()
    rows, extra = job.run(**job.arguments)
    write_result(job.file(folder), job.name, _configuration(job), rows, extra)
    return time.monotonic() - start


def _is_done(job: Job, folder: Path) -> bool:
    file = job.file(folder)
    if not file.exists():
        return False
    if json.loads(file.read_text())["configuration"] != _configuration(job):
        raise ValueError(f"{file} is the result of another configuration; move it away, or give another --out")
    return True


def _configuration(job: Job) -> dict[str, Any]:
    return json.loads(json.dumps(job.arguments, default=repr))


def run_jobs(jobs: Sequence[Job], folder: Path, num_workers: int) -> None:
    """Runs what has no result yet, in order, `num_workers` at a time with one thread each.

    Raises:
        ValueError: if there is a result of another configuration.
        RuntimeError: naming the jobs that failed, after all others are done.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = [job for job in jobs if not _is_done(job, folder)]
    print(f"{len(jobs) - len(missing)} of {len(jobs)} jobs are done; {len(missing)} to do on {num_workers} processes")
    if not missing:
        return
    failed: dict[str, str] = {}
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # or the processes would outlive this one
    pool = ProcessPoolExecutor(num_workers, mp_context=multiprocessing.get_context("spawn"))
    futures: dict[Future[float], Job] = {pool.submit(_execute, job, folder): job for job in missing}
    try:
        with progress(len(missing), folder.parent.name) as advance:
            while futures:
                for future in wait(futures, return_when=FIRST_COMPLETED).done:
                    job = futures.pop(future)
                    error = future.exception()
                    if error is not None:
                        failed[job.name] = f"{type(error).__name__}: {error}"
                        print(f"FAILED {job.name}: {failed[job.name]}", flush=True)
                    else:
                        print(f"{job.name}: {future.result():.0f} s, {len(futures)} to go", flush=True)
                    advance(1, job.name)
    except KeyboardInterrupt:
        for process in list(pool._processes.values()):
            process.terminate()
        sys.exit(f"interrupted; the same command goes on with what is missing in {folder}")
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    if failed:
        raise RuntimeError(f"{len(failed)} jobs failed: {failed}")
