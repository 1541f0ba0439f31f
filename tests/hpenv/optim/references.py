"""Rows of optimizers, and their references one row at a time."""

import numpy as np
import torch

from hpenv.optim.optimizers import OPTIMIZERS
from hpenv.optim.parameter_free import DAdaptAdamW, Prodigy
from hpenv.optim.rules import Rates

STARTS = (0, 4, 9)  # when each row takes its first step
NUM_TICKS = 16
DECAYS = (0.1, 0.0, 0.02)
SHAPES = ((6, 4), (3, 5))  # tall and wide
RULES = {type(rule): rule for rules in OPTIMIZERS.values() for rule in rules.values()}
# From a first distance at which a few steps are of the size of the other rules'.
RULES |= {kind: kind(d0=0.02) for kind in (Prodigy, DAdaptAdamW)}


def rates(scale, kind):
    """Rate of each row at each of its own steps, (3, NUM_TICKS)."""
    steps = np.arange(NUM_TICKS)
    shape = {
        "constant": np.ones(NUM_TICKS),
        "warmup": np.minimum(1.0, (steps + 1) / 5),
        "changing": np.exp(np.sin(steps)),
        "from zero": (steps >= 2) * 1.0,
    }[kind]
    return scale * np.array([[1.0], [0.3], [2.0]]) * shape


def draw(shape, row, step, dtype):
    generator = torch.Generator().manual_seed(1000 * row + step)
    return torch.randn(shape, generator=generator, dtype=dtype)


def same(lrs, decays):
    """Rates of tensors from their learning rates and decays, (N, 1, 1) each."""
    return Rates.of(
        *(torch.stack([v.flatten() for v in values], 1).double() for values in (lrs, decays))
    )


class Rows:
    """Three rows under one rule, of which some have not begun."""

    def __init__(self, rule, lrs, decays=DECAYS, shapes=SHAPES, dtype=torch.float64):
        self.rule, self.lrs, self.decays, self.shapes, self.dtype = rule, lrs, decays, shapes, dtype
        self.weights = [
            torch.stack([draw(s, row, 999 - i, dtype) for row in range(3)])
            for i, s in enumerate(shapes)
        ]
        self.states = [rule.init(weight) for weight in self.weights]
        self.steps = np.zeros(3, dtype=np.int64)

    def column(self, values):
        return torch.as_tensor(np.array(values), dtype=self.dtype).view(3, 1, 1)

    def tick(self, now):
        """One step of the rows that have begun.

        The others are put back, as the plant does.
        """
        moving = [now >= start for start in STARTS]
        everything = self.weights + [value for state in self.states for value in state.values()]
        kept = [value.clone() for value in everything]
        gradients = [
            torch.stack(
                [draw(s, row, 50 * i + int(self.steps[row]), self.dtype) for row in range(3)]
            )
            for i, s in enumerate(self.shapes)
        ]
        lr = self.column([self.lrs[row, self.steps[row]] for row in range(3)])
        count = len(self.shapes)
        self.rule.update(
            self.weights,
            gradients,
            self.states,
            same([lr] * count, [self.column(self.decays)] * count),
            self.steps,
        )
        for value, old in zip(everything, kept, strict=True):
            for row in range(3):
                if not moving[row]:
                    value[row] = old[row]
        self.steps += moving

    def run(self, num_ticks=NUM_TICKS):
        for now in range(num_ticks):
            self.tick(now)
        return self

    def evaluated(self):
        pairs = zip(self.weights, self.states, strict=True)
        return [self.rule.evaluation_weights(weight, state) for weight, state in pairs]


def reference(make, lrs, row, shapes=SHAPES, dtype=torch.float64, decays=DECAYS):
    """The weights (train, evaluation) of one row under an optimizer of somebody else."""
    parameters = [torch.nn.Parameter(draw(s, row, 999 - i, dtype)) for i, s in enumerate(shapes)]
    optimizer = make(parameters, decays[row])
    if hasattr(optimizer, "train"):
        optimizer.train()
    for step in range(NUM_TICKS - STARTS[row]):
        for i, parameter in enumerate(parameters):
            parameter.grad = draw(parameter.shape, row, 50 * i + step, dtype)
        for group in optimizer.param_groups:
            group["lr"] = float(lrs[row, step])
        optimizer.step()
    train = [parameter.detach().clone() for parameter in parameters]
    if hasattr(optimizer, "eval"):
        optimizer.eval()
    return train, [parameter.detach().clone() for parameter in parameters]


def assert_twins(rule, make, lrs, dtype=torch.float64, decays=DECAYS, **tolerance):
    rows = Rows(rule, lrs, decays, dtype=dtype).run()
    for row in range(3):
        train, evaluation = reference(make, lrs, row, dtype=dtype, decays=decays)
        for ours, theirs in ((rows.weights, train), (rows.evaluated(), evaluation)):
            for mine, other in zip(ours, theirs, strict=True):
                torch.testing.assert_close(mine[row], other, **tolerance)
    return rows


EXACT = {"rtol": 1e-9, "atol": 1e-11}  # of float64
