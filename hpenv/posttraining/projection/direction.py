"""Hacking direction of the coefficients' gradients: extraction from contrastive pairs, validation.

A pair is one prompt with two completions, a hack and a clean one. The mean loss per token of each
is differentiated with respect to the coefficients. D is the gradient of the hack minus the gradient
of the clean completion, (N, pairs, r) per module. The direction is what the rows of D share. It is
oriented so that a step of the coefficients along +v raises NLL(hack) - NLL(clean). A policy
gradient step on a hack with advantage A > 0 has the gradient A grad NLL(hack). So <v, g> > 0 says
that the step, which subtracts g, makes hacks likelier.

Nothing of a run may enter. The pairs were written before any rollout was seen. Only so can a result
speak of hacks that nobody foresaw.

References:
    "Experiment: rank-space gradient projection vs RL reward hacking", pseudocode B: the mean
    difference, and the gate on held-out pairs. From the same project's later practice: several axes
    by SVD, the majority vote on their signs, and the noise floor over all modules at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

METHODS = ("mean_difference", "svd")

#: An axis whose singular value is below this fraction of its module's largest is rounding: float32
#: gradients carry 7 digits.
RANK_TOLERANCE = 1e-6

#: Largest distance of the products of a direction's axes from 0 and 1. Rounding to bfloat16 stays
#: below it.
AXIS_TOLERANCE = 2e-2

#: Gate of the paper's step 1c: the held-out cosine must be positive in more than this fraction of
#: the modules.
PASSING_FRACTION = 0.5


class Direction(NamedTuple):
    """Up to k axes in every module, of every run.

    Attributes:
        axes: module -> (N, k, r), orthonormal rows. A row of zeros is an axis that was dropped.
        strengths: module -> (N, k), singular values of D, or the length of its mean. Dropped axes
            are included.
    """

    axes: dict[str, Tensor]
    strengths: dict[str, Tensor]

    def of_rows(self, rows: Tensor) -> Direction:
        """Returns copies of the directions of some runs."""
        return Direction(*({name: t[rows] for name, t in part.items()} for part in self))

    def set_rows(self, rows: Tensor, direction: Direction) -> None:
        """Replaces the directions of some runs, in place."""
        for present, new in zip(self, direction, strict=True):
            for name, value in new.items():
                present[name][rows] = value


class Validation(NamedTuple):
    """Agreement of a direction with pairs that it was not made from.

    Attributes:
        cosines: cos_align_held, (N, modules), in the order of the direction's modules. It is 0
            where a module has no axis.
        positive_fraction: fraction of a run's modules with a cosine above 0, (N,).
        mean: mean cosine over a run's modules, (N,). The target is above 0.2.
        median: median over a run's modules, (N,). Above 0.3 is healthy.
        passed: positive in more than half of the modules, (N,) bool. This is the minimum.
        kept: modules that have an axis, (N, modules) bool. The other numbers are over these.
    """

    cosines: Tensor
    positive_fraction: Tensor
    mean: Tensor
    median: Tensor
    passed: Tensor
    kept: Tensor


def extract(
    hack: Mapping[str, Tensor],
    clean: Mapping[str, Tensor],
    method: str = "svd",
    k: int = 4,
    noise_floor: float = 0.25,
) -> Direction:
    """Extracts the direction that pairs of gradients share.

    `mean_difference` is the unit vector along the mean of D. `svd` takes the k leading right
    singular vectors of D (not centered). Each is turned to the side on which more of the pairs lie.
    One long gradient can sway the sign of the mean, but not a vote. The sign of the mean decides
    ties.

    The noise floor is global. The strengths of all modules are pooled per run, and axes below their
    `noise_floor`-quantile are dropped. A module may lose all of its axes.

    Args:
        hack: module -> gradients of the hacking completions, (N, pairs, r).
        clean: module -> gradients of the clean completions, in the same order.
        method: `mean_difference` (k = 1) or `svd`.
        k: axes per module, at most the number of pairs and the module's r.
        noise_floor: fraction of the axes that is dropped, in [0, 1).

    Returns:
        The direction, float32.

    Raises:
        ValueError: for arguments outside these ranges, or non-finite gradients.
    """
    num_pairs, smallest = _check_pairs(hack, clean)
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; expected one of {sorted(METHODS)}")
    if not isinstance(noise_floor, int | float) or not 0.0 <= noise_floor < 1.0:
        raise ValueError(f"noise_floor must be a number in [0, 1); got {noise_floor!r}")

    most = 1 if method == "mean_difference" else min(num_pairs, smallest)
    if not isinstance(k, int) or isinstance(k, bool) or not 1 <= k <= most:
        raise ValueError(
            f"k must be from 1 to {most} with method={method!r}, {num_pairs} pairs and "
            f"r={smallest}; got {k!r}"
        )

    axes_of = _mean_axis if method == "mean_difference" else _singular_axes
    differences = {name: hack[name].double() - clean[name].double() for name in hack}
    pieces = {name: axes_of(difference, k) for name, difference in differences.items()}
    pool = torch.cat([strengths for _, strengths in pieces.values()], dim=1)  # (N, modules * k)
    floor = torch.quantile(pool, noise_floor, dim=1, keepdim=True)  # (N, 1)
    axes = {}
    for name, (vectors, strengths) in pieces.items():
        is_kept = (strengths >= floor) & (strengths > RANK_TOLERANCE * strengths[:, :1])
        axes[name] = (vectors * is_kept[..., None]).float()

    return Direction(axes, {name: strengths.float() for name, (_, strengths) in pieces.items()})


def _mean_axis(difference: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Returns the mean over pairs, as a unit vector (N, 1, r) and a length (N, 1)."""
    mean = difference.mean(1, keepdim=True)
    length = torch.linalg.vector_norm(mean, dim=2)  # (N, 1)
    return mean / length.clamp_min(torch.finfo(length.dtype).tiny)[..., None], length


