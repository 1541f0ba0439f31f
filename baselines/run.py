"""Evaluates baselines: `python -m baselines.run`; or tunes the hand-tuned one: `python -m
baselines.run --tune`.

Every baseline is a population with seeds as rows and all dials at neutral, scored on the validation
slice. Sweeps are evaluated whole; choose from one on tuning seeds, not on the seeds that are
reported.

Tuning goes through the per-group rates one after the other, by factors of two, starting from
nanochat's, at the settings of the deployed run, and looks at the probe loss alone, on seeds of its
own. It writes `baselines/hand_tuned.json`; interrupted, the same command goes on from its log.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from baselines.schedules import (
    BASELINES,
    HAND_TUNED,
    constant_multipliers,
    nanochat_rates,
    schedule_free_configurations,
)
from baselines.sweeps import ENV, History, Population, read_log, write_log
from hpenv.data import load_corpus
from hpenv.schedules import WarmupFlatWarmdown
from train_agents.command_line import check_counts, configuration, refusals
from train_agents.environments import make_population
from train_agents.evaluate import evaluate_policy
from train_agents.facts import environment_facts
from train_agents.logs import progress
from train_agents.outputs import check_file, write_text
from train_agents.results import mean_interval, write_result

#: Of one move of tuning.
FACTOR = 2.0
#: Name -> the sweep's configurations at a number of steps and a preset.
SWEEPS: dict[str, Callable[[int, str], Mapping[str, dict[str, Any]]]] = {
    "constant_multipliers": lambda num_steps, preset: constant_multipliers(num_steps),
    "schedule_free_sgd": lambda num_steps, preset: schedule_free_configurations(
        "sgd", num_steps, preset
    ),
    "schedule_free_adamw": lambda num_steps, preset: schedule_free_configurations(
        "adamw", num_steps, preset
    ),
}


@dataclass(frozen=True)
class RunConfig:
    """What to run, on what, on which seeds, and where to write."""

    baselines: tuple[str, ...] = tuple(BASELINES)  # keys of BASELINES, or names of sweeps
    preset: str = "nano"  # see JELConfig, also for those below
    data: str = "stdlib"
    tokenizer: str = "bytes"
    num_steps: int = 561  # of a run [steps]
    interval: int = 50  # steps per measurement of the curves [steps]
    batch_tokens: int = 512  # of one step [tokens]
    sequence_length: int = 64  # [tokens]
    eval_tokens: int = 65_536  # of the validation slice [tokens]
    device: str = "cpu"
    seeds: int = 10  # number of runs of each baseline
    first_seed: int = 1000  # the seeds count on from it
    max_rows: int = 10  # runs trained together
    threads: int = 1  # torch threads
    out: Path | None = None  # result file
    tune: bool = False  # tune the hand-tuned rates instead
    tuning_seeds: int = 2  # runs per point
    first_tuning_seed: int = 3000  # disjoint from the seeds that are reported
    max_evaluations: int = 40  # points
    tuned: Path = HAND_TUNED  # what tuning writes
    log: Path = Path("runs/hand_tuned.jsonl")  # points so far

    def __post_init__(self) -> None:
        """Refuses counts below 1, and negative seeds."""
        check_counts(
            self, "num_steps", "seeds", "max_rows", "threads", "tuning_seeds", "max_evaluations"
        )
        check_counts(self, "first_seed", "first_tuning_seed", least=0)
        if not self.baselines:
            raise ValueError(
                f"baselines must be at least one of {sorted([*BASELINES, *SWEEPS])}; got none"
            )

    def env_kwargs(self) -> dict[str, Any]:
        """Arguments of the env."""
        names = (
            "preset",
            "data",
            "tokenizer",
            "num_steps",
            "interval",
            "batch_tokens",
            "sequence_length",
        )
        return {name: getattr(self, name) for name in (*names, "eval_tokens", "device")}


def configurations(
    names: Sequence[str], num_steps: int, preset: str = "nano"
) -> dict[str, dict[str, Any]]:
    """Keyword arguments of everything that is named; the members of a sweep are called
    `<sweep>/<member>`.

    Raises:
        ValueError: for a name that is neither in BASELINES nor in SWEEPS.
    """
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        if name in BASELINES:
            found[name] = BASELINES[name](num_steps, preset).env_kwargs
        elif name in SWEEPS:
            found |= {
                f"{name}/{member}": kwargs
                for member, kwargs in SWEEPS[name](num_steps, preset).items()
            }
        else:
            raise ValueError(
                f"unknown baseline {name!r}; expected one of {sorted([*BASELINES, *SWEEPS])}"
            )
    return found


def run(config: RunConfig) -> list[dict[str, Any]]:
    """Evaluates every baseline on every seed; rows of `evaluate_policy`, with the baseline's name."""
    chosen = configurations(config.baselines, config.num_steps, config.preset)
    seeds = list(range(config.first_seed, config.first_seed + config.seeds))
    rows: list[dict[str, Any]] = []
    with progress(len(chosen) * len(seeds), "baselines") as advance:
        for name, overrides in chosen.items():
            kwargs = config.env_kwargs() | overrides
            found = evaluate_policy(
                None, ENV, kwargs, seeds, max_rows=config.max_rows, on_progress=advance
            )
            rows += [{"baseline": name} | row for row in found]
    return rows


