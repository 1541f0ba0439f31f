"""The choice of AdaptiveRL's gains from poor starts, on tuning seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hpenv.benchmark.evaluate import evaluate_controller
from hpenv.benchmark.results import Rows
from hpenv.policies.control_law import AdaptiveRL

#: Changes of every candidate: no damping, wide caps, and neither momentum nor noise, so that what a
#: start loses or gains is due to the rate.
COMMON: dict[str, Any] = {
    "damping": 1.0,
    "rate_caps": (0.6, 1.6),
    "momentum_reward": 0.0,
    "momentum_loss": 0.0,
    "noise_plateau": 0.0,
}
#: k_r and k_l of the candidates.
RATE_GAINS = (
    (0.05, 0.025),
    (0.05, 0.05),
    (0.1, 0.05),
    (0.1, 0.1),
    (0.15, 0.075),
    (0.15, 0.15),
    (0.3, 0.3),
)


def candidates() -> dict[str, dict[str, Any]]:
    """Returns the gains that are tried: name -> changes of the law's fields."""
    return {name_of(*pair): gains_of(*pair) for pair in RATE_GAINS}


def name_of(reward: float, loss: float) -> str:
    """Returns the name of a candidate."""
    return f"k_r {reward:g}, k_l {loss:g}"


def gains_of(reward: float, loss: float) -> dict[str, Any]:
    """Returns the changes of the law's fields with these k_r and k_l."""
    return COMMON | {"rate_reward": reward, "rate_loss": loss}


def try_gains(
    env_id: str,
    env_arguments: Mapping[str, Any],
    rates: Mapping[str, float],
    seeds: Sequence[int],
) -> Rows:
    """Runs every candidate from every start.

    Args:
        env_id: a registered id of a training loop that measures the probe.
        env_arguments: its arguments.
        rates: start -> base learning rate.
        seeds: one run of each candidate and start per seed.

    Returns:
        A row per candidate: its `gains`, `<start>` mean final probe loss from each start, and their
        mean `probe_loss` [nats per token]. A run that diverged counts with its first loss. `chosen`
        is the candidate with the least `probe_loss`.
    """
    rows = []
    for name, gains in candidates().items():
        found: dict[str, Any] = {"gains": name}
        for start, rate in rates.items():
            controller = AdaptiveRL(law=gains)
            arguments = controller.spec.arguments() | dict(env_arguments) | {"base_lr": rate}
            runs = evaluate_controller(controller, env_id, arguments, seeds)
            found[start] = float(np.mean([_loss(run) for run in runs]))
        rows.append(found | {"probe_loss": float(np.mean([found[start] for start in rates]))})
    best = min(rows, key=lambda row: row["probe_loss"])
    return rows, {"chosen": best["gains"], "runs_spent": len(rows) * len(rates) * len(seeds)}


def _loss(run: Mapping[str, Any]) -> float:
    return run["probe_curve"][0] if run["divergence_reason"] else run["probe_loss"]
