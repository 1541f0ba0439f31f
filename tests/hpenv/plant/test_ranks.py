"""Tests of the ranks of a program: shares, and weights that differ."""

import numpy as np
import pytest

from hpenv.plant.ranks import RankError, Ranks
from hpenv.pretraining.divide import divide
from tests.hpenv.pretraining.small_plants import advance, make
from tests.two_ranks import two_ranks


def test_shares_are_equal_parts_in_the_order_of_the_batch():
    starts = np.arange(12).reshape(2, 6)
    shares = [Ranks(rank, 3).share(starts) for rank in range(3)]
    assert shares[1].tolist() == [[2, 3], [8, 9]]
    assert np.array_equal(np.concatenate(shares, 1), starts)


def test_other_weights_on_one_rank_are_an_error(tmp_path):
    plant = make()
    with two_ranks(tmp_path, code=1) as ranks:
        divide(plant, ranks)
        advance(plant, 1)
        other = make(seeds=[5])
        ranks.tell("restore", other.snapshot())
        with pytest.raises(RankError, match="must be equal on all ranks, bit for bit"):
            advance(plant, 1)
