"""What a projection does to the knobs' gradients: takes out of each what points along the direction
of hacking.

In one module of one run, with g the gradient that a descent step subtracts, V the axes (k, r) and c
= V g, a rule says which amount t(c) is taken out along each axis, and the strength s in [0, 1] how
much of that:

    g' = g - s V^T t(c)

    one_sided   t = relu(c)         the paper's rule, gated per axis: V g' <= 0 at s = 1
    two_sided   t = c               the orthogonal projection: V g' = 0
    reverse     t = 2 c             the reflection: V g' = -V g
    drift       t = c + 0.4 sd(c)   the orthogonal projection, and a constant push away from the
    hacks

Drift is a control. In a trial one-sided projection removed mostly zero-mean noise; keeping only the
negative half of noise leaves a mean of -sd / sqrt(2 pi) = -0.4 sd, a steady push that has nothing
to do with what the step learned. If drift does what one-sided projection does, then that push is
what works. For the same reason the measures have the mean, the positive and the negative part of c,
not the fraction of modules that fire alone: noise fires as well.

Afterwards the length may be given back, by the part m in [0, 1]: g' (1 - m + m |g| / |g'|).

An adaptive optimizer rescales the axes of what it is given and lets part of the direction back in.
To close that, give `project` the update (with the sign of a gradient: what is subtracted) in the
place of the gradient; it is the same function, and it acts on less noise, since momentum has
averaged it away.

References:
    "Experiment: rank-space gradient projection vs RL reward hacking", section on projection and
    pseudocode C.

Departures: several axes, each with its own gate; strength and length are numbers between off and on
(the paper: on); the length is given back only where something was removed and something other than
rounding is left.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hpenv.posttraining.direction import Direction

#: E[min(x, 0)] of a standard normal x is -1 / sqrt(2 pi) = -0.399: what rectified noise pushes
#: with.
DRIFT = 0.4

#: A module counts as fired if more than this part of its gradient's length points along the hacking
#: direction.
FIRED = 1e-6

#: Gradients shorter than this have no direction (paper, pseudocode C).
SMALLEST_NORM = 1e-12

#: What is left of a gradient below this part of it is rounding, and is not blown up to the
#: gradient's length.
ROUNDING = 1e-6

Rule = Callable[
    [Tensor, Tensor], Tensor
]  # c (N, k) and its standard deviation (N, k) to the amount removed (N, k)

RULES: dict[str, Rule] = {
    "one_sided": lambda c, deviation: c.clamp_min(0.0),
    "two_sided": lambda c, deviation: c,
    "reverse": lambda c, deviation: 2.0 * c,
    "drift": lambda c, deviation: c + DRIFT * deviation,
}


class Measures(NamedTuple):
    """What the gradients looked like before the projection; each (N,), over the modules and axes
    that a run has.

    Attributes:
        mean_cos: mean of c / |g| over modules and axes, with its sign (the paper's cos_align, for
            one axis).
        frac_fired: part of the modules of which something points along the direction.
        removed_fraction: mean over modules of |relu(c)| / |g|, each rectified before anything is
            averaged; what the one-sided rule takes out at full strength. Unit vectors at random
            have about sqrt(k / 2r).
        mean_c: mean of c over modules and axes [units of the gradient]: the signal, were there no
            noise.
        mean_positive_c: mean of relu(c).
        mean_negative_c: mean of min(c, 0); with mean_positive_c it adds up to mean_c.
    """

    mean_cos: Tensor
    frac_fired: Tensor
    removed_fraction: Tensor
    mean_c: Tensor
    mean_positive_c: Tensor
    mean_negative_c: Tensor


class Spread(NamedTuple):
    """Running moments of c, for the drift rule: exponential averages, corrected for their start at
    0.

    Attributes:
        weight: how much of an average stands for values seen, (N,), 0 at the start and 1 in the
            end.
        means: module -> average of c, (N, k), not corrected.
        squares: module -> average of c^2, (N, k), not corrected.
    """

    weight: Tensor
    means: dict[str, Tensor]
    squares: dict[str, Tensor]

    def deviations(self) -> dict[str, Tensor]:
        """Module -> standard deviation of c, (N, k); 0 before anything was seen."""
        weight = self.weight.clamp_min(torch.finfo(self.weight.dtype).tiny)[:, None]
        return {
            name: (self.squares[name] / weight - (mean / weight).square()).clamp_min(0.0).sqrt()
            for name, mean in self.means.items()
        }


def no_spread(direction: Direction) -> Spread:
    """The running moments before anything was seen; also after a refresh, which gives the axes other meanings."""
    zeros = {name: torch.zeros_like(strengths) for name, strengths in direction.strengths.items()}
    weight = next(iter(zeros.values())).new_zeros(len(next(iter(zeros.values()))))
    return Spread(weight, zeros, {name: zero.clone() for name, zero in zeros.items()})


def updated_spread(spread: Spread, c: Mapping[str, Tensor], decay: float = 0.95) -> Spread:
    """The running moments after one more step; a decay of 0.95 looks back over some 20 steps."""
    return Spread(
        decay * spread.weight + (1.0 - decay),
        {name: decay * mean + (1.0 - decay) * c[name] for name, mean in spread.means.items()},
        {
            name: decay * square + (1.0 - decay) * c[name].square()
            for name, square in spread.squares.items()
        },
    )


def spread_record(spread: Spread) -> dict[str, Any]:
    """Returns the running moments as JSON-able values, from which `spread_of_record` makes the same bits again."""
    record: dict[str, Any] = {"weight": spread.weight.tolist()}
    for part in ("means", "squares"):
        record[part] = {name: value.tolist() for name, value in getattr(spread, part).items()}
    return record


def spread_of_record(record: Mapping[str, Any], like: Spread) -> Spread:
    """Returns the running moments of a record, of the shapes and on the device of others.

    Raises:
        KeyError: if a module is missing.
        ValueError: for a value of another shape, or one that no moment has.
    """

    def read(values: Any, own: Tensor, least: float) -> Tensor:
        result = torch.tensor(values, dtype=own.dtype, device=own.device)
        if result.shape != own.shape or not bool((result.isfinite() & (result >= least)).all()):
            raise ValueError(
                f"moments must be finite, of shape {tuple(own.shape)} and at least {least}; got {values}"
            )
        return result

    return Spread(
        read(record["weight"], like.weight, 0.0),
        {name: read(record["means"][name], own, -math.inf) for name, own in like.means.items()},
        {name: read(record["squares"][name], own, 0.0) for name, own in like.squares.items()},
    )


def coordinates(gradients: Mapping[str, Tensor], direction: Direction) -> dict[str, Tensor]:
    """c = V g of every module: module -> (N, k), 0 at axes that were dropped."""
    return {
        name: torch.einsum("nkr,nr->nk", direction.axes[name], g) for name, g in gradients.items()
    }


def project(
    gradients: Mapping[str, Tensor],
    direction: Direction,
    rule: str | Sequence[str],
    strength: Tensor | Mapping[str, Tensor],
    magnitude: Tensor,
    deviations: Mapping[str, Tensor] | None = None,
) -> tuple[dict[str, Tensor], dict[str, Tensor], Measures]:
    """Takes the direction out of the gradients.

    Where a strength is 0, the gradient of that run and module is given back bit for bit, whatever
    the magnitude.

    Args:
        gradients: module -> (N, r), what the optimizer would subtract.
        direction: with axes for the same modules and runs.
        rule: of `RULES`; one for all runs, or one for each.
        strength: (N,) in [0, 1], or module -> (N,).
        magnitude: how much of the lost length is given back, (N,) in [0, 1].
        deviations: module -> standard deviation of c, (N, k), for `drift` alone.

    Returns:
        The gradients kept, module -> (N, r).
        What was removed, module -> (N, r), in the span of the axes; with the kept it adds up to the
        gradient where the magnitude is 0. It is what a quarantine is given.
        The measures, of the gradients as they came and at any strength.

    Raises:
        ValueError: for an unknown rule, other modules or shapes than the direction's, or drift
            without deviations.
    """
    N = _checked_size(gradients, direction, strength, magnitude)
    rules = _checked_rules(rule, N, deviations)
    kept, removed = {}, {}
    all_c = coordinates(gradients, direction)
    for name, g in gradients.items():
        c = all_c[name]
        own = strength if isinstance(strength, Tensor) else strength[name]
        amount = _amount(rules, c, torch.zeros_like(c) if deviations is None else deviations[name])
        taken = own[:, None] * torch.einsum("nkr,nk->nr", direction.axes[name], amount)
        touched = (own[:, None] != 0) & taken.any(1, keepdim=True)  # (N, 1)
        removed[name] = torch.where(own[:, None] != 0, taken, 0.0)
        kept[name] = torch.where(touched, _lengthened(g - taken, g, magnitude), g)
    return kept, removed, _measures(gradients, direction, all_c)


def _amount(rules: Mapping[str, Tensor], c: Tensor, deviation: Tensor) -> Tensor:
    """t(c), (N, k), each run by its own rule."""
    result = torch.zeros_like(c)
    for name, rows in rules.items():
        result = torch.where(rows.to(c.device)[:, None], RULES[name](c, deviation), result)
    return result


def _lengthened(rest: Tensor, g: Tensor, magnitude: Tensor) -> Tensor:
    """The rest of a gradient, brought back to the gradient's length by the part `magnitude`."""
    before, after = (
        torch.linalg.vector_norm(g, dim=1),
        torch.linalg.vector_norm(rest, dim=1),
    )  # (N,)
    factor = (1.0 - magnitude) + magnitude * before / (after + 1e-8)
    factor = torch.where((magnitude == 0) | (after <= ROUNDING * before), 1.0, factor)
    return rest * factor[:, None]


