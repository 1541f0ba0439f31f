"""Trends of the losses of all steps are those of `hpenv.telemetry.estimators`."""

import numpy as np
import pytest
import torch

from hpenv.deploy import Rails, attach
from hpenv.deploy.meter import Meter
from hpenv.policies import ControllerSpec
from hpenv.telemetry.estimators import Estimators, estimation_of
from tests.hpenv.deploy.loops import Constant, losses, model, train

TRENDS = ("loss_trend", "reward_trend", "loss_variance_ratio", "plateau")
STEPS = 180  # the scales have forgotten the first steps after some 100


def observing(estimators, every=3):
    """A constant controller that observes the trends."""
    controller = Constant(0.1, observation=["progress", *TRENDS], every=every)
    values = controller.spec.values() | {"estimators": estimators}
    controller.spec = ControllerSpec.from_values(values)
    return controller


def run(controller, parts=1):
    """Trains with the controller. Returns the losses of all steps."""
    net = model()
    opt = torch.optim.SGD(net.parameters(), lr=0.05)
    attachment = attach(opt, controller, total_steps=STEPS, rails=Rails(spike=None))
    seen = []
    for step in range(STEPS):
        found = losses(net, step, parts)
        for loss in found:
            attachment.observe(loss)
        (sum(found) / parts).backward()
        opt.step()
        opt.zero_grad()
        seen.append(np.mean([loss.item() for loss in found]))
    assert not attachment.fault
    return np.array(seen)


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("form", [None, "stepwise", "epochwise", {"beta_loss": 0.5}])
def test_the_estimators_are_those_of_the_same_losses(form, parts):
    controller = observing(form)
    values = run(controller, parts)
    settings = estimation_of("stepwise" if form is None else form)
    state, expected = Estimators.empty(1), [[0.0] * 4]
    for window in values[: STEPS - 3].reshape(-1, 3, 1):
        rows = window.mean(0, keepdims=True) if settings.every == "window" else window
        state = state.with_losses(settings, rows)
        expected.append([float(number[0]) for number in state.estimates(settings)])
    found = np.concatenate(controller.seen)[:, 1:]
    assert found == pytest.approx(np.minimum(expected, 10.0), rel=1e-5, abs=1e-6)
    assert (found[2:].std(0) > 1e-3).all()


def test_a_skipped_step_and_one_without_a_loss_have_no_step_loss():
    net = model()
    opt = torch.optim.SGD(net.parameters(), lr=0.1)
    groups = [list(net.parameters())]
    meter = Meter({"step_losses", "train_loss"})
    for loss, keep in ((1.0, 1.0), (2.0, 0.0), (None, 1.0), (torch.tensor(3.0), 1.0)):
        if loss is not None:
            meter.observe(loss)
        meter.start_step(groups, torch.tensor(keep, dtype=torch.float64), None, False)
        meter.finish_step(groups, torch.tensor(keep, dtype=torch.float64))
    found = meter.read(opt)
    assert found["step_losses"].tolist() == [1.0, 3.0] and found["train_loss"] == 2.0
    assert meter.read(opt)["step_losses"].shape == (0,)


def test_a_loss_that_is_not_finite_is_not_in_the_means():
    controller = observing("stepwise")
    net = model()
    opt = torch.optim.SGD(net.parameters(), lr=0.05)
    attachment = attach(opt, controller, total_steps=60, rails=Rails(spike=None, pause=1))
    values = [1.0, 0.6, 0.9, 0.5, float("inf"), 0.9, 0.6, 0.8, 0.5, 0.7]
    for step, value in enumerate(values):
        losses(net, step)[0].backward()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("warnings.warn", lambda *_, **__: None)
            attachment.observe(value)
            opt.step()
    settings = estimation_of("stepwise")
    finite = np.array([value for value in values[:9] if np.isfinite(value)])[:, None]
    expected = Estimators.empty(1).with_losses(settings, finite).estimates(settings)
    found, bounded = controller.seen[-1][0, 1:], [min(float(n[0]), 10.0) for n in expected]
    assert found == pytest.approx(bounded, rel=1e-5)


def test_trends_without_a_loss_pause_the_controller():
    net = model()
    opt = torch.optim.SGD(net.parameters(), lr=0.05)
    attach(opt, observing("stepwise"), total_steps=STEPS)
    with pytest.warns(UserWarning, match=r"call attachment.observe\(loss\) before"):
        train(net, opt, steps=range(6))
