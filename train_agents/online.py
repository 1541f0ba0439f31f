"""Trains runs with a Sidecar beside each: `python -m train_agents.online --env-kwargs
channels=foundational`.

One controller per run, which learns while the run goes on and ends with it; `--sidecar.no-attached`
is the same program without one. Every row of the population is a run of a seed of its own, or, with
`--seed-mode grouped`, all are the run of the first seed, each with a Sidecar of its own.

Writes into its folder: `config.json`, `progress.jsonl` (training and controller metrics),
`curves.jsonl` (held-out bits per byte, which no controller ever sees), `trace.jsonl` (the position
of every cell, mean and sample), TensorBoard events, and checkpoints that hold the env's snapshot,
the agent's state and the program's own together. Interrupted at any time, the same command goes on
from the last checkpoint, bitwise as if it had never stopped; a damaged one is moved aside to
`*.damaged`. Run again when it has finished, it leaves `result.json` as it is.

Metrics have stable-baselines3's tags, and are counted in timesteps as it counts them: decisions,
summed over the runs. `rollout/ep_rew_mean` and `rollout/ep_len_mean` are of the runs' only episodes
as far as they have come; `inner/step` is the step of the runs, which curves and traces count in;
`eval/held_out` is the mean of the runs' held-out scores.

A run that diverges is an outcome: it stays where it is, and the others go on.
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

from agents.reinforce import SidecarAgent, SidecarConfig
from train_agents import outputs
from train_agents.command_line import check_counts, configuration, refusals
from train_agents.environments import make_population, parse_assignments
from train_agents.facts import environment_facts
from train_agents.logs import RunLog, keep_lines
from train_agents.population import DECIMALS, FloatArray, Population
from train_agents.results import Rows, write_result

#: Fields of the configuration that may change when a run is continued.
MAY_CHANGE = ("threads", "checkpoint_interval")
#: What the program writes into its folder beside config.json and the checkpoints.
WRITTEN = ("progress.jsonl", "curves.jsonl", "trace.jsonl", "tensorboard", "result.json")


@dataclass(frozen=True)
class OnlineConfig:
    """What to train, with what beside it, and where to write."""

    env: str = "TrainLoop-Cell-v0"  # a registered id
    env_kwargs: tuple[str, ...] = ()  # key=value, of the env
    seeds: int = 1  # rows of the population
    first_seed: int = 0  # the rows' seeds count on from it
    seed_mode: Literal["independent", "grouped"] = (
        "independent"  # grouped: all rows are the run of the first seed
    )
    agent_seed: int = 0  # of what the sidecars draw
    sidecar: SidecarConfig = field(default_factory=SidecarConfig)
    eval_interval: int = 500  # steps between held-out evaluations [steps]
    trace_interval: int = 50  # steps between traced positions [steps]
    log_interval: int = 50  # steps between lines of metrics [steps]
    checkpoint_interval: int = 500  # steps between checkpoints [steps]
    out: Path = Path("runs/sidecar")  # folder; resumes if it holds a run of the same configuration
    threads: int = 1  # torch threads
    tensorboard: bool = True  # write TensorBoard events beside the JSON lines

    def __post_init__(self) -> None:
        """Refuses counts below 1, and negative seeds."""
        intervals = ("eval_interval", "trace_interval", "log_interval", "checkpoint_interval")
        check_counts(self, "seeds", *intervals, "threads")
        check_counts(self, "first_seed", "agent_seed", least=0)

    @property
    def row_seeds(self) -> list[int]:
        """The seed of each row."""
        step = 0 if self.seed_mode == "grouped" else 1
        return [self.first_seed + step * row for row in range(self.seeds)]


def run_online(
    config: OnlineConfig,
    env_arguments: Mapping[str, Any] | None = None,
    on_step: Callable[[int], object] | None = None,
) -> Rows:
    """Trains the population to its end, resuming if the folder holds a run; see `begin` and `finish`."""
    return finish(config, begin(config, env_arguments), on_step)


def begin(config: OnlineConfig, env_arguments: Mapping[str, Any] | None = None) -> Population:
    """Makes the population, checks the folder, claims it, and goes on from its newest checkpoint if
    it has one.

    Args:
        config: what to train.
        env_arguments: keyword arguments of the env beside those of `config.env_kwargs`, for what is
            no text.

    Raises:
        ValueError: for what cannot be trained, or a folder that holds another run.
    """
    torch.set_num_threads(config.threads)
    arguments = parse_assignments(config.env_kwargs) | dict(env_arguments or {})
    if "seed_mode" in arguments:
        raise ValueError(
            f"seed_mode {arguments['seed_mode']!r} as an argument of the env; expected it in the config"
        )
    arguments["seed_mode"] = config.seed_mode
    values = {
        key: value for key, value in asdict(config).items() if key not in ("out", "tensorboard")
    }
    values["env_kwargs"] = arguments
    outputs.check_run_folder(config.out, values, MAY_CHANGE, WRITTEN)
    env = make_population(config.env, config.seeds, arguments)
    agent = SidecarAgent(
        config.seeds,
        len(env.observation_names),
        env.action_kinds,
        env.action_immediate,
        config=config.sidecar,
        seed=config.agent_seed,
        action_names=env.action_names,
    )
    population = Population(env, agent, config.row_seeds)
    facts = environment_facts(arguments, env.plant.corpus_digest)
    outputs.claim(config.out, values, facts)  # last: what cannot be begun leaves no trace
    outputs.resume(config.out, "step", population.load)
    _keep_lines(config.out, population)
    return population


def finish(
    config: OnlineConfig, population: Population, on_step: Callable[[int], object] | None = None
) -> Rows:
    """Trains a population to its end.

    Args:
        config: what to train.
        population: from `begin`.
        on_step: called with the number of the step after each decision.

    Returns:
        One dictionary per row: `seed`, `corpus` (sha256), the score at the end under the plant's
            key (`bpb`, held-out
        bits per byte, of a pretraining run), `train_loss` (mean since the point before the last of
        the curve) and `probe_loss`, both in the plant's unit, `divergence_reason` (or None),
        `steps` (P) [steps], where a run that diverged stays at its last, the score's key and
        `_curve` (P), `train_curve` (P - 1). And what else there is: `score` (the plant's names),
        `names` and `kinds` of the cells, `trace` (`steps` (K), `mean` (K, N, A), `sampled` (K, N,
        A)), `final_mean` (N, A); `advantage_rms`, the mean over the log of the advantages' root
        mean square [reward], and `evidence`, the factor that the means learned with at the end, in
        [0, 1], both None if nothing was learned; milliseconds per decision `agent_ms` and `env_ms`,
        wall clock of this process, None if it had nothing to do.
    """
    _train(config, population, on_step)
    return _results(config, population)


def _keep_lines(folder: Path, population: Population) -> None:
    """Drops lines that will be written again.

    A position is traced at the step that it is chosen on, so that a trace of the last step itself
    goes, too; a point of the curve is measured at its step, and stays. Of a run that begins,
    nothing stays.
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
    title = f"{'attached' if config.sidecar.attached else 'detached'}, {config.seeds} runs"
    with (
        RunLog(
            folder, population.timesteps, config.tensorboard, outputs.read_configuration(folder)
        ) as log,
        log.progress(env.horizon, title, completed=first) as advance,
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
                logged = (
                    metrics | _inner_metrics(population) | population.episode_metrics() | clocks
                )
            if due(config.eval_interval):
                scores = population.evaluate()
                line = {
                    score: _numbers(scores),
                    "train_loss": _numbers(population.mean_loss("curve")),
                }
                _append(folder / "curves.jsonl", {"step": after, **line})
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
    """Returns what the trained models did: their step, loss of the rows that still went on, diverged fraction."""
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
    env, rows = population.env, []
    score = env.plant.score
    taken = env.snapshot().tensors["window/steps"].tolist()  # a run that diverged stays where it is
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
    spreads, evidence = (
        [line[tag] for line in log if tag in line]
        for tag in ("train/advantage_rms", "train/evidence")
    )
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
        "agent_ms": 1e3 * population.agent_seconds / timed if timed else None,
        "env_ms": 1e3 * population.env_seconds / timed if timed else None,
    }
    return rows, extra


def _numbers(values: FloatArray) -> list[float | None]:
    """Values as JSON has them: None for what is not finite."""
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
    """Runs the program."""
    config = configuration(OnlineConfig, "train_agents.online", __doc__, arguments)
    with refusals():
        population = begin(config)
    try:
        rows, extra = finish(config, population)
    except KeyboardInterrupt:
        sys.exit(f"interrupted; the same command continues from {config.out}")
    result = config.out / "result.json"
    if (
        extra["env_ms"] is not None or not result.exists()
    ):  # or nothing was done, and the file knows what it took
        write_result(result, "online", asdict(config), rows, extra)
    for row in rows:
        fate = row["divergence_reason"] or "finished"
        value = row[extra["score"]["key"]]
        print(
            f"seed {row['seed']}: {'-' if value is None else f'{value:.4f}'} {extra['score']['label']} ({fate})"
        )
    if extra["env_ms"] is not None:
        print(
            f"per decision: {extra['env_ms']:.1f} ms of the runs, {extra['agent_ms']:.1f} ms of the sidecars"
        )
    print(f"written: {result}")


if __name__ == "__main__":
    main()
