"""Steps with a closure, which computes the loss and its gradients within the step."""

import pytest
import torch

from hpenv.deploy import Rails, attach
from tests.hpenv.deploy.loops import OPTIMIZERS, Constant, Wandering, assert_same, losses, model
from tests.hpenv.deploy.test_resume import EVERYTHING

STEPS = 8
FREE = Rails(spike=None)


class Trained:
    """A run with or without closures."""

    def __init__(self, optimizer, controller, with_closure, observes=True):
        self.net = model()
        self.optimizer = OPTIMIZERS[optimizer](list(self.net.parameters()))
        self.attachment = controller and attach(
            self.optimizer, controller, total_steps=STEPS, rails=FREE
        )
        self.seen = []
        for step in range(STEPS):
            (self._step_with_closure if with_closure else self._step)(step)

    def _loss(self, step):
        self.seen.append(float(self.optimizer.param_groups[0]["lr"]))
        self.optimizer.zero_grad()
        (loss,) = losses(self.net, step)
        if self.attachment is not None:
            self.attachment.observe(loss)
        loss.backward()
        return loss

    def _step(self, step):
        self._loss(step)
        self.optimizer.step()

    def _step_with_closure(self, step):
        self.optimizer.step(lambda: self._loss(step))


def wandering():
    observation = [name for name in EVERYTHING if not name.startswith("probe")]
    return Wandering(observation=observation)


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_fused", "sgd"])
def test_a_step_with_a_closure_is_bitwise_the_step_without(optimizer):
    plain = Trained(optimizer, wandering(), with_closure=False)
    closed = Trained(optimizer, wandering(), with_closure=True)
    assert_same(list(closed.net.parameters()), list(plain.net.parameters()))
    assert closed.attachment.history == plain.attachment.history
    assert_same(closed.attachment.state_dict(), plain.attachment.state_dict())
    moved = {tuple(decision.multipliers["lr"]) for decision in closed.attachment.history}
    assert len(moved) > 1 and not closed.attachment.fault


def test_a_closure_sees_the_values_of_their_owner():
    closed = Trained("adamw", Constant(0.5), with_closure=True)
    assert closed.seen == [0.01] * STEPS
    assert closed.attachment.effective["0"]["lr"] == pytest.approx(0.1)


def test_a_closure_that_raises_leaves_the_values_at_base():
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    attachment = attach(optimizer, Constant(0.5), total_steps=STEPS, rails=FREE)

    def fail():
        assert optimizer.param_groups[0]["lr"] == 0.1
        raise RuntimeError("no loss")

    for _ in range(2):
        with pytest.raises(RuntimeError, match="no loss"):
            optimizer.step(fail)
        assert optimizer.param_groups[0]["lr"] == 0.1
    assert attachment.steps == 0 and not attachment.fault


def test_a_nested_step_with_a_closure_is_multiplied_and_counted_once():
    class Inner(torch.optim.SGD):
        def step(self, closure=None):
            loss = closure()
            self.taken = float(self.param_groups[0]["lr"])
            return loss

    class Outer(Inner):
        def step(self, closure=None):
            return super().step(closure)

    net = model()
    Inner(net.parameters(), lr=0.1)  # torch wraps the inner class's step here
    optimizer = Outer(net.parameters(), lr=0.1)
    attachment = attach(optimizer, Constant(0.5), total_steps=STEPS, rails=FREE)
    for step in range(3):
        optimizer.step(lambda step=step: losses(net, step)[0])
        assert optimizer.taken == pytest.approx(1.0)
    assert attachment.steps == 3 and len(attachment.history) == 2


def test_an_optimizer_that_evaluates_its_closure_often_is_multiplied_once_and_counted_once():
    """LBFGS reads its rate before its closure, so the first step has no multiplier yet."""
    rates = {}
    for position in (0.0, 0.5):
        net = model()
        optimizer = torch.optim.LBFGS(net.parameters(), lr=0.01, max_iter=3)
        attachment = attach(optimizer, Constant(position), total_steps=STEPS, rails=FREE)
        moved = []
        for step in range(3):
            before = [p.detach().clone() for p in net.parameters()]

            def closure(step=step, net=net, optimizer=optimizer):
                assert optimizer.param_groups[0]["lr"] == 0.01
                optimizer.zero_grad()
                (loss,) = losses(net, step)
                loss.backward()
                return loss

            optimizer.step(closure)
            changes = [p.detach() - old for p, old in zip(net.parameters(), before, strict=True)]
            moved.append(sum(float(change.square().sum()) for change in changes))
        assert attachment.steps == 3 and optimizer.param_groups[0]["lr"] == 0.01
        rates[position] = moved
    assert rates[0.5][0] == rates[0.0][0] and rates[0.5][1] > 4 * rates[0.0][1]
