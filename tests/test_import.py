"""The cost of `import hpenv`, which is nothing beyond Gymnasium, and the names that it gives.

The names exist here and in worker processes.
"""

import concurrent.futures
import multiprocessing
import subprocess
import sys

import gymnasium
import pytest

from tests.paths import ROOT


def run_python(code: str) -> str:
    """What a fresh interpreter prints, on both streams, with every warning an error."""
    finished = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    assert finished.returncode == 0, finished.stdout
    return finished.stdout


def test_import_prints_nothing():
    assert run_python("import hpenv") == ""


def test_import_loads_no_module_beyond_gymnasium_and_the_standard_library():
    printed = run_python(
        "import sys, gymnasium\nbefore = set(sys.modules)\nimport hpenv\n"
        "print(*sorted(set(sys.modules) - before))"
    )
    loaded = set(printed.split())
    assert "hpenv" in loaded
    # `torch` among them would cost seconds; a module of hpenv other than the root would soon bring
    # it in.
    assert {name for name in loaded if name.split(".")[0] not in sys.stdlib_module_names} == {
        "hpenv"
    }


def test_torch_stays_unloaded():
    assert run_python("import sys, hpenv\nprint('torch' in sys.modules)").strip() == "False"


def test_import_registers_the_environments():
    printed = run_python(
        "import gymnasium\n"
        "before = set(gymnasium.registry)\n"
        "import hpenv\n"
        "print(*sorted(set(gymnasium.registry) - before))"
    )
    ids = printed.split()
    assert "TrainLoop-JEL-v0" in ids
    assert all(id.startswith("TrainLoop-") for id in ids)


def test_a_worker_process_finds_an_id_that_names_its_module(tiny):
    """Gymnasium's registry is one of each process: what is registered here is not in a worker."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as workers:
        with pytest.raises(gymnasium.error.NameNotFound):
            workers.submit(gymnasium.make, "TrainLoop-JEL-v0", **tiny).result(timeout=120)
        env = workers.submit(gymnasium.make, "hpenv:TrainLoop-JEL-v0", **tiny).result(timeout=120)
    env.reset(seed=0)
    assert env.step(env.action_space.sample())[4]["step"] == tiny["interval"]
