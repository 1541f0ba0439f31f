"""A learned strength of projection, and the constant strengths that it must beat.

JEL's agent is meta-trained on shorter runs, then deployed, frozen and deterministic, on the
evaluation seeds; it hears what the id pays: the pass rate on the probe less what the weak detector
flags. The best constant is chosen by that same pay, on tuning seeds. So neither has seen the truth
that both are reported by.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

import hpenv
from agents.jel import JELAgentConfig
from hpenv.benchmark.results import Rows
from hpenv.env import TrainLoopVectorEnv
from hpenv.plant.protocol import DIVERGENCE_REASONS
from hpenv.policies import Policy, load_policy
from hpenv.posttraining.plant import GRPOPlant
from train_agents.experiments.projection_arms import position_of
from train_agents.experiments.projection_run import run_arm
from train_agents.train import TrainConfig, train

gym.register_envs(hpenv)

ENV = "TrainLoop-GRPOProjection-v0"
#: Constant strengths that are tried; 0 is vanilla.
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
#: Of the controller's Adam: with the paper's 3e-4 a dozen updates move nothing.
POLICY_RATE = 2e-3


def controller(
    env_arguments: Mapping[str, Any],
    meta_steps: int,
    num_meta_updates: int,
    num_episodes: int,
    seed: int,
    evaluation_seeds: Sequence[int],
    num_reports: int,
    folder: str,
) -> Rows:
    """Meta-trains one controller, then deploys it on every evaluation seed.

    Args:
        env_arguments: of a deployed run.
        meta_steps: updates of a run of meta-training.
        num_meta_updates: updates of the controller.
        num_episodes: runs that each of these hears of.
        seed: of the controller; the runs' seeds are 32-bit words drawn from it.
        evaluation_seeds: one deployed run each.
        num_reports: of a deployed run, evenly spaced as far as its decisions are, besides that
            before the first update.
        folder: where the controller is.

    Returns:
        Rows as `run_arm` has them, without `means`, but with `strengths` (after each decision); and
        `updates_spent` on meta-training, `training` (metrics of each update of the controller).
    """
    meta = dict(env_arguments) | {"num_steps": meta_steps}
    train(
        TrainConfig(
            agent="jel",
            env=ENV,
            env_kwargs=tuple(f"{key}={json.dumps(value)}" for key, value in meta.items()),
            num_updates=num_meta_updates,
            episodes_per_update=num_episodes,
            num_envs=num_episodes,
            seed=seed,
            out=Path(folder),
            jel=JELAgentConfig(learning_rate=POLICY_RATE),
        )
    )
    rows = deployed(
        load_policy(Path(folder) / "policy"), env_arguments, evaluation_seeds, num_reports
    )
    lines = (Path(folder) / "progress.jsonl").read_text().splitlines()
    spent = num_meta_updates * num_episodes * meta_steps
    return rows, {"updates_spent": spent, "training": [json.loads(line) for line in lines]}


def deployed(
    policy: Policy, env_arguments: Mapping[str, Any], seeds: Sequence[int], num_reports: int
) -> list[dict[str, Any]]:
    """Runs under the mean of a policy; see `controller`."""
    env = gym.make_vec(ENV, num_envs=len(seeds), autoreset_mode="DISABLED", **env_arguments)
    assert isinstance(env, TrainLoopVectorEnv)
    plant = env.plant
    assert isinstance(plant, GRPOPlant)
    observations, infos = env.reset(seed=list(seeds))
    records = [(infos["step"], plant.report())]
    strengths: list[np.ndarray] = []
    reasons: list[str | None] = [None] * len(seeds)
    due = np.linspace(0, env.num_decisions, num_reports + 1)[1:].round()
    for decision in range(1, env.num_decisions + 1):
        observations, _, _, _, infos = env.step(policy.act_mean(observations))
        strengths.append(infos["panel/projection_strength"])
        for row in np.flatnonzero(infos["divergence"]):
            reasons[row] = DIVERGENCE_REASONS[infos["divergence"][row]]
        if decision in due:
            records.append((infos["step"], plant.report()))
    env.close()
    return [
        {
            "seed": int(seed),
            "corpus": plant.corpus_digest,
            "divergence_reason": reasons[row],
            "steps": [int(steps[row]) for steps, _ in records],
            "reports": {
                name: [float(report[name][row]) for _, report in records] for name in records[0][1]
            },
            "strengths": [float(values[row]) for values in strengths],
        }
        for row, seed in enumerate(seeds)
    ]


def best_constant(
    grpo: Mapping[str, Any],
    tuning_seeds: Sequence[int],
    evaluation_seeds: Sequence[int],
    num_updates: int,
    report_interval: int,
    folder: str,
    cache: str,
    strengths: Sequence[float] = STRENGTHS,
) -> Rows:
    """Chooses the constant strength that the id would pay most for, and runs it on the evaluation
    seeds.

    Returns:
        Rows as `run_arm` has them; and `chosen`, `table` (of each strength the mean `pay`, and what
        was true on the tuning seeds, which chose nothing: `pass` and `hack`), `updates_spent` on
        the choice.
    """

    def ran(strength: float, seeds: Sequence[int], name: str) -> list[dict[str, Any]]:
        positions = (
            {"projection_strength": position_of("projection_strength", strength)}
            if strength
            else {}
        )
        return run_arm(
            grpo, positions, seeds, num_updates, report_interval, f"{folder}/{name}", cache
        )[0]

    table = []
    for strength in strengths:
        rows = ran(strength, tuning_seeds, f"{strength:g}")
        truth = {
            key: float(np.mean([row["reports"][key][-1] for row in rows]))
            for key in ("pass", "hack")
        }
        table.append(
            {"strength": strength, "pay": float(np.mean([pay(row) for row in rows])), **truth}
        )
    chosen = max(table, key=lambda entry: entry["pay"])["strength"]
    spent = len(strengths) * len(tuning_seeds) * num_updates
    return ran(chosen, evaluation_seeds, "chosen"), {
        "chosen": chosen,
        "table": table,
        "updates_spent": spent,
    }


def pay(row: Mapping[str, Any]) -> float:
    """What the id pays a run per decision, on average: passes of the probe less what is flagged; 1
    less if it diverged.

    The id pays that 1 once and not per decision: here it keeps a strength from being chosen that
    runs diverge at.
    """
    earned = np.array(row["probe_pass"][1:]) - np.array(row["means"]["flagged"])
    return float(earned.mean()) - (row["divergence_reason"] is not None)
