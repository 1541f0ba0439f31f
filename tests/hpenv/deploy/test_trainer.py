"""A controller in the Trainer of transformers."""

import pytest

from hpenv.deploy import Rails
from hpenv.deploy.trainer import FILE, ControllerCallback
from hpenv.policies import UpdateRatio
from tests.hpenv.deploy.loops import Constant, Wandering, assert_same
from tests.hpenv.integrations.small_trainer import trained
from tests.tiny_qwen3 import qwen3

pytest.importorskip("accelerate", reason="needs accelerate: pip install 'hpenv[posttraining]'")
EVERYTHING = ("progress", "train_loss", "gradient_norm", "update_ratio", "update_alignment")
COSINE = {"lr_scheduler_type": "cosine"}


def weights(trainer):
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def rates(trainer, name="learning_rate"):
    return [log[name] for log in trainer.state.log_history if name in log]


def test_a_neutral_controller_leaves_a_trainer_bitwise(tmp_path):
    plain = trained(tmp_path, qwen3(), [], steps=4, **COSINE)
    callback = ControllerCallback(Constant(0.0, observation=EVERYTHING, every=1))
    attached = trained(tmp_path, qwen3(), [callback], steps=4, **COSINE)
    assert_same(weights(attached), weights(plain))
    assert rates(attached) == rates(plain)
    assert len(callback.attachment.history) == 4 and not callback.attachment.fault
    seen = callback.attachment.history
    assert [d.step for d in seen] == [0, 1, 2, 3]


def test_the_log_has_the_applied_rate_beside_the_schedulers(tmp_path):
    callback = ControllerCallback(Constant(0.25, every=1), bounds={"lr": (1.0, 2.0)})
    trainer = trained(tmp_path, qwen3(), [callback], steps=4, **COSINE)
    effective = rates(trainer, "controller/lr_effective/0")
    assert effective == pytest.approx([2 * rate for rate in rates(trainer)])
    assert not trainer.optimizer.optimizer._optimizer_step_pre_hooks


def test_the_loss_is_that_of_the_trainer(tmp_path):
    controller = Constant(0.0, observation=["progress", "train_loss"], every=1)
    callback = ControllerCallback(controller, rails=Rails(spike=None))
    trainer = trained(
        tmp_path, qwen3(), [callback], steps=4, gradient_accumulation_steps=2, num_train_epochs=9
    )
    losses = rates(trainer, "loss")
    found = [seen[0, 1] for seen in controller.seen[1:]]
    assert found == pytest.approx([loss / losses[0] for loss in losses[:3]], rel=1e-3)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Wandering(observation=EVERYTHING),
        lambda: UpdateRatio(interval=3),
    ],
)
def test_a_run_resumed_within_a_window_is_bitwise_the_unbroken_one(tmp_path, make):
    saving = {"save_strategy": "steps", "save_steps": 4, "steps": 8} | COSINE
    arguments = {"bounds": {"lr": (0.3, 3.0)}}
    first = ControllerCallback(make(), **arguments)
    unbroken = trained(tmp_path, qwen3(), [first], **saving)

    second = ControllerCallback(make(), **arguments)
    checkpoint = str(tmp_path / "checkpoint-4")
    resumed = trained(tmp_path, qwen3(), [second], resumed=checkpoint, **saving)
    assert_same(weights(resumed), weights(unbroken))
    assert second.attachment.history == first.attachment.history
    assert len({tuple(d.multipliers["lr"]) for d in first.attachment.history}) > 1

    # From a folder elsewhere, and from one without the file.
    moved = tmp_path / "elsewhere"
    (tmp_path / "checkpoint-4").rename(moved)
    third = ControllerCallback(make(), resume_from=moved, **arguments)
    other = tmp_path / "other"
    again = trained(other, qwen3(), [third], resumed=str(moved), **saving)
    assert_same(weights(again), weights(unbroken))
    (moved / FILE).unlink()
    with pytest.raises(ValueError, match=f"must hold {FILE}; found none in .*resume_from"):
        trained(
            tmp_path / "third",
            qwen3(),
            [ControllerCallback(make(), resume_from=moved, **arguments)],
            resumed=str(moved),
            **saving,
        )


def test_unknown_attributes_that_are_no_events_are_missing():
    callback = ControllerCallback(Constant(0.0))
    assert callback.on_something_new(None, None, None) is None
    with pytest.raises(AttributeError, match="ControllerCallback has no attribute 'of'"):
        _ = callback.of
    assert callback.attachment is None
