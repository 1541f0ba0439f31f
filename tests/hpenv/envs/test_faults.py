"""A fault in one run of a population ends that run with its reason and finite numbers.

No other run notices.
"""

import math

import gymnasium as gym
import numpy as np
import pytest
import torch

import hpenv  # noqa: F401  registers the ids
from hpenv import branching
from hpenv.lm import architecture, model
from hpenv.plant.protocol import DIVERGENCE_REASONS

N = 4
NANO = architecture.parameter_shapes(architecture.preset("nano"))
TENSORS = [
    pytest.param(name, 1 + 3 * i % 8, i % N, id=name) for i, name in enumerate(NANO)
]  # tensor, step, row
ACTIONS = np.random.default_rng(0).uniform(-0.5, 0.5, (3, N, 2)).astype(np.float32)


def make():
    """A population of four runs of three decisions (4, 4 and 2 steps), at its beginning."""
    env = gym.make_vec(
        "TrainLoop-JEL-v0",
        num_envs=N,
        data="synthetic",
        batch_tokens=64,
        sequence_length=16,
        num_steps=10,
        interval=4,
        observation="full",
        autoreset_mode="DISABLED",
    )
    env.reset(seed=11)
    return env


@pytest.fixture(scope="module")
def clean():
    """Every decision of the episode without a fault, and its weights at the end."""
    env = make()
    return [env.step(action) for action in ACTIONS], env.plant.weights


def at_step(plant, step, fault):
    """Calls `fault` once, just before the population's optimizer step of this number."""
    original, calls = plant._step, []

    def wrapped(*arguments):
        calls.append(None)
        if len(calls) == step + 1:
            fault()
        return original(*arguments)

    plant._step = wrapped


def check(env, row, reason, clean, step=None):
    """Plays the episode with the fault: only its row ends, with the reason and finite numbers.

    The other rows are those of the clean episode.
    """
    episode, weights = clean
    others = [i for i in range(N) if i != row]
    ended_at = None
    for decision, (action, expected) in enumerate(zip(ACTIONS, episode, strict=True)):
        obs, rewards, terminated, truncated, infos = env.step(action)
        assert (
            env.observation_space.contains(obs)
            and np.isfinite(obs).all()
            and np.isfinite(rewards).all()
        )
        for key, value in infos.items():
            assert np.isfinite(value).all(), key
        assert np.array_equal(obs[others], expected[0][others])
        assert np.array_equal(rewards[others], expected[1][others])
        assert np.array_equal(terminated[others], expected[2][others]) and not truncated.any()
        for key in ("probe_loss", "train_loss", "gradient_norm", "step"):
            assert np.array_equal(infos[key][others], expected[4][key][others])
        if terminated[row] and ended_at is None:
            ended_at = decision
            assert DIVERGENCE_REASONS[infos["divergence"][row]] == reason
            assert (infos["divergence"] > 0).tolist() == [i == row for i in range(N)]
            assert infos["reward_terms/divergence"].tolist() == [-float(i == row) for i in range(N)]
        elif ended_at is not None:
            assert terminated[row] and rewards[row] == 0.0 and not infos["_step"][row]
        else:
            assert not infos["divergence"].any()
    assert ended_at is not None
    if step is not None:
        assert ended_at == step // 4 and env.plant.steps[row] == step
    for name, weight in env.plant.weights.items():
        assert torch.equal(weight[others], weights[name][others]), name


def most_frequent(plant):
    return int(plant.corpus.train[:10_000].long().bincount().argmax())


@pytest.mark.parametrize(("name", "step", "row"), TENSORS)
def test_nan_in_one_weight(name, step, row, clean):
    env = make()

    def fault():
        env.plant.weights[name][row, most_frequent(env.plant) if NANO[name][0] == 256 else 5, 3] = (
            math.nan
        )

    at_step(env.plant, step, fault)
    check(env, row, "loss_nonfinite", clean, step)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_batch_whose_loss_is_not_finite(value, clean):
    env = make()
    original, calls = env.plant._loss, []

    def loss(*arguments):
        calls.append(None)
        losses = original(*arguments)
        return losses + torch.tensor([0.0, 0.0, value, 0.0]) if len(calls) == 8 else losses

    env.plant._loss = loss
    check(env, 2, "loss_nonfinite", clean, 7)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(("name", "step", "row"), TENSORS[::3])
