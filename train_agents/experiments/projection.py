"""Rank-space gradient projection against reward hacking.

Command: `python -m train_agents.experiments.projection`.

Every arm of `projection_arms` is one job: several seeds of GRPO on programs that are executed,
stacked as rows, with a panel that is held constant. Further jobs are the directions before
training, the best constant strength of a sweep, and a learned strength. The report states the
paper's hypotheses as supported or falsified, whatever the result.

    direction      held-out cosines of every kind of direction, the gate, the memorizing baseline
    <arm>          see `projection_arms.ARMS`
    constant       strengths tried on tuning seeds, the best on the seeds of the arms
    controller-i   JEL's agent over projection_strength, meta-trained on shorter runs

Interrupted, the same command goes on where it stopped, also in the middle of an arm. `--demo` is
the same with small sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpenv.benchmark.results import Rows
from hpenv.posttraining.config import GRPOConfig
from hpenv.posttraining.students.registry import student
from train_agents.experiments import runner
from train_agents.experiments.measures.directions import validate_directions
from train_agents.experiments.projection_arms import (
    ARMS,
    BEST_CONSTANT,
    CONTROLLER,
    DEMO_ARMS,
    Arm,
)
from train_agents.experiments.projection_report import REPORT
from train_agents.experiments.projection_run import STRENGTHS, best_constant, controller, run_arm
from train_agents.experiments.runner import Experiment, Job, Sizes, seeds_from

#: Arms that are run before a strength is learned: the paper's, and the controls that tell direction
#: from drift.
NUM_FIRST = 20


@dataclass(frozen=True)
class ExperimentConfig(Sizes):
    """Size of the experiment. The defaults are those of the reported one."""

    out: Path = Path("results/projection")
    runs: Path = Path("runs/projection")
    student: str = "nano"  # see hpenv.posttraining.students.registry
    num_updates: int = 300  # of a run; some arms are also run twice as long
    report_interval: int = 25  # updates between reports (the paper, section 5)
    num_evaluation_seeds: int = 3
    num_first_seeds: int = 5  # rows of the arms that claims rest on, the others' seeds first
    num_prompts: int = 8  # of an update
    num_samples: int = 16  # completions of a prompt
    num_problems: int = 256  # training problems
    difficulty: int = GRPOConfig.difficulty  # stages of a problem
    base_lr: float = GRPOConfig.base_lr  # of the coefficients
    num_probe_problems: int = 32  # that the controller's reward may use
    num_evaluation_problems: int = 128  # held-out problems of a report
    strengths: tuple[float, ...] = STRENGTHS  # of the sweep
    num_controllers: int = 1  # learned strengths
    decision_interval: int = 5  # updates per decision of the controller
    meta_steps: int = 50  # updates of a run of its meta-training
    num_meta_updates: int = 12  # updates of the controller
    num_meta_episodes: int = 8  # runs per update of the controller
    demo: bool = False  # reduce all of this to some minutes; runs few of the arms
    #: GRPOConfig checks all but the first.
    MAY_BE_ZERO = (
        *("num_controllers", "num_prompts", "num_samples", "num_problems", "difficulty"),
        *("num_probe_problems", "num_evaluation_problems"),
    )

    def grpo(self) -> dict[str, Any]:
        """Returns the arguments of GRPOConfig."""
        names = (
            *("student", "num_prompts", "num_samples", "num_problems", "difficulty", "base_lr"),
            *("num_probe_problems", "num_evaluation_problems"),
        )
        return {name: getattr(self, name) for name in names}


#: Sizes of the demo.
DEMO: dict[str, Any] = {
    "out": Path("results/demo/projection"), "runs": Path("runs/demo/projection"),
    "num_updates": 30, "report_interval": 10, "num_evaluation_seeds": 2, "num_first_seeds": 2,
    "num_prompts": 4, "num_samples": 8, "num_evaluation_problems": 32, "num_probe_problems": 8,
    "num_tuning_seeds": 1, "strengths": (0.5, 1.0), "decision_interval": 5, "meta_steps": 10,
    "num_meta_updates": 2, "num_meta_episodes": 2,
}  # fmt: skip


def make_jobs(config: ExperimentConfig) -> list[Job]:
    """Returns all jobs, the most wanted first."""
    grpo, seeds = config.grpo(), config.evaluation_seeds
    first_seeds = seeds_from(runner.FIRST_EVALUATION_SEED, config.num_first_seeds)
    cache = {"cache": str(config.runs / "verdicts.sqlite")}  # shared by all jobs
    lengths = {"num_updates": config.num_updates, "report_interval": config.report_interval}

    def job(name: str, run: Callable[..., Rows], **arguments: Any) -> Job:
        return Job(name, run, {"folder": str(config.runs / name), **arguments})

    def arm_job(arm: Arm) -> Job:
        return job(
            arm.name,
            run_arm,
            grpo=grpo | dict(arm.grpo),
            positions=arm.positions,
            erases=arm.erases,
            seeds=first_seeds if arm.is_first else seeds,
            **{name: arm.length * value for name, value in lengths.items()},
            **cache,
        )

    def controller_job(seed: int) -> Job:
        steps = {"num_steps": config.num_updates, "interval": config.decision_interval}
        return job(
            f"{CONTROLLER}-{seed}",
            controller,
            env_arguments=grpo | steps | cache,
            num_episodes=config.num_meta_episodes,
            num_reports=config.num_updates // config.report_interval,
            seed=seed,
            evaluation_seeds=seeds,
            num_meta_updates=config.num_meta_updates,
            meta_steps=config.meta_steps,
        )

    sweep = {"tuning_seeds": config.tuning_seeds, "strengths": config.strengths, **lengths}
    constant = job(
        BEST_CONSTANT, best_constant, grpo=grpo, evaluation_seeds=seeds, **sweep, **cache
    )
    direction = Job("direction", validate_directions, {"grpo": grpo, "seeds": seeds, **cache})
    arms = [arm_job(arm) for arm in ARMS if not config.demo or arm.name in DEMO_ARMS]
    learned = [controller_job(seed) for seed in range(config.num_controllers)]
    early = [direction, *arms[:NUM_FIRST], *learned[:1], constant]
    return [*early, *arms[NUM_FIRST:], *learned[1:]]


def _check(config: ExperimentConfig) -> None:
    GRPOConfig(**config.grpo())
    student(config.student)


EXPERIMENT = Experiment(
    "projection", __doc__, ExperimentConfig, make_jobs, _check, REPORT.write, demo=DEMO
)
main = EXPERIMENT.main

if __name__ == "__main__":
    main()
