"""The sandbox: what programs may do, what they may not, and that nothing of them stays.

Past the usual length, because a module's tests stand in one file.
"""

import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from hpenv.posttraining.sandbox import (
    UNSERIALIZABLE,
    Call,
    Job,
    Limits,
    Result,
    Sandbox,
    SandboxUnavailable,
    __main__,
    box,
    kernel,
    syscalls,
    worker,
)
from hpenv.posttraining.sandbox.answers import read_answers
from hpenv.posttraining.sandbox.program import MAX_DEPTH, plain_size
from hpenv.posttraining.sandbox.selfcheck.attacks import ATTACKS, Attack, only_refusals, run_attack
from hpenv.posttraining.sandbox.selfcheck.bait import lay_bait

MISSING = kernel.missing_support(syscalls.NUMBERS)
executes = pytest.mark.skipif(bool(MISSING), reason=f"programs cannot be executed here: {MISSING}")

IDENTITY = "def f(x):\n    return x\n"


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox() as made:
        yield made


@pytest.fixture(scope="module")
def hasty():
    """For attacks that the clock ends."""
    with Sandbox(Limits(wall_seconds=1.0)) as made:
        yield made


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


# What a program may do


@executes
def test_an_outcome_says_what_the_program_did(sandbox):
    source = "import sys\nprint('out')\nsys.stderr.write('err')\n"
    source += "def f(x, y):\n    return {'sum': [x + y, None, 0.5, True]}\n"
    outcome = sandbox.run(source, [Call("f", (1, 2))])
    assert (outcome.stdout, outcome.stderr, outcome.exit_code, outcome.killed_by) == (
        "out\n",
        "err",
        0,
        "",
    )
    assert outcome.returned == (Result(value={"sum": [3, None, 0.5, True]}),)
    assert type(outcome.returned[0].value["sum"][3]) is bool
    assert outcome.compiled and outcome.files == {} and outcome.seconds > 0.0


@executes
def test_a_call_that_raises_does_not_end_the_next_ones(sandbox):
    source = "def f(x):\n    return 1 / x\nclass g:\n    h = staticmethod(lambda: [])\n"
    calls = [
        Call("f", (0,)),
        Call("missing"),
        Call("f", (2,)),
        Call("g.h"),
        Call("f", ("",)),
        Call("f", (4,)),
    ]
    assert sandbox.run(source, calls).returned == (
        Result(error="ZeroDivisionError"),
        Result(error="NameError"),
        Result(value=0.5),
        Result(value=[]),
        Result(error="TypeError"),
        Result(value=0.25),
    )


@executes
@pytest.mark.parametrize(
    "value", ["(1, 2)", "{1}", "b''", "1j", "{1: 2}", "f", "[(1,)]", "float('nan')", "'\\ud800'"]
)
def test_only_plain_values_are_returned(sandbox, value):
    assert sandbox.run(f"def f():\n    return {value}\n", [Call("f")]).returned == (
        Result(error=UNSERIALIZABLE),
    )


@executes
@pytest.mark.parametrize(
    ("source", "exit_code", "compiled"),
    [
        ("f = int", 0, True),
        ("def f(:", 1, False),
        ("\0", 1, False),
        ("x = '\ud800'", 1, False),
        ("1 / 0", 1, True),
        ("raise SystemExit", 0, True),
        ("raise SystemExit(7)", 7, True),
        ("raise SystemExit('no')", 1, True),
        ("import os; os._exit(3)", 3, True),
    ],
)
def test_the_exit_code_is_the_one_python_gives(sandbox, source, exit_code, compiled):
    outcome = sandbox.run(source, [Call("f")])
    assert (outcome.exit_code, outcome.compiled, outcome.killed_by) == (exit_code, compiled, "")
    assert outcome.returned == ((Result(value=0),) if source == "f = int" else ())


