"""Every Python block of README.md runs, at tiny sizes."""

import re
from pathlib import Path

import gymnasium as gym
import pytest

import hpenv
from hpenv.posttraining.sandbox import Sandbox, SandboxUnavailable

gym.register_envs(hpenv)
BLOCKS = re.findall(
    r"^```python\n(.*?)^```", Path("README.md").read_text(encoding="utf-8"), re.M | re.S
)
PRETRAINING = {"data": "synthetic", "batch_tokens": 64, "sequence_length": 16, "eval_tokens": 2048}
TINY = {
    "TrainLoop-JEL-v0": PRETRAINING | {"num_steps": 23, "interval": 10},
    "TrainLoop-Cell-v0": PRETRAINING | {"num_steps": 4},
    "TrainLoop-GRPOProjection-v0": {
        "num_prompts": 2, "num_samples": 2, "num_problems": 8, "num_probe_problems": 2, "num_evaluation_problems": 4,
    },
}  # fmt: skip


def test_the_blocks_run_one_after_the_other(monkeypatch, tmp_path):
    """A reader types them from the top, in one session."""
    try:
        Sandbox().close()
    except SandboxUnavailable as error:
        pytest.skip(str(error))
    assert len(BLOCKS) >= 4
    shrink(monkeypatch)
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "readme"}
    for block in BLOCKS:
        exec(compile(block.replace("learn(8 * 12 * 10)", "learn(1)"), "README", "exec"), names)


def shrink(monkeypatch):
    """Makes `gym.make` and `gym.make_vec` of the ids build tiny runs, whatever sizes a block asks for."""
    for name in ("make", "make_vec"):
        original = getattr(gym, name)

        def tiny(id, *args, original=original, **kwargs):
            return original(id, *args, **(kwargs | TINY[id.removeprefix("hpenv:")]))

        monkeypatch.setattr(gym, name, tiny)
