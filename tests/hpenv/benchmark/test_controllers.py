"""Tests of the controller interface: what it asks of an env, learning in a run, names."""

import numpy as np
import pytest
from stable_baselines3 import A2C, SAC
from stable_baselines3.common.vec_env import VecNormalize

from agents.sidecar import Sidecar
from agents.sidecar_config import SidecarConfig
from hpenv.benchmark.controllers import load_controller
from hpenv.benchmark.environments import columns_of, make_population, spec_of
from hpenv.benchmark.evaluate import evaluate_controller
from hpenv.integrations.sb3 import SB3Controller, SB3VecEnv, from_sb3
from hpenv.policies import ControllerSpec, Neutral

JEL, CELL = "TrainLoop-JEL-v0", "TrainLoop-Cell-v0"
TINY = {
    "data": "synthetic",
    "batch_tokens": 32,
    "sequence_length": 16,
    "num_steps": 6,
    "eval_tokens": 64,
}
SMALL = SidecarConfig(hidden_size=4, evidence=0.0, delay=0)


class Own:
    """Notes what it is told."""

    spec = ControllerSpec(channels=[("lr", "run")], observation=["progress"], interval=2)

    def __init__(self) -> None:
        self.columns: list[object] = []
        self.lessons: list[tuple[np.ndarray, np.ndarray]] = []

    def reset(self, columns) -> None:
        self.columns.append(columns)

    def act(self, observations):
        return 0.5 - observations

    def learn(self, rewards, alive) -> None:
        self.lessons.append((rewards, alive))


def test_a_controller_gets_the_environment_that_it_asks_for():
    own = Own()
    rows = evaluate_controller(own, JEL, TINY, [3, 4, 5], max_rows=2)
    assert [columns.num_runs for columns in own.columns] == [2, 1]
    first = own.columns[0]
    assert (first.num_decisions, first.observation_names) == (3, ("progress",))
    assert (first.action_names, first.action_kinds, first.action_immediate) == (
        ("lr",),
        ("scale",),
        (False,),
    )
    expected = 100.0 ** (0.5 - np.array([0.0, 2 / 6, 4 / 6], dtype=np.float32))
    assert np.allclose(rows[0]["panel"]["lr"], expected, rtol=1e-5)


def test_arguments_that_are_given_come_before_those_that_are_asked_for():
    own = Own()
    evaluate_controller(own, JEL, TINY | {"interval": 3}, [0])
    assert own.columns[0].num_decisions == 2


def test_a_controller_learns_from_each_window_of_the_runs_that_took_it():
    own = Own()
    wild = TINY | {"base_lr": 1e30, "optimizer": "sgd", "schedule": "none"}
    (row,) = evaluate_controller(own, JEL, wild, [0])
    assert row["divergence_reason"] is not None
    alive = [bool(mask[0]) for _, mask in own.lessons]
    assert alive[0] and not alive[-1] and len(alive) == 3
    assert own.lessons[0][0][0] <= -1.0  # the penalty of the divergence


def test_the_sidecar_scored_as_a_controller_is_the_sidecar_driven_by_hand():
    arguments = TINY | {"channels": "layer_lr", "preset": "nano"}
    (row,) = evaluate_controller(Sidecar(SMALL, seed=4), CELL, arguments, [2])
    env = make_population(CELL, 1, arguments)
    observations, _ = env.reset(seed=[2])
    sidecar = Sidecar(SMALL, seed=4)
    sidecar.reset(columns_of(env))
    alive = np.ones(1, dtype=bool)
    while alive.any():
        observations, rewards, terminated, _, _ = env.step(sidecar.act(observations))
        sidecar.learn(rewards, alive)
        alive = alive & ~terminated
    assert sidecar.agent.num_updates == 6
    assert row["bpb"] == env.evaluate()[0]
    assert row["bpb"] != evaluate_controller(None, CELL, arguments, [2])[0]["bpb"]


@pytest.mark.parametrize("algorithm", [A2C, SAC])
def test_a_model_of_stable_baselines3_is_a_controller(algorithm):
    arguments = TINY | {"interval": 2}
    envs = SB3VecEnv(make_population(JEL, 2, arguments))
    model = algorithm("MlpPolicy", envs, seed=0)
    rows = evaluate_controller(SB3Controller(model), JEL, arguments, [0, 1])
    assert rows != evaluate_controller(None, JEL, arguments, [0, 1])
    if algorithm is A2C:
        assert rows == evaluate_controller(from_sb3(model), JEL, arguments, [0, 1])


def test_observations_of_a_model_are_normalized_as_in_its_training():
    arguments = TINY | {"interval": 2}
    envs = VecNormalize(SB3VecEnv(make_population(JEL, 2, arguments)), norm_reward=False)
    model = A2C("MlpPolicy", envs, seed=0, n_steps=3)
    model.learn(12)
    shown = np.array([[0.7]], dtype=np.float32)
    expected, _ = model.predict(envs.normalize_obs(shown), deterministic=True)
    plain, _ = model.predict(shown, deterministic=True)
    acted = SB3Controller(model).act(shown)
    assert np.array_equal(acted, expected) and not np.array_equal(acted, plain)


def test_the_spec_of_an_environment_makes_the_same_environment():
    arguments = TINY | {"preset": "nano", "channels": "layer_lr", "num_registers": 2, "interval": 2}
    env = make_population(CELL, 1, arguments | {"observation": ["progress", "registers"]})
    spec = spec_of(env)
    again = make_population(CELL, 1, TINY | {"preset": "nano"} | spec.arguments())
    spec.check(columns_of(again))
    assert again.action_names == env.action_names and again.interval == 2


def test_a_controller_is_found_in_a_module_and_in_a_file(tmp_path):
    assert isinstance(load_controller("agents.sidecar:Sidecar"), Sidecar)
    file = tmp_path / "mine.py"
    file.write_text(
        "from hpenv.policies import ControllerSpec\n"
        "class Own:\n"
        "    spec = ControllerSpec(interval=3)\n"
        "    def act(self, observations):\n"
        "        return observations\n"
        "Broken = dict\n"
    )
    assert load_controller(f"{file}:Own").spec.interval == 3
    with pytest.raises(ValueError, match="a controller must have `spec`"):
        load_controller(f"{file}:Broken")
    with pytest.raises(ValueError, match=r"it has the classes \['Broken', 'ControllerSpec', 'Own'"):
        load_controller(f"{file}:Absent")
    with pytest.raises(ValueError, match="there is no file"):
        load_controller(f"{tmp_path}/absent.py:Own")
    with pytest.raises(ValueError, match="No module named 'absent'"):
        load_controller("absent:Own")


def test_a_policy_of_other_columns_is_refused():
    policy = Neutral(1)
    policy.spec = ControllerSpec(channels=[("lr", "run")], action_names=("lr", "weight_decay"))
    with pytest.raises(ValueError, match=r"made for the action_names .*; the environment has"):
        evaluate_controller(policy, JEL, TINY | {"interval": 2}, [0])
