"""The projection id: its infos, pictures, scores and arguments."""

import dataclasses
import json
import re

import gymnasium as gym
import numpy as np
import pytest

import hpenv  # noqa: F401  registers the ids
from hpenv.envs import grpo_projection
from hpenv.optim.schedules import Constant, Cosine
from hpenv.plot import RIGHT
from hpenv.posttraining.config import GRPOConfig
from hpenv.posttraining.measurements import GAUGE_NAMES, PRIVILEGED_NAMES
from hpenv.render import CELLS
from tests import tiny_student
from tests.hpenv.envs.every_id import CELL, PROJECTION, executes, play, random_actions
from train_agents import evaluate


def test_defaults_of_the_projection_are_those_of_its_manual():
    settings = grpo_projection.SPEC.settings()
    episode, config = settings.episode, settings.config
    assert (config.student, episode.num_steps, episode.interval) == ("nano", 200, 1)
    assert episode.channels == "projection"
    assert episode.reward == {"probe_pass": 1.0, "flagged_hacks": 1.0, "divergence": 1.0}
    assert dataclasses.replace(config, lr_schedule=Constant()) == GRPOConfig()
    assert config.lr_schedule == Cosine(200, 10)
    assert grpo_projection.SPEC.settings(num_steps=6).config.lr_schedule == Cosine(6, 3)


@executes
def test_what_is_true_of_a_run_is_in_its_info_alone(tiny_projection):
    """Gauges are the grader's payments and measures.

    The rates by the true verdict have a key of their own.
    """
    env = gym.make(PROJECTION, **tiny_projection, channels="full")
    episode = play(env, random_actions(env), seed=1)
    for prefix, names in (
        ("gauges", (*GAUGE_NAMES, "probe_pass")),
        ("privileged", PRIVILEGED_NAMES),
    ):
        keys = [f"{prefix}/{name}" for name in names]
        assert [key for key in episode[0][4] if key.startswith(prefix)] == keys
        assert [episode[0][4][key] for key in keys] == [0.0] * len(keys)
    for _, reward, _, _, info in episode[1:]:
        expected = info["gauges/probe_pass"] - info["gauges/flagged"]
        assert (
            reward
            == pytest.approx(expected)
            == info["reward_terms/probe_pass"] + info["reward_terms/flagged_hacks"]
        )
    assert not set(env.unwrapped.observation_names) & set(PRIVILEGED_NAMES)
    assert env.unwrapped.metadata["stacked"] is True


@executes
def test_a_projection_run_is_scored_by_passes_less_hacks_and_reported_apart(
    tiny_projection, capsys
):
    rows = evaluate.evaluate_controller(None, PROJECTION, tiny_projection, [0, 1])
    for row in rows:
        assert (
            row["score"] == row["pass"] - row["hack"]
            and "bpb" not in row
            and len(row["train_curve"]) == 3
        )
    assignments = [f"{key}={json.dumps(value)}" for key, value in tiny_projection.items()]
    evaluate.main(["--env", PROJECTION, "--seeds", "1", "--env-kwargs", *assignments])
    printed = capsys.readouterr().out
    assert (
        "held-out passes less hacks" in printed
        and "held-out hack" in printed
        and "bits per byte" not in printed
    )


@executes
def test_a_picture_of_a_projection_run_shows_strengths_that_are_zero(tiny_projection):
    neutral, full = np.array([-1.0], dtype=np.float32), np.array([1.0], dtype=np.float32)
    env = gym.make(PROJECTION, **tiny_projection, render_mode="ansi")
    env.reset(seed=0)
    env.step(full)
    assert re.fullmatch(r"step 2/5  probe [01]\.\d{4}  projection_strength 1", env.render())
    pictures = []
    for action in (neutral, full):
        env = gym.make(PROJECTION, **tiny_projection, render_mode="rgb_array")
        env.reset(seed=0)
        env.step(action)
        pictures.append(env.render()[CELLS[0] :, :RIGHT].astype(int))
    blank = gym.make(PROJECTION, **tiny_projection, render_mode="rgb_array")
    blank.reset(seed=0)
    empty = blank.render()[CELLS[0] :, :RIGHT].astype(int)
    colored = [
        (abs(picture - picture.mean(-1, keepdims=True)).max(-1) > 30).sum()
        for picture in (*pictures, empty)
    ]
    assert (
        colored[0] > 50 + colored[2]
        and colored[1] > 50 + colored[2]
        and (pictures[0] != pictures[1]).any()
    )


