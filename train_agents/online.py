"""Trains runs with Sidecars: `python -m train_agents.online --env-kwargs channels=foundational`.

Every run has one controller, which learns while the run trains and ends with it. With
`--sidecar.no-attached` the same program has no controllers. `--controller` takes any other: a saved
policy, or a class as `file.py:Class`. Every row of the population is a run with a separate seed.
With `--seed-mode grouped`, all rows are the run of the first seed, each with a separate Sidecar.

The program writes these files to its folder:

- `config.json`.
- `progress.jsonl`: training and controller metrics.
- `curves.jsonl`: held-out bits per byte, which no controller sees.
- `trace.jsonl`: the position of every cell, mean and sample.
- TensorBoard events.
- Checkpoints, each with the env's snapshot, the agent's state and the program's state.

After an interruption, the same command continues from the last checkpoint, bitwise as if it had
never stopped. A damaged checkpoint is renamed to `*.damaged`. After the end, the same command does
not change `result.json`. `torchrun` divides the batches of the runs among processes, see
docs/scale_out.md.

Metrics have stable-baselines3's tags and timesteps: decisions, summed over the runs.
`rollout/ep_rew_mean` and `rollout/ep_len_mean` are those of the runs' only episodes so far.
`inner/step` is the step of the runs, and the unit of curves and traces. `eval/held_out` is the mean
held-out score of the runs.

Divergence is a result: a diverged run stops, and the others continue.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from agents.sidecar import Sidecar
from agents.sidecar_config import SidecarConfig
from hpenv.arrays import FloatArray
from hpenv.benchmark.command_line import check_counts, configuration, refusals
from hpenv.benchmark.controllers import load_controller
from hpenv.benchmark.environments import parse_assignments
from hpenv.benchmark.evaluate import make_runs
from hpenv.benchmark.facts import environment_facts
from hpenv.benchmark.results import Rows, write_result
from hpenv.plant.ranks import ALONE, Ranks
from hpenv.plant.torchrun import open_ranks
from hpenv.pretraining.divide import divide, follow
from train_agents import outputs
from train_agents.logs import RunLog, keep_lines
from train_agents.population import DECIMALS, Population

#: Fields of the configuration that may differ when a run continues.
MAY_CHANGE = ("threads", "checkpoint_interval")
#: Files and folders that the program writes, in addition to config.json and the checkpoints.
WRITTEN = ("progress.jsonl", "curves.jsonl", "trace.jsonl", "tensorboard", "result.json")


@dataclass(frozen=True)
class OnlineConfig:
    """Configuration of runs with Sidecars."""

    env: str = "TrainLoop-Cell-v0"  # a registered id
    env_kwargs: tuple[str, ...] = ()  # arguments of the env, key=value
    seeds: int = 1  # number of rows of the population
    first_seed: int = 0  # the first of the rows' consecutive seeds
    # grouped: all rows are the run of the first seed
    seed_mode: Literal["independent", "grouped"] = "independent"
    # folder of a saved policy, module:Class or file.py:Class; None: a Sidecar
    # Not in the repr, which is the configuration of the Sidecar's committed results.
    controller: str | None = field(default=None, repr=False)
    agent_seed: int = 0  # seed of the sidecars' weights and samples
    sidecar: SidecarConfig = field(default_factory=SidecarConfig)
    eval_interval: int = 500  # steps between held-out evaluations [steps]
    trace_interval: int = 50  # steps between traced positions [steps]
    log_interval: int = 50  # steps between lines of metrics [steps]
    checkpoint_interval: int = 500  # steps between checkpoints [steps]
    out: Path = Path("runs/sidecar")  # folder; a run of the same configuration continues
    threads: int = 1  # torch threads
    tensorboard: bool = True  # also write TensorBoard events

    def __post_init__(self) -> None:
        """Checks counts and seeds."""
        intervals = ("eval_interval", "trace_interval", "log_interval", "checkpoint_interval")
        check_counts(self, "seeds", *intervals, "threads")
        check_counts(self, "first_seed", "agent_seed", least=0)

    @property
    def row_seeds(self) -> list[int]:
        """The seeds of the rows."""
        step = 0 if self.seed_mode == "grouped" else 1
        return [self.first_seed + step * row for row in range(self.seeds)]


def run_online(
    config: OnlineConfig,
    env_arguments: Mapping[str, Any] | None = None,
    on_step: Callable[[int], object] | None = None,
) -> Rows:
    """Trains the population to its end, or continues a run. See `begin` and `finish`."""
    return finish(config, begin(config, env_arguments), on_step)


def begin(
    config: OnlineConfig,
    env_arguments: Mapping[str, Any] | None = None,
    ranks: Ranks = ALONE,
) -> Population:
    """Makes the population, checks and claims the folder, and loads its newest checkpoint.

    Args:
        config: configuration of the runs.
        env_arguments: keyword arguments of the env that are no texts, in addition to those of
            `config.env_kwargs`.
        ranks: processes that share the batches of the runs.

    Raises:
        ValueError: the configuration is wrong, or the folder holds another run.
    """
    torch.set_num_threads(config.threads)
    arguments = parse_assignments(config.env_kwargs) | dict(env_arguments or {})
    if "seed_mode" in arguments:
        raise ValueError(
            f"env_kwargs must leave out seed_mode; got {arguments['seed_mode']!r}; "
            "set the program's seed_mode"
        )

    arguments["seed_mode"] = config.seed_mode
    values = {
        key: value for key, value in asdict(config).items() if key not in ("out", "tensorboard")
    }
    values["env_kwargs"] = arguments
    outputs.check_run_folder(config.out, values, MAY_CHANGE, WRITTEN)
    controller = (
        Sidecar(config.sidecar, config.agent_seed)
        if config.controller is None
        else load_controller(config.controller)
    )
    env = make_runs(config.env, arguments, config.seeds, controller)
    divide(env.plant, ranks)
    population = Population(env, controller, config.row_seeds)
    facts = environment_facts(arguments, env.plant.corpus_digest, ranks.size)
    outputs.claim(config.out, values, facts)  # last, so that an error leaves no folder
    outputs.resume(config.out, "step", population.load)
    _keep_lines(config.out, population)

    return population


def finish(
    config: OnlineConfig, population: Population, on_step: Callable[[int], object] | None = None
) -> Rows:
    """Trains a population to its end.

    Args:
        config: configuration of the runs.
        population: result of `begin`.
        on_step: called with the step after each decision.

    Returns:
        One dictionary per row:

        - `seed`, `corpus` (sha256) and `divergence_reason` (or None).
        - The score at the end under the plant's key (`bpb`, held-out bits per byte, for a
          pretraining run).
        - `train_loss` (mean since the last but one point of the curve) and `probe_loss`, both in
          the plant's unit.
        - `steps` (P) [steps], in which a diverged run repeats its last step, the score's key and
          `_curve` (P), and `train_curve` (P - 1).

        A dictionary of the whole population:

        - `score` (the plant's names), `names` and `kinds` of the cells.
        - `trace` (`steps` (K), `mean` (K, N, A), `sampled` (K, N, A)) and `final_mean` (N, A).
        - `advantage_rms`, the mean over the log of the advantages' root mean square [reward], and
          `evidence`, the means' last gate in [0, 1]. Both are None if nothing was learned.
        - `agent_ms` and `env_ms`, wall-clock milliseconds per decision of this process, None if it
          took no decision.
    """
    _train(config, population, on_step)
    return _results(config, population)


def _keep_lines(folder: Path, population: Population) -> None:
    """Drops lines that will be written again.

    A position is traced at the step of its decision, so the trace of the last step is also dropped.
    A point of the curve is measured at its step, and is kept. A new run keeps no lines.
    """
    last = population.step if population.decision else -1
    keep_lines(folder / "curves.jsonl", "step", last)
    keep_lines(folder / "trace.jsonl", "step", last - 1)
    keep_lines(folder / "progress.jsonl", "step", population.timesteps)


def _train(
    config: OnlineConfig, population: Population, on_step: Callable[[int], object] | None
) -> None:
    env, folder, first = population.env, config.out, population.step
    score = env.plant.score.key
    if population.decision == 0:
        _append(
            folder / "curves.jsonl",
            {"step": 0, score: _numbers(population.evaluate()), "train_loss": None},
        )

    name = config.controller or ("sidecars" if config.sidecar.attached else "no controller")
    title = f"{name}, {config.seeds} runs"
    values = outputs.read_configuration(folder)

    with (
        RunLog(folder, population.timesteps, config.tensorboard, values) as log,
        log.progress(env.num_steps, title, completed=first) as advance,
    ):
        while not population.done:
            before = population.step
            tracing = before % config.trace_interval < env.interval
            metrics, positions = population.decide(tracing)
            after = population.step

            def due(interval: int, before: int = before, after: int = after) -> bool:
                return population.done or after // interval > before // interval

            logged: dict[str, float] = {}
            if positions is not None:
                _append(folder / "trace.jsonl", {"step": before, **positions})
            if due(config.log_interval):
                clocks = log.clocks(population.timesteps, population.decision)
                logged = metrics | _inner_metrics(population)
                logged |= population.episode_metrics() | clocks
            if due(config.eval_interval):
                scores = population.evaluate()
                train_loss = _numbers(population.mean_loss("curve"))
                line = {"step": after, score: _numbers(scores), "train_loss": train_loss}
                _append(folder / "curves.jsonl", line)
                logged["eval/held_out"] = float(np.mean(scores))
            if logged:
                log.write(logged, population.timesteps)

            if due(config.checkpoint_interval):
                population.save(folder / "checkpoints" / f"step-{after:07d}")
                outputs.drop_old(folder, "step")
            advance(after - before, f"{int(population.alive.sum())} of {env.num_envs} runs alive")
            if on_step is not None:
                on_step(after)


def _inner_metrics(population: Population) -> dict[str, float]:
    """Returns the models' step, mean train loss, and fraction of diverged runs."""
    losses = population.mean_loss("log")
    metrics = {"inner/step": float(population.step)} | {
        "inner/diverged": float(np.mean([reason is not None for reason in population.reasons]))
    }
    if np.isfinite(losses).any():
        metrics["inner/train_loss"] = float(np.nanmean(losses))
    return metrics


def _results(config: OnlineConfig, population: Population) -> Rows:
    curves, trace, log = (
        _read_lines(config.out / f"{name}.jsonl") for name in ("curves", "trace", "progress")
    )
    final_mean, probe = population.means(), population.probe()
    env, score = population.env, population.env.plant.score
    taken = env.steps.tolist()  # fewer for a diverged run

    rows = []
    for i, seed in enumerate(config.row_seeds):
        trained = [line["train_loss"][i] for line in curves[1:]]
        measured = [value for value in trained if value is not None]
        rows.append(
            {
                "seed": seed,
                "corpus": env.plant.corpus_digest,
                score.key: curves[-1][score.key][i],
                "train_loss": measured[-1] if measured else None,
                "probe_loss": float(probe[i]),
                "divergence_reason": population.reasons[i],
                "steps": [min(line["step"], taken[i]) for line in curves],
                f"{score.key}_curve": [line[score.key][i] for line in curves],
                "train_curve": trained,
            }
        )

    timed = population.timed
    spreads = [line["train/advantage_rms"] for line in log if "train/advantage_rms" in line]
    evidence = [line["train/evidence"] for line in log if "train/evidence" in line]
    extra = {
        "score": score._asdict(),
        "names": list(env.action_names),
        "kinds": list(env.action_kinds),
        "trace": {
            "steps": [line["step"] for line in trace],
            "mean": [line["mean"] for line in trace],
            "sampled": [line["sampled"] for line in trace],
        },
        "final_mean": final_mean.round(DECIMALS).tolist(),
        "advantage_rms": float(np.mean(spreads)) if spreads else None,
        "evidence": evidence[-1] if evidence else None,
        "agent_ms": 1e3 * population.controller_seconds / timed if timed else None,
        "env_ms": 1e3 * population.env_seconds / timed if timed else None,
    }

    return rows, extra


def _numbers(values: FloatArray) -> list[float | None]:
    """Returns values in JSON's types, with None for values that are not finite."""
    return [float(value) if np.isfinite(value) else None for value in values]


def _append(file: Path, line: Mapping[str, Any]) -> None:
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(line) + "\n")


