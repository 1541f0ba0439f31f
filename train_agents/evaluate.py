"""Evaluates a policy's mean: `python -m train_agents.evaluate --policy runs/jel/policy`.

`--policy` is the folder of a saved policy, or the folder of a training run with `policy/` in it.

Every seed is one run from its first decision to its last. Its score is on held-out data, which
rewards and observations never see. Without a policy, the panel stays at neutral. Baselines are
measured in this way. The plant defines the score: bits per byte for a pretraining run, passes minus
hacks for a post-training run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hpenv.env import TrainLoopVectorEnv
from hpenv.plant.protocol import DIVERGENCE_REASONS, Score
from hpenv.policies import Policy, load_policy
from hpenv.policies.store import check_columns, policy_folder
from train_agents.command_line import check_counts, configuration, refusals
from train_agents.environments import make_population, parse_assignments
from train_agents.logs import progress
from train_agents.outputs import check_file, read_configuration
from train_agents.results import mean_interval, write_result


def evaluate_policy(
    policy: Policy | None,
    env_id: str,
    env_kwargs: Mapping[str, Any],
    seeds: Sequence[int],
    *,
    curve: bool = True,
    heldout_curve: bool = False,
    max_rows: int = 10,
    on_progress: Callable[[float], object] | None = None,
) -> list[dict[str, Any]]:
    """Runs one episode per seed under the policy's mean.

    A run that diverges stops. Its lists repeat the last value, so that the lists of all seeds have
    the same length. The last bits of a row depend on the number of rows that train together.

    Args:
        policy: function from observations to positions. None: the panel stays at neutral.
        env_id: a registered id of a training loop.
        env_kwargs: keyword arguments of the env.
        seeds: one per run.
        curve: add the lists to the result.
        heldout_curve: also evaluate on the validation slice after each decision.
        max_rows: largest number of runs that train together. It bounds the memory.
        on_progress: called after each decision with the work since the last call [runs].

    Returns:
        One dictionary per seed, with K decisions.

        - `seed`, `corpus` (sha256) and `divergence_reason` (or None).
        - The score at the end under the plant's key (`bpb`, held-out bits per byte, for a
          pretraining run), and the plant's other reported numbers (`pass`, `hack`... for a
          post-training run).
        - `train_loss` (mean over the last window, None if the run never took a step) and
          `probe_loss`, both in the plant's unit.
        - With `curve`: `steps` (K + 1) [steps] and `probe_curve` (K + 1), both before the first
          decision and after each, `train_curve` (K), and `panel` (name -> (K) values in force).
        - With `heldout_curve`: the score's key and `_curve` (K + 1).

    Raises:
        ValueError: there are no seeds, max_rows is below 1, seeds are grouped, the id is no
            training loop, or the policy has another number of cells.
    """
    if not isinstance(seeds, Sequence) or not seeds or max_rows < 1:
        raise ValueError(
            "seeds must be a list of at least one seed, and max_rows must be >= 1; "
            f"got seeds {seeds!r} and max_rows {max_rows}"
        )

    check_independent(env_kwargs)
    rows: list[dict[str, Any]] = []
    env: TrainLoopVectorEnv | None = None

    for first in range(0, len(seeds), max_rows):
        chunk = [int(seed) for seed in seeds[first : first + max_rows]]
        if env is None or env.num_envs != len(chunk):
            env = _make(env_id, env_kwargs, len(chunk), policy)
        rows += run_episodes(
            policy, env, chunk, curve=curve, heldout_curve=heldout_curve, on_progress=on_progress
        )

    return rows


def check_independent(env_kwargs: Mapping[str, Any]) -> None:
    """Checks that the arguments of an env give every seed a separate run."""
    if env_kwargs.get("seed_mode", "independent") != "independent":
        raise ValueError(
            f"seed_mode must be 'independent'; got {env_kwargs['seed_mode']!r}; "
            "otherwise all seeds would be one run"
        )


def _make(
    env_id: str, env_kwargs: Mapping[str, Any], num_rows: int, policy: Policy | None
) -> TrainLoopVectorEnv:
    if policy is not None and not (hasattr(policy, "action_size") and hasattr(policy, "act_mean")):
        raise ValueError(
            "policy must have `action_size`, the number of cells, and `act_mean(observations)`, "
            f"(N, F) -> positions (N, A) in [-1, 1]; got {type(policy).__name__}"
        )

    env = make_population(env_id, num_rows, env_kwargs)
    if policy is not None and policy.action_size != len(env.action_names):
        raise ValueError(
            f"policy must have the {len(env.action_names)} cells of {env_id}, "
            f"{list(env.action_names)}; got {policy.action_size} cells"
        )

    return env


def run_episodes(
    policy: Policy | None,
    env: TrainLoopVectorEnv,
    seeds: list[int],
    *,
    curve: bool = False,
    heldout_curve: bool = False,
    on_progress: Callable[[float], object] | None = None,
) -> list[dict[str, Any]]:
    """Runs one episode in every row of an env, one seed each. See `evaluate_policy`."""
    observations, infos = env.reset(seed=seeds)
    corpus = env.plant.corpus_digest
    neutral = np.zeros((len(seeds), len(env.action_names)), dtype=np.float32)
    steps, probe = [infos["step"]], [infos["probe_loss"]] if "probe_loss" in infos else []
    heldout: list[NDArray[np.float64]] = [env.evaluate()] if heldout_curve else []
    train: list[NDArray[np.float64]] = []
    panel: dict[str, list[NDArray[np.float64]]] = {name: [] for name in env.plant.panel.names}
    reasons: list[str | None] = [None] * len(seeds)

    for _ in range(env.num_decisions):
        positions = neutral if policy is None else policy.act_mean(observations)
        observations, _, _, _, infos = env.step(positions)
        steps.append(infos["step"])
        if "probe_loss" in infos:
            probe.append(infos["probe_loss"])
        train.append(infos["train_loss"])

        for name, values in panel.items():
            values.append(infos[f"panel/{name}"])
        for index in np.flatnonzero(infos["divergence"]):
            reasons[index] = DIVERGENCE_REASONS[infos["divergence"][index]]

        if heldout_curve:
            heldout.append(env.evaluate())
        if on_progress is not None:
            on_progress(len(seeds) / env.num_decisions)

    final = heldout[-1] if heldout_curve else env.evaluate()
    report, score = env.plant.report(), env.plant.score.key
    last_probe = infos["probe_loss"] if "probe_loss" in infos else probe_loss(env)

    rows = []
    for i, seed in enumerate(seeds):
        row: dict[str, Any] = {"seed": seed, "corpus": corpus, score: float(final[i])}
        row |= {name: float(values[i]) for name, values in report.items()}
        row["train_loss"] = float(train[-1][i]) if steps[-1][i] > 0 else None
        row |= {"probe_loss": float(last_probe[i]), "divergence_reason": reasons[i]}
        if curve:
            row |= {"steps": [int(s[i]) for s in steps]}
            if len(probe) == len(steps):
                row |= {"probe_curve": [float(p[i]) for p in probe]}
            row |= {"train_curve": [float(t[i]) for t in train]}
            in_force = {name: [float(v[i]) for v in values] for name, values in panel.items()}
            row |= {"panel": in_force}
        if heldout_curve:
            row[f"{score}_curve"] = [float(b[i]) for b in heldout]
        rows.append(row)

    return rows


def probe_loss(env: TrainLoopVectorEnv) -> NDArray[np.float64]:
    """Measures the probe loss of an env without it, at a run's end, (N,) [nats per token].

    Tuning uses this loss, because the validation slice is for reporting.
    """
    tiers = env.plant.tiers
    env.plant.measure(tiers | {"probe"})
    loss = env.plant.advance(np.zeros(env.num_envs, dtype=np.int64)).probe_loss
    env.plant.measure(tiers)
    return loss


@dataclass(frozen=True)
class EvaluateConfig:
    """Configuration of an evaluation."""

    # folder of a saved policy or of a training run; None: the panel stays at neutral
    policy: Path | None = None
    env: str = "TrainLoop-JEL-v0"  # a registered id
    env_kwargs: tuple[str, ...] = ()  # arguments of the env, key=value
    seeds: int = 10  # number of runs
    first_seed: int = 1000  # the first of consecutive seeds
    max_rows: int = 10  # largest number of runs that train together
    heldout_curve: bool = False  # also evaluate the held-out score after each decision
    threads: int = 1  # torch threads
    out: Path | None = None  # result file

    def __post_init__(self) -> None:
        """Checks counts and seeds."""
        check_counts(self, "seeds", "max_rows", "threads")
        check_counts(self, "first_seed", least=0)


def main(arguments: Sequence[str] | None = None) -> None:
    """Evaluates a policy, prints a table and writes the result."""
    config = configuration(EvaluateConfig, "train_agents.evaluate", __doc__, arguments)
    torch.set_num_threads(config.threads)

    with refusals():
        if config.out is not None:
            check_file("out", config.out)
        policy = None if config.policy is None else load_policy(config.policy)
        env_kwargs = parse_assignments(config.env_kwargs)
        seeds = range(config.first_seed, config.first_seed + config.seeds)
        check_independent(env_kwargs)
        env = _make(config.env, env_kwargs, 1, policy)
        if config.policy is not None:
            check_columns(config.policy, env.observation_names, env.action_names)
        if policy is not None:
            # The policy may refuse the number of features.
            policy.act_mean(np.zeros((1, len(env.observation_names)), dtype=np.float32))

    if config.policy is not None and (trained := _trained_on(config.policy)) not in (
        None,
        (config.env, env_kwargs),
    ):
        print(
            "note: the policy was trained on {} {}; it is evaluated on {} {}".format(
                *trained, config.env, env_kwargs
            )
        )

    score = env.plant.score
    with progress(config.seeds, "evaluating") as advance:
        rows = evaluate_policy(
            policy,
            config.env,
            env_kwargs,
            seeds,
            heldout_curve=config.heldout_curve,
            max_rows=config.max_rows,
            on_progress=advance,
        )

    _print_table(rows, score)
    if config.out is not None:
        write_result(config.out, "evaluation", asdict(config) | {"env_kwargs": env_kwargs}, rows)
        print(f"written: {config.out}")


def _trained_on(policy: Path) -> tuple[str, dict[str, Any]] | None:
    """Returns id and arguments of the environment in which a policy was trained.

    None if the policy is not in the folder of a training run.
    """
    try:
        trained = read_configuration(policy_folder(policy).parent)
    except ValueError:  # a moved or copied policy, or a run of an earlier version
        return None
    return trained["env"], trained["env_kwargs"]


def _print_table(rows: Sequence[Mapping[str, Any]], score: Score) -> None:
    """Prints mean, 95 % interval and range of each quantity over the seeds."""
    from rich.console import Console
    from rich.table import Table

    diverged = sum(row["divergence_reason"] is not None for row in rows)
    table = Table(
        "", "mean", "95 % interval", "range", title=f"{len(rows)} runs, {diverged} diverged"
    )
    labels = {
        key: f"held-out {key.replace('_', ' ')}"
        for key, value in rows[0].items()
        if isinstance(value, float)
    }

    labels |= {
        score.key: score.label,
        "train_loss": f"last train loss [{score.loss_unit}]",
        "probe_loss": f"probe loss [{score.loss_unit}]",
    }

    for key, label in labels.items():
        values = [row[key] for row in rows if row[key] is not None and np.isfinite(row[key])]
        mean, interval = (f"{np.mean(values):.4f}", "-") if values else ("-", "-")
        if len(values) > 1:
            _, low, high = mean_interval(values)
            interval = f"[{low:.4f}, {high:.4f}]"
        table.add_row(label.replace("[", r"\["), mean, interval.replace("[", r"\["), _range(values))

    Console().print(table)


def _range(values: Sequence[float]) -> str:
    return f"{min(values):.4f} to {max(values):.4f}" if values else "-"


if __name__ == "__main__":
    main()
