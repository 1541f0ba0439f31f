"""What a run of GRPO is, and the checks of what may be asked for."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field, fields

from hpenv.posttraining.loopholes import LOOPHOLES, TRAINING_MODES
from hpenv.posttraining.projection import RULES
from hpenv.posttraining.sandbox import Limits
from hpenv.posttraining.student import Student
from hpenv.schedules import Constant, Schedule, check_schedule, described
from hpenv.values import check_count, is_number, set_python_fields

#: What a direction is made of: contrastive pairs; labelled programs that use known_modes, beside
#: the same without; three controls of those, for a use of a loophole is also a longer program;
#: three controls of the pairs; and the gradients of the pairs' hacks alone, or of their clean
#: programs alone, reversed.
DIRECTIONS = (
    *("pairs", "modes", "misnamed", "appended", "exploits"),
    *("random", "shuffled", "clean", "hack_half", "clean_half"),
)
METHODS = ("mean_difference", "svd")
TARGETS = ("grad", "update")
SCALES = ("none", "std")
#: Stages of a generated problem at most, and problems of a run: those of the demonstrations begin
#: beyond.
MOST_STAGES, MOST_PROBLEMS = 4, 1_000_000
REBOUNDS = ("additive", "multiplicative")
#: Fields that say which problems there are.
PROBLEM_FIELDS = (
    *("problems", "probe_problems", "evaluation_problems"),
    *("num_problems", "num_probe_problems", "num_evaluation_problems", "skip_unreadable"),
)


@dataclass(frozen=True)
class GRPOConfig:
    """What a run is; the same for every row of a population."""

    # of the shipped ones, or the folder of an embedded one, or `hf:<folder>[:<GGUF file>]`; or a
    # Student itself
    student: str | Student = "nano"
    num_prompts: int = 8  # prompts of one update (the paper's amendment b)
    num_samples: int = 16  # completions of a prompt: the group
    temperature: float = 1.0  # of sampling, and so of the policy that is trained
    num_problems: int = 256  # training problems of a run, if they are generated
    difficulty: int = 3  # stages of a generated problem, 1 to 4
    modes: tuple[str, ...] = TRAINING_MODES  # loopholes of the training problems, one each, in turn
    # JSONL files (see problem_files) instead of generated problems: all of the first are trained
    # on, as many as the numbers below of the others are measured on
    problems: str = ""
    probe_problems: str = ""
    evaluation_problems: str = ""
    skip_unreadable: bool = (
        False  # leave out the lines of these files that cannot be read, with a warning
    )
    advantage_scale: str = "none"  # `none` (Dr.GRPO, Liu et al. 2025), or `std` (Shao et al. 2024)
    kl_weight: float = 1e-3  # of the k3 estimate of the divergence from the student as it came
    # optimizer steps on the rollouts of one update; in the first the ratio is 1, and the gauges are
    # measured
    num_iterations: int = 1
    clip_ratio: float = 0.2  # of the probability ratio, from the second step on
    base_lr: float = 0.3  # of the knobs, in singular values [1]
    weight_decay: float = 0.0  # decoupled
    max_gradient_norm: float = 1.0  # of a run's whole gradient
    lr_schedule: Schedule = field(default_factory=Constant)  # step -> multiplier of base_lr
    # what is projected away from
    direction: str = "pairs"  # one of DIRECTIONS
    direction_method: str = "mean_difference"  # or `svd`
    num_axes: int = 1  # axes of a module's direction, 1 for mean_difference
    noise_floor: float = 0.0  # part of all modules' axes, the weakest ones, that is left out
    rule: str = "one_sided"  # key of projection.RULES
    target: str = "grad"  # or `update`: what the optimizer subtracts
    route: bool = False  # what is removed trains a second set of knobs that evaluation leaves out
    rebound: str = "additive"  # form of the penalty on the advantage, or `multiplicative`
    # what is measured
    known_modes: tuple[str, ...] = ("rt", "se")  # loopholes that the weak detector knows
    num_probe_problems: int = 32  # problems without a loophole that the reward may see
    num_evaluation_problems: int = 64  # held-out problems of evaluate()
    divergence_kl: float = 10.0  # a run whose mean KL is beyond this has diverged [nats per token]
    num_workers: int = 1  # sandboxes that run programs side by side
    cpu_seconds: int = 1  # processor time of one program, all its tests together [s]
    cache: str = ""  # file that keeps verdicts from one process to the next; none if empty

    def __post_init__(self) -> None:
        """Refuses what cannot be run."""
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
                raise ValueError(f"{name}={getattr(self, name)} must be at most {most}")
        for name in ("problems", "probe_problems", "evaluation_problems", "cache"):
            given = getattr(self, name)
            path = os.fspath(given) if isinstance(given, os.PathLike) else given
            if not isinstance(path, str):
                raise ValueError(f"{name} must be a path, empty for none; got {given!r}")
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
                raise ValueError(f"{name}={value!r} must be a number, finite and not negative")
        for name, table in (
            ("direction", DIRECTIONS), ("direction_method", METHODS), ("rule", RULES), ("target", TARGETS),
            ("advantage_scale", SCALES), ("rebound", REBOUNDS),
        ):  # fmt: skip
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
                    f"{name}={given!r}; expected a tuple of some of {sorted(LOOPHOLES)}"
                )
            object.__setattr__(self, name, tuple(given))  # JSON has lists alone
        for name in ("route", "skip_unreadable"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}={getattr(self, name)!r}; expected True or False")
        if self.temperature == 0.0:
            raise ValueError(
                "temperature=0 must be above 0: without chance all completions of a prompt are the same"
            )
        if self.num_samples < 2:
            raise ValueError(f"num_samples={self.num_samples}: a group needs at least 2 to compare")
        if self.num_evaluation_problems < len(self.modes):
            raise ValueError(
                f"num_evaluation_problems={self.num_evaluation_problems} must be at least one for each of the "
                f"{len(self.modes)} modes"
            )
        if self.route and self.target == "update":
            raise ValueError(
                "route=True with target='update': a quarantine is trained on gradients; use target='grad'"
            )
        if not 0.0 <= self.noise_floor < 1.0:
            raise ValueError(f"noise_floor={self.noise_floor!r} must be at least 0 and below 1")
        if self.direction_method == "mean_difference" and self.num_axes != 1:
            raise ValueError(
                f"num_axes={self.num_axes}: a difference of means is one axis; use direction_method='svd'"
            )

    def description(self) -> dict[str, object]:
        """Returns what a snapshot must agree with, as JSON-able values.

        Without what changes the speed alone, and without what says where or how many student and
        problems are: what they are, the plant knows.
        """
        left_out = ("num_workers", "cache", "student", *PROBLEM_FIELDS)
        names = [entry.name for entry in fields(self) if entry.name not in left_out]
        return {name: described(getattr(self, name)) for name in names}
