"""Trains a controller: `python -m train_agents.train --agent jel --env TrainLoop-JEL-v0`.

Writes into its folder: `config.json`, `progress.jsonl` (metrics of every update), `rollouts.jsonl`
(JEL's episodes: return, positions and losses at their decisions), TensorBoard events, the latest
checkpoints, and at the end `policy/`, which `train_agents.evaluate` and everything else that
attaches a controller reads. Interrupted at any time, the same command goes on from the last update,
with bitwise the same continuation: an update's episodes are a function of the seed and its number,
all else is in the agent's checkpoint.

Metrics have stable-baselines3's tags, and are counted in timesteps as it counts them: decisions,
summed over the runs. `inner/...` is of the trained models. `eval/held_out` stands in the line of
the last update: the mean held-out score of one more episode per row, on seeds that nothing was
trained on, under the policy's mean.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from agents.grpo import JELAgent, JELAgentConfig
from agents.ppo import PPOAgent, PPOAgentConfig
from hpenv.env import TrainLoopVectorEnv
from hpenv.integrations.sb3 import SB3VecEnv
from hpenv.policies.store import save_policy
from train_agents import outputs
from train_agents.command_line import check_counts, configuration, refusals
from train_agents.environments import make_population, parse_assignments
from train_agents.evaluate import run_episodes
from train_agents.facts import environment_facts
from train_agents.logs import RunLog, keep_lines
from train_agents.rollout import Episodes, collect, episode_seeds

#: The id that a controller is meta-trained on unless another is named, and its tokens of a step
#: then.
JEL, META_TOKENS = "TrainLoop-JEL-v0", 128
#: Fields of the configuration that may change when a run is continued.
MAY_CHANGE = ("num_updates",)
#: What the program writes into its folder beside config.json and the checkpoints.
WRITTEN = ("progress.jsonl", "rollouts.jsonl", "tensorboard", "policy")
#: Stands for the number of an update in the seeds of the held-out score: no update has it.
HELD_OUT = 2**32 - 1
#: Decisions of an episode that `rollouts.jsonl` has at most, evenly spaced; an episode may have
#: thousands.
TRACED_DECISIONS = 100


@dataclass(frozen=True)
class TrainConfig:
    """What to train, on what, for how long, and where to write."""

    agent: Literal["jel", "ppo"] = "jel"  # who learns
    env: str = JEL  # a registered id
    # key=value; without any, batch_tokens=128 of TrainLoop-JEL-v0, a quarter of its default: cheap
    # runs
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
        """Refuses numbers that do not fit together, and hyperparameters of an agent that does not learn."""
        check_counts(self, "num_updates", "num_envs", "episodes_per_update", "threads")
        check_counts(self, "seed", least=0)
        if self.episodes_per_update % self.num_envs:
            raise ValueError(
                f"episodes_per_update must be a multiple of num_envs={self.num_envs}; got {self.episodes_per_update}"
            )
        for agent, unused in (("jel", JELAgentConfig()), ("ppo", PPOAgentConfig())):
            if agent != self.agent and getattr(self, agent) != unused:
                raise ValueError(
                    f"{agent} must be left out where agent is {self.agent!r}; got {getattr(self, agent)}"
                )

    def arguments(self) -> dict[str, Any]:
        """Returns the keyword arguments of the env."""
        if self.env_kwargs is None:
            return {"batch_tokens": META_TOKENS} if self.env == JEL else {}
        return parse_assignments(self.env_kwargs)


class JELTrainer:
    """One update of JEL per call: collect, then learn."""

    def __init__(self, config: TrainConfig, env: TrainLoopVectorEnv) -> None:
        """Builds the agent for the env's columns."""
        self.env = env
        self.agent = JELAgent(
            len(env.observation_names), len(env.action_names), config.jel, config.seed
        )

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
    """Returns what the trained models did: final losses, mean position of each dial, fraction of diverged runs."""
    alive = episodes.rollout.alive[..., None]
    means = np.where(alive, episodes.positions, 0.0).sum((0, 1)) / alive.sum((0, 1))
    metrics = {
        f"inner/position/{name}": float(mean) for name, mean in zip(names, means, strict=True)
    }
    metrics["inner/train_loss"] = float(episodes.train_losses[-1].mean())
    if episodes.probe_losses is not None:
        metrics["inner/probe_loss"] = float(episodes.probe_losses[-1].mean())
    metrics["inner/diverged"] = float(np.mean([reason is not None for reason in episodes.reasons]))
    return metrics


