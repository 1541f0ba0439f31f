"""Configuration of a pretraining run, and the checks of its fields."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields

import torch

from hpenv.checks import check_count, is_number, set_python_fields
from hpenv.optim.schedules import Constant, Schedule, check_schedule, setting_description

PerGroup = float | Mapping[str, float]
SchedulePerGroup = Schedule | Mapping[str, Schedule]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class PretrainingConfig:
    """Hyperparameters of a run. All rows of a population share them."""

    preset: str = "nano"  # a key of lm.architecture.PRESETS
    data: str = "stdlib"  # see lm.data.load_corpus
    tokenizer: str = "bytes"  # see lm.data.load_corpus
    batch_tokens: int = 512  # tokens of one optimizer step [tokens]
    sequence_length: int = 64  # [tokens]
    optimizer: str = "adamw_muon"  # a key of optim.optimizers.OPTIMIZERS
    base_lr: PerGroup = 1e-3  # one for all groups, or group -> rate (JEL: uniform 1e-3)
    # decoupled, multiplied by the learning rate (JEL: uniform 1e-2)
    base_weight_decay: PerGroup = 1e-2
    # step -> multiplier of base_lr
    lr_schedule: SchedulePerGroup = field(default_factory=Constant)
    # step -> multiplier of base_weight_decay
    weight_decay_schedule: SchedulePerGroup = field(default_factory=Constant)
    # fixed batches of batch_tokens that the reward may see (JEL, section 3.4)
    num_probe_batches: int = 4
    eval_tokens: int = 65_536  # of the validation slice, or the whole slice [tokens]
    divergence_multiple: float = 3.0  # a loss above this multiple of ln(vocabulary) ends the run
    device: str = "cpu"
    dtype: str = "float32"  # of forward and backward pass (weights and moments stay float32)
    compile: bool = False  # torch.compile the loss

    def __post_init__(self) -> None:
        """Checks the fields.

        Raises:
            ValueError: naming the field, the accepted values and the given one.
        """
        set_python_fields(self)

        for name in ("base_lr", "base_weight_decay"):
            rates = getattr(self, name)
            for rate in rates.values() if isinstance(rates, Mapping) else (rates,):
                if not (is_number(rate) and math.isfinite(rate) and rate >= 0):
                    raise ValueError(f"{name} must be finite and not negative; got {rates!r}")

        for name in ("lr_schedule", "weight_decay_schedule"):
            schedules = getattr(self, name)
            for schedule in schedules.values() if isinstance(schedules, Mapping) else (schedules,):
                check_schedule(name, schedule)

        for name in ("batch_tokens", "sequence_length", "num_probe_batches", "eval_tokens"):
            check_count(name, getattr(self, name))
        if self.batch_tokens % self.sequence_length:
            raise ValueError(
                f"batch_tokens must be a multiple of sequence_length={self.sequence_length}; "
                f"got {self.batch_tokens}"
            )

        if not isinstance(self.compile, bool):
            raise ValueError(f"compile must be True or False; got {self.compile!r}")
        if self.dtype not in DTYPES:
            raise ValueError(f"unknown dtype {self.dtype!r}; expected one of {sorted(DTYPES)}")
        if not (is_number(self.divergence_multiple) and self.divergence_multiple > 1):
            raise ValueError(
                f"divergence_multiple must be a number above 1; got {self.divergence_multiple!r}"
            )

        try:
            torch.device(self.device)
        except RuntimeError as error:
            raise ValueError(
                f"unknown device {self.device!r}; expected a device of torch, as 'cpu' or 'cuda'"
            ) from error

    def check_groups(self, groups: Collection[str]) -> None:
        """Checks that rates that are given per group have the optimizer groups of the model.

        Raises:
            ValueError: naming the field, and the expected groups.
        """
        for name in ("base_lr", "base_weight_decay", "lr_schedule", "weight_decay_schedule"):
            given = getattr(self, name)
            if isinstance(given, Mapping) and set(given) != set(groups):
                raise ValueError(
                    f"{name} must have one value, or one for each of the groups {sorted(groups)} "
                    f"of {self.preset!r}; got the groups {sorted(given)}"
                )

    @property
    def batch_size(self) -> int:
        """Number of sequences in a batch."""
        return self.batch_tokens // self.sequence_length

    def description(self) -> dict[str, object]:
        """Returns the fields that a snapshot must match, as JSON-able values.

        `data` and `tokenizer` are left out: they say where the text is stored. The plant adds the
        digest of the text.
        """
        names = [entry.name for entry in fields(self) if entry.name not in ("data", "tokenizer")]
        return {name: setting_description(getattr(self, name)) for name in names}


def find_device(name: str) -> torch.device:
    """Returns the device of this name, after writing and reading a tensor on it.

    Raises:
        ValueError: if the device is not available.
    """
    try:
        torch.zeros(1, device=name).item()
    except (AssertionError, ImportError, RuntimeError) as error:
        raise ValueError(
            f"device {name!r} is not available (no such hardware, or torch was built without it); "
            "try device='cpu'"
        ) from error
    return torch.device(name)
