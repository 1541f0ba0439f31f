"""Tests of intervals (by hand, against tables), atomic result files, and figures' arguments."""

import importlib.metadata
import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from hpenv.benchmark import facts
from hpenv.benchmark.facts import environment_facts
from hpenv.benchmark.results import markdown_table, read_result, write_result
from hpenv.benchmark.statistics import (
    controllers_interval,
    mean_interval,
    paired_interval,
    paired_relative_interval,
    t_quantile,
)
from train_agents import figures


@pytest.mark.parametrize(
    ("degrees", "quantile"),
    [
        (1, 12.706205), (2, 4.302653), (3, 3.182446), (4, 2.776445), (5, 2.570582), (9, 2.262157),
        (10, 2.228139),
        (29, 2.045230), (30, 2.042272), (120, 1.979930), (1000, 1.962339),
    ],
)  # fmt: skip
def test_t_quantiles_equal_the_tables(degrees, quantile):
    assert t_quantile(0.975, degrees) == pytest.approx(quantile, abs=1e-6)


def test_t_quantiles_equal_closed_forms():
    assert t_quantile(0.5, 7) == pytest.approx(0.0, abs=1e-12)
    assert t_quantile(0.75, 1) == pytest.approx(1.0)  # Cauchy: tan(pi (p - 1/2))
    p = 0.99
    assert t_quantile(p, 2) == pytest.approx((2 * p - 1) / math.sqrt(2 * p * (1 - p)))
    assert t_quantile(0.995, 9) == pytest.approx(3.249836, abs=1e-6)


@pytest.mark.parametrize(("probability", "degrees"), [(0.4, 3), (1.0, 3), (0.9, 0)])
def test_t_quantiles_that_do_not_exist_are_refused(probability, degrees):
    with pytest.raises(ValueError, match=r"must be in \[0.5, 1\)"):
        t_quantile(probability, degrees)


def test_mean_interval_by_hand():
    # mean 2, standard deviation 1, t(0.975, 2) = 4.302653: half width 4.302653 / sqrt(3)
    interval = mean_interval([1.0, 2.0, 3.0])
    assert interval == pytest.approx((2.0, 2.0 - 2.484138, 2.0 + 2.484138), abs=1e-6)
    assert mean_interval([5.0, 5.0]) == (5.0, 5.0, 5.0)
    assert mean_interval([1.0, 2.0, 3.0], 0.9)[2] == pytest.approx(
        2.0 + 2.919986 / math.sqrt(3), abs=1e-6
    )


def test_paired_intervals_by_hand():
    a, b = [1.0, 2.0, 3.0], [2.0, 4.0, 6.0]  # b - a = 1, 2, 3; (b - a) / b = 1/2 each
    assert paired_interval(a, b) == pytest.approx((2.0, 2.0 - 2.484138, 2.0 + 2.484138), abs=1e-6)
    assert paired_relative_interval(a, b) == pytest.approx((0.5, 0.5, 0.5))
    assert paired_relative_interval(b, a) == pytest.approx((-1.0, -1.0, -1.0))


def test_pairing_removes_what_a_seed_has_in_common():
    rng = np.random.default_rng(0)
    luck = rng.normal(0.0, 1.0, 10)
    a, b = 2.0 + luck, 2.5 + luck + rng.normal(0.0, 0.01, 10)
    _, low, high = paired_interval(a, b)
    assert 0.48 < low < 0.5 < high < 0.52
    assert mean_interval(b)[2] - mean_interval(b)[1] > 10 * (high - low)


@pytest.mark.parametrize("values", [[], [1.0], [1.0, float("nan")], [1.0, float("inf")]])
def test_an_interval_of_too_little_or_of_nan_is_refused(values):
    with pytest.raises(ValueError, match="must be at least 2, all finite"):
        mean_interval(values)


def test_samples_that_do_not_pair_are_refused():
    with pytest.raises(ValueError, match="one value of each per seed"):
        paired_interval([1.0, 2.0], [1.0, 2.0, 3.0])


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_the_interval_over_seeds_covers_what_it_says(seeds):
    """With 10,000 experiments, the standard error of the fraction is 0.22 points."""
    values = np.random.default_rng(seeds).normal(1.0, 0.3, (10_000, seeds))
    covered = [low <= 1.0 <= high for _, low, high in map(mean_interval, values)]
    assert 0.94 <= np.mean(covered) <= 0.96


