"""Trains runs with a Sidecar beside each: `python -m train_agents.online --env-kwargs channels=foundational`.

One controller per run, which learns while the run goes on and ends with it; `--sidecar.no-attached` is the same program
without one. Every row of the population is a run of a seed of its own, or, with `--seed-mode grouped`, all are the run
of the first seed, each with a Sidecar of its own.

Writes into its folder: `config.json`, `progress.jsonl` (training and controller metrics), `curves.jsonl` (held-out bits
per byte, which no controller ever sees), `trace.jsonl` (the position of every cell, mean and sample), TensorBoard
events, and checkpoints that hold the env's snapshot, the agent's state and the program's own together. Interrupted at
any time, the same command goes on from the last checkpoint, bitwise as if it had never stopped; a damaged one is moved
aside to `*.damaged`. Run again when it has finished, it leaves `result.json` as it is.

A run that diverges is an outcome: it stays where it is, and the others go on.

Past the usual length of a module, because what is saved and what is resumed have to agree line by line.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch

import hpenv
from agents.reinforce import SidecarAgent, SidecarConfig
from hpenv import snapshots
from hpenv.env import TrainLoopVectorEnv
from train_agents.evaluate import parse_assignments
from train_agents.logs import RunLog, describe
from train_agents.population import DECIMALS, FloatArray, Population, checkpoints
from train_agents.results import Rows, environment_facts, write_result

gym.register_envs(hpenv)

#: Checkpoints that are kept.
KEPT_CHECKPOINTS = 2
#: Fields of the configuration that may change when a run is continued.
MAY_CHANGE = ("out", "tensorboard", "threads", "checkpoint_interval")


@dataclass(frozen=True)
class OnlineConfig:
    """What to train, with what beside it, and where to write."""

    env: str = "TrainLoop-Cell-v0"  # a registered id
    env_kwargs: tuple[str, ...] = ()  # key=value, of the env
    seeds: int = 1  # rows of the population
    first_seed: int = 0  # the rows' seeds count on from it
    seed_mode: Literal["independent", "grouped"] = "independent"  # grouped: all rows are the run of the first seed
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
        """Refuses counts below 1."""
        for name in ("seeds", "eval_interval", "trace_interval", "log_interval", "checkpoint_interval"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r}; expected at least 1")

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
    """Trains the population to its end, resuming if the folder holds a run.

    Args:
        config: what to train.
        env_arguments: keyword arguments of the env beside those of `config.env_kwargs`, for what is no text.
        on_step: called with the number of the step after each decision.

    Returns:
        One dictionary per row: `seed`, `corpus` (sha256), the score at the end under the plant's key (`bpb`, held-out
        bits per byte, of a pretraining run), `train_loss` (mean since the point before the last of the curve) and
        `probe_loss`, both in the plant's unit, `divergence_reason` (or None), `steps` (P) [steps], where a run that
        diverged stays at its last, the score's key and `_curve` (P), `train_curve` (P - 1). And what else there is:
        `score` (the plant's names), `names` and `kinds` of the cells, `trace` (`steps` (K), `mean` (K, N, A), `sampled`
        (K, N, A)), `final_mean` (N, A); `advantage_rms`, the mean over the log of the advantages' root mean square
        [reward], and `evidence`, the factor that the means learned with at the end, in [0, 1], both None if nothing was
        learned; milliseconds per decision `agent_ms` and `env_ms`, wall clock of this process, None if it had nothing
        to do.

    Raises:
        ValueError: if the folder holds a run of another configuration, or the id is no training loop.
    """
    torch.set_num_threads(config.threads)
    arguments = parse_assignments(config.env_kwargs) | dict(env_arguments or {})
    if "seed_mode" in arguments:
        raise ValueError(f"seed_mode {arguments['seed_mode']!r} as an argument of the env; expected it in the config")
    arguments["seed_mode"] = config.seed_mode
    env = gym.make_vec(config.env, num_envs=config.seeds, autoreset_mode="DISABLED", **arguments)
    if not isinstance(env, TrainLoopVectorEnv):
        raise ValueError(f"{config.env!r} makes a {type(env).__name__}; expected the id of a TrainLoopVectorEnv")
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
    _claim(config, arguments, env.plant.corpus_digest)  # last: what cannot be begun leaves no trace
    _resume(population, config.out)
    _train(config, population, on_step)
    return _results(config, population)


def _claim(config: OnlineConfig, arguments: Mapping[str, Any], corpus: str) -> None:
    """Writes config.json, or refuses a folder that holds another run."""
    values = asdict(config) | {"env_kwargs": dict(arguments)}
    ours = json.loads(json.dumps({k: v for k, v in values.items() if k not in MAY_CHANGE}, default=repr))
    file = config.out / "config.json"
    if file.exists():
        theirs = json.loads(file.read_text())["configuration"]
        different = {key: (theirs.get(key), ours[key]) for key in ours if theirs.get(key) != ours[key]}
        if different:
            raise ValueError(
                f"{config.out} holds another run, differing as (there, asked): {different}; give another --out"
            )
        return
    config.out.mkdir(parents=True, exist_ok=True)
    _write(file, json.dumps({"configuration": ours, "facts": environment_facts(arguments, corpus)}, indent=1))


def _resume(population: Population, folder: Path) -> None:
    """Goes on from the newest checkpoint that is intact, if there is one.

    Damaged ones are moved aside: as the newest by their names, they would outlive those that are written from now on.
    """
    skipped = []
    for checkpoint in reversed(checkpoints(folder)):
        try:
            population.load(checkpoint)
        except snapshots.SnapshotError as error:
            skipped.append(f"skipped a checkpoint, now {_moved_aside(checkpoint).name}: {error}")
        else:
            break
    for text in skipped:
        warnings.warn(f"{text}; training starts from step {population.step}", stacklevel=2)


def _moved_aside(checkpoint: Path) -> Path:
    """Where a damaged checkpoint is now; one that was there before is gone."""
    aside = checkpoint.with_name(f"{checkpoint.name}.damaged")
    shutil.rmtree(aside, ignore_errors=True)
    return checkpoint.rename(aside)


def _train(config: OnlineConfig, population: Population, on_step: Callable[[int], object] | None) -> None:
    env, folder, first = population.env, config.out, population.step
    score = env.plant.score.key
    for name in ("curves.jsonl", "trace.jsonl"):
        _keep_lines(folder / name, first if population.decision else -1)
    if population.decision == 0:
        _append(folder / "curves.jsonl", {"step": 0, score: _numbers(population.evaluate()), "train_loss": None})
    title = f"{'attached' if config.sidecar.attached else 'detached'}, {config.seeds} runs"
    with (
        RunLog(folder, resume_at=first, tensorboard=config.tensorboard) as log,
        log.progress(env.horizon, title, completed=first) as advance,
    ):
        while not population.done:
            before = population.step
            tracing = before % config.trace_interval < env.interval
            metrics, positions = population.decide(tracing)
            after = population.step

            def due(interval: int, before: int = before, after: int = after) -> bool:
                return population.done or after // interval > before // interval

            if positions is not None:
                _append(folder / "trace.jsonl", {"step": before, **positions})
            if due(config.log_interval):
                log.write(metrics | _inner_metrics(population), after)
            if due(config.eval_interval):
                line = {
                    score: _numbers(population.evaluate()),
                    "train_loss": _numbers(population.mean_loss("curve")),
                }
                _append(folder / "curves.jsonl", {"step": after, **line})
            if due(config.checkpoint_interval):
                population.save(folder / "checkpoints" / f"step-{after:07d}")
                for old in checkpoints(folder)[:-KEPT_CHECKPOINTS]:
                    shutil.rmtree(old)
            advance(after - before, f"{int(population.alive.sum())} of {env.num_envs} runs alive")
            if on_step is not None:
                on_step(after)


def _inner_metrics(population: Population) -> dict[str, float]:
    """What the trained models did: training loss of the rows that still went on, share of diverged runs."""
    losses = population.mean_loss("log")
    metrics = {"inner/diverged": float(np.mean([reason is not None for reason in population.reasons]))}
    if np.isfinite(losses).any():
        metrics["inner/train_loss"] = float(np.nanmean(losses))
    return metrics


def _results(config: OnlineConfig, population: Population) -> Rows:
    curves, trace, log = (_read_lines(config.out / f"{name}.jsonl") for name in ("curves", "trace", "progress"))
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
        [line[tag] for line in log if tag in line] for tag in ("train/advantage_rms", "train/evidence")
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
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def _keep_lines(file: Path, last_step: int) -> None:
    """Drops lines after a step, which will be written again, and a torn last one.

    A position is traced at the step that it is chosen on, so that a trace of the last step itself goes, too; a point of
    the curve is measured at its step, and stays.
    """
    if file.exists():
        whole = [line for line in file.read_text(encoding="utf-8").split("\n")[:-1] if line.endswith("}")]
        ends = last_step if file.name == "curves.jsonl" else last_step - 1
        _write(file, "".join(f"{line}\n" for line in whole if json.loads(line)["step"] <= ends))


def _write(file: Path, text: str) -> None:
    temporary = file.with_name(f".{file.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, file)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the program."""
    import tyro

    config = tyro.cli(OnlineConfig, args=arguments, description=__doc__)
    describe(config)
    try:
        rows, extra = run_online(config)
    except KeyboardInterrupt:
        sys.exit(f"interrupted; the same command continues from {config.out}")
    result = config.out / "result.json"
    if extra["env_ms"] is not None or not result.exists():  # or nothing was done, and the file knows what it took
        write_result(result, "online", asdict(config), rows, extra)
    for row in rows:
        fate = row["divergence_reason"] or "finished"
        value = row[extra["score"]["key"]]
        print(f"seed {row['seed']}: {'-' if value is None else f'{value:.4f}'} {extra['score']['label']} ({fate})")
    if extra["env_ms"] is not None:
        print(f"per decision: {extra['env_ms']:.1f} ms of the runs, {extra['agent_ms']:.1f} ms of the sidecars")
    print(f"written: {result}")


if __name__ == "__main__":
    main()
