"""Rates of the optimizer: base rate x base schedule x the multiplier of the panel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpenv.arrays import IntArray
from hpenv.control.panel import Panel
from hpenv.optim.rules import Rates
from hpenv.pretraining.config import PretrainingConfig


def window_rates(
    config: PretrainingConfig,
    panel: Panel,
    members: Mapping[str, IntArray],
    steps: IntArray,
    device: torch.device,
) -> dict[str, tuple[Tensor, ...]]:
    """Returns the rates of the next S steps: group -> fields of `Rates`, (S, N, K) each.

    Every field of Rates is the name of a channel. The panel's multiplier is exactly 1 at neutral.

    Args:
        config: with the base rates and their schedules.
        panel: the multipliers.
        members: group -> indices of its tensors.
        steps: numbers of the steps, (S, N).
        device: device of the rates.
    """
    base = {
        "lr": (config.base_lr, config.lr_schedule),
        "weight_decay": (config.base_weight_decay, config.weight_decay_schedule),
    }
    tables = {name: panel.table(name) for name in Rates._fields}

    rates = {}
    for group, tensors in members.items():
        fields = np.ones((len(tables), *steps.shape, len(tensors)))
        for field, (name, table) in zip(fields, tables.items(), strict=True):
            if name in base:
                rate, schedule = (_of_group(value, group) for value in base[name])
                field *= (float(rate) * schedule(steps))[:, :, None]
            if table is not None:
                field *= table[:, tensors]
        rates[group] = torch.as_tensor(fields).to(device).unbind(0)
    return rates


def rates_of_step(rates: Mapping[str, tuple[Tensor, ...]], step: int) -> dict[str, Rates]:
    """Returns the rates of one step of a window: group -> rates, (N, K) each.

    Args:
        rates: of the window. See `window_rates`.
        step: number of the step in the window, from 0.
    """
    return {group: Rates(*(field[step] for field in table)) for group, table in rates.items()}


def _of_group(value: Any, group: str) -> Any:
    return value[group] if isinstance(value, Mapping) else value
