"""Baselines: base rates and base schedules of the plant, exact at every step, all cells neutral.

A baseline is only a set of keyword arguments of the environment. Its runs get zero actions.
`BASELINES` holds the named baselines. `constant_multipliers` and `schedule_free_configurations` are
sweeps, and the best configuration on tuning seeds is reported.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hpenv.lm.architecture import parameter_kind, parameter_shapes
from hpenv.lm.architecture import preset as model_preset
from hpenv.optim.schedules import Constant, Cosine, LinearDecay, Schedule, WarmupFlatWarmdown

#: The paper's conservative base rates, equal for all groups (JEL, section 4.1).
BASE_LR, BASE_WEIGHT_DECAY = 1e-3, 1e-2
#: Length of the paper's runs [steps]. The warmups of its table 3 are for this length.
PAPER_STEPS = 561
#: File in which `python -m baselines.run --tune` writes its rates and a record of the search.
HAND_TUNED = Path(__file__).with_name("hand_tuned.json")

PerGroup = dict[str, float]


@dataclass(frozen=True)
class Baseline:
    """A named configuration that trains without a controller.

    Attributes:
        name: name in tables.
        env_kwargs: keyword arguments of the env.
        source: the source in the literature.
        doc: description in one sentence.
    """

    name: str
    env_kwargs: dict[str, Any]
    source: str
    doc: str


def groups_of(preset: str) -> tuple[str, ...]:
    """Returns the optimizer groups of a preset, in the order of its tensors."""
    return tuple(
        dict.fromkeys(parameter_kind(name) for name in parameter_shapes(model_preset(preset)))
    )


def nanochat_rates(preset: str = "nano") -> dict[str, PerGroup]:
    """Returns nanochat's base rates at the size of a preset.

    The learning rates are 0.3 for embeddings and 0.004 for the unembedding, times
    (n_embd / 768)^-0.5, and 0.02 for matrices. Only matrices have weight decay, 0.2 (12 / depth)^2,
    which is the 0.8 of JEL's section 4.1. nanochat fitted that rule on depths of 8 to 20. At the 2
    layers of `nano` it gives 7.2, a seventh of a matrix per step, so the decay is 0.2 below 6
    layers. nanochat has 0.005 for the residual lambdas and 0.5 for those of the embedding. They are
    one group here, with 0.005 and one pair of betas.

    Returns:
        `base_lr` and `base_weight_decay`, each group -> rate.

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
    """Returns the per-group base rates in HAND_TUNED, the result of a search from nanochat's.

    Raises:
        ValueError: HAND_TUNED holds the rates of another preset.
    """
    found = json.loads(HAND_TUNED.read_text(encoding="utf-8"))
    if preset != found["preset"]:
        raise ValueError(
            f"preset must be {found['preset']!r} for hand-tuned rates; got {preset!r}; "
            f"tune it with `python -m baselines.run --tune --preset {preset}`"
        )
    return {name: dict(found["rates"][name]) for name in ("base_lr", "base_weight_decay")}


def tuning_runs() -> int:
    """Returns the number of runs of the search for the hand-tuned rates."""
    found = json.loads(HAND_TUNED.read_text(encoding="utf-8"))
    return len(found["history"]) * len(found["seeds"])


def _uniform() -> dict[str, Any]:
    return {"base_lr": BASE_LR, "base_weight_decay": BASE_WEIGHT_DECAY}


def _cosine(num_steps: int) -> Cosine:
    """Returns a cosine to zero without warmup. The warmdowns in the comparison also end at zero."""
    return Cosine(num_steps)


def _wsd(num_steps: int) -> WarmupFlatWarmdown:
    """Returns a schedule of 2 % warmup and 20 % linear cooldown to zero.

    The fractions are those of Haegele et al. 2024, section 3. MiniCPM has 10 % cooldown.
    """
    return WarmupFlatWarmdown(
        num_steps, warmup_steps=round(0.02 * num_steps), warmdown_fraction=0.2
    )


def constant(num_steps: int, preset: str = "nano") -> Baseline:
    """Returns the conservative base at a constant rate."""
    return Baseline(
        "constant",
        _uniform() | {"schedule": "none"},
        "JEL, section 4.1: 'controller disabled (constant 1x multiplier)', read literally",
        "conservative uniform base, constant rate",
    )


def constant_warmdown(num_steps: int, preset: str = "nano") -> Baseline:
    """Returns the conservative base under the paper's base schedule."""
    return Baseline(
        "constant_warmdown",
        _uniform() | {"schedule": "warmup_flat_warmdown"},
        "JEL, section 4.1: controller disabled, 'all models train with ... (40% warmdown)'",
        "conservative uniform base, 40 % warmdown: what a controller does at neutral",
    )


def cosine(num_steps: int, preset: str = "nano") -> Baseline:
    """Returns the conservative base under a cosine."""
    return Baseline(
        "cosine",
        _uniform() | {"schedule": _cosine(num_steps)},
        "Loshchilov & Hutter 2017 (arXiv 1608.03983)",
        "conservative uniform base, cosine to zero",
    )


def wsd(num_steps: int, preset: str = "nano") -> Baseline:
    """Returns the conservative base under warmup, stable, decay."""
    return Baseline(
        "wsd",
        _uniform() | {"schedule": _wsd(num_steps)},
        "Hu et al. 2024 (MiniCPM, arXiv 2404.06395); Haegele et al. 2024 (arXiv 2405.18392)",
        "conservative uniform base, 2 % warmup, stable, 20 % linear decay",
    )


