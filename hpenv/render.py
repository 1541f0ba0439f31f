"""Pictures of a run so far: loss and multipliers over its steps, as an image or as a line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Cells that are called by their names.
MOST_NAMED = 8
#: Where multipliers share an axis with other values, it is linear around 0 up to here.
LINEAR_BELOW = 0.01


class History:
    """What render() shows of one run: the loss after each window and the panel's values during it."""

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        """Empty, or as `state()` left it."""
        self.steps: list[int] = list(state["steps"]) if state else []
        self.losses: list[float] = list(state["losses"]) if state else []
        self.values: list[list[float]] = [list(v) for v in state["values"]] if state else []

    def append(self, step: int, loss: float, values: NDArray[np.float64]) -> None:
        """Adds the end of a window."""
        self.steps.append(step)
        self.losses.append(loss)
        self.values.append([float(v) for v in values])

    def state(self) -> dict[str, list[Any]]:
        """JSON-able copy."""
        return {"steps": list(self.steps), "losses": list(self.losses), "values": [list(v) for v in self.values]}


def summarize(history: History, names: tuple[str, ...], neutral: NDArray[np.float64], horizon: int, loss: str) -> str:
    """One line: step, loss (`probe loss [unit]` or `training loss [unit]`) and the values of the first cells.

    A value whose neutral (A,) is 1 multiplies, and is marked by an x.
    """
    if not history.steps:
        return f"step 0/{horizon}"
    rows = list(zip(names, history.values[-1], neutral, strict=True))
    dials = [f"{name} {'x' if own == 1.0 else ''}{value:.3g}" for name, value, own in rows[:MOST_NAMED]]
    dials += [f"and {len(rows) - MOST_NAMED} more"] if len(rows) > MOST_NAMED else []
    name, _, unit = loss.partition(" loss ")
    measured = f"{name} {history.losses[-1]:.4f} {unit.strip('[]').removeprefix('1')}".rstrip()
    return "  ".join([f"step {history.steps[-1]}/{horizon}", measured, *dials])


def draw(
    history: History, names: tuple[str, ...], neutral: NDArray[np.float64], horizon: int, loss: str
) -> NDArray[np.uint8]:
    """Loss above, values of the cells below, over the steps of the run: (480, 640, 3) uint8.

    The values' axis is logarithmic for those that multiply, whose neutral (A,) is 1; grey lines are neutral.

    Raises:
        ImportError: without matplotlib.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("render_mode='rgb_array' needs matplotlib: pip install 'hpenv[render]'") from error
    figure = Figure(figsize=(6.4, 4.8), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True)
    above.plot(history.steps, history.losses, marker=".")
    above.set_ylabel(loss)
    for column, name in enumerate(names):
        values = [v[column] for v in history.values[1:]]
        if values:
            below.stairs(values, history.steps, baseline=None, label=name, linewidth=1.5)
    for own in np.unique(neutral[np.isfinite(neutral)]):
        below.axhline(own, color="0.7", linewidth=0.8, zorder=0)
    multiplies = neutral == 1.0
    if multiplies.all():
        below.set_yscale("log")
    elif multiplies.any():
        below.set_yscale("symlog", linthresh=LINEAR_BELOW)
    below.set(ylabel="value", xlabel="step", xlim=(0, horizon))
    if 0 < len(names) <= MOST_NAMED and len(history.values) > 1:
        below.legend(loc="best", fontsize="small")
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
