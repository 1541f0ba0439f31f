"""Directions and gradients of a few numbers."""

import torch

N, RANKS = 3, {"q": 16, "up": 24}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def full(value, rows=N):
    return torch.full((rows,), float(value))


# One run, one module, r = 3. One axis, (0.6, 0.8, 0): g = (3, 1, 2) has c = 2.6 and -g has -2.6.
# Two axes, the first and the second coordinate: g has c = (3, 1), and (-3, 1, 2) has c = (-3, 1).
ONE = torch.tensor([[[0.6, 0.8, 0.0]]])
TWO = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]])
