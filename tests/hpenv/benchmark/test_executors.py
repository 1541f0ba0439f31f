"""Executors: the same results everywhere, and what a death costs."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from hpenv.benchmark import workers
from hpenv.benchmark.executors import WorkError, open_executor, run_all
from tests.paths import ROOT


def square_and_threads(number):
    return number**2, torch.get_num_threads()


def fail_at_two(number):
    if number == 2:
        raise KeyError("two")
    return number


def die_once(folder, number):
    """Kills its own process at the first call with number 1."""
    marker = Path(folder) / "died"
    if number == 1 and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def always_die(number):
    if number == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def results(work, items, form):
    with open_executor(form) as executor:
        return dict(run_all(work, items, executor))


@pytest.mark.parametrize("form", ["inline", "processes:2"])
def test_every_piece_is_computed_on_one_thread(form):
    before = torch.get_num_threads()
    assert results(square_and_threads, [0, 1, 2, 3], form) == {
        number: (number**2, 1) for number in range(4)
    }
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("form", ["inline", "processes:2"])
def test_a_piece_that_raises_does_not_stop_the_others(form):
    done = []
    with open_executor(form) as executor, pytest.raises(WorkError, match=r"'number 2': .*two") as e:
        for item, _ in run_all(fail_at_two, [1, 2, 3], executor, name=lambda i: f"number {i}"):
            done.append(item)
    assert sorted(done) == [1, 3]
    assert isinstance(e.value.__cause__, KeyError)


def test_a_killed_worker_costs_what_it_was_computing(tmp_path):
    found = results(partial(die_once, str(tmp_path)), range(5), "processes:2")
    assert (tmp_path / "died").exists()
    assert found == {number: number for number in range(5)}


def test_a_piece_that_kills_its_workers_is_given_up(monkeypatch):
    monkeypatch.setattr(workers, "MOST_DEATHS", 2)
    done = []
    with open_executor("processes:1") as executor, pytest.raises(WorkError, match="1 pieces"):
        for item, _ in run_all(always_die, [0, 1], executor):
            done.append(item)
    assert done == [1]


def test_workers_outlive_neither_their_executor_nor_a_killed_driver(tmp_path):
    program = (
        "import time\n"
        "from hpenv.benchmark.executors import open_executor, run_all\n"
        "if __name__ == '__main__':\n"
        "    with open_executor('processes:2') as executor:\n"
        "        list(run_all(time.sleep, [0, 0, 600, 600], executor))\n"
    )
    file = tmp_path / "driver.py"
    file.write_text(program)
    driver = subprocess.Popen(
        [sys.executable, str(file)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    wait_until(lambda: len(children(driver.pid)) >= 3)  # two workers and the resource tracker
    workers = children(driver.pid)
    driver.kill()
    driver.wait()
    wait_until(lambda: not any(map(is_running, workers)))


def children(parent):
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == parent:
            found.append(int(stat.parent.name))
    return found


def is_running(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


class TwoPartsError(Exception):
    """Cannot be sent from one process to another."""

    def __init__(self, one, other):
        super().__init__(f"{one} and {other}")


def raise_what_cannot_be_sent(number):
    raise TwoPartsError("salt", "pepper")


def test_an_error_that_cannot_be_sent_is_named_and_kills_no_worker():
    with (
        open_executor("processes:1") as executor,
        pytest.raises(WorkError, match="salt and pepper"),
    ):
        list(run_all(raise_what_cannot_be_sent, [0], executor))


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ("threads", "executor must be inline, processes"),
        ("processes:0", "number of workers of at least 1"),
        ("processes:two", "number of workers of at least 1"),
        ("inline:2", "executor must be inline"),
    ],
)
def test_unknown_executors_are_refused(form, message):
    with pytest.raises(ValueError, match=message), open_executor(form):
        pass
