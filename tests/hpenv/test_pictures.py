"""Pictures and lines of an environment follow its run."""

import numpy as np

from hpenv.env import TrainLoopVectorEnv
from tests.fake_plant import FakePlant
from tests.hpenv.closed_form import make, single, still


def test_pictures_are_rgb_and_change_as_the_run_goes():
    env = single(render_mode="rgb_array")
    env.reset(seed=0)
    pictures = [env.render()]
    for action in ([0.5, 0.0], [-0.5, 0.2], [0.0, 0.0]):
        env.step(np.array(action))
        pictures.append(env.render())
    for picture in pictures:
        assert picture.shape == (704, 800, 3) and picture.dtype == np.uint8
    assert len({picture.tobytes() for picture in pictures}) == 4
    assert env.render().tobytes() == pictures[-1].tobytes()


def test_lines_say_where_the_run_stands():
    env = make(2, render_mode="ansi")
    assert env.render() == ("step 0/23", "step 0/23")
    env.reset(seed=0)
    env.step(np.array([[0.5, 0.0], [0.0, -0.5]]))
    first, second = env.render()
    assert (
        first.startswith("step 10/23  probe ")
        and first.endswith("lr x10  weight_decay x1")
        and "\n" not in first
    )
    assert second.endswith("lr x1  weight_decay x0.1")
    assert make(2).render() is None


def test_a_new_episode_begins_a_new_picture():
    env = make(2, {1: 13}, "NEXT_STEP", render_mode="ansi")
    env.reset(seed=0)
    for _ in range(3):
        env.step(still(env))
    assert [line.split("  ")[0] for line in env.render()] == ["step 23/23", "step 0/23"]


def test_lines_name_the_training_loss_where_there_is_no_probe_and_the_first_of_many_cells():
    plant = FakePlant(
        1,
        channels=[(name, "layer") for name in ("lr", "grad_scale", "grad_clip", "dropout", "eps")],
    )
    env = TrainLoopVectorEnv(
        plant, reward={"loss_change": 1.0}, render_mode="ansi", num_steps=23, interval=10
    )
    env.reset(seed=0)
    env.step(still(env))
    (line,) = env.render()
    assert line.startswith("step 10/23  training ") and line.endswith(
        "x1  grad_clip/layer.0 1e+04  grad_clip/layer.1 1e+04  dropout/layer.0 0  "
        "dropout/layer.1 0  and 2 more"
    )
