"""Trains a controller: `python -m train_agents.train --agent jel --env TrainLoop-JEL-v0`.

The program writes these files to its folder:

- `config.json`.
- `progress.jsonl`: metrics of every update.
- `rollouts.jsonl`: all episodes, with returns, and positions and losses at their decisions.
- TensorBoard events.
- The latest checkpoints.
- `policy/` at the end. `train_agents.evaluate` and all programs that attach a controller read it.

After an interruption, the same command continues from the last update, bitwise. An update's
episodes are a function of the seed and the update's number. All other state is in the agent's
checkpoint. `torchrun` divides the batches of the runs among processes, see docs/scale_out.md.

Metrics have stable-baselines3's tags and timesteps: decisions, summed over the runs. `inner/...`
are metrics of the trained models. The line of the last update has `eval/held_out`: the mean
held-out score of one further episode per row under the policy's mean, on seeds of no update.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from agents.base import Agent, config_json
from agents.jel import JELAgent, JELAgentConfig
from agents.ppo import PPOAgent, PPOAgentConfig
from agents.reinforce import ReinforceAgent
from agents.sidecar_config import SidecarConfig, for_episodes
from hpenv.benchmark.command_line import check_counts, configuration, refusals
from hpenv.benchmark.environments import (
    columns_of,
    make_population,
    parse_assignments,
    spec_of,
)
from hpenv.benchmark.evaluate import run_episodes
from hpenv.benchmark.executors import open_executor
from hpenv.benchmark.facts import environment_facts
from hpenv.benchmark.workers import Executor
from hpenv.plant.ranks import ALONE, Ranks
from hpenv.plant.torchrun import open_ranks
from hpenv.policies.controller import Columns
from hpenv.policies.store import save_policy
from hpenv.pretraining.divide import divide, follow
from train_agents import outputs
from train_agents.logs import RunLog, keep_lines
from train_agents.rollout import Episodes, collect, collect_on, episode_seeds
from train_agents.tasks import Task, Tasks

#: Default id of meta-training, and its tokens per step in meta-training.
JEL, META_TOKENS = "TrainLoop-JEL-v0", 128
#: Fields of the configuration that may differ when a run continues.
MAY_CHANGE = ("num_updates", "executor")
#: Files and folders that the program writes, in addition to config.json and the checkpoints.
WRITTEN = ("progress.jsonl", "rollouts.jsonl", "tensorboard", "policy")
#: Number for the seeds of the held-out score, in place of an update's number. No update has it.
HELD_OUT = 2**32 - 1
#: Largest number of an episode's decisions in `rollouts.jsonl`, evenly spaced.
TRACED_DECISIONS = 100


@dataclass(frozen=True)
class TrainConfig:
    """Configuration of a training run of a controller."""

    agent: Literal["jel", "ppo", "reinforce"] = "jel"  # the agent that learns
    env: str = JEL  # a registered id
    # arguments of the env, key=value; by default batch_tokens=128 for TrainLoop-JEL-v0, a quarter
    # of the id's default, for cheap runs
    env_kwargs: tuple[str, ...] | None = None
    # name of a suite: the runs of an update are of one of its train instances. `env` is not read
    suite: str = ""
    # with a suite, the base learning rate of an update is drawn up to so many decades either way
    lr_decades: float = 0.0
    num_updates: int = 50  # number of updates of the agent (JEL, table 2)
    episodes_per_update: int = 8  # runs per update (JEL, table 2)
    num_envs: int = 8  # runs that train together; divides episodes_per_update
    seed: int = 0  # seed of the agent and of all episodes
    out: Path = Path("runs/jel")  # folder; a run of the same configuration continues
    threads: int = 1  # torch threads
    # where an update's episodes are computed, num_envs at a time: see hpenv.benchmark.executors
    executor: str = "inline"
    tensorboard: bool = True  # also write TensorBoard events
    jel: JELAgentConfig = field(default_factory=JELAgentConfig)  # hyperparameters, if agent is jel
    ppo: PPOAgentConfig = field(default_factory=PPOAgentConfig)  # hyperparameters, if agent is ppo
    # hyperparameters, if agent is reinforce
    reinforce: SidecarConfig = field(default_factory=for_episodes)

    def __post_init__(self) -> None:
        """Checks counts, and that only the chosen agent has hyperparameters."""
        check_counts(self, "num_updates", "num_envs", "episodes_per_update", "threads")
        check_counts(self, "seed", least=0)
        if self.threads > 1 and self.executor != "inline":
            raise ValueError(
                f"threads must be 1 unless executor is 'inline'; got {self.threads} threads and "
                f"executor {self.executor!r}, whose workers have one thread each"
            )
        if self.episodes_per_update % self.num_envs:
            raise ValueError(
                f"episodes_per_update must be a multiple of num_envs={self.num_envs}; "
                f"got {self.episodes_per_update}"
            )

        if not 0.0 <= self.lr_decades <= 4.0 or (self.lr_decades and not self.suite):
            raise ValueError(
                f"lr_decades must be from 0 to 4, and 0 without a suite; got {self.lr_decades}"
            )

        defaults = {"jel": JELAgentConfig(), "ppo": PPOAgentConfig(), "reinforce": for_episodes()}
        for agent, unused in defaults.items():
            if agent != self.agent and getattr(self, agent) != unused:
                raise ValueError(
                    f"{agent} must be left out if agent is {self.agent!r}; "
                    f"got {getattr(self, agent)}"
                )

    def arguments(self) -> dict[str, Any]:
        """Returns the keyword arguments of the env."""
        if self.env_kwargs is None:
            return {"batch_tokens": META_TOKENS} if self.env == JEL and not self.suite else {}
        return parse_assignments(self.env_kwargs)

    def task(self, update: int) -> Task:
        """Returns what the runs of an update are of, counted from 0.

        Raises:
            ValueError: there is no such suite, or it has no train instances.
        """
        if self.suite:
            return Tasks(self.suite, self.arguments(), self.lr_decades, self.seed)[update]
        return Task(self.env, self.env, self.arguments())


def _jel(config: TrainConfig, columns: Columns) -> Agent:
    return JELAgent(*_sizes(columns), config.jel, config.seed)


def _ppo(config: TrainConfig, columns: Columns) -> Agent:
    return PPOAgent(*_sizes(columns), config.ppo, config.seed)


def _reinforce(config: TrainConfig, columns: Columns) -> Agent:
    return ReinforceAgent(
        config.episodes_per_update,
        len(columns.observation_names),
        columns.action_kinds,
        columns.action_immediate,
        config.reinforce,
        config.seed,
        columns.action_names,
        shared=True,
    )


def _sizes(columns: Columns) -> tuple[int, int]:
    return len(columns.observation_names), len(columns.action_names)


#: name -> function from the configuration and the env's columns to a new agent
AGENTS: dict[str, Callable[[TrainConfig, Columns], Agent]] = {
    "jel": _jel,
    "ppo": _ppo,
    "reinforce": _reinforce,
}


def inner_metrics(episodes: Episodes, names: tuple[str, ...]) -> dict[str, float]:
    """Returns final losses, mean position of each cell, and fraction of diverged runs."""
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
    """A new or continued run of the program, whose configuration and folder have been checked."""

    def __init__(self, config: TrainConfig, ranks: Ranks = ALONE) -> None:
        """Makes env and agent, checks and claims the folder, and loads its newest checkpoint.

        Args:
            config: configuration of the training.
            ranks: processes that share the batches of the runs.

        Raises:
            ValueError: the configuration is wrong, or the folder holds another run.
        """
        if ranks.size > 1 and config.executor != "inline":
            raise ValueError(
                f"executor must be 'inline' in {ranks.size} processes of torchrun; "
                f"got {config.executor!r}"
            )
        self.ranks = ranks
        torch.set_num_threads(config.threads)
        self.config, folder = config, config.out
        values = _json_values(config)
        outputs.check_run_folder(folder, values, MAY_CHANGE, WRITTEN)
        done = max(map(outputs.number, outputs.checkpoints(folder, "update")), default=0)
        if done > config.num_updates:
            raise ValueError(
                f"num_updates must be at least the {done} of {folder}; got {config.num_updates}"
            )

        self.task = config.task(0)
        self.env = make_population(self.task.env_id, config.num_envs, self.task.arguments)
        self.agent = AGENTS[config.agent](config, columns_of(self.env))
        digest = self.env.plant.corpus_digest
        facts = environment_facts(self.task.arguments, digest, ranks.size)
        divide(self.env.plant, ranks)
        outputs.claim(folder, values, facts)  # last, so that an error leaves no folder

        resumed = outputs.resume(folder, "update", self.agent.load)
        self.first = 0 if resumed is None else outputs.number(resumed)
        keep_lines(folder / "rollouts.jsonl", "update", self.first - 1)
        self.log = RunLog(folder, self.timesteps(self.first), config.tensorboard, values)

    def timesteps(self, num_updates: int) -> int:
        """Returns the timesteps of a number of updates: the decisions of all episodes."""
        if not self.config.suite:
            return num_updates * self.config.episodes_per_update * self.env.num_decisions
        tasks = [self.config.task(update).arguments for update in range(num_updates)]
        decisions = sum(math.ceil(each["num_steps"] / each["interval"]) for each in tasks)
        return decisions * self.config.episodes_per_update

    def take_task(self, update: int) -> None:
        """Makes the env of an update's task, if it is another one."""
        task = self.config.task(update)
        if task != self.task:
            columns = columns_of(self.env)
            self.task = task
            self.env = make_population(task.env_id, self.config.num_envs, task.arguments)
            spec_of(self.env).check(columns)
            divide(self.env.plant, self.ranks)

    def run(self) -> dict[str, float]:
        """Trains to the last update, saves the policy, and returns the last update's metrics."""
        config, folder, metrics = self.config, self.config.out, dict[str, float]()
        title = f"{config.agent} seed {config.seed}"

        with (
            self.log as log,
            open_executor(config.executor) as executor,
            log.progress(config.num_updates, title, completed=self.first) as advance,
        ):
            for update in range(self.first, config.num_updates):
                done = update + 1
                self.take_task(update)
                seeds = episode_seeds(config.seed, update, config.episodes_per_update)
                episodes = self.collect(executor, seeds)
                metrics = self.agent.update(episodes.rollout)
                metrics |= inner_metrics(episodes, self.env.action_names)
                with open(folder / "rollouts.jsonl", "a", encoding="utf-8") as file:
                    file.write(json.dumps(_rollout_line(update, episodes)) + "\n")

                metrics = log.clocks(self.timesteps(done), done) | metrics
                if done == config.num_updates:
                    metrics["eval/held_out"] = self.held_out()
                log.write(metrics, self.timesteps(done))
                self.agent.save(folder / "checkpoints" / f"update-{done:06d}")
                outputs.drop_old(folder, "update")
                title = f"{self.task.name}, " if config.suite else ""
                advance(1, f"{title}return {metrics.get('rollout/ep_rew_mean', np.nan):.3f}")

        policy = self.agent.policy
        policy.spec = spec_of(self.env)
        save_policy(policy, folder / "policy")
        return metrics

    def collect(self, executor: Executor, seeds: list[int]) -> Episodes:
        """Returns the episodes of an update. The executor changes no bit of them."""
        config = self.config
        if config.executor == "inline":
            return collect(self.env, self.agent, seeds)
        env_id, arguments = self.task.env_id, self.task.arguments
        return collect_on(executor, self.env, env_id, arguments, self.agent, seeds)

    def held_out(self) -> float:
        """Returns the mean held-out score of one episode per row under the policy's mean.

        No update has these seeds. With a suite, the episodes are of the last update's instance.
        """
        key = self.env.plant.score.key
        seeds = episode_seeds(self.config.seed, HELD_OUT, self.config.num_envs)
        rows = run_episodes(self.agent.policy, self.env, seeds)
        return float(np.mean([row[key] for row in rows]))


