"""Properties of every optimizer's rule."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from hpenv.optim.adamw import SGD, AdamW
from hpenv.optim.muon import Muon, NanochatMuon
from hpenv.optim.optimizers import OPTIMIZERS, optimizer_rules
from hpenv.optim.parameter_free import DAdaptAdamW, Prodigy
from hpenv.optim.schedule_free import ScheduleFreeAdamW, ScheduleFreeSGD
from tests.hpenv.optim.references import RULES, Rows, rates, same


def test_every_rule_of_the_table_has_a_reference_here_or_in_test_parameter_free():
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


def test_an_unknown_optimizer_is_named_with_what_is_accepted():
    with pytest.raises(ValueError, match=r"unknown optimizer 'adma'.*'adamw_muon'"):
        optimizer_rules("adma")


def test_every_optimizer_has_a_rule_for_every_kind_of_parameter():
    for rules in OPTIMIZERS.values():
        assert set(rules) == {"embedding", "unembedding", "scalar", "matrix"}