def _rollout_line(update: int, episodes: Episodes) -> dict[str, Any]:
    count = len(episodes.positions)
    traced = np.unique(np.linspace(0, count - 1, min(count, TRACED_DECISIONS)).round().astype(int))
    probes = episodes.probe_losses
    return {
        "update": update,
        "returns": episodes.returns.tolist(),
        "decisions": traced.tolist(),
        "positions": np.round(episodes.positions[traced].astype(float), 5).tolist(),
        "train_losses": np.round(episodes.train_losses[traced], 6).tolist(),
        "losses": None if probes is None else np.round(probes[[*traced, -1]], 6).tolist(),
        "reasons": list(episodes.reasons),
    }


class Training:
    """A run of the program, begun or continued, whose configuration and folder have been found good."""

    def __init__(self, config: TrainConfig) -> None:
        """Makes env and agent, checks the folder, claims it, and goes on from its newest checkpoint
        if it has one.

        Raises:
            ValueError: for what cannot be trained, or a folder that holds another run.
        """
        torch.set_num_threads(config.threads)
        self.config, folder = config, config.out
        values = _described(config)
        outputs.check_run_folder(folder, values, MAY_CHANGE, WRITTEN)
        done = max(map(outputs.number, outputs.checkpoints(folder, "update")), default=0)
        if done > config.num_updates:
            raise ValueError(
                f"num_updates must be at least the {done} that {folder} has; got {config.num_updates}"
            )
        self.env = make_population(config.env, config.num_envs, config.arguments())
        self.trainer = TRAINERS[config.agent](config, self.env)
        facts = environment_facts(config.arguments(), self.env.plant.corpus_digest)
        outputs.claim(folder, values, facts)  # last: what cannot be begun leaves no trace
        resumed = outputs.resume(folder, "update", self.trainer.agent.load)
        self.first = 0 if resumed is None else outputs.number(resumed)
        keep_lines(folder / "rollouts.jsonl", "update", self.first - 1)
        self.log = RunLog(folder, self.timesteps(self.first), config.tensorboard, values)

    def timesteps(self, num_updates: int) -> int:
        """Returns the timesteps of so many updates, the decisions of all episodes."""
        return num_updates * self.config.episodes_per_update * self.env.num_decisions

    def run(self) -> dict[str, float]:
        """Trains to the last update and saves the policy; returns the metrics of the last update."""
        config, folder, metrics = self.config, self.config.out, dict[str, float]()
        title = f"{config.agent} seed {config.seed}"
        with (
            self.log as log,
            log.progress(config.num_updates, title, completed=self.first) as advance,
        ):
            for update in range(self.first, config.num_updates):
                done = update + 1
                seeds = episode_seeds(config.seed, update, config.episodes_per_update)
                metrics, episodes = self.trainer.update(seeds)
                if episodes is not None:
                    metrics = metrics | inner_metrics(episodes, self.env.action_names)
                    with open(folder / "rollouts.jsonl", "a", encoding="utf-8") as file:
                        file.write(json.dumps(_rollout_line(update, episodes)) + "\n")
                metrics = log.clocks(self.timesteps(done), done) | metrics
                if done == config.num_updates:
                    metrics["eval/held_out"] = self.held_out()
                log.write(metrics, self.timesteps(done))
                self.trainer.agent.save(folder / "checkpoints" / f"update-{done:06d}")
                outputs.drop_old(folder, "update")
                advance(1, f"return {metrics.get('rollout/ep_rew_mean', float('nan')):.3f}")
        env = self.env
        save_policy(
            self.trainer.agent.policy, folder / "policy", env.observation_names, env.action_names
        )
        return metrics

    def held_out(self) -> float:
        """Returns the mean held-out score of an episode per row, under the policy's mean, on seeds of no update."""
        key, seeds = (
            self.env.plant.score.key,
            episode_seeds(self.config.seed, HELD_OUT, self.config.num_envs),
        )
        return float(
            np.mean([row[key] for row in run_episodes(self.trainer.agent.policy, self.env, seeds)])
        )


def _described(config: TrainConfig) -> dict[str, Any]:
    """Returns the configuration as it stands in config.json: without the other agents' options, out and tensorboard."""
    left_out = {"out", "tensorboard", *TRAINERS} - {config.agent}
    values = {key: value for key, value in asdict(config).items() if key not in left_out}
    return values | {"env_kwargs": config.arguments()}


def train(config: TrainConfig) -> dict[str, float]:
    """Trains to the last update, resuming if the folder holds a run; returns the metrics of the
    last update.

    Raises:
        ValueError: for what cannot be trained, or a folder that holds another run.
    """
    return Training(config).run()


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the program."""
    config = configuration(TrainConfig, "train_agents.train", __doc__, arguments)
    with refusals():
        training = Training(config)
    try:
        training.run()
    except KeyboardInterrupt:
        sys.exit(f"interrupted; the same command continues from {config.out}")
    print(f"written: {config.out / 'policy'}")


if __name__ == "__main__":
    main()
