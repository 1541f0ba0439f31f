"""An action that is a move, and the momentum whose odds it moves."""

import numpy as np
import pytest
import schedulefree
import torch

from hpenv.benchmark.environments import make_population, spec_of
from hpenv.control.channels import CHANNELS
from hpenv.control.moves import moves_of_factors
from hpenv.deploy import ControllerWarning, Rails, attach
from hpenv.optim.rules import move_momentum
from hpenv.policies import AdaptiveRL, ControllerSpec, GaussianMLP, save_policy
from hpenv.traces import Recording, trace_of
from tests.hpenv.deploy.loops import STEPS, Constant, Recorder, losses, model, train

FREE = Rails(spike=None)
MOVES = {"lr": (0.02, 0.05), "weight_decay": (0.3, 0.0)}
TINY = {
    "data": "synthetic",
    "batch_tokens": 64,
    "sequence_length": 16,
    "num_steps": 12,
    "interval": 2,
    "observation": "gradient",
    "mapping": "move",
    "max_moves": MOVES,
}


class Sequence:
    """Given actions, one after the other."""

    def __init__(self, spec, actions):
        self.spec, self._actions = spec, iter(actions)

    def act(self, observations):
        return next(self._actions)[None]


def moving(*actions, channels=(("lr", "run"),), max_moves=None, every=2):
    """A constant controller whose actions are moves."""
    controller = Constant(
        *actions, channels=channels, observation=["progress", "position"], every=every
    )
    values = controller.spec.values() | {"mapping": "move", "max_moves": max_moves}
    controller.spec = ControllerSpec.from_values(values)
    return controller


@pytest.fixture(scope="module")
def env():
    return make_population("TrainLoop-JEL-v0", 1, TINY)


def test_positions_are_those_of_an_environment_after_the_same_actions(env):
    actions = np.random.default_rng(0).uniform(-1.5, 1.5, (6, 2)).astype(np.float32)
    actions[2] = 0.0
    env.reset(seed=0)
    expected = []
    for action in actions:
        env.step(action[None])
        expected.append(env.plant.panel.positions[0].tolist())
    recording = Recording(Sequence(spec_of(env), actions))
    net = model()
    opt = torch.optim.AdamW(net.parameters(), lr=0.01)
    attachment = attach(opt, recording, total_steps=STEPS, rails=FREE)
    train(net, opt, attachment=attachment)

    assert [d.positions for d in attachment.history] == expected and not attachment.fault
    assert expected[1] == expected[2] and np.std(expected) > 0.05
    # The traces have the positions as well: from the history, and from the recorded actions.
    trace = trace_of(attachment)
    assert trace.positions.tolist() == expected
    assert recording.trace(STEPS, 2).positions.tolist() == expected
    table = trace.controller()
    assert table.spec.mapping == "position"
    assert table.positions == pytest.approx(np.array(expected), abs=1e-7)


def test_a_saved_policy_of_moves_works_on_any_optimizer(env, tmp_path):
    policy = GaussianMLP(len(env.observation_names), len(env.action_names), seed=0)
    for p in policy.parameters():
        torch.nn.init.normal_(p, generator=torch.Generator().manual_seed(1))
    policy.spec = spec_of(env)
    save_policy(policy, tmp_path)
    for kind, arguments in ((torch.optim.AdamW, {}), (torch.optim.SGD, {"momentum": 0.9})):
        net = model()
        opt = kind(net.parameters(), lr=1e-3, weight_decay=0.1, **arguments)
        attachment = attach(opt, tmp_path, total_steps=STEPS)
        train(net, opt, attachment=attachment)
        positions = np.array([[0.0, 0.0]] + [d.positions for d in attachment.history])
        change = np.diff(positions, axis=0)
        assert len(change) == 6 and not attachment.fault
        assert (change <= [0.05 + 1e-12, 1e-12]).all() and (
            change >= [-0.02 - 1e-12, -0.3 - 1e-12]
        ).all()
        assert np.abs(change).max() > 0.01


def test_an_action_of_0_holds_the_position_and_moves_add_up():
    net = model()
    opt = Recorder(net.parameters())
    actions = np.array([[1.0], [0.0], [1.0], [-1.0], [-1.0], [0.0]], dtype=np.float32)
    attachment = attach(opt, Sequence(moving(0.0).spec, actions), total_steps=STEPS, rails=FREE)
    train(net, opt, attachment=attachment)
    found = [d.positions[0] for d in attachment.history]
    assert found == pytest.approx([0.1, 0.1, 0.2, 0.1, 0.0, 0.0]) and found[0] == found[1]
    assert opt.seen[4][0]["lr"] == pytest.approx(0.1 * 100**0.2)


