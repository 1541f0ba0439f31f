import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from gymnasium.wrappers import ClipAction, ClipReward
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from stable_baselines3 import A2C, PPO, SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecCheckNan,
    VecMonitor,
    VecNormalize,
)
from torch import nn

import hpenv  # noqa: F401  registers the ids
from hpenv.envs.jel import ID as JEL
from hpenv.infos import row_info
from hpenv.integrations.sb3 import SB3VecEnv, from_sb3
from hpenv.policies import load_policy, save_policy
from tests.probe_envs import TargetTrackingVectorEnv

ZEROS = np.zeros((4, 2), dtype=np.float32)


def make(**arguments) -> SB3VecEnv:
    return SB3VecEnv(TargetTrackingVectorEnv(num_envs=4, horizon=5, **arguments))


def test_types_and_shapes_are_those_stable_baselines3_expects():
    env = make()
    obs = env.reset()
    assert obs.shape == (4, 1) and obs.dtype == np.float32
    obs, rewards, dones, infos = env.step(ZEROS)
    assert obs.shape == (4, 1) and obs.dtype == np.float32
    assert rewards.shape == (4,) and rewards.dtype == np.float32
    assert dones.shape == (4,) and dones.dtype == np.bool_
    assert [type(info) for info in infos] == [dict] * 4
    assert env.observation_space == gym.spaces.Box(0.0, 1.0, (1,), np.float32)
    assert env.action_space == gym.spaces.Box(-1.0, 1.0, (2,), np.float32)


def test_a_finished_episode_hands_over_its_last_observation_and_starts_the_next():
    env = make(noise=0.0)
    env.reset()
    total = np.zeros(4)
    for _ in range(4):
        _, rewards, dones, infos = env.step(ZEROS)
        total += rewards
        assert (
            not dones.any() and "terminal_observation" not in infos[0] and "episode" not in infos[0]
        )
    obs, rewards, dones, infos = env.step(ZEROS)
    total += rewards
    assert dones.all()
    assert np.array_equal(obs, np.zeros((4, 1)))
    for row, info in enumerate(infos):
        assert info["terminal_observation"] == np.float32(1.0)
        assert info["TimeLimit.truncated"] is False
        assert info["episode"] == {"r": pytest.approx(total[row]), "l": 5}
    assert env.step(ZEROS)[0] == pytest.approx(0.2)


def test_only_the_row_that_ended_is_reset():
    env = make(ends={2: 2})
    env.reset()
    env.step(ZEROS)
    obs, _, dones, infos = env.step(ZEROS)
    assert dones.tolist() == [False, False, True, False]
    assert obs[:, 0].tolist() == pytest.approx([0.4, 0.4, 0.0, 0.4])
    assert infos[2]["terminal_observation"] == np.float32(0.4)
    assert infos[2]["divergence"] == 1 and "divergence" not in infos[0]
    assert infos[2]["episode"]["l"] == 2 and "episode" not in infos[1]
    obs, _, dones, infos = env.step(ZEROS)
    assert obs[:, 0].tolist() == pytest.approx([0.6, 0.6, 0.2, 0.6])


def test_a_truncation_is_marked_and_a_termination_is_not():
    env = make(ends={2: 2}, truncates=True)
    env.reset()
    env.step(ZEROS)
    infos = env.step(ZEROS)[3]
    assert [info["TimeLimit.truncated"] for info in infos] == [False] * 4
    for _ in range(3):
        infos = env.step(ZEROS)[3]
    assert [info["TimeLimit.truncated"] for info in infos] == [True, True, False, True]


def test_what_is_returned_is_the_callers_to_write_into():
    env, twin = make(noise=0.0), make(noise=0.0)
    for each in (env, twin):
        each.reset()
    for _ in range(6):
        result, expected = env.step(ZEROS), twin.step(ZEROS)
        for array, same in zip(result[:3], expected[:3], strict=True):
            assert np.array_equal(array, same)
            array[:] = 1


