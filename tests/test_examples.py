"""The examples run, at tiny sizes."""

import numpy as np
from PIL import Image

from examples import own_controller, quickstart, sb3_ppo
from hpenv.policies import load_policy


def test_the_quickstart_draws_its_run(tiny, tmp_path):
    picture = tmp_path / "episode.png"
    assert 0.0 < quickstart.main(picture, **tiny) < 8.0
    with Image.open(picture) as image:
        assert np.asarray(image).std() > 1.0  # not a blank page


def test_an_own_controller_is_compared_with_none(tiny, capsys):
    gain = own_controller.main(range(2), tiny)
    assert f"{gain:+.1%} below off" in capsys.readouterr().out


def test_a_model_of_sb3_is_trained_saved_and_scored(tiny, tmp_path):
    score = sb3_ppo.main(tmp_path / "ppo", num_episodes=8, **tiny)
    assert 0.0 < score < 8.0
    positions = load_policy(tmp_path / "ppo").act(np.zeros((2, 1), dtype=np.float32))
    assert positions.shape == (2, 2) and np.abs(positions).max() <= 1.0
