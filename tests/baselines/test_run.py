"""Coordinate search, and the program that evaluates and tunes baselines."""

import json
import math
from pathlib import Path

import pytest

from baselines.run import coordinate_search, main
from hpenv.pretraining.plant import PretrainingPlant


def bowl(point):
    """Returns a score with its minimum at a = 8, b = 0.5."""
    return abs(math.log2(point["a"]) - 3) + abs(math.log2(point["b"]) + 1)


def test_coordinate_search_walks_to_the_optimum_of_every_coordinate(tmp_path):
    best, history = coordinate_search(bowl, {"a": 1.0, "b": 1.0})
    assert best == {"a": 8.0, "b": 0.5}
    assert history[0]["point"] == {"a": 1.0, "b": 1.0}
    points = [tuple(line["exponents"]) for line in history]
    assert (
        len(set(points)) == len(points) == 10
    )  # 0 to 4 along a; 1, -1, -2 along b; then 4 and 2 along a again


def test_coordinate_search_keeps_to_its_budget_and_to_its_log(tmp_path):
    log, calls = tmp_path / "log.jsonl", []

    def counted(point):
        calls.append(point)
        return bowl(point)

    best, history = coordinate_search(counted, {"a": 1.0, "b": 1.0}, max_evaluations=3, log=log)
    assert len(calls) == len(history) == 3 and best == {"a": 4.0, "b": 1.0}
    best, history = coordinate_search(counted, {"a": 1.0, "b": 1.0}, log=log)
    assert len(calls) == len(history) == 10 and best == {"a": 8.0, "b": 0.5}
    with pytest.raises(ValueError, match="must be the log of the search"):
        coordinate_search(counted, {"a": 2.0, "b": 1.0}, log=log)
    with pytest.raises(ValueError, match="max_evaluations must be >= 1; got 0"):
        coordinate_search(counted, {"a": 2.0}, max_evaluations=0)


TINY = ("--data", "synthetic", "--batch-tokens", "64", "--sequence-length", "16", "--num-steps",
        "6", "--interval", "3",
        "--eval-tokens", "512")  # fmt: skip


def test_the_program_evaluates_what_it_is_asked_to(tmp_path, capsys):
    out = tmp_path / "rows.json"
    main(["--baselines", "constant", "cosine", "--seeds", "2", "--out", str(out), *TINY])
    result = json.loads(out.read_text())
    assert [(row["baseline"], row["seed"]) for row in result["rows"]] == [
        ("constant", 1000),
        ("constant", 1001),
        ("cosine", 1000),
        ("cosine", 1001),
    ]
    assert (
        all(0 < row["bpb"] < 8.2 for row in result["rows"])
        and result["configuration"]["num_steps"] == 6
    )
    printed = capsys.readouterr().out
    assert "cosine" in printed and '"num_steps": 6' in printed


def test_the_program_tunes_on_the_probe_alone(tmp_path, capsys, monkeypatch):
    def forbidden(self):
        raise AssertionError("tuning read the validation slice")

    monkeypatch.setattr(PretrainingPlant, "evaluate", forbidden)
    tuned_file, log = tmp_path / "tuned.json", tmp_path / "log.jsonl"
    arguments = [
        "--tune",
        "--max-evaluations",
        "3",
        "--tuned",
        str(tuned_file),
        "--log",
        str(log),
        *TINY,
    ]
    main(arguments)
    found = json.loads(tuned_file.read_text())
    assert len(found["history"]) == 3 and len(Path(log).read_text().splitlines()) == 4
    assert found["probe_loss"] == min(line["score"] for line in found["history"])
    main(arguments)  # all in the log
    assert json.loads(tuned_file.read_text())["rates"] == found["rates"]
    assert "probe loss" in capsys.readouterr().out
