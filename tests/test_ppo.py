import dataclasses
import math

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.logger import KVWriter, Logger

from agents.ppo import PPOAgent, PPOAgentConfig
from agents.returns import gae
from hpenv.integrations.sb3 import SB3VecEnv
from hpenv.policies import load_policy, save_policy
from tests.probe_envs import TargetTrackingVectorEnv, regret

SMALL = PPOAgentConfig(hidden_sizes=(8,), batch_size=16)
OBSERVATIONS = np.linspace(0, 1, 12, dtype=np.float32)[:, None]


def make(**arguments) -> SB3VecEnv:
    return SB3VecEnv(TargetTrackingVectorEnv(num_envs=4, **arguments))


def learn(agent: PPOAgent, seed: int, num_episodes: int = 8) -> dict[str, float]:
    env = make()
    env.seed(seed)
    return agent.learn(env, num_episodes)


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
    vec_env = SB3VecEnv(env)
    vec_env.seed(0)
    for _ in range(2):
        agent.learn(vec_env, 32 * 25)
    assert start > 0.5
    assert regret(env, agent.policy) < 0.1


def test_the_exported_policy_acts_like_stable_baselines3s(tmp_path):
    agent = PPOAgent(1, 2, dataclasses.replace(SMALL, learning_rate=0.05))
    learn(agent, 0)
    with torch.no_grad():
        agent.model.policy.action_net.bias[0] += 1.0  # so that the clip is reached
    expected, _ = agent.model.predict(OBSERVATIONS, deterministic=True)
    assert expected.max() == 1.0
    save_policy(agent.policy, tmp_path / "policy")
    for policy in (agent.policy, load_policy(tmp_path / "policy")):
        assert np.array_equal(policy.act_mean(OBSERVATIONS), expected)
    mean, log_std = agent.policy(torch.from_numpy(OBSERVATIONS))
    normal = agent.model.policy.get_distribution(torch.from_numpy(OBSERVATIONS)).distribution
    assert torch.equal(mean, normal.mean)
    assert torch.allclose(log_std.exp(), normal.stddev)


def test_the_exported_policy_is_a_copy():
    agent = PPOAgent(1, 2, SMALL)
    policy = agent.policy
    before = policy.act_mean(OBSERVATIONS)
    learn(agent, 0)
    assert np.array_equal(policy.act_mean(OBSERVATIONS), before)
    assert not np.array_equal(agent.policy.act_mean(OBSERVATIONS), before)


def test_its_defaults_are_jels():
    model = PPOAgent(1, 2).model
    assert (model.n_steps, model.batch_size, model.n_epochs) == (12, 64, 4)
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


def test_its_advantages_are_our_gae(monkeypatch):
    agent = PPOAgent(1, 2, SMALL)
    buffers = []
    train = agent.model.train
    monkeypatch.setattr(
        agent.model, "train", lambda: (buffers.append(agent.model.rollout_buffer), train())
    )
    taken: list[np.ndarray] = []
    original = agent.model.collect_rollouts

    def collect_rollouts(*args, **kwargs):
        result = original(*args, **kwargs)
        buffer = agent.model.rollout_buffer
        taken.extend(array.copy() for array in (buffer.rewards, buffer.values, buffer.advantages))
        return result

    monkeypatch.setattr(agent.model, "collect_rollouts", collect_rollouts)
    learn(agent, 0, num_episodes=4)
    rewards, values, advantages = taken
    expected = gae(rewards, values, np.zeros(4), np.ones((12, 4), dtype=bool), 0.99, 1.0)
    assert np.allclose(advantages, expected, atol=1e-5)


def test_every_call_learns_from_whole_episodes_that_it_starts():
    agent = PPOAgent(1, 2, SMALL)
    metrics = learn(agent, 0, num_episodes=12)
    assert agent.num_taken_decisions == metrics["time/total_timesteps"] == 12 * 12
    assert metrics["rollout/ep_len_mean"] == 12.0
    assert metrics["train/n_updates"] == 3 * 4
    vec_env = make(ends={0: 5})
    agent.learn(vec_env, 4)
    assert vec_env.env.decisions.tolist() == [2, 0, 0, 0]
    agent.learn(vec_env, 4)
    assert vec_env.env.decisions.tolist() == [2, 0, 0, 0]


def test_the_number_of_rows_may_change_between_calls():
    agent = PPOAgent(1, 2, SMALL)
    agent.learn(make(), 4)
    agent.learn(SB3VecEnv(TargetTrackingVectorEnv(num_envs=2)), 4)
    assert agent.num_taken_decisions == 8 * 12


def test_metrics_are_finite_and_the_same_in_every_run():
    metrics = [learn(PPOAgent(1, 2, SMALL, seed=3), 0) for _ in range(2)]
    assert metrics[0] == metrics[1]
    assert all(math.isfinite(value) for value in metrics[0].values())
    tags = (
        "policy_gradient_loss entropy_loss approx_kl clip_fraction std loss learning_rate n_updates"
    )
    for tag in tags.split():
        assert f"train/{tag}" in metrics[0]
    assert not [tag for tag in metrics[0] if tag in ("time/fps", "time/time_elapsed")]


class Recorder(KVWriter):
    def __init__(self) -> None:
        self.written: list[tuple[int, dict[str, float]]] = []

    def write(self, key_values, key_excluded, step=0):
        self.written.append((step, dict(key_values)))

    def close(self):
        pass


def test_a_logger_receives_everything_including_the_last_update():
    recorder = Recorder()
    agent = PPOAgent(1, 2, SMALL)
    agent.set_logger(Logger(folder=None, output_formats=[recorder]))
    metrics = learn(agent, 0, num_episodes=8)
    assert [step for step, _ in recorder.written] == [48, 96, 96]
    assert "rollout/ep_rew_mean" in recorder.written[0][1] and "time/fps" in recorder.written[0][1]
    assert recorder.written[-1][1]["train/loss"] == metrics["train/loss"]


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
    torch_state = torch.get_rng_state()
    vec_env = make()
    monkeypatch.setattr(vec_env, "step_wait", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        agent.learn(vec_env, 4)
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
        {"num_decisions": 0},
        {"max_grad_norm": 0.0},
    ],
)
def test_bad_hyperparameters_are_refused(change):
    with pytest.raises(ValueError, match=f"{next(iter(change))} must be"):
        PPOAgentConfig(**change)


def test_an_env_that_does_not_fit_is_refused():
    agent = PPOAgent(1, 2, SMALL)
    with pytest.raises(ValueError, match="multiple of the 4 rows"):
        agent.learn(make(), 6)
    with pytest.raises(ValueError, match="observation_space must have shape"):
        PPOAgent(3, 2, SMALL).learn(make(), 4)
    with pytest.raises(ValueError, match="action_space must be"):
        PPOAgent(1, 3, SMALL).learn(make(), 4)
    wide = make()
    wide.action_space = spaces.Box(-2.0, 2.0, (2,), np.float32)
    with pytest.raises(ValueError, match="action_space must be"):
        agent.learn(wide, 4)
