import sys

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import HumanRendering, RenderCollection
from gymnasium.wrappers.vector import HumanRendering as VectorHumanRendering

import hpenv  # noqa: F401  registers the ids
from hpenv.envs import adaptive, cell, grpo_projection, jel
from hpenv.plot import HEIGHT, LEFT, RIGHT, WIDTH
from hpenv.render import CELLS, HEAT, LINES, NOT_YET, History, draw

WHITE = [255, 255, 255]
# Arguments under which an id is made in a moment; none of its runs begins.
_FEW = {
    "data": "synthetic",
    "batch_tokens": 32,
    "sequence_length": 16,
    "num_steps": 4,
    "interval": 2,
}
SMALL = {
    jel.ID: _FEW,
    adaptive.ID: _FEW,
    cell.ID: {
        "data": "synthetic",
        "batch_tokens": 32,
        "sequence_length": 16,
        "preset": "nano",
        "num_steps": 2,
    },
    grpo_projection.ID: {"num_problems": 8, "num_probe_problems": 2, "num_evaluation_problems": 4},
}
EVERY_ID = pytest.mark.parametrize("id", SMALL)


def names_of(count, size=11):
    """Names of cells, eleven for each channel."""
    return tuple(f"channel_{i // size}/layer.{i % size}" for i in range(count))


def history_of(positions, interval=1):
    """A run of these positions (T, A) of multipliers within [0.01, 100]."""
    history = History()
    history.append(0, 5.5, np.zeros(positions.shape[1]), np.ones(positions.shape[1]))
    for i, row in enumerate(positions):
        history.append((i + 1) * interval, 5.5 - i / len(positions), row, 100.0**row)
    return history


def image(positions, num_steps=None, names=None, neutral=None):
    count = positions.shape[1]
    neutral = np.ones(count) if neutral is None else neutral
    names = names_of(count) if names is None else names
    return draw(
        history_of(positions),
        names,
        neutral,
        num_steps or len(positions),
        "probe loss [nats/token]",
    )


def heat_map(*arguments, **keywords):
    return image(*arguments, **keywords)[CELLS[0] : CELLS[1], LEFT:RIGHT]


@pytest.mark.parametrize("count", [0, 1, 8, 9, 90, 300])
def test_an_image_has_one_size_and_is_the_same_each_time(count):
    positions = np.random.default_rng(0).uniform(-1, 1, (7, count))
    first = image(positions)
    assert first.shape == (HEIGHT, WIDTH, 3) and first.dtype == np.uint8
    assert HEIGHT % 16 == 0 and WIDTH % 16 == 0  # of a video
    assert first.tobytes() == image(positions).tobytes()


