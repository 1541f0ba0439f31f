"""Rates of the optimizer: base rate x base schedule x the multiplier of the panel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpenv.arrays import IntArray
from hpenv.control.panel import Panel
from hpenv.optim.rules import Rates, Rule
from hpenv.pretraining.config import PretrainingConfig


def window_rates(
    config: PretrainingConfig,
    panel: Panel,
    groups: Sequence[str],
    members: Mapping[Rule, IntArray],
    steps: IntArray,
    device: torch.device,
) -> dict[Rule, Tensor]:
    """Returns the rates of the next S steps: rule -> the fields of `Rates`, (S, F, N, k).

    Every field of Rates is the name of a channel. The panel's multiplier is exactly 1 at neutral.

    Args:
        config: with the base rates and their schedules.
        panel: the multipliers.
        groups: optimizer group of each of the K tensors.
        members: rule -> indices of its k tensors.
        steps: numbers of the steps, (S, N).
        device: device of the rates.
    """
    base = {
        "lr": (config.base_lr, config.lr_schedule),
        "weight_decay": (config.base_weight_decay, config.weight_decay_schedule),
    }
    fields = np.ones((len(steps), len(Rates._fields), steps.shape[1], len(groups)))
    for field, name in zip(fields.swapaxes(0, 1), Rates._fields, strict=True):  # (S, N, K)
        if name in base:
            for group in dict.fromkeys(groups):
                rate, schedule = (_of_group(value, group) for value in base[name])
                own = np.asarray(groups) == group
                field[:, :, own] *= (float(rate) * schedule(steps))[:, :, None]
        table = panel.table(name)
        if table is not None:
            field *= table
    return {
        rule: torch.as_tensor(np.ascontiguousarray(fields[..., own])).to(device)
        for rule, own in members.items()
    }


def rates_of_step(rates: Mapping[Rule, Tensor], step: int) -> dict[Rule, Rates]:
    """Returns the rates of one step of a window: rule -> rates of its tensors, (N, k) each.

    Args:
        rates: of the window. See `window_rates`.
        step: number of the step in the window, from 0.
    """
    return {rule: Rates(*table[step].unbind(0)) for rule, table in rates.items()}


def _of_group(value: Any, group: str) -> Any:
    return value[group] if isinstance(value, Mapping) else value
