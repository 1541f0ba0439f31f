"""A save that dies leaves a snapshot that loads."""

import contextlib
import os
import sys

import pytest

from hpenv.plant import snapshots
from hpenv.plant.snapshots import latest, load, save
from tests.hpenv.plant.small_snapshots import example, value_of

# Every call by which a save changes the disk.
EFFECTS = (
    (os, "mkdir"),
    (os, "fsync"),
    (os, "rename"),
    (os, "rmdir"),
    (os, "unlink"),
    (snapshots, "open"),
)


def before_effects(monkeypatch, act):
    """Calls `act(number)` before each effect, numbered from 0. Returns the list of the numbers."""
    seen = []

    def watched(function):
        def call(*args, **kwargs):
            seen.append(len(seen))
            act(seen[-1])
            return function(*args, **kwargs)

        return call

    for module, name in EFFECTS:
        monkeypatch.setattr(module, name, watched(getattr(module, name, open)), raising=False)
    return seen


def interrupted_saves(tmp_path, interrupt):
    """Interrupts a save over an old snapshot before its 1st, 2nd, ... effect, until one completes.

    It yields after each interruption.
    """
    for number in range(100):
        folder = tmp_path / str(number)
        save(folder / "s", example(1.0))
        if interrupt(folder / "s", number):
            assert number > 8  # a folder, three files, their durability and two renames
            return
        yield folder / "s", number
    raise AssertionError("the save never completed")


def killed(path, number, monkeypatch):
    """Saves in a child that dies before the effect of this number.

    True if it came to its end.
    """
    child = os.fork()
    if child == 0:
        try:
            before_effects(monkeypatch, lambda effect: os._exit(9) if effect == number else None)
            save(path, example(2.0))
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_save_killed_at_any_moment_leaves_a_snapshot_that_loads(tmp_path, monkeypatch):
    values = []
    for path, _ in interrupted_saves(tmp_path, lambda path, n: killed(path, n, monkeypatch)):
        values.append(value_of(load(path)))
        assert latest(path.parent) == path
        save(path, example(3.0))
        assert value_of(load(path)) == 3.0
        assert [child.name for child in path.parent.iterdir()] == ["s"]
    assert sorted(values) == values and set(values) == {1.0, 2.0}


def failed(path, is_refused, monkeypatch):
    """Saves while the disk refuses the effects with `is_refused(number)`.

    Returns True if no effect was refused.
    """
    refused = []

    def refuse(effect):
        if is_refused(effect):
            refused.append(effect)
            raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        before_effects(patch, refuse)
        with contextlib.suppress(OSError):
            save(path, example(2.0))
    return not refused


def test_a_save_that_fails_leaves_the_old_snapshot_and_no_rubbish(tmp_path, monkeypatch):
    values = []
    for path, _ in interrupted_saves(
        tmp_path, lambda path, n: failed(path, lambda effect: effect == n, monkeypatch)
    ):
        values.append(value_of(load(path)))
        assert path.is_dir()  # put back, not merely found under its hidden name
        assert not [child for child in path.parent.iterdir() if ".new-" in child.name]
    assert sorted(values) == values and set(values) == {1.0, 2.0}


def test_a_disk_that_refuses_everything_from_some_moment_on_loses_nothing(tmp_path, monkeypatch):
    values = []
    for path, _ in interrupted_saves(
        tmp_path, lambda path, n: failed(path, lambda effect: effect >= n, monkeypatch)
    ):
        values.append(value_of(load(path)))
        assert latest(path.parent) == path
    assert sorted(values) == values and set(values) == {1.0, 2.0}


@pytest.mark.skipif(sys.platform == "win32", reason="folders are not flushed there")
def test_all_content_is_durable_before_it_gets_its_name(tmp_path, monkeypatch):
    save(tmp_path / "s", example(1.0))
    flushed, at_rename = set(), []
    fsync, rename = os.fsync, os.rename

    def note_fsync(descriptor):
        fsync(descriptor)
        flushed.add(os.fstat(descriptor).st_ino)

    def note_rename(source, target):
        if target == tmp_path / "s":
            at_rename.extend(path.stat().st_ino in flushed for path in (source, *source.iterdir()))
            flushed.clear()
        rename(source, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "rename", note_rename)
    save(tmp_path / "s", example(2.0))
    assert at_rename == [True] * 4  # three files and their folder
    assert tmp_path.stat().st_ino in flushed
