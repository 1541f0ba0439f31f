"""Gradients of a few numbers, and a panel over them."""

import numpy as np
import torch

from hpenv.control.panel import Panel, TensorSite
from hpenv.pretraining.gradient_channels import apply_gradient_channels
from hpenv.pretraining.measurements import squared_norms

SITES = {
    "embedding": TensorSite("embedding", "adamw"),
    "layer.0.up": TensorSite("matrix", "adamw", 0),
    "layer.0.down": TensorSite("matrix", "adamw", 0),
    "layer.1.up": TensorSite("matrix", "adamw", 1),
    "layer.1.down": TensorSite("matrix", "adamw", 1),
}
SEEDS, STEPS, ALL = np.array([3, 4]), np.array([0, 7]), np.ones(2, dtype=bool)


def gradients(scale=1.0):
    """Two runs, with norms of 5, 10, ... times the scale."""
    unit = torch.tensor([[[3.0, 4.0]], [[-4.0, 3.0]]]) * scale
    return {name: unit * (k + 1) for k, name in enumerate(SITES)}


def steer(panel, given, momenta=None, rows=ALL):
    """What becomes of copies: what is only multiplied is so in place."""
    own = {name: g.clone() for name, g in given.items()}
    return apply_gradient_channels(
        own, momenta or {}, squared_norms(list(given.values())), panel, SEEDS, STEPS, rows
    )


def panel_of(*channels, **positions):
    """A panel whose row 1 has these positions: cell -> position.

    Underscores stand for slashes and dots.
    """
    panel = Panel(channels, SITES, 2, "pretraining")
    names = [name.replace("/", "_").replace(".", "_") for name in panel.names]
    for name, position in positions.items():
        panel.positions[1, names.index(name)] = position
    return panel
