"""Evaluates a controller: `python -m train_agents.evaluate --controller runs/jel/policy`.

`--controller` is the folder of a saved policy, the folder of a training run with `policy/` in it,
or a class of one's own as `module:Class` or `file.py:Class`.

Every seed is one run from its first decision to its last. Its score is on held-out data, which
rewards and observations never see. Without a controller, the panel stays at neutral. Baselines are
measured in this way. The plant defines the score: bits per byte for a pretraining run, passes minus
hacks for a post-training run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hpenv.benchmark.command_line import check_counts, configuration, refusals
from hpenv.benchmark.controllers import load_controller
from hpenv.benchmark.environments import columns_of, parse_assignments
from hpenv.benchmark.evaluate import check_independent, evaluate_controller, make_runs
from hpenv.benchmark.files import check_file
from hpenv.benchmark.progress import progress
from hpenv.benchmark.results import write_result
from hpenv.benchmark.statistics import mean_interval
from hpenv.plant.protocol import Score
from hpenv.policies.controller import begin
from hpenv.policies.store import policy_folder
from train_agents.outputs import read_configuration


@dataclass(frozen=True)
class EvaluateConfig:
    """Configuration of an evaluation."""

    # folder of a saved policy or of a training run, module:Class or file.py:Class; None: the panel
    # stays at neutral
    controller: str | None = None
    env: str = "TrainLoop-JEL-v0"  # a registered id
    env_kwargs: tuple[str, ...] = ()  # arguments of the env, key=value
    seeds: int = 10  # number of runs
    first_seed: int = 1000  # the first of consecutive seeds
    max_rows: int = 10  # largest number of runs that train together
    heldout_curve: bool = False  # also evaluate the held-out score after each decision
    threads: int = 1  # torch threads
    out: Path | None = None  # result file

    def __post_init__(self) -> None:
        """Checks counts and seeds."""
        check_counts(self, "seeds", "max_rows", "threads")
        check_counts(self, "first_seed", least=0)


def main(arguments: Sequence[str] | None = None) -> None:
    """Evaluates a controller, prints a table and writes the result."""
    config = configuration(EvaluateConfig, "train_agents.evaluate", __doc__, arguments)
    torch.set_num_threads(config.threads)

    with refusals():
        if config.out is not None:
            check_file("out", config.out)
        controller = None if config.controller is None else load_controller(config.controller)
        env_kwargs = parse_assignments(config.env_kwargs)
        seeds = range(config.first_seed, config.first_seed + config.seeds)
        check_independent(env_kwargs)
        env = make_runs(config.env, env_kwargs, 1, controller)
        if controller is not None:  # it may refuse the number of columns
            begin(controller, columns_of(env))
            controller.act(np.zeros((1, len(env.observation_names)), dtype=np.float32))

    trained = None if config.controller is None else _trained_on(config.controller)
    if trained not in (None, (config.env, env_kwargs)):
        print(
            "note: the policy was trained on {} {}; it is evaluated on {} {}".format(
                *trained, config.env, env_kwargs
            )
        )

    score = env.plant.score
    with progress(config.seeds, "evaluating") as advance:
        rows = evaluate_controller(
            controller,
            config.env,
            env_kwargs,
            seeds,
            heldout_curve=config.heldout_curve,
            max_rows=config.max_rows,
            on_progress=advance,
        )

    _print_table(rows, score)
    if config.out is not None:
        write_result(config.out, "evaluation", asdict(config) | {"env_kwargs": env_kwargs}, rows)
        print(f"written: {config.out}")


def _trained_on(controller: str) -> tuple[str, dict[str, Any]] | None:
    """Returns id and arguments of the environment in which a policy was trained.

    None if the controller is not in the folder of a training run.
    """
    try:
        trained = read_configuration(policy_folder(controller).parent)
    except ValueError:  # a moved or copied policy, or a run of an earlier version
        return None
    return trained["env"], trained["env_kwargs"]


def _print_table(rows: Sequence[Mapping[str, Any]], score: Score) -> None:
    """Prints mean, 95 % interval and range of each quantity over the seeds."""
    from rich.console import Console
    from rich.table import Table

    diverged = sum(row["divergence_reason"] is not None for row in rows)
    table = Table(
        "", "mean", "95 % interval", "range", title=f"{len(rows)} runs, {diverged} diverged"
    )
    labels = {
        key: f"held-out {key.replace('_', ' ')}"
        for key, value in rows[0].items()
        if isinstance(value, float)
    }

    labels |= {
        score.key: score.label,
        "train_loss": f"last train loss [{score.loss_unit}]",
        "probe_loss": f"probe loss [{score.loss_unit}]",
    }

    for key, label in labels.items():
        values = [row[key] for row in rows if row[key] is not None and np.isfinite(row[key])]
        mean, interval = (f"{np.mean(values):.4f}", "-") if values else ("-", "-")
        if len(values) > 1:
            _, low, high = mean_interval(values)
            interval = f"[{low:.4f}, {high:.4f}]"
        table.add_row(label.replace("[", r"\["), mean, interval.replace("[", r"\["), _range(values))

    Console().print(table)


def _range(values: Sequence[float]) -> str:
    return f"{min(values):.4f} to {max(values):.4f}" if values else "-"


if __name__ == "__main__":
    main()
