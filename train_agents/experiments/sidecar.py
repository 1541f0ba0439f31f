"""Experiments of "Reward-Driven Training Control".

Command: `python -m train_agents.experiments.sidecar`.

The Sidecar learns during the run that it controls, so nothing is trained beforehand. An arm is one
population with a row per seed, compared by seed on held-out bits per byte at equal tokens. The
default configuration was fixed before any reported arm (`sidecar_arms.DEFAULT`). It is also
compared with the best constant rate and the best schedule of a sweep, chosen by the probe loss on
tuning seeds.

    foundational   attached against detached (section 3), the cost of exploration alone, the sweeps
    rewards        what the Sidecar is rewarded for (sections 4 and 9), on separate seeds
    signal         the noise of these rewards
    backward       the four backward-pass channels (section 6)
    caps           a cap that binds at the start, and a wrong neutral (sections 6 and 8)
    layer_lr       only a learning rate per layer (section 7)
    weight_decay   a coefficient per tensor on a run five times as long, and its effect on the
                   weights (section 5)

Interrupted, the same command goes on where it stopped, also in the middle of a run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from agents.sidecar_config import INITIAL_STD, SidecarConfig
from hpenv.benchmark.command_line import check_counts, configuration
from hpenv.benchmark.environments import make_population
from hpenv.benchmark.results import Rows, read_result
from hpenv.optim.schedules import Constant, Cosine, Schedule, WarmupFlatWarmdown
from hpenv.plant import snapshots
from train_agents.experiments import sidecar_arms as design
from train_agents.experiments.measures.signal import measure_signal
from train_agents.experiments.measures.weights import body, compare_runs, differences
from train_agents.experiments.runner import Job, run_experiment
from train_agents.experiments.sidecar_arms import DEFAULT, ENV
from train_agents.experiments.sidecar_report import report
from train_agents.experiments.sweeping import sweep
from train_agents.online import OnlineConfig, run_online
from train_agents.outputs import checkpoints


@dataclass(frozen=True)
class ExperimentConfig:
    """Size of the experiments. The defaults are those of the reported ones."""

    out: Path = Path("results/sidecar")  # tables, figures and one JSON file per job
    runs: Path = Path("runs/sidecar")  # checkpoints and logs of the runs
    preset: str = DEFAULT["preset"]  # key of hpenv.lm.architecture.PRESETS; with gated feed-forward
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
    only: tuple[str, ...] = ()  # run only the jobs whose names begin with one of these
    report_only: bool = False  # write tables and figures from the results that are there

    def __post_init__(self) -> None:
        """Checks the counts."""
        tokens = ("batch_tokens", "sequence_length", "eval_tokens")
        steps = ("num_steps", "long_steps", "eval_interval", "num_traces", "num_probe_batches")
        seeds = ("num_evaluation_seeds", "num_tuning_seeds", "num_reward_seeds")
        signal = ("signal_batches", "signal_noise_steps")
        check_counts(self, *tokens, *steps, *seeds, *signal, "hidden_size", "num_workers")

    def env_arguments(self, **more: Any) -> dict[str, Any]:
        """Returns the arguments of a run of usual length."""
        sizes = ("preset", "data", "num_steps", "batch_tokens", "sequence_length", "eval_tokens")
        return DEFAULT | {name: getattr(self, name) for name in sizes} | more

    @property
    def evaluation_seeds(self) -> list[int]:
        """Seeds that reported numbers are measured on."""
        first = design.FIRST_EVALUATION_SEED
        return list(range(first, first + self.num_evaluation_seeds))

    @property
    def tuning_seeds(self) -> list[int]:
        """Seeds that constants and schedules are chosen on."""
        first = design.FIRST_TUNING_SEED
        return list(range(first, first + self.num_tuning_seeds))

    @property
    def reward_seeds(self) -> list[int]:
        """Seeds that the rewards are compared on."""
        first = design.FIRST_REWARD_SEED
        return list(range(first, first + self.num_reward_seeds))


def constant_configurations() -> dict[str, dict[str, Any]]:
    """Returns constant rates to sweep over, by name."""
    return {f"x{m:g}": _rate(m, Constant()) for m in design.CONSTANT_MULTIPLIERS}


def schedule_configurations(num_steps: int) -> dict[str, dict[str, Any]]:
    """Returns cosine and warmup-flat-warmdown at several rates, both after a short warmup."""
    warmup = round(design.WARMUP_FRACTION * num_steps)
    cosine, warmdown = Cosine(num_steps, warmup), WarmupFlatWarmdown(num_steps, warmup)
    multipliers = design.SCHEDULE_MULTIPLIERS
    configurations = {f"cosine x{m:g}": _rate(m, cosine) for m in multipliers}
    return configurations | {f"warmdown x{m:g}": _rate(m, warmdown) for m in multipliers}


def _rate(multiplier: float, schedule: Schedule) -> dict[str, Any]:
    return {"base_lr": DEFAULT["base_lr"] * multiplier, "schedule": schedule}


def signal(env_arguments: Mapping[str, Any], seed: int, **sizes: Any) -> Rows:
    """Measures the signal-to-noise ratio of each reward at the Sidecar's initial exploration."""
    return measure_signal(ENV, env_arguments, seed, sigma=INITIAL_STD, **sizes)


