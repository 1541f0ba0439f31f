"""Runs whose text changes in the middle, for the distribution shift of AdaptiveRL, section 7."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from hpenv.benchmark.evaluate import make_runs, run_episodes
from hpenv.benchmark.results import Rows
from hpenv.env import TrainLoopVectorEnv
from hpenv.plant.protocol import Snapshot
from hpenv.policies.control_law import AdaptiveRL
from hpenv.pretraining.plant import PretrainingPlant

#: Fraction of a run before which its text is the first.
EVENT = 0.5
#: Fraction of a run after the event in which the dials' ends are looked for.
WINDOW = 0.1


def change_text(env: TrainLoopVectorEnv, data: str) -> None:
    """Lets the runs of an env go on with another text, in all three slices.

    Weights, optimizer, seeds, step counts and panel stay as they are.

    Args:
        env: a population of pretraining runs.
        data: see hpenv.lm.data.load_corpus. The tokenizer stays the same.
    """
    old = env.plant
    assert isinstance(old, PretrainingPlant)
    new = PretrainingPlant(replace(old.config, data=data), old.num_rows, old.channels)
    assert new.corpus.vocab_size == old.corpus.vocab_size
    new.set_measured_groups(old.measured_groups)
    new.restore(Snapshot(old.snapshot().tensors, new.snapshot().metadata))
    env.plant = new


def run_shift(
    env_id: str,
    env_arguments: Mapping[str, Any],
    second: str,
    seeds: Sequence[int],
    law: Mapping[str, Any] | None,
    gains: Mapping[str, Any],
) -> Rows:
    """Runs an arm on the text of `env_arguments`, and from half of its decisions on `second`.

    Args:
        env_id: a registered id of pretraining runs.
        env_arguments: arguments of the env.
        second: the second text.
        seeds: one per run.
        law: arguments of AdaptiveRL, or None without a controller.
        gains: changes of the law's fields.

    Returns:
        Rows of `evaluate_controller`. The score is of the second text.
    """
    controller = None if law is None else AdaptiveRL(law=dict(gains) or None, **law)
    still = {"channels": [], "observation": ["progress"], "interval": 10}
    own = still if controller is None else {}
    env = make_runs(env_id, {**own, **env_arguments}, len(seeds), controller)
    left = round(EVENT * env.num_decisions)

    def count(done: float) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            change_text(env, second)

    return run_episodes(controller, env, list(seeds), curve=True, on_progress=count), {}


def around_shift(rows: Sequence[Mapping[str, Any]], name: str) -> dict[str, float]:
    """Returns means over runs of a dial around the event.

    Returns:
        `before` it, the `lowest` and `highest` mean in the WINDOW after it, and `end` of the run.
    """
    mean = np.array([row["panel"][name] for row in rows], dtype=np.float64).mean(0)
    event = round(EVENT * len(mean))
    between = mean[event : event + max(1, round(WINDOW * len(mean)))]
    return {
        "before": float(mean[event - 1]),
        "lowest": float(between.min()),
        "highest": float(between.max()),
        "end": float(mean[-1]),
    }
