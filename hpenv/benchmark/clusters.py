"""Executors of several machines: Ray, and Slurm through submitit. Their packages are optional."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hpenv.benchmark.workers import Item, Outcome, on_one_thread

#: A piece of work is started again this often after the death of its worker or node.
MOST_RETRIES = 5
#: A worker process is replaced after this many pieces of work, which bounds what it leaks.
MOST_CALLS = 50
#: Time limit of one piece of work under Slurm [minutes].
SLURM_MINUTES = 120
#: Folder of submitit's scripts and logs.
SLURM_LOGS = Path("runs/slurm")


def _import(package: str, extra: str) -> Any:
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"executor {package} needs the package {package}; "
            f"install it with: pip install 'hpenv[{extra}]'"
        ) from error


class Ray:
    """A Ray cluster. Ray starts a piece of work again whose worker or node died.

    Args:
        address: of the cluster. Empty: the running one that the environment names, or a new one on
            this machine.
    """

    def __init__(self, address: str = "") -> None:
        self._ray = _import("ray", "ray")
        if not self._ray.is_initialized():
            self._ray.init(address=address or None, log_to_driver=False, configure_logging=False)
        self._remote = self._ray.remote(num_cpus=1, max_retries=MOST_RETRIES, max_calls=MOST_CALLS)(
            on_one_thread
        )

    def outcomes(self, work: Callable[[Item], Any], items: Sequence[Item]) -> Iterator[Outcome]:
        """See Executor."""
        running = {self._remote.remote(work, item): item for item in items}
        while running:
            done, _ = self._ray.wait(list(running), num_returns=1)
            item = running.pop(done[0])
            try:
                result = self._ray.get(done[0])
            except self._ray.exceptions.RayTaskError as error:
                yield item, None, error.cause
            except self._ray.exceptions.RayError as error:
                yield item, None, error
            else:
                yield item, result, None

    def close(self) -> None:
        """Leaves the cluster. One that was started here ends."""
        self._ray.shutdown()


class Slurm:
    """An array job of Slurm. A piece of work is one task of the array, on one core.

    Args:
        partition: of the cluster. Empty: the default one. `local` runs the tasks as processes of
            this machine, to try the executor without Slurm.
    """

    def __init__(self, partition: str = "") -> None:
        self._submitit = _import("submitit", "slurm")
        cluster = "local" if partition == "local" else "slurm"
        self._executor = self._submitit.AutoExecutor(folder=SLURM_LOGS, cluster=cluster)
        self._executor.update_parameters(timeout_min=SLURM_MINUTES, cpus_per_task=1)
        if partition and cluster == "slurm":
            self._executor.update_parameters(slurm_partition=partition)
        self._jobs: list[Any] = []

    def outcomes(self, work: Callable[[Item], Any], items: Sequence[Item]) -> Iterator[Outcome]:
        """See Executor."""
        with self._executor.batch():
            self._jobs = [self._executor.submit(on_one_thread, work, item) for item in items]
        places = {id(job): item for job, item in zip(self._jobs, items, strict=True)}
        for job in self._submitit.helpers.as_completed(self._jobs):
            try:
                result = job.result()
            except Exception as error:  # whatever the work or the cluster raised
                yield places[id(job)], None, error
            else:
                yield places[id(job)], result, None

    def close(self) -> None:
        """Cancels the tasks that are not done."""
        for job in self._jobs:
            if not job.done():
                job.cancel()
        self._jobs = []
