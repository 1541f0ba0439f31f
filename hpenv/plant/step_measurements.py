"""Measurements of an optimizer's steps, which pretraining and attached training loops share."""

from __future__ import annotations

from hpenv.plant.measurements import Measurement

#: Number of steps at the end of a window at which updates and gradients are compared. A cosine of
#: two steps is noisy: one of 512 tokens of `nano` scatters by 0.15 about a mean of 0.3.
NUM_COMPARED_STEPS = 2

_COMPARED = f"mean over the window's last {NUM_COMPARED_STEPS} steps"

#: Measurements of any optimizer.
STEP_MEASUREMENTS = (
    Measurement("gradient_norm", "1", "global L2 norm of the gradient at the optimizer's step"),
    Measurement("momentum_norm", "1", "global L2 norm of the first moments", group="momentum"),
    Measurement(
        "update_ratio",
        "1",
        f"norm of the optimizer group's update / norm of its weights after it, {_COMPARED}",
        per="group",
        over="mean",
        group="updates",
        num_steps=NUM_COMPARED_STEPS,
    ),
    Measurement(
        "update_alignment",
        "1",
        "cosine of the optimizer group's gradient and the opposite of the update before it, "
        f"{_COMPARED} without the window's first, 0 if there is no other",
        per="group",
        over="mean",
        group="alignment",
        num_steps=NUM_COMPARED_STEPS,
    ),
    Measurement(
        "gradient_agreement",
        "1",
        "cosine of the optimizer group's gradient and that of the step before, "
        f"{_COMPARED} without the window's first, 0 if there is no other",
        per="group",
        over="mean",
        group="agreement",
        num_steps=NUM_COMPARED_STEPS,
    ),
    Measurement(
        "mean_gradient_norm",
        "1",
        "global L2 norm of the gradient",
        over="mean",
        group="spread",
    ),
    Measurement(
        "mean_squared_gradient_norm",
        "1",
        "square of the global L2 norm of the gradient",
        over="mean",
        group="spread",
    ),
)
