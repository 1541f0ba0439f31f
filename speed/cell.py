"""Costs of the channels, the gauges and the Sidecar, for `python -m speed.run`.

They are those of TrainLoop-Cell-v0 at `cell11`, with a decision every step and without a probe. The
bare step is a step of the same environment without channels and gauges.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from agents.sidecar import Sidecar
from hpenv.benchmark.environments import columns_of
from hpenv.env import TrainLoopVectorEnv
from hpenv.envs.cell import make_vector_env
from speed.timing import alternate, ratio, seconds

#: Measurement group -> features of its observation, in addition to `progress`.
GROUPS = {
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


#: Steps of a round.
STEPS = 4
BARE: dict[str, Any] = {"channels": (), "observation": "progress", "num_registers": 0}


def make(num_envs: int, steps: int, batch_tokens: int, **arguments: Any) -> TrainLoopVectorEnv:
    """Makes and resets a vector env with enough steps for all rounds."""
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
    """Takes one decision per action of (S, N, A)."""
    for action in actions:
        env.step(action)


def sidecar_actions(env: TrainLoopVectorEnv, steps: int) -> np.ndarray:
    """Returns actions that a new Sidecar samples, (S, N, A). A may be 0."""
    if not env.action_names:
        return np.zeros((steps, env.num_envs, 0), np.float32)
    controller = Sidecar()
    controller.reset(columns_of(env))
    observations = np.zeros((env.num_envs, len(env.observation_names)), np.float32)
    return np.stack([controller.act(observations) for _ in range(steps)])


def surface_price(
    rounds: int, of_everything: int, batch_tokens: int, num_envs: int
) -> dict[str, Any]:
    """Compares a step with all channels and gauges, and with each group alone, to the bare step.

    The goal is a ratio of at most 1.10 with everything.

    Args:
        rounds: alternating rounds of 4 steps, of each part.
        of_everything: the same, of everything together.
        batch_tokens: batch of a step [tokens].
        num_envs: runs that train together.
    """
    arguments: dict[str, dict[str, Any]] = {
        "bare": {},
        "full surface": {"channels": "full"},
        "all gauges": {"observation": "full", "num_registers": 8},
    }
    arguments |= {
        f"group {name}": {"observation": ("progress", *names)} for name, names in GROUPS.items()
    }
    everything = {"channels": "full", "observation": "full", "num_registers": 8}
    both = {"bare": {}, "everything": everything}
    whole = _step_times(both, of_everything, batch_tokens, num_envs)
    times = _step_times(arguments, rounds, batch_tokens, num_envs)
    result: dict[str, Any] = {"everything / bare": ratio(whole, "everything", "bare")}
    result |= {f"{name} / bare": ratio(times, name, "bare") for name in times if name != "bare"}
    result["milliseconds of the bare step"] = 1e3 * statistics.median(times["bare"])

    return result | {"goal": "everything / bare <= 1.10"}


def _step_times(
    arguments: Mapping[str, Mapping[str, Any]], rounds: int, batch_tokens: int, num_envs: int
) -> dict[str, list[float]]:
    """Returns the times of a step of each env over alternating rounds [s]."""
    functions: dict[str, Callable[[], object]] = {}
    for name, overrides in arguments.items():
        env = make(num_envs, STEPS * (rounds + 1) + 1, batch_tokens, **overrides)
        functions[name] = partial(play, env, sidecar_actions(env, STEPS))
    times = alternate(functions, rounds)
    return {name: [each / STEPS for each in own] for name, own in times.items()}


def sidecar_price(rounds: int, batch_tokens: int, preset: str, num_envs: int) -> dict[str, Any]:
    """Compares the Sidecar's decision and update to a step of the run, on the foundational surface.

    The goal at 50 M parameters is a ratio under 0.02.
    """
    env = make(
        num_envs,
        rounds + 2,
        batch_tokens,
        preset=preset,
        channels="foundational",
        observation="full",
        num_registers=8,
    )
    controller = Sidecar()
    controller.reset(columns_of(env))
    observations, _ = env.reset(seed=0)
    alive = np.ones(num_envs, dtype=bool)
    deciding, stepping = [], []

    for _ in range(rounds + 1):
        actions: list[np.ndarray] = []
        start = seconds(lambda: actions.append(controller.act(observations)))  # noqa: B023

        results: list[Any] = []
        stepping.append(seconds(lambda: results.extend(env.step(actions[0]))))  # noqa: B023
        observations, rewards = results[0], results[1]
        deciding.append(start + seconds(lambda: controller.learn(rewards, alive)))  # noqa: B023

    shares = [d / s for d, s in zip(deciding[1:], stepping[1:], strict=True)]
    return {
        "share of a step": statistics.median(shares),
        "milliseconds per decision": 1e3 * statistics.median(deciding[1:]),
        "milliseconds of a step": 1e3 * statistics.median(stepping[1:]),
        "parameters of a sidecar": sum(
            tensor[0].numel() for tensor in controller.agent.policy.tensors().values()
        ),
    }
