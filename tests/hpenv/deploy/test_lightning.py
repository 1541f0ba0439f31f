"""Controllers in the Trainers of lightning and of pytorch_lightning."""

import numpy as np
import pytest
import torch

from hpenv.deploy import Rails
from hpenv.deploy.lightning import ControllerCallback
from hpenv.policies import UpdateRatio
from tests.hpenv.deploy.lightning_runs import (
    STEPS,
    automatic,
    fit,
    lightning,
    manual,
    weights,
)
from tests.hpenv.deploy.loops import Constant, Wandering, assert_same

__all__ = ["lightning"]
EVERYTHING = ("progress", "train_loss", "gradient_norm", "update_ratio", "update_alignment")
FREE = Rails(spike=None)


def cosine(steps):
    return [0.01 * 0.5 * (1 + np.cos(np.pi * t / STEPS)) for t in steps]


class Kept:
    """A logger's memory of what a Trainer logs."""

    def __init__(self, package):
        class Memory(package.loggers.logger.Logger):
            name, version = "memory", 0

            def __init__(self):
                super().__init__()
                self.rows = []

            def log_metrics(self, metrics, step=None):
                self.rows.append(metrics)

            def log_hyperparams(self, *args, **kwargs):
                pass

        self.logger = Memory()

    def column(self, name):
        return [row[name] for row in self.logger.rows if name in row]


@pytest.mark.parametrize("parts", [1, 2])
def test_a_neutral_controller_leaves_a_trainer_bitwise(lightning, tmp_path, parts):
    plain, attached = automatic(lightning), automatic(lightning)
    fit(lightning, plain, tmp_path, [], accumulate_grad_batches=parts)
    callback = ControllerCallback(Constant(0.0, observation=EVERYTHING, every=1))
    fit(lightning, attached, tmp_path, [callback], accumulate_grad_batches=parts)
    assert_same(weights(attached), weights(plain))
    assert attached.seen == plain.seen
    attachment = callback.attachments["optimizer"]
    assert [d.step for d in attachment.history] == list(range(STEPS)) and not attachment.fault


def test_schedulers_and_monitors_keep_their_values_beside_the_applied_rates(lightning, tmp_path):
    kept, module = Kept(lightning), automatic(lightning)
    monitor = lightning.callbacks.LearningRateMonitor("step")
    callback = ControllerCallback(Constant(0.25, every=1), bounds={"lr": (1.0, 2.0)}, rails=FREE)
    trainer = fit(lightning, module, tmp_path, [callback, monitor], logger=kept.logger)
    assert module.seen == pytest.approx(cosine(range(STEPS)))
    assert kept.column("lr-AdamW/pg1") == pytest.approx(cosine(range(STEPS)))
    for group in (0, 1):
        applied = kept.column(f"controller/lr_effective/{group}")
        assert applied == pytest.approx([2 * rate for rate in cosine(range(STEPS))])
    (optimizer,) = trainer.optimizers
    assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks


@pytest.mark.parametrize("parts", [1, 2])
def test_the_loss_is_that_of_the_training_step(lightning, tmp_path, parts):
    controller = Constant(0.0, observation=["progress", "train_loss"], every=1)
    module = automatic(lightning)
    fit(
        lightning,
        module,
        tmp_path,
        [ControllerCallback(controller, rails=FREE)],
        accumulate_grad_batches=parts,
    )
    means = np.array(module.losses).reshape(STEPS, parts).mean(1)
    found = [float(seen[0, 1]) for seen in controller.seen[1:]]
    assert found == pytest.approx(means[:-1] / means[0])


def test_the_loss_of_a_scaled_backward_pass_has_no_scale(lightning, tmp_path):
    plugin = lightning.plugins.MixedPrecision(
        "16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=256.0)
    )
    plugin.autocast_context_manager = lambda: torch.autocast("cpu", enabled=False)
    controller = Constant(0.0, observation=["progress", "train_loss", "gradient_norm"], every=1)
    plain = Constant(0.0, observation=["progress", "train_loss", "gradient_norm"], every=1)
    for own, extra in ((controller, {"plugins": [plugin]}), (plain, {})):
        fit(
            lightning,
            automatic(lightning),
            tmp_path,
            [ControllerCallback(own, rails=FREE)],
            **extra,
        )
    assert len(controller.seen) == STEPS
    assert np.concatenate(controller.seen) == pytest.approx(np.concatenate(plain.seen), rel=1e-5)


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize(
    "make", [lambda: Wandering(observation=EVERYTHING), lambda: UpdateRatio(interval=3)]
)
def test_a_run_resumed_within_a_window_is_bitwise_the_unbroken_one(
    lightning, tmp_path, make, parts
):
    arguments = {"bounds": {"lr": (0.3, 3.0)}}
    first, module = ControllerCallback(make(), **arguments), automatic(lightning)
    saving = {"save": 4, "accumulate_grad_batches": parts}
    fit(lightning, module, tmp_path, [first], **saving)

    second, resumed = ControllerCallback(make(), **arguments), automatic(lightning)
    checkpoint = tmp_path / "at-step=4.ckpt"
    fit(lightning, resumed, tmp_path, [second], resumed=checkpoint, **saving)
    assert_same(weights(resumed), weights(module))
    ours, theirs = (each.attachments["optimizer"] for each in (second, first))
    assert ours.history == theirs.history and not ours.fault
    assert_same(ours.state_dict(), theirs.state_dict())
    assert len({tuple(d.multipliers["lr"]) for d in theirs.history}) > 1
    assert resumed.seen == module.seen[4 * parts :]


