"""The cells of the Cell id, its rewards and its arguments."""

import itertools

import gymnasium as gym
import numpy as np
import pytest
import torch

import hpenv  # noqa: F401  registers the ids
from hpenv import branching
from hpenv.envs import cell
from hpenv.optim.schedules import Constant
from hpenv.pretraining.measurements import MEASUREMENTS
from hpenv.telemetry.rewards import measured_terms
from tests.hpenv.envs.every_id import (
    CELL,
    JEL,
    assert_same,
    play,
    random_actions,
    weights_of,
    words,
)


@pytest.mark.parametrize("id", [JEL, CELL])
def test_a_device_that_is_not_there_is_refused_by_name(id, small):
    absent = "cuda:99" if torch.cuda.is_available() else "cuda"
    for device in (absent, "meta"):
        with pytest.raises(
            ValueError, match=f"device '{device}' is not available .*; try device='cpu'"
        ):
            gym.make(id, **small, device=device)


def test_columns_that_the_forward_pass_reads_are_immediate(tiny):
    env = gym.make(
        CELL, **tiny, preset="nano", channels=["lr", "dropout", "grad_scale", "embedding_gain"]
    ).unwrapped
    for name, immediate, kind in zip(
        env.action_names, env.action_immediate, env.action_kinds, strict=True
    ):
        assert immediate == name.startswith(("dropout", "embedding_gain"))
        assert (kind == "register") == name.startswith("register/")


@pytest.mark.parametrize("surface", ["full", "foundational_momentum_blend"])
@pytest.mark.parametrize("corner", [1.0, -1.0, "either"])
def test_cells_at_their_corners_give_finite_observations(surface, corner, tiny):
    """On the model of the id's own preset, with the noise channel as well."""
    arguments = tiny | {
        "interval": 1,
        "num_steps": 3,
        "channels": [*cell.SPEC.channel_sets[surface], "grad_noise"],
    }
    reward = dict.fromkeys(measured_terms(MEASUREMENTS), 1.0)
    env = gym.make_vec(CELL, num_envs=2, **arguments, observation="full_position", reward=reward)
    env.reset(seed=0)
    random = np.random.default_rng(1)
    for _ in range(4):
        action = (
            random.choice([-1.0, 1.0], env.action_space.shape)
            if corner == "either"
            else np.full(env.action_space.shape, corner)
        )
        obs, rewards, _, _, infos = env.step(action.astype(np.float32))
        assert env.observation_space.contains(obs) and np.isfinite(rewards).all()
        assert {f"reward_terms/{name}" for name in reward} < set(infos)
        for key, values in infos.items():
            assert np.isfinite(values).all(), key


def test_random_cells_of_the_ids_own_preset_give_a_moving_observation(tiny):
    """No gauge stands still, of any layer: what a controller is shown is measured."""
    env = gym.make(CELL, **tiny | {"interval": 1}, reward={"loss_change": 1.0})
    seen = np.array([step[0] for step in play(env, random_actions(env, 6), seed=0)[1:]])
    still = [
        name
        for name, column in zip(env.unwrapped.observation_names, seen.T, strict=True)
        if np.ptp(column) == 0
    ]
    assert not [name for name in still if not name.startswith("layer_saturation")], still
    assert (
        seen[
            :, [name.startswith("layer_saturation") for name in env.unwrapped.observation_names]
        ].max()
        <= 1.0
    )


def test_the_reward_of_a_decision_is_the_fall_of_the_training_loss_since_the_last(tiny):
    env = gym.make(CELL, **tiny | {"interval": 1, "preset": "nano"})
    episode = play(env, random_actions(env, 5), seed=0)
    losses = [step[4]["train_loss"] for step in episode[1:]]
    rewards = [step[1] for step in episode[1:]]
    assert rewards == pytest.approx([0.0, *(a - b for a, b in itertools.pairwise(losses))])
    assert not any("probe_loss" in step[4] for step in episode)


def test_an_update_reaches_the_reward_one_decision_later_and_a_forward_dial_at_once(tiny):
    arguments = tiny | {"interval": 1, "preset": "nano", "base_lr": 0.02}
    env = gym.make(CELL, **arguments, channels=["lr", "attention_gain"]).unwrapped
    env.reset(seed=0)
    for _ in range(5):  # the branches of an untrained model put out nothing that could gain
        env.step(np.zeros(len(env.action_names)))
    actions = np.zeros((3, len(env.action_names)))
    actions[1, [name.startswith("lr/") for name in env.action_names]] = 0.5
    actions[2, [name.startswith("attention_gain/") for name in env.action_names]] = 0.5
    one, two = branching.counterfactual(env, actions, 1), branching.counterfactual(env, actions, 2)
    assert one[0] == pytest.approx(one[1], abs=1e-6) and abs(one[2] - one[0]) > 1e-5
    assert abs(two[1] - two[0]) > 1e-5


def test_a_counterfactual_leaves_a_real_run_bitwise_as_it_is(tiny):
    arguments = tiny | {"interval": 1, "preset": "nano", "channels": "full"}
    env, twin = gym.make(CELL, **arguments).unwrapped, gym.make(CELL, **arguments).unwrapped
    actions = random_actions(env, 4)
    for each in (env, twin):
        each.reset(seed=3)
        each.step(actions[0])
    assert len(set(branching.counterfactual(env, actions, 3))) == 4
    for action in actions[1:]:
        assert_same([env.step(action)], [twin.step(action)])
    for name, weight in weights_of(env).items():
        assert torch.equal(weight, weights_of(twin)[name])