def _measures(
    gradients: Mapping[str, Tensor], direction: Direction, all_c: Mapping[str, Tensor]
) -> Measures:
    c = torch.stack([all_c[name] for name in gradients], 1)  # (N, M, k)
    has_axis = torch.stack([direction.axes[name].any(2) for name in gradients], 1)  # (N, M, k)
    norms = torch.stack(
        [torch.linalg.vector_norm(g, dim=1) for g in gradients.values()], 1
    )  # (N, M)
    has_direction = norms > SMALLEST_NORM
    safe = torch.where(has_direction, norms, 1.0)
    positive = c.clamp_min(0.0)
    cosines = torch.where(has_direction[..., None], c / safe[..., None], 0.0)
    fractions = torch.where(
        has_direction, torch.linalg.vector_norm(positive, dim=2) / safe, 0.0
    )  # (N, M)
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
    """c / |g| of each module's gradient, mean over its axes, (N, modules); 0 where it has no axis or no gradient."""
    all_c = coordinates(gradients, direction)
    columns = []
    for name, g in gradients.items():
        norm, num_axes = (
            torch.linalg.vector_norm(g, dim=1),
            direction.axes[name].any(2).sum(1).clamp_min(1),
        )
        columns.append(torch.where(norm > SMALLEST_NORM, all_c[name].sum(1) / norm / num_axes, 0.0))
    return torch.stack(columns, 1)


