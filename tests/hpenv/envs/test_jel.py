"""Arguments and actions of the JEL id."""

import dataclasses
import math

import gymnasium as gym
import numpy as np
import pytest

import hpenv  # noqa: F401  registers the ids
from hpenv.control.channels import CHANNELS, channels_of
from hpenv.envs import cell, grpo_projection, jel
from hpenv.optim.schedules import Constant, Cosine, WarmupFlatWarmdown
from tests.hpenv.envs.every_id import CELL, JEL


def test_defaults_are_the_papers():
    settings = jel.SPEC.settings()
    episode, config = settings.episode, settings.config
    assert (episode.num_steps, episode.interval) == (561, 50)
    assert (config.base_lr, config.base_weight_decay) == (1e-3, 1e-2)
    assert config.num_probe_batches == 4 and config.lr_schedule == WarmupFlatWarmdown(561)
    assert episode.reward == {"progress": 1.0, "divergence": 1.0}


@pytest.mark.parametrize(
    ("arguments", "rates"),
    [
        ({"schedule": "none"}, [1.0, 1.0]),
        ({}, [1.0, 1 / 9]),  # the last of nine steps of warmdown: 40 % of 23
        ({"schedule": Cosine(23)}, [1.0, 0.5 * (1 + math.cos(math.pi * 22 / 23))]),
        (
            {"schedule": dict.fromkeys(("embedding", "unembedding", "matrix"), Constant(4))},
            [0.25, 1.0],
        ),
    ],
)
def test_base_schedules_reach_the_plant(arguments, rates, tiny):
    plant = gym.make(JEL, **tiny, **arguments).unwrapped.plant
    plant._begin_window(np.array([23]))
    lr = plant._rates[plant._rules["matrix"]][:, 0]  # (23, 1, tensors of the group)
    assert lr[[0, 22], 0, 0].tolist() == pytest.approx([1e-3 * rate for rate in rates])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"preset": "giant"}, r"unknown preset 'giant'; expected one of \['cell11', "),
        ({"data": "wikipedia"}, "unknown data 'wikipedia'; expected one of 'stdlib', 'synthetic"),
        ({"tokenizer": "words"}, "tokenizer and vocab_size must fit data 'synthetic'; got 'words'"),
        ({"optimizer": "adam"}, r"unknown optimizer 'adam'; expected one of \['adamw', "),
        (
            {"schedule": "cosin"},
            r"unknown schedule 'cosin'; expected one of \['constant', 'cosine', ",
        ),
        (
            {"schedule": {"matrices": Constant()}},
            r"lr_schedule must have .*; got the groups \['matrices'\]",
        ),
        ({"observation": "all"}, r"unknown observation 'all'; expected one of \['full', "),
        ({"observation": ["progres"]}, r"unknown feature 'progres'; expected one of \['gradient"),
        (
            {"channels": "each"},
            r"unknown channels 'each'; expected one of \['per_optimizer', 'shared'\]",
        ),
        ({"reward": {"entropy": 1.0}}, r"unknown reward term.* 'entropy'.*; expected"),
        (
            {"reward": {"smoothness": -1.0}},
            "weight of reward term 'smoothness' must be a number, finite and not negative; got -1",
        ),
        (
            {"reward": {"smoothness": math.nan}},
            "weight of reward term 'smoothness' must be a number, .*; got nan",
        ),
        (
            {"seed_mode": "same"},
            r"unknown seed_mode 'same'; expected one of \['independent', 'grouped'\]",
        ),
        ({"base_lr": -1e-3}, "base_lr must be finite and not negative; got -0.001"),
        ({"base_lr": math.nan}, "base_lr must be finite and not negative; got nan"),
        (
            {"base_lr": {"matrix": 1e-3}},
            r"base_lr must have .* the groups \['emb.*; got the groups \['matrix'\]",
        ),
        (
            {"base_weight_decay": -1.0},
            "base_weight_decay must be finite and not negative; got -1.0",
        ),
        ({"num_steps": 0}, "num_steps must be a whole number of at least 1; got 0"),
        ({"interval": 24}, "interval must be .*, from 1 to num_steps=23; got 24"),
        ({"interval": 0}, "interval must be .*, from 1 to num_steps=23; got 0"),
        ({"batch_tokens": 100}, "batch_tokens must be a multiple of sequence_length=16; got 100"),
        ({"eval_tokens": 0}, "eval_tokens must be a whole number of at least 1; got 0"),
        ({"compile": "no"}, "compile must be True or False; got 'no'"),
        ({"dtype": "half"}, r"unknown dtype 'half'; expected one of \['bfloat16', 'float32'\]"),
        (
            {"batch_token": 64},
            r"TrainLoop-JEL-v0 got an unexpected keyword argument 'batch_token'; expected some of "
            r"\['base_lr'",
        ),
    ],
)
def test_bad_arguments_are_refused_by_name(arguments, message, tiny):
    with pytest.raises(ValueError, match=message):
        gym.make(JEL, **tiny | arguments)
    with pytest.raises(ValueError, match=message):
        gym.make_vec(JEL, num_envs=2, **tiny | arguments)


