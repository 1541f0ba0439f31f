"""Tables and figures of "Just Enough Learning": `python -m train_agents.experiments.jel`.

Controllers are meta-trained on cheap runs (few tokens a step), those of `nanochat` on full ones,
and deployed, frozen and deterministic, on full ones. Everything is compared on held-out bits per
byte at equal tokens and equal evaluation seeds. Nothing was trained or chosen on these seeds:
sweeps choose by the probe loss on separate tuning seeds.

Arms of controllers, 8 episodes per update:
    paper      the paper's hyperparameters (table 2), independent seeds within a group
    ours       per-optimizer actions, grouped seeds, policy rate 2e-3
    nanochat   a rate per group on nanochat's run, from a neutral start, trained on 96 full runs;
               and the same from a random start
    ablations  one change each from `paper` (section 4.4), and stable-baselines3's PPO.

`--demo` is the same on a run a quarter as long, in minutes. Interrupted, the same command goes on
where it stopped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from agents.jel import JELAgentConfig
from baselines import schedules
from baselines.sweeps import cma_search, random_search
from baselines.tuning import tune
from hpenv.benchmark.environments import make_population
from hpenv.benchmark.evaluate import evaluate_controller
from hpenv.benchmark.results import Rows
from train_agents.experiments import jel_report as page
from train_agents.experiments.meta_training import meta_train
from train_agents.experiments.report import Report
from train_agents.experiments.runner import Experiment, Job, Sizes
from train_agents.experiments.samples import bpb_arms
from train_agents.experiments.sweeping import sweep

ENV = "TrainLoop-JEL-v0"


@dataclass(frozen=True)
class ExperimentConfig(Sizes):
    """Size of the experiment. The defaults are the committed one."""

    out: Path = Path("results/jel")
    runs: Path = Path("runs/jel")
    num_steps: int = 561  # of a run [steps]
    interval: int = 50  # steps per decision [steps]
    deployment_tokens: int = 512  # of a step [tokens]
    meta_tokens: int = 128  # of a step in meta-training [tokens]
    num_updates: int = 50  # of every controller
    num_controllers: int = 5  # of `paper`, of `ours` and of each arm of `nanochat`
    num_ablation_controllers: int = 3  # of each ablation
    num_evaluation_seeds: int = 10
    num_points: int = 32  # of the search of a tuned baseline; 0 takes rates that were tuned before
    demo: bool = False  # reduce all of this to fit 10 minutes on two cores
    MAY_BE_ZERO = ("num_controllers", "num_ablation_controllers", "num_points")

    def env_kwargs(self) -> dict[str, Any]:
        """Returns the arguments of a deployed run."""
        steps = {"num_steps": self.num_steps, "interval": self.interval}
        return {**steps, "batch_tokens": self.deployment_tokens}

    def meta_kwargs(self) -> dict[str, Any]:
        """Returns the arguments of a meta-training run."""
        return self.env_kwargs() | {"batch_tokens": self.meta_tokens}


#: Sizes of the demo.
DEMO: dict[str, Any] = {
    "out": Path("results/demo"), "runs": Path("runs/demo"), "num_steps": 141, "interval": 12,
    "num_updates": 10, "num_controllers": 2, "num_ablation_controllers": 0,
    "num_evaluation_seeds": 5, "num_tuning_seeds": 2, "num_points": 0,
}  # fmt: skip


@dataclass(frozen=True)
class Arm:
    """One method: a baseline, a search, or a way to train a controller.

    The repr is part of the configuration of a job, so it has only what changes a number.
    """

    name: str  # of the job; of a baseline, sweep or search it says which
    label: str = field(default="", repr=False)  # in tables and figures; empty: the name
    group: str = field(default="", repr=False)  # key of JOBS
    agent: str = "jel"
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)
    jel: JELAgentConfig = field(default_factory=JELAgentConfig)
    #: True: meta-training runs are those of deployment. With the number of updates, if it is not 0,
    #: it changes arguments of the job.
    is_full: bool = field(default=False, repr=False)
    num_updates: int = field(default=0, repr=False)


def _penalty(term: str) -> dict[str, Any]:
    """Returns the default reward with a penalty (section 3.4)."""
    return {"reward": {"progress": 1.0, "divergence": 1.0, term: 0.1}}


_PER_OPTIMIZER = {"channels": "per_optimizer"}
_OURS = _PER_OPTIMIZER | {"seed_mode": "grouped"}
_NANOCHAT = schedules.nanochat_rates() | {
    "optimizer": "adamw_muon_nanochat",
    "schedule": "warmup_flat_warmdown",
    "weight_decay_schedule": "linear_decay",
    "channels": [["lr", "group"]],
    "seed_mode": "grouped",
}
#: Chosen on five pilots of 40 to 96 episodes each with a neutral start, training seeds 100 to 102,
#: by the probe loss of seeds 2000 to 2002.
_FEW_EPISODES = JELAgentConfig(learning_rate=1e-3, normalize="grpo", initial_log_std=-1.5)
#: Groups: `untuned` and `swept` are always run, `transferred` only with rates that were tuned
#: before (`num_points` 0), `tuned` only without.
ARMS: tuple[Arm, ...] = (
    Arm(
        "baseline_constant_warmdown",
        "conservative base, controller off (the paper's suboptimal)",
        "untuned",
    ),
    Arm("baseline_constant", "conservative base, constant rate", "untuned"),
    Arm("baseline_cosine", "conservative base, cosine", "untuned"),
    Arm("baseline_wsd", "conservative base, warmup-stable-decay", "untuned"),
    Arm(
        "baseline_nanochat",
        "nanochat's rates, schedule and Muon, untuned, without its rule for the batch size",
        "untuned",
    ),
    Arm(
        "baseline_nanochat_warmdown",
        "nanochat's rates, untuned, with our Muon, warmdown",
        "untuned",
    ),
    Arm("baseline_cosine_tuned", "hand-tuned rates, cosine", "transferred"),
    Arm("baseline_wsd_tuned", "hand-tuned rates, warmup-stable-decay", "transferred"),
    Arm("baseline_hand_tuned", "hand-tuned per-group rates, warmdown", "transferred"),
    Arm("sweep_constant", "best constant multiplier of a sweep", "transferred"),
    Arm("tuned_uniform", "one rate and decay, tuned, warmdown", "tuned"),
    Arm("tuned_hand_tuned", "per-group rates, tuned, warmdown", "tuned"),
    Arm("tuned_cosine", "per-group rates, tuned, cosine", "tuned"),
    Arm("tuned_wsd", "per-group rates, tuned, warmup-stable-decay", "tuned"),
    Arm("tuned_nanochat", "nanochat's rates times a tuned factor, and its decay tuned", "tuned"),
    Arm("tuned_nanochat_groups", "per-group rates, tuned, nanochat's schedules and Muon", "tuned"),
    Arm("tuned_schedule_free_sgd", "schedule-free (SGD reading), tuned", "tuned"),
    Arm("tuned_schedule_free_adamw", "schedule-free (AdamW reading), tuned", "tuned"),
    Arm(
        "sweep_schedule_free_sgd",
        "best of the paper's 8 schedule-free points (SGD reading)",
        "swept",
    ),
    Arm(
        "sweep_schedule_free_adamw",
        "best of the paper's 8 schedule-free points (AdamW reading)",
        "swept",
    ),
    Arm("paper", "JEL, the paper's hyperparameters", "controller"),
    Arm(
        "ours",
        "JEL, ours (per-optimizer actions, grouped seeds, policy rate 2e-3)",
        "controller",
        env_kwargs=_OURS,
        jel=JELAgentConfig(learning_rate=2e-3),
    ),
    Arm(
        "nanochat",
        "JEL on nanochat's run, from neutral (a rate per group, full runs)",
        "nanochat",
        env_kwargs=_NANOCHAT,
        jel=replace(_FEW_EPISODES, start="neutral"),
        is_full=True,
        num_updates=12,
    ),
    Arm(
        "nanochat_random",
        "JEL on nanochat's run, from a random network (a rate per group, full runs)",
        "nanochat",
        env_kwargs=_NANOCHAT,
        jel=_FEW_EPISODES,
        is_full=True,
        num_updates=12,
    ),
    Arm("search_cma", "CMA-ES over schedules", "search"),
    Arm("search_random_schedule", "random search over schedules", "search"),
    Arm("normalize_per_step_std", "", "ablation", jel=JELAgentConfig(normalize="per_step_std")),
    Arm("normalize_batch_std", "", "ablation", jel=JELAgentConfig(normalize="batch_std")),
    Arm("normalize_grpo", "", "ablation", jel=JELAgentConfig(normalize="grpo")),
    Arm("observation_full", "", "ablation", env_kwargs={"observation": "full"}),
    Arm("penalty_smoothness", "", "ablation", env_kwargs=_penalty("smoothness")),
    Arm("penalty_gradient_norm", "", "ablation", env_kwargs=_penalty("gradient_norm")),
    Arm("per_optimizer", "", "ablation", env_kwargs=_PER_OPTIMIZER),
    Arm("ppo", "", "ablation", agent="ppo"),
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
    methods: dict[str, Any] = {
        "cma": cma_search,
        "random_schedule": partial(random_search, kind="schedule"),
    }
    policy, history = methods[method](meta_kwargs, num_episodes, seed, log=path)
    rows = evaluate_controller(policy, ENV, deployment_kwargs, evaluation_seeds)
    return rows, {"history": history}


def _sweeps(num_steps: int) -> dict[str, Mapping[str, Mapping[str, Any]]]:
    """Returns the configurations of each sweep."""
    free = partial(schedules.schedule_free_configurations, num_steps=num_steps)
    return {
        "constant": schedules.constant_multipliers(num_steps),
        "schedule_free_sgd": free("sgd"),
        "schedule_free_adamw": free("adamw"),
    }


def make_jobs(config: ExperimentConfig) -> list[Job]:
    """Returns all jobs, the most wanted first."""
    deployed, evaluation = config.env_kwargs(), {"evaluation_seeds": config.evaluation_seeds}
    tuning = {"env_kwargs": deployed, "tuning_seeds": config.tuning_seeds, **evaluation}
    transfer = {"meta_kwargs": config.meta_kwargs(), "deployment_kwargs": deployed, **evaluation}

    def one(arm: Arm) -> Job:
        kind, _, which = arm.name.partition("_")
        log = str(config.runs / f"{arm.name}.jsonl")
        if kind == "baseline":
            kwargs = deployed | schedules.BASELINES[which](config.num_steps).env_kwargs
            return Job(arm.name, baseline, {"env_kwargs": kwargs, **evaluation})
        if kind == "sweep":
            tried = {"configurations": _sweeps(config.num_steps)[which]}
            return Job(arm.name, partial(sweep, ENV), tried | tuning)
        if kind == "tuned":
            arguments = {"name": which, "num_points": config.num_points, "log": log, **tuning}
            return Job(arm.name, tuned_baseline, arguments)
        budget = {"num_episodes": 8 * config.num_updates, "seed": 0, "log": log}
        return Job(arm.name, search, {"method": which, **budget, **transfer})

    def training_arguments(arm: Arm) -> dict[str, Any]:
        sizes = {"num_updates": arm.num_updates or config.num_updates, "runs": str(config.runs)}
        return sizes | transfer | ({"meta_kwargs": deployed} if arm.is_full else {})

    def controllers(group: str, count: int) -> list[Job]:
        arms = [arm for arm in ARMS if arm.group == group]
        return [
            Job(f"{arm.name}-{n}", controller, {"arm": arm, "seed": n, **training_arguments(arm)})
            for n, arm in product(range(count), arms)
        ]

    chosen = "tuned" if config.num_points else "transferred"
    return [
        *(one(arm) for arm in ARMS if arm.group in ("untuned", chosen, "swept")),
        *controllers("controller", config.num_controllers),
        *([] if config.demo else controllers("nanochat", config.num_controllers)),
        *(one(arm) for arm in ARMS if arm.group == "search"),
        *controllers("ablation", config.num_ablation_controllers),
    ]


def _check(config: ExperimentConfig) -> None:
    for size in (config.env_kwargs(), config.meta_kwargs()):
        make_population(ENV, 1, size)


REPORT = Report(
    *("jel", ARMS, bpb_arms, page.summarize, "main_table", page.PARTS, page.FIGURES),
    required=page.REFERENCE,
)
EXPERIMENT = Experiment(
    "jel", __doc__, ExperimentConfig, make_jobs, _check, REPORT.write, demo=DEMO
)
main = EXPERIMENT.main

if __name__ == "__main__":
    main()
