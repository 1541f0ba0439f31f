"""Attacks are contained, and a layer that does not hold is noticed."""

import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hpenv.posttraining.sandbox import Limits, Sandbox, SandboxUnavailable, __main__, kernel, worker
from hpenv.posttraining.sandbox.selfcheck.attacks import ATTACKS, Attack, only_refusals, run_attack
from hpenv.posttraining.sandbox.selfcheck.bait import lay_bait
from tests.hpenv.posttraining.sandbox.boxes import executes


@pytest.fixture(scope="module")
def hasty():
    """For attacks that the clock ends."""
    with Sandbox(Limits(wall_seconds=1.0)) as made:
        yield made


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
