"""Tests of programs in several processes: equality with one, and what is left of a killed rank."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from hpenv.plant.ranks import Ranks
from tests.paths import ROOT
from tests.train_agents import short_online
from tests.two_ranks import two_ranks
from train_agents.online import begin, finish, run_online
from train_agents.train import TrainConfig, Training, train

TINY = ("data=synthetic", "batch_tokens=64", "sequence_length=16", "num_steps=6", "interval=2",
        "eval_tokens=64")  # fmt: skip
#: Longest time from the death of a rank to the end of the program [seconds].
BOUND = 180
TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")


def tiny(out: Path, **changes) -> TrainConfig:
    return TrainConfig(
        **{"env_kwargs": TINY, "num_updates": 2, "episodes_per_update": 2, "num_envs": 1,
           "out": out, "tensorboard": False, **changes}
    )  # fmt: skip


def lines(folder: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    with two_ranks(tmp_path_factory.mktemp("ranks")) as opened:
        yield opened


def test_training_in_two_ranks_is_that_of_one_and_continues_in_one(ranks, tmp_path):
    train(tiny(tmp_path / "one"))
    Training(tiny(tmp_path / "two", num_updates=1), ranks).run()
    train(tiny(tmp_path / "two"))

    for one, two in zip(
        *(lines(tmp_path / n, "rollouts.jsonl") for n in ("one", "two")), strict=True
    ):
        for key in ("returns", "losses", "train_losses", "positions"):
            assert np.allclose(two[key], one[key], rtol=0.0, atol=1e-4), key
    facts = json.loads((tmp_path / "two" / "config.json").read_text())["facts"]
    assert facts["processes"] == 2


def test_online_runs_in_two_ranks_are_those_of_one(ranks, tmp_path):
    """The id has every channel of the forward pass, dropout with them, and all gauges."""
    one, two = (short_online.tiny(tmp_path / name) for name in ("one", "two"))
    expected, _ = run_online(one, short_online.ENV)
    found, _ = finish(two, begin(two, short_online.ENV, ranks))
    for left, right in zip(expected, found, strict=True):
        assert left["divergence_reason"] is right["divergence_reason"] is None
        for key in ("bpb_curve", "probe_loss", "train_loss"):
            assert np.allclose(left[key], right[key], rtol=0.0, atol=1e-4), key


def test_an_executor_is_refused_in_several_ranks(tmp_path):
    with pytest.raises(ValueError, match="executor must be 'inline' in 2 processes"):
        Training(tiny(tmp_path / "run", executor="processes:2"), Ranks(0, 2))
    assert not (tmp_path / "run").exists()


def command(out: Path, *modules: str) -> subprocess.Popen:
    options = ("--num-envs", "1", "--episodes-per-update", "1", "--num-updates", "400",
               "--no-tensorboard", "--out", str(out), "--env-kwargs", *TINY)  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-m", *modules, "train_agents.train", *options], cwd=ROOT, env=environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def process_of_rank(rank: int, parent: int) -> int:
    """Returns the id of a rank's process, of those that torchrun has started."""
    for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        if f"RANK={rank}".encode() in variables:
            return int(child)
    raise AssertionError(f"no process of rank {rank}")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc")
@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_rank_ends_the_program_by_name_and_one_process_continues(tmp_path, killed):
    folder = tmp_path / "run"
    program = command(folder, *TORCHRUN)
    try:
        until = time.monotonic() + 240
        while not list(folder.glob("checkpoints/update-*")) and time.monotonic() < until:
            assert program.poll() is None, program.stderr.read()
            time.sleep(0.05)
        assert list(folder.glob("checkpoints/update-*"))
        os.kill(process_of_rank(killed, program.pid), signal.SIGKILL)
        _, errors = program.communicate(timeout=BOUND)
    finally:
        program.kill()
    assert program.returncode != 0
    assert f"error: rank {killed} of 2 has ended" in errors, errors
    assert "start the same command again" in errors
    done = max(int(path.name[7:]) for path in folder.glob("checkpoints/update-*"))
    assert done < 400

    config = tiny(folder, episodes_per_update=1, num_updates=done + 1)
    training = Training(config)
    assert training.first in (done, done - 1)
    training.run()
    assert (folder / "policy").is_dir()