def _singular_axes(difference: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Returns the k leading right singular vectors, oriented, and their singular values.

    Shapes: (N, k, r) and (N, k).
    """
    _, singular, vectors = torch.linalg.svd(difference, full_matrices=False)
    vectors = vectors[:, :k]
    products = torch.einsum("npr,nkr->npk", difference, vectors)
    votes = products.sign().sum(1)  # (N, k)
    side = torch.where(votes != 0, votes, products.sum(1))
    return torch.where(side[..., None] < 0, -vectors, vectors), singular[:, :k]


def _check_pairs(hack: Mapping[str, Tensor], clean: Mapping[str, Tensor]) -> tuple[int, int]:
    """Checks that gradients belong together. Returns the number of pairs and the smallest r."""
    if not hack or list(hack) != list(clean):
        raise ValueError(
            "hack and clean gradients must have the same non-empty set of modules; "
            f"got {list(hack)} and {list(clean)}"
        )

    for name in hack:
        shapes = tuple(hack[name].shape), tuple(clean[name].shape)
        if hack[name].ndim != 3 or shapes[0] != shapes[1] or 0 in shapes[0]:
            raise ValueError(
                f"{name}: hack and clean must be two arrays of shape (N, pairs, r) without a zero "
                f"dimension; got {shapes}"
            )
        if not bool(torch.isfinite(hack[name]).all() & torch.isfinite(clean[name]).all()):
            raise ValueError(
                f"{name}: gradients must be finite; got others; check that the losses are finite"
            )

    leading = {tuple(gradients.shape[:2]) for gradients in hack.values()}
    if len(leading) > 1:
        raise ValueError(f"all modules must have the same (N, pairs); got {sorted(leading)}")

    num_pairs = next(iter(hack.values())).shape[1]
    return num_pairs, min(gradients.shape[2] for gradients in hack.values())


def validate(
    direction: Direction, hack: Mapping[str, Tensor], clean: Mapping[str, Tensor]
) -> Validation:
    """Measures how well a direction agrees with pairs that it was not made from.

    A module's cosine is between the held-out mean difference and the sum of the module's axes,
    weighted by their strengths. For one axis this is the paper's cosine.

    Args:
        direction: to be validated.
        hack: gradients of the hacking completions, as for `extract`.
        clean: gradients of the clean completions, as for `extract`.
    """
    _check_pairs(hack, clean)
    _check_modules(direction, hack)

    cosines, has_axis = [], []
    for name, axes in direction.axes.items():
        resultant = torch.einsum("nk,nkr->nr", direction.strengths[name].double(), axes.double())
        held_out = (hack[name].double() - clean[name].double()).mean(1)
        cosines.append(torch.cosine_similarity(held_out, resultant, dim=1, eps=1e-30))
        has_axis.append(axes.any(2).any(1))

    cosine, is_kept = torch.stack(cosines, 1).float(), torch.stack(has_axis, 1)  # (N, modules)
    count = is_kept.sum(1).clamp_min(1)
    positive = ((cosine > 0) & is_kept).sum(1) / count
    median = torch.nanquantile(cosine.masked_fill(~is_kept, torch.nan), 0.5, dim=1).nan_to_num(0.0)
    return Validation(
        cosine, positive, cosine.sum(1) / count, median, positive > PASSING_FRACTION, is_kept
    )


def _check_modules(direction: Direction, other: Mapping[str, Tensor]) -> None:
    if set(direction.axes) != set(other):
        raise ValueError(
            f"modules must be those of the direction, {sorted(direction.axes)}; got {sorted(other)}"
        )


def random_direction(like: Direction, generator: torch.Generator) -> Direction:
    """Returns a control: random orthonormal axes of the same shapes as `like`.

    Args:
        like: gives the shapes, the strengths and which axes are dropped.
        generator: on the CPU. Runs draw one after the other, so the first of several runs draws
            what a single run draws.
    """
    N = len(next(iter(like.axes.values())))
    samples: dict[str, list[Tensor]] = {name: [] for name in like.axes}
    for _ in range(N):
        for name, axes in like.axes.items():
            gaussian = torch.randn(
                axes.shape[2], axes.shape[1], generator=generator, dtype=torch.float64, device="cpu"
            )
            # (r, k), uniform once the signs of the factorization are undone.
            q, upper = torch.linalg.qr(gaussian)
            samples[name].append((q * upper.diagonal().sign()).T)

    random_axes = {
        name: torch.stack(samples[name]).to(axes) * axes.any(2, keepdim=True)
        for name, axes in like.axes.items()
    }
    return Direction(random_axes, dict(like.strengths))


def check_direction(direction: object) -> None:
    """Checks that a value is a direction.

    Axes (N, k, r) must be orthogonal and of length 1 or 0, strengths (N, k), and all finite.

    Raises:
        ValueError: names the module and what is wrong with it.
    """
    if not (
        isinstance(direction, Direction) and all(isinstance(part, Mapping) for part in direction)
    ):
        raise ValueError(
            "direction must be a Direction as returned by `extract`; got "
            f"{type(direction).__name__}"
        )
    if not direction.axes or set(direction.axes) != set(direction.strengths):
        raise ValueError(
            f"direction must have axes and strengths of the same modules, at least one; got axes "
            f"of {sorted(direction.axes)} and strengths of {sorted(direction.strengths)}"
        )

    leading = tuple(next(iter(direction.strengths.values())).shape)
    for name, axes in direction.axes.items():
        strengths = direction.strengths[name]
        shapes = tuple(axes.shape), tuple(strengths.shape)
        if axes.ndim != 3 or 0 in shapes[0] or shapes[0][:2] != leading or shapes[1] != leading:
            raise ValueError(
                f"{name}: axes must be (N, k, r) and strengths (N, k), with the same N and k in "
                f"all modules; got {shapes}"
            )
        if not (
            axes.is_floating_point() and bool(axes.isfinite().all() & strengths.isfinite().all())
        ):
            raise ValueError(
                f"{name}: axes and strengths must be finite floating-point numbers; got others"
            )

        products = axes.double() @ axes.double().transpose(1, 2)  # (N, k, k)
        lengths = axes.any(2).double()  # 0 for an axis that was dropped
        if not bool(((products - torch.diag_embed(lengths)).abs() <= AXIS_TOLERANCE).all()):
            raise ValueError(
                f"{name}: axes must be orthogonal, of length 1 or 0; "
                f"got products {products.tolist()}"
            )
