import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.vec_env import VecNormalize

import hpenv  # noqa: F401  registers the ids
from hpenv.envs.cell import ID as CELL
from hpenv.envs.grpo_projection import ID as PROJECTION
from hpenv.envs.jel import ID as JEL
from hpenv.integrations.sb3 import SB3VecEnv
from hpenv.integrations.sb3_callback import HeldOutCallback
from hpenv.posttraining.sandbox import kernel, syscalls
from tests import tiny_student
from tests.probe_envs import TargetTrackingVectorEnv

MISSING = kernel.missing_support(syscalls.NUMBERS)
executes = pytest.mark.skipif(bool(MISSING), reason=f"programs cannot be executed here: {MISSING}")
TINY = {
    "data": "synthetic",
    "batch_tokens": 32,
    "sequence_length": 16,
    "eval_tokens": 256,
    "num_steps": 4,
}
SMALL = {
    JEL: TINY | {"interval": 2},
    CELL: TINY | {"preset": "nano", "interval": 2},
    PROJECTION: tiny_student.TINY | {"num_steps": 2, "num_samples": 2, "num_probe_problems": 1},
}
EVERY_ID = pytest.mark.parametrize("id", [JEL, CELL, pytest.param(PROJECTION, marks=executes)])


class Lines(KVWriter):
    """Keeps every dump."""

    def __init__(self) -> None:
        self.rows = []

    def write(self, key_values, key_excluded, step=0) -> None:
        self.rows.append({"step": step, **key_values})

    def of(self, key):
        return [(row["step"], row[key]) for row in self.rows if key in row]


class ScoredVectorEnv(TargetTrackingVectorEnv):
    """Its runs end with these held-out scores, one after the other."""

    def __init__(self, scores, **arguments) -> None:
        super().__init__(num_envs=1, horizon=2, **arguments)
        self.scores = iter(scores)

    def step(self, actions):
        obs, rewards, terminated, truncated, infos = super().step(actions)
        if terminated.all():
            infos |= {"held_out": np.array([next(self.scores)]), "_held_out": np.array([True])}
        return obs, rewards, terminated, truncated, infos


def population(id, num_envs=2, **arguments):
    return SB3VecEnv(
        gym.make_vec(id, num_envs=num_envs, autoreset_mode="DISABLED", **SMALL[id] | arguments)
    )


def train(env, callback, num_timesteps):
    """A PPO of two decisions a row and update, and everything that it logged."""
    model = PPO(
        "MlpPolicy", env, n_steps=2, batch_size=2 * env.num_envs, n_epochs=1, seed=0, device="cpu"
    )
    lines = Lines()
    model.set_logger(Logger(None, [lines]))
    model.learn(num_timesteps, callback=callback)
    return model, lines


@pytest.mark.filterwarnings("error:Path .* does not exist")
@pytest.mark.parametrize(("lower_is_better", "best", "at"), [(True, 1.0, 4), (False, 3.0, 2)])
def test_the_model_whose_runs_score_best_is_kept(lower_is_better, best, at, tmp_path):
    env = SB3VecEnv(TargetTrackingVectorEnv(num_envs=1, horizon=2))
    callback = HeldOutCallback(
        SB3VecEnv(ScoredVectorEnv([4.0, 2.0, 1.0, 1.0, 0.0, 4.0])),
        lower_is_better=lower_is_better,
        n_eval_episodes=2,
        eval_freq=2,
        best_model_save_path=tmp_path / "new",
    )
    _, lines = train(env, callback, 6)
    assert lines.of("eval/held_out") == [(2, 3.0), (4, 1.0), (6, 2.0)]
    assert (callback.best_held_out, callback.last_held_out) == (best, 2.0)
    assert PPO.load(tmp_path / "new" / "best_model", device="cpu").num_timesteps == at


def test_scores_of_training_runs_are_logged():
    env = SB3VecEnv(ScoredVectorEnv([5.0, 7.0, 9.0]))
    eval_env = SB3VecEnv(ScoredVectorEnv([]))
    model, lines = train(env, HeldOutCallback(eval_env, lower_is_better=True), 6)
    # Logged after every update.
    assert [score for _, score in lines.of("rollout/held_out")] == [5.0, 7.0, 9.0]
    assert [episode["held_out"] for episode in model.ep_info_buffer] == [5.0, 7.0, 9.0]


def test_an_eval_env_without_scores_is_refused():
    env = SB3VecEnv(TargetTrackingVectorEnv(num_envs=1, horizon=2))
    callback = HeldOutCallback(
        SB3VecEnv(TargetTrackingVectorEnv(num_envs=1)), lower_is_better=True, eval_freq=2
    )
    with pytest.raises(ValueError, match="make its envs with evaluate_at_end=True"):
        train(env, callback, 2)


@pytest.mark.parametrize("name", ["n_eval_episodes", "eval_freq"])
def test_counts_below_one_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1; got 0"):
        HeldOutCallback(SB3VecEnv(ScoredVectorEnv([])), lower_is_better=True, **{name: 0})


