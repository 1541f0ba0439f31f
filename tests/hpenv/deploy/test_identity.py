"""A neutral controller changes no bit, and any controller changes what nobody else sees."""

import copy
from dataclasses import replace

import pytest
import torch

from hpenv.deploy import Rails, attach
from tests.hpenv.deploy.loops import (
    OPTIMIZERS,
    SCHEDULERS,
    STEPS,
    Constant,
    assert_same,
    model,
    train,
)

ALL = ("progress", "train_loss", "loss_slope", "gradient_norm", "momentum_norm", "update_ratio")
ALL += ("loss_trend", "plateau", "gradient_agreement", "gradient_norm_spread")


def run(optimizer, scheduler, controller=None, **arguments):
    """Returns weights, state of optimizer and scheduler, and rates of a run."""
    net = model()
    opt = OPTIMIZERS[optimizer](list(net.parameters()))
    sched = SCHEDULERS[scheduler](opt)
    attachment = controller and attach(opt, controller, total_steps=STEPS, **arguments)
    rates = train(net, opt, sched, attachment)
    state = (
        None if sched is None else {k: v for k, v in sched.state_dict().items() if "fn" not in k}
    )
    if state is not None:
        state = {k: v for k, v in state.items() if k != "lr_lambdas"}
    return list(net.parameters()), opt.state_dict(), state, rates, attachment


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_neutral_controller_leaves_every_bit(optimizer, scheduler):
    controller = Constant(0.0, observation=[*ALL, "update_alignment", "position"])
    plain = run(optimizer, scheduler)
    attached = run(optimizer, scheduler, controller)
    assert_same(attached[:4], plain[:4])
    assert len(attached[4].history) == STEPS // 2 and not attached[4].fault
    assert len(controller.seen) == STEPS // 2


@pytest.mark.parametrize("scheduler", [name for name in SCHEDULERS if name != "none"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_schedulers_and_checkpoints_see_their_own_values_under_any_controller(optimizer, scheduler):
    plain = run(optimizer, scheduler)
    attached = run(optimizer, scheduler, Constant(0.1), rails=Rails(spike=None))
    assert_same(attached[3], plain[3])
    assert_same(attached[2], plain[2])
    groups = [state["param_groups"] for state in (attached[1], plain[1])]
    for found, expected in zip(*groups, strict=True):
        for key in ("lr", "weight_decay", "betas", "eps", "momentum"):
            if key in expected:
                assert_same(found[key], expected[key])
    assert not all(torch.equal(a, b) for a, b in zip(attached[0], plain[0], strict=True))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_dry_run_decides_and_changes_no_bit(optimizer):
    plain = run(optimizer, "cosine")
    attached = run(optimizer, "cosine", Constant(0.4), dry_run=True)
    assert_same(attached[:4], plain[:4])
    history = attached[4].history
    assert [d.multipliers["lr"][0] for d in history] == [pytest.approx(100**0.4)] * len(history)
    assert [d.applied[0]["lr"] for d in history] == [rates[0] for rates in attached[3][::2]]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "adamw_fused", "muon"])
def test_moves_of_0_leave_every_bit(optimizer):
    pairs = [("lr", "run"), ("momentum", "run")]
    controller = Constant(0.0, 0.0, channels=pairs, observation=[*ALL, "position"])
    controller.spec = replace(controller.spec, mapping="move")
    plain = run(optimizer, "cosine")
    attached = run(optimizer, "cosine", controller)
    assert_same(attached[:4], plain[:4])
    assert len(controller.seen) == STEPS // 2 and not attached[4].fault


def test_a_detached_controller_leaves_no_hook():
    net = model()
    opt = OPTIMIZERS["sgd"](list(net.parameters()))
    attachment = attach(opt, Constant(0.4), total_steps=STEPS)
    train(net, opt, attachment=attachment, steps=range(3))
    attachment.detach()
    before, steps = [p.clone() for p in net.parameters()], attachment.steps
    state = copy.deepcopy(opt.state_dict())
    train(net, opt, steps=range(3, 6))
    other = model()
    plain = OPTIMIZERS["sgd"](list(other.parameters()))
    with torch.no_grad():
        for p, value in zip(other.parameters(), before, strict=True):
            p.copy_(value)
    plain.load_state_dict(state)
    train(other, plain, steps=range(3, 6))
    assert_same(list(net.parameters()), list(other.parameters()))
    assert attachment.steps == steps == 3
    attach(opt, Constant(0.4), total_steps=STEPS)  # another one may be attached
