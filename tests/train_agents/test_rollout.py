"""Episodes of an update, on one process and with an executor."""

import numpy as np
import pytest

from agents.ppo import PPOAgentConfig
from hpenv.benchmark.environments import columns_of, make_population
from hpenv.benchmark.workers import Inline
from train_agents.rollout import collect, collect_on, episode_seeds
from train_agents.train import AGENTS, TrainConfig

JEL = "TrainLoop-JEL-v0"
ARGUMENTS = {
    "data": "synthetic",
    "batch_tokens": 32,
    "sequence_length": 16,
    "num_steps": 6,
    "interval": 2,
    "eval_tokens": 64,
}


@pytest.mark.parametrize("kind", ["jel", "ppo", "reinforce"])
def test_waves_on_an_executor_are_those_of_one_process_bit_for_bit(kind, tmp_path):
    """Also of the second update, whose random numbers follow those of all waves."""
    options = {"ppo": PPOAgentConfig(batch_size=6)} if kind == "ppo" else {}
    config = TrainConfig(agent=kind, num_envs=2, episodes_per_update=6, out=tmp_path, **options)
    env = make_population(JEL, 2, ARGUMENTS)
    here, there = (AGENTS[kind](config, columns_of(env)) for _ in range(2))

    for update in range(2):
        seeds = episode_seeds(0, update, 6)
        whole = collect(env, here, seeds)
        parts = collect_on(Inline(), env, JEL, ARGUMENTS, there, seeds)
        for one, other in zip(whole.rollout, parts.rollout, strict=True):
            assert np.array_equal(one, other)
        assert whole.reasons == parts.reasons
        assert here.update(whole.rollout) == there.update(parts.rollout)
