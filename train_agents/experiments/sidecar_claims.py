"""Comparisons of the Sidecar's experiments, the paper's claims, and verdicts on them.

The measured number is held-out bits per byte. Perplexity is 2^bpb, per byte. A small percentage of
bits is bpb ln 2 times as large a percentage of perplexity: less than twice below 2.9 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal, NamedTuple

import numpy as np

from train_agents.experiments.report import Data
from train_agents.experiments.samples import Row, Sample, Scores, bits_per_byte, samples

#: Gain in perplexity that an arm which is "not better" must be shown to lie below.
NOT_BETTER_MARGIN = 0.01
UNITS = ("bpb", "perplexity")


class Comparison(NamedTuple):
    """Table of the report: what its arms are compared with, and further arms in it."""

    references: tuple[str, ...]
    before: tuple[str, ...] = ()  # arms of other groups above its own
    after: tuple[str, ...] = ()  # and below them


_SWEEPS = ("sweep_constant", "sweep_schedule")
#: Group of arms -> their comparison.
COMPARISONS = {
    "foundational": Comparison(
        ("detached", "foundational", "no_learning", *_SWEEPS), after=_SWEEPS
    ),
    "rewards": Comparison(("reward_detached", "reward_next", "reward_credit")),
    "backward": Comparison(
        ("detached", *_SWEEPS, "foundational"), before=("detached", "foundational")
    ),
    "caps": Comparison(("detached", *_SWEEPS, "cap_dormant"), before=("detached",)),
    "credit": Comparison(
        ("detached", *_SWEEPS, "hypergradient"), before=("detached",), after=_SWEEPS
    ),
    "credit_long": Comparison(("long_detached",), before=("long_detached",)),
    "weight_decay": Comparison(("long_detached", "long_foundational")),
}


class Claim(NamedTuple):
    """Statement of the paper about a difference between two arms."""

    text: str  # in our words
    arm: str
    reference: str
    direction: Literal["better", "worse", "not better"]  # of the arm
    number: float | None = None  # fraction that the arm is ahead (negative: behind), if stated
    step: int | None = None  # of the run; None for its end


CLAIMS: tuple[Claim, ...] = (
    Claim("attached 42 % ahead of detached (3)", "foundational", "detached", "better", 0.42),
    Claim("ahead of a tuned constant, too (1)", "foundational", "sweep_constant", "better"),
    Claim("ahead of a tuned schedule, too (1)", "foundational", "sweep_schedule", "better"),
    Claim(
        "rates per layer 12 % ahead of a uniform rate (7)", "layer_lr", "detached", "better", 0.12
    ),
    Claim(
        "weight decay per tensor 19.3 % ahead at the end (5.3)",
        *("long_weight_decay", "long_foundational", "better", 0.193),
    ),
    Claim(
        "skipping gradients does not beat the foundational surface (6)",
        *("backward_grad_skip", "foundational", "not better"),
    ),
    Claim("nor does gating (6)", "backward_grad_gate", "foundational", "not better"),
    Claim("nor does truncation (6)", "backward_grad_truncate", "foundational", "not better"),
    Claim(
        "nor does momentum blending (6)", "backward_momentum_blend", "foundational", "not better"
    ),
    Claim(
        "a cap that binds at the start costs 14 % by step 1000 (8)",
        *("cap_binding", "cap_dormant", "worse", -0.14, 1000),
    ),
    Claim("a wrong neutral costs dearly (6)", "wrong_neutral", "backward_grad_skip", "worse"),
    Claim(
        "attached 42 % ahead of detached, the reward read as the change of a held-out loss (3, 4)",
        *("reward_probe", "reward_detached", "better", 0.42),
    ),
    Claim(
        "stability, budget and late divergence added to the reward add gains (4, 9)",
        *("reward_composite", "reward_credit", "better"),
    ),
)


def bits_at(row: Row, step: int) -> dict[str, float]:
    """Returns the held-out bits per byte at the curve's point that is nearest to a step.

    A run that has diverged by then has 8.
    """
    value = row["bpb_curve"][int(np.argmin(np.abs(np.array(row["steps"]) - step)))]
    is_over = row["steps"][-1] < step  # a diverged run stays at its last step
    return bits_per_byte(
        {"bpb": value, "divergence_reason": row["divergence_reason"] if is_over else None}
    )


def in_both_units(bits: Scores) -> dict[str, Sample]:
    """Returns bits per byte of each seed, and their perplexity."""
    bpb = bits["bpb"]
    return {"bpb": bpb, "perplexity": Sample(bpb.seeds, 2.0**bpb.values)}


def below_at(data: Data, arm: str, reference: str, unit: str, step: int | None) -> list[float]:
    """Returns the fraction that an arm lies below a reference at a step, or at the end (None)."""
    if step is None or arm not in data.arms or reference not in data.arms:
        return data.below(arm, reference, unit)
    ours, theirs = (
        in_both_units(samples(data.members(name), partial(bits_at, step=step)))[unit]
        for name in (arm, reference)
    )
    return ours.below(theirs)


def verdict(found: Sequence[float], claim: Claim) -> str:
    """Returns the support of a claim by an advantage in perplexity with its interval."""
    if len(found) < 3:
        return "not measured"
    _, low, high = found
    if claim.direction == "not better":
        return _not_better(low, high)

    sign = 1.0 if claim.direction == "better" else -1.0
    low, high = sorted((sign * low, sign * high))
    if high < 0.0:
        return "no, the reverse"
    size = None if claim.number is None else sign * claim.number
    if size is None:
        return "undecided" if low <= 0.0 else "yes"
    if low <= 0.0:
        return "undecided" if high >= size else "refuted: no difference of that size"
    return "direction, not size" if high < size else "yes, more" if low > size else "yes"


def _not_better(low: float, high: float) -> str:
    if low > 0.0:
        return "no, better"
    if high < 0.0:
        return "yes, worse"
    margin = f"yes, not by {100 * NOT_BETTER_MARGIN:g} %"
    return margin if high < NOT_BETTER_MARGIN else "undecided"
