"""Limits end a program and are named."""

import re
import subprocess
import sys

import numpy as np
import pytest

from hpenv.posttraining.sandbox import Call, Limits, Sandbox
from tests.hpenv.posttraining.sandbox.boxes import executes

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


def test_limits_that_are_none_of_its_own_are_refused():
    with pytest.raises(ValueError, match="limits must be Limits; got 3"):
        Sandbox(limits=3)
