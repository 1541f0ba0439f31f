"""Gradients with a direction that is known."""

import torch

RANKS = {"q": 24, "up": 40}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def unit(*shape, seed):
    return torch.nn.functional.normalize(torch.randn(*shape, generator=generator(seed)), dim=-1)


def planted(num_pairs=20, N=2, noise=0.1, signal=1.0, seed=0):
    """Gradients of pairs that differ by `signal` along one axis per run and module.

    The axes (N, r) are returned, too.
    """
    axes = {name: unit(N, r, seed=seed + i) for i, (name, r) in enumerate(RANKS.items())}
    hack, clean = {}, {}
    for i, (name, r) in enumerate(RANKS.items()):
        noises = torch.randn(2, N, num_pairs, r, generator=generator(100 + seed + i)) * noise
        clean[name] = noises[0]
        hack[name] = noises[1] + signal * axes[name][:, None]
    return hack, clean, axes


def alignment(direction, axes):
    """Cosine of the first axis with the planted one, (N, modules)."""
    return torch.stack([(direction.axes[name][:, 0] * axes[name]).sum(1) for name in axes], 1)
