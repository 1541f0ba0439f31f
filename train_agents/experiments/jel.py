"""Tables and figures of "Just Enough Learning": `python -m train_agents.experiments.jel`.

Controllers are meta-trained on cheap runs (few tokens a step) and deployed, frozen and
deterministic, on full ones. Everything is compared on held-out bits per byte at equal tokens and
equal evaluation seeds. Nothing was trained or chosen on these seeds: sweeps choose by the probe
loss on separate tuning seeds.

Arms of controllers, 8 episodes per update:
    paper      the paper's hyperparameters (table 2), independent seeds within a group
    ours       per-optimizer actions, grouped seeds, policy rate 2e-3
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
from baselines import schedules
from baselines.sweeps import cma_search, random_search
from baselines.tuning import SEARCHES, tune
from hpenv.benchmark.command_line import check_counts, configuration
from hpenv.benchmark.environments import make_population
from hpenv.benchmark.evaluate import evaluate_controller
from hpenv.benchmark.results import Rows
from train_agents.experiments.jel_report import report
from train_agents.experiments.meta_training import meta_train
from train_agents.experiments.runner import Job, run_experiment
from train_agents.experiments.sweeping import sweep

ENV = "TrainLoop-JEL-v0"
#: Disjoint, but for chance in a million: training seeds are 32-bit words drawn from the
#: controller's seed.
FIRST_EVALUATION_SEED, FIRST_TUNING_SEED = 1000, 2000
#: Baselines that are reported as they are, untuned.
UNTUNED = ("constant", "constant_warmdown", "cosine", "wsd", "nanochat")


@dataclass(frozen=True)
class ExperimentConfig:
    """Size of the experiment. The defaults are the committed one."""

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
    num_points: int = 32  # of the search of a tuned baseline; 0 takes rates that were tuned before
    only: tuple[str, ...] = ()  # run only the jobs whose names begin with one of these
    demo: bool = False  # reduce all of this to fit 10 minutes on two cores
    num_workers: int = 2  # processes, one thread each
    report_only: bool = False  # write tables and figures from the results that are there

    def __post_init__(self) -> None:
        """Checks the counts."""
        steps = ("num_steps", "interval", "deployment_tokens", "meta_tokens")
        counts = ("num_updates", "num_evaluation_seeds", "num_tuning_seeds", "num_workers")
        check_counts(self, *steps, *counts)
        check_counts(self, "num_controllers", "num_ablation_controllers", "num_points", least=0)

    def with_demo_sizes(self) -> ExperimentConfig:
        """Returns the demo's configuration if it is asked for, else this one."""
        if not self.demo:
            return self
        return replace(
            self, out=Path("results/demo"), runs=Path("runs/demo"), num_steps=141, interval=12,
            num_updates=10, num_controllers=2, num_ablation_controllers=0, num_evaluation_seeds=5,
            num_tuning_seeds=2, num_points=0,
        )  # fmt: skip

    def env_kwargs(self, **more: Any) -> dict[str, Any]:
        """Returns the arguments of a deployed run."""
        steps = {"num_steps": self.num_steps, "interval": self.interval}
        return {**steps, "batch_tokens": self.deployment_tokens, **more}

    def meta_kwargs(self, **more: Any) -> dict[str, Any]:
        """Returns the arguments of a meta-training run."""
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


def _penalty(term: str) -> dict[str, Any]:
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
    Arm("penalty_smoothness", env_kwargs=_penalty("smoothness")),
    Arm("penalty_gradient_norm", env_kwargs=_penalty("gradient_norm")),
    Arm("per_optimizer", env_kwargs={"channels": "per_optimizer"}),
    Arm("ppo", agent="ppo"),
)


def controller(
    arm: Arm, seed: int, num_updates: int, runs: str, meta_kwargs: dict[str, Any],
    deployment_kwargs: dict[str, Any], evaluation_seeds: Sequence[int],
) -> Rows:  # fmt: skip
    """Trains one controller of an arm, then deploys it on every evaluation seed."""
    folder = Path(runs) / f"{arm.name}-{seed}"
    options = {"agent": arm.agent, "jel": arm.jel, "num_updates": num_updates, "seed": seed}
    policy, training = meta_train(folder, ENV, meta_kwargs | dict(arm.env_kwargs), **options)

    kwargs = {key: value for key, value in arm.env_kwargs.items() if key != "seed_mode"}
    rows = evaluate_controller(policy, ENV, deployment_kwargs | kwargs, evaluation_seeds)
    return rows, {"training": training, "actions": _action_quartiles(folder / "rollouts.jsonl")}


def _action_quartiles(file: Path) -> dict[str, Any]:
    """Returns quartiles of the sampled positions per decision and cell (figure 3).

    They are over all episodes of training.
    """
    if not file.exists():
        return {}
    lines = file.read_text().splitlines()
    positions = np.array([json.loads(line)["positions"] for line in lines])  # (U, T, N, A)
    quartiles = np.quantile(positions, (0.25, 0.5, 0.75), axis=(0, 2))  # (3, T, A)
    early, late = (np.median(part, axis=(0, 2)) for part in (positions[:5], positions[-5:]))
    names = ("low", "median", "high", "median_first_updates", "median_last_updates")
    values = (*quartiles, early, late)
    return {name: np.round(value, 4).tolist() for name, value in zip(names, values, strict=True)}