def test_a_seed_is_used_at_the_next_reset_and_once():
    env = make()
    assert env.seed(10) == [10, 11, 12, 13]
    env.reset()
    assert env.env.last_seeds == [10, 11, 12, 13]
    first = env.step(ZEROS)[1]
    env.reset()
    assert env.env.last_seeds == []
    env.seed(10)
    env.reset()
    assert np.array_equal(env.step(ZEROS)[1], first)


def test_no_seed_draws_nothing_from_the_global_generator():
    env = make()
    before = np.random.get_state(legacy=False)["state"]  # noqa: NPY002
    assert env.seed() == [None] * 4
    env.reset()
    after = np.random.get_state(legacy=False)["state"]  # noqa: NPY002
    assert np.array_equal(before["key"], after["key"]) and before["pos"] == after["pos"]


def test_options_reach_the_env_and_must_be_the_same_for_all_rows():
    env = make()
    env.reset()
    env.step(ZEROS)
    env.set_options({"reset_mask": np.array([True, False, False, False])})
    assert env.reset()[:, 0].tolist() == pytest.approx([0.0, 0.2, 0.2, 0.2])
    env.set_options([{"a": 1}, {}, {}, {}])
    with pytest.raises(ValueError, match="same for all"):
        env.reset()


def test_information_is_dealt_out_to_the_rows():
    infos = {
        "step": np.array([50, 100]),
        "_step": np.array([True, True]),
        "reason": np.array([None, "loss"], dtype=object),
        "_reason": np.array([False, True]),
        "panel": {"lr": np.array([1.0, 2.0]), "group": np.array([[1.0, 2.0], [3.0, 4.0]])},
        "_panel": np.array([True, True]),
        "corpus": "abc",
        "_private": 3,
    }
    assert row_info({**infos, "panel": {"lr": np.array([1.0, 2.0])}}, 0, 2) == {
        "step": 50,
        "panel": {"lr": 1.0},
        "corpus": "abc",
        "_private": 3,
    }
    second = row_info(infos, 1, 2)
    assert second["reason"] == "loss"
    assert type(second["step"]) is np.int64 and type(second["panel"]["lr"]) is np.float64
    assert second["panel"]["group"].tolist() == [3.0, 4.0]


def test_attributes_and_methods_are_those_of_the_env():
    env = make()
    assert env.get_attr("horizon") == [5] * 4 and env.get_attr("horizon", indices=[1, 2]) == [5] * 2
    assert not env.has_attr("horizont") and env.has_attr("horizon")
    assert env.env_method("evaluate") == [0.0, 1.0, 2.0, 3.0]
    assert env.env_method("evaluate", indices=2) == [2.0]
    env.set_attr("noise", 0.0)
    assert env.env.noise == 0.0
    with pytest.raises(ValueError, match="all rows"):
        env.set_attr("noise", 1.0, indices=[0])
    assert env.render_mode is None


def test_wrappers_of_the_vector_env_are_found():
    env = make()
    assert env.env_is_wrapped(RecordEpisodeStatistics) == [False] * 4
    wrapped = SB3VecEnv(RecordEpisodeStatistics(TargetTrackingVectorEnv(num_envs=4)))
    assert wrapped.env_is_wrapped(RecordEpisodeStatistics, indices=[0]) == [True]
    assert wrapped.get_attr("horizon", indices=0) == [12]


def test_stable_baselines3s_wrappers_agree_with_its_own_episode_statistics():
    inner = make()
    with pytest.warns(UserWarning, match="already wrapped with a `Monitor`"):
        env = VecCheckNan(VecMonitor(inner), raise_exception=True)
    env.seed(3)
    env.reset()
    for _ in range(5):
        infos = env.step(ZEROS)[3]
    twin = make()
    twin.seed(3)
    twin.reset()
    for _ in range(5):
        expected = twin.step(ZEROS)[3]
    for info, own in zip(infos, expected, strict=True):
        assert info["episode"]["r"] == pytest.approx(own["episode"]["r"], rel=1e-6)
        assert info["episode"]["l"] == own["episode"]["l"]


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, None])
def test_an_env_that_resets_by_itself_is_refused(mode):
    inner = TargetTrackingVectorEnv()
    inner.metadata = {"autoreset_mode": mode}
    with pytest.raises(ValueError, match="DISABLED"):
        SB3VecEnv(inner)