@executes
def test_calls_before_an_exit_are_answered_and_later_ones_are_missing(sandbox):
    source = "import os\ndef f(x):\n    return x if x < 2 else os._exit(0)\n"
    outcome = sandbox.run(source, [Call("f", (x,)) for x in range(4)])
    assert outcome.returned == (Result(value=0), Result(value=1)) and outcome.exit_code == 0


@executes
def test_setup_and_what_comes_after_are_sources_of_their_own_in_one_namespace(sandbox):
    program = (
        '"""Doc."""\nfrom __future__ import annotations\ndef f(x: Undefined):\n'
        "    return ceil(x) + after\n"
    )
    outcome = sandbox.run_many(
        [Job(program, (Call("f", (0.5,)),), setup="from math import ceil", after="after = 1")]
    )[0]
    assert (outcome.returned, outcome.compiled) == ((Result(value=2),), True)
    lazy = Job(
        "def f(x: Undefined): return x",
        (Call("f", (1,)),),
        setup="from __future__ import annotations\n",
    )
    open_ended = Job("x = \\", setup="y = 1", after="f = 3")
    outcomes = sandbox.run_many([lazy, open_ended, Job("def f(:", setup="print(1)")])
    assert [outcome.compiled for outcome in outcomes] == [True, False, False]
    assert outcomes[0].returned == (Result(value=1),) and outcomes[2].stdout == ""


@executes
def test_a_program_is_loaded_as_a_module_and_its_main_block_is_not_run(sandbox):
    source = (
        "from dataclasses import dataclass\nimport pickle, sys, __main__\n@dataclass\nclass A:\n"
        "    x: int\n"
        "def f(x):\n    return [pickle.loads(pickle.dumps(A(x))).x, __main__.f is f]\n"
        "if __name__ == '__main__':\n    sys.exit(input())\n"
    )
    outcome = sandbox.run(source, [Call("f", (3,))])
    assert (outcome.returned, outcome.exit_code) == ((Result(value=[3, True]),), 0)


@executes
def test_calls_reach_what_the_program_defines_and_no_builtin(sandbox):
    source = (
        "class A:\n    n = 0\n    def f(self):\n        self.n += 1\n        return self.n\n"
        "len = max\n"
    )
    calls = [
        Call("sum", ([1],)),
        Call("len", (1, 2)),
        Call("A().f"),
        Call("A().f"),
        Call("__import__", ("os",)),
    ]
    assert sandbox.run(source, calls).returned == (
        Result(error="NameError"),
        Result(value=2),
        Result(value=1),
        Result(value=1),
        Result(error="NameError"),
    )


@executes
def test_an_answer_may_be_nested_as_deep_as_is_said(sandbox):
    source = "def f(depth):\n    x = 1\n    for _ in range(depth):\n        x = [x]\n    return x\n"
    deep, *others = sandbox.run(
        source, [Call("f", (x,)) for x in (MAX_DEPTH, MAX_DEPTH + 1, 0)]
    ).returned
    assert (
        others == [Result(error=UNSERIALIZABLE), Result(value=1)]
        and str(deep.value).count("[") == MAX_DEPTH
    )


@executes
def test_a_traceback_names_the_program_alone(sandbox):
    stderr = sandbox.run("def f():\n    raise KeyError('k')\nf()\n").stderr
    assert (
        stderr.count("File") == stderr.count('File "<program>"') == 2 and "KeyError: 'k'" in stderr
    )


@executes
def test_files_are_written_in_a_scratch_folder_and_nowhere_else(sandbox):
    source = "open('result.txt', 'w').write('PASS')\n"
    assert sandbox.run(source, scratch=True).files == {"result.txt": b"PASS"}
    assert sandbox.run("import os; print(os.listdir())", scratch=True).stdout == "[]\n"
    without = sandbox.run(source)
    assert without.exit_code == 1 and "PermissionError" in without.stderr and without.files == {}


@executes
def test_the_standard_library_can_be_imported(sandbox):
    modules = (
        "zlib hashlib csv decimal asyncio xml.etree.ElementTree tomllib unittest email.message "
        "statistics queue"
    )
    outcome = sandbox.run(
        "".join(f"import {name}\n" for name in modules.split()) + "print(zlib.crc32(b'a'))"
    )
    assert outcome.stdout == "3904355907\n", outcome.stderr


