"""Callback of stable-baselines3 that judges a model by the held-out scores of its runs.

A return is a proxy: the decrease of a loss that the controller sees. The held-out score is the
goal. An env made with `evaluate_at_end=True` puts it into the last info of an episode.
"""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np
from gymnasium.wrappers import TimeLimit

from hpenv.integrations.sb3 import HELD_OUT

try:
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.evaluation import evaluate_policy
    from stable_baselines3.common.vec_env import VecEnv, sync_envs_normalization
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "hpenv.integrations.sb3_callback needs stable-baselines3; "
        "install it with: pip install 'hpenv[agents]'",
        name=error.name,
    ) from error


class HeldOutCallback(BaseCallback):
    """Logs held-out scores and saves the model with the best score.

    `rollout/held_out` is the mean score of the training episodes that ended since the last log, if
    the training env reports scores. `eval/held_out` is the mean score of `n_eval_episodes` episodes
    of the eval env. An episode that the TimeLimit of `gym.make(..., max_episode_steps=...)` cuts
    off has no score, because the env inside the wrapper does not notice the end. Such an episode is
    left out of `rollout/held_out`, and is an error in the eval env.

    Args:
        eval_env: VecEnv of envs made with `evaluate_at_end=True`. It is not the training env but
            has the same wrappers.
        lower_is_better: True for bits per byte (TrainLoop-JEL-v0, TrainLoop-Cell-v0), False for the
            score of TrainLoop-GRPOProjection-v0.
        n_eval_episodes: episodes of an evaluation, shared among the rows of the eval env.
        eval_freq: calls of the training env's `step` between two evaluations.
        best_model_save_path: folder of the best model so far, `best_model.zip`. It is made if it is
            missing. None: the model is not saved.
        deterministic: True evaluates the model's mean actions.

    Attributes:
        best_held_out: best mean score so far.
        last_held_out: last mean score, None before the first evaluation.

    Example:
        >>> options = {"lower_is_better": True, "eval_freq": 120}
        >>> callback = HeldOutCallback(eval_env, **options)  # doctest: +SKIP
        >>> model.learn(12_000, callback=callback)  # doctest: +SKIP
    """

    def __init__(
        self,
        eval_env: VecEnv,
        *,
        lower_is_better: bool,
        n_eval_episodes: int = 5,
        eval_freq: int = 10_000,
        best_model_save_path: str | os.PathLike[str] | None = None,
        deterministic: bool = True,
    ) -> None:
        super().__init__()
        for name, count in (("n_eval_episodes", n_eval_episodes), ("eval_freq", eval_freq)):
            if count < 1:
                raise ValueError(f"{name} must be at least 1; got {count}")

        self.eval_env, self.lower_is_better = eval_env, lower_is_better
        self.n_eval_episodes, self.eval_freq = n_eval_episodes, eval_freq
        self.best_model_save_path, self.deterministic = best_model_save_path, deterministic

        self.best_held_out = math.inf if lower_is_better else -math.inf
        self.last_held_out: float | None = None

    def _on_step(self) -> bool:
        for row, (info, done) in enumerate(
            zip(self.locals["infos"], self.locals["dones"], strict=True)
        ):
            if done and HELD_OUT in info and not _hit_time_limit(self.training_env, row, info):
                self.logger.record_mean(f"rollout/{HELD_OUT}", float(info[HELD_OUT]))

        if self.n_calls % self.eval_freq == 0:
            self._evaluate()
        return True

    def _evaluate(self) -> None:
        if self.model.get_vec_normalize_env() is not None:
            sync_envs_normalization(self.training_env, self.eval_env)

        score = float(np.mean(self._scores()))
        self.last_held_out = score
        self.logger.record(f"eval/{HELD_OUT}", score)
        self.logger.record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        self.logger.dump(self.num_timesteps)

        if (score < self.best_held_out) if self.lower_is_better else (score > self.best_held_out):
            self.best_held_out = score
            if self.best_model_save_path is not None:
                os.makedirs(self.best_model_save_path, exist_ok=True)
                self.model.save(os.path.join(self.best_model_save_path, "best_model"))

    def _scores(self) -> list[float]:
        """Returns the held-out score of each episode of an evaluation.

        Raises:
            ValueError: the eval env reports no scores, or a time limit cuts its episodes off.
        """
        scores: list[float] = []

        def keep(locals_: dict[str, Any], _: dict[str, Any]) -> None:
            if locals_["done"]:
                if HELD_OUT not in locals_["info"]:
                    raise ValueError(
                        "eval_env must report held-out scores; "
                        "make its envs with evaluate_at_end=True"
                    )
                if _hit_time_limit(self.eval_env, locals_["i"], locals_["info"]):
                    raise ValueError(
                        "eval_env must let its runs end by themselves; got a TimeLimit, at which "
                        "no score is measured; leave out max_episode_steps and give num_steps, or "
                        "use gym.make_vec"
                    )
                scores.append(float(locals_["info"][HELD_OUT]))

        evaluate_policy(
            self.model,
            self.eval_env,
            n_eval_episodes=self.n_eval_episodes,
            deterministic=self.deterministic,
            callback=keep,
            warn=False,  # about a missing Monitor, which is for returns only
        )
        return scores


def _hit_time_limit(env: VecEnv, row: int, info: dict[str, Any]) -> bool:
    """Returns True if a TimeLimit wrapper ended a row's episode.

    A population applies its `max_episode_steps` without this wrapper.
    """
    return info.get("TimeLimit.truncated", False) and env.env_is_wrapped(TimeLimit, row)[0]
