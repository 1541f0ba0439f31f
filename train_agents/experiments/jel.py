"""The tables and figures of "Just Enough Learning": `python -m train_agents.experiments.jel`.

Controllers are meta-trained on cheap runs (few tokens a step) and deployed, frozen and
deterministic, on full ones. Everything is compared on held-out bits per byte at equal tokens and
equal evaluation seeds, which nothing was trained or chosen on: sweeps choose by the probe loss on
tuning seeds of their own.

Arms of controllers, 8 episodes per update:
    paper      the paper's hyperparameters (table 2), independent seeds within a group;
    ours       per-optimizer actions, grouped seeds, policy rate 2e-3;
    ablations  one change each from `paper` (section 4.4), and stable-baselines3's PPO.

`--demo` is the same on a run a quarter as long, in minutes. Interrupted, the same command goes on
where it stopped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from agents.jel import JELAgentConfig
from agents.ppo import PPOAgentConfig
from baselines.schedules import (
    BASELINES,
    constant_multipliers,
    hand_tuned_rates,
    schedule_free_configurations,
    tuning_runs,
)
from baselines.sweeps import cma_search, random_search
from baselines.tuning import SEARCHES, tune
from hpenv.benchmark.command_line import check_counts, configuration
from hpenv.benchmark.environments import make_population
from hpenv.benchmark.evaluate import evaluate_policy
from hpenv.benchmark.results import Rows
from hpenv.policies import load_policy
from train_agents.experiments.jel_report import report
from train_agents.experiments.runner import Job, run_experiment
from train_agents.experiments.sweeping import sweep
from train_agents.train import TrainConfig, train

ENV = "TrainLoop-JEL-v0"
#: Disjoint, but for chance in a million: training seeds are 32-bit words drawn from the
#: controller's seed.
FIRST_EVALUATION_SEED, FIRST_TUNING_SEED = 1000, 2000
#: Baselines that are reported as they are, untuned.
UNTUNED = ("constant", "constant_warmdown", "cosine", "wsd", "nanochat")


@dataclass(frozen=True)
class ExperimentConfig:
    """Size of the experiment; the defaults are the committed one."""

    out: Path = Path("results/jel")  # tables, figures and one JSON file per job
    runs: Path = Path("runs/jel")  # checkpoints and logs of the controllers
    num_steps: int = 561  # of a run [steps]
    interval: int = 50  # steps per decision [steps]
    deployment_tokens: int = 512  # of a step [tokens]
    meta_tokens: int = 128  # of a step in meta-training [tokens]
    num_updates: int = 50  # of every controller
    num_controllers: int = 5  # of `paper` and of `ours`
    num_ablation_controllers: int = 3  # of each ablation
    num_evaluation_seeds: int = 10  # runs per controller and baseline
    num_tuning_seeds: int = 2  # runs per configuration of a sweep, and per point of a search
    num_points: int = (
        32  # of the search of every tuned baseline; 0 takes rates that were tuned before
    )
    only: tuple[str, ...] = ()  # run the jobs alone whose names begin with one of these
    demo: bool = False  # cut all of this to fit 10 minutes on two cores
    num_workers: int = 2  # processes, one thread each
    report_only: bool = False  # write tables and figures from the results that are there

    def __post_init__(self) -> None:
        """Refuses counts below 1."""
        steps = ("num_steps", "interval", "deployment_tokens", "meta_tokens")
        counts = ("num_updates", "num_evaluation_seeds", "num_tuning_seeds", "num_workers")
        check_counts(self, *steps, *counts)
        check_counts(self, "num_controllers", "num_ablation_controllers", "num_points", least=0)

    def sized(self) -> ExperimentConfig:
        """Itself, or the demo's sizes."""
        if not self.demo:
            return self
        return replace(
            self, out=Path("results/demo"), runs=Path("runs/demo"), num_steps=141, interval=12, num_updates=10,
            num_controllers=2, num_ablation_controllers=0, num_evaluation_seeds=5, num_tuning_seeds=2, num_points=0,
        )  # fmt: skip

    def env_kwargs(self, **more: Any) -> dict[str, Any]:
        """Arguments of a deployed run."""
        return {
            "num_steps": self.num_steps,
            "interval": self.interval,
            "batch_tokens": self.deployment_tokens,
            **more,
        }

    def meta_kwargs(self, **more: Any) -> dict[str, Any]:
        """Arguments of a meta-training run."""
        return self.env_kwargs(**more) | {"batch_tokens": self.meta_tokens}

    @property
    def evaluation_seeds(self) -> list[int]:
        """Seeds that reported numbers are measured on."""
        return list(range(FIRST_EVALUATION_SEED, FIRST_EVALUATION_SEED + self.num_evaluation_seeds))

    @property
    def tuning_seeds(self) -> list[int]:
        """Seeds that configurations are chosen on."""
        return list(range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + self.num_tuning_seeds))


