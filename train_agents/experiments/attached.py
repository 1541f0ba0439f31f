"""A control law on models that hpenv does not train: GPT-2 in the Trainer of transformers.

Command: `python -m train_agents.experiments.attached`.

The law holds the update-to-weight ratio of every optimizer group. Its targets are those that
`baselines.transfer` found on the train instances of `pretraining-v1`, runs of hpenv's own models.
Nothing about the law was chosen here. It is attached through `ControllerCallback`.

Every size of the model has a linear schedule with warmup, whose rate is tuned on seeds of their
own. The runs start from a tenth of that rate, that rate, and ten times it, under the same schedule:

    off         without a controller; at the tuned rate this is the tuned schedule
    ratio_law   with the law
    adaptiverl  with AdaptiveRL, published gains, at the smallest size

Interrupted, the same command goes on where it stopped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baselines.transfer import FOUND
from hpenv.benchmark.results import read_result
from train_agents.experiments import attached_report as page
from train_agents.experiments.measures.trainers import make_model, run_trainers, tune_trainers
from train_agents.experiments.report import Report
from train_agents.experiments.runner import Experiment, Job, Sizes, select_jobs

#: Width of the smallest model. Twice the width are 4 times as many weights in the blocks.
WIDTHS = {"small": 64, "4x": 128, "16x": 256}
NUM_LAYERS = 2
#: Rates that are tried at every size [1].
RATES = {
    "small": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
    "4x": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
    "16x": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2),
}
#: Starts, as multiples of the tuned rate.
STARTS = {"low": 0.1, "tuned": 1.0, "high": 10.0}
SCHEDULE = "linear"
#: Controllers of every size, and of the smallest one alone.
EVERYWHERE, SMALLEST = ("ratio_law",), ("adaptiverl",)
#: Steps of a decision of the ratio law, those of its search [steps].
INTERVAL = 5


@dataclass(frozen=True)
class ExperimentConfig(Sizes):
    """Size of the experiment. The defaults are those of the reported one."""

    out: Path = Path("results/attached")
    runs: Path = Path("runs/attached")
    num_steps: int = 200  # of a run [steps]
    batch_rows: int = 8  # rows of a step
    sequence_length: int = 64  # [tokens]
    eval_rows: int = 64  # rows of the probe; the held-out loss has 4 times as many

    def run_arguments(self, size: str) -> dict[str, Any]:
        """Returns the arguments of a run of a size."""
        sizes = ("num_steps", "batch_rows", "eval_rows")
        model = {
            "n_layer": NUM_LAYERS,
            "n_embd": WIDTHS[size],
            "sequence_length": self.sequence_length,
        }
        return {"model": model, "schedule": SCHEDULE} | {
            name: getattr(self, name) for name in sizes
        }


@dataclass(frozen=True)
class Arm:
    """Runs of every seed, of one size, start and controller."""

    size: str  # key of WIDTHS
    start: str  # key of STARTS
    kind: str  # of the controller, or `off`

    @property
    def name(self) -> str:
        """The name of the job."""
        return f"{self.size}_{self.start}_{self.kind}"

    @property
    def group(self) -> str:
        """The group of the page."""
        return self.size

    @property
    def label(self) -> str:
        """The name in tables and figures."""
        return f"{page.STARTS[self.start]}, {page.KINDS[self.kind]}"


def _arms() -> tuple[Arm, ...]:
    found: list[Arm] = []
    for size in WIDTHS:
        kinds = ("off", *EVERYWHERE, *(SMALLEST if size == "small" else ()))
        found += [Arm(size, start, kind) for start in STARTS for kind in kinds]
    return tuple(found)


#: The runs without a controller at the tuned rate are made by the tuning.
ARMS = _arms()


def law_arguments(kind: str) -> dict[str, Any]:
    """Returns the arguments of a controller."""
    if kind == "adaptiverl":
        return {"noise": None}
    file = FOUND / "pretraining-v1" / "ratio_law.json"
    point: Mapping[str, float] = json.loads(file.read_text(encoding="utf-8"))["point"]
    targets = {
        name.removeprefix("ratio/"): value
        for name, value in point.items()
        if name.startswith("ratio/")
    }
    return {
        "target": targets,
        "warmdown": min(1.0, point["warmdown"]),
        "interval": INTERVAL,
    }


def make_jobs(config: ExperimentConfig) -> list[Job]:
    """Returns the searches of the rates."""
    return [
        Job(
            f"{size}_tuned_off",
            tune_trainers,
            config.run_arguments(size)
            | {
                "rates": RATES[size],
                "tuning_seeds": config.tuning_seeds,
                "evaluation_seeds": config.evaluation_seeds,
            },
        )
        for size in WIDTHS
    ]


def late_jobs(config: ExperimentConfig) -> list[Job]:
    """Returns the runs from the tuned rates, of the sizes whose rate was searched."""
    jobs = []
    for arm in ARMS:
        tuned = config.out / "jobs" / f"{arm.size}_tuned_off.json"
        if tuned.stem == arm.name or not tuned.is_file():
            continue
        rate = float(read_result(tuned)["extra"]["rate"])
        arguments = config.run_arguments(arm.size) | {
            "seeds": config.evaluation_seeds,
            "base_lr": rate * STARTS[arm.start],
        }
        if arm.kind != "off":
            arguments |= {"kind": arm.kind, "arguments": law_arguments(arm.kind)}
        jobs.append(Job(arm.name, run_trainers, arguments))
    asked = [each for each in config.only if any(job.name.startswith(each) for job in jobs)]
    return select_jobs(jobs, asked) if asked or not config.only else []


REPORT = Report(
    "attached", ARMS, page.arms, page.summarize, "arms", page.PARTS, page.FIGURES, page.values
)
EXPERIMENT = Experiment(
    "attached",
    __doc__,
    ExperimentConfig,
    make_jobs,
    lambda config: make_model(**config.run_arguments("small")["model"]),
    REPORT.write,
    late_jobs=late_jobs,
)
main = EXPERIMENT.main

if __name__ == "__main__":
    main()