def test_bad_arguments_of_the_population_are_refused_by_name(tiny):
    with pytest.raises(
        ValueError, match=r"unknown autoreset_mode 'NEVER'; expected one of \['DISABLED', "
    ):
        gym.make_vec(JEL, num_envs=2, **tiny, autoreset_mode="NEVER")
    with pytest.raises(ValueError, match="num_rows must be a whole number of at least 1; got 0"):
        gym.make_vec(JEL, num_envs=0, **tiny)
    with pytest.raises(
        ValueError, match=r"num_rows must be a whole number of at least 1; got 1\.5"
    ):
        gym.make_vec(JEL, num_envs=1.5, **tiny)


@pytest.mark.parametrize(
    "action",
    [
        np.zeros(3, dtype=np.float32),
        np.zeros(2, dtype=np.int64),
        np.array([math.nan, 0.0]),
        np.array([0.0, math.inf]),
    ],
    ids=["shape", "dtype", "nan", "infinity"],
)
def test_bad_actions_are_refused_with_what_is_accepted(action, tiny):
    env = gym.make(JEL, **tiny).unwrapped
    env.reset(seed=0)
    message = (
        r"(actions? must be (floating point |)of shape|"
        r"actions must be finite numbers).*got"
    )
    with pytest.raises(ValueError, match=message):
        env.step(action)
    assert env.plant.steps.tolist() == [0]


def test_every_channel_has_a_usual_scope_and_no_unsafe_one_is_in_a_surface_that_is_not_named_after_it():  # noqa: E501
    channels = channels_of("pretraining")
    of_the_run = ("grad_noise", "exploration", "weight_noise", "momentum")
    for name, channel in channels.items():
        ((_, scope),) = cell.SPEC.settings(channels=[name]).channels
        assert scope in channel.scopes
        assert scope == dict(cell.SPEC.channel_sets["full"]).get(
            name, "run" if name in of_the_run else channel.scopes[-1]
        )
    unsafe = {name for name, channel in channels.items() if channel.kind == "unsafe"}
    alone = {f"foundational_{name}": {name} for name in unsafe}
    beta1_again = {"momentum"}  # of AdamW, in another scale
    full = {name for name, _ in cell.SPEC.channel_sets["full"]}
    assert full == set(channels) - unsafe - beta1_again
    for surface, pairs in cell.SPEC.channel_sets.items():
        assert {name for name, _ in pairs} & unsafe <= alone.get(surface, set())


@pytest.mark.parametrize(
    ("channels", "names"),
    [
        (["grad_clip", "eps"], ["grad_clip", "eps/layer.0", "eps/layer.1"]),
        ([("lr", "run"), "grad_noise"], ["lr", "grad_noise"]),
        ((["lr", "layer"], ["dropout", "run"]), ["lr/layer.0", "lr/layer.1", "dropout"]),
        ({"lr": "layer", "dropout": "run"}, ["lr/layer.0", "lr/layer.1", "dropout"]),
        ([], []),
    ],
)
def test_channels_can_be_chosen_one_by_one(channels, names, tiny):
    env = gym.make(CELL, **tiny, preset="nano", channels=channels, num_registers=1).unwrapped
    assert env.action_names == (*names, "register/0")
    env.reset(seed=0)
    assert np.isfinite(env.step(np.full(len(names) + 1, 0.5))[1])


def test_a_channel_set_is_never_called_as_a_channel_is():
    for module in (jel, cell, grpo_projection):
        assert not set(module.SPEC.channel_sets) & set(CHANNELS)


def test_a_channel_that_stands_in_no_surface_stands_at_its_finest_scope(monkeypatch):
    gain = dataclasses.replace(
        CHANNELS["attention_gain"], name="value_gain", scopes=("run", "group", "layer")
    )
    monkeypatch.setitem(CHANNELS, "value_gain", gain)
    given = ["lr", "value_gain", "grad_noise", "momentum_blend"]
    pairs = cell.SPEC.settings(channels=given).channels
    assert pairs == (
        ("lr", "tensor"),
        ("value_gain", "layer"),
        ("grad_noise", "run"),
        ("momentum_blend", "layer"),
    )
