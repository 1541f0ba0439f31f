"""Every Python block of README.md and docs/ runs, at tiny sizes."""

import re
from pathlib import Path
from unittest.mock import patch

import gymnasium as gym
import pytest

import hpenv
from hpenv.control.channels import CHANNELS
from hpenv.posttraining.sandbox import Sandbox, SandboxUnavailable
from hpenv.telemetry.features import FEATURES

gym.register_envs(hpenv)
PAGES = [
    Path("README.md"),
    *sorted(Path("docs").glob("*.md")),
    *sorted(Path("docs/tutorials").glob("*.md")),
]
PRETRAINING = {"data": "synthetic", "batch_tokens": 64, "sequence_length": 16, "eval_tokens": 2048}
TINY = {
    "TrainLoop-JEL-v0": PRETRAINING | {"num_steps": 23, "interval": 10},
    "TrainLoop-Cell-v0": PRETRAINING | {"num_steps": 4},
    "TrainLoop-GRPOProjection-v0": {
        "num_prompts": 2, "num_samples": 2, "num_problems": 8, "num_probe_problems": 2,
        "num_evaluation_problems": 4,
    },
}  # fmt: skip


def blocks(page):
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=str)
def test_the_blocks_run_one_after_the_other(page, monkeypatch, tmp_path):
    """A reader types them from the top, in one session."""
    try:
        Sandbox().close()
    except SandboxUnavailable as error:
        pytest.skip(str(error))
    sources = blocks(page)
    shrink(monkeypatch)
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "page"}
    with patch.dict(CHANNELS), patch.dict(FEATURES):  # a page may add to the tables
        for block in sources:
            short = block.replace("learn(8 * 12 * 10)", "learn(1)").replace("range(20)", "range(2)")
            exec(compile(short, str(page), "exec"), names)


def test_the_readme_has_five_blocks_and_at_most_150_lines():
    assert len(blocks(Path("README.md"))) >= 5
    assert len(Path("README.md").read_text(encoding="utf-8").splitlines()) <= 150


def shrink(monkeypatch):
    """Makes `gym.make` and `gym.make_vec` of the ids build tiny runs.

    The sizes that a block asks for are replaced.
    """
    for name in ("make", "make_vec"):
        original = getattr(gym, name)

        def tiny(id, *args, original=original, **kwargs):
            return original(id, *args, **(kwargs | TINY[id.removeprefix("hpenv:")]))

        monkeypatch.setattr(gym, name, tiny)
