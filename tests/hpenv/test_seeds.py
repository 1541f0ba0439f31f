"""Seeds and groups of rows."""

import numpy as np
import pytest

from tests.hpenv.closed_form import make, single, still


def test_rows_are_seeded_one_by_one():
    env = make(4)
    env.reset(seed=20)
    counted = list(env.plant.seeds)
    assert len(set(counted)) == 4
    env.reset(seed=[23, 22, 21, 20])
    assert env.plant.seeds == counted[::-1]
    for row in range(4):
        alone = single()
        alone.reset(seed=20 + row)
        assert alone.plant.seeds == [counted[row]]


def test_a_reset_without_seed_goes_on_with_new_runs():
    env, twin, unseeded, other = make(2), make(2), make(2), make(2)
    runs = []
    for each in (env, twin):
        each.reset(seed=1)
        runs.append(
            [each.plant.seeds[:], *(each.reset() and each.plant.seeds[:] for _ in range(2))]
        )
    assert runs[0] == runs[1] and len({seed for pair in runs[0] for seed in pair}) == 6
    for each in (unseeded, other):
        each.reset()
    assert len({*unseeded.plant.seeds, *other.plant.seeds}) == 4


def test_grouped_rows_stay_one_run_however_they_are_seeded():
    env = make(3, seed_mode="grouped")
    env.reset(seed=0)
    for seed in ([None, 2, None], [4, 5, 6], 4):
        env.reset(seed=seed)
        assert len(set(env.plant.seeds)) == 1
    first = env.plant.seeds[0]
    env.reset(seed=[4, 5, 6])  # the first that is given is that of all
    assert list(env.plant.seeds) == [first] * 3
    env.reset(seed=7, options={"reset_mask": np.array([True, False, False])})
    first = env.plant.seeds[0]
    env.reset(options={"reset_mask": np.array([False, True, True])})
    assert list(env.plant.seeds) == [first] * 3


def test_seeds_may_be_an_array():
    env, twin = make(2), make(2)
    env.reset(seed=np.array([4, 9]))
    twin.reset(seed=[4, 9])
    assert list(env.plant.seeds) == list(twin.plant.seeds)


@pytest.mark.parametrize("seed", [1.5, "a", -1, [0, 1.5], [0, -1]])
def test_seeds_that_are_no_whole_numbers_are_refused(seed):
    with pytest.raises(ValueError, match=r"seed must be a whole number of at least 0, .*; got"):
        make(2).reset(seed=seed)


def test_grouped_rows_are_one_run_and_every_episode_another():
    env = make(3, seed_mode="grouped")
    seeds = []
    for seed in (5, None, None):
        env.reset(seed=seed)
        assert len(set(env.plant.seeds)) == 1
        seeds.append(env.plant.seeds[0])
    assert len(set(seeds)) == 3
    obs, rewards, _, _, infos = env.step(still(env))
    assert len(set(rewards)) == len(set(infos["probe_loss"])) == 1 and (obs == obs[0]).all()
