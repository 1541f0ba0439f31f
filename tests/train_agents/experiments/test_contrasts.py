"""Control directions: shuffled labels, and clean programs against clean ones."""

import torch

from hpenv.posttraining.projection.direction import extract
from tests.hpenv.posttraining.projection.planted import RANKS, alignment, generator, planted
from train_agents.experiments.contrasts import clean_against_clean, shuffle_labels


def test_shuffled_labels_leave_nothing_of_the_mean_difference():
    hack, clean, axes = planted(num_pairs=21)
    mixed = shuffle_labels(hack, clean, generator())
    assert mixed[0]["q"].shape == (2, 20, RANKS["q"])
    assert (alignment(extract(*mixed, "mean_difference", 1), axes).abs() < 0.5).all()
    means = [(mixed[0][name] - mixed[1][name]).mean(1).norm(dim=1) for name in RANKS]
    assert all((mean < 0.3).all() for mean in means)  # 1 before


def test_shuffling_swaps_half_of_the_pairs_alike_in_all_modules():
    numbers = torch.arange(8.0)[None, :, None].expand(2, 8, 3)
    hack = {
        "a": numbers + 100,
        "b": numbers + 200,
    }  # a completion's number tells its pair, its hundreds its side
    clean = {"a": numbers, "b": numbers}
    left, right = shuffle_labels(hack, clean, generator())
    for name in hack:
        assert torch.equal(left[name] % 100, right[name] % 100)
        assert ((left[name] >= 100) != (right[name] >= 100)).all()
        assert (left[name][..., 0] >= 100).sum(1).tolist() == [4, 4]
        assert torch.equal((left[name][..., 0] % 100).sort(1).values, numbers[..., 0])
    assert torch.equal(left["a"] >= 100, left["b"] >= 100)
    assert torch.equal(left["a"] % 100, left["b"] % 100)
    assert not torch.equal(left["a"][0], left["a"][1])


def test_clean_against_clean_has_no_hack_in_it():
    _, clean, axes = planted()
    left, right = clean_against_clean(clean, generator())
    for name in RANKS:
        halves = torch.cat([left[name], right[name]], 1)
        assert torch.equal(halves.sort(1).values, clean[name].sort(1).values)
    assert (alignment(extract(left, right, "svd", 2), axes).abs() < 0.7).all()