def test_the_eval_env_normalizes_as_the_training_env_does():
    env = VecNormalize(SB3VecEnv(TargetTrackingVectorEnv(num_envs=1, horizon=2)))
    eval_env = VecNormalize(SB3VecEnv(ScoredVectorEnv([1.0])), training=False)
    train(env, HeldOutCallback(eval_env, lower_is_better=True, n_eval_episodes=1, eval_freq=4), 4)
    assert eval_env.obs_rms.mean == env.obs_rms.mean and eval_env.obs_rms.mean != 0


@EVERY_ID
def test_the_score_is_that_of_the_run_that_ended(id):
    env = gym.make_vec(id, num_envs=1, autoreset_mode="DISABLED", **SMALL[id])
    action = np.full(env.action_space.shape, 0.3, dtype=np.float32)
    env.reset(seed=[7])
    while not env.step(action)[2].all():
        pass
    adapter = population(id, 1, evaluate_at_end=True)
    adapter.seed(7)
    adapter.reset()
    infos = adapter.step(action)[3]
    while "episode" not in infos[0]:
        infos = adapter.step(action)[3]
    assert infos[0]["episode"]["held_out"] == env.unwrapped.evaluate()[0]


@EVERY_ID
def test_ppo_is_judged_by_held_out_scores_on_every_id(id, tmp_path):
    eval_env = population(id, 1, evaluate_at_end=True)
    callback = HeldOutCallback(
        eval_env,
        lower_is_better=id != PROJECTION,
        n_eval_episodes=1,
        eval_freq=2,
        best_model_save_path=tmp_path,
    )
    _, lines = train(population(id, evaluate_at_end=True), callback, 4)
    assert np.isfinite(
        [score for _, score in lines.of("eval/held_out") + lines.of("rollout/held_out")]
    ).all()
    assert [step for step, _ in lines.of("eval/held_out")] == [4] and len(
        lines.of("rollout/held_out")
    ) == 1
    assert (tmp_path / "best_model.zip").exists()


def test_single_envs_report_scores_as_well():
    """On the VecEnvs of stable-baselines3, and to its Monitor."""
    arguments = {
        "env_kwargs": SMALL[JEL] | {"evaluate_at_end": True},
        "monitor_kwargs": {"info_keywords": ("held_out",)},
    }
    env, eval_env = make_vec_env(JEL, n_envs=2, **arguments), make_vec_env(JEL, **arguments)
    callback = HeldOutCallback(eval_env, lower_is_better=True, n_eval_episodes=1, eval_freq=2)
    model, lines = train(env, callback, 4)
    scores = [episode["held_out"] for episode in model.ep_info_buffer]
    assert lines.of("rollout/held_out")[0][1] == pytest.approx(np.mean(scores)) and min(scores) > 1
    assert callback.last_held_out == callback.best_held_out > 1


@pytest.mark.parametrize("way", ["single", "sync"])
def test_a_run_that_a_time_limit_cuts_off_has_no_score(way):
    """`gym.make(..., max_episode_steps=...)` wraps the env, which does not notice the early end."""
    limited = SMALL[JEL] | {"evaluate_at_end": True, "max_episode_steps": 1}

    def made():
        if way == "single":
            return make_vec_env(JEL, env_kwargs=limited)
        mode = {"autoreset_mode": AutoresetMode.DISABLED}
        return SB3VecEnv(
            gym.make_vec(JEL, num_envs=1, vectorization_mode="sync", vector_kwargs=mode, **limited)
        )

    _, lines = train(
        made(), HeldOutCallback(population(JEL, 1, evaluate_at_end=True), lower_is_better=True), 4
    )
    assert lines.rows and not lines.of("rollout/held_out")
    callback = HeldOutCallback(made(), lower_is_better=True, n_eval_episodes=1, eval_freq=2)
    with pytest.raises(
        ValueError, match="got a TimeLimit, at which no score is measured; leave out max_ep"
    ):
        train(made(), callback, 2)


def test_a_limit_that_the_population_keeps_itself_has_scores():
    limited = {"evaluate_at_end": True, "max_episode_steps": 1}
    callback = HeldOutCallback(
        population(JEL, 1, **limited), lower_is_better=True, n_eval_episodes=1, eval_freq=2
    )
    _, lines = train(population(JEL, 1, **limited), callback, 2)
    assert callback.last_held_out > 1 and lines.of("rollout/held_out")[0][1] > 1


def test_a_limit_longer_than_the_run_has_scores():
    limited = {"env_kwargs": SMALL[JEL] | {"evaluate_at_end": True, "max_episode_steps": 9}}
    callback = HeldOutCallback(
        make_vec_env(JEL, **limited), lower_is_better=True, n_eval_episodes=1, eval_freq=2
    )
    train(make_vec_env(JEL, **limited), callback, 2)
    assert callback.last_held_out > 1
