"""Every rule against its reference.

Three rows at different steps and rates are three optimizers of their own.
"""

import math
from dataclasses import fields, replace

import numpy as np
import pytest
import schedulefree
import torch

from hpenv.control.channels import CHANNELS
from hpenv.optim.adamw import SGD, AdamW
from hpenv.optim.muon import Muon, NanochatMuon
from hpenv.optim.optimizers import OPTIMIZERS, optimizer_rules
from hpenv.optim.parameter_free import DAdaptAdamW, Prodigy
from hpenv.optim.rules import Rates
from hpenv.optim.schedule_free import ScheduleFreeAdamW, ScheduleFreeSGD

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
        """One step of the rows that have begun; the others are put back, as the plant does."""
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


@pytest.mark.parametrize("kind", ["constant", "changing"])
@pytest.mark.parametrize("rule", [AdamW(), AdamW(0.8, 0.95, 1e-10), AdamW(0.95, 0.999, 1e-3)])
def test_adamw_is_torchs(rule, kind):
    def make(parameters, weight_decay):
        return torch.optim.AdamW(
            parameters,
            betas=(rule.beta1, rule.beta2),
            eps=rule.eps,
            weight_decay=weight_decay,
            foreach=False,
        )

    assert_twins(rule, make, rates(0.03, kind), **EXACT)


@pytest.mark.parametrize("kind", ["constant", "changing"])
@pytest.mark.parametrize("rule", [SGD(), SGD(0.5, nesterov=True), SGD(0.0)])
def test_sgd_is_torchs(rule, kind):
    """Without weight decay, which is decoupled here and added to the gradient there."""

    def make(parameters, weight_decay):
        return torch.optim.SGD(
            parameters, lr=0.1, momentum=rule.momentum, nesterov=rule.nesterov, foreach=False
        )

    assert_twins(rule, make, rates(0.03, kind), decays=(0.0, 0.0, 0.0), **EXACT)


