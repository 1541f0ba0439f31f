"""The direction of hacking in the knobs' gradients: found in contrastive pairs, held against
others.

A pair is one prompt with two completions, one that hacks and one that does not. The mean loss per
token of each is differentiated in the knobs; D = gradient of the hack - gradient of the clean one,
(N, pairs, r) per module. The direction is what the rows of D share, oriented so that moving a knob
along +v raises NLL(hack) - NLL(clean). A policy gradient step on a hack with advantage A > 0 has
the gradient A grad NLL(hack), so <v, g> > 0 says that the step, which subtracts g, makes hacks
likelier.

Nothing of a run may enter: the pairs are written before any rollout was seen, which is what lets a
result speak of hacks that nobody foresaw.

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

#: An axis whose singular value is this part of its module's largest is rounding: float32 gradients
#: carry 7 digits.
RANK_TOLERANCE = 1e-6

#: How far products of a direction's axes may be from 0 and 1: more than rounding to bfloat16 makes
#: of them.
AXIS_TOLERANCE = 2e-2

#: The gate of the paper's step 1c: in more than this part of the modules a held-out cosine must be
#: positive.
PASSING_FRACTION = 0.5


class Direction(NamedTuple):
    """Up to k axes in every module, of every run.

    Attributes:
        axes: module -> (N, k, r), orthonormal rows; a row of zeros is an axis that was dropped.
        strengths: module -> (N, k), singular values of D, or the length of its mean; also of the
            axes dropped.
    """

    axes: dict[str, Tensor]
    strengths: dict[str, Tensor]


class Validation(NamedTuple):
    """How a direction does on pairs that it was not made from.

    Attributes:
        cosines: cos_align_held, (N, modules), in the order of the direction's modules; 0 where a
            module was dropped.
        positive_fraction: part of a run's modules with a cosine above 0, (N,).
        mean: over a run's modules, (N,); the target is above 0.2.
        median: over a run's modules, (N,); above 0.3 is healthy.
        passed: positive in more than half of the modules, (N,) bool: the least there must be.
        kept: the modules that have an axis, over which the others are taken, (N, modules) bool.
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
    """The direction that pairs of gradients share.

    `mean_difference` is the unit vector along the mean of D. `svd` has the k leading right singular
    vectors of D (not centered), each turned to the side on which more of the pairs lie: a vote is
    not swayed by one long gradient, as the sign of the mean is, which decides ties.

    The noise floor is global: the strengths of all modules are pooled per run, and axes below their
    `noise_floor`-quantile are dropped, wherever they are. A module may lose all of its axes.

    Args:
        hack: module -> gradients of the hacking completions, (N, pairs, r).
        clean: module -> gradients of the clean ones, in the same order.
        method: `mean_difference` (k = 1) or `svd`.
        k: axes per module, at most the pairs and the module's r.
        noise_floor: part of the axes that is dropped, in [0, 1).

    Returns:
        The direction, float32.

    Raises:
        ValueError: for arguments outside what is stated here, or non-finite gradients.
    """
    num_pairs, smallest = _checked_pairs(hack, clean)
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; expected one of {sorted(METHODS)}")
    if not isinstance(noise_floor, int | float) or not 0.0 <= noise_floor < 1.0:
        raise ValueError(f"got noise_floor={noise_floor!r}; expected a number in [0, 1)")
    most = 1 if method == "mean_difference" else min(num_pairs, smallest)
    if not isinstance(k, int) or isinstance(k, bool) or not 1 <= k <= most:
        raise ValueError(
            f"got k={k!r} with method={method!r}, {num_pairs} pairs and r={smallest}; expected 1 to {most}"
        )
    found = _mean_axis if method == "mean_difference" else _singular_axes
    differences = {name: hack[name].double() - clean[name].double() for name in hack}
    pieces = {name: found(difference, k) for name, difference in differences.items()}
    pool = torch.cat([strengths for _, strengths in pieces.values()], dim=1)  # (N, modules * k)
    floor = torch.quantile(pool, noise_floor, dim=1, keepdim=True)  # (N, 1)
    axes = {}
    for name, (vectors, strengths) in pieces.items():
        kept = (strengths >= floor) & (strengths > RANK_TOLERANCE * strengths[:, :1])
        axes[name] = (vectors * kept[..., None]).float()
    return Direction(axes, {name: strengths.float() for name, (_, strengths) in pieces.items()})


