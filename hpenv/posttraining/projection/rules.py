"""Projection: removes the component along the hacking direction from the coefficients' gradients.

For one module of one run, let g be the gradient that a descent step subtracts, V the axes (k, r)
and c = V g. A rule says which amount t(c) to remove along each axis. The strength s in [0, 1] says
which fraction of that amount to remove:

    g' = g - s V^T t(c)

    one_sided   t = relu(c)         the paper's rule, gated per axis: V g' <= 0 at s = 1
    two_sided   t = c               the orthogonal projection: V g' = 0
    reverse     t = 2 c             the reflection: V g' = -V g
    drift       t = c + 0.4 sd(c)   the orthogonal projection and a constant push away from hacks

Drift is a control. In a trial, one-sided projection removed mostly zero-mean noise. Keeping only
the negative half of noise leaves a mean of -sd / sqrt(2 pi) = -0.4 sd, a steady push that has
nothing to do with what the step learned. If drift does what one-sided projection does, that push is
what works. The measures contain the mean, the positive and the negative part of c for the same
reason. The fraction of modules that fire is not enough, because noise fires as well.

Afterwards a fraction m in [0, 1] of the lost length is restored: g' (1 - m + m |g| / |g'|).

An adaptive optimizer rescales the coordinates of its gradient and lets part of the direction back
in. To prevent this, pass `project` the update instead of the gradient, with the sign of a gradient
(the value that is subtracted). The function is the same. It then acts on less noise, since momentum
has averaged it away.

References:
    "Experiment: rank-space gradient projection vs RL reward hacking", section on projection and
    pseudocode C.

Departures: There are several axes, each with its own gate. Strength and length are numbers between
off and on (the paper: on). The length is restored only where something was removed and the rest is
more than rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hpenv.posttraining.projection.direction import Direction

#: E[min(x, 0)] of a standard normal x is -1 / sqrt(2 pi) = -0.399, the mean push of rectified
#: noise.
DRIFT = 0.4

#: A module counts as fired if more than this fraction of its gradient's length points along the
#: hacking direction.
FIRED = 1e-6

#: Gradients shorter than this have no direction (paper, pseudocode C).
SMALLEST_NORM = 1e-12

#: A rest shorter than this fraction of the gradient is rounding. Its length is not restored.
ROUNDING = 1e-6

#: c (N, k) and its standard deviation (N, k) -> amount to remove (N, k).
Rule = Callable[[Tensor, Tensor], Tensor]

RULES: dict[str, Rule] = {
    "one_sided": lambda c, deviation: c.clamp_min(0.0),
    "two_sided": lambda c, deviation: c,
    "reverse": lambda c, deviation: 2.0 * c,
    "drift": lambda c, deviation: c + DRIFT * deviation,
}


#: What a rule is applied to: the gradient, or what the optimizer would subtract.
TARGETS = ("grad", "update")


class Measures(NamedTuple):
    """Measures of the gradients before the projection, each (N,), over the run's modules and axes.

    Attributes:
        mean_cos: mean of c / |g| over modules and axes, with its sign (the paper's cos_align, for
            one axis).
        frac_fired: fraction of modules whose gradient has a component along the direction.
        removed_fraction: mean over modules of |relu(c)| / |g|, with c rectified before averaging.
            The one-sided rule removes this fraction at full strength. Random unit vectors have
            about sqrt(k / 2r).
        mean_c: mean of c over modules and axes [units of the gradient]. Without noise it would be
            the signal.
        mean_positive_c: mean of relu(c).
        mean_negative_c: mean of min(c, 0). mean_positive_c + mean_negative_c = mean_c.
    """

    mean_cos: Tensor
    frac_fired: Tensor
    removed_fraction: Tensor
    mean_c: Tensor
    mean_positive_c: Tensor
    mean_negative_c: Tensor


class RunningMoments(NamedTuple):
    """Running moments of c for the drift rule: bias-corrected exponential averages.

    Attributes:
        weight: bias correction of the averages, 1 - decay^t, (N,).
        means: module -> average of c, (N, k), not corrected.
        squares: module -> average of c^2, (N, k), not corrected.
    """

    weight: Tensor
    means: dict[str, Tensor]
    squares: dict[str, Tensor]

    def of_rows(self, rows: Tensor) -> RunningMoments:
        """Returns copies of the moments of some runs."""
        means, squares = (
            {name: value[rows] for name, value in part.items()}
            for part in (self.means, self.squares)
        )
        return RunningMoments(self.weight[rows], means, squares)

    def set_rows(self, rows: Tensor, moments: RunningMoments) -> None:
        """Replaces the moments of some runs, in place."""
        self.weight[rows] = moments.weight
        for name in self.means:
            self.means[name][rows] = moments.means[name]
            self.squares[name][rows] = moments.squares[name]

    def deviations(self) -> dict[str, Tensor]:
        """Returns module -> standard deviation of c, (N, k). It is 0 before the first value."""
        weight = self.weight.clamp_min(torch.finfo(self.weight.dtype).tiny)[:, None]
        return {
            name: (self.squares[name] / weight - (mean / weight).square()).clamp_min(0.0).sqrt()
            for name, mean in self.means.items()
        }


def zero_moments(direction: Direction) -> RunningMoments:
    """Returns the moments before the first value, for a start and after a refresh of the axes."""
    zeros = {name: torch.zeros_like(strengths) for name, strengths in direction.strengths.items()}
    weight = next(iter(zeros.values())).new_zeros(len(next(iter(zeros.values()))))
    return RunningMoments(weight, zeros, {name: zero.clone() for name, zero in zeros.items()})


def update_moments(
    spread: RunningMoments, c: Mapping[str, Tensor], decay: float = 0.95
) -> RunningMoments:
    """Returns the moments after one more step. A decay of 0.95 averages over some 20 steps."""
    return RunningMoments(
        decay * spread.weight + (1.0 - decay),
        {name: decay * mean + (1.0 - decay) * c[name] for name, mean in spread.means.items()},
        {
            name: decay * square + (1.0 - decay) * c[name].square()
            for name, square in spread.squares.items()
        },
    )


def moments_record(spread: RunningMoments) -> dict[str, Any]:
    """Returns the moments as JSON-able values. `moments_from_record` restores the same bits."""
    record: dict[str, Any] = {"weight": spread.weight.tolist()}
    for part in ("means", "squares"):
        record[part] = {name: value.tolist() for name, value in getattr(spread, part).items()}
    return record


def moments_from_record(record: Mapping[str, Any], like: RunningMoments) -> RunningMoments:
    """Returns the moments of a record, with the shapes and on the device of `like`.

    Raises:
        KeyError: if a module is missing.
        ValueError: for a value of another shape, or one that no moment can have.
    """

    def read(values: Any, moment: Tensor, least: float) -> Tensor:
        result = torch.tensor(values, dtype=moment.dtype, device=moment.device)
        shape = moment.shape
        if result.shape != shape or not bool((result.isfinite() & (result >= least)).all()):
            raise ValueError(
                f"moments must be finite, >= {least} and of shape {tuple(shape)}; got {values}"
            )
        return result

    return RunningMoments(
        read(record["weight"], like.weight, 0.0),
        {name: read(record["means"][name], m, -math.inf) for name, m in like.means.items()},
        {name: read(record["squares"][name], m, 0.0) for name, m in like.squares.items()},
    )


def coordinates(gradients: Mapping[str, Tensor], direction: Direction) -> dict[str, Tensor]:
    """Returns c = V g of every module: module -> (N, k). It is 0 at axes that were dropped."""
    return {
        name: torch.einsum("nkr,nr->nk", direction.axes[name], g) for name, g in gradients.items()
    }


def project(
    gradients: Mapping[str, Tensor],
    direction: Direction,
    rule: str,
    strength: Tensor | Mapping[str, Tensor],
    magnitude: Tensor,
    deviations: Mapping[str, Tensor] | None = None,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Removes the direction from the gradients.

    Where a strength is 0, the gradient of that run and module is returned bit for bit, whatever the
    magnitude.

    Args:
        gradients: module -> (N, r), what the optimizer would subtract.
        direction: has axes for the same modules and runs.
        rule: key of `RULES`.
        strength: (N,) in [0, 1], or module -> (N,).
        magnitude: fraction of the lost length that is restored, (N,) in [0, 1].
        deviations: module -> standard deviation of c, (N, k). Only `drift` reads it.

    Returns:
        The gradients that remain, module -> (N, r).
        The removed part, module -> (N, r), in the span of the axes. Remaining and removed part add
        up to the gradient where the magnitude is 0. A quarantine is trained on the removed part.

    Raises:
        ValueError: for an unknown rule, modules or shapes that differ from the direction's, or
            drift without deviations.
    """
    _check_sizes(gradients, direction, strength, magnitude)
    if rule not in RULES:
        raise ValueError(f"unknown rule {rule!r}; expected one of {sorted(RULES)}")
    if rule == "drift" and deviations is None:
        raise ValueError(
            "deviations must be given for the rule 'drift'; got None; see `update_moments`"
        )

    remaining, removed = {}, {}
    all_c = coordinates(gradients, direction)
    for name, g in gradients.items():
        c = all_c[name]
        s = (strength if isinstance(strength, Tensor) else strength[name])[:, None]  # (N, 1)
        amount = RULES[rule](c, torch.zeros_like(c) if deviations is None else deviations[name])
        taken = s * torch.einsum("nkr,nk->nr", direction.axes[name], amount)
        is_changed = (s != 0) & taken.any(1, keepdim=True)  # (N, 1)
        removed[name] = torch.where(s != 0, taken, 0.0)
        remaining[name] = torch.where(is_changed, _restore_length(g - taken, g, magnitude), g)

    return remaining, removed


