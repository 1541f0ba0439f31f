"""Comparisons of the Sidecar's experiments, the paper's claims, and verdicts on them.

The measured number is held-out bits per byte. Perplexity is 2^bpb, per byte. A small percentage of
bits is bpb ln 2 times as large a percentage of perplexity: less than twice below 2.9 bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hpenv.benchmark.statistics import mean_interval, paired_relative_interval
from hpenv.control.channels import CHANNELS
from train_agents.experiments import report as engine
from train_agents.experiments.report import Result

#: Gain in perplexity that an arm which is "not better" must be shown to lie below.
NOT_BETTER_MARGIN = 0.01
Unit = Literal["bpb", "perplexity"]
UNITS: tuple[Unit, ...] = ("bpb", "perplexity")
#: Seed -> held-out bits per byte, the mean over its rows.
Scores = dict[int, float]

LABELS = {
    "detached": "default, no Sidecar",
    "foundational": "Sidecar, foundational surface",
    "no_learning": "Sidecar that explores and learns nothing",
    "sweep_constant": "best constant rate of a sweep",
    "sweep_schedule": "best schedule of a sweep",
    "no_gate": "Sidecar without its gate of evidence",
    "layer_lr": "Sidecar, a rate per layer alone",
    "reward_detached": "default, no Sidecar",
    "reward_next": "next step's loss change (the default)",
    "reward_same_batch": "loss change on the same batch",
    "reward_probe": "probe loss change",
    "reward_credit": "loss change, of an action's own step and the next",
    "reward_composite": "loss change, stability, budget and late divergence",
    "reward_window": "loss change over 16 steps",
    "reward_interval": "a rate alone, every 50 steps, on their mean loss",
    "reward_population": "loss change, baseline of rows on the same data",
    "reward_common": "loss change, a common part per channel",
    "backward_grad_skip": "foundational and gradient skipping",
    "backward_grad_gate": "foundational and gradient gating",
    "backward_grad_truncate": "foundational and gradient truncation",
    "backward_momentum_blend": "foundational and momentum blending",
    "cap_dormant": "caps alone, dormant at the start",
    "cap_binding": "caps alone, binding at the start",
    "wrong_neutral": "skipping whose neutral is a probability of 0.6",
    "long_detached": "default, no Sidecar",
    "long_foundational": "Sidecar, foundational surface",
    "long_weight_decay": "foundational and weight decay per tensor",
}


@dataclass(frozen=True)
class Comparison:
    """Table of the report: its arms, and the arms that they are compared with."""

    arms: tuple[str, ...]
    references: tuple[str, ...]


_REWARDS = (
    *("reward_detached", "reward_next", "reward_same_batch", "reward_probe", "reward_credit"),
    *("reward_composite", "reward_window", "reward_interval", "reward_population", "reward_common"),
)
_BACKWARD = ("grad_skip", "grad_gate", "grad_truncate", "momentum_blend")
_SWEEPS = ("sweep_constant", "sweep_schedule")
COMPARISONS = {
    "foundational": Comparison(
        ("detached", "foundational", "no_learning", "no_gate", "layer_lr", *_SWEEPS),
        ("detached", "foundational", "no_learning", *_SWEEPS),
    ),
    "rewards": Comparison(_REWARDS, ("reward_detached", "reward_next", "reward_credit")),
    "backward": Comparison(
        ("detached", "foundational", *(f"backward_{name}" for name in _BACKWARD)),
        ("detached", *_SWEEPS, "foundational"),
    ),
    "caps": Comparison(
        ("detached", "cap_dormant", "cap_binding", "wrong_neutral"),
        ("detached", *_SWEEPS, "cap_dormant"),
    ),
    "weight_decay": Comparison(
        ("long_detached", "long_foundational", "long_weight_decay"),
        ("long_detached", "long_foundational"),
    ),
}


@dataclass(frozen=True)
class Claim:
    """Statement of the paper about a difference between two arms."""

    text: str  # in our words
    arm: str
    reference: str
    direction: Literal["better", "worse", "not better"]  # of the arm
    number: float | None = None  # fraction that the arm is ahead (negative: behind), if stated
    step: int | None = None  # of the run; None for its end


#: Arms and their claims, as text, arm, reference, direction, number and step.
_CLAIMED: tuple[tuple[Any, ...], ...] = (
    ("attached 42 % ahead of detached (3)", "foundational", "detached", "better", 0.42),
    ("ahead of a tuned constant, too (1)", "foundational", "sweep_constant", "better"),
    ("ahead of a tuned schedule, too (1)", "foundational", "sweep_schedule", "better"),
    ("rates per layer 12 % ahead of a uniform rate (7)", "layer_lr", "detached", "better", 0.12),
    (
        "weight decay per tensor 19.3 % ahead at the end (5.3)",
        *("long_weight_decay", "long_foundational", "better", 0.193),
    ),
    (
        "skipping gradients does not beat the foundational surface (6)",
        *("backward_grad_skip", "foundational", "not better"),
    ),
    ("nor does gating (6)", "backward_grad_gate", "foundational", "not better"),
    ("nor does truncation (6)", "backward_grad_truncate", "foundational", "not better"),
    ("nor does momentum blending (6)", "backward_momentum_blend", "foundational", "not better"),
    (
        "a cap that binds at the start costs 14 % by step 1000 (8)",
        *("cap_binding", "cap_dormant", "worse", -0.14, 1000),
    ),
    ("a wrong neutral costs dearly (6)", "wrong_neutral", "backward_grad_skip", "worse"),
    (
        "attached 42 % ahead of detached, the reward read as the change of a held-out loss (3, 4)",
        *("reward_probe", "reward_detached", "better", 0.42),
    ),
    (
        "stability, budget and late divergence added to the reward add gains (4, 9)",
        *("reward_composite", "reward_credit", "better"),
    ),
)
CLAIMS = tuple(Claim(*claimed) for claimed in _CLAIMED)


def load_results(folder: Path) -> dict[str, Result]:
    """Returns the result of every arm. Those of `<arm>-<number>` are joined to those of `<arm>`."""
    joined: dict[str, Result] = {}
    for name, members in engine.by_arm(engine.load_results(folder)).items():
        rows = chain.from_iterable(result["rows"] for result in members)
        joined[name] = {**members[0], "rows": list(rows)}
    return joined


def scores(result: Result, step: int | None = None) -> Scores:
    """Returns the held-out bits per byte of each seed, at the end or at a step of the run.

    The curve's nearest point counts. A run that has diverged by then scores 8, a uniform guess over
    bytes.
    """
    found: dict[int, list[float]] = {}
    for row in result["rows"]:
        value, lost = row["bpb"], row["divergence_reason"] is not None
        if step is not None:
            value = row["bpb_curve"][int(np.argmin(np.abs(np.array(row["steps"]) - step)))]
            lost = lost and row["steps"][-1] < step  # the run stayed at its last step
        lost = lost or value is None
        found.setdefault(int(row["seed"]), []).append(8.0 if lost else float(value))
    return {seed: float(np.mean(values)) for seed, values in found.items()}


def advantage(ours: Scores, reference: Scores, unit: Unit) -> list[float] | None:
    """Returns the fraction that we lie below the reference, paired over the seeds both have.

    Returns:
        [mean, low, high] with the 95 % interval, [mean] with one seed in common, or None.
    """
    seeds = sorted(set(ours) & set(reference))
    a, b = (np.array([values[seed] for seed in seeds]) for values in (ours, reference))
    if unit == "perplexity":
        a, b = 2.0**a, 2.0**b
    if len(seeds) > 1:
        return [float(value) for value in paired_relative_interval(a, b)]
    return [float((b[0] - a[0]) / b[0])] if seeds else None


def summarize(results: Mapping[str, Result]) -> dict[str, dict[str, Any]]:
    """Returns each arm's bits per byte, perplexity, differences from its references and cost."""
    return {name: _entry(name, results) for name in LABELS if name in results}


