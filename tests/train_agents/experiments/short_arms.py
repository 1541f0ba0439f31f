"""Arms of the projection experiment that take a moment, and arms that never ran."""

import numpy as np

from tests import tiny_student
from train_agents.experiments.projection_arms import ARMS, VANILLA
from train_agents.experiments.samples import Sample

TRUE = "update_two_sided"
GRPO = {
    **tiny_student.TINY,
    "base_lr": 0.5,
    "divergence_kl": 1e6,
}  # a random student goes far in a few updates
ARM = {arm.name: arm for arm in ARMS}


# criteria


def sampled(**numbers):
    return {key: Sample(tuple(range(len(each))), each[None]) for key, each in numbers.items()}


def arm(hack, passes=0.3, n=3, **more):
    spread = np.linspace(-0.01, 0.01, n)  # common to all arms, so that paired differences have none
    return sampled(**{"hack": hack + spread, "pass": passes + spread, **more})


def curves(*at_200, steps=(0, 100, 200, 300)):
    rows = [
        {"steps": list(steps), "reports": {"hack": [0.01, 0.1, value, 0.9]}} for value in at_200
    ]
    return {VANILLA: {"rows": rows}}
