"""Figures are the same each time."""

import sys

import numpy as np
import pytest

from train_agents import figures

STEPS = np.array([0, 10, 20, 23])
MULTIPLIERS = np.exp(np.random.default_rng(0).normal(size=(3, 2)))
DRAWINGS = {
    "dynamics": lambda path: figures.curves(
        path,
        {"one": (STEPS, np.ones((1, 4))), "two": (STEPS, np.arange(8.0).reshape(2, 4))},
        "step",
        "loss [nats]",
    ),
    "actions": lambda path: figures.controller_actions(
        path,
        STEPS,
        MULTIPLIERS * 0.5,
        MULTIPLIERS,
        MULTIPLIERS * 2,
        names=["lr", "wd"],
        schedules=[MULTIPLIERS],
    ),
    "learning": lambda path: figures.curves(
        path, {"a": (STEPS, np.ones((2, 4)))}, "update", "return [nats]", "controllers"
    ),
    "bars": lambda path: figures.comparison_bars(path, [("a", 1.0, 0.9, 1.1)], "bpb"),
}


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_figure_is_a_png_without_state_and_the_same_each_time(name, tmp_path):
    had_pyplot = "matplotlib.pyplot" in sys.modules
    DRAWINGS[name](tmp_path / "folder" / "a.png")
    DRAWINGS[name](tmp_path / "b.png")
    first = (tmp_path / "folder" / "a.png").read_bytes()
    assert first.startswith(b"\x89PNG") and first == (tmp_path / "b.png").read_bytes()
    assert ("matplotlib.pyplot" in sys.modules) == had_pyplot


def test_arrays_that_do_not_fit_a_figure_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"curve 'x' must have shapes .*got \(4,\) and \(2, 3\)"):
        figures.curves(tmp_path / "x.png", {"x": (STEPS, np.ones((2, 3)))}, "x", "y")
    with pytest.raises(ValueError, match=r"must have shape \(K, 1\), for \['lr'\]"):
        figures.controller_actions(tmp_path / "x.png", STEPS, *[MULTIPLIERS] * 3, names=["lr"])
    with pytest.raises(ValueError, match=r"steps must have shape \(4,\); got \(2,\)"):
        figures.controller_actions(
            tmp_path / "x.png", STEPS[:2], *[MULTIPLIERS] * 3, names=["lr", "wd"]
        )
