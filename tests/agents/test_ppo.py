import dataclasses
import math

import numpy as np
import pytest
import torch
from stable_baselines3.common.buffers import RolloutBuffer

from agents.ppo import PPOAgent, PPOAgentConfig
from hpenv.integrations.sb3 import SB3VecEnv
from hpenv.policies import load_policy, save_policy
from tests.probe_envs import TargetTrackingVectorEnv, collect, regret

SMALL = PPOAgentConfig(hidden_sizes=(8,), batch_size=16)
OBSERVATIONS = np.linspace(0, 1, 12, dtype=np.float32)[:, None]


def make(**arguments) -> TargetTrackingVectorEnv:
    return TargetTrackingVectorEnv(num_envs=4, **arguments)


def learn(agent: PPOAgent, seed: int, num_updates: int = 2, **arguments) -> dict[str, float]:
    env, metrics = make(**arguments), {}
    for update in range(num_updates):
        metrics = agent.update(collect(env, agent, seed + 100 * update))
    return metrics


def weights(agent: PPOAgent) -> torch.Tensor:
    return torch.cat(
        [parameter.detach().flatten() for parameter in agent.model.policy.parameters()]
    )


def test_it_solves_the_probe_environment():
    env = TargetTrackingVectorEnv(num_envs=32, noise=0.1)
    agent = PPOAgent(
        1, 2, PPOAgentConfig(hidden_sizes=(32,), batch_size=192, learning_rate=1e-2), seed=0
    )
    start = regret(env, agent.policy)
    for update in range(50):
        agent.update(collect(env, agent, update))
    assert start > 0.5
    assert regret(env, agent.policy) < 0.1


def test_an_update_is_that_of_stable_baselines3_on_the_same_episodes():
    ours, theirs = PPOAgent(1, 2, SMALL), PPOAgent(1, 2, SMALL)
    metrics = ours.update(collect(make(), ours, 7))
    vec_env = SB3VecEnv(make())
    vec_env.seed(7)
    model = theirs.model
    model.n_steps, model.n_envs = 12, 4
    model.observation_space = vec_env.observation_space
    model.rollout_buffer = RolloutBuffer(
        12, vec_env.observation_space, vec_env.action_space, "cpu", 1.0, 0.99, 4
    )
    model.set_env(vec_env)
    with theirs._private_generators():
        model.learn(48)
    assert not torch.equal(weights(ours), weights(PPOAgent(1, 2, SMALL)))
    assert torch.allclose(weights(ours), weights(theirs), atol=1e-6)
    assert metrics["rollout/ep_rew_mean"] == pytest.approx(
        np.mean([entry["r"] for entry in model.ep_info_buffer]), rel=1e-6
    )


def test_the_exported_policy_acts_like_stable_baselines3s(tmp_path):
    agent = PPOAgent(1, 2, dataclasses.replace(SMALL, learning_rate=0.05))
    learn(agent, 0)
    with torch.no_grad():
        agent.model.policy.action_net.bias[0] += 1.0  # so that the clip is reached
    expected, _ = agent.model.predict(OBSERVATIONS, deterministic=True)
    assert expected.max() == 1.0
    save_policy(agent.policy, tmp_path / "policy")
    for policy in (agent.policy, load_policy(tmp_path / "policy")):
        assert np.array_equal(policy.act(OBSERVATIONS), expected)
    mean, log_std = agent.policy(torch.from_numpy(OBSERVATIONS)), agent.policy.log_std
    normal = agent.model.policy.get_distribution(torch.from_numpy(OBSERVATIONS)).distribution
    assert torch.equal(mean, normal.mean)
    assert torch.allclose(log_std.exp().expand_as(mean), normal.stddev)


def test_the_exported_policy_is_a_copy():
    agent = PPOAgent(1, 2, SMALL)
    policy = agent.policy
    before = policy.act(OBSERVATIONS)
    learn(agent, 0)
    assert np.array_equal(policy.act(OBSERVATIONS), before)
    assert not np.array_equal(agent.policy.act(OBSERVATIONS), before)


def test_its_defaults_are_jels():
    model = PPOAgent(1, 2).model
    assert (model.batch_size, model.n_epochs) == (64, 4)
    assert (model.gamma, model.gae_lambda, model.learning_rate, model.clip_range(1.0)) == (
        0.99,
        1.0,
        3e-4,
        0.2,
    )
    assert (model.normalize_advantage, model.ent_coef, model.max_grad_norm) == (
        False,
        0.0,
        math.inf,
    )
    assert torch.equal(model.policy.log_std.detach(), torch.full((2,), -0.5))
    actor = [
        (layer.in_features, layer.out_features)
        for layer in model.policy.mlp_extractor.policy_net[::2]
    ]
    assert actor == [(1, 64), (64, 64)]