def test_moves_end_at_the_bounds_and_come_back_from_there_at_once():
    net = model()
    opt = Recorder(net.parameters())
    actions = np.array([[1.0]] * 4 + [[-1.0]] * 2, dtype=np.float32)
    attachment = attach(
        opt,
        Sequence(moving(0.0).spec, actions),
        total_steps=STEPS,
        rails=FREE,
        bounds={"lr": (0.5, 2.0)},
    )
    train(net, opt, attachment=attachment)
    end = CHANNELS["lr"].position(2.0)
    found = [d.positions[0] for d in attachment.history]
    assert found == pytest.approx([0.1, end, end, end, end - 0.1, end - 0.2])
    rates = [seen[0]["lr"] for seen in opt.seen[::2]]
    assert rates[1:4] == [pytest.approx(0.2)] * 3 and rates[4] < 0.15


def test_after_a_pause_or_a_failure_the_positions_are_neutral():
    net = model()
    opt = Recorder(net.parameters())
    controller = moving(1.0, channels=[("lr", "run")])
    attachment = attach(opt, controller, total_steps=60, rails=Rails(spike=3.0, pause=2))
    with pytest.warns(ControllerWarning, match="the loss is above"):
        for value in [1.0] * 8 + [20.0, 1.0] + [1.0] * 8:
            attachment.observe(value)
            losses(net, 0)[0].backward()
            opt.step()
    found = [d.positions[0] for d in attachment.history]
    assert found == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.0, 0.0, 0.1, 0.2])
    # The controller sees it: the position of the window before its first decision is 0.
    assert [float(seen[0, 1]) for seen in controller.seen[4:7]] == pytest.approx([0.4, 0.0, 0.1])

    controller.positions = np.array([[np.nan]])
    with pytest.warns(ControllerWarning, match="switched off"):
        train(net, opt, attachment=attachment, steps=range(4))
    assert attachment.state_dict()["pilot"]["positions"].tolist() == [[0.0]]
    assert opt.seen[-1][0]["lr"] == 0.1


def test_mappings_and_moves_that_are_unknown_are_refused():
    for changed, text in (
        ({"mapping": "speed"}, r"unknown mapping 'speed'; expected one of \['position', 'move'\]"),
        ({"mapping": "move", "max_moves": {"lr": 3.0}}, "max_moves of 'lr' must be a number"),
        ({"estimators": "daily"}, "unknown estimators 'daily'; expected one of"),
    ):
        controller = Constant(0.0)
        controller.spec = ControllerSpec.from_values(controller.spec.values() | changed)
        with pytest.raises(ValueError, match=text):
            attach(Recorder(model().parameters()), controller, total_steps=STEPS)


MOMENTA = {
    "sgd": (lambda ps: torch.optim.SGD(ps, lr=0.01, momentum=0.9), "momentum"),
    "muon": (lambda ps: torch.optim.Muon([p for p in ps if p.ndim == 2], lr=0.01), "momentum"),
    "adamw": (lambda ps: torch.optim.AdamW(ps, lr=0.01), "betas"),
    "adamw_tensor": (
        lambda ps: torch.optim.AdamW(
            ps, lr=0.01, betas=(torch.tensor(0.9), torch.tensor(0.99)), capturable=False
        ),
        "betas",
    ),
}


def momentum_of(group, key):
    return float(group[key][0] if key == "betas" else group[key])


@pytest.mark.parametrize("position", [-0.5, 0.0, 1e-3, 1.0])
@pytest.mark.parametrize("name", MOMENTA)
def test_the_odds_of_the_momentum_are_those_of_the_rules(name, position):
    make, key = MOMENTA[name]
    net = model()
    opt = make(list(net.parameters()))
    before = opt.param_groups[0][key]
    base = momentum_of(opt.param_groups[0], key)
    attachment = attach(
        opt, Constant(position, channels=[("momentum", "run")]), total_steps=STEPS, rails=FREE
    )
    seen = []
    opt.register_step_pre_hook(lambda o, *_: seen.append(momentum_of(o.param_groups[0], key)))
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    opt.step()
    odds = torch.tensor(CHANNELS["momentum"].values(np.array([np.float32(position)], float)))
    expected, _ = move_momentum(base, 1.0 - base, odds)
    exact = {} if name == "adamw_tensor" else {"rel": 1e-12}
    assert seen == [pytest.approx(float(expected), **exact)]
    assert opt.param_groups[0][key] is before and momentum_of(opt.param_groups[0], key) == base
    if position == 0.0:
        assert seen == [base]
    assert attachment.history[0].multipliers["momentum"] == [pytest.approx(float(odds))]