@pytest.mark.parametrize(
    ("arguments", "nearest"),
    [
        ({"num_step": 20}, "num_steps"),
        ({"channels": "foundation"}, "foundational"),
        ({"channels": ["weigth_decay"]}, "weight_decay"),
        ({"channels": [("dropuot", "layer")]}, "dropout"),
        ({"observation": ["progess"]}, "progress"),
        ({"reward": {"loss_chnage": 1.0}}, "loss_change"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_that_is_known(arguments, nearest):
    with pytest.raises(ValueError, match=rf"; did you mean '{nearest}'\?"):
        gym.make(cell.ID, **arguments)


def test_defaults_of_cell_are_those_of_its_manual():
    settings = cell.SPEC.settings()
    episode, config = settings.episode, settings.config
    assert (config.preset, episode.num_steps, episode.interval) == ("cell11", 3000, 1)
    assert episode.reward == {"loss_change": 1.0, "divergence": 1.0}
    assert episode.channels == "foundational"
    assert config.lr_schedule == Constant() and config.optimizer == "adamw"
    assert "r <- 0.9 r + 0.1 u" in words(cell)
    assert (episode.num_registers, episode.register_leak) == (8, 0.9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"channels": "all"},
            r"unknown channels 'all'; expected one of \['foundational', 'foundational_grad_gate', ",
        ),
        (
            {"channels": "lr"},
            r"unknown channels 'lr'; expected one of \['found.*'\], or a list of channel names",
        ),
        (
            {"channels": None},
            r"unknown channels None; expected one of \['found.*'\], or a list of channel names",
        ),
        (
            {"channels": {"lr", "eps"}},
            r"unknown channels {.*}; expected one of \['found.*'\], or a list of channel",
        ),
        (
            {"channels": [3]},
            r"channel must be a name or a .* pair, with a name of \['attention_gain', .*; got 3",
        ),
        ({"channels": [("lr", 3)]}, r"channel must be a name or .*; got \('lr', 3\)"),
        ({"channels": {"lr": ["run"]}}, r"channel must be a name or .*; got \('lr', \['run'\]\)"),
        (
            {"channels": {"rate": "run"}},
            r"unknown channel 'rate'; expected one of \['attention_gain', ",
        ),
        (
            {"channels": ("lr", "layer")},
            r"channel must be a name, not a scope; got 'layer'; .* as \[\('lr', 'layer'\)\]",
        ),
        (
            {"channels": ["run"]},
            r"got 'run'; give a scope in a pair, as \[\('lr', 'run'\)\]",
        ),
        ({"channels": ["rate"]}, r"unknown channel 'rate'; expected one of \['attention_gain', "),
        (
            {"channels": [("lr", "head")]},
            r"channel 'lr' has no scope 'head'; expected one of \['run', ",
        ),
        (
            {"channels": [("lr", "layer", "run")]},
            r"channel must be a name or .*; got \(\'lr\', \'layer\', \'run\'\)",
        ),
        ({"channels": ["eps"], "optimizer": "sgd"}, "have no use for the channel 'eps'"),
        (
            {"observation": "all"},
            r"unknown observation 'all'; expected one of \['full', 'full_position', ",
        ),
        (
            {"observation": "train_loss"},
            r"unknown observation 'train_loss'; .*'progress'\], or a list of feature names",
        ),
        (
            {"observation": None},
            r"unknown observation None; expected one of .*, or a list of feature names",
        ),
        (
            {"observation": [["progress"]]},
            r"unknown feature \['progress'\]; expected one of \['gradient_agreement', ",
        ),
        ({"observation": ["progress", "loss", "rate"]}, "unknown feature 'loss'; expected one of"),
        (
            {"observation": ["progress", "train_loss", "progress"]},
            r"observation must name each feature once; got \[.*\]",
        ),
        (
            {"reward": "progress"},
            r"reward must be a mapping .* with some of \['budget', .*; got 'progress'",
        ),
        (
            {"reward": None},
            "reward must be a mapping of terms to weights, as {'loss_change': 1.0}.*; got None",
        ),
        ({"reward": {"loss": 1.0}}, r"unknown reward term 'loss'; expected some of \['budget', "),
        (
            {"schedule": "cosin"},
            r"unknown schedule 'cosin'; expected one of \['constant', 'cosine', ",
        ),
        (
            {"schedule": lambda steps: 1.0},
            r"schedule must map an array of steps to an array of as many multipliers; got "
            r"<function",
        ),
        ({"data": None}, r"data must be a name or a path .*; got None"),
        ({"interval": 24}, "interval must be .*, from 1 to num_steps=23; got 24"),
        ({"num_registers": -1}, "num_registers must be a whole number of at least 0; got -1"),
        ({"register_leak": 1.5}, "register_leak must be at least 0 and below 1; got 1.5"),
        (
            {"channel": "full"},
            r"TrainLoop-Cell-v0 got an unexpected keyword argument 'channel'; expected some of "
            r"\['base_lr'",
        ),
    ],
)
def test_bad_arguments_of_cell_are_refused_by_name(arguments, message, tiny):
    with pytest.raises(ValueError, match=message):
        gym.make(CELL, **tiny | {"preset": "nano"} | arguments)
    with pytest.raises(ValueError, match=message):
        gym.make_vec(CELL, num_envs=2, **tiny | {"preset": "nano"} | arguments)
