"""The caller's torch state: a run is bitwise the same under every state of torch."""

import contextlib
import functools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from hashlib import sha256
from unittest.mock import patch

import gymnasium as gym
import numpy as np
import pytest
import torch

from hpenv import branching, isolation
from hpenv.envs import cell, grpo_projection, jel
from hpenv.isolation import AUTOCAST_DEVICES, with_torch_defaults
from hpenv.lm import data
from hpenv.plant import snapshots
from hpenv.posttraining import plant as grpo
from tests import tiny_student
from tests.paths import ROOT

SMALL = {"num_steps": 3, "interval": 1, "observation": "full"}
TEXT = SMALL | {
    "data": "synthetic",
    "preset": "nano",
    "batch_tokens": 16,
    "sequence_length": 8,
    "eval_tokens": 64,
}
MODULES = {
    jel: TEXT,
    cell: TEXT | {"channels": "full", "num_probe_batches": 1},
    grpo_projection: SMALL
    | tiny_student.TINY
    | {"channels": "full", "num_samples": 2, "num_probe_problems": 1},
}


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def default_device(device):
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def everything():
    with (
        torch.no_grad(),
        default_device("meta"),
        torch.autocast("cpu", torch.bfloat16),
        default_dtype(torch.float64),
    ):
        yield


@contextlib.contextmanager
def everything_in_inference():
    with (
        default_dtype(torch.float16),
        torch.device("meta"),
        torch.inference_mode(),
        torch.autocast("cpu"),
    ):
        yield


STATES = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "float64": lambda: default_dtype(torch.float64),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "everything": everything,
    "everything_in_inference": everything_in_inference,
}


def state():
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_default_dtype(),
        torch.get_default_device(),
        tuple(torch.is_autocast_enabled(device) for device in AUTOCAST_DEVICES),
    )


@pytest.fixture(scope="module")
def arguments():
    with (
        tiny_student.few_pairs(),
        patch.object(grpo, "Grader", lambda *_: tiny_student.FakeGrader()),
    ):
        yield MODULES | {
            grpo_projection: MODULES[grpo_projection]
            | {"student": tiny_student.student(1, tiny_student.SHORT)}
        }


def play(env):
    """Every number that the methods of an env give, and its weights at the end."""
    actions = np.random.default_rng(0).uniform(-0.5, 0.5, (3, *env.action_space.shape))
    results = [env.reset(seed=3), env.step(actions[0])]
    saved = branching.snapshot(env)
    results += [env.step(actions[1]), env.evaluate()]
    branching.restore(env, saved)
    results += [
        branching.counterfactual(env, actions[:, 0], 1),
        branching.fork(env, 1, 1).step(actions[1][:1]),
        env.step(actions[2]),
    ]
    tensors = branching.snapshot(env).tensors
    return repr(results), {
        name: sha256(tensor.numpy().tobytes()).digest() for name, tensor in tensors.items()
    }


@pytest.fixture(scope="module")
def made(arguments):
    """An env of each id, made when it is first asked for, and what was played with it."""

    @functools.cache
    def make(module):
        env = module.make_vector_env(2, **arguments[module])
        return env, play(env)

    return make


@pytest.mark.parametrize("name", STATES)
@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.ID)
def test_a_run_is_bitwise_the_same_under_every_state_of_torch(module, name, arguments, made):
    outside, expected = made(module)
    with STATES[name]():
        before = state()
        for env in (outside, module.make_vector_env(2, **arguments[module])):
            assert play(env) == expected
            assert state() == before


def test_what_is_kept_for_later_environments_is_no_tensor_of_the_callers_state():
    data._synthetic_corpus.cache_clear()
    with everything_in_inference():
        env = jel.make_env(**MODULES[jel])
    corpus = env.plant.corpus
    assert not corpus.train.is_inference() and corpus.train.device.type == "cpu"
    assert data.load_corpus("synthetic", "bytes").train is corpus.train


@pytest.mark.parametrize("name", STATES)
def test_a_snapshot_goes_to_disk_and_back_under_every_state_of_torch(name, tmp_path):
    env, other = (jel.make_env(**MODULES[jel]) for _ in range(2))
    env.reset(seed=0)
    with STATES[name]():
        snapshots.save(tmp_path / "here", branching.snapshot(env))
        saved = snapshots.load(tmp_path / "here")
    branching.restore(other, saved)
    assert repr(other.step(np.zeros(2))) == repr(env.step(np.zeros(2)))


def test_a_call_that_raises_gives_the_callers_state_back():
    env = jel.make_env(**MODULES[jel])
    with everything():
        before = state()
        with pytest.raises(gym.error.ResetNeeded):
            env.evaluate()
        assert state() == before


@pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="this system cannot fork"
)
def test_an_env_that_was_stepped_on_several_threads_does_not_hang_the_workers_that_are_forked_later():  # noqa: E501
    """In a process of its own, which ends in time.

    Without the guard the workers wait for threads that they lack.
    """
    code = """
import gymnasium, json, sys, torch, hpenv
torch.set_num_threads(2)
arguments = json.loads(sys.argv[1])
env = gymnasium.make("TrainLoop-JEL-v0", **arguments)
env.reset(seed=0)
env.step(env.action_space.sample())
envs = gymnasium.make_vec(
    "TrainLoop-JEL-v0", 2, vectorization_mode="async",
    vector_kwargs={"context": "fork"}, **arguments,
)
envs.reset(seed=0)
envs.step(envs.action_space.sample())
envs.close()
print("done", torch.get_num_threads())
"""
    arguments = {
        "data": "synthetic",
        "num_steps": 4,
        "interval": 1,
        "batch_tokens": 512,
        "eval_tokens": 64,
    }
    command = [sys.executable, "-c", code, json.dumps(arguments)]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            printed, _ = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with the workers, which hang
            pytest.fail("the forked workers hang")
    assert printed.split() == ["done", "2"] and process.returncode == 0


def test_a_forked_process_computes_on_one_thread_and_gives_the_callers_back(monkeypatch):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert with_torch_defaults(torch.get_num_threads)() == 2
        monkeypatch.setattr(isolation, "_forked", True)
        assert with_torch_defaults(torch.get_num_threads)() == 1 and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