@pytest.mark.parametrize("seeds", [5, 10])
@pytest.mark.parametrize("controllers", [5, 8])
def test_the_interval_over_controllers_covers_what_it_says(controllers, seeds):
    """Seeds are easy or hard for all controllers, in 10,000 experiments.

    The true value is a new controller's mean on these seeds.
    """
    random = np.random.default_rng([controllers, seeds])
    shape = (10_000, controllers, seeds)
    shared = random.normal(0.0, 0.3, (10_000, 1, seeds))
    matrices = (
        1.0 + shared + random.normal(0.0, 0.2, (*shape[:2], 1)) + random.normal(0.0, 0.1, shape)
    )
    truth = 1.0 + shared.mean((1, 2))
    covered = [
        low <= true <= high
        for true, (_, low, high) in zip(truth, map(controllers_interval, matrices), strict=True)
    ]
    assert 0.94 <= np.mean(covered) <= 0.96


def test_the_interval_over_controllers_by_hand():
    means = [1.0, 2.0, 3.0, 4.0, 5.0]
    matrix = np.array(means)[:, None] + np.array([-1.0, 1.0])
    assert controllers_interval(matrix) == pytest.approx(mean_interval(means))
    assert controllers_interval(matrix[:4]) is None
    with pytest.raises(ValueError, match=r"must have shape \(controllers, seeds\); got \(5,\)"):
        controllers_interval(means)


def test_markdown_table_aligns_numbers_and_escapes():
    text = markdown_table(["method", "bpb"], [["a|b", 1.25], ["c\nd", "-"]])
    assert text == "| method | bpb |\n| --- | ---: |\n| a\\|b | 1.25 |\n| c d | - |"
    assert markdown_table(["x"], []) == "| x |\n| --- |"
    with pytest.raises(ValueError, match=r"must have 2 cells, .*got 1"):
        markdown_table(["a", "b"], [[1]])


ROW = {
    "seed": 1,
    "corpus": "abc",
    "bpb": 1.23456789012,
    "probe_curve": [1.23456789012, 2],
    "bpb_curve": [1.23456789012],
}


def test_a_result_comes_back_as_it_was_written(tmp_path):
    path = tmp_path / "deep" / "result.json"
    write_result(
        path,
        "test",
        {"rate": [0.123456789], "path": tmp_path},
        [ROW, ROW | {"seed": 2}],
        {"note": "x"},
    )
    result = read_result(path)
    assert result["kind"] == "test" and result["extra"] == {"note": "x"} and result["notes"] == []
    assert result["configuration"] == {"rate": [0.123456789], "path": str(tmp_path)}
    assert result["rows"][1]["seed"] == 2 and result["facts"]["corpus"] == "abc"


def test_curves_are_rounded_and_scores_are_not(tmp_path):
    write_result(tmp_path / "r.json", "test", {}, [ROW], {"table": [{"bpb": [1.23456789012]}]})
    result = read_result(tmp_path / "r.json")
    assert result["rows"][0]["bpb"] == 1.23456789012
    assert result["rows"][0]["bpb_curve"] == [1.23456789012]
    assert result["rows"][0]["probe_curve"] == [1.23457, 2]
    assert result["extra"]["table"][0]["bpb"] == [1.23456789012]


def test_numbers_that_json_cannot_hold_become_null_with_a_note(tmp_path):
    row = {"seed": 1, "bpb": float("nan"), "curve": np.array([1.0, np.inf])}
    write_result(tmp_path / "r.json", "test", {}, [row])
    json.loads((tmp_path / "r.json").read_text(), parse_constant=pytest.fail)
    result = read_result(tmp_path / "r.json")
    assert result["rows"] == [{"seed": 1, "bpb": None, "curve": [1.0, None]}]
    assert result["notes"] == ["rows[0].bpb was nan", "rows[0].curve[1] was inf"]


