"""During a step, and only then, a value is the scheduler's times the multiplier."""

import numpy as np
import pytest
import torch

from hpenv.deploy import Rails, attach
from hpenv.policies import UpdateRatio
from tests.hpenv.deploy.loops import SCHEDULERS, STEPS, Constant, Recorder, losses, model, train

FREE = Rails(spike=None)


def recorder(**group):
    """A recorder of two groups, the second without the keys of the first."""
    net = model()
    first, *others = net.parameters()
    return net, Recorder(
        [{"params": [first], "name": "first"} | group, {"params": others, "lr": 0.05}]
    )


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_step_is_taken_with_the_base_value_times_the_multiplier(scheduler):
    net, opt = recorder()
    twin_net, twin = recorder()
    schedulers = [SCHEDULERS[scheduler](each) for each in (opt, twin)]
    attachment = attach(opt, Constant(0.25), total_steps=STEPS, rails=FREE)
    train(net, opt, schedulers[0], attachment)
    train(twin_net, twin, schedulers[1])
    factor = attachment.history[0].multipliers["lr"]
    assert factor == [pytest.approx(100**0.25)] * 2
    for found, base in zip(opt.seen, twin.seen, strict=True):
        assert [g["lr"] for g in found] == [g["lr"] * factor[0] for g in base]


def test_scopes_multiply_and_groups_without_a_key_stay():
    net, opt = recorder(weight_decay=0.1, betas=(0.9, 0.99), eps=1e-8)
    pairs = [("lr", "run"), ("lr", "group"), ("weight_decay", "run"), ("beta1", "group")]
    pairs += [("beta2", "run"), ("eps", "run")]
    positions = (0.0, 0.75, 0.0, -0.5, 0.5, -1.0, 1.0)
    attachment = attach(
        opt, Constant(*positions, channels=pairs), total_steps=STEPS, bounds={"lr": (0.5, 20.0)}
    )
    train(net, opt, steps=range(1))
    first, second = opt.seen[0]
    assert first["lr"] == 0.1 * 20.0  # 100^0.75 is above the bound
    assert second["lr"] == 0.05  # position 0 is exactly 1
    assert first["weight_decay"] == pytest.approx(0.1 * 0.1)
    assert first["betas"] == (pytest.approx(1 - 0.1 * 5**0.5), pytest.approx(1 - 0.01 * 0.1))
    assert first["eps"] == pytest.approx(1e-5)
    assert set(second) == {"lr"}
    group = opt.param_groups[0]
    assert (group["lr"], group["weight_decay"], group["betas"]) == (0.1, 0.1, (0.9, 0.99))
    assert attachment.effective["first"]["lr"] == 2.0 and attachment.effective["1"] == {"lr": 0.05}
    assert attachment.history[0].applied[0]["lr"] == 2.0


def test_a_beta_does_not_fall_below_zero():
    net, opt = recorder(betas=(0.2, 0.99))
    attach(opt, Constant(1.0, channels=[("beta1", "run")]), total_steps=STEPS)
    train(net, opt, steps=range(1))
    assert opt.seen[0][0]["betas"] == (0.0, 0.99)


@pytest.mark.parametrize("is_shared", [False, True])
def test_a_live_tensor_is_multiplied_in_place_and_once(is_shared):
    net = model()
    first, *others = net.parameters()
    rate = torch.tensor(0.1)
    groups = [{"params": [first], "lr": rate}, {"params": others, "lr": rate}]
    if not is_shared:
        groups[1]["lr"] = rate.clone()
    opt = Recorder(groups, betas=(torch.tensor(0.9), 0.99))
    dials = [("lr", "run"), ("beta1", "run")]
    attachment = attach(opt, Constant(0.5, -1.0, channels=dials), total_steps=STEPS)
    train(net, opt, steps=range(3))
    for groups in opt.seen:
        assert [float(g["lr"]) for g in groups] == [pytest.approx(1.0)] * 2
        assert [float(g["betas"][0]) for g in groups] == [pytest.approx(0.99)] * 2
    assert opt.param_groups[0]["lr"] is rate
    assert torch.equal(rate, torch.tensor(0.1))
    assert attachment.effective["0"]["lr"] == pytest.approx(1.0)


