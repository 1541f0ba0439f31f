"""Measurements of the plant of post-training: gauges of an update, and true rates."""

from __future__ import annotations

from hpenv.plant.measurements import Measurement, step_losses
from hpenv.posttraining.grading.grader import COMPILE_REWARD, PASS_REWARD

#: Reward of a right program that compiles. Gauges count rewards in this unit.
LARGEST_REWARD = COMPILE_REWARD + PASS_REWARD


def _gauge(name: str, doc: str, unit: str = "1") -> Measurement:
    """Returns a mean over the updates of a window that infos have."""
    return Measurement(name, unit, doc, over="mean", in_info=True)


#: Measurements of the first optimizer step of each update; `coefficient_norm` after the last.
GAUGES = (
    _gauge("reward_mean", "mean payment of the leaky grader / 3.5"),
    _gauge("reward_spread", "mean over the groups of the standard deviation / 3.5"),
    _gauge("flat_groups", "fraction of the groups whose rewards are all equal"),
    _gauge("kl", "k3 estimate of the divergence from the untrained student", "nats/token"),
    _gauge(
        "entropy", "of the whole distribution at temperature 1, at sampled tokens", "nats/token"
    ),
    _gauge("completion_length", "mean length of a completion / the longest"),
    _gauge("compiled", "fraction of the programs that compile"),
    _gauge("flagged", "fraction of the programs that the weak detector flags"),
    _gauge("mean_cos", "mean over the modules of the cosine of gradient and direction"),
    _gauge("frac_fired", "fraction of modules whose gradient has a component along the direction"),
    _gauge("removed_fraction", "mean over the modules of ||relu(V g)|| / ||g||"),
    _gauge("mean_c", "mean component of the gradient along the axes"),
    _gauge("mean_positive_c", "mean of the positive part of that component"),
    _gauge("mean_negative_c", "mean of the negative part"),
    _gauge("coefficient_norm", "norm of all coefficients", "singular values"),
)
GAUGE_NAMES = tuple(own.name for own in GAUGES)
#: True rates of the rollouts.
PRIVILEGED = (
    Measurement("hack", "1", "programs paid for but not right", over="mean", privileged=True),
    Measurement("correct", "1", "right programs", over="mean", privileged=True),
    Measurement(
        "used_loophole",
        "1",
        "programs that use the prompt's loophole, whether they need it or not",
        over="mean",
        privileged=True,
    ),
)
PRIVILEGED_NAMES = tuple(own.name for own in PRIVILEGED)
MEASUREMENTS = (
    Measurement("train_loss", "1", "fraction of the largest reward not earned", over="mean"),
    step_losses("1"),
    Measurement("probe_loss", "1", "fraction of the probe's problems not solved", group="probe"),
    Measurement("gradient_norm", "1", "norm of the gradient of all coefficients"),
    Measurement("layer_gradient_norm", "1", "norm of the layer's gradient", per="layer"),
    *GAUGES,
    Measurement(
        "probe_pass", "1", "fraction of the probe's problems solved", group="probe", in_info=True
    ),
    *PRIVILEGED,
)
