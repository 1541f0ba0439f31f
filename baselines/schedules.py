"""Baselines: base rates and base schedules of the plant, true at every step, with every dial at
neutral.

A baseline is keyword arguments of the environment and nothing else; whoever runs it gives zero
actions. `BASELINES` are the ones with a name; `constant_multipliers` and
`schedule_free_configurations` are the sweeps, of which the best on tuning seeds is reported.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hpenv.model import parameter_kind, parameter_shapes
from hpenv.model import preset as model_preset
from hpenv.schedules import Constant, Cosine, LinearDecay, Schedule, WarmupFlatWarmdown

#: The paper's conservative base, the same for all groups (JEL, section 4.1).
BASE_LR, BASE_WEIGHT_DECAY = 1e-3, 1e-2
#: Length of the paper's runs, which the warmups of its table 3 are given for [steps].
PAPER_STEPS = 561
#: Where `python -m baselines.run --tune` writes the rates that it finds, and with what it found
#: them.
HAND_TUNED = Path(__file__).with_name("hand_tuned.json")

PerGroup = dict[str, float]


@dataclass(frozen=True)
class Baseline:
    """A named way to train without a controller.

    Attributes:
        name: what it is called in tables.
        env_kwargs: keyword arguments of the env.
        source: where it comes from.
        doc: what it is, in a sentence.
    """

    name: str
    env_kwargs: dict[str, Any]
    source: str
    doc: str


def groups_of(preset: str) -> tuple[str, ...]:
    """Optimizer groups of a preset, in the order of its tensors."""
    return tuple(
        dict.fromkeys(parameter_kind(name) for name in parameter_shapes(model_preset(preset)))
    )


def nanochat_rates(preset: str = "nano") -> dict[str, PerGroup]:
    """nanochat's own base rates at the size of a preset: `base_lr` and `base_weight_decay`, group
    -> rate.

    Embeddings 0.3 and unembedding 0.004, times (n_embd / 768)^-0.5; matrices 0.02; weight decay on
    matrices alone, 0.2 (12 / depth)^2, which is the 0.8 of JEL's section 4.1. nanochat fitted that
    rule on depths of 8 to 20: at the 2 layers of `nano` it says 7.2, a seventh of a matrix per
    step, so below 6 layers it is left at 0.2. nanochat has 0.005 for the residual lambdas and 0.5
    for those of the embedding; they are one group here, which gets the 0.005 and one pair of betas.

    References:
        nanochat at commit 8630d32, gpt.setup_optimizers and scripts/base_train.py.
    """
    config = model_preset(preset)
    width = (config.n_embd / 768) ** -0.5
    lr = {"embedding": 0.3 * width, "unembedding": 0.004 * width, "scalar": 0.005, "matrix": 0.02}
    decay = 0.2 * (12 / config.n_layer) ** 2 if config.n_layer >= 6 else 0.2
    groups = groups_of(preset)
    return {
        "base_lr": {group: lr[group] for group in groups},
        "base_weight_decay": {group: decay if group == "matrix" else 0.0 for group in groups},
    }


def hand_tuned_rates(preset: str = "nano") -> dict[str, PerGroup]:
    """Per-group base rates found by coordinate search from nanochat's, as HAND_TUNED has them.

    Raises:
        ValueError: for a preset that the file is not of.
    """
    found = json.loads(HAND_TUNED.read_text(encoding="utf-8"))
    if preset != found["preset"]:
        raise ValueError(
            f"no hand-tuned rates for preset {preset!r}; expected {found['preset']!r}, or tune it with "
            f"`python -m baselines.run --tune --preset {preset}`"
        )
    return {name: dict(found["rates"][name]) for name in ("base_lr", "base_weight_decay")}


def tuning_runs() -> int:
    """Runs that the hand-tuned rates were found with."""
    found = json.loads(HAND_TUNED.read_text(encoding="utf-8"))
    return len(found["history"]) * len(found["seeds"])


def _uniform() -> dict[str, Any]:
    return {"base_lr": BASE_LR, "base_weight_decay": BASE_WEIGHT_DECAY}


def _cosine(num_steps: int) -> Cosine:
    """To zero, without warmup: as far down as the warmdown it is compared with."""
    return Cosine(num_steps)


def _wsd(num_steps: int) -> WarmupFlatWarmdown:
    """2 % warmup and 20 % linear cooldown to zero (Haegele et al. 2024, section 3; MiniCPM has 10 %)."""
    return WarmupFlatWarmdown(
        num_steps, warmup_steps=round(0.02 * num_steps), warmdown_fraction=0.2
    )


def constant(num_steps: int, preset: str = "nano") -> Baseline:
    """The conservative base at a constant rate."""
    return Baseline(
        "constant",
        _uniform() | {"schedule": "none"},
        "JEL, section 4.1: 'controller disabled (constant 1x multiplier)', read literally",
        "conservative uniform base, constant rate",
    )


def constant_warmdown(num_steps: int, preset: str = "nano") -> Baseline:
    """The conservative base under the paper's base schedule."""
    return Baseline(
        "constant_warmdown",
        _uniform() | {"schedule": "warmup_flat_warmdown"},
        "JEL, section 4.1: controller disabled, 'all models train with ... (40% warmdown)'",
        "conservative uniform base, 40 % warmdown: what a controller does at neutral",
    )