def _json_values(config: TrainConfig) -> dict[str, Any]:
    """Returns the configuration in config.json: no other agent's options, out or tensorboard."""
    left_out = {"out", "tensorboard", *AGENTS} - {config.agent}
    values = {key: value for key, value in asdict(config).items() if key not in left_out}
    if not config.suite:
        del values["suite"], values["lr_decades"]
    own = {config.agent: config_json(getattr(config, config.agent))}
    return values | own | {"env_kwargs": config.arguments()}


def train(config: TrainConfig) -> dict[str, float]:
    """Trains a controller, or continues a run. Returns the metrics of the last update.

    Raises:
        ValueError: the configuration is wrong, or the folder holds another run.
    """
    return Training(config).run()


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains a controller and prints the folder of its policy. A rank above 0 follows rank 0."""
    with open_ranks() as ranks:
        if ranks.follows:
            follow(ranks)
        else:
            _train_from_command_line(arguments, ranks)


def _train_from_command_line(arguments: Sequence[str] | None, ranks: Ranks) -> None:
    config = configuration(TrainConfig, "train_agents.train", __doc__, arguments)
    with refusals():
        training = Training(config, ranks)
    try:
        training.run()
    except KeyboardInterrupt:
        sys.exit(f"interrupted; the same command continues from {config.out}")
    print(f"written: {config.out / 'policy'}")


if __name__ == "__main__":
    main()