def _restore_length(rest: Tensor, g: Tensor, magnitude: Tensor) -> Tensor:
    """Restores the fraction `magnitude` of the length that the rest of a gradient has lost."""
    before = torch.linalg.vector_norm(g, dim=1)  # (N,)
    after = torch.linalg.vector_norm(rest, dim=1)  # (N,)
    factor = (1.0 - magnitude) + magnitude * before / (after + 1e-8)
    factor = torch.where((magnitude == 0) | (after <= ROUNDING * before), 1.0, factor)
    return rest * factor[:, None]


def measure(gradients: Mapping[str, Tensor], direction: Direction) -> Measures:
    """Measures gradients, module -> (N, r), before their projection along the direction."""
    c = torch.stack(list(coordinates(gradients, direction).values()), 1)  # (N, M, k)
    has_axis = torch.stack([direction.axes[name].any(2) for name in gradients], 1)  # (N, M, k)
    norms = torch.stack([torch.linalg.vector_norm(g, dim=1) for g in gradients.values()], 1)
    has_direction = norms > SMALLEST_NORM  # (N, M)
    safe = torch.where(has_direction, norms, 1.0)
    positive = c.clamp_min(0.0)
    cosines = torch.where(has_direction[..., None], c / safe[..., None], 0.0)
    lengths = torch.linalg.vector_norm(positive, dim=2)  # (N, M)
    fractions = torch.where(has_direction, lengths / safe, 0.0)  # (N, M)

    num_axes, num_modules = has_axis.sum((1, 2)).clamp_min(1), has_axis.any(2).sum(1).clamp_min(1)
    num_measured_axes = (has_axis & has_direction[..., None]).sum((1, 2)).clamp_min(1)
    num_measured = (has_axis.any(2) & has_direction).sum(1).clamp_min(1)

    return Measures(
        mean_cos=cosines.sum((1, 2)) / num_measured_axes,
        frac_fired=(fractions > FIRED).sum(1) / num_modules,
        removed_fraction=fractions.sum(1) / num_measured,
        mean_c=c.sum((1, 2)) / num_axes,
        mean_positive_c=positive.sum((1, 2)) / num_axes,
        mean_negative_c=c.clamp_max(0.0).sum((1, 2)) / num_axes,
    )


