"""The hyperparameters that examples/ has for rl_zoo3, which itself is not needed."""

import gymnasium as gym
import pytest
import yaml
from stable_baselines3 import PPO

import hpenv  # noqa: F401  registers the ids
from hpenv.integrations.sb3 import SB3VecEnv
from tests.hpenv.test_render import SMALL
from tests.paths import ROOT

ENTRIES = yaml.safe_load((ROOT / "examples" / "rl_zoo3" / "ppo.yml").read_text())
# Of the training, not of PPO.
OUTER = ("n_envs", "n_timesteps")


def test_every_id_has_an_entry():
    assert set(ENTRIES) == {
        id for id, spec in gym.registry.items() if str(spec.entry_point).startswith("hpenv.")
    }


@pytest.mark.parametrize("id", ENTRIES)
def test_ppo_takes_the_hyperparameters_for_whole_episodes(id):
    """Without a warning, as of minibatches that do not divide a rollout."""
    entry = dict(ENTRIES[id])
    num_envs, num_timesteps = (entry.pop(key) for key in OUTER)
    kwargs = eval(
        entry.pop("policy_kwargs"), {"__builtins__": {}}, {"dict": dict}
    )  # a text of Python, as rl_zoo3 has it
    # Small runs of the id's own number of decisions.
    small = {key: value for key, value in SMALL[id].items() if key not in ("num_steps", "interval")}
    envs = gym.make_vec(id, num_envs=num_envs, autoreset_mode="DISABLED", **small)
    model = PPO(env=SB3VecEnv(envs), policy_kwargs=kwargs, device="cpu", **entry)
    assert model.n_steps == envs.unwrapped.num_decisions
    assert num_timesteps % (num_envs * model.n_steps) == 0
    assert (
        model.policy.log_std.tolist()
        == [kwargs["log_std_init"]] * envs.single_action_space.shape[0]
    )
