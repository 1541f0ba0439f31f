"""One sampled action of every channel, traced from `env.step` to the exact change of the weights.

Each of the faults injected at the end of this file, a gradient that is accumulated twice, must
break every channel's trace.
"""

from unittest.mock import patch

import gymnasium as gym
import numpy as np
import pytest
import torch

import hpenv  # noqa: F401  registers the ids
from hpenv.control.channels import channels_of
from hpenv.lm import model
from hpenv.lm.architecture import parameter_shapes
from hpenv.pretraining import plant as pretraining
from tests.hpenv.pretraining.reference_trace import LAYERS, LR, VALUES, WD, B, N, T, Trace
from tests.hpenv.pretraining.tracers import TRACERS, trace_grad_clip
from tests.tiny_plants import PRESETS, advance, make, stir

CHANNELS = channels_of("pretraining")
WARM_STEPS = 2  # at neutral, so that there are moments
ARCHITECTURES = ("relu2", "swiglu")
EVERY_TRACER = pytest.mark.parametrize("name", TRACERS)


def test_every_channel_is_traced():
    assert TRACERS.keys() == VALUES.keys() == CHANNELS.keys()


def sampled(name, generator, shape):
    """An action as a policy would sample it.

    Where it must move something, it is on the side where it does.
    """
    action = generator.uniform(-1, 1, shape)
    if CHANNELS[name].one_sided:
        action = generator.uniform(0.3, 0.8, shape)  # a probability neither 0 nor 1
        action[0, 0] = -0.5  # and one cell at neutral
    if CHANNELS[name].kind == "clip":
        action[action > 0] = 0.9
    return action.astype(np.float32)


def traces(name, architecture, scope=None):
    """Plays WARM_STEPS decisions at neutral and one that is sampled.

    Returns one Trace per run.
    """
    scope = CHANNELS[name].scopes[-1] if scope is None else scope
    with patch.dict("hpenv.lm.architecture.PRESETS", PRESETS):
        env = gym.make_vec(
            "TrainLoop-Cell-v0",
            num_envs=N,
            preset=architecture,
            data="synthetic",
            batch_tokens=B * T,
            sequence_length=T,
            num_steps=20,
            channels=[(name, scope)],
            num_registers=0,
            base_lr=LR,
            base_weight_decay=WD,
        )
    env.reset(seed=[7, 8])
    plant, windows = env.unwrapped.plant, []
    stir(plant)
    original = plant.advance
    plant.advance = lambda num_steps: windows.append(original(num_steps)) or windows[-1]
    shape = env.action_space.shape
    for _ in range(WARM_STEPS):
        env.step(np.zeros(shape, dtype=np.float32))
    before, steps = _copied(plant), plant.steps.copy()
    action = sampled(name, np.random.default_rng(3), shape)
    inputs, targets = plant._batch()
    env.step(action)
    after, window = _copied(plant), windows[-1]
    assert plant.steps.tolist() == [WARM_STEPS + 1] * N and not plant.divergence.any()
    cells = [column.partition("/")[2] or "run" for column in env.unwrapped.action_names]
    return [
        Trace(
            name,
            plant.model_config,
            int(plant.seeds[row]),
            int(steps[row]),
            {cell: float(u) for cell, u in zip(cells, action[row], strict=True)},
            inputs[row],
            targets[row],
            _row(before, row),
            _row(after, row),
            window["layer_gradient_norm"][row],
            float(window["train_loss"][row]),
        )
        for row in range(N)
    ]


def _copied(plant):
    return {
        "weights": {name: weight.clone() for name, weight in plant.weights.items()},
        "state": {
            n: {slot: v.clone() for slot, v in state.items()}
            for n, state in plant.optimizer_state.items()
        },
    }


def _row(state, row):
    return {
        "weights": {name: weight[row] for name, weight in state["weights"].items()},
        "state": {
            n: {slot: v[row] for slot, v in slots.items()} for n, slots in state["state"].items()
        },
    }


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@EVERY_TRACER
def test_a_sampled_action_arrives_at_the_weights(name, architecture):
    for trace in traces(name, architecture):
        TRACERS[name](trace)


