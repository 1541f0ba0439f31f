"""Sweep: configurations without a controller, chosen on tuning seeds and reported on others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hpenv.benchmark.evaluate import evaluate_controller
from hpenv.benchmark.results import Rows


def sweep(
    env_id: str,
    configurations: Mapping[str, Mapping[str, Any]],
    env_kwargs: Mapping[str, Any],
    tuning_seeds: Sequence[int],
    evaluation_seeds: Sequence[int],
    heldout_curve: bool = False,
) -> Rows:
    """Chooses the configuration with the lowest mean probe loss on tuning seeds, and evaluates it.

    Args:
        env_id: a registered id of a training loop that measures the probe.
        configurations: name -> its changes of `env_kwargs`.
        env_kwargs: arguments of the env.
        tuning_seeds: one run of each configuration per seed.
        evaluation_seeds: one run of the chosen configuration per seed.
        heldout_curve: also evaluate the chosen one on the validation slice after each decision.

    Returns:
        Rows of `evaluate_controller` of the chosen configuration, and `chosen`, `table` (per
        configuration its mean `probe_loss` [nats per token] and the `bpb` of its runs), and
        `runs_spent` on the choice.
    """
    tried = {
        name: evaluate_controller(None, env_id, {**env_kwargs, **changes}, tuning_seeds)
        for name, changes in configurations.items()
    }
    scores = {name: float(np.mean([_score(row) for row in rows])) for name, rows in tried.items()}
    best = min(scores, key=scores.__getitem__)
    table = [
        {"configuration": name, "probe_loss": scores[name], "bpb": [row["bpb"] for row in rows]}
        for name, rows in tried.items()
    ]

    chosen = {**env_kwargs, **configurations[best]}
    rows = evaluate_controller(None, env_id, chosen, evaluation_seeds, heldout_curve=heldout_curve)
    spent = len(configurations) * len(tuning_seeds)
    return rows, {"chosen": best, "table": table, "runs_spent": spent}


def _score(row: Mapping[str, Any]) -> float:
    """Returns the final probe loss, or the untrained model's if it diverged [nats per token]."""
    return row["probe_curve"][0] if row["divergence_reason"] else row["probe_loss"]