def _entry(name: str, results: Mapping[str, Result]) -> dict[str, Any]:
    ours, extra = scores(results[name]), results[name]["extra"]
    values = np.array(list(ours.values()))
    tables = [table.references for table in COMPARISONS.values() if name in table.arms]
    versus = {}
    for other in sorted(set(chain.from_iterable(tables)) & set(results) - {name}):
        theirs = scores(results[other])
        versus[other] = {unit: advantage(ours, theirs, unit) for unit in UNITS}
    return {
        "seeds": list(ours),
        "bpb": float(values.mean()),
        "perplexity": float((2.0**values).mean()),
        "interval": list(mean_interval(values)[1:]) if len(values) > 1 else None,
        "diverged": sum(row["divergence_reason"] is not None for row in results[name]["rows"]),
        "versus": versus,
        **{key: extra.get(key) for key in ("agent_ms", "env_ms", "advantage_rms", "evidence")},
        "rates": final_values(results[name], "lr"),
    }


def final_values(result: Result | None, channel: str) -> dict[str, float] | None:
    """Returns geometric mean and ends of a channel's final values, None without it."""
    names = result["extra"].get("names", []) if result else []
    columns = [column for column, name in enumerate(names) if name.split("/")[0] == channel]
    if result is None or not columns:
        return None
    values = CHANNELS[channel].values(np.array(result["extra"]["final_mean"])[:, columns])
    mean = float(np.exp(np.log(values).mean()))
    return {"mean": mean, "low": float(values.min()), "high": float(values.max())}


def verdict(found: Sequence[float] | None, claim: Claim) -> str:
    """Returns whether an advantage in perplexity, with its interval, supports a claim."""
    if found is None or len(found) < 3:
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