@dataclass(frozen=True)
class Arm:
    """One way to train a controller."""

    name: str
    agent: str = "jel"
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)
    jel: JELAgentConfig = field(default_factory=JELAgentConfig)


def _penalized(term: str) -> dict[str, Any]:
    """Returns the default reward with a penalty (section 3.4)."""
    return {"reward": {"progress": 1.0, "divergence": 1.0, term: 0.1}}


PAPER = Arm("paper")
OURS = Arm(
    "ours",
    env_kwargs={"channels": "per_optimizer", "seed_mode": "grouped"},
    jel=JELAgentConfig(learning_rate=2e-3),
)
ABLATIONS = (
    Arm("normalize_per_step_std", jel=JELAgentConfig(normalize="per_step_std")),
    Arm("normalize_batch_std", jel=JELAgentConfig(normalize="batch_std")),
    Arm("normalize_grpo", jel=JELAgentConfig(normalize="grpo")),
    Arm("observation_full", env_kwargs={"observation": "full"}),
    Arm("penalty_smoothness", env_kwargs=_penalized("smoothness")),
    Arm("penalty_gradient_norm", env_kwargs=_penalized("gradient_norm")),
    Arm("per_optimizer", env_kwargs={"channels": "per_optimizer"}),
    Arm("ppo", agent="ppo"),
)


