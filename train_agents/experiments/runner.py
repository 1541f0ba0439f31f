"""Runner of all experiments: independent jobs on several processes, a result file each.

Jobs that have a result file are skipped, so that the same command goes on after an interruption.
"""

from __future__ import annotations

import json
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from hpenv.benchmark.command_line import check_counts, configuration, refusals
from hpenv.benchmark.executors import open_executor, run_all
from hpenv.benchmark.files import check_file, check_folder
from hpenv.benchmark.progress import progress
from hpenv.benchmark.results import Rows, read_result, write_result

#: First seed of the reported runs, of tuning, and of the comparison of the Sidecar's rewards.
FIRST_EVALUATION_SEED, FIRST_TUNING_SEED, FIRST_REWARD_SEED = 1000, 2000, 4000


def seeds_from(first: int, count: int) -> list[int]:
    """Returns `count` seeds from the first on."""
    return list(range(first, first + count))


@dataclass(frozen=True)
class Sizes:
    """Size of an experiment: the base class of their configurations. Numbers are at least 1."""

    out: Path  # tables, figures and one JSON file per job
    runs: Path  # checkpoints and logs of the runs
    num_evaluation_seeds: int = 5  # runs of an arm
    num_tuning_seeds: int = 2  # runs per point of a sweep or search
    num_workers: int = 2  # processes, one thread each
    only: tuple[str, ...] = ()  # run only the jobs whose names begin with one of these
    report_only: bool = False  # write tables and figures from the results that are there
    MAY_BE_ZERO: ClassVar[tuple[str, ...]] = ()  # fields

    def __post_init__(self) -> None:
        """Checks the numbers."""
        for each in fields(self):
            if isinstance(getattr(self, each.name), int) and each.type != "bool":
                check_counts(self, each.name, least=0 if each.name in self.MAY_BE_ZERO else 1)

    @property
    def evaluation_seeds(self) -> list[int]:
        """Seeds that reported numbers are measured on."""
        return seeds_from(FIRST_EVALUATION_SEED, self.num_evaluation_seeds)

    @property
    def tuning_seeds(self) -> list[int]:
        """Seeds that configurations are chosen on. Training seeds are 32-bit words."""
        return seeds_from(FIRST_TUNING_SEED, self.num_tuning_seeds)


@dataclass(frozen=True)
class Job:
    """Piece of work: `run(**arguments)` returns (rows, extra) for `<folder>/<name>.json`."""

    name: str
    run: Callable[..., Rows]
    arguments: dict[str, Any] = field(default_factory=dict)

    def file(self, folder: Path) -> Path:
        """Returns the path of its result."""
        return folder / f"{self.name}.json"

    @property
    def configuration(self) -> dict[str, Any]:
        """The arguments in JSON's types, other values as their repr."""
        return json.loads(json.dumps(self.arguments, default=repr))


def _execute(job: Job, folder: Path) -> float:
    """Runs a job, writes its result, and returns the time that it took [seconds]."""
    start = time.monotonic()
    try:
        rows, extra = job.run(**job.arguments)
    except Exception:
        traceback.print_exc()  # here, where it says what the job's process was doing
        raise
    write_result(job.file(folder), job.name, job.configuration, rows, extra)
    return time.monotonic() - start


def open_jobs(jobs: Sequence[Job], folder: Path) -> list[Job]:
    """Returns the jobs that have no result yet, in their order. Changes nothing.

    Raises:
        ValueError: a file is no result or has another configuration, or none can be written.
    """
    check_folder("out", folder)
    return [job for job in jobs if not _is_done(job, folder)]


def check_results(folder: Path) -> None:
    """Checks that a folder has results, and nothing else in its JSON files.

    Raises:
        ValueError: naming the folder or the file.
    """
    files = sorted(folder.glob("*.json"))
    if not files:
        raise ValueError(f"out must be an experiment's folder with results; got none in {folder}")
    for file in files:
        read_result(file)


