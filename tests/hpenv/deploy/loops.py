"""Small training loops, and controllers for them."""

import copy
from contextlib import suppress

import numpy as np
import schedulefree
import torch
from torch.optim import lr_scheduler as schedulers

from hpenv.policies import ControllerSpec

STEPS = 12


class Constant:
    """The same positions at every decision. Keeps the observations."""

    def __init__(self, *positions, channels=(("lr", "run"),), observation=("progress",), every=2):
        self.spec = ControllerSpec([list(p) for p in channels], list(observation), every)
        self.positions = np.array([positions], dtype=np.float32)
        self.seen = []

    def act(self, observations):
        self.seen.append(observations.copy())
        return self.positions


class Wandering:
    """Positions that depend on all observations so far, through a state of its own."""

    def __init__(self, channels=(("lr", "group"),), observation=("progress", "train_loss")):
        self.spec = ControllerSpec([list(p) for p in channels], list(observation), 3)
        self.memory = np.zeros(1)

    def reset(self, columns):
        self.memory, self._size = np.zeros(1), len(columns.action_names)

    def state(self):
        return {"memory": self.memory}

    def set_state(self, arrays):
        self.memory = arrays["memory"]

    def act(self, observations):
        self.memory = 0.7 * self.memory + observations.astype(np.float64).sum()
        return np.sin(self.memory + np.arange(self._size))[None].astype(np.float32)


class Recorder(torch.optim.Optimizer):
    """Gradient descent that records the values of its groups at every step, and may raise."""

    def __init__(self, params, lr=0.1, fails_at=(), **defaults):
        super().__init__(params, {"lr": lr} | defaults)
        self.seen, self.fails_at = [], set(fails_at)

    @torch.no_grad()
    def step(self, closure=None):
        self.seen.append(
            [
                {k: copy.deepcopy(v) for k, v in group.items() if k != "params"}
                for group in self.param_groups
            ]
        )
        if len(self.seen) - 1 in self.fails_at:
            raise RuntimeError("the step fails")
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(p.grad * group["lr"])


OPTIMIZERS = {
    "sgd": lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adamw": lambda ps: torch.optim.AdamW(ps, lr=0.01, foreach=False),
    "adamw_foreach": lambda ps: torch.optim.AdamW(ps, lr=0.01, foreach=True),
    "adamw_fused": lambda ps: torch.optim.AdamW(ps, lr=0.01, fused=True),
    "adamw_tensor": lambda ps: torch.optim.AdamW(ps, lr=torch.tensor(0.01), fused=True),
    "muon": lambda ps: torch.optim.Muon([p for p in ps if p.ndim == 2], lr=0.01, weight_decay=0.1),
    "schedule_free": lambda ps: schedulefree.AdamWScheduleFree(ps, lr=0.01),
    "own": lambda ps: Recorder(ps, lr=0.1),
}

SCHEDULERS = {
    "none": lambda o: None,
    "lambda": lambda o: schedulers.LambdaLR(o, lambda t: 1 / (1 + t)),
    "one_cycle": lambda o: schedulers.OneCycleLR(
        o, max_lr=0.02, total_steps=STEPS + 1, cycle_momentum=_cycles(o)
    ),
    "plateau": lambda o: schedulers.ReduceLROnPlateau(o, patience=0, factor=0.5, threshold=0.5),
    "restarts": lambda o: schedulers.CosineAnnealingWarmRestarts(o, T_0=5),
    "cosine": lambda o: schedulers.CosineAnnealingLR(o, T_max=STEPS),
    "exponential": lambda o: schedulers.ExponentialLR(o, 0.9),
}


def _cycles(optimizer):
    group = optimizer.param_groups[0]
    return "momentum" in group or "betas" in group


def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1, bias=False)
    )


def losses(net, step, parts=1):
    """The losses of a step's batch, one per part."""
    generator = torch.Generator().manual_seed(step)
    inputs = torch.randn(8 * parts, 6, generator=generator)
    targets = inputs.sum(1, keepdim=True).sin()
    return [
        (net(x) - y).square().mean()
        for x, y in zip(inputs.chunk(parts), targets.chunk(parts), strict=True)
    ]


def train(net, optimizer, scheduler=None, attachment=None, steps=range(STEPS), parts=1):
    """Trains, and returns the rates that a logger would see."""
    rates = []
    if hasattr(optimizer, "train"):
        optimizer.train()
    for step in steps:
        for loss in losses(net, step, parts):
            if attachment is not None:
                attachment.observe(loss)
            (loss / parts).backward()
        with suppress(RuntimeError):
            optimizer.step()
        optimizer.zero_grad()
        rates.append([float(group["lr"]) for group in optimizer.param_groups])
        if isinstance(scheduler, schedulers.ReduceLROnPlateau):
            scheduler.step(1.0)
        elif scheduler is not None:
            scheduler.step()
    return rates


def assert_same(found, expected):
    """Two nested values are equal, bit for bit."""
    if isinstance(expected, dict):
        assert set(found) == set(expected)
        for key in expected:
            assert_same(found[key], expected[key])
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for pair in zip(found, expected, strict=True):
            assert_same(*pair)
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected)
    else:
        assert found == expected