def test_a_shared_tensor_cannot_have_two_multipliers():
    net = model()
    first, *others = net.parameters()
    rate = torch.tensor(0.1)
    opt = Recorder([{"params": [first]}, {"params": others}], lr=rate)
    with pytest.raises(ValueError, match=r"own tensor 'lr' at the scope 'group'.*clone"):
        attach(opt, Constant(0.0, 0.0, channels=[("lr", "group")]), total_steps=STEPS)


def test_accumulated_parts_are_one_step_with_their_mean_loss():
    net, opt = recorder()
    controller = Constant(0.0, observation=["progress", "train_loss"], every=1)
    attachment = attach(opt, controller, total_steps=STEPS)
    train(net, opt, attachment=attachment, steps=range(4), parts=3)
    assert attachment.steps == 4 and len(controller.seen) == 4

    net, opt = recorder()
    expected = []
    for step in range(4):
        expected.append(np.mean([x.item() for x in losses(net, step, 3)]))
        train(net, opt, steps=[step], parts=3)
    found = [float(seen[0, 1]) for seen in controller.seen]
    # At the first decision it is the coming step's loss, then that of the step before.
    assert found == pytest.approx([1.0, 1.0, *(np.array(expected[1:3]) / expected[0])])


def test_decisions_are_as_many_steps_apart_as_asked_and_end_with_the_run():
    net, opt = recorder()
    controller = Constant(0.25)
    attachment = attach(opt, controller, total_steps=10, every=4, rails=FREE)
    train(net, opt, attachment=attachment, steps=range(12))
    assert [d.step for d in attachment.history] == [0, 4, 8]
    assert [float(seen[0, 0]) for seen in controller.seen] == pytest.approx([0.0, 0.4, 0.8])
    assert opt.seen[-1][0]["lr"] == opt.seen[8][0]["lr"] > 0.3  # the last multipliers stay


def test_a_control_law_works_with_any_number_of_groups():
    for count in (1, 3):
        net = model()
        groups = [{"params": [p]} for p in net.parameters()][:count]
        opt = torch.optim.AdamW(groups, lr=1e-4)
        attachment = attach(
            opt, UpdateRatio(1e-2, warmdown=0.0, interval=2), total_steps=60, rails=FREE
        )
        train(net, opt, attachment=attachment, steps=range(60))
        last = attachment.history[-1].multipliers["lr"]
        assert len(last) == count and min(last) > 5.0, last


def test_a_nested_step_is_multiplied_and_counted_once():
    class Outer(Recorder):
        def step(self, closure=None):
            super().step(closure)

    net = model()
    list(Recorder(net.parameters()).seen)  # torch wraps the inner class's step here
    opt = Outer(net.parameters())
    assert hasattr(Recorder.step, "hooked")
    attachment = attach(opt, Constant(0.5), total_steps=STEPS)
    train(net, opt, steps=range(4))
    assert [seen[0]["lr"] for seen in opt.seen] == [pytest.approx(1.0)] * 4
    assert attachment.steps == 4 and opt.param_groups[0]["lr"] == 0.1


def test_a_hook_that_replaces_the_arguments_is_noticed_and_costs_one_step():
    net, opt = recorder()
    attachment = attach(opt, Constant(0.5), total_steps=STEPS)
    opt.register_step_pre_hook(lambda opt, args, kwargs: (args, dict(kwargs)))
    train(net, opt, steps=range(1))
    assert attachment.effective["first"]["lr"] == opt.seen[0][0]["lr"] == 0.1
    train(net, opt, steps=range(1, 3))
    assert attachment.effective["first"]["lr"] == opt.seen[2][0]["lr"] == pytest.approx(1.0)
    assert opt.param_groups[0]["lr"] == 0.1
