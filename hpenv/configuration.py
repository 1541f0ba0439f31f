"""What a pretraining run is, and the checks of what may be asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

import torch

from hpenv.schedules import Constant, Schedule, check_schedule, described
from hpenv.values import check_count, is_number, set_python_fields

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
    base_weight_decay: PerGroup = (
        1e-2  # decoupled, multiplied by the learning rate (JEL: uniform 1e-2)
    )
    lr_schedule: SchedulePerGroup = field(default_factory=Constant)  # step -> multiplier of base_lr
    weight_decay_schedule: SchedulePerGroup = field(
        default_factory=Constant
    )  # step -> multiplier of base_weight_decay
    num_probe_batches: int = (
        4  # fixed batches of batch_tokens that the reward may see (JEL, section 3.4)
    )
    eval_tokens: int = 65_536  # of the validation slice, or all that it has [tokens]
    divergence_multiple: float = 3.0  # of ln(vocabulary); a loss above it ends the run
    device: str = "cpu"
    dtype: str = "float32"  # of forward and backward pass; weights and moments stay float32
    compile: bool = False  # torch.compile the loss

    def __post_init__(self) -> None:
        """Refuses what cannot be run."""
        set_python_fields(self)
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
        if not (is_number(self.divergence_multiple) and self.divergence_multiple > 1):
            raise ValueError(
                f"divergence_multiple={self.divergence_multiple!r} must be a number above 1"
            )
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
        """Returns what a snapshot must agree with, as JSON-able values.

        Without `data` and `tokenizer`, which say where the text lies: what it is, the plant knows.
        """
        names = [entry.name for entry in fields(self) if entry.name not in ("data", "tokenizer")]
        return {name: described(getattr(self, name)) for name in names}
