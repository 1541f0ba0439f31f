"""Arguments of every id under which a decision takes a fraction of a second."""

import gymnasium as gym

import hpenv  # noqa: F401  registers the ids
from hpenv.envs import adaptive, cell, grpo_projection, jel
from tests import tiny_student

TINY = {
    "data": "synthetic",
    "batch_tokens": 32,
    "sequence_length": 16,
    "num_steps": 6,
    "interval": 2,
}
PRETRAINING = TINY | {"eval_tokens": 64}
SMALL = {
    adaptive.ID: PRETRAINING,
    jel.ID: PRETRAINING,
    cell.ID: PRETRAINING | {"preset": "nano", "channels": ["lr"], "observation": "loss"},
    grpo_projection.ID: tiny_student.TINY | {"num_samples": 2, "num_steps": 4, "interval": 2},
}


def make(id, **changes):
    student = (
        {"student": tiny_student.student(3, seed=5, end=6.0)} if id == grpo_projection.ID else {}
    )
    return gym.make(id, **SMALL[id] | student | changes)
