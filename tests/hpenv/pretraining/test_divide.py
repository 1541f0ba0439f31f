"""Tests of runs whose batches two processes share: equality with one, snapshots, refusals."""

import numpy as np
import pytest
import torch

from hpenv.env import TrainLoopVectorEnv
from hpenv.plant.measurements import groups_of
from hpenv.plant.ranks import ALONE, Ranks
from hpenv.pretraining.divide import divide
from hpenv.pretraining.measurements import MEASUREMENTS
from tests import fake_plant
from tests.hpenv.pretraining.small_plants import RUN, advance, assert_same, make, state_of
from tests.two_ranks import two_ranks

#: Largest |difference| of the weights / |change of the weights| since the start, over 20 steps.
WEIGHTS = 1e-4
#: Largest difference of a loss [nats per token], and of every other measurement but the gains,
#: relative to its largest value.
LOSS, OTHER = 1e-5, 1e-5
#: Largest difference of a gain, which is a quotient of two small differences of losses.
GAIN = 1e-2
GAINS = ("update_gain", "probe_gain")
CHANNELS = (
    ("lr", "layer"),
    ("dropout", "layer"),
    ("attention_gain", "layer"),
    ("grad_clip", "run"),
    ("grad_noise", "run"),
    ("grad_skip", "layer"),
    ("weight_noise", "run"),
)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    with two_ranks(tmp_path_factory.mktemp("ranks")) as opened:
        yield opened


def distance(left, right):
    """The L2 norm of the difference of all weights of two states."""
    names = [name for name in left if name.startswith("weights/")]
    return float(torch.cat([(left[n] - right[n]).flatten() for n in names]).norm())


def assert_close(one, two):
    for name, value in one.arrays().items():
        other = two.arrays()[name]
        if name in GAINS:
            bound = GAIN
        elif name.endswith("loss"):
            bound = LOSS
        else:
            bound = OTHER * max(1e-30, float(np.abs(value).max(initial=0.0)))
        assert np.allclose(value, other, rtol=0.0, atol=bound), name


@pytest.mark.parametrize(
    ("optimizer", "base_lr", "channels"),
    [("adamw_muon", 1e-2, CHANNELS), ("adamw", 1e-3, RUN), ("sgd", 1e-2, RUN)],
)
def test_two_ranks_train_and_measure_as_one(ranks, optimizer, base_lr, channels):
    config = {"optimizer": optimizer, "base_lr": base_lr, "num_probe_batches": 1}
    one, two = (make(2, None, channels, **config) for _ in range(2))
    for plant in (one, two):
        plant.set_measured_groups(groups_of(MEASUREMENTS))
    start = state_of(one)
    divide(two, ranks)
    for plant in (one, two):
        plant.panel.positions[:] = 0.3
    assert two.ranks is ranks
    for _ in range(2):
        assert_close(advance(one, 10, 7), advance(two, 10, 7))
    moved = distance(state_of(one), start)
    assert moved > 1e-3 and distance(state_of(one), state_of(two)) < WEIGHTS * moved
    assert (two.steps == [20, 14]).all()


def test_a_snapshot_of_two_ranks_continues_in_one_and_the_other_way_round(ranks):
    two, one, again = make(), make(seeds=[7]), make(seeds=[8])
    divide(two, ranks)
    advance(two, 5)
    one.restore(two.snapshot())
    assert_same(state_of(one), state_of(two))
    assert_close(advance(one, 5), advance(two, 5))
    assert distance(state_of(one), state_of(two)) < 1e-4

    divide(again, ranks)
    again.restore(one.snapshot())
    assert_same(state_of(one), state_of(again))
    assert_close(advance(one, 5), advance(again, 5))


def test_an_env_of_two_ranks_starts_new_episodes_as_that_of_one(ranks):
    def rewards(divided):
        plant = make(2)
        env = TrainLoopVectorEnv(plant, interval=2, num_steps=4)
        divide(plant, ranks if divided else ALONE)
        env.reset(seed=3)
        steps = [env.step(np.full((2, 2), 0.5, np.float32))[1] for _ in range(5)]
        return np.stack([*steps, env.evaluate()])

    assert np.allclose(rewards(True), rewards(False), rtol=0.0, atol=1e-4)


def test_the_plant_that_was_divided_before_goes_on_alone(ranks):
    first, second, alone = make(), make(), make()
    divide(first, ranks)
    divide(second, ranks)
    assert first.ranks is ALONE and second.ranks is ranks
    advance(first, 3)
    advance(alone, 3)
    assert_same(state_of(first), state_of(alone))


def test_one_rank_divides_nothing():
    plant = make()
    divide(plant, ALONE)
    starts, tensors = np.arange(8).reshape(2, 4), [torch.ones(2)]
    assert plant.ranks is ALONE
    assert ALONE.share(starts).tolist() == starts.tolist()
    assert ALONE.average(tensors)[0] is tensors[0]


@pytest.mark.parametrize(
    ("changes", "groups", "message"),
    [
        ({"batch_tokens": 80}, (), "must be a multiple of 32: .* got 80, which are 5 sequences"),
        ({"device": "meta"}, (), r"device must be one of \['cpu', 'cuda'\] .* got 'meta'"),
        (
            {"batch_tokens": 112, "sequence_length": 8},
            ("activations",),
            "a multiple of 3 .* got 56 for 2",
        ),
    ],
)
def test_what_cannot_be_divided_is_refused_by_name(changes, groups, message, monkeypatch):
    monkeypatch.setattr("hpenv.pretraining.plant.find_device", lambda _: torch.device("cpu"))
    plant = make(**changes)
    plant.set_measured_groups(groups)
    with pytest.raises(ValueError, match=message):
        divide(plant, Ranks(0, 2))
    assert plant.ranks is ALONE


def test_a_plant_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="only runs of pretraining"):
        divide(fake_plant.FakePlant(1), Ranks(0, 2))
