"""The program that checks and times the fused updates, without a GPU."""

import json

import pytest
import torch

from hpenv.optim.fused.arena import AdamWArena, MuonArena
from speed import kernels
from speed.kernel_checks import check_all
from speed.kernel_times import TorchUpdate, filled_arena, update_times
from speed.kernels import failures

CPU = torch.device("cpu")
SHAPES = {"w": (4, 3), "b": (5,)}


def test_without_cuda_it_checks_the_twin_and_says_what_it_has_not_run(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    out = tmp_path / "numbers.json"
    kernels.main(["--out", str(out)])
    found = json.loads(out.read_text())
    assert set(found["not run"]) == {
        "checks of the kernels",
        "checks of the twin on the GPU",
        "times",
        "population",
    }
    assert not {"times", "gpu", "population"} & set(found)
    checks = found["checks of the twin on the CPU"]
    assert set(checks) == {"AdamWArena", "MuonArena"}
    assert all(check["passed"] for own in checks.values() for check in own.values())
    assert "this machine has no CUDA device" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("kind", "slot", "check"),
    [
        (AdamWArena, "weights", "error against float64"),
        (MuonArena, "weights", "error against float64"),
        (AdamWArena, "momentum", "a closed gate keeps a run"),
    ],
)
def test_a_wrong_update_fails_its_check(kind, slot, check):
    def stepper(arena):
        twin = kernels.TWINS[kind](arena)

        def step():
            twin()
            arena.views[slot][arena.layout.names[0]].mul_(1.001)

        return step

    found = check_all(kind, CPU, stepper)
    assert not found[check]["passed"]
    assert f"twin: {check}" in failures({"twin": found})


def test_times_are_those_of_updates_that_were_taken():
    """Every contestant is there, and the arena's has moved its weights."""
    arenas = []

    def stepper(arena):
        arenas.append(arena)
        return kernels.TWINS[AdamWArena](arena)

    found = update_times(SHAPES, 2, CPU, stepper, rounds=2, repeats=1)
    assert found["parameters"] == 2 * 17
    assert set(found["microseconds per update"]) == {
        "arena", "torch", "torch, norms", "torch, copies, norms", "copy",
    }  # fmt: skip
    (arena,) = arenas
    assert not torch.equal(arena.flat["weights"], filled_arena(SHAPES, 2, CPU).flat["weights"])
    assert found["gigabytes per second"] > 0


def test_torch_and_the_arena_take_the_same_step():
    arena = filled_arena(SHAPES, 2, CPU)
    by_torch = TorchUpdate(arena)
    by_torch.update_and_measure()
    kernels.TWINS[AdamWArena](arena)()
    for view, parameter in zip(arena.views["weights"].values(), by_torch._parameters, strict=True):
        torch.testing.assert_close(view, parameter.detach())
    norms = torch.stack(by_torch.norms([p.grad for p in by_torch._parameters]), 1)
    torch.testing.assert_close(arena.statistics.gradient_square.sqrt().float(), norms)
