"""Trains PPO or SAC of stable-baselines3: `python -m train_agents.train_sb3 --algorithm sac`.

The hyperparameters are the library's defaults, but for what an episode of a dozen decisions needs:
PPO updates after whole episodes, and SAC draws its first episodes at random.

The program writes these files to its folder:

- `config.json`.
- `model.zip` (and `replay.pkl` of SAC) after every round of episodes. An interrupted run continues
  from them. They are files of stable-baselines3, which pickles: continue only what you trained.
- TensorBoard events of stable-baselines3.
- `policy/` at the end, without pickle. `hpenv.benchmark` and all programs that attach a controller
  read it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from hpenv.benchmark.command_line import check_counts, configuration, refusals
from hpenv.benchmark.environments import make_population, parse_assignments, spec_of
from hpenv.benchmark.facts import environment_facts
from hpenv.benchmark.progress import progress
from hpenv.integrations.sb3 import SB3VecEnv
from hpenv.policies.sb3_mlp import SB3MLP
from hpenv.policies.store import save_policy
from train_agents import outputs
from train_agents.train import JEL, META_TOKENS

ALGORITHMS: dict[str, type[BaseAlgorithm]] = {"ppo": PPO, "sac": SAC}
#: Fields of the configuration that may differ when a run continues.
MAY_CHANGE = ("num_episodes",)
MODEL, REPLAY = "model.zip", "replay.pkl"


@dataclass(frozen=True)
class TrainConfig:
    """Configuration of a training run with stable-baselines3."""

    algorithm: Literal["ppo", "sac"] = "ppo"  # key of ALGORITHMS
    env: str = JEL  # a registered id
    # arguments of the env, key=value; by default batch_tokens=128 for TrainLoop-JEL-v0
    env_kwargs: tuple[str, ...] | None = None
    num_episodes: int = 400  # a multiple of num_envs
    num_envs: int = 8  # runs that train together
    seed: int = 0  # seed of the algorithm and of all episodes
    out: Path = Path("runs/sb3")  # folder; a run of the same configuration continues
    threads: int = 1  # torch threads

    def __post_init__(self) -> None:
        """Checks the counts."""
        check_counts(self, "num_episodes", "num_envs", "threads")
        check_counts(self, "seed", least=0)
        if self.num_episodes % self.num_envs:
            raise ValueError(
                f"num_episodes must be a multiple of num_envs={self.num_envs}; "
                f"got {self.num_episodes}"
            )

    @property
    def env_arguments(self) -> dict[str, Any]:
        """Arguments of the env."""
        if self.env_kwargs is None:
            return {"batch_tokens": META_TOKENS} if self.env == JEL else {}
        return parse_assignments(self.env_kwargs)


def hyperparameters(algorithm: str, num_decisions: int, num_envs: int) -> dict[str, Any]:
    """Returns the arguments of an algorithm that are not the library's defaults.

    Args:
        algorithm: key of ALGORITHMS.
        num_decisions: of an episode.
        num_envs: number of runs that train together.
    """
    if algorithm == "ppo":
        half = max(2, num_decisions * num_envs // 2)
        return {"n_steps": num_decisions, "batch_size": half, "gae_lambda": 1.0}
    # As many gradient steps as decisions; the first two rounds of episodes are random.
    first = 2 * num_decisions * num_envs
    return {"learning_starts": first, "gradient_steps": -1, "buffer_size": 100_000}


def _model(config: TrainConfig, env: SB3VecEnv, num_decisions: int) -> BaseAlgorithm:
    """Returns the model of an interrupted run, or a new one."""
    algorithm, file = ALGORITHMS[config.algorithm], config.out / MODEL
    log = str(config.out / "tensorboard")
    if not file.is_file():
        chosen = hyperparameters(config.algorithm, num_decisions, config.num_envs)
        return algorithm(
            "MlpPolicy", env, seed=config.seed, device="cpu", tensorboard_log=log, **chosen
        )
    model = algorithm.load(file, env, device="cpu", tensorboard_log=log)
    if isinstance(model, OffPolicyAlgorithm) and (config.out / REPLAY).is_file():
        model.load_replay_buffer(config.out / REPLAY)
    env.seed(config.seed + model.num_timesteps)  # episodes that the run has not seen
    return model


def _save(model: BaseAlgorithm, folder: Path) -> None:
    """Writes the model and its replay buffer, each in one step."""
    parts: dict[str, Any] = {MODEL: model.save}
    if isinstance(model, OffPolicyAlgorithm):
        parts[REPLAY] = model.save_replay_buffer
    for name, write in parts.items():
        unfinished = folder / f"unfinished-{name}"
        write(unfinished)
        unfinished.replace(folder / name)


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains to the number of episodes, and saves the policy."""
    config = configuration(TrainConfig, "train_agents.train_sb3", __doc__, arguments)
    torch.set_num_threads(config.threads)
    values = asdict(config) | {"env_kwargs": config.env_arguments}
    del values["out"]
    written = (MODEL, REPLAY, "tensorboard", "policy")
    with refusals():
        outputs.check_run_folder(config.out, values, MAY_CHANGE, written)
        population = make_population(config.env, config.num_envs, config.env_arguments)
    outputs.claim(
        config.out,
        values,
        environment_facts(config.env_arguments, population.plant.corpus_digest),
    )

    per_round = population.num_decisions * config.num_envs
    model = _model(config, SB3VecEnv(population), population.num_decisions)
    rounds, done = config.num_episodes // config.num_envs, model.num_timesteps // per_round
    try:
        with progress(rounds, "rounds of episodes", done) as advance:
            for _ in range(done, rounds):
                model.learn(per_round, reset_num_timesteps=False)
                _save(model, config.out)
                advance(1, config.algorithm)
    except KeyboardInterrupt:
        sys.exit(f"interrupted; the same command continues from {config.out}")

    save_policy(SB3MLP.from_sb3(model, spec=spec_of(population)), config.out / "policy")
    print(f"written: {config.out / 'policy'}")


if __name__ == "__main__":
    main()
