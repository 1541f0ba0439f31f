"""Configuration of a GRPO run, and the checks of its values."""

from __future__ import annotations

import math
import os
from collections.abc import Collection
from dataclasses import dataclass, field, fields

from hpenv.checks import check_count, is_number, set_python_fields
from hpenv.optim.schedules import Constant, Schedule, check_schedule, setting_description
from hpenv.posttraining.contrastive.sources import SOURCES, ContrastSource
from hpenv.posttraining.grading.loopholes import LOOPHOLES, TRAINING_MODES
from hpenv.posttraining.loss import SCALES
from hpenv.posttraining.projection.direction import METHODS
from hpenv.posttraining.projection.rebound import FORMS
from hpenv.posttraining.projection.rules import RULES, TARGETS
from hpenv.posttraining.sandbox import Limits
from hpenv.posttraining.students.student import Student

#: Largest number of stages of a generated problem, and of training problems of a run. Problems of
#: the demonstrations are numbered from MOST_PROBLEMS on.
MOST_STAGES, MOST_PROBLEMS = 4, 1_000_000
#: Fields that say which problems a run has.
PROBLEM_FIELDS = (
    *("problems", "probe_problems", "evaluation_problems"),
    *("num_problems", "num_probe_problems", "num_evaluation_problems", "skip_unreadable"),
)


