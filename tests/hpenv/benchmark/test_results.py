"""Result files: what was written comes back, and a failed write leaves no rubbish."""

import json
import os

import numpy as np
import pytest
import torch

from hpenv.benchmark import facts
from hpenv.benchmark.results import markdown_table, read_result, write_result


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


def test_committed_results_of_before_instructions_were_facts_can_still_be_read():
    files = sorted((facts.ROOT / "results").glob("*/jobs/*.json"))[::40]
    assert files and all("processor" in read_result(file)["facts"] for file in files)
