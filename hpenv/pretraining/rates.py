"""Rates of the optimizer: base rate x base schedule x the multiplier of the panel, and sites."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpenv.arrays import IntArray
from hpenv.control.panel import Panel, TensorSite
from hpenv.optim.rules import Rates, Rule
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


def tensor_sites(groups: Mapping[str, str], rules: Mapping[str, Rule]) -> dict[str, TensorSite]:
    """Returns group, optimizer and layer of every tensor: name -> its site.

    Args:
        groups: tensor -> its optimizer group. A tensor of layer i is named `layer.<i>.<matrix>`.
        rules: group -> its update rule.
    """
    sites = {}
    for name, group in groups.items():
        layer = int(name.split(".")[1]) if "." in name else None
        sites[name] = TensorSite(group, rules[group].optimizer, layer)
    return sites


def _of_group(value: Any, group: str) -> Any:
    return value[group] if isinstance(value, Mapping) else value