@dataclass(frozen=True)
class GRPOConfig:
    """Hyperparameters of a GRPO run. All rows of a population share them."""

    # name of a shipped student, folder of an embedded one, `hf:<folder>[:<GGUF file>]`, or a
    # Student object
    student: str | Student = "nano"
    num_prompts: int = 8  # prompts of one update (the paper's amendment b)
    num_samples: int = 16  # completions of a prompt (the group)
    temperature: float = 1.0  # of the sampling, and so of the policy that is trained
    num_problems: int = 256  # training problems of a run, if they are generated
    difficulty: int = 3  # stages of a generated problem, 1 to 4
    modes: tuple[str, ...] = TRAINING_MODES  # loopholes of the training problems, one each, in turn
    # JSONL files (see problems.files) instead of generated problems. All of `problems` are trained
    # on. The first num_probe_problems and num_evaluation_problems of the other files are used.
    problems: str = ""
    probe_problems: str = ""
    evaluation_problems: str = ""
    skip_unreadable: bool = False  # skip unreadable lines of these files, with a warning
    advantage_scale: str = "none"  # `none` (Dr.GRPO, Liu et al. 2025), or `std` (Shao et al. 2024)
    kl_weight: float = 1e-3  # weight of the k3 estimate of the KL from the untrained student
    # optimizer steps on the rollouts of one update. In the first step the ratio is 1 and the gauges
    # are measured.
    num_iterations: int = 1
    clip_ratio: float = 0.2  # of the probability ratio, from the second step on
    base_lr: float = 0.3  # of the adapter coefficients, in singular values [1]
    weight_decay: float = 0.0  # decoupled
    max_gradient_norm: float = 1.0  # of a run's whole gradient
    lr_schedule: Schedule = field(default_factory=Constant)  # step -> multiplier of base_lr
    # the direction that is projected away, and how
    direction: str | ContrastSource = "pairs"  # key of contrastive.sources.SOURCES, or a source
    direction_method: str = "mean_difference"  # or `svd`
    num_axes: int = 1  # axes of a module's direction, 1 for mean_difference
    noise_floor: float = 0.0  # fraction of all modules' axes that is dropped, the weakest first
    rule: str = "one_sided"  # key of projection.rules.RULES
    target: str = "grad"  # or `update`: the optimizer's update is projected
    route: bool = False  # train a quarantine, a second set of coefficients, on removed gradients
    rebound: str = "additive"  # form of the penalty on the reward, or `multiplicative`
    # measurement
    known_modes: tuple[str, ...] = (
        "run_tests",
        "sentinel",
    )  # loopholes that the weak detector knows
    num_probe_problems: int = 32  # problems without a loophole that the reward may see
    num_evaluation_problems: int = 64  # held-out problems of evaluate()
    divergence_kl: float = 10.0  # a run whose mean KL exceeds this has diverged [nats per token]
    num_workers: int = 1  # sandboxes that run programs in parallel
    cpu_seconds: int = 1  # processor time of one program, all its tests together [s]
    cache: str = ""  # file that keeps verdicts for later processes (empty: none)

    def __post_init__(self) -> None:
        """Checks the values, and expands the paths."""
        set_python_fields(self)
        for name in (
            "num_prompts",
            "num_samples",
            "num_problems",
            "difficulty",
            "num_axes",
            "num_probe_problems",
        ):
            check_count(name, getattr(self, name))

        for name in ("num_evaluation_problems", "num_workers", "num_iterations"):
            check_count(name, getattr(self, name))

        Limits(cpu_seconds=self.cpu_seconds)
        for name, most in (("difficulty", MOST_STAGES), ("num_problems", MOST_PROBLEMS)):
            if getattr(self, name) > most:
                raise ValueError(f"{name} must be at most {most}; got {getattr(self, name)}")

        for name in ("problems", "probe_problems", "evaluation_problems", "cache"):
            given = getattr(self, name)
            path = os.fspath(given) if isinstance(given, os.PathLike) else given
            if not isinstance(path, str):
                raise ValueError(f"{name} must be a path, or empty for none; got {given!r}")
            object.__setattr__(self, name, os.path.expanduser(path))

        check_schedule("lr_schedule", self.lr_schedule)
        for name in (
            "temperature",
            "base_lr",
            "weight_decay",
            "kl_weight",
            "max_gradient_norm",
            "divergence_kl",
            "clip_ratio",
            "noise_floor",
        ):
            value = getattr(self, name)
            if not (is_number(value) and math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be a finite number >= 0; got {value!r}")

        choices: list[tuple[str, Collection[str]]] = [
            ("direction_method", METHODS),
            ("rule", RULES),
            ("target", TARGETS),
            ("advantage_scale", SCALES),
            ("rebound", FORMS),
        ]
        if not isinstance(self.direction, ContrastSource):
            choices.append(("direction", SOURCES))
        for name, table in choices:
            if not (isinstance(getattr(self, name), str) and getattr(self, name) in table):
                raise ValueError(
                    f"unknown {name} {getattr(self, name)!r}; expected one of {sorted(table)}"
                )

        for name in ("modes", "known_modes"):
            given = getattr(self, name)
            if not (
                isinstance(given, tuple | list)
                and given
                and all(mode in LOOPHOLES for mode in given)
            ):
                raise ValueError(
                    f"{name} must be a tuple of some of {sorted(LOOPHOLES)}; got {given!r}"
                )
            object.__setattr__(self, name, tuple(given))  # JSON knows lists alone

        for name in ("route", "skip_unreadable"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False; got {getattr(self, name)!r}")

        if self.temperature == 0.0:
            raise ValueError(
                "temperature must be > 0; got 0. All completions of a prompt would be identical, "
                "and GRPO would have no signal"
            )
        if self.num_samples < 2:
            raise ValueError(
                f"num_samples must be at least 2, to compare within a group; got {self.num_samples}"
            )
        if self.num_evaluation_problems < len(self.modes):
            raise ValueError(
                f"num_evaluation_problems must be at least {len(self.modes)}, one for each mode; "
                f"got {self.num_evaluation_problems}"
            )
        if self.route and self.target == "update":
            raise ValueError(
                "target must be 'grad' with route=True, because a quarantine is trained on "
                "gradients; got 'update'"
            )
        if not 0.0 <= self.noise_floor < 1.0:
            raise ValueError(f"noise_floor must be in [0, 1); got {self.noise_floor!r}")
        if self.direction_method == "mean_difference" and self.num_axes != 1:
            raise ValueError(
                "num_axes must be 1 with direction_method='mean_difference', which has one axis; "
                f"got {self.num_axes}; use direction_method='svd'"
            )

    @property
    def contrast_source(self) -> ContrastSource:
        """Pairs of texts that directions are extracted from."""
        return SOURCES[self.direction] if isinstance(self.direction, str) else self.direction

    def description(self) -> dict[str, object]:
        """Returns what a snapshot must agree with, as JSON-able values.

        Fields that change only the speed are left out. So are the fields that name student and
        problems: the plant adds the digests of their contents.
        """
        left_out = ("num_workers", "cache", "student", *PROBLEM_FIELDS)
        names = [entry.name for entry in fields(self) if entry.name not in left_out]
        settings = {name: setting_description(getattr(self, name)) for name in names}
        return settings | {"direction": self.contrast_source.name}
