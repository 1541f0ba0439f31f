"""Trains a controller: `python -m train_agents.train --agent jel --env TrainLoop-JEL-v0`.

Writes into its folder: `config.json`, `progress.jsonl` (metrics of every update), `rollouts.jsonl` (JEL's episodes:
return, and the positions and the probe loss at every decision), TensorBoard events, the latest checkpoints, and at the
end `policy/`, which `train_agents.evaluate` and everything else that attaches a controller reads. Interrupted at any
time, the same command goes on from the last update, with bitwise the same continuation: an update's episodes are a
function of the seed and its number, all else is in the agent's checkpoint.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch

import hpenv
from agents.grpo import JELAgent, JELAgentConfig
from agents.ppo import PPOAgent, PPOAgentConfig
from hpenv import snapshots
from hpenv.env import TrainLoopVectorEnv
from hpenv.integrations.sb3 import SB3VecEnv
from hpenv.policies.store import save_policy
from train_agents.evaluate import parse_assignments
from train_agents.logs import RunLog, describe
from train_agents.results import environment_facts
from train_agents.rollout import Episodes, collect, episode_seeds

gym.register_envs(hpenv)

#: The id that a controller is meta-trained on unless another is named, and its tokens of a step then.
JEL, META_TOKENS = "TrainLoop-JEL-v0", 128

#: Checkpoints that are kept.
KEPT_CHECKPOINTS = 2


@dataclass(frozen=True)
class TrainConfig:
    """What to train, on what, for how long, and where to write."""

    agent: Literal["jel", "ppo"] = "jel"  # who learns
    env: str = JEL  # a registered id
    # key=value; without any, batch_tokens=128 of TrainLoop-JEL-v0, a quarter of its default: cheap runs
    env_kwargs: tuple[str, ...] | None = None
    num_updates: int = 50  # updates of the agent (JEL, table 2)
    episodes_per_update: int = 8  # runs per update (JEL, table 2)
    num_envs: int = 8  # runs trained together; episodes_per_update must be a multiple of it
    seed: int = 0  # of the agent and of all episodes
    out: Path = Path("runs/jel")  # folder; resumes if it holds a run of the same configuration
    threads: int = 1  # torch threads
    tensorboard: bool = True  # write TensorBoard events beside the JSON lines
    jel: JELAgentConfig = field(default_factory=JELAgentConfig)  # hyperparameters, if agent is jel
    ppo: PPOAgentConfig = field(default_factory=PPOAgentConfig)  # hyperparameters, if agent is ppo

    def __post_init__(self) -> None:
        """Refuses numbers that do not fit together."""
        if self.num_updates < 1:
            raise ValueError(f"num_updates={self.num_updates}; expected at least 1")
        if self.num_envs < 1 or self.episodes_per_update < 1 or self.episodes_per_update % self.num_envs:
            raise ValueError(
                f"episodes_per_update={self.episodes_per_update} must be a multiple of num_envs={self.num_envs}"
            )

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of the env."""
        if self.env_kwargs is None:
            return {"batch_tokens": META_TOKENS} if self.env == JEL else {}
        return parse_assignments(self.env_kwargs)


class JELTrainer:
    """One update of JEL per call: collect, then learn."""

    def __init__(self, config: TrainConfig, env: TrainLoopVectorEnv) -> None:
        """Builds the agent for the env's columns."""
        self.env = env
        self.agent = JELAgent(len(env.observation_names), len(env.action_names), config.jel, config.seed)

    def update(self, seeds: list[int]) -> tuple[dict[str, float], Episodes]:
        """Metrics of one update, and its episodes."""
        episodes = collect(self.env, self.agent, seeds)
        return self.agent.update(episodes.rollout), episodes


class PPOTrainer:
    """One call of stable-baselines3's learn per update; what it did is recorded on the way through the adapter."""

    def __init__(self, config: TrainConfig, env: TrainLoopVectorEnv) -> None:
        """Builds the agent for the env's columns."""
        self.env = env
        if config.ppo.num_decisions not in (None, env.num_decisions):
            raise ValueError(
                f"ppo.num_decisions={config.ppo.num_decisions}; an episode here has {env.num_decisions}, and PPO "
                "learns from whole ones: leave it out"
            )
        ppo = replace(config.ppo, num_decisions=env.num_decisions)
        self.agent = PPOAgent(len(env.observation_names), len(env.action_names), ppo, config.seed)
        self._vec_env = SB3VecEnv(env)

    def update(self, seeds: list[int]) -> tuple[dict[str, float], None]:
        """Metrics of one update; stable-baselines3 keeps its episodes to itself."""
        self._vec_env.seed(seeds[0])
        return self.agent.learn(self._vec_env, len(seeds)), None


TRAINERS: dict[str, Callable[[TrainConfig, TrainLoopVectorEnv], JELTrainer | PPOTrainer]] = {
    "jel": JELTrainer,
    "ppo": PPOTrainer,
}


