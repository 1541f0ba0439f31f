"""Controllers: their interface, and policies, which act without learning and can be saved.

Importing this imports torch.
"""

from hpenv.policies.adaptive_rates import AdaLRS, Hypergradient, UpdateRatio
from hpenv.policies.cells import CellMLP
from hpenv.policies.control_law import AdaptiveRL, Law
from hpenv.policies.controller import Columns, Controller, ControllerSpec
from hpenv.policies.gaussian_mlp import GaussianMLP
from hpenv.policies.neutral import Neutral
from hpenv.policies.policy import Policy
from hpenv.policies.sb3_mlp import SB3MLP
from hpenv.policies.schedule_table import ScheduleTable
from hpenv.policies.store import POLICIES, load_policy, save_policy

__all__ = [
    "POLICIES",
    "SB3MLP",
    "AdaLRS",
    "AdaptiveRL",
    "CellMLP",
    "Columns",
    "Controller",
    "ControllerSpec",
    "GaussianMLP",
    "Hypergradient",
    "Law",
    "Neutral",
    "Policy",
    "ScheduleTable",
    "UpdateRatio",
    "load_policy",
    "save_policy",
]
