"""Plants of post-training, and comparisons of two of them."""

import json

import numpy as np

from tests.tiny_student import CHANNELS, different

STRENGTH = (("projection_strength", "run"),)
#: The whole of an action, one column per channel.
EVERY_CHANNEL = tuple((name, "run") for name in CHANNELS)


def assert_same(left, right, but=()):
    assert [name for name in different(left, right) if not name.startswith(but)] == []


def assert_same_window(left, right, row=slice(None), other=slice(None)):
    for name, value in left.arrays().items():
        assert np.array_equal(value[row], right.arrays()[name][other]), name


def moved(plant, seed=5):
    """A plant whose cells stand at random places, so that everything there is moves."""
    positions = np.random.default_rng(seed).uniform(0.2, 0.9, plant.panel.positions.shape)
    names = plant.panel.names
    positions[:, [name.startswith(("lr", "kl")) for name in names]] -= 0.5
    plant.panel.move(positions, np.ones(plant.num_rows, dtype=bool))
    return plant


def gauge(window, name):
    return window[name]


def problem_file(path, entry_point, count, description="Return x plus {}."):
    """Writes problems of a function of this name, and returns the path as text."""
    records = [
        {
            "task_id": f"{path.name}-{i}",
            "description": description.format(i),
            "entry_point": entry_point,
            "test": (
                f"def check(candidate):\n    assert candidate(1) == {1 + i}\n"
                f"    assert candidate(-4) == {i - 4}\n"
            ),
        }
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)
