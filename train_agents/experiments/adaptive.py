"""Experiments of "AdaptiveRL: a control-theoretic scheduler".

Command: `python -m train_agents.experiments.adaptive`.

The law needs no training. An arm is one population with a row per seed, compared by seed at equal
steps: held-out bits per byte at the end, the mean probe loss over the run, and the step at which
the probe loss is that of the tuned constant at half its run.

    baselines   constant and cosine of a sweep on tuning seeds, AdamW at its default rate (section
                8)
    law         the published gains, replacing the schedule and modulating a cosine (section 4)
    ablations   one signal alone, no noise, noise on the weights, decisions by epoch (section 8)
    starts      30 times too low and 10 times too high, with the published gains and our own
    shift       another text from half of the run on (section 7)
    stability   many seeds from three starts: how many runs diverge
    gains       the choice of our gains, on tuning seeds from both poor starts
    drift       the law on a stationary loss, and on a planted plateau, regression and shift
                (section 7), without a model

Interrupted, the same command goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from hpenv.benchmark.environments import make_population
from hpenv.benchmark.evaluate import evaluate_controller
from hpenv.benchmark.results import Rows
from hpenv.optim.schedules import Constant, Cosine
from hpenv.policies.control_law import AdaptiveRL
from train_agents.experiments import adaptive_report as page
from train_agents.experiments.measures.gains import gains_of, try_gains
from train_agents.experiments.measures.planted import measure_drift
from train_agents.experiments.measures.shifted import run_shift
from train_agents.experiments.report import Report
from train_agents.experiments.runner import (
    FIRST_EVALUATION_SEED,
    Experiment,
    Job,
    Sizes,
    seeds_from,
)
from train_agents.experiments.sweeping import sweep

ENV = "TrainLoop-Adaptive-v0"
#: Rate of torch's AdamW by default, from which the arms without a poor start begin.
DEFAULT_LR = 1e-3
#: Constant rate that the sweep of the baselines chooses at the default sizes. Poor starts are
#: multiples of it, and a test holds that the sweep of the committed results chose it.
TUNED_LR = 3e-3
#: Poor starts: name -> multiple of TUNED_LR.
POOR_STARTS = {"low": 1 / 30, "high": 10.0}
#: Multiples of DEFAULT_LR that the sweeps try.
MULTIPLIERS = (3.0, 10.0, 30.0)
#: k_r and k_l of our gains, which the job `gains` chooses on tuning seeds from both poor starts.
OWN_GAINS = (0.1, 0.05)
OWN: dict[str, Any] = gains_of(*OWN_GAINS)


@dataclass(frozen=True)
class ExperimentConfig(Sizes):
    """Size of the experiments. The defaults are those of the reported ones."""

    out: Path = Path("results/adaptive")
    runs: Path = Path("runs/adaptive")
    preset: str = "nano"  # key of hpenv.lm.architecture.PRESETS
    data: str = "stdlib"  # see hpenv.lm.data.load_corpus
    num_steps: int = 3000  # of a run [steps]
    batch_tokens: int = 128  # of a step [tokens]
    sequence_length: int = 64  # [tokens]
    eval_tokens: int = 16_384  # of a held-out evaluation [tokens]
    num_stability_seeds: int = 50  # of an arm whose divergences are counted
    num_stability_steps: int = 1000  # of its runs [steps]
    num_drift_runs: int = 50  # of the law without a model
    num_drift_decisions: int = 300  # of each of them

    def env_arguments(self, **more: Any) -> dict[str, Any]:
        """Returns the arguments of a run."""
        sizes = ("preset", "data", "num_steps", "batch_tokens", "sequence_length", "eval_tokens")
        common = {name: getattr(self, name) for name in sizes}
        return common | {"optimizer": "adamw", "base_lr": DEFAULT_LR} | more


@dataclass(frozen=True)
class Arm:
    """A run of every seed, with or without the law."""

    name: str  # of the job
    label: str  # in tables and figures
    group: str  # of the page
    base_lr: float = DEFAULT_LR
    is_cosine: bool = False
    law: Mapping[str, Any] | None = None  # arguments of AdaptiveRL. None: no controller
    #: Changes of the law's fields.
    gains: Mapping[str, Any] = field(default_factory=dict)
    second: str = ""  # text from half of the run on


def _start(name: str, words: str) -> list[Arm]:
    """Returns the arms of a poor start."""
    rate = TUNED_LR * POOR_STARTS[name]
    return [
        Arm(f"{name}_constant", f"{words}, constant", "starts", rate),
        Arm(f"{name}_published", f"{words}, published gains", "starts", rate, law={}),
        Arm(f"{name}_own", f"{words}, our gains", "starts", rate, law={}, gains=OWN),
    ]


#: Text from half of a run on in the arms of the shift: English in place of Python.
SECOND = "package:pydoc_data"


def _stability() -> list[Arm]:
    """Returns the arms of many seeds, from every start with both gains."""
    starts = {"tuned": 1.0} | POOR_STARTS
    kinds: dict[str, Mapping[str, Any]] = {"published": {}, "own": OWN}
    return [
        Arm(
            f"stable_{start}_{kind}",
            f"{start} start, {kind} gains",
            "stability",
            TUNED_LR * factor,
            law={},
            gains=gains,
        )
        for (start, factor), (kind, gains) in product(starts.items(), kinds.items())
    ]


ARMS: tuple[Arm, ...] = (
    Arm("sweep_constant", "best constant rate of a sweep", "baselines"),
    Arm("sweep_cosine", "best cosine of a sweep", "baselines"),
    Arm("adamw", "AdamW at its default rate", "baselines"),
    Arm("adamw_cosine", "AdamW at its default rate, cosine", "baselines", is_cosine=True),
    Arm("adaptive", "AdaptiveRL, replacing the schedule", "law", law={}),
    Arm("adaptive_cosine", "AdaptiveRL, modulating a cosine", "law", is_cosine=True, law={}),
    Arm("adaptive_own", "AdaptiveRL, our gains", "law", law={}, gains=OWN),
    Arm("loss_only", "the loss alone", "ablations", law={"signals": "loss"}),
    Arm("reward_only", "the reward alone", "ablations", law={"signals": "reward"}),
    Arm("no_noise", "no exploration noise", "ablations", law={"noise": None}),
    Arm("weight_noise", "noise on the weights", "ablations", law={"noise": "weight_noise"}),
    Arm(
        "epochwise",
        "decisions every 100 steps, on their mean loss",
        "ablations",
        law={"pace": "epochwise", "interval": 100},
    ),
    *_start("low", "30 times too low"),
    *_start("high", "10 times too high"),
    Arm("shift_constant", "the tuned constant", "shift", TUNED_LR, second=SECOND),
    Arm("shift_published", "published gains", "shift", TUNED_LR, law={}, second=SECOND),
    Arm("shift_own", "our gains", "shift", TUNED_LR, law={}, gains=OWN, second=SECOND),
    *_stability(),
)


def run_arm(
    env_arguments: Mapping[str, Any],
    seeds: Sequence[int],
    law: Mapping[str, Any] | None,
    gains: Mapping[str, Any],
) -> Rows:
    """Runs an arm. The rows have the probe loss and the dials at every decision."""
    if law is None:
        still = {"channels": [], "observation": ["progress"], "interval": 10}
        return evaluate_controller(None, ENV, {**still, **env_arguments}, seeds), {}
    controller = AdaptiveRL(law=dict(gains) or None, **law)
    rows = evaluate_controller(
        controller, ENV, {**controller.spec.arguments(), **env_arguments}, seeds
    )
    return rows, {}


def schedule_of(arm: Arm, num_steps: int) -> Constant | Cosine:
    """Returns the base schedule of an arm. A cosine has a warmup of 2 % of the run."""
    return Cosine(num_steps, round(0.02 * num_steps)) if arm.is_cosine else Constant()


def make_jobs(config: ExperimentConfig) -> list[Job]:
    """Returns all jobs."""
    jobs = [
        _sweep(arm.name, config) if arm.name.startswith("sweep_") else _job(arm, config)
        for arm in ARMS
    ]
    drift = {
        "num_runs": config.num_drift_runs,
        "num_decisions": config.num_drift_decisions,
        "own_gains": OWN,
    }
    gains = {
        "env_id": ENV,
        "env_arguments": config.env_arguments(schedule=Constant()),
        "rates": {name: TUNED_LR * factor for name, factor in POOR_STARTS.items()},
        "seeds": config.tuning_seeds,
    }
    return [*jobs, Job("gains", try_gains, gains), Job("drift", measure_drift, drift)]


def _job(arm: Arm, config: ExperimentConfig) -> Job:
    """Returns the job of an arm without a sweep."""
    arguments = config.env_arguments(
        base_lr=arm.base_lr, schedule=schedule_of(arm, config.num_steps)
    )
    law = None if arm.law is None else dict(arm.law)
    if law and "interval" in law:
        law["interval"] = min(law["interval"], config.num_steps)
    given = {"env_arguments": arguments, "law": law, "gains": dict(arm.gains)}

    if arm.second:
        more = {"env_id": ENV, "second": arm.second, "seeds": config.evaluation_seeds}
        return Job(arm.name, run_shift, given | more)
    if arm.group == "stability":
        given["env_arguments"] = arguments | {"num_steps": config.num_stability_steps}
        seeds = seeds_from(FIRST_EVALUATION_SEED, config.num_stability_seeds)
        return Job(arm.name, run_arm, given | {"seeds": seeds})
    return Job(arm.name, run_arm, given | {"seeds": config.evaluation_seeds})


def _sweep(name: str, config: ExperimentConfig) -> Job:
    is_cosine = name == "sweep_cosine"
    shape = Arm(name, "", "", is_cosine=is_cosine)
    tried = {f"x{m:g}": {"base_lr": DEFAULT_LR * m} for m in (1.0, *MULTIPLIERS)}
    arguments = {
        "configurations": tried,
        "env_kwargs": config.env_arguments(
            schedule=schedule_of(shape, config.num_steps),
            channels=[],
            observation=["progress"],
            interval=10,
        ),
        "tuning_seeds": config.tuning_seeds,
        "evaluation_seeds": config.evaluation_seeds,
    }
    return Job(name, partial(sweep, ENV), arguments)


REPORT = Report(
    "adaptive", ARMS, page.arms, page.summarize, "arms", page.PARTS, page.FIGURES, page.values
)
EXPERIMENT = Experiment(
    "adaptive",
    __doc__,
    ExperimentConfig,
    make_jobs,
    lambda config: make_population(ENV, 1, config.env_arguments()),
    REPORT.write,
)
main = EXPERIMENT.main

if __name__ == "__main__":
    main()