def test_named_optimizers_have_a_controller_each_and_their_own_losses(lightning, tmp_path):
    seen = ["progress", "train_loss"]
    controllers = {
        "generator": Constant(0.5, observation=seen, every=1),
        "left_alone": None,
        "critic": Constant(-0.5, observation=seen, every=1),
    }
    kept, module = Kept(lightning), manual(lightning)
    callback = ControllerCallback(controllers, total_steps=STEPS, rails=FREE)
    fit(lightning, module, tmp_path, [callback], steps=3 * STEPS, logger=kept.logger)

    assert set(callback.attachments) == {"generator", "critic"}
    table = np.array(module.losses).reshape(STEPS, 3)
    for name, column in (("generator", 0), ("critic", 2)):
        found = [float(each[0, 1]) for each in controllers[name].seen[1:]]
        assert found == pytest.approx(table[:-1, column] / table[0, column])
    assert kept.column("controller/generator/lr_effective/0") == pytest.approx([0.5] * STEPS)
    assert kept.column("controller/critic/lr_effective/0") == pytest.approx([0.005] * STEPS)

    plain = manual(lightning)
    fit(lightning, plain, tmp_path, [], steps=3 * STEPS)
    assert_same(weights(module.nets[1]), weights(plain.nets[1]))
    assert not torch.equal(module.nets[0][0].weight, plain.nets[0][0].weight)


def test_a_resumed_run_with_named_optimizers_is_bitwise_the_unbroken_one(lightning, tmp_path):
    def made():
        names = ("generator", "left_alone", "critic")
        controllers = dict.fromkeys(names) | {
            name: Wandering(observation=EVERYTHING) for name in names[::2]
        }
        return ControllerCallback(controllers, total_steps=STEPS, bounds={"lr": (0.3, 3.0)})

    first, module = made(), manual(lightning)
    fit(lightning, module, tmp_path, [first], steps=3 * STEPS, save=12)
    second, resumed = made(), manual(lightning)
    checkpoint = tmp_path / "at-step=12.ckpt"
    fit(lightning, resumed, tmp_path, [second], steps=3 * STEPS, resumed=checkpoint)
    assert_same(weights(resumed), weights(module))
    assert_same(second.state_dict(), first.state_dict())


def test_optimizers_and_controllers_must_correspond(lightning, tmp_path):
    with pytest.raises(ValueError, match=r"a name for each of 3 optimizers.*got .*'optimizer'"):
        fit(lightning, manual(lightning), tmp_path, [ControllerCallback(Constant(0.0))], steps=2)
    callback = ControllerCallback(dict.fromkeys("abc") | {"a": Constant(0.0)})
    with pytest.raises(ValueError, match="total_steps must be given in manual optimization"):
        fit(lightning, manual(lightning), tmp_path, [callback], steps=2)


def test_a_checkpoint_without_the_controller_is_refused(lightning, tmp_path):
    fit(lightning, automatic(lightning), tmp_path, [], save=4)
    checkpoint = tmp_path / "at-step=4.ckpt"
    with pytest.raises(ValueError, match=r"must hold 'hpenv.ControllerCallback'; got .*at-step=4"):
        fit(
            lightning,
            automatic(lightning),
            tmp_path,
            [ControllerCallback(Constant(0.0))],
            resumed=checkpoint,
        )


def test_a_run_that_failed_leaves_no_hooks_and_the_callback_serves_again(lightning, tmp_path):
    callback = ControllerCallback(Constant(0.5), rails=FREE)

    class Failing(lightning.Callback):
        def on_train_batch_end(self, trainer, *_):
            self.optimizer = trainer.optimizers[0]
            if trainer.global_step == 3:
                raise RuntimeError("stop")

    failing = Failing()
    with pytest.raises(RuntimeError, match="stop"):
        fit(lightning, automatic(lightning), tmp_path, [callback, failing])
    assert not failing.optimizer._optimizer_step_pre_hooks
    fit(lightning, automatic(lightning), tmp_path, [callback])
    assert callback.attachments["optimizer"].steps == STEPS


def test_unknown_attributes_that_are_no_events_are_missing():
    callback = ControllerCallback(Constant(0.0))
    assert callback.on_something_new(None, None) is None and callback.teardown(None) is None
    with pytest.raises(AttributeError, match="ControllerCallback has no attribute 'of'"):
        _ = callback.of
    assert callback.attachments == {}
