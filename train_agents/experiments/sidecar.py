"""Experiments of "Reward-Driven Training Control".

Command: `python -m train_agents.experiments.sidecar`.

The Sidecar learns during the run that it controls, so nothing is trained beforehand. An arm is one
population with a row per seed, compared by seed on held-out bits per byte at equal tokens. The
default configuration was fixed before any reported arm (`DEFAULT`). It is also
compared with the best constant rate and the best schedule of a sweep, chosen by the probe loss on
tuning seeds. The module is one table of arms, and longer than usual for that reason.

    foundational   attached against detached (section 3), the cost of exploration alone, the sweeps
    rewards        what the Sidecar is rewarded for (sections 4 and 9), on separate seeds
    signal         the noise of these rewards
    backward       the four backward-pass channels (section 6)
    caps           a cap that binds at the start, and a wrong neutral (sections 6 and 8)
    layer_lr       only a learning rate per layer (section 7)
    credit         estimated effects of the cells on the probe in place of, or next to, a reward
    credit_long    the same on a run five times as long
    weight_decay   a coefficient per tensor on a run five times as long, and its effect on the
                   weights (section 5)

Interrupted, the same command goes on where it stopped, also in the middle of a run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from agents.sidecar_config import INITIAL_STD, SidecarConfig
from hpenv.benchmark.environments import make_population
from hpenv.benchmark.results import Rows
from hpenv.optim.schedules import Constant, Cosine, Schedule, WarmupFlatWarmdown
from train_agents.experiments import runner
from train_agents.experiments import sidecar_report as page
from train_agents.experiments.measures.signal import measure_signal
from train_agents.experiments.measures.weights import forensics
from train_agents.experiments.report import Report
from train_agents.experiments.runner import Experiment, Job, Sizes, seeds_from
from train_agents.experiments.sweeping import sweep
from train_agents.online import OnlineConfig, run_online
from train_agents.outputs import checkpoints

ENV = "TrainLoop-Cell-v0"
#: Settings outside the Sidecar's control, and the start of its cells; fixed before any reported
#: arm. Rate and decay are those of torch's AdamW. Pilots of the Sidecar's noise and rate ran on
#: seeds 2000-2002, scored by held-out bits per byte. Those seeds must not be reported on.
DEFAULT: dict[str, Any] = {
    "preset": "cell11",
    "optimizer": "adamw",
    "base_lr": 1e-3,
    "base_weight_decay": 1e-2,
    "schedule": "none",
    "batch_tokens": 128,
    "sequence_length": 64,
}
#: Multipliers of base_lr that the sweeps try.
CONSTANT_MULTIPLIERS, SCHEDULE_MULTIPLIERS = (0.3, 1.0, 3.0, 10.0), (1.0, 3.0, 10.0)
#: Fraction of a run's steps that a swept schedule warms up for; 2 % as Haegele et al. 2024.
WARMUP_FRACTION = 0.02


@dataclass(frozen=True)
class ExperimentConfig(Sizes):
    """Size of the experiments. The defaults are those of the reported ones."""

    out: Path = Path("results/sidecar")
    runs: Path = Path("runs/sidecar")
    preset: str = DEFAULT["preset"]  # key of hpenv.lm.architecture.PRESETS; with gated feed-forward
    data: str = "stdlib"  # see hpenv.lm.data.load_corpus
    num_steps: int = 3000  # of a run [steps]
    long_steps: int = 15_000  # of a run of the weight-decay experiment (section 5.2) [steps]
    batch_tokens: int = DEFAULT["batch_tokens"]  # of a step [tokens]
    sequence_length: int = DEFAULT["sequence_length"]  # [tokens]
    eval_tokens: int = 16_384  # of a held-out evaluation [tokens]
    eval_interval: int = 500  # steps between held-out evaluations [steps]
    num_traces: int = 60  # points of a run at which the cells' positions are recorded
    num_probe_batches: int = 64  # that a sweep chooses by
    num_reward_seeds: int = 5  # rows of an arm of the rewards, on seeds of their own
    hidden_size: int = 256  # of a Sidecar's network
    signal_states: tuple[int, ...] = (100, 1000, 2500)  # where the signal is measured [steps]
    signal_layers: tuple[int, ...] = (0, 5, 10)  # whose cells are moved
    signal_batches: int = 8  # repetitions, a step apart
    signal_noise_steps: int = 200  # whose credits tell the noise [steps]

    def env_arguments(self, **more: Any) -> dict[str, Any]:
        """Returns the arguments of a run of usual length."""
        sizes = ("preset", "data", "num_steps", "batch_tokens", "sequence_length", "eval_tokens")
        return DEFAULT | {name: getattr(self, name) for name in sizes} | more

    @property
    def reward_seeds(self) -> list[int]:
        """Seeds that the rewards are compared on."""
        return seeds_from(runner.FIRST_REWARD_SEED, self.num_reward_seeds)


@dataclass(frozen=True)
class Arm:
    """One way to attach a Sidecar, or a sweep without one."""

    name: str  # of the job
    label: str  # in tables and figures
    #: Key of `sidecar_report.COMPARISONS`, or `sweeps`. Arms of `rewards` run on the seeds of the
    #: rewards, arms of `LONG_GROUPS` five times as long.
    group: str
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)  # its changes of the env
    sidecar: Mapping[str, Any] = field(default_factory=dict)  # its changes of the Sidecar
    #: True: a job per seed, whose rows are all the run of that seed.
    is_grouped: bool = False
    controller: str | None = None  # in place of a Sidecar; see OnlineConfig


LONG_GROUPS = ("credit_long", "weight_decay")
_SURFACE = {"channels": "foundational"}
_DETACHED = {"attached": False}


def _with(channel: str) -> dict[str, Any]:
    return {"channels": f"foundational_{channel}"}


def _paid(
    name: str, label: str, sidecar: Mapping[str, Any], *, is_grouped: bool = False,
    env_kwargs: Mapping[str, Any] = _SURFACE, **terms: float,
) -> Arm:  # fmt: skip
    """Returns an arm with some terms of the reward, by default the next step's loss change."""
    reward = {"divergence": 1.0} | (terms or {"loss_change": 1.0})
    return Arm(name, label, "rewards", {**env_kwargs, "reward": reward}, sidecar, is_grouped)


