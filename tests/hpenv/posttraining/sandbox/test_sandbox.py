"""Powers of programs in a sandbox, and their results."""

import subprocess
import sys

import pytest

from hpenv.posttraining.sandbox import UNSERIALIZABLE, Call, Job, Result, Sandbox
from hpenv.posttraining.sandbox.program import MAX_DEPTH
from tests.hpenv.posttraining.sandbox.boxes import executes

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