def search_header(
    start: Mapping[str, float], factor: float, description: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Returns the first line of the log of a coordinate search."""
    return {
        "search": json.loads(
            json.dumps({"start": dict(start), "factor": factor, **(description or {})})
        )
    }


def coordinate_search(
    score: Callable[[dict[str, float]], float],
    start: Mapping[str, float],
    *,
    factor: float = FACTOR,
    max_evaluations: int = 40,
    tolerance: float = 0.0,
    log: Path | None = None,
    description: Mapping[str, Any] | None = None,
) -> tuple[dict[str, float], History]:
    """Tuning as it is done by hand: one coordinate after the other is multiplied or divided, as
    long as that helps.

    Ends when a whole pass over the coordinates helps nowhere, or when the evaluations are spent.

    Args:
        score: of a point; lower is better.
        start: coordinate -> value, positive.
        factor: of one move.
        max_evaluations: budget.
        tolerance: a move must lower the score by more than this.
        log: file of JSON lines; points in it are not evaluated again.
        description: what the log must agree with to be continued.

    Returns:
        The best point, and every point that was evaluated, with its score.

    Raises:
        ValueError: for no evaluations, or a log of another search.
    """
    if max_evaluations < 1:
        raise ValueError(f"max_evaluations={max_evaluations} must be at least 1")
    header = search_header(start, factor, description)
    history = read_log(log, header)
    known = {tuple(line["exponents"]): float(line["score"]) for line in history}
    names, used = list(start), set[tuple[int, ...]]()

    def point(exponents: tuple[int, ...]) -> dict[str, float]:
        return {name: start[name] * factor**e for name, e in zip(names, exponents, strict=True)}

    def value(exponents: tuple[int, ...]) -> float:
        """Score of a point; infinite without budget for it."""
        if exponents not in used and len(used) == max_evaluations:
            return np.inf
        used.add(exponents)
        if exponents not in known:
            known[exponents] = float(score(point(exponents)))
            history.append(
                {"exponents": list(exponents), "point": point(exponents), "score": known[exponents]}
            )
            write_log(log, [header, *history])
        return known[exponents]

    def walk(here: tuple[int, ...], axis: int, direction: int) -> tuple[int, ...]:
        """As far along one direction as it gets better."""
        best = value(here)
        while (
            found := value(there := (*here[:axis], here[axis] + direction, *here[axis + 1 :]))
        ) < best - tolerance:
            here, best = there, found
        return here

    here: tuple[int, ...] = (0,) * len(names)
    before: tuple[int, ...] | None = None
    while here != before:
        before = here
        for axis in range(len(names)):
            up = walk(here, axis, 1)
            here = up if up != here else walk(here, axis, -1)
    return point(here), history


def tuning(config: RunConfig) -> tuple[dict[str, float], dict[str, Any]]:
    """Returns the point that tuning starts at, and the description of the search."""
    start = nanochat_rates(config.preset)
    first = {f"lr/{group}": rate for group, rate in start["base_lr"].items()}
    first["weight_decay/matrix"] = start["base_weight_decay"]["matrix"]
    seeds = list(range(config.first_tuning_seed, config.first_tuning_seed + config.tuning_seeds))
    return first, {
        "env_kwargs": config.env_kwargs(),
        "seeds": seeds,
        "schedule": "warmup_flat_warmdown",
    }


def tune(config: RunConfig) -> dict[str, Any]:
    """Finds per-group rates on the probe loss and writes them, with how they were found."""
    start = nanochat_rates(config.preset)
    first, description = tuning(config)
    seeds = description["seeds"]
    base = config.env_kwargs() | {"schedule": WarmupFlatWarmdown(config.num_steps)}

    def rates(point: Mapping[str, float]) -> dict[str, dict[str, float]]:
        lr = {group: point[f"lr/{group}"] for group in start["base_lr"]}
        return {
            "base_lr": lr,
            "base_weight_decay": dict.fromkeys(lr, 0.0) | {"matrix": point["weight_decay/matrix"]},
        }

    def score(point: Mapping[str, float]) -> float:
        population = Population(base | rates(point), len(seeds))
        loss = float(
            population.play(np.zeros((len(seeds), *population.shape)), seeds).probe_losses.mean()
        )
        print(
            f"{loss:.4f}  " + "  ".join(f"{name} {value:.4g}" for name, value in point.items()),
            flush=True,
        )
        return loss

    best, history = coordinate_search(
        score,
        first,
        max_evaluations=config.max_evaluations,
        log=config.log,
        description=description,
    )
    found = {
        "preset": config.preset,
        "rates": rates(best),
        "probe_loss": min(line["score"] for line in history),
        "start": {
            "source": "nanochat at commit 8630d32",
            "rates": start,
            "probe_loss": history[0]["score"],
        },
        "method": "coordinate search by factors of 2 on the mean probe loss [nats per token] of the tuning seeds",
        **description,
        "facts": environment_facts(
            config.env_kwargs(), load_corpus(config.data, config.tokenizer).sha256
        ),
        "history": history,
    }
    write_text(config.tuned, json.dumps(found, indent=1) + "\n")
    return found


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Held-out bits per byte of each baseline, best first."""
    from rich.console import Console
    from rich.table import Table

    table = Table("baseline", "held-out bits per byte", "95 % interval", "probe loss", "diverged")
    names = list(dict.fromkeys(row["baseline"] for row in rows))
    means = {
        name: float(np.mean([row["bpb"] for row in rows if row["baseline"] == name]))
        for name in names
    }
    for name in sorted(names, key=lambda name: (not np.isfinite(means[name]), means[name])):
        own = [row for row in rows if row["baseline"] == name]
        bits = [row["bpb"] for row in own]
        interval = "-"
        if len(bits) > 1 and np.isfinite(bits).all():
            _, low, high = mean_interval(bits)
            interval = f"{low:.4f} to {high:.4f}"
        probe = float(np.mean([row["probe_loss"] for row in own]))
        diverged = sum(row["divergence_reason"] is not None for row in own)
        table.add_row(
            name, f"{means[name]:.4f}", interval, f"{probe:.4f}", f"{diverged} of {len(own)}"
        )
    Console().print(table)


def check(config: RunConfig) -> None:
    """Refuses what cannot be run, or whose result could not be written.

    Raises:
        ValueError: naming the argument.
    """
    kwargs = configurations(config.baselines, config.num_steps, config.preset)
    if config.tune:
        check_file("tuned", config.tuned)
        check_file("log", config.log)
        first, description = tuning(config)
        read_log(config.log, search_header(first, FACTOR, description))
    elif config.out is not None:
        check_file("out", config.out)
    make_population(ENV, 1, config.env_kwargs() | next(iter(kwargs.values())))


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the program."""
    config = configuration(RunConfig, "baselines.run", __doc__, arguments)
    torch.set_num_threads(config.threads)
    with refusals():
        check(config)
    if config.tune:
        found = tune(config)
        print(
            f"probe loss {found['start']['probe_loss']:.4f} -> {found['probe_loss']:.4f}; written: {config.tuned}"
        )
        return
    rows = run(config)
    print_table(rows)
    if config.out is not None:
        write_result(config.out, "baselines", asdict(config), rows)
        print(f"written: {config.out}")


if __name__ == "__main__":
    main()
