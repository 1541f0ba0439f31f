"""Times the operators of each id's default step, and Muon's iteration in bfloat16 and float32."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from torch.profiler import ProfilerActivity, profile

from hpenv.env import TrainLoopVectorEnv
from hpenv.envs import cell, grpo_projection, jel
from hpenv.optim.muon import Muon
from hpenv.optim.optimizers import OPTIMIZERS
from speed.timing import alternate, ratio

#: Smallest fraction of a step that is reported for an operator.
SMALLEST_SHARE = 0.05
#: Id -> factory of its vector env, and number of profiled decisions.
IDS: dict[str, tuple[Callable[..., TrainLoopVectorEnv], int]] = {
    "TrainLoop-JEL-v0": (jel.make_vector_env, 1),
    "TrainLoop-Cell-v0": (cell.make_vector_env, 50),
    "TrainLoop-GRPOProjection-v0": (grpo_projection.make_vector_env, 4),
}


def decide(env: TrainLoopVectorEnv, num_decisions: int) -> None:
    """Takes decisions with every cell at neutral."""
    for _ in range(num_decisions):
        env.step(np.zeros((env.num_envs, len(env.action_names)), dtype=np.float32))


def adamw_env(
    num_envs: int, tokens: int, sequence_length: int, interval: int, num_steps: int
) -> TrainLoopVectorEnv:
    """Makes a population of `nano` with AdamW and no schedule, and begins its runs.

    Args:
        num_envs: runs of the population, N.
        tokens: batch of a step of one run [tokens].
        sequence_length: [tokens].
        interval: steps per decision [steps].
        num_steps: of a run [steps].
    """
    env = jel.make_vector_env(
        num_envs,
        optimizer="adamw",
        batch_tokens=tokens,
        sequence_length=sequence_length,
        num_steps=num_steps,
        interval=interval,
        schedule="none",
        autoreset_mode="DISABLED",
    )
    env.reset(seed=0)
    return env


def operator_shares() -> dict[str, Any]:
    """Profiles decisions of each id, after a first decision without the profiler.

    Returns:
        Id -> operator -> fraction of the self processor time of all operators.
    """
    result: dict[str, Any] = {}
    for name, (make, num_decisions) in IDS.items():
        env = make(1, autoreset_mode="DISABLED")
        env.reset(seed=0)
        decide(env, 1)

        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            decide(env, num_decisions)

        env.close()

        times = {event.key: event.self_cpu_time_total for event in profiler.key_averages()}
        total = sum(times.values())
        largest_first = sorted(times.items(), key=lambda pair: -pair[1])
        shares = {key: time / total for key, time in largest_first}
        result[name] = {key: share for key, share in shares.items() if share > SMALLEST_SHARE}

    return result


def newton_schulz_price(
    num_envs: int, batch_tokens: int, num_steps: int, rounds: int
) -> dict[str, Any]:
    """Compares steps of `nano` with Muon's iteration in bfloat16 to the default dtype of a CPU."""
    envs: dict[str, TrainLoopVectorEnv] = {}
    for dtype in ("bfloat16", None):
        name = f"benchmark_{dtype}"
        OPTIMIZERS[name] = {
            kind: replace(rule, newton_schulz_dtype=dtype) if isinstance(rule, Muon) else rule
            for kind, rule in OPTIMIZERS["adamw_muon"].items()
        }
        envs[dtype or "default"] = jel.make_vector_env(
            num_envs,
            optimizer=name,
            batch_tokens=batch_tokens,
            num_steps=100_000,
            interval=num_steps,
            schedule="none",
            autoreset_mode="DISABLED",
        )

    for env in envs.values():
        env.reset(seed=0)

    times = alternate({name: partial(decide, env, 1) for name, env in envs.items()}, rounds)
    return {
        "bfloat16 / default": ratio(times, "bfloat16", "default"),
        "milliseconds per step": {
            name: 1e3 * statistics.median(t) / num_steps for name, t in times.items()
        },
    }