def _read_lines(file: Path) -> list[dict[str, Any]]:
    return (
        [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        if file.exists()
        else []
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains the runs, prints a summary and writes the result. A rank above 0 follows rank 0."""
    with open_ranks() as ranks:
        if ranks.follows:
            follow(ranks)
        else:
            _run_from_command_line(arguments, ranks)


def _run_from_command_line(arguments: Sequence[str] | None, ranks: Ranks) -> None:
    config = configuration(OnlineConfig, "train_agents.online", __doc__, arguments)
    with refusals():
        population = begin(config, ranks=ranks)

    try:
        rows, extra = finish(config, population)
    except KeyboardInterrupt:
        sys.exit(f"interrupted; the same command continues from {config.out}")

    result = config.out / "result.json"
    # Without a decision in this process, an existing file has the right times.
    if extra["env_ms"] is not None or not result.exists():
        write_result(result, "online", asdict(config), rows, extra)

    for row in rows:
        fate = row["divergence_reason"] or "finished"
        value = row[extra["score"]["key"]]
        shown = "-" if value is None else f"{value:.4f}"
        print(f"seed {row['seed']}: {shown} {extra['score']['label']} ({fate})")

    if extra["env_ms"] is not None:
        print(
            f"per decision: {extra['env_ms']:.1f} ms of the runs, "
            f"{extra['agent_ms']:.1f} ms of the controllers"
        )

    print(f"written: {result}")


if __name__ == "__main__":
    main()
