"""What the whole control surface, every gauge and the Sidecar cost: `python -m benchmarks.run`
calls these.

All of TrainLoop-Cell-v0 at `cell11`, a decision every step, without a probe; the bare step is the
same environment without a channel and without a gauge.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from agents.base import Rollout
from agents.reinforce import SidecarAgent
from benchmarks.timing import alternate, ratio, seconds
from hpenv.env import TrainLoopVectorEnv
from hpenv.envs.cell import make_vector_env

#: Feature(s) beside `progress` of each tier, as the observation is made of them.
TIERS = {
    "loss trajectory": (
        "train_loss",
        "loss_slope",
        "loss_curvature",
        "loss_ema_deviation",
        "gradient_norm",
    ),
    "layer_gradient_norm": ("layer_gradient_norm",),
    "gradient_max": ("layer_gradient_max",),
    "activations": ("layer_activation_mean", "layer_activation_variance", "layer_saturation"),
    "momentum": ("momentum_norm",),
    "probe": ("probe_loss",),
}


BARE: dict[str, Any] = {"channels": (), "observation": "progress", "num_registers": 0}


def make(num_envs: int, steps: int, batch_tokens: int, **arguments: Any) -> TrainLoopVectorEnv:
    """A vector env that has been reset, of as many steps as the rounds will take."""
    env = make_vector_env(
        num_envs,
        autoreset_mode="DISABLED",
        num_steps=steps,
        batch_tokens=batch_tokens,
        **(BARE | arguments),
    )
    env.reset(seed=0)
    return env


def play(env: TrainLoopVectorEnv, actions: np.ndarray) -> None:
    """One decision per action of (S, N, A)."""
    for action in actions:
        env.step(action)


def explored(env: TrainLoopVectorEnv, steps: int) -> np.ndarray:
    """What a fresh Sidecar samples, (S, N, A); A may be 0."""
    if not env.action_names:
        return np.zeros((steps, env.num_envs, 0), np.float32)
    agent = sidecar(env)
    observations = np.zeros((env.num_envs, len(env.observation_names)), np.float32)
    return np.stack([agent.act(observations).action for _ in range(steps)])


def sidecar(env: TrainLoopVectorEnv) -> SidecarAgent:
    """A fresh agent of the default size for this env."""
    return SidecarAgent(
        env.num_envs,
        len(env.observation_names),
        env.action_kinds,
        env.action_immediate,
        action_names=env.action_names,
    )


def surface_price(rounds: int, batch_tokens: int, num_envs: int) -> dict[str, Any]:
    """A step with everything against the bare step, and each part alone; goal: at most 1.10 for everything."""
    steps = 4
    budget = steps * (rounds + 1) + 1
    arguments: dict[str, dict[str, Any]] = {
        "bare": {},
        "full surface": {"channels": "full"},
        "all gauges": {"observation": "full", "num_registers": 8},
        "everything": {"channels": "full", "observation": "full", "num_registers": 8},
    }
    arguments |= {
        f"tier {name}": {"observation": ("progress", *names)} for name, names in TIERS.items()
    }
    functions: dict[str, Callable[[], object]] = {}
    for name, given in arguments.items():
        env = make(num_envs, budget, batch_tokens, **given)
        functions[name] = partial(play, env, explored(env, steps))
    times = alternate(functions, rounds)
    result: dict[str, Any] = {
        f"{name} / bare": ratio(times, name, "bare") for name in functions if name != "bare"
    }
    result["milliseconds of the bare step"] = 1e3 * statistics.median(times["bare"]) / steps
    return result | {"goal": "everything / bare <= 1.10"}


def sidecar_price(rounds: int, batch_tokens: int, preset: str, num_envs: int) -> dict[str, Any]:
    """Deciding and learning against a step of the run, foundational surface; goal at 50 M parameters: under 0.02."""
    env = make(
        num_envs,
        rounds + 2,
        batch_tokens,
        preset=preset,
        channels="foundational",
        observation="full",
        num_registers=8,
    )
    agent = sidecar(env)
    observations, _ = env.reset(seed=0)
    deciding, stepping = [], []
    for _ in range(rounds + 1):
        decisions = []
        start = seconds(lambda: decisions.append(agent.act(observations)))  # noqa: B023
        decision, seen = decisions[0], observations
        results: list[Any] = []
        stepping.append(seconds(lambda: results.extend(env.step(decision.action))))  # noqa: B023
        observations, rewards = results[0], results[1]
        rollout = Rollout(
            seen[None],
            decision.raw[None],
            decision.log_prob[None],
            rewards[None],
            np.ones((1, num_envs), dtype=bool),
        )
        deciding.append(start + seconds(lambda: agent.update(rollout)))  # noqa: B023
    shares = [d / s for d, s in zip(deciding[1:], stepping[1:], strict=True)]
    return {
        "share of a step": statistics.median(shares),
        "milliseconds per decision": 1e3 * statistics.median(deciding[1:]),
        "milliseconds of a step": 1e3 * statistics.median(stepping[1:]),
        "parameters of a sidecar": sum(
            tensor[0].numel() for tensor in agent.policy.tensors().values()
        ),
    }
