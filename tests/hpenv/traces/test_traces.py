"""A trace is replayed bitwise, as a controller and as a schedule of torch."""

import csv
import io

import gymnasium as gym
import numpy as np
import pytest
import torch

import hpenv
from hpenv.benchmark.environments import columns_of
from hpenv.deploy import ControllerWarning, Rails, attach
from hpenv.policies import UpdateRatio, load_policy, save_policy
from hpenv.policies.controller import begin
from hpenv.traces import Recording, StepMultiplier, Trace, trace_of
from tests.hpenv.deploy.loops import Constant, Recorder, Wandering, assert_same, model, train

gym.register_envs(hpenv)
STEPS = 20
LIMITS = {"bounds": {"lr": (0.3, 3.0)}}


def run(controller, spike=None):
    net = model()
    first, *others = net.parameters()
    opt = torch.optim.AdamW([{"params": [first]}, {"params": others, "lr": 0.02}], lr=0.01)
    attachment = attach(
        opt, controller, total_steps=STEPS, rails=Rails(spike=spike, pause=2), **LIMITS
    )
    train(net, opt, attachment=attachment, steps=range(STEPS))
    return attachment, list(net.parameters())


@pytest.mark.filterwarnings("ignore::hpenv.deploy.ControllerWarning")
@pytest.mark.parametrize("spike", [None, 1.02])
def test_a_replayed_run_is_bitwise_the_recorded_one(spike, tmp_path):
    recorded, weights = run(Wandering(), spike)
    trace = trace_of(recorded)
    assert bool({d.reason for d in recorded.history} - {""}) == (spike is not None)
    save_policy(trace.controller(), tmp_path / "table")
    replayed, again = run(load_policy(tmp_path / "table"))
    assert_same(again, weights)
    assert [d.multipliers for d in replayed.history] == [d.multipliers for d in recorded.history]
    assert_same(trace_of(replayed).positions.tolist(), trace.positions.tolist())
    assert trace.positions.shape == (7, 2) and trace.positions.std() > 0


def test_a_lambda_schedule_of_a_trace_takes_the_same_steps():
    recorded, weights = run(Wandering())
    trace = Trace.from_json(trace_of(recorded).to_json())
    net = model()
    first, *others = net.parameters()
    opt = torch.optim.AdamW([{"params": [first]}, {"params": others, "lr": 0.02}], lr=0.01)
    functions = [trace.multiplier(f"lr/{group}") for group in (0, 1)]
    scheduler = torch.optim.lr_scheduler.LambdaLR(opt, functions)
    train(net, opt, scheduler, steps=range(STEPS))
    assert_same(list(net.parameters()), weights)
    # LambdaLR saves the state of callable objects.
    assert scheduler.state_dict()["lr_lambdas"][0]["interval"] == 3


def test_a_multiplier_stays_after_the_last_decision():
    function = StepMultiplier([2.0, 0.5], 3)
    assert [function(step) for step in range(8)] == [2.0] * 3 + [0.5] * 5


def test_a_trace_keeps_every_bit_as_json_and_as_a_table():
    trace = trace_of(run(Wandering())[0])
    again = Trace.from_json(trace.to_json())
    assert again.to_json() == trace.to_json() and again.cells == ("lr/0", "lr/1")
    assert np.array_equal(again.positions, trace.positions)
    rows = list(csv.DictReader(io.StringIO(trace.to_csv())))
    assert [int(row["step"]) for row in rows] == list(range(0, STEPS, 3))
    for name in trace.multipliers:
        assert [float(row[f"multiplier:{name}"]) for row in rows] == list(trace.multipliers[name])
    for cell, column in zip(trace.cells, trace.positions.T, strict=True):
        assert [float(row[f"position:{cell}"]) for row in rows] == column.tolist()


def test_decisions_after_a_fault_are_neutral():
    class Failing(Constant):
        def act(self, observations):
            if len(self.seen) == 2:
                raise KeyError("x")
            return super().act(observations)

    net = model()
    opt = Recorder(net.parameters())
    attachment = attach(opt, Failing(0.25), total_steps=10, rails=Rails(spike=None))
    with pytest.raises(ValueError, match="must have made a decision; got an empty history"):
        trace_of(attachment)
    with pytest.warns(ControllerWarning):
        train(net, opt, attachment=attachment, steps=range(10))
    trace = trace_of(attachment)
    assert trace.positions[:, 0].tolist() == [0.25, 0.25, 0, 0, 0]
    assert trace.multipliers["lr/0"][2:] == [1.0] * 3


def test_a_run_of_an_environment_is_recorded_and_replayed_bitwise():
    tiny = {
        "data": "synthetic", "batch_tokens": 64, "sequence_length": 16, "num_steps": 10,
        "channels": [["lr", "group"]], "observation": ["progress", "update_ratio"], "interval": 4,
    }  # fmt: skip

    def play(controller, **changes):
        env = gym.make_vec(
            "TrainLoop-JEL-v0", num_envs=2, autoreset_mode="DISABLED", **tiny | changes
        )
        observations, _ = env.reset(seed=3)
        begin(controller, columns_of(env))
        for _ in range(3):
            observations, *_ = env.step(controller.act(observations))
        return env.plant.weights

    recording = Recording(UpdateRatio(interval=4))
    weights = play(recording)
    for run in (0, 1):
        trace = recording.trace(10, 4, run)
        replayed = play(trace.controller(), observation=["progress"])
        assert torch.equal(replayed["layer.0.up"][run], weights["layer.0.up"][run])
    assert not torch.equal(replayed["layer.0.up"][0], weights["layer.0.up"][0])
    assert trace.channels == (("lr", "group"),) and trace.positions.shape == (3, 3)
    assert trace.multipliers["lr/matrix"] == pytest.approx(100.0 ** trace.positions[:, 1])
    with pytest.raises(ValueError, match="of 8 steps has 2 decisions; got 3"):
        recording.trace(8, 4)
    with pytest.raises(ValueError, match="must have acted since reset"):
        Recording(Constant(0.0)).trace(8, 4)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"positions": np.zeros((2, 2))}, r"shape \(4, 2\), decisions by cells; got \(2, 2\)"),
        ({"multipliers": {"lr/0": [1.0]}}, "multipliers must be 4 each; got {'lr/0': 1}"),
        ({"interval": 0}, "interval must be a whole number"),
    ],
)
def test_traces_of_other_shapes_are_refused(changes, text):
    values = {
        "cells": ("a", "b"), "channels": (), "interval": 3, "num_steps": 10,
        "positions": np.zeros((4, 2)), "multipliers": {},
    }  # fmt: skip
    Trace(**values)
    with pytest.raises(ValueError, match=text):
        Trace(**values | changes)


def test_unknown_multipliers_and_texts_are_refused():
    trace = trace_of(run(Wandering())[0])
    with pytest.raises(ValueError, match=r"unknown multiplier 'lr'; expected one of \['lr/0'"):
        trace.multiplier("lr")
    for text in ("{}", "[]"):
        with pytest.raises(ValueError, match="a trace must have the fields"):
            Trace.from_json(text)
