"""Costs of a GRPO update and of a program in the sandbox, for `python -m speed.run`.

An update of the student alone samples the same number of completions and makes the same three
passes (reference, forward, backward) without a task, a program or a grader. The sandbox executes
all programs, except those with a known verdict.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from functools import partial
from typing import Any

import numpy as np
import torch

from hpenv.env import TrainLoopVectorEnv
from hpenv.envs.grpo_projection import make_vector_env
from hpenv.posttraining.plant import GRPOPlant
from hpenv.posttraining.sandbox import Call, Job, Sandbox
from speed.timing import alternate, ratio

#: Number of updates in the goal, and the goal [minutes].
UPDATES, GOAL_MINUTES = 200, 5.0
#: Decisions of it that are timed.
TIMED_UPDATES = 50

#: Number of programs of a timed round, and the goal per program [milliseconds].
PROGRAMS, GOAL_MILLISECONDS = 20, 6.0
PROGRAM = "def total(numbers):\n    return sum(numbers)\n"


def student_update(plant: GRPOPlant, generator: torch.Generator) -> None:
    """Runs the student's computations of an update, with the plant's current coefficients."""
    config = plant.config
    prompts = [[task.prompt for task in plant.tasks(row)] for row in range(plant.num_rows)]
    rollouts = plant.student.sample(
        plant.coefficients.values, prompts, config.num_samples, [generator] * plant.num_rows
    )

    with torch.no_grad():
        plant.student.log_probabilities(
            {name: torch.zeros_like(k) for name, k in plant.coefficients.values.items()}, rollouts
        )

    leaves = {
        name: value.detach().requires_grad_() for name, value in plant.coefficients.values.items()
    }
    torch.autograd.grad(
        plant.student.log_probabilities(leaves, rollouts).sum(), list(leaves.values())
    )


def step(env: TrainLoopVectorEnv) -> None:
    """Runs one update without projection."""
    env.step(np.full((env.num_envs, len(env.action_names)), -1.0, dtype=np.float32))


def update_price(rounds: int, num_workers: int) -> dict[str, Any]:
    """Compares a decision of the id, probe included, to an update of the student alone.

    Also measures the first decisions of an episode, and multiplies them up to its 200.
    """
    env = make_vector_env(1, autoreset_mode="DISABLED", num_steps=UPDATES, num_workers=num_workers)
    env.reset(seed=0)
    plant = env.plant
    assert isinstance(plant, GRPOPlant)
    generator = torch.Generator().manual_seed(0)
    functions = {
        "decision": partial(step, env),
        "student": partial(student_update, plant, generator),
    }
    times = alternate(functions, rounds)

    env.reset(seed=1)  # not the seed of the rounds, whose verdicts are known
    start = time.perf_counter()

    for _ in range(TIMED_UPDATES):
        step(env)
    minutes = (time.perf_counter() - start) / 60.0

    return {
        "decision / student": ratio(times, "decision", "student"),
        f"minutes of {UPDATES} decisions, by {TIMED_UPDATES}": minutes * UPDATES / TIMED_UPDATES,
        "goal": f"< {GOAL_MINUTES:g} minutes on two cores",
    }


def run_without_sandbox(source: str, times: int) -> None:
    """Runs a program in new interpreters, without a sandbox and without limits."""
    for _ in range(times):
        subprocess.run(
            [sys.executable, "-I", "-c", f"{source}\nprint(total([1, 2]))"],
            check=True,
            capture_output=True,
        )


def program_price(rounds: int) -> dict[str, Any]:
    """Compares a program in the sandbox to a new interpreter per program.

    The program has two lines and four calls. Programs run one after the other.
    """
    job = Job(PROGRAM, tuple(Call("total", ([1, n],)) for n in range(4)))
    with Sandbox() as box:
        times = alternate(
            {
                "sandbox": lambda: box.run_many([job] * PROGRAMS),
                "interpreter": partial(run_without_sandbox, PROGRAM, PROGRAMS),
            },
            rounds,
        )

    return {
        "sandbox / fresh interpreter": ratio(times, "sandbox", "interpreter"),
        "milliseconds per program": 1e3 * statistics.median(times["sandbox"]) / PROGRAMS,
        "goal": f"< {GOAL_MILLISECONDS:g} ms per program",
    }
