import gymnasium as gym
import pytest

import hpenv
from tests.train_agents.short_online import ENV, tiny
from train_agents.online import run_online

gym.register_envs(hpenv)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return (*run_online(tiny(folder), ENV), folder)
