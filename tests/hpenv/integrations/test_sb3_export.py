"""Actors of stable-baselines3 are exported, saved without pickle, and act as the model does."""

import json
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import A2C, DDPG, PPO, SAC, TD3
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from hpenv.benchmark.controllers import load_controller
from hpenv.benchmark.environments import make_population, spec_of
from hpenv.benchmark.methods import Method
from hpenv.benchmark.rows import blocks_of, compute_block, read_rows
from hpenv.integrations.sb3 import SB3VecEnv, from_sb3
from hpenv.policies import SB3MLP, load_policy, save_policy
from tests.hpenv.benchmark.tiny_suite import JEL, TINY, tiny_suite
from tests.hpenv.integrations.tracked import make

OBSERVATIONS = np.linspace(0, 1, 7, dtype=np.float32)[:, None]
REPLAY = {"learning_starts": 4, "batch_size": 8, "buffer_size": 100}
SIZES = {
    PPO: {"n_steps": 5, "batch_size": 20, "n_epochs": 1},
    A2C: {"n_steps": 5},
    SAC: REPLAY,
    TD3: REPLAY,
    DDPG: REPLAY,
}
#: Of the rounding of float32: stable-baselines3 maps a squashed action to the box and back.
ROUNDING = 3e-7


def trained(env=None, algorithm=PPO, num_steps=20, **arguments):
    env = make() if env is None else env
    model = algorithm("MlpPolicy", env, seed=0, device="cpu", **SIZES[algorithm], **arguments)
    return model.learn(num_steps)


def predictions(model, observations=OBSERVATIONS):
    normalizer = model.get_vec_normalize_env()
    inputs = observations if normalizer is None else normalizer.normalize_obs(observations)
    return model.predict(inputs, deterministic=True)[0]


@pytest.mark.parametrize("algorithm", [PPO, A2C])
@pytest.mark.parametrize("net_arch", [[8], {"pi": [6, 5], "vf": [7]}, []])
def test_an_exported_actor_acts_as_the_model_does(algorithm, net_arch, tmp_path):
    """Bitwise, where nothing is squashed or normalized."""
    model = trained(algorithm=algorithm, learning_rate=0.05, policy_kwargs={"net_arch": net_arch})
    with torch.no_grad():
        model.policy.action_net.bias[0] += 2.0  # so that the clip is reached
    expected = predictions(model)
    assert expected.max() == 1.0
    save_policy(from_sb3(model), tmp_path / "policy")
    assert np.array_equal(load_policy(tmp_path / "policy").act(OBSERVATIONS), expected)


@pytest.mark.parametrize("algorithm", [SAC, TD3, DDPG])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
def test_a_squashed_actor_acts_as_the_model_does(algorithm, activation, tmp_path):
    arguments = {"net_arch": [8, 6], "activation_fn": activation}
    model = trained(algorithm=algorithm, learning_rate=0.05, policy_kwargs=arguments)
    save_policy(SB3MLP.from_sb3(model), tmp_path / "policy")
    policy = load_policy(tmp_path / "policy")
    expected = predictions(model)
    assert np.ptp(expected) > 1e-4  # it depends on the observation
    assert np.abs(policy.act(OBSERVATIONS) - expected).max() <= ROUNDING
    assert policy.output == "tanh" and policy.log_std is None


@pytest.mark.parametrize("algorithm", [PPO, SAC])
def test_normalized_observations_are_normalized_by_the_policy(algorithm, tmp_path):
    env = VecNormalize(make(), clip_obs=0.8)
    model = trained(env, algorithm, learning_rate=0.01)
    observations = np.linspace(-3, 3, 25, dtype=np.float32)[:, None]  # beyond the clip, too
    expected = predictions(model, observations)
    plain = model.predict(observations, deterministic=True)[0]
    assert np.abs(expected - plain).max() > 1e-3  # the statistics matter
    save_policy(SB3MLP.from_sb3(model), tmp_path / "policy")
    policy = load_policy(tmp_path / "policy")
    assert np.abs(policy.act(observations) - expected).max() <= ROUNDING
    assert policy.arguments()["normalization"] == {"epsilon": env.epsilon, "clip": 0.8}


def test_a_model_that_was_loaded_without_its_env_is_given_its_statistics(tmp_path):
    env = VecNormalize(make())
    model = trained(env)
    expected = predictions(model)
    model.save(tmp_path / "model")
    loaded = PPO.load(tmp_path / "model", device="cpu")
    assert np.abs(SB3MLP.from_sb3(loaded, env).act(OBSERVATIONS) - expected).max() <= ROUNDING