def test_a_single_env_is_refused_with_what_to_make_instead():
    with pytest.raises(
        ValueError,
        match=r"must be a vector env; got .*; use gym\.make_vec\(\.\.\., autoreset_mode='DIS",
    ):
        SB3VecEnv(gym.make("CartPole-v1"))


def test_an_async_vector_env_is_refused_with_what_to_make_instead():
    class Elsewhere(AsyncVectorEnv):
        metadata = {"autoreset_mode": AutoresetMode.DISABLED}

        def __init__(self) -> None:
            self.closed = True

    with pytest.raises(ValueError, match="give single envs to stable-baselines3's SubprocVecEnv"):
        SB3VecEnv(Elsewhere())


def test_closing_closes_the_env():
    env = make()
    env.close()
    assert env.env.closed


@pytest.mark.parametrize(
    ("algorithm", "arguments"),
    [
        (PPO, {"n_steps": 4, "batch_size": 8, "n_epochs": 1}),
        (SAC, {"learning_starts": 4, "batch_size": 8, "buffer_size": 100, "train_freq": 2}),
    ],
)
def test_its_algorithms_train_on_a_run_with_a_decision_every_step(algorithm, arguments, tiny):
    """Across the end of an episode, with every number that they see finite."""
    env = SB3VecEnv(
        gym.make_vec(
            "TrainLoop-Cell-v0",
            num_envs=2,
            autoreset_mode="DISABLED",
            **tiny | {"preset": "nano", "interval": 1, "num_steps": 5},
            observation="full_position",
        )
    )
    model = algorithm(
        "MlpPolicy", VecCheckNan(env, raise_exception=True), seed=0, device="cpu", **arguments
    )
    before = [parameter.detach().clone() for parameter in model.policy.parameters()]
    model.learn(16)
    changed = [
        not left.equal(right) for left, right in zip(before, model.policy.parameters(), strict=True)
    ]
    assert any(changed) and all(
        parameter.isfinite().all() for parameter in model.policy.parameters()
    )
    assert model.num_timesteps == 16 and len(model.ep_info_buffer) == 2
    action, _ = model.predict(env.reset(), deterministic=True)
    assert action.shape == (2, len(env.get_attr("action_names", 0)[0])) and (abs(action) <= 1).all()


class Constant:
    """A predictor that plays one action."""

    def predict(self, obs, state=None, episode_start=None, deterministic=False):
        return np.full((len(obs), 2), 0.3, dtype=np.float32), state


@pytest.mark.parametrize("normalized", [False, True])
def test_evaluate_policy_gives_the_returns_of_the_env(normalized, tiny):
    """Without a warning, as with DummyVecEnv and Monitor.

    Under VecNormalize the numbers are those of before the normalization.
    """
    rewards = []
    for made in (
        SB3VecEnv(gym.make_vec(JEL, num_envs=2, autoreset_mode="DISABLED", **tiny)),
        DummyVecEnv([lambda: Monitor(gym.make(JEL, **tiny))] * 2),
    ):
        env = VecNormalize(made, norm_reward=True) if normalized else made
        env.seed(5)
        rewards.append(
            evaluate_policy(Constant(), env, n_eval_episodes=2, return_episode_rewards=True)
        )
    assert rewards[0][0] == pytest.approx(rewards[1][0], rel=1e-4) and rewards[0][1] == rewards[1][
        1
    ] == [3, 3]


def sync(**arguments) -> SB3VecEnv:
    vector = {"autoreset_mode": AutoresetMode.DISABLED}
    return SB3VecEnv(
        gym.make_vec(JEL, num_envs=2, vectorization_mode="sync", vector_kwargs=vector, **arguments)
    )