def hand_tuned(num_steps: int, preset: str = "nano") -> Baseline:
    """Returns tuned per-group rates under the paper's base schedule."""
    return Baseline(
        "hand_tuned",
        hand_tuned_rates(preset) | {"schedule": WarmupFlatWarmdown(num_steps)},
        "JEL, section 4.1 in kind: nanochat's rates, tuned for this size by "
        "`baselines.run --tune` (hand_tuned.json)",
        "per-group rates tuned for this size, 40 % warmdown",
    )


def cosine_tuned(num_steps: int, preset: str = "nano") -> Baseline:
    """Returns tuned per-group rates under a cosine."""
    return Baseline(
        "cosine_tuned",
        hand_tuned_rates(preset) | {"schedule": _cosine(num_steps)},
        "as hand_tuned, whose rates were chosen under a warmdown; cosine as in `cosine`",
        "per-group rates tuned for this size, cosine to zero",
    )


def wsd_tuned(num_steps: int, preset: str = "nano") -> Baseline:
    """Returns tuned per-group rates under warmup, stable, decay."""
    return Baseline(
        "wsd_tuned",
        hand_tuned_rates(preset) | {"schedule": _wsd(num_steps)},
        "as hand_tuned, whose rates were chosen under a 40 % warmdown; schedule as in `wsd`",
        "per-group rates tuned for this size, 2 % warmup, stable, 20 % linear decay",
    )


def nanochat(num_steps: int, preset: str = "nano") -> Baseline:
    """Returns nanochat's rates, schedules and Muon, without its rule for the batch size.

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


def nanochat_warmdown(num_steps: int, preset: str = "nano") -> Baseline:
    """Returns nanochat's rates under the paper's base schedule, with Muon as in `hand_tuned`."""
    return Baseline(
        "nanochat_warmdown",
        nanochat_rates(preset) | {"schedule": "warmup_flat_warmdown"},
        "nanochat at commit 8630d32, its rates alone",
        "nanochat's per-group rates, 40 % warmdown: what a controller from these rates does at "
        "neutral",
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
        nanochat_warmdown,
    )
}


def constant_multipliers(num_steps: int, num_multipliers: int = 7) -> dict[str, dict[str, Any]]:
    """Returns a sweep of one multiplier of the uniform base rate, with and without 40 % warmdown.

    The multipliers are 1 to 100 on a log grid. A controller with one single decision could choose
    any of these runs. The base weight decay does not change. A step's decay still grows with the
    multiplier, because it is multiplied by the learning rate.

    Args:
        num_steps: length of a run [steps].
        num_multipliers: number of points of the grid. 7 are three a decade.

    Returns:
        Name -> keyword arguments of the env.
    """
    schedules: tuple[tuple[str, Schedule], ...] = (
        ("", Constant()),
        ("_warmdown", WarmupFlatWarmdown(num_steps)),
    )
    found: dict[str, dict[str, Any]] = {}

    for multiplier in np.geomspace(1.0, 100.0, num_multipliers):
        for suffix, schedule in schedules:
            found[f"x{multiplier:.3g}{suffix}"] = {
                "base_lr": BASE_LR * float(multiplier),
                "base_weight_decay": BASE_WEIGHT_DECAY,
                "schedule": schedule,
            }

    return found


#: Learning rate, weight decay and warmup [steps of 561] of the paper's 8 configurations (JEL,
#: table 3).
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
    """Returns the paper's sweep of a schedule-free optimizer (JEL, table 3): 8 configurations.

    The caption fixes Muon at rate 0.02 and decay 0.2. Muon stays on the matrices with a 40 %
    warmdown. All other tensors are schedule-free at one constant rate. The paper does not name the
    optimizer, and does not say what its rates of 0.5, 1 and 2 multiply. Both entries are our
    interpretations. `sgd` is the likelier one: 1.0 is the default rate of the package's
    SGDScheduleFree, and such rates make its AdamW diverge on small models. `adamw` is the literal
    "schedule-free AdamW + Muon". Warmups scale with num_steps / 561.

    Args:
        reading: interpretation, `sgd` or `adamw`.
        num_steps: length of a run [steps].
        preset: preset whose optimizer groups are named.

    Returns:
        Name -> keyword arguments of the env.

    Raises:
        ValueError: `reading` is neither `sgd` nor `adamw`.
    """
    if reading not in ("sgd", "adamw"):
        raise ValueError(f"reading must be one of ['adamw', 'sgd']; got {reading!r}")
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
    """Returns the keyword arguments of a schedule-free optimizer with Muon on the matrices.

    The warmup is that of a run of 561 steps [steps]. It scales with num_steps.
    """
    free = Constant(round(warmup * num_steps / PAPER_STEPS))
    return {
        "optimizer": f"schedule_free_{reading}_muon",
        "base_lr": dict.fromkeys(groups, lr) | {"matrix": 0.02},
        "base_weight_decay": dict.fromkeys(groups, decay) | {"matrix": 0.2},
        "schedule": dict.fromkeys(groups, free) | {"matrix": WarmupFlatWarmdown(num_steps)},
    }