_CAP = {"channels": (("state_norm_cap", "layer"),)}
#: So little exploration that caps which start dormant stay so: the arms differ in where the caps
#: start, not in noise.
_QUIET = {"initial_std": {"clip": 0.01}}
#: A cap of 1.5 times the root mean square of a token's first, normed embedding.
_BINDING = _QUIET | {"initial_mean": {"state_norm_cap": 0.7353794667124718}}
#: Skips 0.6 of the updates: a gate whose neutral is read as a probability (section 6).
_WRONG_NEUTRAL = {"initial_mean": {"grad_skip": 0.6399999999999999}}
#: One rate, set every 50 steps as in "Just Enough Learning", on the change of the mean loss of 50
#: steps.
_WINDOWED: dict[str, Any] = {"interval": 50, "channels": (("lr", "run"),)}
_WINDOWED |= {"observation": "progress", "num_registers": 0}
_OWN_STEP = {"delay": 0}
#: A credit of two rewards, from the action's decision on, has all terms that answer after
#: different delays.
_TWO_STEPS = {"delay": 0, "horizon": 2}
#: A decision every 16 steps, each with one gradient of the probe.
_EFFECTS: dict[str, Any] = _SURFACE | {"interval": 16}
#: Memories of the estimates. An estimate is read while as many decisions are left as twice its
#: memory has.
_SHORT = {"cell_effect": 0}
_LONG = {"cell_effect_256": 32, "cell_effect_64": 8, "cell_effect": 0}
#: Rates move in the last third of the run alone, where the horizon is as short as the estimate's.
_HOLD = {"none": 63, "cell_effect": 0}


def _estimated(
    name: str, label: str, effects: Mapping[str, int], *, group: str = "credit",
    env_kwargs: Mapping[str, Any] = _EFFECTS, **sidecar: Any,
) -> Arm:  # fmt: skip
    """Returns an arm that learns from estimated effects, by default from them alone."""
    alone = {"credit": "estimate", "learning_rate": 1.0, "evidence": 0.0}
    credit = sidecar if "credit" in sidecar else alone | sidecar
    return Arm(name, label, group, env_kwargs, _OWN_STEP | {"effects": effects} | credit)