def test_attributes_and_methods_of_single_envs_are_those_of_each(tiny):
    env, population = (
        sync(**tiny),
        SB3VecEnv(gym.make_vec(JEL, num_envs=2, autoreset_mode="DISABLED", **tiny)),
    )
    for each in (env, population):
        each.seed(3)
        each.reset()
    assert (
        env.get_attr("action_names")
        == population.get_attr("action_names")
        == [("lr", "weight_decay")] * 2
    )
    assert env.get_attr("action_names", indices=1) == [("lr", "weight_decay")]
    assert not env.has_attr("action_namez") and env.render_mode is None
    assert env.env_method("evaluate") == pytest.approx(population.env_method("evaluate"), rel=1e-6)
    assert env.env_method("evaluate")[0] != env.env_method("evaluate")[1]
    assert env.env_method("evaluate", indices=[1]) == env.env_method("evaluate")[1:]
    env.set_attr("tag", "a")
    env.set_attr("tag", "b", indices=[1])
    assert env.get_attr("tag") == ["a", "b"]


def test_wrappers_of_single_envs_are_found(tiny):
    env = SB3VecEnv(
        gym.make_vec(
            JEL,
            num_envs=2,
            vectorization_mode="sync",
            vector_kwargs={"autoreset_mode": AutoresetMode.DISABLED},
            wrappers=[lambda env: ClipReward(env, -1, 1)],
            **tiny,
        )
    )
    assert env.env_is_wrapped(ClipReward) == [True] * 2 and env.env_is_wrapped(
        ClipAction, indices=[0]
    ) == [False]


@pytest.mark.parametrize("kind", ["population", "sync"])
def test_images_are_those_of_the_rows(kind, tiny):
    arguments = tiny | {"render_mode": "rgb_array"}
    env = (
        sync(**arguments)
        if kind == "sync"
        else SB3VecEnv(gym.make_vec(JEL, num_envs=2, autoreset_mode="DISABLED", **arguments))
    )
    env.reset()
    images = env.get_images()
    assert len(images) == 2 and all(
        image.dtype == np.uint8 and image.shape == images[0].shape for image in images
    )
    assert env.render().shape[0] == 2 * images[0].shape[0]  # stable-baselines3 tiles them


def test_lines_are_no_images(tiny):
    env = SB3VecEnv(
        gym.make_vec(JEL, num_envs=2, autoreset_mode="DISABLED", render_mode="ansi", **tiny)
    )
    env.reset()
    with pytest.warns(UserWarning, match="rgb_array"):
        assert env.get_images() == [None, None]


def test_rows_that_are_not_reset_keep_their_episode():
    env = make(noise=0.0)
    env.reset()
    total = env.step(ZEROS)[1]
    env.set_options({"reset_mask": np.array([True, False, False, False])})
    env.reset()
    for _ in range(4):
        _, rewards, dones, infos = env.step(ZEROS)
        total += rewards
    assert dones.tolist() == [False, True, True, True]
    assert infos[1]["episode"] == {"r": pytest.approx(total[1]), "l": 5}


def test_equal_options_that_hold_arrays_are_the_same_for_all_rows():
    env = make()
    env.reset()
    env.step(ZEROS)
    env.set_options([{"reset_mask": np.array([True, False, False, False])} for _ in range(4)])
    assert env.reset()[:, 0].tolist() == pytest.approx([0.0, 0.2, 0.2, 0.2])
    env.set_options([{"reset_mask": np.eye(4, dtype=bool)[row]} for row in range(4)])
    with pytest.raises(ValueError, match="same for all"):
        env.reset()


def trained(env=None, policy="MlpPolicy", algorithm=PPO, **arguments):
    sizes = {"n_steps": 5} if algorithm is A2C else {"n_steps": 5, "batch_size": 20, "n_epochs": 1}
    model = algorithm(
        policy, make() if env is None else env, seed=0, device="cpu", **sizes, **arguments
    )
    return model.learn(20)