def test_arrays_tensors_and_scalars_become_plain(tmp_path):
    row = {
        "a": np.float32(0.5),
        "b": np.arange(2),
        "c": torch.ones(1),
        "d": np.bool_(True),
        "e": (1, None),
        "f": object,
    }
    write_result(tmp_path / "r.json", "test", {}, [row])
    expected = {
        "a": 0.5,
        "b": [0, 1],
        "c": [1.0],
        "d": True,
        "e": [1, None],
        "f": "<class 'object'>",
    }
    assert read_result(tmp_path / "r.json")["rows"] == [expected]


def test_a_write_that_fails_leaves_the_old_result_and_no_rubbish(tmp_path, monkeypatch):
    path = tmp_path / "r.json"
    write_result(path, "old", {}, [])

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_result(path, "new", {}, [])
    assert read_result(path)["kind"] == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"kind": "x"}'])
def test_what_is_no_result_file_is_named(tmp_path, text):
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(ValueError, match=r"r\.json must be a JSON object with the keys"):
        read_result(tmp_path / "r.json")


def test_facts_name_what_a_number_depends_on():
    found = environment_facts({"preset": "nano"}, "abc")
    assert found["versions"]["torch"] == importlib.metadata.version("torch")
    assert found["versions"]["numpy"] == np.__version__
    assert set(found["versions"]) == {"python", "hpenv", "torch", "numpy", "gymnasium"}
    assert found["torch_threads"] == torch.get_num_threads()
    assert found["corpus"] == "abc" and found["env_kwargs"] == {"preset": "nano"}
    assert found["processor"] and found["command"][1:] == sys.argv[1:]
    assert found["cpu_capability"] == torch.backends.cpu.get_cpu_capability()
    assert found == json.loads(json.dumps(found))


CPUINFO = """processor\t: 0
model name\t: A Processor @ 2.10GHz
flags\t\t: fpu sse2 avx2 fma avx512f avx512_bf16 amx_tile
processor\t: 1
model name\t: Another
"""


@pytest.mark.parametrize(
    ("text", "instructions"),
    [
        (CPUINFO, ["avx2", "fma", "avx512f", "avx512_bf16", "amx_tile"]),
        ("Features\t: fp asimd bf16\n", ["asimd", "bf16"]),
        ("processor\t: 0\n", None),
    ],
)
def test_instruction_sets_and_limits_are_facts(text, instructions, tmp_path, monkeypatch):
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(facts, "CPUINFO", tmp_path / "cpuinfo")
    for name in facts.LIMITS:
        monkeypatch.delenv(name, raising=False)
    assert environment_facts()["limits"] == {}
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    found = environment_facts()
    assert found["instructions"] == instructions and found["limits"] == {
        "ONEDNN_MAX_CPU_ISA": "AVX2"
    }
    assert found["processor"] == (
        "A Processor @ 2.10GHz" if text is CPUINFO else found["processor"]
    )


def test_committed_results_of_before_instructions_were_facts_can_still_be_read():
    files = sorted((facts.ROOT / "results").glob("*/jobs/*.json"))[::40]
    assert files and all("processor" in read_result(file)["facts"] for file in files)


def git(folder, *arguments):
    identity = ("-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false")
    subprocess.run(
        ["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True
    )


def test_the_commit_is_that_of_the_checkout_and_dirty_is_about_sources(tmp_path, monkeypatch):
    monkeypatch.setattr(facts, "ROOT", tmp_path)
    assert facts._commit() == (None, None)
    git(tmp_path, "init", "-q")
    (tmp_path / "a.py").write_text("")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-q", "-m", "x")
    commit, dirty = facts._commit()
    assert len(commit) == 40 and dirty is False
    (tmp_path / "result.json").write_text("{}")
    assert facts._commit()[1] is False
    (tmp_path / "b.py").write_text("")
    assert facts._commit()[1] is True
    (tmp_path / "inner").mkdir()
    monkeypatch.setattr(facts, "ROOT", tmp_path / "inner")  # somebody else's repository around us
    assert facts._commit()[0] is None


def test_the_command_does_not_say_where_the_checkout_lies(monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(facts.ROOT / "train_agents" / "train.py"), "--seed", "1"])
    assert environment_facts()["command"] == ["-m", "train_agents.train", "--seed", "1"]


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
