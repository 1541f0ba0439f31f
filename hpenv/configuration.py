"""What a pretraining run is, and the checks of what may be asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

import numpy as np
import torch

from hpenv.schedules import Constant, Schedule, check_schedule, described

PerGroup = float | Mapping[str, float]
SchedulePerGroup = Schedule | Mapping[str, Schedule]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class PretrainingConfig:
    """What a run is; the same for every row of a population."""

    preset: str = "nano"  # a key of model.PRESETS
    data: str = "stdlib"  # see data.load_corpus
    tokenizer: str = "bytes"  # see data.load_corpus
    batch_tokens: int = 512  # tokens of one optimizer step [tokens]
    sequence_length: int = 64  # [tokens]
    optimizer: str = "adamw_muon"  # a key of optimizers.OPTIMIZERS
    base_lr: PerGroup = 1e-3  # one for all groups, or group -> rate (JEL: uniform 1e-3)
    base_weight_decay: PerGroup = 1e-2  # decoupled, multiplied by the learning rate (JEL: uniform 1e-2)
    lr_schedule: SchedulePerGroup = field(default_factory=Constant)  # step -> multiplier of base_lr
    weight_decay_schedule: SchedulePerGroup = field(default_factory=Constant)  # step -> multiplier of base_weight_decay
    num_probe_batches: int = 4  # fixed batches of batch_tokens that the reward may see (JEL, section 3.4)
    eval_tokens: int = 65_536  # of the validation slice, or all that it has [tokens]
    divergence_multiple: float = 3.0  # of ln(vocabulary); a loss above it ends the run
    device: str = "cpu"
    dtype: str = "float32"  # of forward and backward pass; weights and moments stay float32
    compile: bool = False  # torch.compile the loss

    def __post_init__(self) -> None:
        """Refuses what cannot be run."""
        for name in ("base_lr", "base_weight_decay"):
            rates = getattr(self, name)
            for rate in rates.values() if isinstance(rates, Mapping) else (rates,):
                if not (is_number(rate) and math.isfinite(rate) and rate >= 0):
                    raise ValueError(f"{name}={rates!r} must be finite and not negative")
        for name in ("lr_schedule", "weight_decay_schedule"):
            schedules = getattr(self, name)
            for schedule in schedules.values() if isinstance(schedules, Mapping) else (schedules,):
                check_schedule(name, schedule)
        for name in ("batch_tokens", "sequence_length", "num_probe_batches", "eval_tokens"):
            check_count(name, getattr(self, name))
        if self.batch_tokens % self.sequence_length:
            raise ValueError(
                f"batch_tokens={self.batch_tokens} must be a multiple of sequence_length={self.sequence_length}"
            )
        if not isinstance(self.compile, bool):
            raise ValueError(f"compile={self.compile!r} must be True or False")
        if self.dtype not in DTYPES:
            raise ValueError(f"unknown dtype {self.dtype!r}; expected one of {sorted(DTYPES)}")
        if not self.divergence_multiple > 1:
            raise ValueError(f"divergence_multiple={self.divergence_multiple} must be above 1")
        try:
            torch.device(self.device)
        except RuntimeError as error:
            raise ValueError(
                f"unknown device {self.device!r}; expected one that torch knows, as 'cpu' or 'cuda'"
            ) from error

    @property
    def batch_size(self) -> int:
        """Sequences of one batch."""
        return self.batch_tokens // self.sequence_length

    def description(self) -> dict[str, object]:
        """The configuration as JSON-able values; schedules as their text."""
        return {field.name: _described(getattr(self, field.name)) for field in fields(self)}


def _described(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key): _described(entry) for key, entry in value.items()}
    if isinstance(value, np.generic):
        return value.item()
    return value if isinstance(value, int | float | str) else described(value)


def is_number(value: object) -> bool:
    """Whether this is a real number, of Python or numpy; True and False are not."""
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def is_count(value: object) -> bool:
    """Whether this is a whole number of at least 1."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= 1)


def check_count(name: str, value: object) -> None:
    """Refuses what is not a whole number of at least 1.

    Raises:
        ValueError: naming the argument and what was given.
    """
    if not is_count(value):
        raise ValueError(f"{name}={value!r} must be at least 1, a whole number")