OBSERVATIONS = np.linspace(0, 1, 7, dtype=np.float32)[:, None]


@pytest.mark.parametrize("algorithm", [PPO, A2C])
@pytest.mark.parametrize("net_arch", [[8], {"pi": [6, 5], "vf": [7]}])
def test_an_exported_actor_acts_as_the_model_does(algorithm, net_arch, tmp_path):
    arguments = {
        "learning_rate": 0.05,
        "policy_kwargs": {"net_arch": net_arch, "activation_fn": nn.Tanh},
    }
    model = trained(algorithm=algorithm, **arguments)
    with torch.no_grad():
        model.policy.action_net.bias[0] += 2.0  # so that the clip is reached
    expected, _ = model.predict(OBSERVATIONS, deterministic=True)
    assert expected.max() == 1.0
    save_policy(from_sb3(model), tmp_path / "policy")
    assert np.array_equal(load_policy(tmp_path / "policy").act(OBSERVATIONS), expected)


def test_an_exported_actor_is_a_copy():
    model = trained()
    policy = from_sb3(model)
    before = policy.act(OBSERVATIONS)
    with torch.no_grad():
        model.policy.action_net.bias += 0.1
    assert np.array_equal(policy.act(OBSERVATIONS), before)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            lambda: SAC("MlpPolicy", make(), device="cpu"),
            "must be the MlpPolicy of PPO or A2C; got a SACPolicy",
        ),
        (
            lambda: trained(policy_kwargs={"activation_fn": nn.ReLU}),
            r"hidden layers must be tanh; got .*ReLU",
        ),
        (
            lambda: trained(use_sde=True),
            "must be a DiagGaussianDistribution; got a StateDependentNoiseDistribution",
        ),
        (
            lambda: trained(VecNormalize(make())),
            "observations must not be normalized, .* norm_obs=False",
        ),
    ],
)
def test_an_actor_that_cannot_be_exported_is_refused(model, message):
    with pytest.raises(ValueError, match=message):
        from_sb3(model())


def test_an_actor_under_normalized_rewards_is_exported():
    model = trained(VecNormalize(make(), norm_obs=False))
    assert np.array_equal(
        from_sb3(model).act(OBSERVATIONS), model.predict(OBSERVATIONS, deterministic=True)[0]
    )


@pytest.mark.parametrize(
    "route", ["population", "dummy", pytest.param("processes", marks=pytest.mark.slow)]
)
def test_ppo_is_trained_saved_loaded_and_continued(route, tiny, tmp_path):
    """On the three VecEnvs that one has.

    `hpenv:<id>` is known to a process that has not imported hpenv.
    """
    if route == "population":
        env = SB3VecEnv(gym.make_vec(f"hpenv:{JEL}", num_envs=2, autoreset_mode="DISABLED", **tiny))
    elif route == "dummy":
        env = make_vec_env(f"hpenv:{JEL}", n_envs=2, env_kwargs=tiny)
    else:
        processes = {"vec_env_cls": SubprocVecEnv, "vec_env_kwargs": {"start_method": "spawn"}}
        env = make_vec_env(f"hpenv:{JEL}", n_envs=2, env_kwargs=tiny, **processes)
    model = PPO("MlpPolicy", env, n_steps=3, batch_size=6, n_epochs=1, seed=0, device="cpu")
    model.learn(12)
    assert [episode["l"] for episode in model.ep_info_buffer] == [3] * 4
    observations = env.reset()
    model.save(tmp_path / "model")
    loaded = PPO.load(tmp_path / "model", env=env, device="cpu")
    expected, _ = model.predict(observations, deterministic=True)
    assert np.array_equal(loaded.predict(observations, deterministic=True)[0], expected)
    loaded.learn(6, reset_num_timesteps=False)
    assert loaded.num_timesteps == 18
    assert not np.array_equal(loaded.predict(observations, deterministic=True)[0], expected)
    env.close()