def cosine(num_steps: int, preset: str = "nano") -> Baseline:
    """The conservative base under a cosine."""
    return Baseline(
        "cosine",
        _uniform() | {"schedule": _cosine(num_steps)},
        "Loshchilov & Hutter 2017 (arXiv 1608.03983)",
        "conservative uniform base, cosine to zero",
    )


def wsd(num_steps: int, preset: str = "nano") -> Baseline:
    """The conservative base under warmup, stable, decay."""
    return Baseline(
        "wsd",
        _uniform() | {"schedule": _wsd(num_steps)},
        "Hu et al. 2024 (MiniCPM, arXiv 2404.06395); Haegele et al. 2024 (arXiv 2405.18392)",
        "conservative uniform base, 2 % warmup, stable, 20 % linear decay",
    )


def hand_tuned(num_steps: int, preset: str = "nano") -> Baseline:
    """Tuned per-group rates under the paper's base schedule."""
    return Baseline(
        "hand_tuned",
        hand_tuned_rates(preset) | {"schedule": WarmupFlatWarmdown(num_steps)},
        "JEL, section 4.1 in kind: nanochat's rates, tuned for this size by `baselines.run --tune` (hand_tuned.json)",
        "per-group rates tuned for this size, 40 % warmdown",
    )


def cosine_tuned(num_steps: int, preset: str = "nano") -> Baseline:
    """Tuned per-group rates under a cosine."""
    return Baseline(
        "cosine_tuned",
        hand_tuned_rates(preset) | {"schedule": _cosine(num_steps)},
        "as hand_tuned, whose rates were chosen under a warmdown; cosine as in `cosine`",
        "per-group rates tuned for this size, cosine to zero",
    )


def wsd_tuned(num_steps: int, preset: str = "nano") -> Baseline:
    """Tuned per-group rates under warmup, stable, decay."""
    return Baseline(
        "wsd_tuned",
        hand_tuned_rates(preset) | {"schedule": _wsd(num_steps)},
        "as hand_tuned, whose rates were chosen under a 40 % warmdown; schedule as in `wsd`",
        "per-group rates tuned for this size, 2 % warmup, stable, 20 % linear decay",
    )


def nanochat(num_steps: int, preset: str = "nano") -> Baseline:
    """Trains with nanochat's rates, schedules and Muon, but without its rule for the batch size.

    The rule multiplies all rates by sqrt(tokens of a step / 524,288): 1/32 at 512 tokens. Nothing
    is tuned for this size; on `jel-73m` it is the paper's hand-tuned upper bound.
    """
    return Baseline(
        "nanochat",
        nanochat_rates(preset)
        | {
            "optimizer": "adamw_muon_nanochat",
            "schedule": WarmupFlatWarmdown(num_steps),
            "weight_decay_schedule": LinearDecay(num_steps),
        },
        "nanochat at commit 8630d32: 40 % warmdown, weight decay linear to zero, its own Muon",
        "nanochat's own per-group rates, schedule and optimizer",
    )


