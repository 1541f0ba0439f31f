"""Generator of the suites that ship with the package: `python -m hpenv.benchmark generate NAME`.

A suite is frozen once scores of it are published. The generator documents how it was drawn, and a
test holds that it still makes the same file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from hpenv.benchmark.instances import Instance, Suite

JEL, CELL, PROJECTION = "TrainLoop-JEL-v0", "TrainLoop-Cell-v0", "TrainLoop-GRPOProjection-v0"

#: Every argument of `jel-nano`, the defaults of the id (JEL, section 4.1).
NANO: dict[str, Any] = {
    "preset": "nano",
    "data": "stdlib",
    "tokenizer": "bytes",
    "optimizer": "adamw_muon",
    "base_lr": 1e-3,
    "base_weight_decay": 1e-2,
    "batch_tokens": 512,
    "sequence_length": 64,
    "num_steps": 561,
    "schedule": "warmup_flat_warmdown",
    "eval_tokens": 65_536,
    "interval": 50,
}

#: Range of every factor over the train instances of `pretraining-v1`: values, or the ends of a
#: range that is uniform in the logarithm.
VALUES: dict[str, tuple[Any, ...]] = {
    "optimizer": ("adamw_muon", "adamw"),
    "base_weight_decay": (0.01, 0.1),
    "sequence_length": (32, 64),
    "batch_tokens": (128, 192),
    "num_steps": (80, 100, 120),
    "schedule": ("warmup_flat_warmdown", "none", "cosine"),
}
LEAST_LR, MOST_LR = 5e-4, 5e-3
#: Texts of train and test instances. The halves of a text are disjoint.
TEXTS = {
    "train": ("stdlib@1/2", "package:numpy@1/2", "synthetic:1"),
    "test": ("stdlib@2/2", "package:numpy@2/2", "synthetic:2"),
}
#: Name of a shift -> the arguments that it changes, from a point in the middle of the ranges. One
#: factor lies outside the range of the train instances.
SHIFTS: dict[str, dict[str, Any]] = {
    "low-lr": {"base_lr": 1.5e-5},
    "high-lr": {"base_lr": 0.15},
    "small-batch": {"batch_tokens": 32, "sequence_length": 32},
    "large-batch": {"batch_tokens": 512, "num_steps": 80},
    "width": {"preset": "nano-wide", "num_steps": 80},
    "depth": {"preset": "nano-deep", "num_steps": 80},
    "optimizer": {"optimizer": "adamw_muon_nanochat"},
    "corpus": {"data": "package:pydoc_data"},
    "budget": {"num_steps": 400},
    "sequence-length": {"sequence_length": 128, "batch_tokens": 128},
}
_MIDDLE: dict[str, Any] = NANO | {
    "data": "stdlib@2/2",
    "base_lr": 1.5e-3,
    "batch_tokens": 128,
    "sequence_length": 64,
    "num_steps": 100,
    "eval_tokens": 8192,
    "interval": 10,
}


def _jel_nano() -> Suite:
    return Suite(
        "jel-nano",
        "the instance of TrainLoop-JEL-v0: 561 steps of a 0.13 M transformer, base rate too low",
        10,
        5,
        (Instance("nano", JEL, NANO),),
    )


def _smoke() -> Suite:
    small = NANO | {
        "batch_tokens": 64,
        "sequence_length": 32,
        "num_steps": 60,
        "eval_tokens": 4096,
        "interval": 10,
    }
    instances = (
        Instance("text", JEL, small),
        Instance("adamw", JEL, small | {"optimizer": "adamw"}),
        Instance("synthetic", JEL, small | {"data": "synthetic"}),
        Instance("cell", CELL, small | {"interval": 1}),
    )
    return Suite(
        "smoke", "four instances of a few seconds, to try a controller on", 3, 3, instances
    )


def _drawn(split: str, number: int, random: np.random.Generator) -> Instance:
    """Returns an instance within the ranges of the train instances."""
    values = {name: choices[random.integers(len(choices))] for name, choices in VALUES.items()}
    texts = TEXTS[split]
    rate = float(np.exp(random.uniform(np.log(LEAST_LR), np.log(MOST_LR))))
    drawn = {"data": texts[number % len(texts)], "base_lr": float(f"{rate:.2g}")}
    return Instance(f"{split}-{number:02}", JEL, _MIDDLE | values | drawn, split)


def _pretraining() -> Suite:
    random = np.random.default_rng(1)
    train = [_drawn("train", number, random) for number in range(20)]
    test = [_drawn("test", number, random) for number in range(10)]
    shifted = [
        Instance(f"shift-{name}", JEL, _MIDDLE | changed, shift=name)
        for name, changed in SHIFTS.items()
    ]
    about = (
        "language-model pretraining: 20 train instances, 10 test instances from the same ranges, "
        "and 10 with one factor outside"
    )
    return Suite("pretraining-v1", about, 10, 10, (*train, *test, *shifted))


def _cell() -> Suite:
    small = _MIDDLE | {"data": "stdlib", "num_steps": 100, "interval": 1}
    instances = (
        Instance("nano-adamw", CELL, small | {"optimizer": "adamw"}),
        Instance("nano-muon", CELL, small),
        Instance("cell11-adamw", CELL, small | {"preset": "cell11", "optimizer": "adamw"}),
        Instance("cell11-muon", CELL, small | {"preset": "cell11"}),
    )
    return Suite(
        "cell-v1", "a decision at every step, with channels of every layer", 10, 5, instances
    )


def _projection() -> Suite:
    run = {"num_steps": 100, "interval": 1, "num_evaluation_problems": 128}
    instances = (
        Instance("standard", PROJECTION, run),
        Instance("high-lr", PROJECTION, run | {"base_lr": 0.6}),
        Instance("few-prompts", PROJECTION, run | {"num_prompts": 4}),
        Instance("many-steps", PROJECTION, run | {"num_steps": 200}),
    )
    return Suite("projection-v1", "GRPO with hackable graders", 10, 5, instances)


#: Name -> function that makes the suite.
GENERATORS: dict[str, Callable[[], Suite]] = {
    "jel-nano": _jel_nano,
    "smoke": _smoke,
    "pretraining-v1": _pretraining,
    "cell-v1": _cell,
    "projection-v1": _projection,
}
