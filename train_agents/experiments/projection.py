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

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hpenv.benchmark.command_line import check_counts, configuration
from hpenv.posttraining.config import GRPOConfig
from hpenv.posttraining.students.registry import student
from train_agents.experiments.measures.directions import validate_directions
from train_agents.experiments.projection_arms import ARMS, DEMO_ARMS, Arm
from train_agents.experiments.projection_controller import STRENGTHS, best_constant, controller
from train_agents.experiments.projection_report import report
from train_agents.experiments.projection_run import run_arm
from train_agents.experiments.projection_tables import BEST_CONSTANT, CONTROLLER
from train_agents.experiments.runner import Job, run_experiment

FIRST_EVALUATION_SEED, FIRST_TUNING_SEED = 1000, 2000
#: Arms that are run before a strength is learned: the paper's, and the controls that tell direction
#: from drift.
NUM_FIRST = 20


@dataclass(frozen=True)
class ExperimentConfig:
    """Size of the experiment. The defaults are those of the reported one."""

    out: Path = Path("results/projection")  # tables, figures and one JSON file per job
    runs: Path = Path("runs/projection")  # checkpoints of the runs, and the file of verdicts
    student: str = "nano"  # see hpenv.posttraining.students.registry
    num_updates: int = 300  # of a run; some arms are also run twice as long
    report_interval: int = 25  # updates between reports (the paper, section 5)
    num_seeds: int = 3  # rows of an arm
    num_first_seeds: int = 5  # rows of the arms that claims rest on, the others' seeds first
    num_prompts: int = 8  # of an update
    num_samples: int = 16  # completions of a prompt
    num_problems: int = 256  # training problems
    difficulty: int = GRPOConfig.difficulty  # stages of a problem
    base_lr: float = GRPOConfig.base_lr  # of the coefficients
    num_probe_problems: int = 32  # that the controller's reward may use
    num_evaluation_problems: int = 128  # held-out problems of a report
    num_tuning_seeds: int = 2  # rows of a constant strength of the sweep
    strengths: tuple[float, ...] = STRENGTHS  # of the sweep
    num_controllers: int = 1  # learned strengths
    decision_interval: int = 5  # updates per decision of the controller
    meta_steps: int = 50  # updates of a run of its meta-training
    num_meta_updates: int = 12  # updates of the controller
    num_meta_episodes: int = 8  # runs per update of the controller
    num_workers: int = 2  # processes, one thread each
    only: tuple[str, ...] = ()  # run only the jobs whose names begin with one of these
    report_only: bool = False  # write tables and figures from the results that are there
    demo: bool = False  # reduce all of this to some minutes; runs few of the arms

    def __post_init__(self) -> None:
        """Checks the counts."""
        seeds = ("num_seeds", "num_first_seeds", "num_tuning_seeds")
        meta = ("decision_interval", "meta_steps", "num_meta_updates", "num_meta_episodes")
        check_counts(self, "num_updates", "report_interval", *seeds, *meta, "num_workers")
        check_counts(self, "num_controllers", least=0)

    def with_demo_sizes(self) -> ExperimentConfig:
        """Returns the demo's configuration if it is asked for, else this one."""
        if not self.demo:
            return self
        return replace(
            self, out=Path("results/demo/projection"), runs=Path("runs/demo/projection"),
            num_updates=30, report_interval=10, num_seeds=2, num_first_seeds=2, num_prompts=4,
            num_samples=8, num_evaluation_problems=32, num_probe_problems=8, num_tuning_seeds=1,
            strengths=(0.5, 1.0), decision_interval=5, meta_steps=10, num_meta_updates=2,
            num_meta_episodes=2,
        )  # fmt: skip

    @property
    def seeds(self) -> list[int]:
        """Seeds that reported numbers are measured on."""
        return list(range(FIRST_EVALUATION_SEED, FIRST_EVALUATION_SEED + self.num_seeds))

    @property
    def first_seeds(self) -> list[int]:
        """Seeds of the arms that claims rest on."""
        return list(range(FIRST_EVALUATION_SEED, FIRST_EVALUATION_SEED + self.num_first_seeds))

    @property
    def tuning_seeds(self) -> list[int]:
        """Seeds that a constant strength is chosen on."""
        return list(range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + self.num_tuning_seeds))

    @property
    def cache(self) -> str:
        """The file of verdicts, shared by all jobs."""
        return str(self.runs / "verdicts.sqlite")

    def grpo(self) -> dict[str, Any]:
        """Returns the arguments of GRPOConfig."""
        names = (
            *("student", "num_prompts", "num_samples", "num_problems", "difficulty", "base_lr"),
            *("num_probe_problems", "num_evaluation_problems"),
        )
        return {name: getattr(self, name) for name in names}


def make_jobs(config: ExperimentConfig) -> list[Job]:
    """Returns all jobs, the most wanted first."""
    grpo, seeds, cache = config.grpo(), config.seeds, {"cache": config.cache}
    lengths = {"num_updates": config.num_updates, "report_interval": config.report_interval}

    def folder(name: str) -> dict[str, str]:
        return {"folder": str(config.runs / name)}

    def arm_job(arm: Arm) -> Job:
        arguments = {
            "grpo": grpo | dict(arm.grpo), "positions": arm.positions, "erases": arm.erases,
            "seeds": config.first_seeds if arm.is_first else seeds, **folder(arm.name), **cache,
        }  # fmt: skip
        arguments |= {name: arm.length * value for name, value in lengths.items()}
        return Job(arm.name, run_arm, arguments)

    def constant_job() -> Job:
        sweep = {"tuning_seeds": config.tuning_seeds, "strengths": config.strengths}
        arguments = {"grpo": grpo, "evaluation_seeds": seeds, **sweep, **lengths, **cache}
        return Job(BEST_CONSTANT, best_constant, arguments | folder(BEST_CONSTANT))

    def controller_job(seed: int) -> Job:
        name = f"{CONTROLLER}-{seed}"
        steps = {"num_steps": config.num_updates, "interval": config.decision_interval}
        meta = {"num_meta_updates": config.num_meta_updates, "meta_steps": config.meta_steps}
        arguments = {
            "env_arguments": grpo | steps | cache, "num_episodes": config.num_meta_episodes,
            "num_reports": config.num_updates // config.report_interval, "seed": seed,
            "evaluation_seeds": seeds, **meta, **folder(name),
        }  # fmt: skip
        return Job(name, controller, arguments)

    direction = Job("direction", validate_directions, {"grpo": grpo, "seeds": seeds, **cache})
    arms = [arm_job(arm) for arm in ARMS if not config.demo or arm.name in DEMO_ARMS]
    learned = [controller_job(seed) for seed in range(config.num_controllers)]
    early = [direction, *arms[:NUM_FIRST], *learned[:1], constant_job()]
    return [*early, *arms[NUM_FIRST:], *learned[1:]]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the program."""
    program, complete = "train_agents.experiments.projection", ExperimentConfig.with_demo_sizes
    config = configuration(ExperimentConfig, program, __doc__, arguments, complete)

    def check() -> None:
        GRPOConfig(**config.grpo())
        student(config.student)

    run_experiment(config, make_jobs(config), report, check)


if __name__ == "__main__":
    main()
