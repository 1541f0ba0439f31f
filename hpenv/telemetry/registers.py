"""Registers: leaky accumulators that the environment keeps as the controller's working memory.

No channel reads them, so they move no weight. A controller writes them with one action and reads
them in the next observation. (Reward-Driven Training Control, section 2.1: a small bank of
accumulator state.)
"""

from __future__ import annotations

import numpy as np

from hpenv.arrays import FloatArray
from hpenv.checks import is_count, is_number


def check_registers(num_registers: int, leak: float) -> None:
    """Checks the arguments of an env with registers.

    Raises:
        ValueError: for a negative number of registers or a leak outside [0, 1).
    """
    if not is_count(num_registers, least=0):
        raise ValueError(
            f"num_registers must be a whole number of at least 0; got {num_registers!r}"
        )
    if not (is_number(leak) and 0.0 <= leak < 1.0):
        raise ValueError(f"register_leak must be at least 0 and below 1; got {leak!r}")


def accumulate(registers: FloatArray, actions: FloatArray, leak: float) -> FloatArray:
    """Returns leak r + (1 - leak) a of registers r and actions a, (N, R) each.

    Actions are clipped to [-1, 1]. `leak` is the fraction of a register that a decision keeps.
    """
    return leak * registers + (1.0 - leak) * np.clip(actions, -1.0, 1.0)