def test_the_decay_of_sgd_is_decoupled():
    lrs = rates(0.03, "constant")
    without = Rows(SGD(0.0), lrs, (0.0, 0.0, 0.0)).run(1)
    with_decay = Rows(SGD(0.0), lrs, (0.5, 0.5, 0.5)).run(1)
    start = Rows(SGD(0.0), lrs).weights[0][0]
    torch.testing.assert_close(
        without.weights[0][0] - with_decay.weights[0][0], start * 0.03 * 0.5, **EXACT
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


def package_sgd(rule, warmup_steps=0):
    def make(parameters, weight_decay):
        return schedulefree.SGDScheduleFree(
            parameters,
            momentum=rule.momentum,
            weight_decay=weight_decay,
            weight_lr_power=rule.weight_lr_power,
            warmup_steps=warmup_steps,
        )

    return make


def package_adamw(rule, warmup_steps=0):
    def make(parameters, weight_decay):
        return schedulefree.AdamWScheduleFree(
            parameters,
            betas=(rule.momentum, rule.beta2),
            eps=rule.eps,
            weight_decay=weight_decay,
            weight_lr_power=rule.weight_lr_power,
            warmup_steps=warmup_steps,
        )

    return make


FREE = [
    (ScheduleFreeSGD(), package_sgd),
    (ScheduleFreeSGD(0.5, 0.0), package_sgd),
    (ScheduleFreeAdamW(), package_adamw),
    (ScheduleFreeAdamW(0.95, 0.9, 1e-3, 1.0), package_adamw),
]


@pytest.mark.parametrize("kind", ["constant", "changing", "from zero"])
@pytest.mark.parametrize(("rule", "package"), FREE)
def test_schedule_free_is_the_packages_in_training_and_in_evaluation(rule, package, kind):
    rows = assert_twins(rule, package(rule), rates(0.1, kind), **EXACT)
    assert not torch.allclose(rows.weights[0], rows.evaluated()[0])


@pytest.mark.parametrize(("rule", "package"), FREE)
def test_a_warmup_outside_is_the_packages_own_warmup(rule, package):
    constant, warmed = rates(0.1, "constant"), rates(0.1, "warmup")
    rows = Rows(rule, warmed).run()
    for row in range(3):
        for ours, theirs in zip(
            (rows.weights, rows.evaluated()),
            reference(package(rule, 5), constant, row),
            strict=True,
        ):
            for mine, other in zip(ours, theirs, strict=True):
                torch.testing.assert_close(mine[row], other, **EXACT)


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


@pytest.fixture(params=RULES.values(), ids=lambda rule: type(rule).__name__)
def rule(request):
    return request.param


def test_every_rule_of_the_table_has_a_reference_above_or_in_test_parameter_free():
    above = {AdamW, SGD, Muon, NanochatMuon, ScheduleFreeSGD, ScheduleFreeAdamW}
    assert set(RULES) == above | {Prodigy, DAdaptAdamW}


def sizes(rule, kind):
    """Rates of a rule, 0.02 or a multiplier of its own estimate."""
    return rates(1.0 if hasattr(rule, "d0") else 0.02, kind)


def test_a_rule_is_deterministic_and_leaves_the_global_generator_alone(rule):
    before = torch.get_rng_state()
    first, second = (
        Rows(rule, sizes(rule, "changing"), dtype=torch.float32).run() for _ in range(2)
    )
    for a, b in zip(first.weights, second.weights, strict=True):
        assert torch.equal(a, b)
    assert torch.equal(torch.get_rng_state(), before)


OTHER_VALUES = {
    "beta1": 0.3,
    "beta2": 0.5,
    "eps": 0.1,
    "momentum": 0.3,
    "nesterov": True,
    "start_momentum": 0.2,
    "momentum_steps": 3,
    "weight_lr_power": 0.0,
    "newton_schulz_dtype": "bfloat16",
    "d0": 0.1,
    "d_coef": 0.5,
    "bias_correction": True,
    "safeguard_warmup": True,
}


def test_every_hyperparameter_of_a_rule_has_an_effect(rule):
    lrs = sizes(rule, "changing")
    plain = Rows(rule, lrs, dtype=torch.float32).run()
    for name in (f.name for f in fields(rule) if f.name != "optimizer"):
        assert getattr(rule, name) != OTHER_VALUES[name]
        changed = Rows(replace(rule, **{name: OTHER_VALUES[name]}), lrs, dtype=torch.float32).run()
        for row in range(3):
            assert (changed.weights[0][row] - plain.weights[0][row]).abs().max() > 1e-4, name


def test_rate_and_decay_have_an_effect_on_their_own_row_alone(rule):
    lrs = sizes(rule, "constant")
    plain = Rows(rule, lrs, dtype=torch.float32).run()
    faster = lrs.copy()
    faster[1] *= 2
    for changed in (
        Rows(rule, faster, dtype=torch.float32),
        Rows(rule, lrs, (0.1, 0.5, 0.02), dtype=torch.float32),
    ):
        changed.run()
        for mine, other in zip(changed.weights, plain.weights, strict=True):
            assert torch.equal(mine[[0, 2]], other[[0, 2]])
            assert not torch.equal(mine[1], other[1])


@pytest.mark.parametrize("product", [1.5, 1e2, 1e6])
@pytest.mark.parametrize("lr", [1e-3, 1.0, 1e2])
def test_a_rate_times_decay_above_one_flips_no_sign(rule, lr, product):
    """From the start of a run, with a gradient of zero, so that decay alone moves the weights."""
    rows = Rows(rule, rates(1.0, "constant"))
    start = [weight.clone() for weight in rows.weights]
    zeros = [torch.zeros_like(weight) for weight in rows.weights]
    scale = [rows.column([lr] * 3)] * 2, [rows.column([product / lr] * 3)] * 2
    for step in range(4):
        rows.rule.update(rows.weights, zeros, rows.states, same(*scale), np.full(3, step))
        for weight, first, evaluated in zip(rows.weights, start, rows.evaluated(), strict=True):
            for now in (weight, evaluated):
                assert (now * first >= -1e-12).all()
                assert (now.abs() <= first.abs() + 1e-12).all()


@pytest.mark.parametrize(
    "rule", [ScheduleFreeSGD(), ScheduleFreeAdamW()], ids=lambda rule: type(rule).__name__
)
def test_the_corner_takes_schedule_free_weights_to_zero_from_anywhere(rule):
    """Where base iterate and average differ, decay at y may take z past zero.

    All that follows shrinks.
    """
    rows = Rows(rule, rates(0.1, "changing")).run()
    zeros = [torch.zeros_like(weight) for weight in rows.weights]
    before = max(
        max(w.abs().max(), s["z"].abs().max())
        for w, s in zip(rows.weights, rows.states, strict=True)
    )
    for step in range(60):
        lr, decay = rows.column([1.0] * 3), rows.column([1e4] * 3)
        rows.rule.update(
            rows.weights, zeros, rows.states, same([lr] * 2, [decay] * 2), np.full(3, 16 + step)
        )
        assert max(weight.abs().max() for weight in rows.weights) <= 2 * before
    assert max(weight.abs().max() for weight in rows.weights) < 1e-2 * before


@pytest.mark.parametrize(("lr", "decay", "first"), [(0.5, 1.5, 3), (0.1, 1.0, 16), (0.1, 0.1, 153)])
@pytest.mark.parametrize(
    "rule", [ScheduleFreeSGD(), ScheduleFreeAdamW()], ids=lambda rule: type(rule).__name__
)
def test_schedule_free_decay_flips_a_sign_where_the_package_does_and_shrinks(
    rule, lr, decay, first
):
    """With a gradient of zero, rate 0.5 and decay 1.5, y and z are 1/4 of the start after a step.

    The numbers are computed by hand.
    """
    rows = Rows(rule, rates(1.0, "constant"))
    start = [weight.clone() for weight in rows.weights]
    zeros = [torch.zeros_like(weight) for weight in rows.weights]
    theirs = torch.ones((), dtype=torch.float64, requires_grad=True)
    package = schedulefree.SGDScheduleFree(
        [theirs], lr=lr, momentum=rule.momentum, weight_decay=decay
    )
    package.train()
    scale = [rows.column([lr] * 3)] * 2, [rows.column([decay] * 3)] * 2
    for step in range(1, first + 1):
        theirs.grad = torch.zeros_like(theirs)
        package.step()
        rows.rule.update(rows.weights, zeros, rows.states, same(*scale), np.full(3, step - 1))
        for weight, begin, state in zip(rows.weights, start, rows.states, strict=True):
            torch.testing.assert_close(weight, begin * theirs.item(), rtol=1e-6, atol=1e-9)
            torch.testing.assert_close(
                state["z"], begin * package.state[theirs]["z"].item(), rtol=1e-6, atol=1e-9
            )
            assert (weight.abs() < begin.abs()).all() and (state["z"].abs() < begin.abs()).all()
            assert (state["z"] * begin < 0).all() == (step == first)
            if step == 1 and decay == 1.5:
                torch.testing.assert_close(weight, begin / 4)


def test_muon_refuses_what_is_no_matrix():
    for rule in (Muon(), NanochatMuon()):
        with pytest.raises(ValueError, match=r"must be matrices; got one of shape \(5,\)"):
            rule.init(torch.zeros(2, 5))


def test_an_unknown_optimizer_is_named_with_what_is_accepted():
    with pytest.raises(ValueError, match=r"unknown optimizer 'adma'.*'adamw_muon'"):
        optimizer_rules("adma")


def test_every_optimizer_has_a_rule_for_every_kind_of_parameter():
    for rules in OPTIMIZERS.values():
        assert set(rules) == {"embedding", "unembedding", "scalar", "matrix"}


def test_moving_betas_by_hand():
    """Over three steps the corrected moments are weighted means of all gradients so far.

    The weights sum to one.
    """
    rule, weight = (
        AdamW(beta1=0.9, beta2=0.8, eps=1e-3),
        torch.tensor([[2.0], [-3.0]], dtype=torch.float64),
    )
    state, seen = rule.init(weight), [[1.0, -2.0], [3.0, 0.5], [-4.0, 6.0]]
    new1 = np.array([[0.1 * 5, 0.1 * 0.1, 0.1 * 2], [0.1, 0.1, 0.1]])  # row 1 stays: beta^t
    new2 = np.array(
        [[0.2 * 0.1, 0.2 * 5, 0.2 * 3], [0.2, 0.2, 0.2]]
    )  # at 0.2 * 5 there is no memory left
    eps, expected = np.array([[10.0, 0.1, 1.0], [1.0, 1.0, 1.0]]), weight.numpy().copy()[:, 0]
    for t, gradient in enumerate(seen):
        column = [
            torch.as_tensor(v)
            for v in (new1[:, t : t + 1] / 0.1, new2[:, t : t + 1] / 0.2, eps[:, t : t + 1])
        ]
        lr, decay = (
            torch.full((2, 1), 0.5, dtype=torch.float64),
            torch.full((2, 1), 0.1, dtype=torch.float64),
        )
        g = torch.tensor(gradient, dtype=torch.float64)[:, None]
        rule.update([weight], [g], [state], Rates(lr, decay, *column), np.full(2, t))
        for row in range(2):
            shares1, shares2 = (
                np.array([new[row, i] * np.prod(1 - new[row, i + 1 : t + 1]) for i in range(t + 1)])
                for new in (new1, new2)
            )
            gs = np.array(seen)[: t + 1, row]
            m, v = shares1 / shares1.sum() @ gs, shares2 / shares2.sum() @ gs**2
            assert (shares1 / shares1.sum()).sum() == pytest.approx(1) and abs(m) <= abs(gs).max()
            product1, product2 = (
                1 - state["beta1_product"][row].item(),
                1 - state["beta2_product"][row].item(),
            )
            assert (shares1.sum(), shares2.sum()) == pytest.approx((product1, product2))
            assert state["momentum"][row, 0].item() / product1 == pytest.approx(m)
            assert state["second_moment"][row, 0].item() / product2 == pytest.approx(v)
            expected[row] = expected[row] * (1 - 0.5 * 0.1) - 0.5 * m / (
                math.sqrt(v) + 1e-3 * eps[row, t]
            )
        assert weight[:, 0].tolist() == pytest.approx(expected.tolist())


@pytest.mark.parametrize("multiplier", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("field", ["beta1", "beta2", "eps"])
@pytest.mark.parametrize(
    "rule",
    sorted(
        {rule for rules in OPTIMIZERS.values() for rule in rules.values() if type(rule) is AdamW},
        key=repr,
    ),
)
def test_the_ends_of_a_constant_keep_every_adamw_a_mean_of_what_it_saw(rule, field, multiplier):
    """1 - beta beyond 1 would leave the second moment negative.

    The bounds of the channels have to fit every rule.
    """
    assert CHANNELS["beta1"].bounds == CHANNELS["beta2"].bounds == (0.1, 5.0)
    weight = torch.zeros(1, 1)
    state, one = rule.init(weight), torch.ones(1, 1, dtype=torch.float64)
    rates = Rates.of(one * 1e-3, one * 0)._replace(**{field: one * multiplier})
    for step in range(60):
        g = torch.full((1, 1), 3.0 if step % 7 == 0 else 0.01)
        rule.update([weight], [g], [state], rates, np.array([step]))
        assert (
            0 <= state["second_moment"].item() <= 9.0001 and abs(state["momentum"].item()) <= 3.0001
        )
        assert abs(weight.item()) <= 60 * 1e-3 * 3.0 / 0.01, (
            "more than every step at the largest over the smallest"
        )


def test_the_products_of_the_betas_are_those_of_every_tensor_and_row():
    rule, weights = AdamW(), [torch.ones(2, 1, 1), torch.ones(2, 1, 1)]
    states, one = [rule.init(w) for w in weights], torch.ones(2, 2, dtype=torch.float64)
    rates = Rates.of(one, one)._replace(
        beta1=torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
    )
    for step in range(2):
        rule.update(weights, [torch.ones(2, 1, 1)] * 2, states, rates, np.full(2, step))
    products = torch.stack([state["beta1_product"] for state in states], 1)
    assert products.numpy() == pytest.approx(np.array([[0.9, 0.8], [0.7, 0.6]]) ** 2)
