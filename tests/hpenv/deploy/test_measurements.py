"""A controller observes the numbers that it observed in training."""

import gymnasium as gym
import numpy as np
import pytest
import torch

import hpenv
from hpenv.deploy import Rails, attach
from hpenv.deploy.meter import MEASUREMENTS, SPREAD, Meter
from hpenv.plant.step_measurements import NUM_COMPARED_STEPS, STEP_MEASUREMENTS
from hpenv.pretraining.measurements import MEASUREMENTS as OF_PRETRAINING
from hpenv.pretraining.updates import UpdateMeter
from hpenv.telemetry.features import FEATURES
from tests.hpenv.deploy.loops import STEPS, Constant, losses, model, train

gym.register_envs(hpenv)


def test_measurements_are_those_of_pretraining():
    assert {*STEP_MEASUREMENTS} == {*MEASUREMENTS} & {*OF_PRETRAINING}


def test_updates_are_measured_as_by_the_plant():
    """Over two windows, the second with a parameter that has no gradient."""
    net = model()
    first, *others = net.parameters()
    groups, K = [[first], list(others)], 1 + len(others)
    in_group = np.zeros((K, 2))
    in_group[0, 0] = in_group[1:, 1] = 1.0
    opt = torch.optim.AdamW([{"params": group} for group in groups], lr=0.01)
    names = ("update_ratio", "update_alignment", "gradient_agreement")
    names += SPREAD
    meter = Meter(names)
    asked = {"updates", "alignment", "agreement", "spread"}
    for window in range(2):
        plant, found = UpdateMeter(in_group, np.zeros((K, 0))), []
        plant.begin(asked, np.array([5]))
        for step in range(5):
            opt.zero_grad()
            losses(net, 5 * window + step)[0].backward()
            if window:
                groups[1][0].grad = None
            weights = {str(i): p.detach()[None] for i, p in enumerate(net.parameters())}
            gradients = [
                torch.zeros_like(p)[None] if p.grad is None else p.grad[None]
                for p in net.parameters()
            ]
            norms = torch.stack([g.double().norm() for g in gradients])
            values = plant.before_update(gradients, norms.square().numpy()[None])
            plant.start(weights)
            meter.start_step(groups, None, None, 5 - step)
            opt.step()
            meter.finish_step(groups, None)
            found.append(values | plant.finish(weights))
        measured = meter.read(opt)
        for name in names:
            expected = np.mean([values[name][0] for values in found if name in values], axis=0)
            assert measured[name] == pytest.approx(expected, rel=1e-4)
            assert np.ptp(expected) > 0 or name in SPREAD


def test_weights_and_gradients_are_kept_for_the_compared_steps_alone():
    net = model()
    opt, meter = torch.optim.SGD(net.parameters(), lr=0.1), Meter({"update_alignment"})
    groups, kept = [list(net.parameters())], []
    for step in range(6):
        losses(net, step)[0].backward()
        meter.start_step(groups, None, None, 5 - step)  # the sixth is after the last window
        kept.append(bool(meter._before))
        opt.step()
        meter.finish_step(groups, None)
    assert kept == [False] * (4 - NUM_COMPARED_STEPS) + [True] * NUM_COMPARED_STEPS + [False] * 2


def test_features_by_hand():
    net = model()
    opt = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    names = ["progress", "train_loss", "gradient_norm", "momentum_norm", "probe_loss", "position"]
    controller = Constant(0.1, observation=names)
    probes = iter([4.0, 3.0, 2.0])
    attachment = attach(
        opt, controller, total_steps=STEPS, probe=lambda: next(probes), rails=Rails(spike=None)
    )
    norms, seen = [], []
    for step in range(5):
        (loss,) = losses(net, step)
        attachment.observe(loss)
        loss.backward()
        seen.append(loss.item())
        norms.append(float(torch.nn.utils.get_total_norm([p.grad for p in net.parameters()])))
        if step == 4:
            moments = [opt.state[p]["momentum_buffer"] for p in net.parameters()]
            momentum = float(torch.nn.utils.get_total_norm(moments))
        opt.step()
        opt.zero_grad()

    first, second, third = (observation[0] for observation in controller.seen)
    assert first == pytest.approx([0, seen[0] / 4, -1, -1, 1, 0])
    assert second[:3] == pytest.approx([2 / 12, np.mean(seen[:2]) / 4, np.log10(norms[1]) / 8])
    order = np.log10(momentum) / 8
    expected = [4 / 12, np.mean(seen[2:4]) / 4, np.log10(norms[3]) / 8, order, 0.5, 0.1]
    assert third == pytest.approx(expected)