@executes
def test_the_streams_are_those_of_python_on_pipes(sandbox, tmp_path):
    source = (
        "import sys\nfor name in ('stdout', 'stderr'):\n    stream = getattr(sys, name)\n"
        "    print(name, stream.fileno(), stream.encoding, stream.errors, stream.seekable(), "
        "stream.isatty())\n"
        "print(repr(sys.stdin.read()))\nsys.stderr.write('\\ud800')\n"
    )
    # PYTHONIOENCODING is what UTF-8 mode means for the errors of stdout, but in the C locale.
    plain = subprocess.run(
        [sys.executable, "-X", "utf8", "-c", source],
        stdin=subprocess.DEVNULL, capture_output=True, text=True,
        env={"PYTHONIOENCODING": "utf-8:strict"},
    )  # fmt: skip
    outcome = sandbox.run(source)
    assert plain.stdout.startswith(
        "stdout 1 utf-8 strict False False\nstderr 2 utf-8 backslashreplace False False\n"
    )
    assert (outcome.stdout, outcome.stderr) == (plain.stdout, plain.stderr)


@executes
def test_installed_packages_cannot_be_imported(sandbox):
    outcome = sandbox.run(
        "import sys\nsys.path += %r\nimport numpy\n" % [path for path in sys.path if path]
    )
    assert "ModuleNotFoundError" in outcome.stderr


@executes
def test_a_program_gives_the_same_in_every_sandbox():
    source = "import random\nprint({str(x) for x in range(50)}, hash('a'), random.random())\n"
    with Sandbox() as one, Sandbox() as two:
        outputs = [one.run(source).stdout, one.run(source).stdout, two.run(source).stdout]
    assert outputs[0] and outputs[1:] == outputs[:2]


@executes
def test_programs_do_not_see_each_other(sandbox):
    sandbox.run("import builtins, math, json\nbuiltins.planted = math.pi = 3\njson.dumps = None\n")
    outcome = sandbox.run(
        "import math, json\nprint(math.pi > 3, json.dumps(1), 'planted' in dir(__builtins__))\n"
    )
    assert outcome.stdout == "True 1 False\n"


# Limits


