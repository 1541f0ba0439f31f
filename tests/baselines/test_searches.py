"""Searches of equal size: on bowls with a known optimum, and schedules as they are trained."""

import importlib.util
import math
import random

import numpy as np
import pytest

from baselines.methods import BOUNDS, FIELD, FIRST_LR, NUM_KNOTS
from baselines.searches import CMA_ROWS, NUM_POINTS, RUNS, SEARCHES, TUNING_SEEDS
from baselines.sweeps import CMAStrategy
from baselines.trials import DIVERGED, Parts, Trials, point_at, tuning_loss, tuning_seeds
from hpenv.benchmark.instances import Instance
from hpenv.optim.schedule_forms import schedule_of
from tests.hpenv.benchmark.tiny_suite import JEL, TINY, tiny_suite

INSTANCE = tiny_suite().test[0]
START = FIELD["random_schedule"].start
#: Half a decade above the start at first, and more than a decade below it at the end.
OPTIMUM = dict(zip(START, (0.03, 0.03, 0.02, 0.0006), strict=True))
SAMPLERS = [
    pytest.param(name, marks=pytest.mark.skipif(not found, reason=f"needs {package}"))
    for name, package in (("random", "random"), ("cma", "cma"), ("tpe", "optuna"))
    for found in [importlib.util.find_spec(package)]
]


def bowl(point):
    """Mean squared distance from the optimum [decades^2]."""
    return float(np.mean([math.log10(point[name] / OPTIMUM[name]) ** 2 for name in OPTIMUM]))


def find(name, loss=bowl, seed=3):
    return SEARCHES[name].find(loss, START, BOUNDS, RUNS // SEARCHES[name].seeds, seed)


def test_every_search_has_the_same_number_of_runs():
    assert RUNS == NUM_POINTS * TUNING_SEEDS == 16
    assert {each.search for each in FIELD.values()} == set(SEARCHES)
    assert all(RUNS % kind.seeds == 0 for kind in SEARCHES.values())


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_spends_its_points_within_the_bounds_and_comes_nearer(name):
    ends, firsts, nearest = [], [], []
    for seed in range(12):
        best, table, facts = find(name, seed=seed)
        assert len(table) == RUNS and facts == {}
        assert all(set(point) == set(START) for point, _ in table)
        low, high = BOUNDS
        for point, score in table:
            assert score == bowl(point)
            assert all(low <= rate <= high for rate in point.values())
        assert bowl(best) == min(score for _, score in table)
        ends.append(bowl(best))
        firsts.append(table[0][1])
        nearest.append(min(score for _, score in table[:CMA_ROWS]))
    assert np.mean(ends) < 0.5 * np.mean(firsts)
    assert np.mean(ends) < np.mean(nearest)


@pytest.mark.parametrize("name", ["cma", "tpe"])
def test_a_sampler_that_learns_ends_below_random_points(name):
    if importlib.util.find_spec(SEARCHES[name].package) is None:
        pytest.skip(f"needs {SEARCHES[name].package}")
    seeds = range(12)
    learned = np.mean([bowl(find(name, seed=seed).best) for seed in seeds])
    assert learned < np.mean([bowl(find("random", seed=seed).best) for seed in seeds])


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_is_a_function_of_its_seed_and_touches_no_global_generator(name):
    before = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    first = find(name)
    random.random()
    again, other = find(name), find(name, seed=4)
    assert first == again
    assert first.table != other.table
    random.setstate(before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002


def test_a_loss_of_a_diverged_run_ends_no_search():
    def cliff(point):
        return DIVERGED if point["lr/0"] > 0.05 else bowl(point)

    for name in ("random", "cma"):
        assert bowl(find(name, cliff).best) < 1.5


def test_tpe_and_cma_es_begin_at_the_first_rate():
    if importlib.util.find_spec("optuna"):
        assert find("tpe").table[0][0] == pytest.approx(START)
    mean = CMAStrategy(CMA_ROWS, (NUM_KNOTS, 1), 0).best()
    assert point_at(mean, START, BOUNDS) == pytest.approx(START)


def test_positions_are_even_in_the_logarithm():
    found = point_at(np.array([[-1.0], [-0.5], [0.0], [1.0]]), START, (1e-4, 1.0))
    assert list(found.values()) == pytest.approx([1e-4, 1e-3, 1e-2, 1.0])


def test_the_searched_rates_are_those_of_the_schedule_at_every_step():
    point = dict(zip(START, (0.001, 0.04, 0.04, 0.0005), strict=True))
    instance = Instance("ten", JEL, TINY | {"num_steps": 10})  # knots at the steps 0, 3, 6 and 9
    changed = FIELD["random_schedule"].arguments(instance, point)
    rates = changed["base_lr"] * schedule_of("schedule", changed["schedule"], 10)(np.arange(10))
    third, fall = 40.0 ** (1 / 3), 80.0 ** (-1 / 3)
    expected = [0.001, 0.001 * third, 0.001 * third**2, 0.04, 0.04, 0.04, 0.04,
                0.04 * fall, 0.04 * fall**2, 0.0005]  # fmt: skip
    assert rates == pytest.approx(expected, rel=1e-12)


def test_a_lineage_is_constant_within_its_parts():
    point = {"lr/0": 0.01, "lr/1": 0.04, "lr/2": 0.002}
    instance = Instance("seven", JEL, TINY | {"num_steps": 7})  # parts of 3, 3 and 1 steps
    changed = FIELD["pbt"].arguments(instance, point)
    rates = changed["base_lr"] * schedule_of("schedule", changed["schedule"], 7)(np.arange(7))
    assert rates == pytest.approx([0.01] * 3 + [0.04] * 3 + [0.002])


def test_runs_in_parts_end_as_whole_runs_do_and_count_what_they_spend():
    seeds, changed = tuple(tuning_seeds(INSTANCE, 2)), {"base_lr": 0.02, "schedule": "cosine"}
    parts = Parts(INSTANCE, changed, seeds, 3)  # of 8 steps: 3, 3 and 2
    assert parts.count == 3
    spent = [parts.advance() for _ in range(3)]
    assert [fraction for _, fraction in spent] == [2 * 3 / 8, 2 * 6 / 8, 2.0]
    assert spent[-1][0] == tuning_loss(INSTANCE, changed, seeds)


def test_a_copy_of_steered_runs_goes_on_bitwise_and_its_lineage_is_a_schedule():
    baseline, seeds = FIELD["pbt"], tuple(tuning_seeds(INSTANCE, 2))
    loss = Trials(INSTANCE, seeds, baseline.arguments)
    donor, copy = (loss.parts(baseline.start, 4, is_steered=True) for _ in range(2))
    copy.advance(0.01)
    donor.advance(2.0)
    copy.set_state(donor.state())
    ends = [[each.advance(factor) for factor in (4.0, 0.5, 0.1)] for each in (donor, copy)]
    assert ends[0] == ends[1]
    rates = [FIRST_LR * factor for factor in (2.0, 4.0, 0.5, 0.1)]
    lineage = {f"lr/{place}": rate for place, rate in enumerate(rates)}
    assert loss(lineage) == pytest.approx(ends[0][-1][0], abs=1e-5)


def test_runs_that_diverge_in_parts_lose():
    parts = Parts(INSTANCE, {"base_lr": 1e9, "optimizer": "sgd"}, tuning_seeds(INSTANCE, 1), 4)
    assert [parts.advance()[0] for _ in range(4)][-1] == DIVERGED