@pytest.mark.parametrize("count", [1, 8, 9, 90, 300, 700])
def test_one_decision_of_one_cell_is_seen(count):
    """With fewer pixels than decisions, and fewer than cells."""
    positions = np.zeros((1000, count))
    still = image(positions)[:, :RIGHT]
    for decision, column in ((0, 0), (500, count // 2), (999, count - 1)):
        moved = positions.copy()
        moved[decision, column] = 1.0
        assert (image(moved)[:, :RIGHT] != still).any()


@pytest.mark.parametrize("count", [2, 8])
def test_a_line_is_seen_where_others_lie_upon_it(count):
    together = np.full((4, count), 0.5)
    shown = image(together)[CELLS[0] : CELLS[1], LEFT:RIGHT].astype(int)
    for column in range(count):
        apart = together.copy()
        apart[-1, column] = 0.0
        height = round(
            (CELLS[1] - CELLS[0]) * 0.05 / 1.1
        )  # that of 0.5 is the upper end of the axis, but for a margin
        changed = abs(image(apart)[CELLS[0] : CELLS[1], LEFT:RIGHT].astype(int) - shown)
        assert changed[height - 10 : height + 10, -60].max() > 30


def test_lines_of_multipliers_stand_at_their_values():
    """Of positions 0 and 1, values 1 and 100: the ends of the axis, but for a margin of 5 %.

    The margin is a fraction of the distance between the two.
    """
    cells = image(np.tile([0.0, 1.0], (4, 1)))[CELLS[0] : CELLS[1], LEFT:RIGHT]
    height = CELLS[1] - CELLS[0]
    for color, part in ((LINES[0], 0.05 / 1.1), (LINES[1], 1.05 / 1.1)):
        rows = np.flatnonzero((cells[:, 200] == color).all(-1))
        assert rows.mean() == pytest.approx(height * (1 - part), abs=1.5)


def test_lines_of_cells_without_a_common_scale_stand_at_their_positions():
    neutral, names = np.array([1.0, 5.0]), ("lr", "rebound_weight")
    cells = image(np.tile([0.0, 1.0], (4, 1)), names=names, neutral=neutral)[
        CELLS[0] : CELLS[1], LEFT:RIGHT
    ]
    for color, part in ((LINES[0], 1.05 / 2.1), (LINES[1], 2.05 / 2.1)):
        rows = np.flatnonzero((cells[:, 200] == color).all(-1))
        assert rows.mean() == pytest.approx((CELLS[1] - CELLS[0]) * (1 - part), abs=1.5)


def test_a_row_of_the_heat_map_has_the_color_of_its_position():
    positions = np.tile(np.linspace(-1, 1, 11), (4, 1))
    shown = heat_map(positions)
    rows = (np.arange(11) + 0.5) * len(shown) / 11
    assert np.array_equal(
        shown[rows.astype(int), 100], HEAT[np.linspace(0, 254, 11).round().astype(int)]
    )
    assert HEAT[127].tolist() == WHITE and HEAT[0].tolist() != HEAT[254].tolist()


def test_a_pixel_of_several_decisions_shows_their_mean():
    width = RIGHT - LEFT
    alternating = np.tile([[1.0], [-1.0]], (width, 9))
    assert (heat_map(alternating) == WHITE).all()
    thirds = np.tile([[1.0], [1.0], [-1.0]], (width, 9))
    assert (heat_map(thirds)[5, :] == HEAT[127 + round(127 / 3)]).all()


def test_windows_have_the_widths_of_their_steps():
    """Decisions of 20 steps and a last one of 4."""
    history = history_of(np.repeat([[1.0], [-1.0]], 9, axis=1), interval=20)
    history.append(44, 4.0, np.zeros(9), np.ones(9))
    row = draw(history, names_of(9), np.ones(9), 44, "probe loss [1]")[CELLS[0] + 5, LEFT:RIGHT]
    red, blue, white = ((row == color).all(-1).sum() for color in (HEAT[254], HEAT[0], HEAT[127]))
    assert (red, blue, white) == (240, 240, 48)


def test_what_has_not_been_played_is_grey():
    shown = heat_map(np.ones((3, 9)), num_steps=6)
    width = RIGHT - LEFT
    assert (shown[5, width // 2 :] == NOT_YET).all() and (shown[5, : width // 2] == HEAT[254]).all()
    assert (heat_map(np.ones((0, 9)), num_steps=6)[5] == NOT_YET).all()


def test_a_run_that_was_restored_without_its_history_is_grey_before():
    history = History()
    for step in (3, 6):
        history.append(step, 1.0, np.ones(9), np.full(9, 100.0))
    shown = draw(history, names_of(9), np.ones(9), 6, "probe loss [1]")[
        CELLS[0] : CELLS[1], LEFT:RIGHT
    ]
    assert (shown[5, : (RIGHT - LEFT) // 2] == NOT_YET).all() and (
        shown[5, (RIGHT - LEFT) // 2 :] == HEAT[254]
    ).all()


def test_a_cell_at_its_neutral_value_is_white_whatever_its_position():
    history = History()
    for step in range(3):
        history.append(step, 1.0, np.full(9, -1.0), np.full(9, 5.0))
    shown = draw(history, names_of(9), np.full(9, 5.0), 2, "probe loss [1]")[
        CELLS[0] : CELLS[1], LEFT:RIGHT
    ]
    assert (shown == WHITE).all()


def test_cells_of_one_channel_stand_in_one_band():
    """Also where another channel's columns are between them."""
    names = ("lr", *(f"dropout/layer.{i}" for i in range(8)), *(f"lr/layer.{i}" for i in range(8)))
    shown = heat_map(np.tile([1.0] + [-1.0] * 8 + [1.0] * 8, (4, 1)), names=names)
    kinds = [color for color in map(tuple, shown[:, 50].tolist()) if list(color) != WHITE]
    assert kinds == sorted(kinds, key=kinds.index)


def test_a_run_that_diverged_is_drawn_up_to_there():
    history = history_of(np.zeros((3, 2)))
    history.append(4, float("nan"), np.zeros(2), np.ones(2))
    history.append(5, float("inf"), np.zeros(2), np.ones(2))
    assert draw(history, names_of(2), np.ones(2), 5, "probe loss [1]").std() > 0


def test_a_history_is_restored():
    history = history_of(np.random.default_rng(0).uniform(-1, 1, (4, 3)))
    restored = History(history.state())
    assert restored.state() == history.state()
    history.append(5, 1.0, np.zeros(3), np.ones(3))
    assert len(restored.steps) == 5 and len(restored.positions) == len(restored.values) == 5


def test_without_pillow_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r"needs Pillow: pip install 'hpenv\[render\]'"):
        image(np.zeros((1, 1)))


@EVERY_ID
def test_gymnasium_adds_the_modes_that_it_derives(id):
    for mode, inner in (("rgb_array_list", "rgb_array"), ("ansi_list", "ansi")):
        env = gym.make(id, render_mode=mode, **SMALL[id])
        assert isinstance(env, RenderCollection) and env.render_mode == mode
        assert env.unwrapped.render_mode == inner
    with pytest.warns(UserWarning, match="HumanRendering wrapper is being applied"):
        env = gym.make(id, render_mode="human", **SMALL[id])
    assert isinstance(env, HumanRendering) and env.render_mode == "human"
    assert env.metadata["render_fps"] == env.unwrapped.metadata["render_fps"]


@EVERY_ID
def test_entry_points_and_envs_declare_the_same_modes(id):
    spec = gym.spec(id)
    for entry_point in (spec.entry_point, spec.vector_entry_point):
        declared = gym.envs.registration.load_env_creator(entry_point).metadata
        env = gym.make(id, **SMALL[id])
        assert declared == {key: env.metadata[key] for key in declared} and set(declared) == {
            "render_modes",
            "render_fps",
        }


def test_frames_of_a_run_are_collected():
    env = gym.make(jel.ID, render_mode="rgb_array_list", **SMALL[jel.ID])
    env.reset(seed=0)
    env.step(np.array([0.5, 0.0], dtype=np.float32))
    frames = env.render()
    assert [frame.shape for frame in frames] == [(HEIGHT, WIDTH, 3)] * 2 and (
        frames[0] != frames[1]
    ).any()
    lines = gym.make(jel.ID, render_mode="ansi_list", **SMALL[jel.ID])
    lines.reset(seed=0)
    assert [line.split("  ")[0] for line in lines.render()] == ["step 0/4"]


def test_a_population_is_shown_by_gymnasiums_wrapper():
    env = gym.make_vec(jel.ID, num_envs=2, render_mode="rgb_array", **SMALL[jel.ID])
    shown = VectorHumanRendering(
        env
    )  # kept: in Gymnasium 1.1 the env is closed with a wrapper that is forgotten
    assert shown.render_mode == "human"
    env.reset(seed=0)
    assert [frame.shape for frame in env.render()] == [(HEIGHT, WIDTH, 3)] * 2
    with pytest.raises(ValueError, match=r"unknown render_mode 'human'.*gym\.make adds"):
        gym.make_vec(jel.ID, num_envs=2, render_mode="human", **SMALL[jel.ID])
    apart = gym.make_vec(
        jel.ID, num_envs=2, vectorization_mode="sync", render_mode="rgb_array_list", **SMALL[jel.ID]
    )
    apart.reset(seed=0)
    assert [len(frames) for frames in apart.render()] == [1, 1]