#: A rate per layer and no dials.
_RATES: dict[str, Any] = _EFFECTS | {"channels": "layer_lr"}
#: Learning rates of a slower descent over the last third, of 62 decisions or 312. The first was
#: tried on seeds 2000-2002.
_SLOW, _SLOW_LONG = 0.3, 0.06
_PROBED = _EFFECTS | {"reward": {"progress": 1.0, "divergence": 1.0}}
_CONTROL: dict[str, Any] = {"credit": "control_variate", "env_kwargs": _PROBED}
ARMS: tuple[Arm, ...] = (
    Arm("detached", "default, no Sidecar", "foundational", _SURFACE, _DETACHED),
    Arm("foundational", "Sidecar, foundational surface", "foundational", _SURFACE),
    # The cost of exploration alone: samples of a policy that never changes.
    Arm(
        *("no_learning", "Sidecar that explores and learns nothing", "foundational", _SURFACE),
        {"learning_rate": 1e-12},
    ),
    Arm("sweep_constant", "best constant rate of a sweep", "sweeps"),
    Arm("sweep_schedule", "best schedule of a sweep", "sweeps"),
    Arm(
        *("no_gate", "Sidecar without its gate of evidence", "foundational", _SURFACE),
        {"evidence": 0.0},
    ),
    Arm("layer_lr", "Sidecar, a rate per layer alone", "foundational", {"channels": "layer_lr"}),
    _paid("reward_detached", "default, no Sidecar", _DETACHED),
    _paid("reward_next", "next step's loss change (the default)", {}),
    _paid(
        *("reward_same_batch", "loss change on the same batch", _OWN_STEP), same_batch_change=1.0
    ),
    _paid("reward_probe", "probe loss change", _OWN_STEP, progress=1.0),
    _paid("reward_credit", "loss change, of an action's own step and the next", _TWO_STEPS),
    _paid(
        *("reward_composite", "loss change, stability, budget and late divergence", _TWO_STEPS),
        loss_change=1.0,
        stability=1.0,
        budget=0.01,
        late_divergence=1.0,
    ),
    _paid("reward_window", "loss change over 16 steps", {"horizon": 16}),
    _paid(
        *("reward_interval", "a rate alone, every 50 steps, on their mean loss"),
        _TWO_STEPS | {"evidence": 0.0, "initial_std": {"scale": 0.2}},
        env_kwargs=_WINDOWED,
    ),
    _paid(
        *("reward_population", "loss change, baseline of rows on the same data"),
        {"baseline": "population"},
        is_grouped=True,
    ),
    _paid("reward_common", "loss change, a common part per channel", {"common": True}),
    Arm(
        *("backward_grad_skip", "foundational and gradient skipping", "backward"),
        _with("grad_skip"),
    ),
    Arm(
        *("backward_grad_gate", "foundational and gradient gating", "backward"), _with("grad_gate")
    ),
    Arm(
        *("backward_grad_truncate", "foundational and gradient truncation", "backward"),
        _with("grad_truncate"),
    ),
    Arm(
        *("backward_momentum_blend", "foundational and momentum blending", "backward"),
        _with("momentum_blend"),
    ),
    Arm("cap_dormant", "caps alone, dormant at the start", "caps", _CAP, _QUIET),
    Arm("cap_binding", "caps alone, binding at the start", "caps", _CAP, _BINDING),
    Arm(
        *("wrong_neutral", "skipping whose neutral is a probability of 0.6", "caps"),
        *(_with("grad_skip"), _WRONG_NEUTRAL),
    ),
    _estimated("credit_estimate", "estimates of 16 steps as the credit", _SHORT),
    _estimated("credit_horizon", "estimates with a memory of 256 steps as the credit", _LONG),
    _estimated("credit_hold", "estimates as the credit, rates in the last third alone", _HOLD),
    _estimated(
        *("credit_rates", "the same, a rate per layer and no dials", _HOLD), env_kwargs=_RATES
    ),
    _estimated(
        *("credit_slow", "the same, at 0.3 of the speed", _HOLD),
        env_kwargs=_RATES,
        learning_rate=_SLOW,
    ),
    _estimated(
        *("credit_control", "probe loss change, estimates as control variate", _SHORT), **_CONTROL
    ),
    _estimated(
        *("credit_control_horizon", "the same over 64 steps, memory of 256 steps", _LONG),
        **_CONTROL | {"horizon": 4},
    ),
    Arm(
        *("hypergradient", "hypergradient descent, a rate per group", "credit"),
        {"num_registers": 0},
        controller="hpenv.policies.adaptive_rates:Hypergradient",
    ),
    _estimated(
        *("long_credit", "estimates as the credit of rates in the last third, slowly"),
        {"none": 313, "cell_effect": 0},
        group="credit_long",
        env_kwargs=_RATES,
        learning_rate=_SLOW_LONG,
    ),
    Arm("long_detached", "default, no Sidecar", "weight_decay", _SURFACE, _DETACHED),
    Arm("long_foundational", "Sidecar, foundational surface", "weight_decay", _SURFACE),
    Arm(
        *("long_weight_decay", "foundational and weight decay per tensor", "weight_decay"),
        _with("weight_decay"),
    ),
)


