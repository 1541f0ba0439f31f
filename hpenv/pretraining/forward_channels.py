"""Reads the channels of the forward pass from the panel."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from hpenv.control.channels import CHANNELS
from hpenv.control.panel import Panel
from hpenv.lm import model


def forward_dials(
    panel: Panel, logit_softcap: float, device: torch.device, share: tuple[int, int] = (0, 1)
) -> model.Dials | None:
    """Returns the panel's values for the forward pass, or None if all are at neutral.

    Every field of model.Dials but the last two, `generators` and `share`, is the name of a channel.

    Args:
        panel: values of the cells.
        logit_softcap: that of the model.
        device: where the values are needed.
        share: index and number of the shares of a batch that is divided.
    """
    moved = {
        name: panel.per_layer(name) if "layer" in CHANNELS[name].scopes else panel.per_run(name)
        for name in model.Dials._fields[:-2]
    }

    cap, softcap = moved["state_norm_cap"], moved["logit_softcap"]
    if cap is not None:
        is_active = cap < CHANNELS["state_norm_cap"].neutral
        moved["state_norm_cap"] = np.where(is_active, cap, model.DORMANT_CAP)
    if softcap is not None:
        moved["logit_softcap"] = logit_softcap * softcap

    given: dict[str, Any] = {"share": share} if share != model.NEUTRAL.share else {}
    given |= {
        name: torch.as_tensor(value, dtype=torch.float32).to(device)
        for name, value in moved.items()
        if value is not None
    }
    return model.NEUTRAL._replace(**given) if given else None


def dial_leaves(
    panel: Panel, logit_softcap: float, device: torch.device
) -> tuple[dict[str, torch.Tensor], model.Dials]:
    """Returns the values of all channels of the forward pass, to be differentiated by.

    Dropout is off.

    Returns:
        Channel -> its values, (N, L) or of a run (N,), which require a gradient. And the dials that
        are computed from them.
    """
    leaves, given = dict[str, torch.Tensor](), dict[str, Any]()
    for name, bank in ((name, bank) for (name, _), bank in panel.banks.items()):
        if name not in model.Dials._fields or name == "dropout":
            continue
        is_per_layer = "layer" in bank.channel.scopes
        values = panel.per_layer(name) if is_per_layer else panel.per_run(name)
        if values is None:
            sizes = (panel.num_layers,) if is_per_layer else ()
            values = np.full((len(panel.positions), *sizes), bank.channel.neutral)
        leaf = torch.as_tensor(values, dtype=torch.float32).to(device).requires_grad_()
        leaves[name] = given[name] = leaf

    if "logit_softcap" in given:
        given["logit_softcap"] = logit_softcap * given["logit_softcap"]
    if "state_norm_cap" in given:
        cap = given["state_norm_cap"]
        is_active = cap < CHANNELS["state_norm_cap"].neutral
        given["state_norm_cap"] = torch.where(is_active, cap, model.DORMANT_CAP)
    return leaves, model.NEUTRAL._replace(**given)
