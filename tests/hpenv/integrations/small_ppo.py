"""PPO in one file, in the form that CleanRL made usual. It knows vector envs, not hpenv."""

import numpy as np
import torch
from torch import nn
from torch.distributions import Normal

NUM_STEPS, GAMMA, LAMBDA, CLIP = 4, 0.99, 0.95, 0.2


class Agent(nn.Module):
    """Actor and critic of one hidden layer."""

    def __init__(self, num_observations, num_actions):
        super().__init__()
        self.critic = nn.Sequential(nn.Linear(num_observations, 8), nn.Tanh(), nn.Linear(8, 1))
        self.mean = nn.Sequential(
            nn.Linear(num_observations, 8), nn.Tanh(), nn.Linear(8, num_actions)
        )
        self.log_std = nn.Parameter(torch.full((num_actions,), -0.5))

    def act(self, observations, actions=None):
        mean = self.mean(observations)
        normal = Normal(mean, self.log_std.exp().expand_as(mean))
        actions = normal.sample() if actions is None else actions
        return actions, normal.log_prob(actions).sum(1), self.critic(observations)[:, 0]


def collect(envs, agent, observations, ended):
    """Returns a rollout and what follows it. `ended` marks rows whose next step only resets."""
    rows = []
    for _ in range(NUM_STEPS):
        seen = torch.as_tensor(observations, dtype=torch.float32)
        with torch.no_grad():  # the env is stepped inside, as some loops do
            actions, log_probs, values = agent.act(seen)
            observations, rewards, terminated, truncated, _ = envs.step(actions.numpy())
        over = terminated | truncated
        valid = ~ended  # a step that resets is no decision
        numbers = [torch.as_tensor(x, dtype=torch.float32) for x in (rewards, over, valid)]
        rows.append([seen, actions, log_probs, values, *numbers])
        ended = over
    return [torch.stack(column) for column in zip(*rows, strict=True)], observations, ended


def advantages_of(rewards, values, over, last_values):
    """Generalized advantage estimates, (T, N)."""
    found, following = torch.zeros_like(rewards), torch.zeros_like(last_values)
    after = torch.cat([values[1:], last_values[None]])
    for t in reversed(range(len(rewards))):
        going = 1.0 - over[t]
        delta = rewards[t] + GAMMA * after[t] * going - values[t]
        following = delta + GAMMA * LAMBDA * going * following
        found[t] = following
    return found


def train(envs, num_updates, seed=0):
    """Trains, and checks that the weights moved and stayed finite. Returns the agent."""
    generator_state = torch.get_rng_state()
    torch.manual_seed(seed)
    sizes = envs.single_observation_space.shape[0], envs.single_action_space.shape[0]
    agent = Agent(*sizes)
    before = nn.utils.parameters_to_vector(agent.parameters()).detach().clone()
    optimizer = torch.optim.Adam(agent.parameters(), lr=1e-2, eps=1e-5)
    observations, _ = envs.reset(seed=seed)
    ended = np.zeros(envs.num_envs, dtype=bool)

    for _ in range(num_updates):
        rollout, observations, ended = collect(envs, agent, observations, ended)
        seen, actions, log_probs, values, rewards, over, valid = rollout
        with torch.no_grad():
            last = agent.critic(torch.as_tensor(observations, dtype=torch.float32))[:, 0]
            advantages = advantages_of(rewards, values, over, last)
        flat = (seen.flatten(0, 1), actions.flatten(0, 1))
        keep, advantage = valid.flatten() > 0, advantages.flatten()
        for _ in range(2):
            _, new, value = agent.act(*flat)
            ratio = (new - log_probs.flatten()).exp()
            surrogate = torch.minimum(
                ratio * advantage, ratio.clamp(1 - CLIP, 1 + CLIP) * advantage
            )
            error = (value - (advantages + values).flatten()).square()
            loss = (0.5 * error - surrogate)[keep].mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
            optimizer.step()

    after = nn.utils.parameters_to_vector(agent.parameters()).detach()
    assert after.isfinite().all() and not torch.equal(before, after)
    torch.set_rng_state(generator_state)
    return agent
