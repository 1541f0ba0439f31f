"""The examples run, at tiny sizes."""

import importlib
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image

from examples import (
    deploy_nanogpt_loop,
    deploy_optimizers,
    own_channel,
    own_controller,
    quickstart,
    sb3_ppo,
)
from hpenv.control.channels import CHANNELS, add_channel
from hpenv.policies import load_policy


def test_the_quickstart_draws_its_run(tiny, tmp_path):
    picture = tmp_path / "episode.png"
    assert 0.0 < quickstart.main(picture, **tiny) < 8.0
    with Image.open(picture) as image:
        assert np.asarray(image).std() > 1.0  # not a blank page


def test_an_own_controller_is_compared_with_none(tiny, capsys):
    gain = own_controller.main(range(2), tiny)
    assert f"{gain:+.1%} below off" in capsys.readouterr().out


def test_a_channel_of_ones_own_is_neutral_at_0_and_moves_the_run_at_1(tiny):
    with patch.dict(CHANNELS):
        without, neutral = own_channel.main(0.0, **tiny)
        again, moved = own_channel.main(1.0, **tiny)
    assert without == neutral == again != moved
    assert "centering" not in CHANNELS


def test_a_channel_of_ones_own_changes_each_gradient_by_its_function():
    gradient = torch.tensor([[[1.0, 3.0]], [[2.0, -2.0]]])
    fraction = torch.tensor([0.5, 1.0]).view(2, 1, 1)
    assert own_channel.center(gradient, fraction).tolist() == [[[0.0, 2.0]], [[2.0, -2.0]]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "lr"}, "name of a channel must not be taken; got 'lr'"),
        ({"change": None}, "must have a `change` .* got change=None"),
        ({"plants": ("posttraining",)}, "be of the plant 'pretraining'"),
    ],
)
def test_a_channel_that_nothing_would_read_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        add_channel(replace(own_channel.CENTERING, **change))


def test_a_model_of_sb3_is_trained_saved_and_scored(tiny, tmp_path):
    score = sb3_ppo.main(tmp_path / "ppo", num_episodes=8, **tiny)
    assert 0.0 < score < 8.0
    positions = load_policy(tmp_path / "ppo").act(np.zeros((2, 1), dtype=np.float32))
    assert positions.shape == (2, 2) and np.abs(positions).max() <= 1.0


def test_a_foreign_loop_logs_the_applied_rate_beside_the_schedulers(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    loss = deploy_nanogpt_loop.main(logs=tmp_path, num_steps=24, batch_size=4)
    assert 2.0 < loss < 6.0
    log = accumulator.EventAccumulator(str(tmp_path))
    log.Reload()
    curves = {
        f"{kind}/{group}": [entry.value for entry in log.Scalars(f"lr/{kind}/{group}")]
        for kind in ("base", "effective")
        for group in ("matrices", "vectors")
    }
    base, applied = curves["base/matrices"], curves["effective/matrices"]
    assert base == pytest.approx(
        [1e-4 * (0.55 + 0.45 * np.cos(np.pi * t / 24)) for t in range(24)]
    )  # the scheduler's own
    ratios = np.array(applied) / base
    assert ratios[:10] == pytest.approx(1.0) and ratios[20:].min() > 2.0


def rates_grow(attachment):
    """Returns True if a control law has more than doubled the rate of every group."""
    assert not attachment.fault
    last = attachment.history[-1].multipliers["lr"]
    return all(factor > 2.0 for factor in last)


def test_a_list_of_optimizers_has_a_controller_each(tmp_path):
    loss, attachments = deploy_optimizers.main(tmp_path, num_steps=40, batch_size=2)
    assert 2.0 < loss < 6.0
    assert {name: own.steps for name, own in attachments.items()} == {"Muon": 40, "AdamW": 40}
    assert all(rates_grow(own) for own in attachments.values())
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert saved["controllers"]["Muon"]["steps"] == 40


def test_a_trainer_of_transformers_logs_the_applied_rate(tmp_path):
    pytest.importorskip("accelerate", reason="needs accelerate: pip install 'hpenv[posttraining]'")
    example = importlib.import_module("examples.deploy_transformers")
    loss, trainer = example.main(tmp_path, num_steps=40, batch_size=2)
    assert 2.0 < loss < 6.0
    logs = [log for log in trainer.state.log_history if "loss" in log]
    ratios = [log["controller/lr_effective/0"] / log["learning_rate"] for log in logs]
    assert len(ratios) == 2 and max(ratios) > 1.4, ratios
    assert (tmp_path / "checkpoint-40" / "hpenv_controller.pt").is_file()


@pytest.mark.filterwarnings("ignore::UserWarning:lightning", "ignore:.*treespec")
def test_a_trainer_of_lightning_logs_the_applied_rate(tmp_path):
    pytest.importorskip("lightning", reason="needs lightning: pip install 'hpenv[lightning]'")
    example = importlib.import_module("examples.deploy_lightning")
    loss, callback = example.main(tmp_path, num_steps=40, batch_size=2)
    assert 2.0 < loss < 6.0
    assert rates_grow(callback.attachments["optimizer"])
    (log,) = tmp_path.rglob("metrics.csv")
    assert "controller/lr_effective/0" in log.read_text().splitlines()[0]