@executes
@pytest.mark.parametrize(
    ("source", "killed_by"),
    [
        ("while True:\n    pass\n", "cpu"),
        ("import time\ntime.sleep(60)\n", "wall"),
        ("kept = [bytes(2**24) for _ in range(1000)]", "memory"),
        ("print('x' * 65_537)", "output"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\n", "signal:15"),
    ],
)
def test_killed_by_names_the_limit(source, killed_by):
    with Sandbox(Limits(wall_seconds=0.5 if killed_by == "wall" else 20.0)) as made:
        outcome = made.run(source, [Call("f")])
        assert outcome.killed_by == killed_by and outcome.returned == ()
        assert outcome.exit_code == (1 if killed_by == "memory" else None)
        assert made.run("print(1)").stdout == "1\n"


@executes
def test_output_is_cut_at_the_limit():
    with Sandbox(Limits(output_bytes=100)) as made:
        assert made.run("print('x' * 99)").killed_by == ""
        outcome = made.run("print('x' * 100)")
        assert (outcome.killed_by, outcome.stdout) == ("output", "x" * 100)


@executes
def test_files_are_cut_at_the_limits():
    with Sandbox(Limits(num_files=2, file_bytes=3)) as made:
        outcome = made.run("for name in 'ab':\n    open(name, 'w').write('xyz')\n", scratch=True)
        assert outcome.files == {"a": b"xyz", "b": b"xyz"} and outcome.killed_by == ""
        assert (
            made.run("for name in 'abc':\n    open(name, 'w')\n", scratch=True).killed_by
            == "output"
        )
        large = made.run("with open('a', 'w') as file:\n    file.write('wxyz')\n", scratch=True)
        assert large.files == {"a": b"wxy"} and "File too large" in large.stderr


@pytest.mark.parametrize(
    ("name", "value", "condition"),
    [
        ("wall_seconds", 0.0, "a number from 0.001 to 86400; got 0.0"),
        ("wall_seconds", float("nan"), "a number from 0.001 to 86400; got nan"),
        ("wall_seconds", 1e300, "a number from 0.001 to 86400"),
        ("wall_seconds", "1", "a number from 0.001 to 86400; got '1'"),
        ("cpu_seconds", 1.5, "an integer from 1 to 3600; got 1.5"),
        ("cpu_seconds", 2.0, "an integer from 1 to 3600; got 2.0"),
        ("cpu_seconds", True, "an integer from 1 to 3600; got True"),
        ("cpu_seconds", 10**30, "an integer from 1 to 3600"),
        ("memory_bytes", -1, "an integer from 1 to 1099511627776"),
        ("num_files", 0, "an integer from 1 to 1099511627776"),
        ("file_bytes", 2**70, "an integer from 1 to 1099511627776"),
        ("output_bytes", None, "an integer from 1 to 1099511627776; got None"),
        ("returned_bytes", 10, "an integer from 1024 to 1099511627776; got 10"),
    ],
)
def test_limits_are_checked(name, value, condition):
    with pytest.raises(ValueError, match=f"{name} must be {condition}"):
        Limits(**{name: value})


def test_a_limit_may_be_a_number_of_numpy():
    assert Limits(cpu_seconds=np.int64(2), wall_seconds=np.float32(0.5)) == Limits(
        cpu_seconds=2, wall_seconds=0.5
    )
    assert type(Limits(cpu_seconds=np.int64(2)).cpu_seconds) is int


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
def test_a_limit_above_that_of_the_parent_is_named():
    source = (
        "import resource\nresource.setrlimit(resource.RLIMIT_CPU, (50, 50))\n"
        "from hpenv.posttraining.sandbox import Limits, Sandbox\nSandbox(Limits(cpu_seconds=60))\n"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    assert re.search(
        r"SandboxUnavailable: .*RLIMIT_CPU must be at most 50,.* got 61", done.stderr
    ), done.stderr


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


# Missing support


@pytest.mark.parametrize(
    ("owner", "name", "value", "says"),
    [
        (kernel, "landlock_version", lambda: 0, "Landlock.*5.13"),
        (kernel, "has_seccomp", lambda: False, "CONFIG_SECCOMP_FILTER"),
        (platform, "machine", lambda: "riscv64", "riscv64.*aarch64.*x86_64"),
        (sys, "platform", "darwin", "Linux.*darwin"),
        (sys, "executable", None, "sys.executable is None"),
    ],
)
def test_a_machine_that_lacks_something_is_told_what(monkeypatch, owner, name, value, says):
    monkeypatch.setattr(owner, name, value)
    with pytest.raises(SandboxUnavailable, match=says):
        Sandbox()


@executes
@pytest.mark.parametrize("layer", ["restrict_by", "install_seccomp"])
def test_a_layer_that_does_not_hold_is_noticed_before_anything_runs(monkeypatch, tmp_path, layer):
    for path in Path(kernel.__file__).parent.glob("*.py"):
        shutil.copy(path, tmp_path)
    with (tmp_path / "kernel.py").open("a") as file:
        file.write(f"\ndef {layer}(*_):\n    pass\n")
    monkeypatch.setattr(worker, "ZYGOTE", tmp_path / "zygote.py")
    with pytest.raises(SandboxUnavailable, match="not refused"):
        Sandbox()


@executes
@pytest.mark.parametrize(
    "layer", ["restrict_by", "install_seccomp", "die_with_parent", "drop_capabilities"]
)
def test_a_layer_that_cannot_be_applied_is_named(monkeypatch, tmp_path, layer):
    for path in Path(kernel.__file__).parent.glob("*.py"):
        shutil.copy(path, tmp_path)
    with (tmp_path / "kernel.py").open("a") as file:
        file.write(
            f"\ndef {layer}(*_):\n    raise OSError(38, 'Function not implemented', {layer!r})\n"
        )
    monkeypatch.setattr(worker, "ZYGOTE", tmp_path / "zygote.py")
    with pytest.raises(SandboxUnavailable, match=layer):
        Sandbox()


@pytest.mark.parametrize("num_workers", [0, -1, 1.0, "2", True, None])
def test_the_number_of_workers_is_checked(num_workers):
    with pytest.raises(
        ValueError, match=f"num_workers must be an integer of at least 1; got {num_workers!r}"
    ):
        Sandbox(num_workers=num_workers)


def test_limits_that_are_none_of_its_own_are_refused():
    with pytest.raises(ValueError, match="limits must be Limits; got 3"):
        Sandbox(limits=3)


def test_nothing_here_imports_torch():
    source = (
        "import sys, hpenv.posttraining.sandbox.selfcheck.attacks; print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"


# Attacks


@executes
@pytest.mark.parametrize("name", ATTACKS)
def test_the_attack_is_contained(sandbox, hasty, name):
    is_endless = name in ("ignore signals", "stop itself", "outlive its end")
    contained, outcome = run_attack(hasty if is_endless else sandbox, ATTACKS[name])
    assert contained, outcome


@pytest.mark.parametrize(
    "name", [name for name, attack in ATTACKS.items() if attack.breaks_nothing]
)
def test_the_attack_succeeds_outside_the_sandbox(name):
    with lay_bait() as bait:
        done = subprocess.run(
            [sys.executable, "-c", ATTACKS[name].source(bait)],
            capture_output=True,
            text=True,
            check=True,
        )
        assert "BREACH" in done.stdout and "refused" not in done.stdout.replace(
            "refused FileNotFoundError", ""
        )
        assert bait.is_intact() == (name != "connect")
        if name == "read the secret":
            assert bait.token in done.stdout


@executes
def test_the_selfcheck_reports_what_is_not_contained(monkeypatch, capsys):
    fine = Attack("fine", "nothing", "attempt(open, BAIT['secret'])", only_refusals)
    broken = Attack("broken", "to be wrong", "attempt(undefined)", only_refusals)
    gained = Attack("gained", "to read itself", "attempt(open, os.__file__)", only_refusals)
    monkeypatch.setattr(
        __main__, "ATTACKS", {attack.name: attack for attack in (fine, broken, gained)}
    )
    monkeypatch.setattr(sys, "argv", ["sandbox", "--selfcheck"])
    with pytest.raises(SystemExit) as ended:
        __main__.main()
    table = capsys.readouterr().out
    assert ended.value.code == 1 and "1 of 3 attacks contained" in table
    assert [line.split()[0] for line in table.splitlines() if "NOT CONTAINED" in line] == [
        "broken",
        "gained",
    ]


# Tables and pure parts

HEADERS = {
    "x86_64": ("/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "/usr/include/asm/unistd_64.h"),
    "aarch64": ("/usr/include/asm-generic/unistd.h",),
}


@pytest.mark.parametrize("machine", HEADERS)
def test_system_call_numbers_are_those_of_the_headers(machine):
    header = next((Path(path) for path in HEADERS[machine] if Path(path).exists()), None)
    if header is None:
        pytest.skip("the kernel's headers are not installed")
    text = header.read_text().replace("__NR3264_", "__NR_")
    numbers = {
        name: int(number) for name, number in re.findall(r"#define __NR_(\w+)\s+(\d+)", text)
    }
    numbers.setdefault("newfstatat", numbers.get("fstatat", -1))  # the generic table's name for it
    table = syscalls.NUMBERS[machine]
    assert {name: numbers[name] for name in table} == table


@pytest.mark.parametrize("machine", syscalls.NUMBERS)
def test_the_tables_agree_with_each_other(machine):
    table = syscalls.NUMBERS[machine]
    assert len(set(table.values())) == len(table)
    only_x86_64 = {"dup2", "time"}
    for name in (*syscalls.ALLOWED, *syscalls.ALLOWED_FOR, *syscalls.ALLOWED_ON_ITSELF):
        assert name in table or (machine == "aarch64" and name in only_x86_64)
    assert set(syscalls.AUDIT_ARCHITECTURES) == set(syscalls.NUMBERS)
    assert (
        len(set(syscalls.ALLOWED) & {*syscalls.ALLOWED_FOR, *syscalls.ALLOWED_ON_ITSELF, "openat"})
        == 0
    )


READY = b'["ready"]\n["compiled", true]\n'


@pytest.mark.parametrize(
    ("content", "num_calls", "returned"),
    [
        (
            READY + b'["value", 1]\n["error", "KeyError"]\n',
            2,
            (Result(value=1), Result(error="KeyError")),
        ),
        (READY + b'["value", 1]\n["value", 2', 2, (Result(value=1),)),  # died while it answered
        (READY + b'["value", 1]\n["value", 2]\n', 1, ()),  # one too many
        (READY + b'["value", 1]\n["uncaught", "E"]\n', 1, (Result(value=1),)),
        (READY + b'["uncaught", "E"]\n["value", 1]\n', 1, ()),
        (READY + b'["compiled", true]\n["value", 1]\n', 2, ()),
        (READY + b'["value", NaN]\n', 1, ()),
        (READY + b'["value", 1e999]\n', 1, ()),
        (READY + b'["value", -Infinity]\n', 1, ()),
        (READY + b'["value", "\\ud800"]\n', 1, ()),
        (READY + b'["value", ' + b"9" * 5000 + b"]\n", 1, ()),
        (READY + b'["value", ' + b"[" * 100_000 + b"]" * 100_000 + b"]\n", 1, ()),
        (READY + b'["value", ' + b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1) + b"]\n", 1, ()),
        (READY + b'["value"]\n', 1, ()),
        (READY + b'["error", 1]\n', 1, ()),
        (READY + b'["error", ""]\n', 1, ()),
        (READY + b"\xff\n", 1, ()),
        (READY + b"\n", 1, ()),
        (READY + b'{"value": 1}\n', 1, ()),
        (b'["ready"]\n["compiled", 1]\n["value", 1]\n', 1, ()),
        (b'["ready"]\n["value", 1]\n', 1, ()),
        (b"", 1, ()),
    ],
)
def test_answers_that_break_the_rules_are_void(content, num_calls, returned):
    assert read_answers(content, num_calls, 2**20).returned == returned


def test_a_child_that_could_not_be_locked_in_says_why():
    assert read_answers(b'["failed", "OSError: x"]\n', 0, 100)[:2] == (False, "OSError: x")


@pytest.mark.parametrize(
    "value",
    [
        (1,),
        {1: 2},
        {1},
        b"",
        1j,
        object(),
        float("inf"),
        True.__class__,
        type("S", (str,), {})("s"),
        [[(1,)]],
    ],
)
def test_values_that_are_not_plain_are_refused(value):
    with pytest.raises(ValueError):
        plain_size(value, 100)


@pytest.mark.parametrize(
    "value", [None, True, -3, 0.5, "text", [1, [2, []]], {"a": {"b": [None]}}, "é" * 20, [[]] * 20]
)
def test_plain_values_are_measured(value):
    size = plain_size(value, 1000)
    assert plain_size(value, size) == size
    with pytest.raises(ValueError):
        plain_size(value, size - 1)


@executes
def test_a_wrong_proof_ends_the_new_zygotes(monkeypatch):
    started = []
    original = worker.Worker

    def start(limits):
        started.append(original(limits))
        return started[-1]

    monkeypatch.setattr(box, "Worker", start)
    monkeypatch.setattr(box, "_PROOF", "def proof(path):\n    return [True, False, True, True]\n")
    with pytest.raises(SandboxUnavailable, match="False"):
        Sandbox(num_workers=2)
    assert len(started) == 2
    for each in started:
        assert each.process.returncode is not None and not each.scratch.exists()