def module_cosines(gradients: Mapping[str, Tensor], direction: Direction) -> Tensor:
    """Returns the mean over axes of c / |g| of each module's gradient, (N, modules).

    It is 0 for a module without axis or gradient.
    """
    all_c = coordinates(gradients, direction)
    columns = []
    for name, g in gradients.items():
        norm = torch.linalg.vector_norm(g, dim=1)
        num_axes = direction.axes[name].any(2).sum(1).clamp_min(1)
        columns.append(torch.where(norm > SMALLEST_NORM, all_c[name].sum(1) / norm / num_axes, 0.0))
    return torch.stack(columns, 1)


def erase_direction(coefficients: Mapping[str, Tensor], direction: Direction) -> dict[str, Tensor]:
    """Returns the coefficients without their component along the direction, module -> (N, r).

    It is d - V^T V d, an edit after training.
    """
    _check_modules(coefficients, direction)
    return {
        name: coefficients[name] - torch.einsum("nkr,nk->nr", direction.axes[name], c)
        for name, c in coordinates(coefficients, direction).items()
    }


def _check_modules(given: Mapping[str, Tensor], direction: Direction) -> int:
    """Checks that modules and shapes are those of the direction. Returns the number of runs."""
    if set(given) != set(direction.axes):
        raise ValueError(
            f"modules must be those of the direction, {sorted(direction.axes)}; got {sorted(given)}"
        )

    for name, tensor in given.items():
        N, _, r = direction.axes[name].shape
        if tensor.shape != (N, r):
            raise ValueError(
                f"{name}: shape must be (N, r) = ({N}, {r}), as in the direction; "
                f"got {tuple(tensor.shape)}"
            )

    return len(next(iter(given.values())))


def _check_sizes(
    gradients: Mapping[str, Tensor],
    direction: Direction,
    strength: Tensor | Mapping[str, Tensor],
    magnitude: Tensor,
) -> None:
    N = _check_modules(gradients, direction)
    if not isinstance(strength, Tensor) and set(strength) != set(gradients):
        raise ValueError(
            f"strength must have the modules {sorted(gradients)}; got {sorted(strength)}"
        )

    strengths = {"": strength} if isinstance(strength, Tensor) else strength
    named = [(f"strength {name}".strip(), values) for name, values in strengths.items()]
    for name, values in (*named, ("magnitude", magnitude)):
        if values.shape != (N,) or not bool(((values >= 0) & (values <= 1)).all()):
            raise ValueError(
                f"{name} must be a number in [0, 1] for each of {N} runs; got {values.tolist()}"
            )
