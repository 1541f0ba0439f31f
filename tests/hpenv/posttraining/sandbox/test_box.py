"""A sandbox's processes: shared, killed, closed and replaced."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from hpenv.posttraining.sandbox import (
    Call,
    Job,
    Limits,
    Result,
    Sandbox,
    SandboxUnavailable,
    worker,
)
from tests.hpenv.posttraining.sandbox.boxes import executes

IDENTITY = "def f(x):\n    return x\n"


def zygotes(made):
    return [each.process.pid for each in made._workers]


def children_of(process):
    return Path(f"/proc/{process}/task/{process}/children").read_text().split()


def all_gone(processes):
    """Waits up to 20 s and returns True if they end.

    The kernel and the system's first process take their time.
    """
    for _ in range(2000):
        if not any(Path(f"/proc/{process}").exists() for process in processes):
            return True
        time.sleep(0.01)
    return False


# Several programs


@executes
def test_outcomes_come_in_the_order_of_the_jobs():
    jobs = [Job(f"import time\ntime.sleep({0.2 * (x % 5 == 0)})\nprint({x})\n") for x in range(20)]
    with Sandbox(num_workers=3) as made:
        assert [outcome.stdout for outcome in made.run_many(jobs)] == [f"{x}\n" for x in range(20)]
        assert made.run_many([]) == []


@executes
def test_workers_do_not_share_scratch_folders():
    source = (
        "import time, os\nopen('mine{x}', 'w').write('{x}')\ntime.sleep(0.2)\n"
        "assert os.listdir() == ['mine{x}']\n"
    )
    with Sandbox(num_workers=3) as made:
        outcomes = made.run_many([Job(source.format(x=x), scratch=True) for x in range(6)])
    assert [outcome.files for outcome in outcomes] == [
        {f"mine{x}": str(x).encode()} for x in range(6)
    ]


@executes
def test_threads_may_share_a_sandbox(sandbox):
    found = {}

    def ask(x):
        found[x] = sandbox.run(IDENTITY, [Call("f", (x,))]).returned[0].value

    threads = [threading.Thread(target=ask, args=(x,)) for x in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {x: x for x in range(4)}


# What goes wrong


@executes
def test_a_parent_may_be_a_daemon(tmp_path):
    """A parent without open streams and with few descriptors left.

    It ignores and blocks signals.
    """
    source = (
        "import os, resource, signal, sys\nfor stream in range(3):\n    os.close(stream)\n"
        "for number in (signal.SIGCHLD, signal.SIGXCPU, signal.SIGINT, signal.SIGTERM):\n"
        "    signal.signal(number, signal.SIG_IGN)\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (48, 48))\n"
        "from hpenv.posttraining.sandbox import Call, Sandbox\nwith Sandbox() as made:\n"
        "    program = 'import os, signal\\nprint(1)\\ndef f(x):\\n    os.kill(os.getpid(), x)'\n"
        "    outcomes = [made.run(program, [Call('f', (x,))]) for x in (0, signal.SIGXCPU, "
        "signal.SIGTERM)]\n"
        "    held = [os.path.exists(f'/proc/self/fd/{stream}') for stream in range(3)]\n"
        "open(sys.argv[1], 'w').write(repr([[(o.stdout, o.killed_by) for o in outcomes], held]))\n"
    )
    subprocess.run([sys.executable, "-c", source, str(tmp_path / "said")], check=True)
    outcomes, held = eval((tmp_path / "said").read_text())
    assert outcomes == [("1\n", ""), ("1\n", "cpu"), ("1\n", "signal:15")]
    assert held == [False] * 3  # what is written to a stream reaches no descriptor of the sandbox


@executes
@pytest.mark.parametrize(
    "zygote", ["import os\nos._exit(7)", "import sys\nsys.exit('no libpython')"]
)
def test_a_zygote_that_does_not_start_says_why_or_how_it_ended(monkeypatch, tmp_path, zygote):
    (tmp_path / "zygote.py").write_text(zygote)
    monkeypatch.setattr(worker, "ZYGOTE", tmp_path / "zygote.py")
    with pytest.raises(
        SandboxUnavailable, match=r"did not start: it ended with exit code (7|1: no libpython)"
    ):
        Sandbox()


@executes
def test_closing_twice_is_fine_and_a_closed_sandbox_says_so():
    made = Sandbox()
    made.close()
    made.close()
    with pytest.raises(ValueError, match="closed"):
        made.run("pass")


@executes
def test_a_sandbox_stays_with_its_process(sandbox, monkeypatch):
    monkeypatch.setattr(os, "getpid", lambda: 1)
    with pytest.raises(ValueError, match="process"):
        sandbox.run("pass")


@executes
def test_a_zygote_killed_while_idle_is_replaced():
    with Sandbox() as made:
        (before,) = zygotes(made)
        os.kill(before, signal.SIGKILL)
        assert made.run(IDENTITY, [Call("f", (5,))]).returned == (Result(value=5),)
        assert zygotes(made) != [before]


@executes
def test_a_zygote_killed_under_a_program_is_reported_and_replaced():
    with Sandbox(Limits(wall_seconds=20.0)) as made:
        (before,) = zygotes(made)
        killed = []

        def kill():
            while not os.listdir(made._workers[0].scratch):
                time.sleep(0.01)
            killed.extend(children_of(before))
            os.kill(before, signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        first, second = made.run_many(
            [Job("import time\nopen('a', 'w')\ntime.sleep(60)\n", scratch=True), Job("print(1)")]
        )
        killer.join()
        assert (first.killed_by, first.exit_code) == ("zygote", None) and second.stdout == "1\n"
        assert all_gone(killed)


@executes
def test_an_interrupt_ends_the_programs_and_leaves_the_sandbox_usable():
    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with Sandbox(Limits(wall_seconds=20.0), num_workers=2) as made:
            signal.setitimer(signal.ITIMER_REAL, 0.3)
            with pytest.raises(KeyboardInterrupt):
                made.run_many([Job("import time\ntime.sleep(60)\n")] * 2)
            assert all(not children_of(zygote) for zygote in zygotes(made))
            assert made.run("print(1)").stdout == "1\n"
    finally:
        signal.signal(signal.SIGALRM, before)


@executes
def test_nothing_outlives_a_killed_parent():
    source = (
        "from hpenv.posttraining.sandbox import Limits, Sandbox\n"
        "made = Sandbox(Limits(wall_seconds=60.0))\n"
        "print(made._workers[0].process.pid, made._workers[0].scratch, flush=True)\n"
        'made.run(\'import time; open("a", "w"); time.sleep(60)\', scratch=True)\n'
    )
    with subprocess.Popen(
        [sys.executable, "-c", source], stdout=subprocess.PIPE, text=True
    ) as parent:
        zygote, scratch = parent.stdout.readline().split()
        while not children_of(zygote):
            time.sleep(0.01)
        left = [zygote, *children_of(zygote)]
        parent.kill()
    assert all_gone(left)
    assert not Path(scratch).exists()


@executes
@pytest.mark.parametrize("num_programs", [40, pytest.param(1000, marks=pytest.mark.slow)])
def test_nothing_is_left_behind(monkeypatch, tmp_path, num_programs):
    monkeypatch.setattr(
        tempfile, "tempdir", str(tmp_path)
    )  # other tests use the system's at the same time

    def traces():
        shared_memory = [name for name in os.listdir("/dev/shm") if "hpenv" in name]
        return len(os.listdir("/proc/self/fd")), shared_memory, os.listdir(tmp_path)

    before = traces()
    kinds = (
        Job(IDENTITY, (Call("f", (1,)),)),
        Job("open('a', 'w').write('b')", scratch=True),
        Job("1 / 0"),
        Job("import os\nos.kill(os.getpid(), 9)\n"),
        Job("print('x' * 10**6)"),
    )
    with Sandbox(num_workers=2) as made:
        open_before = len(os.listdir("/proc/self/fd"))
        processes = zygotes(made)
        memory = [Path(f"/proc/{zygote}/fd") for zygote in processes]
        held = [len(os.listdir(path)) for path in memory]
        outcomes = made.run_many([kinds[x % len(kinds)] for x in range(num_programs)])
        assert [outcome.killed_by for outcome in outcomes[:5]] == ["", "", "", "signal:9", "output"]
        assert zygotes(made) == processes and all(not children_of(zygote) for zygote in processes)
        assert [len(os.listdir(path)) for path in memory] == held
        assert len(os.listdir("/proc/self/fd")) == open_before
        assert all(not os.listdir(each.scratch) for each in made._workers)
    assert traces() == before
    assert not any(Path(f"/proc/{zygote}").exists() for zygote in processes)


@pytest.mark.parametrize("num_workers", [0, -1, 1.0, "2", True, None])
def test_the_number_of_workers_is_checked(num_workers):
    with pytest.raises(
        ValueError, match=f"num_workers must be an integer of at least 1; got {num_workers!r}"
    ):
        Sandbox(num_workers=num_workers)