def test_beta1_is_multiplied_before_the_odds_as_in_the_rules():
    for betas in ((0.9, 0.99), (torch.tensor(0.9), 0.99)):
        net = model()
        opt = Recorder(net.parameters(), betas=betas)
        # The cells are in the other order.
        pairs = [("momentum", "run"), ("beta1", "run")]
        attach(opt, Constant(0.5, 0.5, channels=pairs), total_steps=STEPS)
        losses(net, 0)[0].backward()
        opt.step()
        rest = 0.1 * 5**0.5
        odds = (1 - rest) / rest * 30**0.5
        assert float(opt.seen[0][0]["betas"][0]) == pytest.approx(odds / (1 + odds))
        assert float(opt.param_groups[0]["betas"][0]) == pytest.approx(0.9)


def test_bounds_of_the_momentum_are_of_its_odds():
    net = model()
    opt = torch.optim.AdamW(net.parameters())
    controller = Constant(1.0, channels=[("momentum", "run")])
    attachment = attach(opt, controller, total_steps=STEPS, bounds={"momentum": (0.5, 2.0)})
    seen = []
    opt.register_step_pre_hook(lambda o, *_: seen.append(o.param_groups[0]["betas"][0]))
    opt.step()
    assert seen == [pytest.approx(18 / 19)]
    assert attachment.effective["0"]["betas"][0] == seen[0]


def test_a_momentum_that_cannot_be_moved_is_refused():
    parameters = list(model().parameters())
    for opt, text in (
        (torch.optim.SGD(parameters, lr=0.1), "the momentum of all groups is 0.*such as 0.9"),
        (torch.optim.Adagrad(parameters), "no group has the key 'momentum' or 'betas'"),
        (schedulefree.AdamWScheduleFree(parameters), "a schedule-free optimizer computes"),
        (torch.optim.RMSprop(parameters, momentum=0.9), "'rmsprop'.* no use for .*'momentum'"),
    ):
        with pytest.raises(ValueError, match=text):
            attach(opt, Constant(0.0, channels=[("momentum", "run")]), total_steps=STEPS)
    with pytest.raises(ValueError, match="keys must have 'betas', which 'momentum' multiplies"):
        attach(
            torch.optim.AdamW(parameters),
            Constant(0.0, channels=[("momentum", "run")]),
            total_steps=STEPS,
            keys=("lr", "momentum"),
        )


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_the_law_moves_rate_and_momentum_within_its_caps(name):
    make, key = MOMENTA[name]
    net = model()
    opt = make(list(net.parameters()))
    law = AdaptiveRL(noise=None, interval=2)
    attachment = attach(opt, law, total_steps=60, rails=FREE)
    train(net, opt, attachment=attachment, steps=range(60))
    positions = np.array([d.positions for d in attachment.history])
    assert len(positions) == 30 and not attachment.fault
    assert (positions.std(0) > 1e-3).all()
    change = np.diff(positions, axis=0)[:, 0]
    down, up = moves_of_factors("lr", 0.9, 1.2)
    assert change.max() <= up + 1e-9 and change.min() >= -down - 1e-9
    momenta = [momentum_of(d.applied[0], key) for d in attachment.history]
    assert 0.85 - 1e-6 <= min(momenta) < max(momenta) <= 0.99 + 1e-6
    assert momenta[-1] == pytest.approx(
        float(move_momentum(0.9, 0.1, CHANNELS["momentum"].values(positions[-1, 1:]))[0][0])
    )


@pytest.mark.parametrize("noise", ["exploration", "weight_noise"])
def test_the_noise_of_the_law_is_refused_by_name(noise):
    opt = torch.optim.AdamW(model().parameters())
    with pytest.raises(ValueError, match=f"{noise!r}, which an optimizer does not .*noise=None"):
        attach(opt, AdaptiveRL(noise=noise), total_steps=60)