def controller(
    arm: Arm, seed: int, num_updates: int, runs: str, meta_kwargs: dict[str, Any], deployment_kwargs: dict[str, Any],
    evaluation_seeds: Sequence[int],
) -> Rows:  # fmt: skip
    """Trains one controller of an arm, then deploys it on every evaluation seed."""
    folder = Path(runs) / f"{arm.name}-{seed}"
    num_decisions = -(-meta_kwargs["num_steps"] // meta_kwargs["interval"])
    options = (
        {"jel": arm.jel}
        if arm.agent == "jel"
        else {"ppo": PPOAgentConfig(num_decisions=num_decisions)}
    )
    config = TrainConfig(
        agent=arm.agent,  # type: ignore[arg-type]
        env=ENV,
        env_kwargs=tuple(
            f"{key}={json.dumps(value)}"
            for key, value in (meta_kwargs | dict(arm.env_kwargs)).items()
        ),
        num_updates=num_updates,
        seed=seed,
        out=folder,
        **options,
    )
    train(config)
    kwargs = {key: value for key, value in arm.env_kwargs.items() if key != "seed_mode"}
    rows = evaluate_policy(
        load_policy(folder / "policy"), ENV, deployment_kwargs | kwargs, evaluation_seeds
    )
    progress = [json.loads(line) for line in (folder / "progress.jsonl").read_text().splitlines()]
    return rows, {"training": progress, "actions": _action_quartiles(folder / "rollouts.jsonl")}


def _action_quartiles(file: Path) -> dict[str, Any]:
    """Quartiles of the sampled positions over all episodes of training, per decision and cell (Figure 3)."""
    if not file.exists():
        return {}
    positions = np.array(
        [json.loads(line)["positions"] for line in file.read_text().splitlines()]
    )  # (U, T, N, A)
    quartiles = np.quantile(positions, (0.25, 0.5, 0.75), axis=(0, 2))  # (3, T, A)
    early, late = (np.median(part, axis=(0, 2)) for part in (positions[:5], positions[-5:]))
    names = ("low", "median", "high", "median_first_updates", "median_last_updates")
    values = (*quartiles, early, late)
    return {name: np.round(value, 4).tolist() for name, value in zip(names, values, strict=True)}


def baseline(env_kwargs: dict[str, Any], evaluation_seeds: Sequence[int]) -> Rows:
    """A base schedule and base rates, with the panel at neutral; and the runs that its rates were tuned with."""
    tuned = hand_tuned_rates()
    spent = (
        tuning_runs() if all(env_kwargs.get(name) == rates for name, rates in tuned.items()) else 0
    )
    return evaluate_policy(None, ENV, env_kwargs, evaluation_seeds), {"runs_spent": spent}


def tuned(
    name: str, num_points: int, env_kwargs: dict[str, Any], tuning_seeds: Sequence[int],
    evaluation_seeds: Sequence[int], log: str,
) -> Rows:  # fmt: skip
    """A baseline at the best point of its search, which lies inside what was tried."""
    Path(log).parent.mkdir(parents=True, exist_ok=True)
    kwargs, extra = tune(name, env_kwargs, tuning_seeds, num_points, Path(log))
    return evaluate_policy(None, ENV, kwargs, evaluation_seeds), extra


def search(
    method: str, num_episodes: int, seed: int, log: str, meta_kwargs: dict[str, Any], deployment_kwargs: dict[str, Any],
    evaluation_seeds: Sequence[int],
) -> Rows:  # fmt: skip
    """Searches a schedule at JEL's own number of meta-training episodes, then deploys what it found."""
    path = Path(log)
    path.parent.mkdir(parents=True, exist_ok=True)
    if method == "cma":
        policy, history = cma_search(meta_kwargs, num_episodes, seed, log=path)
    else:
        policy, history = random_search(meta_kwargs, num_episodes, seed, kind="schedule", log=path)
    rows = evaluate_policy(policy, ENV, deployment_kwargs, evaluation_seeds)
    return rows, {"history": history}


def make_jobs(config: ExperimentConfig) -> list[Job]:
    """All jobs, the most wanted first."""
    seeds, deployed, meta = config.evaluation_seeds, config.env_kwargs(), config.meta_kwargs()

    def trained(arm: Arm, seed: int) -> Job:
        arguments = {
            "arm": arm, "seed": seed, "num_updates": config.num_updates, "runs": str(config.runs),
            "meta_kwargs": meta, "deployment_kwargs": deployed, "evaluation_seeds": seeds,
        }  # fmt: skip
        return Job(f"{arm.name}-{seed}", controller, arguments)

    def swept(name: str, configurations: Mapping[str, dict[str, Any]]) -> Job:
        arguments = {
            "configurations": dict(configurations), "env_kwargs": deployed, "tuning_seeds": config.tuning_seeds,
            "evaluation_seeds": seeds,
        }  # fmt: skip
        return Job(name, partial(sweep, ENV), arguments)

    fixed = [
        Job(f"baseline_{name}", baseline, {"env_kwargs": deployed | build(config.num_steps).env_kwargs,
                                           "evaluation_seeds": seeds})
        for name, build in BASELINES.items()
        if name in UNTUNED or not config.num_points
    ]  # fmt: skip
    points = [
        Job(f"tuned_{name}", tuned, {
            "name": name, "num_points": config.num_points, "env_kwargs": deployed,
            "tuning_seeds": config.tuning_seeds, "evaluation_seeds": seeds,
            "log": str(config.runs / f"tuned_{name}.jsonl"),
        })
        for name in SEARCHES
        if config.num_points
    ]  # fmt: skip
    sweeps = [
        swept(
            f"sweep_schedule_free_{reading}",
            schedule_free_configurations(reading, config.num_steps),
        )
        for reading in ("sgd", "adamw")
    ]
    if not config.num_points:
        sweeps.insert(0, swept("sweep_constant", constant_multipliers(config.num_steps)))
    searches = [
        Job(f"search_{method}", search, {
            "method": method, "num_episodes": 8 * config.num_updates, "seed": 0, "meta_kwargs": meta,
            "log": str(config.runs / f"search_{method}.jsonl"), "deployment_kwargs": deployed,
            "evaluation_seeds": seeds,
        })
        for method in ("cma", "random_schedule")
    ]  # fmt: skip
    controllers = [
        trained(arm, seed) for seed in range(config.num_controllers) for arm in (PAPER, OURS)
    ]
    ablations = [
        trained(arm, seed) for seed in range(config.num_ablation_controllers) for arm in ABLATIONS
    ]
    return [*fixed, *points, *sweeps, *controllers, *searches, *ablations]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the program."""
    program, sized = "train_agents.experiments.jel", ExperimentConfig.sized
    config = configuration(ExperimentConfig, program, __doc__, arguments, sized)

    def check() -> None:
        for size in (config.env_kwargs(), config.meta_kwargs()):
            make_population(ENV, 1, size)

    run_experiment(config, make_jobs(config), report, check)


if __name__ == "__main__":
    main()