@executes
def test_every_corner_of_the_projection_is_finite_or_an_outcome(tiny_projection):
    env = gym.make_vec(
        PROJECTION, num_envs=3, **tiny_projection | {"channels": "full", "base_lr": 1.0}
    )
    env.reset(seed=0)
    corners = np.array([[1.0] * 6, [-1.0] * 6, [1.0, 1.0, -1.0, -1.0, 1.0, 1.0]], dtype=np.float32)
    for _ in range(4):
        obs, rewards, _, _, infos = env.step(corners)
        assert env.observation_space.contains(obs) and np.isfinite(rewards).all()
        assert all(np.isfinite(values).all() for values in infos.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"channels": "all"},
            r"unknown channels 'all'; expected one of \['full', 'modules', 'projection'\]",
        ),
        (
            {"channels": ["dropout"]},
            r"channel 'dropout' applies to pretraining alone; expected one of \['direction_ref",
        ),
        (
            {"channels": ["lr", "kl"]},
            r"unknown channel 'kl'; expected one of \['direction_refresh', ",
        ),
        (
            {"observation": "all"},
            r"unknown observation 'all'; expected one of \['full', 'progress', 'reward'\]",
        ),
        (
            {"observation": ["progress", "loss"]},
            r"unknown feature 'loss'; expected one of \['coefficient_norm', ",
        ),
        (
            {"observation": ["progress", "momentum_norm"]},
            "unknown feature 'momentum_norm'; expected one of",
        ),
        ({"reward": {"hack": 1.0}}, r"unknown reward term 'hack'; expected some of \['budget', "),
        (
            {"reward": {"same_batch_change": 1.0}},
            "reward term 'same_batch_change' reads what this plant does not meas",
        ),
        ({"reward": {}}, "reward must be a mapping of terms to weights, .*; got {}"),
        ({"route": "no"}, "route must be True or False; got 'no'"),
        (
            {"schedule": "cosin"},
            r"unknown schedule 'cosin'; expected one of \['constant', 'cosine', ",
        ),
        ({"interval": 6}, "interval must be .*, from 1 to num_steps=5; got 6"),
        ({"num_samples": 1}, "num_samples must be at least 2, .* got 1"),
        ({"rule": "sideways"}, r"unknown rule 'sideways'; expected one of \['drift', "),
        ({"student": None}, "student must be the name of a shipped student.*; got None"),
        ({"cache": "/nowhere/verdicts"}, "cannot keep verdicts: there is no folder '/nowhere'"),
        (
            {"student": "/nowhere/giant"},
            r"no student in /nowhere/giant; expected one of \['nano'\], a folder with",
        ),
        (
            {"data": "stdlib"},
            r"TrainLoop-GRPOProjection-v0 got an unexpected keyword argument 'data'; expected some "
            r"of \['advantage",
        ),
    ],
)
def test_bad_arguments_of_the_projection_are_refused_by_name(arguments, message, tiny_projection):
    with pytest.raises(ValueError, match=message):
        gym.make(PROJECTION, **tiny_projection | arguments)
    with pytest.raises(ValueError, match=message):
        gym.make_vec(PROJECTION, num_envs=2, **tiny_projection | arguments)


def test_a_student_that_was_loaded_in_another_way_is_taken_as_it_is(tiny_projection):
    own = tiny_student.student()
    env = gym.make(PROJECTION, **tiny_projection | {"student": own}).unwrapped
    assert env.plant.student is own


def test_gauges_of_another_plant_are_refused_by_name(tiny, tiny_projection):
    with pytest.raises(
        ValueError, match=r"unknown feature 'probe_pass'; expected one of \['gradient_agreement', "
    ):
        gym.make(CELL, **tiny, preset="nano", observation=["progress", "probe_pass"])
    with pytest.raises(
        ValueError, match="reward term 'flagged_hacks' reads what this plant does not measure"
    ):
        gym.make(CELL, **tiny, preset="nano", reward={"flagged_hacks": 1.0})
    with pytest.raises(ValueError, match="unknown feature 'momentum_norm'"):
        gym.make(PROJECTION, **tiny_projection, observation=["progress", "momentum_norm"])
