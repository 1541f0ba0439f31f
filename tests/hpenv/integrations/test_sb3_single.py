"""Vector environments of single ones, their wrappers, images and episodes."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import ClipAction, ClipReward

import hpenv  # noqa: F401  registers the ids
from hpenv.envs.jel import ID as JEL
from hpenv.integrations.sb3 import SB3VecEnv
from tests.hpenv.integrations.tracked import ZEROS, make


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
