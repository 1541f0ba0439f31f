"""Baselines, exact at every step."""

import itertools
import json
import math

import numpy as np
import pytest

from baselines.run import SWEEPS, configurations
from baselines.schedules import (
    BASELINES,
    HAND_TUNED,
    constant_multipliers,
    nanochat_rates,
    schedule_free_configurations,
)
from baselines.sweeps import ENV
from hpenv.benchmark.evaluate import evaluate_controller
from hpenv.pretraining.plant import PretrainingPlant
from hpenv.pretraining.steps import tensors_of_rules

GROUPS = ("embedding", "unembedding", "matrix")
T = 23  # steps of the fixture `tiny`
UNIFORM = dict.fromkeys(GROUPS, 1e-3), dict.fromkeys(GROUPS, 1e-2)
NANOCHAT_LR = {
    "embedding": 0.3 * math.sqrt(12),
    "unembedding": 0.004 * math.sqrt(12),
    "matrix": 0.02,
}
NANOCHAT_DECAY = {"embedding": 0.0, "unembedding": 0.0, "matrix": 0.2}


def flat(t):
    return 1.0


def warmdown(t, steps=9):  # 40 % of 23 is 9.2
    return min(1.0, (T - t) / steps)


def half_cosine(t):
    return (1 + math.cos(math.pi * t / T)) / 2


def stable_decay(t):  # 2 % of 23 is no warmup, 20 % is 4.6
    return warmdown(t, 5)


def tuned():
    rates = json.loads(HAND_TUNED.read_text())["rates"]
    return rates["base_lr"], rates["base_weight_decay"]


def expected_of(name):
    """Returns base rates and schedules per group of learning rate and weight decay, written out."""
    table = {
        "constant": (*UNIFORM, flat),
        "constant_warmdown": (*UNIFORM, warmdown),
        "cosine": (*UNIFORM, half_cosine),
        "wsd": (*UNIFORM, stable_decay),
        "hand_tuned": (*tuned(), warmdown),
        "cosine_tuned": (*tuned(), half_cosine),
        "wsd_tuned": (*tuned(), stable_decay),
        "nanochat": (NANOCHAT_LR, NANOCHAT_DECAY, warmdown),
        "nanochat_warmdown": (NANOCHAT_LR, NANOCHAT_DECAY, warmdown),
    }
    if name in table:
        lr, decay, schedule = table[name]
        return (
            lr,
            dict.fromkeys(GROUPS, schedule),
            decay,
            (lambda t: (T - t) / T) if name == "nanochat" else flat,
        )
    sweep, member = name.split("/")
    if sweep == "constant_multipliers":
        factor, _, suffix = member.partition("_")
        base = 10 ** (
            round(3 * math.log10(float(factor[1:]))) / 3 - 3
        )  # the name is rounded, the grid is thirds of a decade
        schedule = warmdown if suffix else flat
        return dict.fromkeys(GROUPS, base), dict.fromkeys(GROUPS, schedule), UNIFORM[1], flat
    lr, decay, warmup = (float(part.lstrip("lrwdamup")) for part in member.split("_"))
    length = round(warmup * T / 561)
    ramp = flat if length == 0 else lambda t: min(1.0, (t + 1) / length)
    free = ("embedding", "unembedding")
    return (
        dict.fromkeys(free, lr) | {"matrix": 0.02},
        dict.fromkeys(free, ramp) | {"matrix": warmdown},
        dict.fromkeys(free, decay) | {"matrix": 0.2},
        flat,
    )


ALL = configurations([*BASELINES, *SWEEPS], T)


@pytest.fixture
def used(monkeypatch):
    """Returns every rate that an optimizer gets: (tensor's name, row, step) -> (rate, decay)."""
    record = {}
    update = PretrainingPlant._update

    def recording(self, gradients, rates, moving):
        members = tensors_of_rules(self._groups, self._rules)
        for rule, table in rates.items():
            names = enumerate(members[rule])
            for (k, name), row in itertools.product(names, np.flatnonzero(moving)):
                numbers = (table.lr[row, k].item(), table.weight_decay[row, k].item())
                record[name, int(row), int(self.steps[row])] = numbers
        update(self, gradients, rates, moving)

    monkeypatch.setattr(PretrainingPlant, "_update", recording)
    return record


