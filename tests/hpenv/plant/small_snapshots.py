"""Snapshots of a few numbers."""

import torch

from hpenv.plant.protocol import Snapshot
from hpenv.plant.snapshots import FILES, MANIFEST

EVERY_FILE = (*FILES, MANIFEST)


def example(value=1.0):
    """A snapshot that differs from `example` of another value.

    Its tensors and its metadata differ.
    """
    return Snapshot(
        {"w": torch.full((2, 3), value), "step": torch.tensor(7)},
        {"value": value, "names": ["a", "b"]},
    )


def same_bits(a, b):
    return (
        a.dtype == b.dtype
        and a.shape == b.shape
        and torch.equal(
            a.contiguous().flatten().view(torch.uint8), b.contiguous().flatten().view(torch.uint8)
        )
    )


def value_of(snapshot):
    """Name of an example.

    Fails if it is a mixture of two.
    """
    value = snapshot.metadata["value"]
    assert same_bits(snapshot.tensors["w"], torch.full((2, 3), value))
    return value