def baseline(env_kwargs: dict[str, Any], evaluation_seeds: Sequence[int]) -> Rows:
    """Evaluates a base schedule and base rates, with the panel at neutral.

    The extra has the number of runs that the rates were tuned with.
    """
    rates = schedules.hand_tuned_rates()
    is_tuned = all(env_kwargs.get(name) == rate for name, rate in rates.items())
    spent = schedules.tuning_runs() if is_tuned else 0
    return evaluate_controller(None, ENV, env_kwargs, evaluation_seeds), {"runs_spent": spent}


def tuned_baseline(
    name: str, num_points: int, env_kwargs: dict[str, Any], tuning_seeds: Sequence[int],
    evaluation_seeds: Sequence[int], log: str,
) -> Rows:  # fmt: skip
    """Evaluates a baseline at the best point of its search, which lies inside the tried range."""
    Path(log).parent.mkdir(parents=True, exist_ok=True)
    kwargs, extra = tune(name, env_kwargs, tuning_seeds, num_points, Path(log))
    return evaluate_controller(None, ENV, kwargs, evaluation_seeds), extra


def search(
    method: str, num_episodes: int, seed: int, log: str, meta_kwargs: dict[str, Any],
    deployment_kwargs: dict[str, Any], evaluation_seeds: Sequence[int],
) -> Rows:  # fmt: skip
    """Searches a schedule with JEL's number of meta-training episodes, then deploys the result."""
    path = Path(log)
    path.parent.mkdir(parents=True, exist_ok=True)
    if method == "cma":
        policy, history = cma_search(meta_kwargs, num_episodes, seed, log=path)
    else:
        policy, history = random_search(meta_kwargs, num_episodes, seed, kind="schedule", log=path)
    rows = evaluate_controller(policy, ENV, deployment_kwargs, evaluation_seeds)
    return rows, {"history": history}


def make_jobs(config: ExperimentConfig) -> list[Job]:
    """Returns all jobs, the most wanted first."""
    steps, deployed = config.num_steps, config.env_kwargs()
    evaluation = {"evaluation_seeds": config.evaluation_seeds}
    tuning = {"env_kwargs": deployed, "tuning_seeds": config.tuning_seeds, **evaluation}
    transfer = {"meta_kwargs": config.meta_kwargs(), "deployment_kwargs": deployed, **evaluation}

    def train_job(arm: Arm, seed: int) -> Job:
        sizes = {"num_updates": config.num_updates, "runs": str(config.runs)}
        return Job(
            f"{arm.name}-{seed}", controller, {"arm": arm, "seed": seed, **sizes, **transfer}
        )

    def sweep_job(name: str, configurations: Mapping[str, dict[str, Any]]) -> Job:
        return Job(name, partial(sweep, ENV), {"configurations": dict(configurations), **tuning})

    def baseline_job(name: str) -> Job:
        kwargs = deployed | schedules.BASELINES[name](steps).env_kwargs
        return Job(f"baseline_{name}", baseline, {"env_kwargs": kwargs, **evaluation})

    def tuned_job(name: str) -> Job:
        log = str(config.runs / f"tuned_{name}.jsonl")
        arguments = {"name": name, "num_points": config.num_points, "log": log, **tuning}
        return Job(f"tuned_{name}", tuned_baseline, arguments)

    def search_job(method: str) -> Job:
        budget = {"num_episodes": 8 * config.num_updates, "seed": 0}
        log = str(config.runs / f"search_{method}.jsonl")
        return Job(f"search_{method}", search, {"method": method, "log": log, **budget, **transfer})

    jobs = []
    if config.num_points:
        jobs += [baseline_job(name) for name in schedules.BASELINES if name in UNTUNED]
        jobs += [tuned_job(name) for name in SEARCHES]
    else:
        jobs += [baseline_job(name) for name in schedules.BASELINES]
        jobs += [sweep_job("sweep_constant", schedules.constant_multipliers(steps))]
    for reading in ("sgd", "adamw"):
        tried = schedules.schedule_free_configurations(reading, steps)
        jobs.append(sweep_job(f"sweep_schedule_free_{reading}", tried))
    for seed in range(config.num_controllers):
        jobs += [train_job(PAPER, seed), train_job(OURS, seed)]
    jobs += [search_job(method) for method in ("cma", "random_schedule")]
    for seed in range(config.num_ablation_controllers):
        jobs += [train_job(arm, seed) for arm in ABLATIONS]
    return jobs


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the program."""
    program, complete = "train_agents.experiments.jel", ExperimentConfig.with_demo_sizes
    config = configuration(ExperimentConfig, program, __doc__, arguments, complete)

    def check() -> None:
        for size in (config.env_kwargs(), config.meta_kwargs()):
            make_population(ENV, 1, size)

    run_experiment(config, make_jobs(config), report, check)


if __name__ == "__main__":
    main()
