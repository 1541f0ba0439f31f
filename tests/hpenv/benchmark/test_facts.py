"""Facts name what a number depends on."""

import importlib.metadata
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from hpenv.benchmark import facts
from hpenv.benchmark.facts import environment_facts


def test_facts_name_what_a_number_depends_on():
    found = environment_facts({"preset": "nano"}, "abc")
    assert found["versions"]["torch"] == importlib.metadata.version("torch")
    assert found["versions"]["numpy"] == np.__version__
    assert set(found["versions"]) == {"python", "hpenv", "torch", "numpy", "gymnasium"}
    assert found["torch_threads"] == torch.get_num_threads()
    assert found["corpus"] == "abc" and found["env_kwargs"] == {"preset": "nano"}
    assert found["processor"] and found["command"][1:] == sys.argv[1:]
    assert found["cpu_capability"] == torch.backends.cpu.get_cpu_capability()
    assert found == json.loads(json.dumps(found))


CPUINFO = """processor\t: 0
model name\t: A Processor @ 2.10GHz
flags\t\t: fpu sse2 avx2 fma avx512f avx512_bf16 amx_tile
processor\t: 1
model name\t: Another
"""


@pytest.mark.parametrize(
    ("text", "instructions"),
    [
        (CPUINFO, ["avx2", "fma", "avx512f", "avx512_bf16", "amx_tile"]),
        ("Features\t: fp asimd bf16\n", ["asimd", "bf16"]),
        ("processor\t: 0\n", None),
    ],
)
def test_instruction_sets_and_limits_are_facts(text, instructions, tmp_path, monkeypatch):
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(facts, "CPUINFO", tmp_path / "cpuinfo")
    for name in facts.LIMITS:
        monkeypatch.delenv(name, raising=False)
    assert environment_facts()["limits"] == {}
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    found = environment_facts()
    assert found["instructions"] == instructions and found["limits"] == {
        "ONEDNN_MAX_CPU_ISA": "AVX2"
    }
    assert found["processor"] == (
        "A Processor @ 2.10GHz" if text is CPUINFO else found["processor"]
    )


def git(folder, *arguments):
    identity = ("-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false")
    subprocess.run(
        ["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True
    )


def test_the_commit_is_that_of_the_checkout_and_dirty_is_about_sources(tmp_path, monkeypatch):
    monkeypatch.setattr(facts, "ROOT", tmp_path)
    assert facts._commit() == (None, None)
    git(tmp_path, "init", "-q")
    (tmp_path / "a.py").write_text("")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-q", "-m", "x")
    commit, dirty = facts._commit()
    assert len(commit) == 40 and dirty is False
    (tmp_path / "result.json").write_text("{}")
    assert facts._commit()[1] is False
    (tmp_path / "b.py").write_text("")
    assert facts._commit()[1] is True
    (tmp_path / "inner").mkdir()
    monkeypatch.setattr(facts, "ROOT", tmp_path / "inner")  # somebody else's repository around us
    assert facts._commit()[0] is None


def test_the_command_does_not_say_where_the_checkout_lies(monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(facts.ROOT / "train_agents" / "train.py"), "--seed", "1"])
    assert environment_facts()["command"] == ["-m", "train_agents.train", "--seed", "1"]