def forensics(ours: str, reference: str, control: str, result: str, seeds: Sequence[int]) -> Rows:
    """Compares the final weights of two runs per seed, and correlates the dial's positions.

    `control` of every row compares two runs without the dial.

    Args:
        ours: folder of the run with a weight-decay cell per tensor.
        reference: folder of the run without.
        control: folder of another run without.
        result: result file of `ours`, which has the final positions.
        seeds: one per row.
    """
    folders = [Path(folder) for folder in (ours, reference, control)]
    states = [snapshots.load(checkpoints(folder, "step")[-1] / "env") for folder in folders]
    extra = read_result(result)["extra"]
    prefix = "weight_decay/"

    rows = []
    for row, seed in enumerate(seeds):
        cells = zip(extra["names"], extra["final_mean"][row], strict=True)
        positions = {name: value for name, value in cells if name.startswith(f"{prefix}layer.")}
        choices = {name.removeprefix(prefix): value for name, value in positions.items()}
        with_dial, without, other = (body(state, row) for state in states)
        apart = differences(without, other)
        apart.pop("tensors")
        rows.append({"seed": seed} | compare_runs(with_dial, without, choices) | {"control": apart})
    return rows, {"steps": [int(state.tensors["window/steps"].max()) for state in states]}


def make_jobs(config: ExperimentConfig) -> list[Job]:
    """Returns all jobs but the last (see `late_jobs`), the most wanted first."""
    arms = {arm.name: _arm_job(arm, config) for arm in design.ARMS}
    static = config.env_arguments(
        channels="layer_lr",
        observation="progress",
        reward={"progress": 1.0, "divergence": 1.0},
        num_registers=0,
        interval=min(config.eval_interval, config.num_steps),
        num_probe_batches=config.num_probe_batches,
    )

    def sweep_job(name: str, configurations: Mapping[str, Mapping[str, Any]]) -> Job:
        seeds = {"tuning_seeds": config.tuning_seeds, "evaluation_seeds": config.evaluation_seeds}
        arguments = {"configurations": dict(configurations), "env_kwargs": static, **seeds}
        return Job(name, partial(sweep, ENV), arguments | {"heldout_curve": True})

    def signal_job() -> Job:
        arguments = {
            "env_arguments": config.env_arguments(channels="foundational_weight_decay"),
            "seed": design.FIRST_TUNING_SEED,
            "states": config.signal_states,
            "layers": config.signal_layers,
            "num_batches": config.signal_batches,
            "num_noise_steps": config.signal_noise_steps,
        }
        return Job("signal", signal, arguments)

    def arm_jobs(prefix: str) -> list[Job]:
        return [job for name, job in arms.items() if name.startswith(prefix)]

    first = ("detached", "foundational", "no_learning", "no_gate")
    return [
        *(arms[name] for name in first),
        sweep_job("sweep_constant", constant_configurations()),
        *arm_jobs("reward_"),
        sweep_job("sweep_schedule", schedule_configurations(config.num_steps)),
        *arm_jobs("backward_"),
        *arm_jobs("cap_"),
        arms["wrong_neutral"],
        arms["layer_lr"],
        signal_job(),
        *arm_jobs("long_"),
    ]


def late_jobs(config: ExperimentConfig) -> list[Job]:
    """Returns the jobs that need the final weights of other runs. Empty until those are done."""
    roles = {
        "ours": "long_weight_decay",
        "reference": "long_foundational",
        "control": "long_detached",
    }
    for name in roles.values():
        is_done = (config.out / "jobs" / f"{name}.json").exists()
        if not is_done or not checkpoints(config.runs / name, "step"):
            return []

    folders = {role: str(config.runs / name) for role, name in roles.items()}
    result = str(config.out / "jobs" / f"{roles['ours']}.json")
    arguments = {**folders, "result": result, "seeds": config.evaluation_seeds}
    return [Job("forensics", forensics, arguments)]


def _arm_job(arm: design.Arm, config: ExperimentConfig) -> Job:
    num_steps = config.long_steps if arm.long else config.num_steps
    seeds = config.reward_seeds if arm.seeds == "reward" else config.evaluation_seeds
    sidecar: dict[str, Any] = {"hidden_size": config.hidden_size, **arm.sidecar}
    if arm.initial_value:
        values = arm.initial_value.items()
        sidecar["initial_mean"] = {name: design.position_of(name, value) for name, value in values}

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
