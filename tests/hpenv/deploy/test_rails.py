"""Whatever a controller, a loss or the caller's model does, the run goes on at its own values."""

import math
import warnings

import numpy as np
import pytest
import torch

from hpenv.deploy import ControllerWarning, Rails, attach, pilot
from tests.hpenv.deploy.loops import STEPS, Constant, Recorder, assert_same, losses, model, train


class Faulty(Constant):
    """Moves the rate, and gives something else at its third decision."""

    def __init__(self, fault, **arguments):
        super().__init__(0.25, **arguments)
        self.fault = fault

    def act(self, observations):
        positions = super().act(observations)
        return self.fault() if len(self.seen) == 3 else positions


def fail():
    raise KeyError("no such key")


FAULTS = {
    "raises": (fail, "KeyError: 'no such key'"),
    "nan": (lambda: np.array([[np.nan]]), r"act must return finite numbers; got \[\[nan\]\]"),
    "infinite": (lambda: np.array([[np.inf]]), "finite numbers"),
    "shape": (lambda: np.zeros((2, 1)), r"shape \(1, 1\); got float64 of shape \(2, 1\)"),
    "flat": (lambda: np.zeros(1), r"shape \(1, 1\); got float64 of shape \(1,\)"),
    "nothing": (lambda: None, r"shape \(1, 1\); got object"),
    "text": (lambda: [["fast"]], r"got <U4 of shape"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_faulty_controller_is_switched_off_with_one_warning(name):
    fault, text = FAULTS[name]
    net = model()
    opt = Recorder(net.parameters())
    attachment = attach(opt, Faulty(fault), total_steps=STEPS, rails=Rails(spike=None))
    with pytest.warns(ControllerWarning, match=text) as caught:
        train(net, opt, attachment=attachment)
    assert len(caught) == 1 and "Faulty is switched off" in str(caught[0].message)
    rates = [seen[0]["lr"] for seen in opt.seen]
    assert min(rates[:4]) > 0.3 and rates[4:] == [0.1] * (STEPS - 4)
    assert attachment.fault and attachment.steps == STEPS and len(attachment.history) == 2


def test_a_slow_controller_is_switched_off(monkeypatch):
    times = iter([0.0, 0.5, 10.0, 10.5, 20.0, 31.0])
    monkeypatch.setattr(pilot, "clock", lambda: next(times))
    net = model()
    opt = Recorder(net.parameters())
    attachment = attach(
        opt, Constant(0.25), total_steps=STEPS, rails=Rails(spike=None, patience=1.0)
    )
    with pytest.warns(ControllerWarning, match="act took 11 s, more than patience=1"):
        train(net, opt, attachment=attachment)
    assert [seen[0]["lr"] == 0.1 for seen in opt.seen] == [False] * 4 + [True] * 8


def test_warnings_as_errors_reach_the_caller_with_the_values_back():
    net = model()
    opt = Recorder(net.parameters())
    attach(opt, Faulty(fail), total_steps=STEPS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ControllerWarning):
            for step in range(5):
                losses(net, step)[0].backward()
                opt.step()
    assert opt.param_groups[0]["lr"] == 0.1


def test_a_probe_that_raises_switches_the_controller_off():
    net = model()
    opt = Recorder(net.parameters())
    controller = Constant(0.25, observation=["progress", "probe_loss"])
    attachment = attach(opt, controller, total_steps=STEPS, probe=fail)
    with pytest.warns(ControllerWarning, match="no such key"):
        train(net, opt, attachment=attachment)
    assert [seen[0]["lr"] for seen in opt.seen] == [0.1] * STEPS


def test_a_group_that_is_added_later_switches_the_controller_off():
    net, other = model(), torch.nn.Parameter(torch.zeros(3))
    opt = Recorder(net.parameters())
    attachment = attach(opt, Constant(0.25), total_steps=STEPS)
    train(net, opt, attachment=attachment, steps=range(2))
    opt.add_param_group({"params": [other]})
    with pytest.warns(ControllerWarning, match="keep its 1 groups; got 2"):
        train(net, opt, attachment=attachment, steps=range(2, 4))
    assert [seen[0]["lr"] == 0.1 for seen in opt.seen] == [False, False, True, True]


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_a_loss_that_is_not_finite_puts_the_multiplier_to_1_for_a_pause(value, as_tensor):
    net = model()
    opt = Recorder(net.parameters())
    controller = Constant(0.25, observation=["progress", "train_loss", "loss_slope"])
    attachment = attach(opt, controller, total_steps=40, rails=Rails(spike=None, pause=2))
    with pytest.warns(ControllerWarning, match="multipliers are 1 for 2 decisions") as caught:
        for step in range(16):
            (loss,) = losses(net, step)
            seen = loss if step not in (5, 14) else value
            attachment.observe(torch.tensor(value) if seen is value and as_tensor else seen)
            loss.backward()
            opt.step()
            opt.zero_grad()
    # Off at once at step 5. Its window ends at 6, and from there two decisions are made by nobody.
    neutral = [seen[0]["lr"] == 0.1 for seen in opt.seen]
    assert neutral == [False] * 5 + [True] * 5 + [False] * 4 + [True] * 2
    reasons = [d.reason for d in attachment.history]
    assert reasons == ["", "", "", "train_loss is not finite", "pause", "", "", "pause"]
    assert np.isfinite(np.concatenate(controller.seen)).all()
    assert len(caught) == 2 and not attachment.fault  # a loss; the mean of its window


def test_a_spike_puts_the_multiplier_to_1_for_a_pause():
    net = model()
    opt = Recorder(net.parameters())
    attachment = attach(opt, Constant(0.25), total_steps=60, rails=Rails(spike=3.0, pause=3))
    values = [1.0] * 12 + [10.0, 1.0] + [1.0] * 10
    with pytest.warns(ControllerWarning, match="the loss is above 3.0 times its mean"):
        for value in values:
            attachment.observe(value)
            losses(net, 0)[0].backward()
            opt.step()
    # Window 6 (steps 12, 13) has mean 5.5. Decision 7 is the first of three at 1.
    assert [bool(d.reason) for d in attachment.history] == [False] * 7 + [True] * 3 + [False] * 2
    assert [seen[0]["lr"] == 0.1 for seen in opt.seen[12:22]] == [False] * 2 + [True] * 6 + [
        False
    ] * 2


def test_a_high_first_loss_is_no_spike():
    net = model()
    opt = Recorder(net.parameters())
    attachment = attach(opt, Constant(0.25), total_steps=60)
    for value in [1.0] * 4 + [9.0, 9.0]:  # two windows only
        attachment.observe(value)
        losses(net, 0)[0].backward()
        opt.step()
    assert [d.reason for d in attachment.history] == [""] * 3


def test_a_feature_of_the_loss_without_a_loss_is_noticed():
    net = model()
    opt = Recorder(net.parameters())
    attachment = attach(
        opt, Constant(0.25, observation=["progress", "train_loss"]), total_steps=STEPS
    )
    with pytest.warns(ControllerWarning, match=r"call attachment.observe\(loss\) before") as caught:
        train(net, opt)
    assert len(caught) == 1
    assert [seen[0]["lr"] == 0.1 for seen in opt.seen] == [False] * 2 + [True] * 10
    assert not attachment.fault


def test_bounds_hold_and_the_budget_ends_the_changes():
    net = model()
    first, *others = net.parameters()
    opt = Recorder([{"params": [first]}, {"params": others}])
    controller = Constant(0.5, 0.05, channels=[("lr", "group")])
    budget = math.log(4.0) * 5 / STEPS
    attachment = attach(
        opt,
        controller,
        total_steps=STEPS,
        bounds={"lr": (0.5, 4.0)},
        rails=Rails(spike=None, budget=budget),
    )
    train(net, opt, attachment=attachment)
    factors = np.array([[g["lr"] / 0.1 for g in seen] for seen in opt.seen])
    assert factors[:, 0].tolist() == [4.0] * 4 + [1.0] * 8  # a third window would pass the budget
    assert factors[:, 1] == pytest.approx(100**0.05)
    assert np.abs(np.log(factors)).sum(0).max() <= budget * STEPS


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"spike": 1.0}, "spike must be a number above 1; got 1.0"),
        ({"pause": 0}, "pause must be a whole number of at least 1; got 0"),
        ({"budget": -1.0}, "budget must be a number above 0; got -1.0"),
        ({"patience": None}, "patience must be a number above 0; got None"),
    ],
)
def test_impossible_limits_are_refused(arguments, text):
    with pytest.raises(ValueError, match=text):
        Rails(**arguments)


@pytest.mark.parametrize("pair", [(2.0, 3.0), (0.0, 2.0), (0.5, 0.9), (0.5,), ("a", "b")])
def test_bounds_without_1_are_refused(pair):
    opt = Recorder(model().parameters())
    with pytest.raises(ValueError, match=r"bounds of 'lr' must be .* 0 < low <= 1 <= high; got"):
        attach(opt, Constant(0.0), total_steps=STEPS, bounds={"lr": pair})
    with pytest.raises(ValueError, match=r"of the keys \['lr'\] .* got \['weight_decay'\]"):
        attach(opt, Constant(0.0), total_steps=STEPS, bounds={"weight_decay": (0.5, 2.0)})
    assert_same(len(opt._optimizer_step_pre_hooks), 0)  # a refusal leaves nothing behind