def test_one_gradient_that_is_not_finite(name, step, row, value, clean, monkeypatch):
    env = make()
    original, calls = torch.autograd.grad, []

    def grad(*arguments, **options):
        gradients = [g.clone() for g in original(*arguments, **options)]
        calls.append(None)
        if len(calls) == step + 1:
            gradients[list(NANO).index(name)][row, 0, 1] = value
        return gradients

    before = {}
    monkeypatch.setattr(torch.autograd, "grad", grad)
    at_step(
        env.plant,
        step,
        lambda: before.update({n: w[row].clone() for n, w in env.plant.weights.items()}),
    )
    check(env, row, "gradient_nonfinite", clean, step)
    for tensor, weight in env.plant.weights.items():
        assert torch.equal(weight[row], before[tensor]), (
            "the optimizer stepped on a gradient that is not finite"
        )


def test_a_loss_above_the_limit(clean):
    env = make()

    def fault():
        table = env.plant.weights["unembedding"][1]
        table.copy_(torch.randn(table.shape, generator=torch.Generator().manual_seed(0)) * 100)

    at_step(env.plant, 6, fault)
    check(env, 1, "loss_above_limit", clean, 6)


@pytest.mark.parametrize(
    ("value", "reason"),
    [(math.nan, "loss_nonfinite"), (math.inf, "loss_nonfinite"), (1e3, "loss_above_limit")],
)
def test_a_probe_that_is_not_finite_or_too_high(value, reason, clean, monkeypatch):
    env = make()
    original, calls = model.mean_losses, []

    def probe(*arguments):
        calls.append(None)
        losses = original(*arguments)
        return losses + torch.tensor([0.0, value, 0.0, 0.0]) if len(calls) == 2 else losses

    monkeypatch.setattr(model, "mean_losses", probe)  # the training step holds its own reference
    check(env, 1, reason, clean)
    assert env.plant.steps[1] == 8


def test_the_observation_of_a_run_that_diverged_holds_the_last_numbers_that_were_finite():
    env = make()
    env.step(ACTIONS[0])
    probe = env.plant._window["probe_loss"][3]
    env.plant.weights["layer.1.up"][3] = math.nan
    obs, rewards, terminated, _, infos = env.step(ACTIONS[1])
    assert terminated.tolist() == [False, False, False, True]
    assert infos["probe_loss"][3] == probe and infos["step"].tolist() == [8, 8, 8, 4]
    assert rewards[3] == pytest.approx(probe - env.episodes.initial[3] - 1.0)
    assert obs[3, 0] == np.float32(4 / 10)


def test_two_runs_that_diverge_apart_have_their_own_reasons():
    env = make()
    env.plant.weights["layer.0.up"][0] = math.nan
    _, _, terminated, _, infos = env.step(ACTIONS[0])
    assert terminated.tolist() == [True, False, False, False]
    table = env.plant.weights["unembedding"][2]
    table.copy_(torch.randn(table.shape, generator=torch.Generator().manual_seed(0)) * 100)
    _, _, terminated, _, infos = env.step(ACTIONS[1])
    assert terminated.tolist() == [True, False, True, False]
    reasons = [DIVERGENCE_REASONS[code] for code in infos["divergence"]]
    assert reasons == ["loss_nonfinite", "", "loss_above_limit", ""] and not infos["_divergence"][0]


def test_a_run_that_diverged_is_sound_after_its_reset():
    env, fresh = make(), make()
    env.plant.weights["layer.0.up"][2] = math.nan
    env.step(ACTIONS[0])
    env.reset(seed=[0, 0, 500, 0], options={"reset_mask": np.array([False, False, True, False])})
    fresh.reset(seed=[0, 0, 500, 0])
    _, _, terminated, _, infos = env.step(ACTIONS[1])
    _, _, _, _, expected = fresh.step(ACTIONS[1])
    assert not terminated.any()
    assert infos["probe_loss"][2] == expected["probe_loss"][2]
    for name, weight in env.plant.weights.items():
        assert torch.equal(weight[2], fresh.plant.weights[name][2])


def test_a_single_run_that_diverges_terminates_with_scalars(tiny):
    env = gym.make("TrainLoop-JEL-v0", **tiny).unwrapped
    env.reset(seed=0)
    env.plant.weights["layer.0.value"][0, 0, 0] = math.nan
    _, reward, terminated, truncated, info = env.step(np.zeros(2, dtype=np.float32))
    assert terminated and not truncated and reward == -1.0
    assert DIVERGENCE_REASONS[info["divergence"]] == "loss_nonfinite" and info["step"] == 0
    assert all(math.isfinite(value) for value in info.values())


def test_a_diverged_run_survives_a_snapshot():
    env, other = make(), make()
    env.plant.weights["layer.0.up"][2] = math.nan
    env.step(ACTIONS[0])
    branching.restore(other, branching.snapshot(env))
    left, right = env.step(ACTIONS[1]), other.step(ACTIONS[1])
    for a, b in zip(left[:4], right[:4], strict=True):
        assert np.array_equal(a, b)
    assert left[2].tolist() == [False, False, True, False]
