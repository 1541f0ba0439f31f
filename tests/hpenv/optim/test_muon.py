"""Muon against torch's and against nanochat's description."""

import math

import numpy as np
import pytest
import torch

from hpenv.optim.muon import Muon, NanochatMuon
from tests.hpenv.optim.references import (
    DECAYS,
    NUM_TICKS,
    SHAPES,
    STARTS,
    Rows,
    assert_twins,
    draw,
    rates,
)

#: Unit roundoff of bfloat16, which keeps 8 bits.
BFLOAT16_ROUNDOFF = 2.0**-8


@pytest.mark.parametrize("adjust", [None, "original"])
@pytest.mark.parametrize("momentum", [0.95, 0.5])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", None])
def test_muon_is_torchs(dtype, momentum, adjust):
    """Up to the bfloat16 of torch.optim.Muon, which always casts.

    An update has entries of at most 1.5 sqrt(6 / 4) and passes 17 roundings: 2 at the start, 3 in
    each of 5 iterations. Roundings are taken to be independent of each other.
    """

    def make(parameters, weight_decay):
        return torch.optim.Muon(
            parameters, momentum=momentum, weight_decay=weight_decay, adjust_lr_fn=adjust
        )

    lrs = rates(0.02, "changing")
    distance = float(np.sqrt((lrs**2).sum(1)).max())
    atol = distance * 1.5 * math.sqrt(6 / 4) * math.sqrt(17) * BFLOAT16_ROUNDOFF
    rows = assert_twins(
        Muon(momentum, newton_schulz_dtype=dtype), make, lrs, torch.float32, rtol=0.0, atol=atol
    )
    moved = rows.weights[0] - Rows(Muon(), lrs, dtype=torch.float32).weights[0]
    assert moved.abs().mean() > 3 * atol


def newton_schulz(x, coefficients, safety, floor):
    """The iteration of one wide matrix in its own dtype, written again from its description."""
    x = x / (safety * x.norm() + floor)
    for a, b, c in coefficients:
        gram = x @ x.T
        x = a * x + b * gram @ x + c * gram @ gram @ x
    return x


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_cpu_iterates_in_the_dtype_of_the_weights(dtype):
    """Every entry within the roundings of its additions.

    There are 15 products of inner dimension at most 6, and 16 steps.
    """
    lrs, rule = rates(0.02, "changing"), Muon()
    rows = Rows(rule, lrs, dtype=dtype).run()
    for row in range(3):
        for i, shape in enumerate(SHAPES):
            w, buffer = (
                draw(shape, row, 999 - i, dtype).double(),
                torch.zeros(shape, dtype=torch.float64),
            )
            for step in range(NUM_TICKS - STARTS[row]):
                g = draw(shape, row, 50 * i + step, dtype).double()
                buffer = 0.95 * buffer + 0.05 * g
                direction = 0.05 * g + 0.95 * buffer
                wide = direction if shape[0] <= shape[1] else direction.T
                u = newton_schulz(wide, [(3.4445, -4.7750, 2.0315)] * 5, 1.0, 0.0)
                u = u if shape[0] <= shape[1] else u.T
                lr = lrs[row, step]
                w = w * (1 - lr * DECAYS[row]) - lr * math.sqrt(max(1, shape[0] / shape[1])) * u
            # Roundings of the start grow with the slope of the iteration at zero, 3.4445 to the
            # fifth.
            atol = NUM_TICKS * lrs.max() * 15 * 6 * 3.4445**5 * torch.finfo(dtype).eps / 2
            torch.testing.assert_close(rows.weights[i][row].double(), w, rtol=0.0, atol=float(atol))


