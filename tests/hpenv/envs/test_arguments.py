"""Arguments of the ids: what is refused, and with which error."""

import gymnasium as gym
import pytest
from gymnasium.vector import AutoresetMode

import hpenv  # noqa: F401  registers the ids
from hpenv.benchmark.evaluate import evaluate_controller
from hpenv.envs import cell, grpo_projection, jel
from tests import tiny_student

MODULES = (jel, cell, grpo_projection)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.ID)
@pytest.mark.parametrize("kind", [TypeError, ValueError])
def test_an_unknown_keyword_is_pythons_error_and_ours(module, kind):
    for make in (module.make_env, module.make_vector_env):
        with pytest.raises(
            kind,
            match=rf"{module.ID} got an unexpected keyword argument 'frameskip'; expected some of",
        ):
            make(frameskip=1)
    with pytest.raises(
        kind, match="got unexpected keyword arguments 'b', 'frameskip'; expected some of"
    ):
        module.make_env(frameskip=1, b=2)


def test_an_unknown_keyword_of_a_deployment_is_named():
    with pytest.raises(
        ValueError, match="TrainLoop-JEL-v0 got an unexpected keyword argument 'batch_token'"
    ):
        evaluate_controller(None, jel.ID, {"batch_token": 64}, [0])


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.ID)
def test_make_vec_takes_gymnasiums_arguments(module, tiny):
    student = tiny_student.TINY | {"student": tiny_student.student(1)}
    given = student if module is grpo_projection else tiny | {"preset": "nano"}
    env = gym.make_vec(
        module.ID, num_envs=2, autoreset_mode="SameStep", max_episode_steps=2, **given
    )
    assert env.autoreset_mode == AutoresetMode.SAME_STEP and env.num_decisions == 2
    assert env.spec.kwargs["max_episode_steps"] == 2