#: Name -> the baseline at a number of steps (and preset).
BASELINES: dict[str, Callable[..., Baseline]] = {
    build.__name__: build
    for build in (
        constant,
        constant_warmdown,
        cosine,
        wsd,
        hand_tuned,
        cosine_tuned,
        wsd_tuned,
        nanochat,
    )
}


def constant_multipliers(num_steps: int, num_multipliers: int = 7) -> dict[str, dict[str, Any]]:
    """Sweep of one multiplier of the uniform base rate, 1 to 100 on a log grid, each with and
    without 40 % warmdown.

    What a controller could do that decides once. The base weight decay stays what it is, so that,
    being multiplied by the learning rate, the decay of a step grows along.

    Args:
        num_steps: of a run [steps].
        num_multipliers: points of the grid; 7 are three a decade.

    Returns:
        Name -> keyword arguments of the env.
    """
    schedules: tuple[tuple[str, Schedule], ...] = (
        ("", Constant()),
        ("_warmdown", WarmupFlatWarmdown(num_steps)),
    )
    return {
        f"x{multiplier:.3g}{suffix}": {
            "base_lr": BASE_LR * float(multiplier),
            "base_weight_decay": BASE_WEIGHT_DECAY,
            "schedule": schedule,
        }
        for multiplier in np.geomspace(1.0, 100.0, num_multipliers)
        for suffix, schedule in schedules
    }


#: Learning rate, weight decay and warmup [steps of 561] of the paper's 8 configurations (JEL, table
#: 3).
SCHEDULE_FREE = (
    (0.5, 0.0, 0),
    (0.5, 0.01, 0),
    (1.0, 0.0, 0),
    (1.0, 0.01, 0),
    (2.0, 0.0, 0),
    (2.0, 0.01, 0),
    (1.0, 0.01, 100),
    (1.0, 0.01, 300),
)


def schedule_free_configurations(
    reading: Literal["sgd", "adamw"], num_steps: int, preset: str = "nano"
) -> dict[str, dict[str, Any]]:
    """The paper's sweep of a schedule-free optimizer (JEL, table 3): 8 configurations.

    The caption fixes Muon at rate 0.02 and decay 0.2, which stay on the matrices with their 40 %
    warmdown; everything else is schedule-free at one constant rate. The paper names neither the
    optimizer nor what its rates of 0.5, 1 and 2 multiply. Both entries are our readings: `sgd` is
    the likelier one (1.0 is the default rate of the package's SGDScheduleFree, and such rates make
    its AdamW diverge on small models), `adamw` the literal "schedule-free AdamW + Muon". Warmups
    scale with num_steps / 561.

    Args:
        reading: `sgd` or `adamw`.
        num_steps: of a run [steps].
        preset: whose groups are named.

    Returns:
        Name -> keyword arguments of the env.

    Raises:
        ValueError: for an unknown reading.
    """
    if reading not in ("sgd", "adamw"):
        raise ValueError(f"unknown reading {reading!r}; expected one of ['adamw', 'sgd']")
    groups = groups_of(preset)

    return {
        f"lr{lr:g}_wd{wd:g}_warmup{warmup}": schedule_free(
            reading, lr, wd, warmup, num_steps, groups
        )
        for lr, wd, warmup in SCHEDULE_FREE
    }


def schedule_free(
    reading: str, lr: float, decay: float, warmup: float, num_steps: int, groups: Sequence[str]
) -> dict[str, Any]:
    """Keyword arguments of a schedule-free optimizer beside Muon; the warmup is given for runs of 561 steps [steps]."""
    free = Constant(round(warmup * num_steps / PAPER_STEPS))
    return {
        "optimizer": f"schedule_free_{reading}_muon",
        "base_lr": dict.fromkeys(groups, lr) | {"matrix": 0.02},
        "base_weight_decay": dict.fromkeys(groups, decay) | {"matrix": 0.2},
        "schedule": dict.fromkeys(groups, free) | {"matrix": WarmupFlatWarmdown(num_steps)},
    }
