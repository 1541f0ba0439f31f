"""Configuration of `train_agents.hindsight`, and the lists of features that it can distill to."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agents.imitation import ImitationConfig
from hpenv.benchmark.command_line import check_counts
from hpenv.benchmark.environments import parse_assignments
from hpenv.checks import is_number
from train_agents.trajectories import Sweep

#: Named lists of features. `clock` makes an open-loop schedule. `trends` are AdaptiveRL's. The
#: state augmentation of its section 9 is `augmented`: order and spread of the gradient's norm (its
#: RMS up to the number of weights, and its variance over its mean), the change of the probe's loss
#: over a window (the short-horizon pulse; validation itself is never observed), the gain of an
#: update (a proxy of curvature), and the relative size of updates.
OBSERVATIONS: dict[str, tuple[str, ...]] = {
    "clock": ("progress",),
    "trends": ("progress", "loss_trend", "reward_trend", "loss_variance_ratio", "plateau"),
    "augmented": (
        "progress",
        "loss_trend",
        "reward_trend",
        "loss_variance_ratio",
        "plateau",
        "gradient_norm",
        "gradient_norm_spread",
        "probe_loss_change",
        "update_gain",
        "update_ratio",
    ),
    "ratios": ("progress", "update_gain", "update_ratio"),
}


@dataclass(frozen=True)
class HindsightConfig:
    """Configuration of a search and its distillation."""

    env: str = "TrainLoop-Adaptive-v0"  # a registered id
    # arguments of the env, key=value. base_lr must be one number
    env_kwargs: tuple[str, ...] = (
        "channels=rate_only",
        'max_moves={"lr": 0.15}',
        "num_steps=300",
        "batch_tokens=128",
        "num_probe_batches=8",
        "base_lr=0.01",
    )
    # key of OBSERVATIONS, or features with commas between them: what the controller sees
    observation: str = "ratios"
    starts: tuple[float, ...] = (1.0, 1 / 30, 10.0)  # multiples of the base rate that runs begin at
    seeds: int = 2  # runs per start
    first_seed: int = 0  # the first of consecutive seeds
    first: str | None = None  # controller of the first pass; None: every cell stays at neutral
    # folder of a run whose searches are taken over: another controller for the same trajectories
    searches: Path | None = None
    num_windows: int = 5  # windows of a run whose actions change together
    # changes of a position that a sweep over the windows tries, either way and twice as far, which
    # last to the end of the run. 0.25 multiplies a rate by 3.2
    steps: tuple[float, ...] = (0.25,)
    # changes, either way, of further sweeps. They stand in one window. 0.1 multiplies by 1.6
    window_steps: tuple[float, ...] = (0.1,)
    cells: tuple[str, ...] = ()  # cells that are changed, as `lr`; none: all
    rounds: int = 3  # rounds of runs under the distilled controller
    imitation: ImitationConfig = field(default_factory=ImitationConfig)  # hyperparameters
    seed: int = 0  # seed of the controller's initial weights
    out: Path = Path("runs/hindsight")  # folder; a run of the same configuration continues
    threads: int = 1  # torch threads
    tensorboard: bool = True  # also write TensorBoard events

    def __post_init__(self) -> None:
        """Checks counts, starts and steps."""
        check_counts(self, "seeds", "num_windows", "threads")
        check_counts(self, "first_seed", "rounds", "seed", least=0)
        if not self.starts or not all(start > 0 for start in self.starts):
            raise ValueError(f"starts must be numbers above 0; got {self.starts}")
        steps = (*self.steps, *self.window_steps)
        if not steps or not all(0 < step <= 1 for step in steps):
            raise ValueError(f"steps and window_steps must be numbers in (0, 1]; got {steps}")

    @property
    def search(self) -> dict[str, Any]:
        """Returns all that the searches depend on, as JSON."""
        runs = ("env", "starts", "seeds", "first_seed", "first")
        changes = ("num_windows", "steps", "window_steps", "cells")
        values = {name: getattr(self, name) for name in (*runs, *changes)}
        return json.loads(json.dumps(values | {"env_kwargs": self.arguments(1.0)}))

    @property
    def features(self) -> list[str]:
        """Features that the controller sees."""
        return list(OBSERVATIONS.get(self.observation, tuple(self.observation.split(","))))

    @property
    def sweeps(self) -> list[Sweep]:
        """Passes of a search over the windows."""
        lasting = [Sweep((-2.0 * step, -step, step, 2.0 * step)) for step in self.steps]
        return lasting + [Sweep((-step, step), lasting=False) for step in self.window_steps]

    @property
    def run_seeds(self) -> list[int]:
        """Seeds of the runs of a start."""
        return [self.first_seed + number for number in range(self.seeds)]

    def arguments(self, start: float) -> dict[str, Any]:
        """Returns the arguments of the env at a start, without features.

        Raises:
            ValueError: the base rate is not one number, or the features are among the arguments.
        """
        arguments = parse_assignments(self.env_kwargs)
        if not is_number(arguments.get("base_lr")):
            raise ValueError(
                "env_kwargs must have one number as base_lr, which the starts multiply; "
                f"got {arguments.get('base_lr')!r}"
            )
        if "observation" in arguments:
            raise ValueError("env_kwargs must leave out observation; set the program's observation")
        return arguments | {"base_lr": float(f"{arguments['base_lr'] * start:.6g}")}
