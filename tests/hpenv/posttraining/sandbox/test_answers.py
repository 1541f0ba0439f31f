"""Answers that break the rules are void, and system calls are those of the headers."""

import re
from pathlib import Path

import pytest

from hpenv.posttraining.sandbox import Result, Sandbox, SandboxUnavailable, box, syscalls, worker
from hpenv.posttraining.sandbox.answers import read_answers
from hpenv.posttraining.sandbox.program import MAX_DEPTH, plain_size
from tests.hpenv.posttraining.sandbox.boxes import executes

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
