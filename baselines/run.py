"""Evaluates baselines (`python -m baselines.run`), or tunes `hand_tuned` (`--tune`).

Every baseline is a population with seeds as rows and all channels at neutral. Its score is on the
validation slice. Every configuration of a sweep is evaluated. Choose one of them on tuning seeds,
not on the seeds that are reported.

Tuning starts from nanochat's per-group rates, at the settings of the deployed run. It changes one
rate after the other by factors of two. It sees only the probe loss, on separate tuning seeds. It
writes `baselines/hand_tuned.json`. After an interruption, the same command continues from its log.
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
from hpenv.benchmark.command_line import check_counts, configuration, refusals
from hpenv.benchmark.environments import make_population
from hpenv.benchmark.evaluate import evaluate_controller
from hpenv.benchmark.facts import environment_facts
from hpenv.benchmark.files import check_file, write_text
from hpenv.benchmark.progress import progress
from hpenv.benchmark.results import write_result
from hpenv.benchmark.statistics import mean_interval
from hpenv.lm.data import load_corpus
from hpenv.optim.schedules import WarmupFlatWarmdown

#: Factor of one move of tuning.
FACTOR = 2.0
#: Name -> function from a number of steps and a preset to the sweep's configurations.
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
    """Configuration of an evaluation or a tuning of baselines."""

    baselines: tuple[str, ...] = tuple(BASELINES)  # keys of BASELINES, or names of sweeps
    preset: str = "nano"  # key of hpenv.lm.architecture.PRESETS
    data: str = "stdlib"  # `stdlib`, `synthetic`, a path, or `hf:<name>`
    tokenizer: str = "bytes"  # `bytes`, `bpe:<vocabulary>`, or a path of a tokenizers file
    num_steps: int = 561  # length of a run [steps]
    interval: int = 50  # steps between two points of the curves [steps]
    batch_tokens: int = 512  # batch of one step [tokens]
    sequence_length: int = 64  # length of a sequence [tokens]
    eval_tokens: int = 65_536  # size of the validation slice [tokens]
    device: str = "cpu"  # device of torch
    seeds: int = 10  # number of runs of each baseline
    first_seed: int = 1000  # the first of consecutive seeds
    max_rows: int = 10  # largest number of runs that train together
    threads: int = 1  # torch threads
    out: Path | None = None  # result file
    tune: bool = False  # tune the hand-tuned rates instead
    tuning_seeds: int = 2  # number of runs per point of tuning
    first_tuning_seed: int = 3000  # tuning seeds are not among the reported seeds
    max_evaluations: int = 40  # largest number of points of tuning
    tuned: Path = HAND_TUNED  # result file of tuning
    log: Path = Path("runs/hand_tuned.jsonl")  # log of the points of tuning

    def __post_init__(self) -> None:
        """Checks counts, seeds and the list of baselines."""
        check_counts(
            self, "num_steps", "seeds", "max_rows", "threads", "tuning_seeds", "max_evaluations"
        )
        check_counts(self, "first_seed", "first_tuning_seed", least=0)
        if not self.baselines:
            raise ValueError(
                f"baselines must name at least one of {sorted([*BASELINES, *SWEEPS])}; got none"
            )

    def env_kwargs(self) -> dict[str, Any]:
        """Returns the keyword arguments of the env."""
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
    """Returns name -> keyword arguments of the env, for baselines and sweeps.

    The configurations of a sweep get the names `<sweep>/<configuration>`.

    Raises:
        ValueError: a name is neither in BASELINES nor in SWEEPS.
    """
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        if name in BASELINES:
            found[name] = BASELINES[name](num_steps, preset).env_kwargs
        elif name in SWEEPS:
            for member, kwargs in SWEEPS[name](num_steps, preset).items():
                found[f"{name}/{member}"] = kwargs
        else:
            raise ValueError(f"baselines must be of {sorted([*BASELINES, *SWEEPS])}; got {name!r}")
    return found


def run(config: RunConfig) -> list[dict[str, Any]]:
    """Evaluates every baseline on every seed.

    Returns:
        Rows of `evaluate_controller`, with the baseline's name as `baseline`.
    """
    chosen = configurations(config.baselines, config.num_steps, config.preset)
    seeds = list(range(config.first_seed, config.first_seed + config.seeds))
    rows: list[dict[str, Any]] = []
    with progress(len(chosen) * len(seeds), "baselines") as advance:
        for name, overrides in chosen.items():
            kwargs = config.env_kwargs() | overrides
            found = evaluate_controller(
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
    """Minimizes a score as a person tunes by hand, one coordinate after the other.

    A coordinate is multiplied or divided by the factor as long as that lowers the score. The search
    ends when a pass over all coordinates changes nothing, or when the evaluations are spent.

    Args:
        score: function from a point to its score. Lower is better.
        start: coordinate -> positive value.
        factor: factor of one move.
        max_evaluations: largest number of evaluated points.
        tolerance: a move must lower the score by more than this.
        log: file of JSON lines. Points in it are not evaluated again.
        description: description of the search. A log with another one is refused.

    Returns:
        The best point, and every evaluated point with its score.

    Raises:
        ValueError: max_evaluations is below 1, or the log is that of another search.
    """
    if max_evaluations < 1:
        raise ValueError(f"max_evaluations must be >= 1; got {max_evaluations}")

    header = search_header(start, factor, description)
    history = read_log(log, header)
    known = {tuple(line["exponents"]): float(line["score"]) for line in history}
    names, used = list(start), set[tuple[int, ...]]()

    def point(exponents: tuple[int, ...]) -> dict[str, float]:
        return {name: start[name] * factor**e for name, e in zip(names, exponents, strict=True)}

    def value(exponents: tuple[int, ...]) -> float:
        """Returns the score of a point, or infinity if the budget is spent."""
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
        """Moves along one direction as long as the score falls. Returns the last point."""
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
    """Returns the initial point of tuning, and the description of the search."""
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
    """Finds per-group rates by the probe loss, and writes them with a record of the search."""
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
        neutral = np.zeros((len(seeds), *population.shape))
        loss = float(population.play(neutral, seeds).probe_losses.mean())
        values = "  ".join(f"{name} {value:.4g}" for name, value in point.items())
        print(f"{loss:.4f}  {values}", flush=True)
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
        "method": "coordinate search by factors of 2 on the mean probe loss [nats per token] "
        "of the tuning seeds",
        **description,
        "facts": environment_facts(
            config.env_kwargs(), load_corpus(config.data, config.tokenizer).sha256
        ),
        "history": history,
    }
    write_text(config.tuned, json.dumps(found, indent=1) + "\n")

    return found


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints the held-out bits per byte of each baseline, best first."""
    from rich.console import Console
    from rich.table import Table

    table = Table("baseline", "held-out bits per byte", "95 % interval", "probe loss", "diverged")
    names = list(dict.fromkeys(row["baseline"] for row in rows))
    means = {
        name: float(np.mean([row["bpb"] for row in rows if row["baseline"] == name]))
        for name in names
    }

    for name in sorted(names, key=lambda name: (not np.isfinite(means[name]), means[name])):
        members = [row for row in rows if row["baseline"] == name]
        bits = [row["bpb"] for row in members]
        interval = "-"
        if len(bits) > 1 and np.isfinite(bits).all():
            _, low, high = mean_interval(bits)
            interval = f"{low:.4f} to {high:.4f}"
        probe = float(np.mean([row["probe_loss"] for row in members]))
        diverged = sum(row["divergence_reason"] is not None for row in members)
        failed = f"{diverged} of {len(members)}"
        table.add_row(name, f"{means[name]:.4f}", interval, f"{probe:.4f}", failed)

    Console().print(table)


def check(config: RunConfig) -> None:
    """Checks that the run can be made and its result written.

    Raises:
        ValueError: an argument is wrong. It names the argument.
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
    """Evaluates or tunes, prints the result and writes it."""
    config = configuration(RunConfig, "baselines.run", __doc__, arguments)
    torch.set_num_threads(config.threads)

    with refusals():
        check(config)

    if config.tune:
        found = tune(config)
        before, after = found["start"]["probe_loss"], found["probe_loss"]
        print(f"probe loss {before:.4f} -> {after:.4f}; written: {config.tuned}")
        return

    rows = run(config)
    print_table(rows)
    if config.out is not None:
        write_result(config.out, "baselines", asdict(config), rows)
        print(f"written: {config.out}")


if __name__ == "__main__":
    main()