def erased(knobs: Mapping[str, Tensor], direction: Direction) -> dict[str, Tensor]:
    """The knobs without their part along the direction, d - V^T V d: an edit after training, module -> (N, r)."""
    _checked_modules(knobs, direction)
    return {
        name: knobs[name] - torch.einsum("nkr,nk->nr", direction.axes[name], c)
        for name, c in coordinates(knobs, direction).items()
    }


def _checked_modules(given: Mapping[str, Tensor], direction: Direction) -> int:
    """The number of runs, if the modules and shapes are the direction's."""
    if set(given) != set(direction.axes):
        raise ValueError(f"got modules {sorted(given)}; the direction has {sorted(direction.axes)}")
    for name, tensor in given.items():
        N, _, r = direction.axes[name].shape
        if tensor.shape != (N, r):
            raise ValueError(
                f"{name}: got shape {tuple(tensor.shape)}; the direction has (N, r) = ({N}, {r})"
            )
    return len(next(iter(given.values())))


def _checked_size(
    gradients: Mapping[str, Tensor],
    direction: Direction,
    strength: Tensor | Mapping[str, Tensor],
    magnitude: Tensor,
) -> int:
    N = _checked_modules(gradients, direction)
    if not isinstance(strength, Tensor) and set(strength) != set(gradients):
        raise ValueError(
            f"got strengths of modules {sorted(strength)}; expected {sorted(gradients)}"
        )
    strengths = {"": strength} if isinstance(strength, Tensor) else strength
    for name, values in [
        *((f"strength {name}".strip(), s) for name, s in strengths.items()),
        ("magnitude", magnitude),
    ]:
        if values.shape != (N,) or not bool(((values >= 0) & (values <= 1)).all()):
            raise ValueError(
                f"{name}: got {values.tolist()}; expected a number in [0, 1] for each of {N} runs"
            )
    return N


def _checked_rules(
    rule: str | Sequence[str], N: int, deviations: Mapping[str, Tensor] | None
) -> dict[str, Tensor]:
    """Rule -> the runs that follow it, (N,) bool."""
    names = [rule] * N if isinstance(rule, str) else list(rule)
    if unknown := sorted(set(names) - set(RULES)):
        raise ValueError(f"unknown rule {unknown[0]!r}; expected one of {sorted(RULES)}")
    if len(names) != N:
        raise ValueError(f"got {len(names)} rules; expected one, or one for each of {N} runs")
    if "drift" in names and deviations is None:
        raise ValueError(
            "the rule 'drift' needs the deviations of c; got None (see `updated_spread`)"
        )
    return {
        name: torch.tensor([n == name for n in names], device="cpu")
        for name in dict.fromkeys(names)
    }