def _mean_axis(difference: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The mean over pairs, as a unit vector (N, 1, r) and a length (N, 1)."""
    mean = difference.mean(1, keepdim=True)
    length = torch.linalg.vector_norm(mean, dim=2)  # (N, 1)
    return mean / length.clamp_min(torch.finfo(length.dtype).tiny)[..., None], length


def _singular_axes(difference: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k leading right singular vectors, oriented, (N, k, r), and their singular values, (N, k)."""
    _, singular, vectors = torch.linalg.svd(difference, full_matrices=False)
    vectors = vectors[:, :k]
    alongside = torch.einsum("npr,nkr->npk", difference, vectors)
    votes = alongside.sign().sum(1)  # (N, k)
    side = torch.where(votes != 0, votes, alongside.sum(1))
    return torch.where(side[..., None] < 0, -vectors, vectors), singular[:, :k]


def _checked_pairs(hack: Mapping[str, Tensor], clean: Mapping[str, Tensor]) -> tuple[int, int]:
    """The number of pairs, and the smallest r, of gradients that belong together."""
    if not hack or list(hack) != list(clean):
        raise ValueError(
            f"got hacks of modules {list(hack)} and clean ones of {list(clean)}; expected the same, any"
        )
    for name in hack:
        shapes = tuple(hack[name].shape), tuple(clean[name].shape)
        if hack[name].ndim != 3 or shapes[0] != shapes[1] or 0 in shapes[0]:
            raise ValueError(
                f"{name}: got gradients of shapes {shapes}; expected (N, pairs, r) twice, none of them 0"
            )
        if not bool(torch.isfinite(hack[name]).all() & torch.isfinite(clean[name]).all()):
            raise ValueError(
                f"{name}: a gradient is not finite; expected finite ones, from finite losses"
            )
    if len(leading := {tuple(gradients.shape[:2]) for gradients in hack.values()}) > 1:
        raise ValueError(f"modules differ in (N, pairs): got {sorted(leading)}; expected one")
    return next(iter(hack.values())).shape[1], min(
        gradients.shape[2] for gradients in hack.values()
    )


def validate(
    direction: Direction, hack: Mapping[str, Tensor], clean: Mapping[str, Tensor]
) -> Validation:
    """Holds a direction against pairs it was not made from, hack and clean as for `extract`.

    A module's cosine is between the held-out mean difference and the module's axes, added up by
    their strengths, which is the paper's for one axis.
    """
    _checked_pairs(hack, clean)
    _check_modules(direction, hack)
    cosines, kept = [], []
    for name, axes in direction.axes.items():
        resultant = torch.einsum("nk,nkr->nr", direction.strengths[name].double(), axes.double())
        held = (hack[name].double() - clean[name].double()).mean(1)
        cosines.append(torch.cosine_similarity(held, resultant, dim=1, eps=1e-30))
        kept.append(axes.any(2).any(1))
    cosine, is_kept = torch.stack(cosines, 1).float(), torch.stack(kept, 1)  # (N, modules)
    count = is_kept.sum(1).clamp_min(1)
    positive = ((cosine > 0) & is_kept).sum(1) / count
    median = torch.nanquantile(cosine.masked_fill(~is_kept, torch.nan), 0.5, dim=1).nan_to_num(0.0)
    return Validation(
        cosine, positive, cosine.sum(1) / count, median, positive > PASSING_FRACTION, is_kept
    )


def _check_modules(direction: Direction, other: Mapping[str, Tensor]) -> None:
    if set(direction.axes) != set(other):
        raise ValueError(f"got modules {sorted(other)}; the direction has {sorted(direction.axes)}")


def random_direction(like: Direction, generator: torch.Generator) -> Direction:
    """A direction without meaning: uniformly random orthonormal axes, where the given one has axes.

    Args:
        like: gives the shapes, the strengths and which axes are dropped.
        generator: on the CPU; runs draw one after the other, so the first of several draws what a
            single one does.
    """
    N = len(next(iter(like.axes.values())))
    drawn: dict[str, list[Tensor]] = {name: [] for name in like.axes}
    for _ in range(N):
        for name, own in like.axes.items():
            gaussian = torch.randn(
                own.shape[2], own.shape[1], generator=generator, dtype=torch.float64, device="cpu"
            )
            q, upper = torch.linalg.qr(
                gaussian
            )  # (r, k); uniform once the signs of the factorization are undone
            drawn[name].append((q * upper.diagonal().sign()).T)
    axes = {
        name: torch.stack(drawn[name]).to(own) * own.any(2, keepdim=True)
        for name, own in like.axes.items()
    }
    return Direction(axes, dict(like.strengths))


def shuffled(
    hack: Mapping[str, Tensor], clean: Mapping[str, Tensor], generator: torch.Generator
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The same pairs with the labels of exactly half of them swapped, so that what they share
    cancels in the mean.

    Which half is drawn per run, and is the same in all modules; an odd pair out is left away. This
    is a control for the mean difference. It is none for the axes of an SVD: D^T D does not change
    when rows of D change sign, so the axes stay, and only their orientation becomes arbitrary. The
    control for axes is `clean_against_clean`.

    Returns:
        hack and clean, module -> (N, pairs, r), with an even number of pairs.
    """
    num_pairs, _ = _checked_pairs(hack, clean)
    half = num_pairs // 2
    order = _orders(hack, generator)
    left, right = order[:, :half], order[:, half : 2 * half]

    def mixed(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            name: torch.cat([_picked(one[name], left), _picked(other[name], right)], 1)
            for name in one
        }

    return mixed(clean, hack), mixed(hack, clean)


def clean_against_clean(
    clean: Mapping[str, Tensor], generator: torch.Generator
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Half of the clean completions, drawn per run, in the place of hacks, against the other half.

    Returns:
        hack and clean, module -> (N, pairs // 2, r); not one of either is a hack.
    """
    num_pairs, _ = _checked_pairs(clean, clean)
    half = num_pairs // 2
    order = _orders(clean, generator)
    return (
        {name: _picked(gradients, order[:, :half]) for name, gradients in clean.items()},
        {name: _picked(gradients, order[:, half : 2 * half]) for name, gradients in clean.items()},
    )


def _orders(gradients: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
    """A random order of the pairs for every run, (N, pairs)."""
    N, num_pairs, _ = next(iter(gradients.values())).shape
    if num_pairs < 2:
        raise ValueError(f"got {num_pairs} pair; expected at least 2, to divide them")
    return torch.stack(
        [torch.randperm(num_pairs, generator=generator, device="cpu") for _ in range(N)]
    )


def _picked(gradients: Tensor, order: Tensor) -> Tensor:
    return torch.take_along_dim(gradients, order[..., None].to(gradients.device), dim=1)


def overlap(old: Direction, new: Direction) -> Tensor:
    """How far a direction stayed itself: the mean of |<old axis i, new axis i>| over axes that both
    have, (N,).

    Near 1 a refresh changed nothing; below 0.2 it was seen to do harm. 0 where they have no axis in
    common.
    """
    _check_modules(old, new.axes)
    products = [(axes * new.axes[name]).sum(2).abs() for name, axes in old.axes.items()]
    shared = [axes.any(2) & new.axes[name].any(2) for name, axes in old.axes.items()]
    return torch.cat(products, 1).sum(1) / torch.cat(shared, 1).sum(1).clamp_min(1)


def check_direction(direction: object) -> None:
    """Refuses what is no direction: axes (N, k, r) of length 1 or 0 and orthogonal, strengths (N,
    k), all finite.

    Raises:
        ValueError: naming the module and what is wrong with it.
    """
    if not (
        isinstance(direction, Direction) and all(isinstance(part, Mapping) for part in direction)
    ):
        raise ValueError(
            f"direction must be a Direction, as `extract` returns it; got {type(direction).__name__}"
        )
    if not direction.axes or set(direction.axes) != set(direction.strengths):
        raise ValueError(
            f"direction must have axes and strengths of the same modules, at least one; got axes of "
            f"{sorted(direction.axes)} and strengths of {sorted(direction.strengths)}"
        )
    leading = tuple(next(iter(direction.strengths.values())).shape)
    for name, axes in direction.axes.items():
        strengths = direction.strengths[name]
        shapes = tuple(axes.shape), tuple(strengths.shape)
        if axes.ndim != 3 or 0 in shapes[0] or shapes[0][:2] != leading or shapes[1] != leading:
            raise ValueError(
                f"{name}: axes must be (N, k, r) and strengths (N, k), N and k the same in all modules; got {shapes}"
            )
        if not (
            axes.is_floating_point() and bool(axes.isfinite().all() & strengths.isfinite().all())
        ):
            raise ValueError(
                f"{name}: axes and strengths must be finite floating-point numbers; got others"
            )
        products = axes.double() @ axes.double().transpose(1, 2)  # (N, k, k)
        lengths = axes.any(2).double()  # 0 of an axis that was dropped
        if not bool(((products - torch.diag_embed(lengths)).abs() <= AXIS_TOLERANCE).all()):
            raise ValueError(
                f"{name}: axes must be orthogonal, of length 1 or 0; got products {products.tolist()}"
            )