def test_an_actor_under_normalized_rewards_is_exported():
    model = trained(VecNormalize(make(), norm_obs=False))
    policy = from_sb3(model)
    assert np.array_equal(policy.act(OBSERVATIONS), predictions(model))
    assert "normalization" not in policy.arguments()


def test_an_exported_actor_is_a_copy():
    model = trained(VecNormalize(make()))
    policy = from_sb3(model)
    before = policy.act(OBSERVATIONS)
    with torch.no_grad():
        model.policy.action_net.bias += 0.1
    model.get_vec_normalize_env().obs_rms.mean += 1.0
    assert np.array_equal(policy.act(OBSERVATIONS), before)


def test_a_saved_actor_needs_no_stable_baselines3_and_no_pickle(tmp_path):
    save_policy(SB3MLP.from_sb3(trained(VecNormalize(make()), SAC)), tmp_path / "policy")
    assert sorted(file.suffix for file in (tmp_path / "policy").iterdir()) == [
        ".json", ".json", ".safetensors",
    ]  # fmt: skip
    code = (
        "import sys, numpy, hpenv.policies as p\n"
        f"print(p.load_policy({str(tmp_path / 'policy')!r}).act(numpy.zeros((1, 1))).shape)\n"
        "sys.exit('stable_baselines3' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    assert done.returncode == 0 and b"(1, 2)" in done.stdout


def test_folders_of_the_first_version_are_read():
    """They have neither an activation nor an output nor a normalization."""
    policy = from_sb3(trained())
    assert set(policy.arguments()) == {"observation_size", "action_size", "hidden_sizes"}
    json.dumps(policy.arguments())


class Extractor(BaseFeaturesExtractor):
    def __init__(self, space) -> None:
        super().__init__(space, 3)
        self.layer = nn.Linear(1, 3)

    def forward(self, observations):
        return self.layer(observations)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: trained(use_sde=True), "must be a DiagGaussianDistribution; got a StateDepend"),
        (lambda: trained(None, SAC, use_sde=True), "must be a SquashedDiagGaussianDistribution"),
        (
            lambda: trained(policy_kwargs={"activation_fn": nn.Softplus}),
            r"must have one of .*; got \['Softplus'\]; score the model as it is, as .*SB3Controll",
        ),
        (
            lambda: trained(policy_kwargs={"features_extractor_class": Extractor}),
            "must be a FlattenExtractor; got a Extractor",
        ),
        (
            lambda: PPO("MlpPolicy", gym.make("Pendulum-v1"), device="cpu"),
            r"actions must be in \[-1, 1\]; got Box\(-2.0, 2.0",
        ),
        (
            lambda: PPO("MlpPolicy", gym.make("CartPole-v1"), device="cpu"),
            r"actions must be in \[-1, 1\]; got Discrete",
        ),
    ],
)
def test_an_actor_that_cannot_be_exported_is_refused(model, message):
    with pytest.raises(ValueError, match=message):
        from_sb3(model())


@pytest.mark.parametrize("arguments", [{"activation": "gelu"}, {"output": "sigmoid"}])
def test_unknown_names_are_refused(arguments):
    with pytest.raises(ValueError, match=r"unknown (activation|output) .*; expected one of"):
        SB3MLP(1, 2, **arguments)


def test_the_benchmark_scores_the_folder_under_the_columns_of_its_training(tmp_path):
    """A policy of SAC for other channels than the id's: its spec travels with it."""
    made = {key: TINY[key] for key in ("batch_tokens", "sequence_length", "num_steps", "interval")}
    envs = make_population(
        JEL, 2, made | {"data": "synthetic", "channels": "per_optimizer", "eval_tokens": 128}
    )
    model = SAC("MlpPolicy", SB3VecEnv(envs), device="cpu", **REPLAY).learn(8)
    policy = SB3MLP.from_sb3(model, spec=spec_of(envs))
    save_policy(policy, tmp_path / "policy")

    method = Method("mine", load_controller(str(tmp_path / "policy")))
    block = blocks_of(tiny_suite(num_seeds=1), method, tmp_path / "rows")[0]
    compute_block(block)
    (row,) = read_rows([tmp_path / "rows"])
    assert row["method"] == "mine" and np.isfinite(row["final"])
