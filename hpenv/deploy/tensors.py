"""Norms and cosines of lists of tensors, and numbers of steps that a GradScaler may skip.

Nothing here waits for a device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

#: Gradients of every group. None: the parameter has none.
Gradients = Sequence[Sequence[Tensor | None]]


def wide(value: Tensor) -> Tensor:
    """Returns a number as float64, or as float32 on a device without that."""
    return value.to(torch.float32 if value.device.type == "mps" else torch.float64)


def norm(tensors: Sequence[Tensor]) -> Tensor:
    """Returns the L2 norm of all tensors together."""
    dense = [t.coalesce().values() if t.is_sparse else t for t in tensors]
    return wide(get_total_norm(dense))


def stack(values: Sequence[Tensor]) -> Tensor:
    """Returns numbers of several devices as one tensor, on the first device."""
    return torch.stack([value.to(values[0].device) for value in values])


def where(keep: Tensor, value: Tensor, other: Tensor | float) -> Tensor:
    """Returns a value, or another one for a step that is skipped, on the device of `keep`."""
    other = other.to(keep.device) if isinstance(other, Tensor) else other
    return torch.where(keep > 0, value.to(keep.device), other)


def cosines(first: Gradients, second: Gradients) -> Tensor:
    """Returns the cosine of two lists of tensors in every group, (G,)."""
    return stack([_cosine(*pair) for pair in zip(first, second, strict=True)])


def _cosine(first: Sequence[Tensor | None], second: Sequence[Tensor | None]) -> Tensor:
    """Returns the cosine of two lists of tensors. A tensor that is missing counts as 0."""
    size = norm([a for a in first if a is not None]) * norm([b for b in second if b is not None])
    products = [
        wide((a * b).sum()).to(size.device)
        for a, b in zip(first, second, strict=True)
        if a is not None and b is not None
    ]
    total = torch.stack(products).sum() if products else torch.zeros_like(size)
    return (total / size.clamp(min=1e-30)).clamp(-1.0, 1.0)


def kept_gradients(gradients: Gradients, old: Gradients, keep: Tensor | None) -> Gradients:
    """Returns copies of the gradients of a step, or the old ones, or 0, if the step is skipped."""
    if keep is None:
        return [[None if g is None else g.detach().clone() for g in group] for group in gradients]
    olds = old or [[None] * len(group) for group in gradients]
    return [
        [None if g is None else _choice(keep, g.detach(), o) for g, o in zip(*pair, strict=True)]
        for pair in zip(gradients, olds, strict=True)
    ]


def _choice(keep: Tensor, gradient: Tensor, old: Tensor | None) -> Tensor:
    kept = torch.zeros_like(gradient) if old is None else old
    return torch.where(keep.to(gradient.device) > 0, gradient, kept)
