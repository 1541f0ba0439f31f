"""A run resumed from a checkpoint is the unbroken one, and its state is checked."""

import json
from types import SimpleNamespace

import pytest
import torch

from hpenv.integrations.transformers_callback import ProjectionCallback
from hpenv.posttraining.projection.direction import Direction
from tests.hpenv.integrations.small_trainer import (
    LAYERS,
    coefficients_of,
    of_layers,
    trained,
    wrapped,
)
from tests.tiny_qwen3 import transformers

pytest.importorskip("accelerate", reason="needs accelerate: pip install 'hpenv[posttraining]'")


@pytest.mark.parametrize("target", ["grad", "update"])
def test_a_run_resumed_from_a_checkpoint_is_bitwise_the_unbroken_one(tmp_path, target):
    saving = {"save_strategy": "steps", "save_steps": 2, "steps": 4}
    saving["restore_callback_states_from_checkpoint"] = (
        target == "grad"
    )  # as other callbacks may need it
    model, _ = wrapped()
    trained(
        tmp_path, model, [ProjectionCallback(of_layers(model), "drift", target=target)], **saving
    )
    unbroken = coefficients_of(model)
    checkpoint = str(tmp_path / "checkpoint-2")
    model, _ = wrapped()
    callback = ProjectionCallback(of_layers(model), "drift", target=target)
    trained(tmp_path, model, [callback], resumed=checkpoint, **saving)
    assert all(torch.equal(value, unbroken[name]) for name, value in coefficients_of(model).items())
    forgotten, _ = wrapped()
    trained(
        tmp_path,
        forgotten,
        [Forgetful(of_layers(model), "drift", target=target)],
        resumed=checkpoint,
        **saving,
    )
    assert not all(
        torch.equal(value, unbroken[name]) for name, value in coefficients_of(forgotten).items()
    )
    # The same callback, trained once more from the start, has seen nothing.
    model, _ = wrapped()
    trained(tmp_path, model, [callback], **saving)
    assert all(torch.equal(value, unbroken[name]) for name, value in coefficients_of(model).items())


class Forgetful(ProjectionCallback):
    """Begins anew wherever the run stands."""

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, SimpleNamespace(global_step=0), control, **kwargs)


def resumed_at(
    step: int, saved: dict, own: Direction, model, target: str = "grad"
) -> ProjectionCallback:
    """A callback that has begun a run at this step, with what a checkpoint held."""
    args = SimpleNamespace(deepspeed=None, fsdp=None, fp16=False, max_grad_norm=1.0)
    callback = ProjectionCallback(own, "drift", target=target)
    state = transformers.TrainerState(global_step=step, stateful_callbacks=saved)
    callback.on_train_begin(
        args, state, None, model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1)
    )
    return callback


def test_a_checkpoint_that_does_not_hold_what_drift_has_seen_is_refused():
    model, _ = wrapped()
    own, state = of_layers(model), transformers.TrainerState()
    resumed_at(0, {}, own, model).on_step_end(None, state, None)
    (name,) = state.stateful_callbacks
    saved = json.loads(json.dumps(state.stateful_callbacks))  # as the Trainer writes them
    resumed_at(7, saved, own, model)
    other = Direction({key: -axes for key, axes in own.axes.items()}, own.strengths)
    for arguments in (({}, own, model), (saved, other, model), (saved, own, model, "update")):
        with pytest.raises(
            ValueError,
            match=r"at step 7 must hold the running moments of the rule 'drift' .*; got none; "
            "resume",
        ):
            resumed_at(7, *arguments)
    for part, value in (
        ("weight", None),
        ("weight", [-1.0]),
        ("means", {}),
        ("means", 3),
        ("squares", {LAYERS[0]: [[1]]}),
    ):
        damaged = {name: saved[name] | {part: value}}
        with pytest.raises(
            ValueError,
            match=r"trainer_state.json of the checkpoint at step 7 is damaged: .*; resume",
        ):
            resumed_at(7, damaged, own, model)


def test_another_direction_forgets_what_was_seen_along_the_old_one():
    model, adapters = wrapped()
    own, state = of_layers(model), transformers.TrainerState()
    callback = resumed_at(0, {}, own, model)
    for name in LAYERS:
        adapters[name].coefficients.grad = torch.linspace(-1, 1, len(adapters[name].S))
    callback.on_pre_optimizer_step(None, None, None)
    callback.on_step_end(None, state, None)
    (first,) = state.stateful_callbacks.values()
    assert first["weight"][0] > 0
    callback.direction = Direction({key: -axes for key, axes in own.axes.items()}, own.strengths)
    callback.on_step_end(None, state, None)
    (second,) = state.stateful_callbacks.values()
    assert second["weight"] == [0.0]


def test_a_run_after_one_that_failed_projects_each_update_once():
    model, _ = wrapped()
    callback = ProjectionCallback(of_layers(model), "two_sided", target="update")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    args = SimpleNamespace(deepspeed=None, fsdp=None, fp16=False, max_grad_norm=1.0)
    for _ in range(2):  # the first run ends without on_train_end
        callback.on_train_begin(
            args, SimpleNamespace(global_step=0), None, model=model, optimizer=optimizer
        )
    projected = []
    original = callback._project
    callback._project = lambda vectors: projected.append(None) or original(vectors)
    model.get_submodule(LAYERS[0]).coefficients.grad = torch.ones(
        len(model.get_submodule(LAYERS[0]).S)
    )
    optimizer.step()
    assert len(projected) == 1
    callback.on_train_end(args, None, None)
    optimizer.step()
    assert len(projected) == 1
