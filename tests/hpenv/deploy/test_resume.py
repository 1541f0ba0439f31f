"""A run that is resumed within a window is, bit for bit, the run that never stopped."""

import copy

import pytest
import torch

from hpenv.deploy import Rails, attach
from hpenv.policies import AdaLRS, AdaptiveRL, Hypergradient, UpdateRatio
from tests.hpenv.deploy.loops import SCHEDULERS, Constant, Wandering, assert_same, model, train

STEPS = 20
EVERYTHING = (
    "progress", "train_loss", "loss_slope", "loss_curvature", "loss_ema_deviation",
    "probe_loss", "probe_loss_change", "gradient_norm", "momentum_norm", "update_ratio",
    "update_alignment", "loss_trend", "reward_trend", "loss_variance_ratio", "plateau",
    "gradient_agreement", "gradient_norm_spread", "position",
)  # fmt: skip
CONTROLLERS = {
    "ratio": lambda: UpdateRatio(interval=3),
    "hypergradient": lambda: Hypergradient(interval=3),
    "adalrs": lambda: AdaLRS(interval=2),
    "adaptive": lambda: AdaptiveRL(noise=None, interval=3),
    "adaptive_epochs": lambda: AdaptiveRL(noise=None, interval=3, pace="epochwise"),
    "wandering": lambda: Wandering(observation=EVERYTHING),
}


def make(controller, scheduler):
    net = model()
    first, *others = net.parameters()
    opt = torch.optim.AdamW([{"params": [first]}, {"params": others}], lr=0.003)
    inputs = torch.randn(16, 6, generator=torch.Generator().manual_seed(99))
    attachment = attach(
        opt,
        CONTROLLERS[controller](),
        total_steps=STEPS,
        probe=lambda: net(inputs).square().mean(),
        bounds={"lr": (0.2, 5.0)},
        rails=Rails(spike=1.05, pause=1, budget=0.8),
    )
    return net, opt, SCHEDULERS[scheduler](opt), attachment


@pytest.mark.filterwarnings("ignore:the loss is above")
@pytest.mark.parametrize("stop", [0, 1, 4, 7, 11])
@pytest.mark.parametrize("controller", CONTROLLERS)
def test_a_resumed_run_equals_one_that_never_stopped(controller, stop, tmp_path):
    net, opt, sched, attachment = make(controller, "restarts")
    train(net, opt, sched, attachment, steps=range(STEPS))

    first, first_opt, first_sched, first_attachment = make(controller, "restarts")
    train(first, first_opt, first_sched, first_attachment, steps=range(stop))
    parts = (first, first_opt, first_sched, first_attachment)
    torch.save([part.state_dict() for part in parts], tmp_path / "run.pt")

    resumed = make(controller, "restarts")
    states = torch.load(tmp_path / "run.pt", weights_only=True)
    for part, state in zip(resumed, states, strict=True):
        part.load_state_dict(state)
    train(*resumed, steps=range(stop, STEPS))

    assert_same(list(resumed[0].parameters()), list(net.parameters()))
    assert_same(resumed[1].state_dict(), opt.state_dict())
    assert resumed[3].history == attachment.history
    assert_same(resumed[3].state_dict(), attachment.state_dict())
    moved = {tuple(d.multipliers["lr"]) for d in attachment.history}
    assert len(moved) > 1 and not attachment.fault


def test_the_state_does_not_follow_the_run():
    net, opt, sched, attachment = make("wandering", "none")
    train(net, opt, sched, attachment, steps=range(4))
    state = attachment.state_dict()
    kept = copy.deepcopy(state)
    train(net, opt, sched, attachment, steps=range(4, 9))
    assert_same(state, kept)


def test_a_state_of_another_controller_is_refused():
    state = make("ratio", "none")[3].state_dict()
    net = model()
    opt = torch.optim.AdamW(net.parameters())
    other = attach(opt, Constant(0.0), total_steps=STEPS)
    with pytest.raises(ValueError, match=r"cells of the state must be \['lr'\]; got \['lr/0'"):
        other.load_state_dict(state)
    shorter = state | {"total_steps": 7}
    with pytest.raises(ValueError, match="total_steps of the state must be 20; got 7; attach"):
        make("ratio", "none")[3].load_state_dict(shorter)
