"""Places of tensors in a flat buffer, and blocks that cover each of them once."""

import numpy as np
import pytest
import torch

from hpenv.optim.fused.layout import ALIGNMENT, BLOCK, Layout
from tests.hpenv.optim.fused.arenas import MATRICES, SHAPES


@pytest.mark.parametrize("num_runs", [1, 3])
def test_blocks_cover_every_entry_once_and_no_other(num_runs):
    layout = Layout(SHAPES, num_runs)
    owners = torch.full((layout.size,), -1.0)
    for block in range(layout.num_blocks):
        start, size = layout.block_starts[block], layout.block_sizes[block]
        assert 0 < size <= BLOCK and start % ALIGNMENT == 0
        assert (owners[start : start + size] == -1).all()
        owners[start : start + size] = float(layout.block_segments[block])
    for k, view in enumerate(layout.views(owners).values()):
        assert view.shape == (num_runs, *layout.shapes[k])
        for run in range(num_runs):
            assert (view[run] == run * layout.num_tensors + k).all()
    assert (owners >= 0).sum() == sum(int(np.prod(s)) for s in SHAPES.values()) * num_runs


def test_blocks_of_a_segment_are_neighbors():
    layout = Layout(SHAPES, 2)
    for segment, (first, count) in enumerate(
        zip(layout.first_blocks, layout.block_counts, strict=True)
    ):
        assert np.flatnonzero(layout.block_segments == segment).tolist() == [
            *range(first, first + count)
        ]
    assert layout.block_counts.max() == 3 and layout.block_counts.min() == 0


def test_stacks_hold_every_matrix_once():
    layout = Layout(MATRICES, 2)
    flat = layout.empty()
    stacks = layout.stacks(flat)
    assert sorted(tuple(stack.shape) for stack in stacks) == [
        (2, 1, 1), (2, 4, 11), (2, 16, 16), (4, 9, 5),
    ]  # fmt: skip
    for stack in stacks:
        stack.add_(1.0)
    assert all((view == 1.0).all() for view in layout.views(flat).values())
    assert flat.sum() == sum(int(np.prod(s)) for s in MATRICES.values()) * 2


def test_views_keep_the_order_of_the_entries():
    layout = Layout({"a": (2, 3)}, 2)
    flat = torch.arange(float(layout.size))
    assert layout.views(flat)["a"][1].tolist() == [[16.0, 17.0, 18.0], [19.0, 20.0, 21.0]]


def test_a_layout_without_tensors_or_runs_is_refused():
    with pytest.raises(ValueError, match="at least one tensor"):
        Layout({}, 1)
    with pytest.raises(ValueError, match="num_runs must be a whole number"):
        Layout({"a": (1,)}, 0)
