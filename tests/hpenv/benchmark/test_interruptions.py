"""Interruptions at random instants: the same rows byte for byte, none lost, none double.

Slow, because every interruption costs the start of a process.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hpenv.benchmark.instances import Instance, Suite
from tests.paths import ROOT

NUM_INTERRUPTIONS = 20
#: Longest time from the start of the rows to the interruption [seconds].
LONGEST = 12.0
CONTROLLER = """
import numpy as np

from hpenv.policies import ControllerSpec


class Half:
    spec = ControllerSpec(channels=[("lr", "run")], observation=["progress"])

    def act(self, observations):
        return np.full((len(observations), 1), 0.5, np.float32)
"""


def suite():
    arguments = {
        "data": "synthetic:3",
        "batch_tokens": 128,
        "num_steps": 150,
        "eval_tokens": 4096,
        "interval": 25,
    }
    instances = tuple(
        Instance(f"rate-{number}", "TrainLoop-JEL-v0", arguments | {"base_lr": 1e-3 * (1 + number)})
        for number in range(6)
    )
    return Suite("interrupted", "instances of a test", 4, 2, instances)


def start(folder, place, executor, environment=None):
    command = [
        sys.executable,
        "-c",
        "import sys; from pathlib import Path\n"
        "from hpenv.benchmark.instances import load_suite\n"
        "from hpenv.benchmark.scoring import method_of, run_methods\n"
        "if __name__ == '__main__':\n"
        "    method = method_of('half.py:Half')\n"
        f"    run_methods(load_suite('suite.json'), [method], Path({place!r}), "
        f"executor={executor!r})\n",
    ]
    return subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
        stderr=subprocess.DEVNULL,
    )


def descendants(parent):
    """Processes below one, with their command lines."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue

    found, last = [], [parent]
    while last:
        last = [process for process, above in parents.items() if above in last]
        found += last
    return found


def workers(parent):
    found = []
    for process in descendants(parent):
        try:
            if b"spawn_main" in Path(f"/proc/{process}/cmdline").read_bytes():
                found.append(process)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def contents(place):
    return {
        str(file.relative_to(place)): file.read_bytes() for file in sorted(place.rglob("*.jsonl"))
    }


@pytest.mark.slow
def test_twenty_interruptions_leave_the_rows_of_an_undisturbed_run(tmp_path):
    (tmp_path / "half.py").write_text(CONTROLLER)
    (tmp_path / "suite.json").write_text(suite().text())
    assert start(tmp_path, "whole", "processes:2").wait() == 0
    whole = contents(tmp_path / "whole")
    assert len(whole) == 12

    instants, killed, seen = random.Random(0), {"driver": 0, "worker": 0}, []
    place = tmp_path / "interrupted"
    for number in range(NUM_INTERRUPTIONS):
        if len(contents(place)) == len(whole):  # begin again, so that all interruptions count
            place.rename(tmp_path / f"finished-{number}")
            assert contents(tmp_path / f"finished-{number}") == whole
        driver = start(tmp_path, "interrupted", "processes:2")
        while driver.poll() is None and len(workers(driver.pid)) < 2:
            time.sleep(0.05)
        time.sleep(instants.uniform(0.0, LONGEST))
        if driver.poll() is not None:
            continue

        seen += descendants(driver.pid)
        target = "driver" if number % 2 else "worker"
        victims = [driver.pid] if target == "driver" else workers(driver.pid)
        if victims:
            os.kill(instants.choice(victims), signal.SIGKILL)
            killed[target] += 1
        if target == "worker":
            time.sleep(instants.uniform(0.0, LONGEST))
            driver.kill()
        driver.wait()
        assert set(contents(place).items()) <= set(whole.items())

    assert start(tmp_path, "interrupted", "processes:2").wait() == 0
    assert contents(place) == whole
    assert killed["driver"] >= 5 and killed["worker"] >= 5

    end = time.monotonic() + 10
    while any(Path(f"/proc/{process}").exists() for process in seen) and time.monotonic() < end:
        time.sleep(0.2)
    assert [process for process in seen if Path(f"/proc/{process}").exists()] == []