def inner_metrics(episodes: Episodes, names: tuple[str, ...]) -> dict[str, float]:
    """What the trained models did: final probe loss, mean multiplier of each dial, share of diverged runs."""
    alive = episodes.rollout.alive[..., None]
    means = np.where(alive, episodes.positions, 0.0).sum((0, 1)) / alive.sum((0, 1))
    metrics = {f"inner/position/{name}": float(mean) for name, mean in zip(names, means, strict=True)}
    metrics["inner/probe_loss"] = float(episodes.losses[-1].mean())
    metrics["inner/diverged"] = float(np.mean([reason is not None for reason in episodes.reasons]))
    return metrics


def _rollout_line(update: int, episodes: Episodes) -> dict[str, Any]:
    return {
        "update": update,
        "returns": episodes.returns.tolist(),
        "positions": np.round(episodes.positions.astype(float), 5).tolist(),
        "losses": np.round(episodes.losses, 6).tolist(),
        "reasons": list(episodes.reasons),
    }


def _configuration(config: TrainConfig) -> dict[str, Any]:
    """What must be equal for a run to be continued; where it is written and how it is logged may change."""
    values = json.loads(json.dumps(asdict(config), default=str))
    return {key: value for key, value in values.items() if key not in ("out", "tensorboard", "num_updates")}


def _number(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("update-"))


def _checkpoints(folder: Path) -> list[Path]:
    return sorted((folder / "checkpoints").glob("update-*"), key=_number)


def _write(file: Path, text: str) -> None:
    temporary = file.with_suffix(".tmp")
    temporary.write_text(text)
    os.replace(temporary, file)


def train(config: TrainConfig) -> dict[str, float]:
    """Trains to the last update, resuming if the folder holds a run; returns the metrics of the last update.

    Raises:
        ValueError: if the folder holds a run of another configuration.
    """
    torch.set_num_threads(config.threads)
    folder = config.out
    folder.mkdir(parents=True, exist_ok=True)
    ours, file = _configuration(config), folder / "config.json"
    if file.exists():
        theirs = json.loads(file.read_text())["configuration"]
        different = {key: (theirs.get(key), ours[key]) for key in ours if theirs.get(key) != ours[key]}
        if different:
            raise ValueError(
                f"{folder} holds another run, differing as (there, asked): {different}; give another --out"
            )
    env = gym.make_vec(config.env, num_envs=config.num_envs, autoreset_mode="DISABLED", **config.arguments())
    assert isinstance(env, TrainLoopVectorEnv)
    if not file.exists():
        facts = environment_facts(config.arguments(), env.plant.corpus_digest)
        _write(file, json.dumps({"configuration": ours, "facts": facts}, indent=1))
    trainer = TRAINERS[config.agent](config, env)
    first = 0
    newest = snapshots.latest(folder / "checkpoints") if _checkpoints(folder) else None
    if newest is not None:
        trainer.agent.load(newest)
        first = _number(newest)
    return _updates(config, trainer, env, first)


def _updates(
    config: TrainConfig, trainer: JELTrainer | PPOTrainer, env: TrainLoopVectorEnv, first: int
) -> dict[str, float]:
    folder, metrics = config.out, {}
    _keep_lines(folder / "rollouts.jsonl", first)
    title = f"{config.agent} seed {config.seed}"
    with (
        RunLog(folder, resume_at=first, tensorboard=config.tensorboard) as log,
        log.progress(config.num_updates, title, completed=first) as advance,
    ):
        for update in range(first, config.num_updates):
            metrics, episodes = trainer.update(episode_seeds(config.seed, update, config.episodes_per_update))
            if episodes is not None:
                metrics = metrics | inner_metrics(episodes, env.action_names)
                with open(folder / "rollouts.jsonl", "a") as file:
                    file.write(json.dumps(_rollout_line(update, episodes)) + "\n")
            log.write(metrics, update + 1)
            trainer.agent.save(folder / "checkpoints" / f"update-{update + 1:06d}")
            for old in _checkpoints(folder)[:-KEPT_CHECKPOINTS]:
                shutil.rmtree(old)
            advance(1, f"return {metrics.get('rollout/ep_rew_mean', float('nan')):.3f}")
    save_policy(trainer.agent.policy, folder / "policy", env.observation_names, env.action_names)
    return metrics


def _keep_lines(file: Path, first: int) -> None:
    """Drops lines of updates from `first` on, which will be done again, and a torn last one."""
    if file.exists():
        whole = [line for line in file.read_text().splitlines() if line.endswith("}")]
        _write(file, "".join(f"{line}\n" for line in whole if json.loads(line)["update"] < first))


def main() -> None:
    """Runs the program."""
    import tyro

    config = tyro.cli(TrainConfig, description=__doc__)
    describe(config)
    try:
        train(config)
    except KeyboardInterrupt:
        sys.exit(f"interrupted; the same command continues from {config.out}")
    print(f"written: {config.out / 'policy'}")


if __name__ == "__main__":
    main()
