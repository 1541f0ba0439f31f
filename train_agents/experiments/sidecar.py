"""The experiments of "Reward-Driven Training Control": `python -m
train_agents.experiments.sidecar`.

The Sidecar learns beside the run that it steers, so there is nothing to train beforehand: an arm is
one population, a row per seed, compared by seed on held-out bits per byte at equal tokens. The
default configuration was fixed before any reported arm (`sidecar_arms.DEFAULT`); beside it stand
the best constant rate and the best schedule of a sweep, chosen by the probe loss on tuning seeds.

    foundational   attached against detached (section 3), the price of exploring alone, and what a
    sweep finds rewards        what the Sidecar hears (sections 4 and 9), on seeds of their own; and
    how much of it is noise backward       the four backward-pass channels (section 6)
    caps           a cap that binds at the start, and a wrong neutral (sections 6 and 8)
    layer_lr       a learning rate per layer alone (section 7)
    weight_decay   a coefficient per tensor on a run five times as long, and what it did to the
    weights (section 5)

Interrupted, the same command goes on where it stopped, in the middle of a run, too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from agents.sidecar import INITIAL_STD, SidecarConfig
from hpenv.benchmark.command_line import check_counts, configuration
from hpenv.benchmark.environments import make_population
from hpenv.benchmark.results import Rows, read_result
from hpenv.optim.schedules import Constant, Cosine, Schedule, WarmupFlatWarmdown
from hpenv.plant import snapshots
from train_agents.experiments.measures.signal import measure_signal
from train_agents.experiments.measures.weights import body, compare_runs, differences
from train_agents.experiments.runner import Job, run_experiment
from train_agents.experiments.sidecar_arms import (
    ARMS,
    CONSTANT_MULTIPLIERS,
    DEFAULT,
    ENV,
    FIRST_EVALUATION_SEED,
    FIRST_REWARD_SEED,
    FIRST_TUNING_SEED,
    SCHEDULE_MULTIPLIERS,
    WARMUP_FRACTION,
    Arm,
    position_of,
)
from train_agents.experiments.sidecar_report import report
from train_agents.experiments.sweeping import sweep
from train_agents.online import OnlineConfig, run_online
from train_agents.outputs import checkpoints


@dataclass(frozen=True)
class ExperimentConfig:
    """Size of the experiments; the defaults are those of the reported ones."""

    out: Path = Path("results/sidecar")  # tables, figures and one JSON file per job
    runs: Path = Path("runs/sidecar")  # checkpoints and logs of the runs
    preset: str = DEFAULT["preset"]  # key of hpenv.lm.model.PRESETS; with gated feed-forward
    data: str = "stdlib"  # see hpenv.lm.data.load_corpus
    num_steps: int = 3000  # of a run [steps]
    long_steps: int = 15_000  # of a run of the weight-decay experiment (section 5.2) [steps]
    batch_tokens: int = DEFAULT["batch_tokens"]  # of a step [tokens]
    sequence_length: int = DEFAULT["sequence_length"]  # [tokens]
    eval_tokens: int = 16_384  # of a held-out evaluation [tokens]
    eval_interval: int = 500  # steps between held-out evaluations [steps]
    num_traces: int = 60  # points of a run at which the cells' positions are recorded
    num_evaluation_seeds: int = 5  # rows of an arm
    num_tuning_seeds: int = 2  # rows of each configuration of a sweep
    num_probe_batches: int = 64  # that a sweep chooses by
    num_reward_seeds: int = 5  # rows of an arm of the rewards, on seeds of their own
    hidden_size: int = 256  # of a Sidecar's network
    signal_states: tuple[int, ...] = (100, 1000, 2500)  # where the signal is measured [steps]
    signal_layers: tuple[int, ...] = (0, 5, 10)  # whose cells are moved
    signal_batches: int = 8  # repetitions, a step apart
    signal_noise_steps: int = 200  # whose credits tell the noise [steps]
    num_workers: int = 2  # processes, one thread each
    only: tuple[str, ...] = ()  # run the jobs alone whose names begin with one of these
    report_only: bool = False  # write tables and figures from the results that are there

    def __post_init__(self) -> None:
        """Refuses counts below 1."""
        steps = (
            "num_steps",
            "long_steps",
            "batch_tokens",
            "sequence_length",
            "eval_tokens",
            "eval_interval",
        )
        counts = (
            "num_traces",
            "num_evaluation_seeds",
            "num_tuning_seeds",
            "num_reward_seeds",
            "num_probe_batches",
        )
        signal = ("signal_batches", "signal_noise_steps")
        check_counts(self, *steps, *counts, *signal, "hidden_size", "num_workers")

    def env_arguments(self, **more: Any) -> dict[str, Any]:
        """Arguments of a run of usual length."""
        sizes = ("preset", "data", "num_steps", "batch_tokens", "sequence_length", "eval_tokens")
        return DEFAULT | {name: getattr(self, name) for name in sizes} | more

    @property
    def evaluation_seeds(self) -> list[int]:
        """Seeds that reported numbers are measured on."""
        return list(range(FIRST_EVALUATION_SEED, FIRST_EVALUATION_SEED + self.num_evaluation_seeds))

    @property
    def tuning_seeds(self) -> list[int]:
        """Seeds that constants and schedules are chosen on."""
        return list(range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + self.num_tuning_seeds))

    @property
    def reward_seeds(self) -> list[int]:
        """Seeds that the rewards are compared on."""
        return list(range(FIRST_REWARD_SEED, FIRST_REWARD_SEED + self.num_reward_seeds))


def constant_configurations() -> dict[str, dict[str, Any]]:
    """Constant rates."""
    return {
        f"x{m:g}": {"base_lr": DEFAULT["base_lr"] * m, "schedule": Constant()}
        for m in CONSTANT_MULTIPLIERS
    }


def schedule_configurations(num_steps: int) -> dict[str, dict[str, Any]]:
    """Cosine, and warmup-flat-warmdown, both after a short warmup."""
    warmup = round(WARMUP_FRACTION * num_steps)
    schedules: dict[str, Schedule] = {
        "cosine": Cosine(num_steps, warmup),
        "warmdown": WarmupFlatWarmdown(num_steps, warmup),
    }
    return {
        f"{name} x{m:g}": {"base_lr": DEFAULT["base_lr"] * m, "schedule": schedule}
        for name, schedule in schedules.items()
        for m in SCHEDULE_MULTIPLIERS
    }


def signal(env_arguments: Mapping[str, Any], seed: int, **sizes: Any) -> Rows:
    """What a Sidecar could hear, at the exploration that it begins with."""
    return measure_signal(ENV, env_arguments, seed, sigma=INITIAL_STD, **sizes)


def forensics(ours: str, reference: str, control: str, result: str, seeds: Sequence[int]) -> Rows:
    """Compares the final weights of two runs of the same seeds, and asks what predicts the dial's
    final positions.

    How far two runs come apart although neither has the dial, `control` of every row says.

    Args:
        ours: folder of the run with a weight-decay cell per tensor.
        reference: folder of the run without.
        control: folder of another run without.
        result: result file of `ours`, which has the final positions.
        seeds: one per row.
    """
    states = [
        snapshots.load(checkpoints(Path(folder), "step")[-1] / "env")
        for folder in (ours, reference, control)
    ]
    extra = read_result(result)["extra"]
    rows = []
    for row, seed in enumerate(seeds):
        choices = {
            name.removeprefix("weight_decay/"): position
            for name, position in zip(extra["names"], extra["final_mean"][row], strict=True)
            if name.startswith("weight_decay/layer.")
        }
        with_dial, without, other = (body(state, row) for state in states)
        apart = {
            key: value for key, value in differences(without, other).items() if key != "tensors"
        }
        rows.append({"seed": seed} | compare_runs(with_dial, without, choices) | {"control": apart})
    return rows, {"steps": [int(state.tensors["window/steps"].max()) for state in states]}


def make_jobs(config: ExperimentConfig) -> list[Job]:
    """All jobs but the last (see `late_jobs`), the most wanted first."""
    arms = {arm.name: _arm_job(arm, config) for arm in ARMS}
    static = config.env_arguments(
        channels="layer_lr", observation="progress", reward={"progress": 1.0, "divergence": 1.0}, num_registers=0,
        interval=min(config.eval_interval, config.num_steps), num_probe_batches=config.num_probe_batches,
    )  # fmt: skip

    def swept(name: str, configurations: Mapping[str, Mapping[str, Any]]) -> Job:
        arguments = {
            "configurations": dict(configurations), "env_kwargs": static, "tuning_seeds": config.tuning_seeds,
            "evaluation_seeds": config.evaluation_seeds, "heldout_curve": True,
        }  # fmt: skip
        return Job(name, partial(sweep, ENV), arguments)

    listening = Job(
        "signal",
        signal,
        {
            "env_arguments": config.env_arguments(channels="foundational_weight_decay"), "seed": FIRST_TUNING_SEED,
            "states": config.signal_states, "layers": config.signal_layers, "num_batches": config.signal_batches,
            "num_noise_steps": config.signal_noise_steps,
        },
    )  # fmt: skip

    def named(prefix: str) -> list[Job]:
        return [job for name, job in arms.items() if name.startswith(prefix)]

    return [
        arms["detached"],
        arms["foundational"],
        arms["no_learning"],
        arms["no_gate"],
        swept("sweep_constant", constant_configurations()),
        *named("reward_"),
        swept("sweep_schedule", schedule_configurations(config.num_steps)),
        *named("backward_"),
        *named("cap_"),
        arms["wrong_neutral"],
        arms["layer_lr"],
        listening,
        *named("long_"),
    ]


def late_jobs(config: ExperimentConfig) -> list[Job]:
    """What needs the final weights of runs that are done."""
    names = ("long_weight_decay", "long_foundational", "long_detached")
    files = [config.out / "jobs" / f"{name}.json" for name in names]
    if not all(
        file.exists() and checkpoints(config.runs / name, "step")
        for name, file in zip(names, files, strict=True)
    ):
        return []
    ours, reference, control = (str(config.runs / name) for name in names)
    arguments = {
        "ours": ours, "reference": reference, "control": control, "result": str(files[0]),
        "seeds": config.evaluation_seeds,
    }  # fmt: skip
    return [Job("forensics", forensics, arguments)]


def _arm_job(arm: Arm, config: ExperimentConfig) -> Job:
    num_steps = config.long_steps if arm.long else config.num_steps
    seeds = config.reward_seeds if arm.seeds == "reward" else config.evaluation_seeds
    positions = {name: position_of(name, value) for name, value in arm.initial_value.items()}
    sidecar = {"hidden_size": config.hidden_size, **arm.sidecar} | (
        {"initial_mean": positions} if positions else {}
    )
    online = OnlineConfig(
        env=ENV,
        seeds=len(seeds),
        first_seed=seeds[0] + (arm.group or 0),
        seed_mode="independent" if arm.group is None else "grouped",
        sidecar=SidecarConfig(**sidecar),
        eval_interval=config.eval_interval,
        trace_interval=math.ceil(num_steps / config.num_traces),
        checkpoint_interval=config.eval_interval,
        out=config.runs / arm.name,
    )
    arguments = config.env_arguments(**arm.env_kwargs) | {"num_steps": num_steps}
    if "interval" in arguments:
        arguments["interval"] = min(arguments["interval"], config.eval_interval)
    return Job(arm.name, run_online, {"config": online, "env_arguments": arguments})


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the program."""
    config = configuration(ExperimentConfig, "train_agents.experiments.sidecar", __doc__, arguments)

    def check() -> None:
        make_population(ENV, 1, config.env_arguments())

    run_experiment(config, make_jobs(config), report, check, lambda: late_jobs(config))


if __name__ == "__main__":
    main()
