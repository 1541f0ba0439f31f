"""Tests of files and folders of programs: refusals before anything runs, and ignored files."""

import json
import os
import warnings

import pytest

from hpenv.benchmark.files import check_file, check_folder, write_text
from hpenv.plant import snapshots
from train_agents.outputs import (
    KEPT_CHECKPOINTS,
    check_run_folder,
    checkpoints,
    claim,
    drop_old,
    number,
    read_configuration,
    resume,
)

OURS = {"agent": "jel", "env_kwargs": {"num_steps": 8}, "num_updates": 3}
WRITTEN = ("progress.jsonl", "tensorboard", "policy")


def check(folder, configuration=None):
    check_run_folder(folder, configuration or OURS, ("num_updates",), WRITTEN)


def test_a_folder_or_file_that_can_be_made_is_not_made_by_the_check(tmp_path):
    check_folder("out", tmp_path / "a" / "b")
    check_file("out", tmp_path / "a" / "b.json")
    check(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way_of_a_folder_and_a_folder_in_the_way_of_a_file_are_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "broken").symlink_to(tmp_path / "absent")
    for path in (tmp_path / "file", tmp_path / "file" / "below" / "it", tmp_path / "broken"):
        with pytest.raises(ValueError, match=r"out must be a folder.*is no folder"):
            check_folder("out", path)
    with pytest.raises(
        ValueError, match=r"out must be a file, or the path of a new one; got .* which is a folder"
    ):
        check_file("out", tmp_path)
    with pytest.raises(ValueError, match="the folder of out must be a folder"):
        check_file("out", tmp_path / "file" / "x.json")


def test_a_folder_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("hpenv.benchmark.files.tempfile.TemporaryFile", refuse)
    with pytest.raises(
        ValueError, match=r"out must be a folder that can be written; got .*; Permission denied"
    ):
        check_folder("out", tmp_path / "new")
    with pytest.raises(ValueError, match="can be written"):
        check_file("out", tmp_path / "new.json")


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "a.txt"
    write_text(path, "old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_text(path, "new")
    assert path.read_text() == "old" and list(path.parent.iterdir()) == [path]


def test_a_run_is_continued_by_the_same_configuration_alone(tmp_path):
    claim(tmp_path, OURS, {"commit": "first"})
    check(tmp_path)
    check(tmp_path, OURS | {"num_updates": 5})
    with pytest.raises(
        ValueError,
        match=r"must hold the same run; got .*'num_steps': 8.*'num_steps': 9.*another --out",
    ):
        check(tmp_path, OURS | {"env_kwargs": {"num_steps": 9}})
    with pytest.raises(ValueError, match=r"'agent': \('jel', None\)"):
        check(tmp_path, {key: value for key, value in OURS.items() if key != "agent"})
    with pytest.raises(ValueError, match=r"'seed': \(None, 1\)"):
        check(tmp_path, OURS | {"seed": 1})
    claim(tmp_path, OURS | {"num_updates": 5}, {"commit": "second"})
    assert read_configuration(tmp_path)["num_updates"] == 5
    assert json.loads((tmp_path / "config.json").read_text())["facts"] == {"commit": "first"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must be readable JSON"),
        ("[]", "must be an object with format 2"),
        ('{"format": 3, "configuration": {}, "facts": {}}', "must be an object with format 2"),
        ('{"format": 2, "configuration": [], "facts": {}}', "must be an object with format 2"),
        (
            '{"configuration": {"env_kwargs": ["num_steps=8"]}, "facts": {}}',
            "must have format 2; got one of an earlier version",
        ),
        (None, "must be readable JSON"),
    ],
)
def test_a_config_json_that_is_not_ours_is_refused_by_name(tmp_path, text, message):
    if text is None:
        (tmp_path / "config.json").mkdir()
    else:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=rf"config\.json .*{message}.*another --out"):
        check(tmp_path)


def test_what_stands_where_the_program_writes_is_refused_and_what_does_not_is_left(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    check(tmp_path)
    (tmp_path / "progress.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"must have a config.json with its \['progress.jsonl'\]"):
        check(tmp_path)
    claim(tmp_path, OURS, {})
    check(tmp_path)
    for name, make in (
        ("checkpoints", "write_text"),
        ("policy", "write_text"),
        ("progress.jsonl", "mkdir"),
    ):
        (tmp_path / name).unlink(missing_ok=True)
        getattr(tmp_path / name, make)(*(["x"] if make == "write_text" else []))
        with pytest.raises(
            ValueError, match=rf"{name} must be a f.* of a run; move it away, or give another --out"
        ):
            check(tmp_path)
        (tmp_path / name).rmdir() if make == "mkdir" else (tmp_path / name).unlink()
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "mine.txt").write_text("x")
    with pytest.raises(
        ValueError, match=r"policy must hold only the files of a policy; got mine\.txt"
    ):
        check(tmp_path)


def saved(folder, *names):
    for name in names:
        (folder / "checkpoints" / name).mkdir(parents=True)


def test_checkpoints_are_found_by_their_whole_names_in_the_order_of_their_numbers(tmp_path):
    assert checkpoints(tmp_path, "step") == []
    saved(
        tmp_path,
        "step-10",
        "step-9",
        "step-0000011",
        "step-x",
        "step-",
        "step-5.bak",
        "step-a-3",
        "update-4",
    )
    (tmp_path / "checkpoints" / "step-12").write_text("a file")
    assert [number(path) for path in checkpoints(tmp_path, "step")] == [9, 10, 11]
    drop_old(tmp_path, "step")
    assert [number(path) for path in checkpoints(tmp_path, "step")] == [9, 10, 11][
        -KEPT_CHECKPOINTS:
    ]
    assert (tmp_path / "checkpoints" / "step-5.bak").exists()


def test_the_newest_checkpoint_that_loads_is_taken_and_what_would_be_in_the_way_is_moved_aside(
    tmp_path,
):
    saved(tmp_path, "step-1", "step-2", "step-3", "step-3.damaged")
    (tmp_path / "checkpoints" / "step-0").write_text("a file")
    (tmp_path / "checkpoints" / "step-4").write_text("a file")
    tried = []

    def load(path):
        tried.append(path.name)
        if number(path) > 2:
            raise snapshots.SnapshotError("torn")

    with pytest.warns(UserWarning, match="training starts from step 2") as caught:
        assert resume(tmp_path, "step", load) == tmp_path / "checkpoints" / "step-2"
    assert tried == ["step-4", "step-3", "step-2"] and len(caught) == 3
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-0.damaged", "step-1", "step-2", "step-3.damaged", "step-4.damaged"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert resume(tmp_path, "step", load) == tmp_path / "checkpoints" / "step-2"
        assert resume(tmp_path / "empty", "step", load) is None
