"""Small Sidecars, and rewards for them to learn from."""

import numpy as np
import torch

from agents.base import Decision, Rollout
from agents.reinforce import ReinforceAgent
from agents.sidecar_config import SidecarConfig

NAMES = ("lr/0", "lr/1", "dropout/0", "dropout/1")
KINDS = ("scale", "scale", "scale", "scale")
IMMEDIATE = (False, False, True, True)
# Tests of mechanics have the gate open. Tests of learning have the default gate.
SMALL = SidecarConfig(hidden_size=8, replay_size=4, evidence=0.0)


def make(
    config=SMALL, num_rows=2, kinds=KINDS, immediate=IMMEDIATE, names=NAMES, **arguments
) -> ReinforceAgent:
    return ReinforceAgent(num_rows, 3, kinds, immediate, config, action_names=names, **arguments)


def observations(decision: int, num_rows: int = 2) -> np.ndarray:
    """Returns observations that differ by decision and row, but do not depend on num_rows."""
    return np.stack(
        [np.sin([decision + row, 0.3 * decision, 1.0 + row]) for row in range(num_rows)]
    ).astype(np.float32)


def learn(agent: ReinforceAgent, rollout: Rollout) -> dict[str, float]:
    """Learns from further decisions of the same runs."""
    return agent.update(rollout, continues=True)


def one(
    obs: np.ndarray, decision: Decision, rewards: np.ndarray, alive: np.ndarray | None = None
) -> Rollout:
    """Returns a rollout of a single decision."""
    alive = np.ones(len(obs), dtype=bool) if alive is None else np.asarray(alive)
    return Rollout(
        obs[None],
        decision.raw[None],
        decision.log_prob[None],
        np.asarray(rewards)[None],
        alive[None],
    )


def train(agent, num_decisions, start=0, rewards=None, alive=None, num_rows=2):
    """Trains online with random rewards. Returns all decisions and metrics."""
    trace = []
    for t in range(start, start + num_decisions):
        obs = observations(t, num_rows)
        decision = agent.sample(obs)
        given = np.random.default_rng(t).normal(size=num_rows) if rewards is None else rewards(t)
        trace.append((decision, learn(agent, one(obs, decision, given, alive))))
    return trace


def numbers(agent: ReinforceAgent, row=slice(None)) -> list[torch.Tensor]:
    """Returns weights, evidence and means of credits of one row or of all rows."""
    means = [
        array
        for name, array in agent._credits.arrays().items()
        if name.startswith(("mean", "square"))
    ]
    arrays = [torch.from_numpy(array) for array in [*agent._evidence.arrays().values(), *means]]
    return [tensor.detach()[row].clone() for tensor in [*agent.policy.parameters(), *arrays]]


def equal(first, second) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a, b) for a, b in zip(first, second, strict=True)
    )