@pytest.mark.parametrize("name", ALL)
def test_a_baseline_is_its_closed_form_at_every_step_in_every_group(name, tiny, used):
    small = tiny | {
        "batch_tokens": 16,
        "eval_tokens": 64,
    }  # the test looks at the rates, not at the runs
    rows = evaluate_controller(None, ENV, small | ALL[name], [3])
    groups = {tensor: tensor if tensor in GROUPS else "matrix" for tensor, _, _ in used}
    assert set(groups.values()) == set(GROUPS)
    lr, schedule, decay, decay_schedule = expected_of(name)
    for i, row in enumerate(rows):
        steps = {step for tensor, r, step in used if r == i}
        assert steps == set(range(row["steps"][-1]))
        assert row["divergence_reason"] is not None or len(steps) == T
        assert all(set(values) == {1.0} for values in row["panel"].values())
    for (tensor, _, step), (rate, wd) in used.items():
        group = groups[tensor]
        assert rate == pytest.approx(lr[group] * schedule[group](step), rel=1e-6, abs=1e-12), (
            tensor,
            step,
        )
        assert wd == pytest.approx(decay[group] * decay_schedule(step), rel=1e-6, abs=1e-12), (
            tensor,
            step,
        )


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_says_what_it_is_and_where_it_comes_from(name):
    baseline = BASELINES[name](T)
    assert baseline.name == name and baseline.source and baseline.doc
    assert set(baseline.env_kwargs) >= {"base_lr", "base_weight_decay", "schedule"}


def test_no_two_baselines_are_the_same():
    texts = [
        repr(sorted(kwargs.items()))
        for kwargs in configurations([*BASELINES, *SWEEPS], 561).values()
    ]
    assert len(set(texts)) == len(texts) == len(BASELINES) + 14 + 16


def test_nanochats_rates_are_the_papers_at_its_size():
    rates = nanochat_rates("jel-73m")
    assert rates["base_lr"] == pytest.approx(
        {"embedding": 0.424264, "unembedding": 0.0056569, "scalar": 0.005, "matrix": 0.02}, rel=1e-4
    )
    assert rates["base_weight_decay"] == {
        "embedding": 0,
        "unembedding": 0,
        "scalar": 0,
        "matrix": pytest.approx(0.8),
    }


def test_the_schedule_free_sweep_is_table_3():
    for reading, optimizer in (
        ("sgd", "schedule_free_sgd_muon"),
        ("adamw", "schedule_free_adamw_muon"),
    ):
        found = schedule_free_configurations(reading, 561)
        assert {kwargs["optimizer"] for kwargs in found.values()} == {optimizer}
        assert [
            (k["base_lr"]["embedding"], k["base_weight_decay"]["unembedding"],
             k["schedule"]["embedding"].warmup_steps)
            for k in found.values()
        ] == [(0.5, 0, 0), (0.5, 0.01, 0), (1, 0, 0), (1, 0.01, 0), (2, 0, 0), (2, 0.01, 0),
              (1, 0.01, 100),
              (1, 0.01, 300)]  # fmt: skip
    assert set(
        schedule_free_configurations("sgd", 561, "jel-73m")["lr2_wd0_warmup0"]["base_lr"]
    ) == {*GROUPS, "scalar"}
    with pytest.raises(ValueError, match=r"reading must be one of .*'sgd'.*got 'adam'"):
        schedule_free_configurations("adam", 561)


def test_the_multipliers_are_a_log_grid_of_the_base():
    rates = sorted({kwargs["base_lr"] for kwargs in constant_multipliers(561).values()})
    assert rates[0] == pytest.approx(1e-3) and rates[-1] == pytest.approx(0.1)
    assert np.diff(np.log(rates)) == pytest.approx(np.full(6, math.log(100) / 6))


def test_an_unknown_baseline_is_named_with_what_is_accepted():
    with pytest.raises(ValueError, match=r"baselines must be of .*'constant_warmdown'.*got 'best'"):
        configurations(["best"], 561)
