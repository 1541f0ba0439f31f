"""The Triton kernels without a GPU: interpreted on a CPU, and compiled for a Hopper GPU."""

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys

import pytest
from packaging.version import Version

from tests.paths import ROOT

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="needs triton: pip install 'hpenv[kernels]'",
)
IN_PLACE = {"adamw_kernel": (4, 3), "apply_kernel": (3, 1), "blend_kernel": (2, 2)}


def run(program, folder, **variables):
    """Runs a program of this folder in its own process, and reads the JSON that it prints."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TRITON_")}
    finished = subprocess.run(
        [sys.executable, "-m", f"tests.hpenv.optim.fused.{program}"],
        cwd=ROOT,
        env=kept | {"TRITON_CACHE_DIR": str(folder)} | variables,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout)


@pytest.fixture(scope="module")
def interpretation(tmp_path_factory):
    if Version(importlib.metadata.version("triton")) < Version("3.9"):
        pytest.skip("needs triton 3.9: the interpreter of 3.6 cannot loop to a number it has read")
    return run("interpretation", tmp_path_factory.mktemp("cache"), TRITON_INTERPRET="1")


@pytest.fixture(scope="module")
def compilation(tmp_path_factory):
    return run("compilation", tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize("caps", ["without caps", "with caps"])
@pytest.mark.parametrize("rule", ["adamw", "muon"])
def test_interpreted_kernels_do_what_the_twin_does(interpretation, rule, caps):
    found = interpretation[rule][caps]
    assert max(found["twin"].values()) < 2e-6, found["twin"]
    assert found["twin"].get("beta_products", 0.0) < 1e-15
    assert found["unused"] == 0.0
    assert found["error"] < 2e-6 and found["statistics_error"] < 1e-5


@pytest.mark.parametrize("caps", ["without caps", "with caps"])
@pytest.mark.parametrize("rule", ["adamw", "muon"])
def test_interpreted_kernels_give_the_same_bits_again(interpretation, rule, caps):
    assert set(interpretation[rule][caps]["again"].values()) == {0.0}


def test_every_launch_compiles_to_a_program_of_the_gpu(compilation):
    assert len(compilation["kernels"]) == 7
    for name, facts in compilation["kernels"].items():
        assert facts["target"] == 90 and {"ptx", "cubin"} <= set(facts["stages"]), name


def test_other_values_compile_nothing(compilation):
    """Rates, gates and caps are read from the device."""
    assert len(compilation["first"]) >= 7 and compilation["later"] == []


def test_kernels_use_no_atomics_and_do_not_spill(compilation):
    for name, facts in compilation["kernels"].items():
        assert facts["atomics"] == 0, name
        assert facts["local"] in (0, None), name


def test_kernels_round_to_nearest_and_every_product_before_they_add(compilation):
    for name, facts in compilation["kernels"].items():
        assert facts["fused"] == facts["approximate"] == 0, name


@pytest.mark.parametrize("name", IN_PLACE)
def test_kernels_read_and_write_16_bytes_at_a_time(compilation, name):
    """8 entries a thread and buffer: two wide reads or writes of each."""
    reads, writes = IN_PLACE[name]
    facts = compilation["kernels"][name]
    assert (facts["wide_reads"], facts["wide_writes"]) == (2 * reads, 2 * writes)
