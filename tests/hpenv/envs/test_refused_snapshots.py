"""Snapshots of other tensors, metadata or settings are refused by every id."""

import copy

import numpy as np
import pytest
import torch

import hpenv  # noqa: F401  registers the ids
from hpenv import branching
from hpenv.envs import jel
from hpenv.plant.protocol import Snapshot
from tests.hpenv.envs.small_arguments import make

# Snapshots that are none


@pytest.fixture(scope="module")
def run():
    """An environment, and its snapshot after the reset."""
    env = make(jel.ID)
    env.reset(seed=1)
    return env, branching.snapshot(env)


def damaged(snapshot, tensors=(), **metadata):
    """A snapshot with other tensors (None: without them) and metadata."""
    changed = dict(snapshot.tensors) | dict(tensors)
    kept = {name: tensor for name, tensor in changed.items() if tensor is not None}
    return Snapshot(kept, copy.deepcopy(snapshot.metadata) | metadata)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"plant/weights/embedding": None}, r"missing are \['weights/embedding'\]"),
        ({"plant/weights/more": torch.ones(1)}, r"unknown are \['weights/more'\]"),
        (
            {"plant/weights/embedding": torch.ones(1, 64)},
            "'weights/embedding' of the snapshot must be of shape",
        ),
        (
            {"plant/weights/embedding": torch.ones(1, 256, 64).double()},
            "torch.float32; got .* torch.float64",
        ),
        (
            {"plant/rows/steps": torch.tensor([-1])},
            r"rows/steps of the snapshot must be from 0 to .*; got \[-1\]",
        ),
        (
            {"plant/rows/steps": torch.tensor([2**62])},
            "rows/steps of the snapshot must be from 0 to",
        ),
        (
            {"plant/rows/seeds": torch.tensor([-5])},
            r"rows/seeds of the snapshot must be from 0 to inf; got \[-5\]",
        ),
        (
            {"plant/rows/divergence": torch.tensor([99])},
            "rows/divergence of the snapshot must be from 0 to 4",
        ),
        (
            {"plant/rows/panel": torch.tensor([[0.0, 1.5]]).double()},
            "rows/panel of the snapshot must be from -1 to 1",
        ),
        (
            {"plant/rows/panel": torch.full((1, 2), np.nan).double()},
            "rows/panel of the snapshot must be from -1 to 1",
        ),
        ({"plant/window/steps": None}, r"missing are \['window/steps'\]"),
        ({"env/ended": None}, r"missing are \['env/ended'\]"),
        ({"env/more": torch.ones(1)}, r"unknown are \['env/more'\]"),
        (
            {"env/observations": torch.ones(1, 7)},
            r"'env/observations' .* must be of shape \(1, 1\)",
        ),
        ({"window/train_loss": torch.ones(2)}, r"'window/train_loss' .* must be of shape \(1,\)"),
        ({"trajectory/mean": None}, r"missing are \['trajectory/mean'\]"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_snapshot_of_other_tensors_is_refused_and_changes_nothing(run, tensors, message):
    env, snapshot = run
    with pytest.raises(ValueError, match=message):
        branching.restore(env, damaged(snapshot, tensors))
    for name, tensor in branching.snapshot(env).tensors.items():
        assert torch.equal(tensor, snapshot.tensors[name]), name


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"env": None}, "must be an environment snapshot; got"),
        ({"env": [1]}, "must be an environment snapshot; got"),
        ({"plant": {}}, "the snapshot must be of a plant, with its configuration; it holds"),
        (
            {"plant": {"configuration": 5}},
            "the snapshot must be of a plant, with its configuration; it holds",
        ),
        ({"rows": 5}, "snapshot must have the 1 rows of this environment; got 5"),
        (
            {"rows": [{}]},
            "rows of the snapshot must hold a stream of seeds and a history each; got KeyError",
        ),
        (
            {"rows": [{"random": {"bit_generator": "MT19937"}, "history": {}}]},
            "rows of the snapshot must hold",
        ),
        ({"rows": []}, "snapshot must have the 1 rows of this environment; got 0 rows"),
    ],
    ids=str,
)
def test_a_snapshot_of_other_metadata_is_refused_and_changes_nothing(run, metadata, message):
    env, snapshot = run
    with pytest.raises(ValueError, match=message):
        branching.restore(env, damaged(snapshot, **metadata))
    assert branching.snapshot(env).metadata == snapshot.metadata


@pytest.mark.parametrize("part", ["env", "plant"])
def test_a_setting_that_is_not_known_here_is_refused_by_name(run, part):
    env, snapshot = run
    metadata = copy.deepcopy(snapshot.metadata)
    (metadata["env"] if part == "env" else metadata["plant"]["configuration"])["gravity"] = 9.81
    with pytest.raises(ValueError, match=r"'gravity': \(9.81, None\)"):
        branching.restore(env, Snapshot(snapshot.tensors, metadata))
