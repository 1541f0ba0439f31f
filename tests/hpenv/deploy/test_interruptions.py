"""A step that raises, or that a GradScaler skips."""

import gc

import pytest
import torch

from hpenv.deploy import Rails, attach
from tests.hpenv.deploy.loops import (
    SCHEDULERS,
    STEPS,
    Constant,
    Recorder,
    assert_same,
    losses,
    model,
    train,
)

FREE = Rails(spike=None)


@pytest.fixture
def failing():
    """An optimizer whose third step raises, its attachment, and a function that steps it."""
    net = model()
    opt = Recorder(net.parameters(), fails_at=[2], momentum=0.5)
    attachment = attach(opt, Constant(0.5), total_steps=STEPS, rails=FREE)

    def step():
        for p in net.parameters():
            p.grad = torch.ones_like(p)
        opt.step()

    step()
    step()
    gc.disable()  # nothing here may depend on a collection of cycles
    yield opt, attachment, step
    gc.enable()


def test_after_the_except_clause_the_values_are_back(failing):
    opt, attachment, step = failing
    try:
        step()
    except RuntimeError as error:
        assert "fails" in str(error)
    assert opt.seen[-1][0]["lr"] == pytest.approx(1.0) and opt.param_groups[0]["lr"] == 0.1
    step()
    assert opt.seen[-1][0]["lr"] == pytest.approx(1.0) and attachment.steps == 3


@pytest.mark.parametrize("name", ["state_dict", "load", "next_step", "restore", "detach"])
def test_with_the_exception_still_held_the_values_are_back_before(failing, name):
    opt, attachment, step = failing
    other = Recorder(model().parameters(), lr=0.3, momentum=0.5).state_dict()
    with pytest.raises(RuntimeError) as held:
        step()
    assert held.value.__traceback__ is not None and opt.param_groups[0]["lr"] != 0.1
    if name == "state_dict":
        assert opt.state_dict()["param_groups"][0]["lr"] == 0.1
    elif name == "load":
        opt.load_state_dict(other)
        assert opt.param_groups[0]["lr"] == 0.3
        step()
        assert opt.seen[-1][0]["lr"] == pytest.approx(3.0)
    elif name == "next_step":
        step()
        assert opt.seen[-1][0]["lr"] == pytest.approx(1.0)
    elif name == "restore":
        attachment.restore()
    else:
        attachment.detach()
    assert opt.param_groups[0]["lr"] == (0.3 if name == "load" else 0.1)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_schedulers_that_build_on_the_last_rate_see_no_multiplier_after_a_failure(scheduler):
    rates = []
    for controller in (None, Constant(0.1)):
        net = model()
        opt = Recorder(net.parameters(), fails_at=[3, 7], momentum=0.5)
        sched = SCHEDULERS[scheduler](opt)
        attachment = controller and attach(opt, controller, total_steps=STEPS, rails=FREE)
        rates.append(train(net, opt, sched, attachment))
    assert_same(*rates)
    assert attachment.steps == STEPS - 2


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("unscales", [False, True])
def test_a_step_that_a_gradscaler_skips_is_not_counted_and_measures_nothing(fused, unscales):
    """The same run without the skipped batches has the same observations."""

    def scaled(skips):
        net = model()
        opt = torch.optim.AdamW(net.parameters(), lr=0.01, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=1000)
        scaler.scale(torch.zeros(()))  # makes its scale
        controller = Constant(
            0.2,
            observation=[
                "progress",
                "train_loss",
                "gradient_norm",
                "loss_trend",
                "loss_variance_ratio",
                "gradient_norm_spread",
                # A fused step knows on the device alone that it is skipped, and so the host takes
                # earlier steps for the window's last ones.
                *([] if fused else ["update_ratio", "gradient_agreement"]),
            ],
            every=3,
        )
        attachment = attach(opt, controller, total_steps=STEPS, rails=FREE)
        for step in range(9):
            if step in skips:  # an infinite gradient, before the batch's own
                next(net.parameters()).grad = torch.full((8, 6), torch.inf)
                for p in list(net.parameters())[1:]:
                    p.grad = torch.zeros_like(p)
                scaler.step(opt)
                scaler.update(8.0)
                opt.zero_grad()
            (loss,) = losses(net, step)
            attachment.observe(loss)
            scaler.scale(loss).backward()
            if unscales:
                scaler.unscale_(opt)
            scaler.step(opt)
            scaler.update()
            opt.zero_grad()
        return controller, attachment, list(net.parameters())

    whole, skipping = scaled(()), scaled((1, 2, 3, 5, 8))
    assert skipping[1].steps == whole[1].steps == 9
    assert [d.step for d in skipping[1].history] == [0, 3, 6]
    for found, expected in zip(skipping[0].seen, whole[0].seen, strict=True):
        assert found == pytest.approx(expected, abs=1e-6)
    assert_same(skipping[2], whole[2])