def _is_done(job: Job, folder: Path) -> bool:
    file = job.file(folder)
    check_file("the result", file)
    if not file.exists():
        return False
    theirs, ours = read_result(file)["configuration"], job.configuration
    if theirs != ours:
        pairs = {key: (theirs.get(key), ours.get(key)) for key in {**theirs, **ours}}
        different = {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}
        raise ValueError(
            f"{file} must be a result of this configuration; got another one, with differences "
            f"(there, asked) {different}; move it away, or give another --out"
        )
    return True


def select_jobs(jobs: Sequence[Job], prefixes: Sequence[str]) -> list[Job]:
    """Returns the jobs whose names begin with one of the prefixes. All without a prefix.

    Raises:
        ValueError: no job has one of the prefixes.
    """
    names = [job.name for job in jobs]
    unknown = [prefix for prefix in prefixes if not any(name.startswith(prefix) for name in names)]
    if unknown:
        raise ValueError(f"only must be beginnings of {names}; got {unknown}")
    return [job for job in jobs if not prefixes or job.name.startswith(tuple(prefixes))]


def run_jobs(jobs: Sequence[Job], folder: Path, num_workers: int) -> None:
    """Runs the jobs without a result, in order, `num_workers` at a time with one thread each.

    Raises:
        ValueError: see `open_jobs`.
        WorkError: naming the jobs that failed, after all others are done.
    """
    missing = open_jobs(jobs, folder)
    folder.mkdir(parents=True, exist_ok=True)
    done = f"{len(jobs) - len(missing)} of {len(jobs)} jobs are done"
    print(f"{done}; {len(missing)} to do on {num_workers} processes")
    if not missing:
        return

    # SIGTERM must interrupt, so that the result files and the pool are left in order.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    work = partial(_execute, folder=folder)
    left = len(missing)
    try:
        with (
            open_executor(f"processes:{num_workers}") as executor,
            progress(left, folder.parent.name) as advance,
        ):
            for job, seconds in run_all(work, missing, executor, name=lambda job: job.name):
                left -= 1
                print(f"{job.name}: {seconds:.0f} s, {left} to go", flush=True)
                advance(1, job.name)
    except KeyboardInterrupt:
        sys.exit(f"interrupted; the same command goes on with what is missing in {folder}")


@dataclass(frozen=True)
class Experiment:
    """An experiment as data: configuration, jobs and report."""

    name: str  # of the module
    description: str | None  # text for --help
    config: type[Sizes]
    make_jobs: Callable[[Any], Sequence[Job]]  # all jobs, in the order of running
    check: Callable[[Any], object]  # raises ValueError before the first job if no run can be made
    report: Callable[[Path], None]  # writes tables and figures into a folder
    demo: Mapping[str, Any] = field(default_factory=dict)  # sizes of `--demo`
    late_jobs: Callable[[Any], Sequence[Job]] = lambda _: ()  # that need the others' results

    def complete(self, config: Any) -> Any:
        """Returns the configuration that runs: that of the demo if it is asked for."""
        return replace(config, **self.demo) if self.demo and config.demo else config

    def main(self, arguments: Sequence[str] | None = None) -> None:
        """Runs the program: the jobs that have no result, then the report."""
        program = f"train_agents.experiments.{self.name}"
        config = configuration(self.config, program, self.description, arguments, self.complete)
        folder = config.out / "jobs"
        with refusals():
            asked = select_jobs(self.make_jobs(config), config.only)
            check_folder("out", config.out)
            if config.report_only:
                check_results(folder)
            else:
                check_folder("runs", config.runs)
                open_jobs(asked, folder)
                self.check(config)

        if not config.report_only:
            run_jobs(asked, folder, config.num_workers)
            if late := self.late_jobs(config):
                run_jobs(late, folder, config.num_workers)
        self.report(config.out)