def nanochat_step(w, g, buffer, mean_square, lr, wd, step, dtype):
    """One matrix by nanochat's muon.py and momentum schedule, at commit 8630d32.

    Both were written again from a description.
    """
    coefficients = [
        (8.156554524902461, -22.48329292557795, 15.878769915207462),
        (4.042929935166739, -2.808917465908714, 0.5000178451051316),
        (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
        (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
        (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
    ]
    momentum = 0.85 + min(step / 300, 1) * 0.1
    buffer = momentum * buffer + (1 - momentum) * g
    x = ((1 - momentum) * g + momentum * buffer).to(dtype)
    tall = w.shape[0] > w.shape[1]
    x = x.T if tall else x
    x = x / (x.norm() * 1.02 + 1e-6)
    for a, b, c in coefficients:
        gram = x @ x.T
        polynomial = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.addmm(x, polynomial, x, beta=a)
    update = (x.T if tall else x).float()
    axis = 1 if w.shape[0] >= w.shape[1] else 0
    squares = (update**2).mean(axis, keepdim=True)
    mean_square = 0.95 * mean_square + 0.05 * squares
    scaled = update / mean_square.sqrt()
    update = scaled * update.norm() / scaled.norm()
    rate = lr * math.sqrt(max(1, w.shape[0] / w.shape[1]))
    agrees = (update * w) >= 0
    return w - rate * update - rate * wd * w * agrees, buffer, mean_square, update


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_nanochats_muon_is_its_description(dtype):
    """Step by step from the rule's state.

    A weight decays or does not by a sign, which roundings decide near zero.

    In float32 roundings grow by the slope of the iteration at zero, at most 8.2 4.1 3.9 3.3 2.4 =
    1000; in bfloat16 a row's mean square keeps 3 % and an update 5 %.
    """
    lrs, decays = rates(0.02, "changing"), (0.8, 0.0, 0.2)
    exact = dtype == "float32"
    rows = Rows(NanochatMuon(newton_schulz_dtype=dtype), lrs, decays, dtype=torch.float32)
    rows.steps[:] = (0, 140, 295)  # momentum before, in and after the end of its warmup
    rows.lrs = np.zeros((3, 320))
    for row, first in enumerate(rows.steps):
        rows.lrs[row, first : first + NUM_TICKS] = lrs[row]
    rtol, compared = 1000 * 4 * torch.finfo(torch.float32).eps if exact else 0.03, 0
    for now in range(NUM_TICKS):
        steps = rows.steps.copy()
        weights = [weight.clone() for weight in rows.weights]
        states = [{name: value.clone() for name, value in state.items()} for state in rows.states]
        rows.tick(now)
        for i, shape in enumerate(SHAPES):
            for row in np.flatnonzero(rows.steps > steps):
                g = draw(shape, int(row), 50 * i + int(steps[row]), torch.float32)
                before = [
                    value[row]
                    for value in (weights[i], states[i]["momentum"], states[i]["mean_square"])
                ]
                w, buffer, mean_square, update = nanochat_step(
                    before[0],
                    g,
                    *before[1:],
                    rows.lrs[row, steps[row]],
                    decays[row],
                    int(steps[row]),
                    getattr(torch, dtype),
                )
                torch.testing.assert_close(rows.states[i]["momentum"][row], buffer)
                torch.testing.assert_close(
                    rows.states[i]["mean_square"][row], mean_square, rtol=rtol, atol=rtol / 30
                )
                sure = update.abs() > (1e-3 if exact else 0.1)
                rate = rows.lrs[row, steps[row]] * math.sqrt(max(1, shape[0] / shape[1]))
                moved, expected = rows.weights[i][row] - before[0], w - before[0]
                torch.testing.assert_close(
                    moved[sure], expected[sure], rtol=2 * rtol, atol=3 * rtol * rate
                )
                compared += int(sure.sum())
    assert compared > 800  # of 35 steps of 39 weights


def test_muon_refuses_what_is_no_matrix():
    for rule in (Muon(), NanochatMuon()):
        with pytest.raises(ValueError, match=r"must be matrices; got one of shape \(5,\)"):
            rule.init(torch.zeros(2, 5))
