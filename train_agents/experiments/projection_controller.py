"""Learned strength of projection, and the constant strengths that it must beat.

JEL's agent is meta-trained on shorter runs, then deployed, frozen and deterministic, on the
evaluation seeds. Its reward is that of the id: the pass rate on the probe less the rate that the
weak detector flags. The best constant is chosen by the same reward, on tuning seeds. So neither has
seen the true rates that both are reported by.
"""

from __future__ import annotations

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
from hpenv.policies import Policy
from hpenv.posttraining.plant import GRPOPlant
from train_agents.experiments.meta_training import meta_train
from train_agents.experiments.projection_arms import position_of
from train_agents.experiments.projection_run import run_arm

gym.register_envs(hpenv)

ENV = "TrainLoop-GRPOProjection-v0"
#: Constant strengths that are tried; 0 is vanilla.
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
#: Of the controller's Adam: with the paper's 3e-4 a dozen updates move nothing.
POLICY_RATE = 2e-3


def controller(
    env_arguments: Mapping[str, Any], meta_steps: int, num_meta_updates: int, num_episodes: int,
    seed: int, evaluation_seeds: Sequence[int], num_reports: int, folder: str,
) -> Rows:  # fmt: skip
    """Meta-trains one controller, then deploys it on every evaluation seed.

    Args:
        env_arguments: of a deployed run.
        meta_steps: updates of a run of meta-training.
        num_meta_updates: updates of the controller.
        num_episodes: runs per update of the controller.
        seed: of the controller. The runs' seeds are 32-bit words drawn from it.
        evaluation_seeds: one deployed run each.
        num_reports: of a deployed run, evenly spaced as far as its decisions allow, in addition to
            the report before the first update.
        folder: where the controller is.

    Returns:
        Rows as `run_arm` has them, without `means`, but with `strengths` (after each decision), and
        `updates_spent` on meta-training, `training` (metrics of each update of the controller).
    """
    meta = dict(env_arguments) | {"num_steps": meta_steps}
    agent = JELAgentConfig(learning_rate=POLICY_RATE)
    sizes = {"num_updates": num_meta_updates, "episodes_per_update": num_episodes}
    sizes |= {"num_envs": num_episodes, "seed": seed}
    policy, training = meta_train(Path(folder), ENV, meta, agent="jel", jel=agent, **sizes)
    rows = deploy(policy, env_arguments, evaluation_seeds, num_reports)
    spent = num_meta_updates * num_episodes * meta_steps
    return rows, {"updates_spent": spent, "training": training}


def deploy(
    policy: Policy, env_arguments: Mapping[str, Any], seeds: Sequence[int], num_reports: int
) -> list[dict[str, Any]]:
    """Runs under the mean of a policy. See `controller`."""
    env = gym.make_vec(ENV, num_envs=len(seeds), autoreset_mode="DISABLED", **env_arguments)
    assert isinstance(env, TrainLoopVectorEnv)
    plant = env.plant
    assert isinstance(plant, GRPOPlant)
    observations, infos = env.reset(seed=list(seeds))
    steps, reports = [infos["step"]], [plant.report()]
    strengths: list[np.ndarray] = []
    reasons: list[str | None] = [None] * len(seeds)
    due = np.linspace(0, env.num_decisions, num_reports + 1)[1:].round()

    for decision in range(1, env.num_decisions + 1):
        observations, _, _, _, infos = env.step(policy.act(observations))
        strengths.append(infos["panel/projection_strength"])
        for row in np.flatnonzero(infos["divergence"]):
            reasons[row] = DIVERGENCE_REASONS[infos["divergence"][row]]
        if decision in due:
            steps.append(infos["step"])
            reports.append(plant.report())
    env.close()

    rows: list[dict[str, Any]] = []
    for n, seed in enumerate(seeds):
        entry: dict[str, Any] = {"seed": int(seed), "corpus": plant.corpus_digest}
        entry |= {"divergence_reason": reasons[n], "steps": [int(step[n]) for step in steps]}
        curves = {name: [float(report[name][n]) for report in reports] for name in reports[0]}
        used = [float(values[n]) for values in strengths]
        rows.append(entry | {"reports": curves, "strengths": used})
    return rows


def best_constant(
    grpo: Mapping[str, Any], tuning_seeds: Sequence[int], evaluation_seeds: Sequence[int],
    num_updates: int, report_interval: int, folder: str, cache: str,
    strengths: Sequence[float] = STRENGTHS,
) -> Rows:  # fmt: skip
    """Chooses the constant strength with the highest reward, and runs it on the evaluation seeds.

    Returns:
        Rows as `run_arm` has them, and `chosen`, `table` (of each strength the mean `pay`, and the
        true `pass` and `hack` on the tuning seeds, which chose nothing), `updates_spent` on the
        choice.
    """

    def run(strength: float, seeds: Sequence[int], name: str) -> list[dict[str, Any]]:
        channel = "projection_strength"
        positions = {channel: position_of(channel, strength)} if strength else {}
        sizes, place = (num_updates, report_interval), f"{folder}/{name}"
        return run_arm(grpo, positions, seeds, *sizes, place, cache)[0]

    table = []
    for strength in strengths:
        rows = run(strength, tuning_seeds, f"{strength:g}")
        entry = {"strength": strength, "pay": float(np.mean([pay(row) for row in rows]))}
        for key in ("pass", "hack"):
            entry[key] = float(np.mean([row["reports"][key][-1] for row in rows]))
        table.append(entry)

    chosen = max(table, key=lambda entry: entry["pay"])["strength"]
    spent = len(strengths) * len(tuning_seeds) * num_updates
    rows = run(chosen, evaluation_seeds, "chosen")
    return rows, {"chosen": chosen, "table": table, "updates_spent": spent}


def pay(row: Mapping[str, Any]) -> float:
    """Returns a run's mean reward per decision: passes of the probe less flags. 1 less if diverged.

    The id subtracts that 1 once and not per decision. Here it prevents the choice of a strength at
    which runs diverge.
    """
    earned = np.array(row["probe_pass"][1:]) - np.array(row["means"]["flagged"])
    return float(earned.mean()) - (row["divergence_reason"] is not None)