@EVERY_TRACER
def test_the_trace_of_another_value_fails(name):
    """The check can fail: had the action been another, the state after would be another."""
    trace = traces(name, "relu2")[1]
    trace.positions = {
        cell: -u if not CHANNELS[name].one_sided else 0.99 for cell, u in trace.positions.items()
    }
    with pytest.raises(AssertionError):
        TRACERS[name](trace)


@pytest.mark.parametrize("p", [0.999999, 1.0])
@pytest.mark.parametrize("name", ["grad_skip", "grad_gate", "grad_truncate"])
def test_a_gradient_that_is_always_left_out_leaves_the_moments_zero_and_the_weight_to_decay(
    name, p
):
    plant = make(1, ((name, "layer"),), base_weight_decay=0.5)
    plant.panel.positions[:] = 0.1 + 0.9 * p
    before = {n: w.clone() for n, w in plant.weights.items()}
    window = advance(plant, 3)
    assert (window["layer_gradient_norm"] > 0).all(), (
        "what is measured is the gradient before it is steered"
    )
    for n, state in plant.optimizer_state.items():
        assert state["momentum"].any() != n.startswith("layer."), n
        assert state["second_moment"].any() != n.startswith("layer."), n
        if n.startswith("layer."):
            torch.testing.assert_close(
                plant.weights[n], before[n] * (1 - 1e-3 * 0.5) ** 3, rtol=1e-6, atol=0
            )


# Faults on purpose: a gradient that is accumulated twice


def doubled_leaf(monkeypatch):
    """The gradients of the last layer's tensors are doubled.

    Forward pass and other layers are sound.
    """
    original = torch.autograd.grad

    def grad(outputs, inputs, *more, **keywords):
        result = original(outputs, inputs, *more, **keywords)
        names = list(parameter_shapes(PRESETS["relu2"]))
        assert len(result) == len(names)
        return tuple(
            g * 2 if n.startswith(f"layer.{LAYERS - 1}.") else g
            for n, g in zip(names, result, strict=True)
        )

    monkeypatch.setattr(torch.autograd, "grad", grad)


def doubled_flow(monkeypatch):
    """The gradient through each layer's attention is accumulated twice, with the same loss.

    This is the paper's aliased pointer.
    """
    original = model._attention

    def attention(*arguments):
        result = original(*arguments)
        return result + (result - result.detach())

    monkeypatch.setattr(model, "_attention", attention)


def doubled_on_the_way(monkeypatch):
    """The gradients are doubled between their measurement and the optimizer."""
    original = pretraining.apply_gradient_channels

    def apply_gradient_channels(*arguments):
        return {name: g * 2 for name, g in original(*arguments).items()}

    monkeypatch.setattr(pretraining, "apply_gradient_channels", apply_gradient_channels)


FAULTS = {
    doubled_leaf: "the norms of the layers' gradients are others",
    doubled_flow: "the norms of the layers' gradients are others",
    doubled_on_the_way: "first moment: off by",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
@EVERY_TRACER
def test_a_gradient_that_is_accumulated_twice_breaks_the_trace(name, fault, monkeypatch):
    fault(monkeypatch)
    broken = traces(name, "relu2")
    monkeypatch.undo()
    for trace in broken:
        with pytest.raises(AssertionError, match=FAULTS[fault]):
            TRACERS[name](trace)


def test_without_the_norms_of_the_layers_a_clip_would_hide_a_doubled_gradient(monkeypatch):
    """The reason for Trace.raw: the clipped gradient is the same with the fault.

    See Reward-Driven Training Control, section 8.
    """
    doubled_leaf(monkeypatch)
    hidden = traces("grad_clip", "relu2")[1]
    hidden.norms[-1] /= 2
    trace_grad_clip(hidden)