def test_every_feature_that_can_be_had_is_finite_and_within_its_bounds():
    measured = {own.name for own in MEASUREMENTS}
    names = [
        name
        for name, own in FEATURES.items()
        if measured.issuperset(own.reads) and name != "registers"
    ]
    assert len(names) == 19
    net = model()
    opt = torch.optim.AdamW([{"params": [p]} for p in net.parameters()], lr=0.01)
    controller = Constant(0.1, observation=names, every=2)
    inputs = torch.ones(4, 6)
    attachment = attach(opt, controller, total_steps=24, probe=lambda: net(inputs).square().mean())
    train(net, opt, attachment=attachment, steps=range(24))
    seen = np.concatenate(controller.seen)
    assert seen.shape == (STEPS, 16 + 3 * 3) and np.isfinite(seen).all()
    assert (seen[3:].std(0)[:-1] > 0).all()  # all move but the position


def test_an_environment_shows_what_the_loop_shows():
    """The first observation of the same untrained run, whatever its loss is."""
    env = gym.make(
        "TrainLoop-JEL-v0",
        num_steps=12,
        interval=3,
        batch_tokens=64,
        sequence_length=16,
        data="synthetic",
        observation="full",
    )
    expected, _ = env.reset(seed=0)
    names = list(env.unwrapped.observation_names)
    features = [name for name in dict.fromkeys(n.split("/")[0] for n in names)]
    net = model()
    opt = torch.optim.AdamW(net.parameters(), lr=0.01)
    pairs = [("lr", "run"), ("weight_decay", "run")]
    controller = Constant(0.0, 0.0, channels=pairs, observation=features)
    attachment = attach(
        opt, controller, total_steps=12, every=3, probe=lambda: losses(net, 0)[0].item()
    )
    train(net, opt, attachment=attachment, steps=range(1))
    assert attachment.contract.columns().observation_names == tuple(names)
    moving = [i for i, name in enumerate(names) if name not in ("gradient_norm", "momentum_norm")]
    assert controller.seen[0][0, moving] == pytest.approx(expected[moving])


def test_features_that_travel_do_not_change_with_the_scale_of_the_loss():
    names = ["progress", "update_ratio", "update_alignment", "gradient_agreement", "loss_exponent"]
    names += ["gradient_norm_spread"]
    seen = {}
    for scale in (1.0, 1000.0):
        net = model()
        opt = torch.optim.AdamW(net.parameters(), lr=0.01, eps=1e-12)
        controller = Constant(0.1, observation=names, every=3)
        attachment = attach(opt, controller, total_steps=12)
        for step in range(12):
            loss = scale * losses(net, step)[0]
            attachment.observe(loss)
            loss.backward()
            opt.step()
            opt.zero_grad()
        seen[scale] = np.concatenate(controller.seen)
    assert seen[1.0] == pytest.approx(seen[1000.0], abs=1e-5)
    assert (seen[1.0][1:].std(0) > 1e-4).all()


def test_nothing_is_read_between_decisions(monkeypatch):
    """Tensors of the meta device raise if a number is read."""
    meter = Meter(own.name for own in MEASUREMENTS)
    groups = [[torch.nn.Parameter(torch.ones(3, 2, device="meta"))]]
    groups[0][0].grad = torch.ones(3, 2, device="meta")
    for keep in (None, torch.ones((), device="meta")):
        for left in (3, 2, 1):
            assert meter.observe(torch.ones((), device="meta"))
            meter.start_step(groups, keep, torch.ones((), device="meta"), left)
            meter.finish_step(groups, keep)
    with pytest.raises(NotImplementedError):
        meter.read(torch.optim.SGD(groups[0], lr=0.1))