def test_an_update_learns_from_the_decisions_that_were_taken_alone():
    agent, twin = PPOAgent(1, 2, SMALL), PPOAgent(1, 2, SMALL)
    rollout = collect(make(ends={0: 5}), agent, 0)
    collect(make(ends={0: 5}), twin, 0)  # the same draws
    rewards = np.where(rollout.alive, rollout.rewards, 1e6)
    raw = np.where(rollout.alive[..., None], rollout.raw, np.nan)
    assert agent.update(rollout) == twin.update(rollout._replace(rewards=rewards, raw=raw))
    assert torch.equal(weights(agent), weights(twin))
    assert agent.model.num_timesteps == rollout.alive.sum() == 5 + 3 * 12


def test_metrics_are_finite_and_the_same_in_every_run():
    metrics = [learn(PPOAgent(1, 2, SMALL, seed=3), 0) for _ in range(2)]
    assert metrics[0] == metrics[1]
    assert all(math.isfinite(value) for value in metrics[0].values())
    tags = (
        "policy_gradient_loss entropy_loss approx_kl clip_fraction std loss learning_rate n_updates"
    )
    for tag in tags.split():
        assert f"train/{tag}" in metrics[0]
    assert metrics[0]["rollout/ep_len_mean"] == 12.0 and metrics[0]["train/n_updates"] == 2 * 4


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    agents = [PPOAgent(1, 2, SMALL, seed=seed) for seed in (4, 4, 5)]
    for agent in agents:
        learn(agent, 0)
    assert torch.equal(weights(agents[0]), weights(agents[1]))
    assert not torch.equal(weights(agents[0]), weights(agents[2]))


def test_the_global_generators_are_neither_touched_nor_read():
    torch_state = torch.get_rng_state()
    numpy_state = np.random.get_state(legacy=False)["state"]  # noqa: NPY002
    agent = PPOAgent(1, 2, SMALL)
    learn(agent, 0)
    assert torch.equal(torch.get_rng_state(), torch_state)
    now = np.random.get_state(legacy=False)["state"]  # noqa: NPY002
    assert np.array_equal(now["key"], numpy_state["key"]) and now["pos"] == numpy_state["pos"]
    try:
        torch.manual_seed(1234)
        other = PPOAgent(1, 2, SMALL)
        learn(other, 0)
    finally:
        torch.set_rng_state(torch_state)
    assert torch.equal(weights(agent), weights(other))


def test_the_global_generators_are_put_back_when_learning_fails(monkeypatch):
    agent = PPOAgent(1, 2, SMALL)
    rollout = collect(make(), agent, 0)
    torch_state = torch.get_rng_state()
    monkeypatch.setattr(agent.model, "train", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        agent.update(rollout)
    assert torch.equal(torch.get_rng_state(), torch_state)


def test_saved_and_loaded_it_continues_bitwise(tmp_path):
    agent = PPOAgent(1, 2, SMALL, seed=1)
    learn(agent, 0)
    agent.save(tmp_path / "agent")
    other = PPOAgent(1, 2, SMALL, seed=99)
    learn(other, 5)
    other.load(tmp_path / "agent")
    for seed in (1, 2):
        assert learn(agent, seed) == learn(other, seed)
    assert torch.equal(weights(agent), weights(other))


def test_an_agent_of_other_arguments_is_not_loaded(tmp_path):
    PPOAgent(1, 2, SMALL).save(tmp_path / "agent")
    with pytest.raises(ValueError, match="config"):
        PPOAgent(1, 2, dataclasses.replace(SMALL, gamma=0.9)).load(tmp_path / "agent")


@pytest.mark.parametrize(
    "change",
    [
        {"learning_rate": 0.0},
        {"gamma": 1.1},
        {"gae_lambda": -0.1},
        {"clip_range": 1.0},
        {"entropy_coefficient": -0.1},
        {"value_coefficient": -0.1},
        {"num_epochs": 0},
        {"batch_size": 0},
        {"max_grad_norm": 0.0},
    ],
)
def test_bad_hyperparameters_are_refused(change):
    with pytest.raises(ValueError, match=f"{next(iter(change))} must be"):
        PPOAgentConfig(**change)


def test_a_rollout_that_does_not_fit_is_refused():
    agent = PPOAgent(1, 2, SMALL)
    rollout = collect(make(), agent, 0)
    with pytest.raises(ValueError, match=r"rollout\.observations must have shape"):
        PPOAgent(3, 2, SMALL).update(rollout)
    with pytest.raises(ValueError, match=r"observations must be of shape \(N, 3\)"):
        PPOAgent(3, 2, SMALL).sample(OBSERVATIONS)