def sweep_configurations(num_steps: int) -> dict[str, dict[str, dict[str, Any]]]:
    """Returns the configurations of each sweep: constant rates, and schedules after a warmup."""
    warmup = round(WARMUP_FRACTION * num_steps)

    def rates(name: str, multipliers: Sequence[float], schedule: Schedule) -> dict[str, Any]:
        base = DEFAULT["base_lr"]
        return {f"{name}x{m:g}": {"base_lr": base * m, "schedule": schedule} for m in multipliers}

    cosine = rates("cosine ", SCHEDULE_MULTIPLIERS, Cosine(num_steps, warmup))
    warmdown = rates("warmdown ", SCHEDULE_MULTIPLIERS, WarmupFlatWarmdown(num_steps, warmup))
    constant = rates("", CONSTANT_MULTIPLIERS, Constant())
    return {"sweep_constant": constant, "sweep_schedule": cosine | warmdown}


def signal(env_arguments: Mapping[str, Any], seed: int, **sizes: Any) -> Rows:
    """Measures the signal-to-noise ratio of each reward at the Sidecar's initial exploration."""
    return measure_signal(ENV, env_arguments, seed, sigma=INITIAL_STD, **sizes)


def make_jobs(config: ExperimentConfig) -> list[Job]:
    """Returns all jobs but the last (see `late_jobs`), the long runs at the end."""
    static = config.env_arguments(
        channels="layer_lr",
        observation="progress",
        reward={"progress": 1.0, "divergence": 1.0},
        num_registers=0,
        interval=min(config.eval_interval, config.num_steps),
        num_probe_batches=config.num_probe_batches,
    )

    def jobs_of(arm: Arm) -> list[Job]:
        if arm.group != "sweeps":
            return _arm_jobs(arm, config)
        seeds = {"tuning_seeds": config.tuning_seeds, "evaluation_seeds": config.evaluation_seeds}
        tried = sweep_configurations(config.num_steps)[arm.name]
        arguments = {"configurations": tried, "env_kwargs": static, "heldout_curve": True}
        return [Job(arm.name, partial(sweep, ENV), arguments | seeds)]

    measured = {
        "env_arguments": config.env_arguments(channels="foundational_weight_decay"),
        "seed": runner.FIRST_TUNING_SEED,
        "states": config.signal_states,
        "layers": config.signal_layers,
        "num_batches": config.signal_batches,
        "num_noise_steps": config.signal_noise_steps,
    }
    usual, long = list[Job](), list[Job]()
    for arm in ARMS:
        (long if arm.group in LONG_GROUPS else usual).extend(jobs_of(arm))
    return [*usual, Job("signal", signal, measured), *long]


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


def _arm_jobs(arm: Arm, config: ExperimentConfig) -> list[Job]:
    num_steps = config.long_steps if arm.group in LONG_GROUPS else config.num_steps
    seeds = config.reward_seeds if arm.group == "rewards" else config.evaluation_seeds
    arguments = config.env_arguments(**arm.env_kwargs) | {"num_steps": num_steps}
    if "interval" in arguments:
        arguments["interval"] = min(arguments["interval"], config.eval_interval)

    jobs = []
    for number, seed in enumerate(seeds if arm.is_grouped else seeds[:1]):
        name = f"{arm.name}-{number}" if number else arm.name
        online = OnlineConfig(
            env=ENV,
            seeds=len(seeds),
            first_seed=seed,
            seed_mode="grouped" if arm.is_grouped else "independent",
            controller=arm.controller,
            sidecar=SidecarConfig(**{"hidden_size": config.hidden_size, **arm.sidecar}),
            eval_interval=config.eval_interval,
            trace_interval=math.ceil(num_steps / config.num_traces),
            checkpoint_interval=config.eval_interval,
            out=config.runs / name,
        )
        jobs.append(Job(name, run_online, {"config": online, "env_arguments": arguments}))
    return jobs


REPORT = Report(
    "sidecar", ARMS, page.arms, page.summarize, "claims", page.PARTS, page.FIGURES, page.values
)
EXPERIMENT = Experiment(
    "sidecar",
    __doc__,
    ExperimentConfig,
    make_jobs,
    lambda config: make_population(ENV, 1, config.env_arguments()),
    REPORT.write,
    late_jobs=late_jobs,
)
main = EXPERIMENT.main

if __name__ == "__main__":
    main()
