"""A snapshot on disk comes back bit for bit, or is refused by name.

A save that dies leaves one that loads.
"""

import contextlib
import hashlib
import itertools
import json
import math
import os
import shutil
import sys

import numpy as np
import pytest
import torch

from hpenv.plant import snapshots
from hpenv.plant.protocol import Snapshot
from hpenv.plant.snapshots import FILES, MANIFEST, STATE, TENSORS, SnapshotError, latest, load, save

EVERY_FILE = (*FILES, MANIFEST)


def example(value=1.0):
    """A snapshot that differs from `example` of another value.

    Its tensors and its metadata differ.
    """
    return Snapshot(
        {"w": torch.full((2, 3), value), "step": torch.tensor(7)},
        {"value": value, "names": ["a", "b"]},
    )


def same_bits(a, b):
    return (
        a.dtype == b.dtype
        and a.shape == b.shape
        and torch.equal(
            a.contiguous().flatten().view(torch.uint8), b.contiguous().flatten().view(torch.uint8)
        )
    )


def value_of(snapshot):
    """Which example this is; fails if it is a mixture of two."""
    value = snapshot.metadata["value"]
    assert same_bits(snapshot.tensors["w"], torch.full((2, 3), value))
    return value


DTYPES = [
    getattr(torch, f"{kind}{bits}")
    for kind, bits in itertools.product(("int", "float"), (16, 32, 64))
]
DTYPES += [torch.bool, torch.int8, torch.uint8, torch.uint16, torch.bfloat16]
base = torch.arange(12, dtype=torch.float32).reshape(3, 4)
TENSOR_CASES = {
    "none": {},
    "zero_dim": {"a": torch.tensor(1.5), "b": torch.tensor(3)},
    "empty": {"a": torch.zeros(0, 3), "b": torch.zeros(0, dtype=torch.int64)},
    "dtypes": {str(dtype): torch.tensor([0, 1, 1, 0, 1]).to(dtype) for dtype in DTYPES},
    "extremes": {
        "float": torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan, 1e-45]),
        "nan_payload": torch.tensor([0x7FC12345, -1], dtype=torch.int32).view(torch.float32),
        "bfloat16": torch.arange(-(2**15), 2**15, dtype=torch.int32)
        .to(torch.int16)
        .view(torch.bfloat16),
        "int64": torch.tensor([2**63 - 1, -(2**63)]),
    },
    "views": {
        "transposed": base.T,
        "strided": base[:, ::2],
        "expanded": torch.ones(1).expand(4),
        "offset": base[1:],
    },
    "shared": {"whole": base, "part": base[0], "same": base, "reshaped": base.view(-1)},
    "gradients": {
        "leaf": torch.ones(2, requires_grad=True),
        "inner": torch.ones(2, requires_grad=True) * 2,
    },
    "conjugate": {
        "imaginary": torch.tensor([1 + 2j, 3 - 4j]).conj().imag,
        "complex": torch.tensor([1 + 2j]).conj(),
    },
    "names": {"": torch.ones(1), "a/b.c-ü": torch.ones(2), "z": torch.ones(3), "a": torch.ones(4)},
}


@pytest.mark.parametrize("case", TENSOR_CASES)
def test_tensors_come_back_bit_for_bit_and_in_order(tmp_path, case):
    tensors = TENSOR_CASES[case]
    before = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    save(tmp_path / "s", Snapshot(tensors, {}))
    loaded = load(tmp_path / "s").tensors
    assert list(loaded) == list(tensors)
    for name, tensor in tensors.items():
        assert same_bits(
            tensor.detach().resolve_conj().resolve_neg(), before[name].resolve_conj().resolve_neg()
        )
        assert same_bits(loaded[name], before[name].resolve_conj().resolve_neg())
        assert not loaded[name].requires_grad


def test_loaded_tensors_are_writable_and_share_no_memory(tmp_path):
    save(tmp_path / "s", Snapshot(TENSOR_CASES["shared"], {}))
    loaded = load(tmp_path / "s").tensors
    loaded["whole"].fill_(-1)
    assert same_bits(loaded["same"], base) and same_bits(loaded["part"], base[0])
    assert same_bits(load(tmp_path / "s").tensors["whole"], base)


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"a": [1, -1, 0, 2**64 + 1, -(10**40)]},
        {"a": [0.1, 1e-323, 1.7976931348623157e308, -0.0, 1 / 3]},
        {"a": None, "b": [True, False], "c": [1, 1.0], "d": {}},
        {"": "", "ü": 'quote " and \n and \x00 and \ud800', "nested": {"b": {"a": [[], [{}]]}}},
    ],
)
def test_metadata_comes_back_equal_and_of_the_same_types(tmp_path, value):
    save(tmp_path / "s", Snapshot({}, value))
    loaded = load(tmp_path / "s").metadata
    assert loaded == value
    assert repr(loaded) == repr(
        value
    )  # 1, 1.0 and True are equal; -0.0 and 0.0 too; and dictionaries keep their order


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": [0.0, math.nan]}, r"metadata\['a'\]\[1\] must be finite, .*; got nan"),
        ({"a": {"b": math.inf}}, r"metadata\['a'\]\['b'\] must be finite, .*; got inf"),
        ({"a": np.float64(1.0)}, r"metadata\['a'\] must be .*; got a float64.*give `.item\(\)`"),
        ({"a": [np.int64(1)]}, r"metadata\['a'\]\[0\] must be .*; got a int64"),
        ({"a": np.zeros(2)}, r"metadata\['a'\] must be .*; got a ndarray"),
        ({"a": (1, 2)}, r"metadata\['a'\] must be .*; got a tuple"),
        ({"a": torch.ones(1)}, r"metadata\['a'\] must be .*; got a Tensor"),
        ({"a": {1: 2}}, r"keys of metadata\['a'\] must be str; got 1 of type int"),
        ({"a": b"x"}, r"metadata\['a'\] must be .*; got a bytes"),
    ],
)
def test_metadata_that_would_change_is_refused_and_nothing_is_written(tmp_path, value, message):
    with pytest.raises(ValueError, match=message):
        save(tmp_path / "s", Snapshot({}, value))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"__metadata__": torch.ones(1)}, "other than '__metadata__'"),
        ({3: torch.ones(1)}, "must be a str"),
        ({"a": np.ones(1)}, "tensor 'a' must be a dense torch.Tensor with data; got ndarray"),
        ({"a": torch.ones(1, device="meta")}, "tensor 'a' must be a dense"),
        ({"a": torch.ones(2, 2).to_sparse()}, "tensor 'a' must be a dense"),
        (
            {"a": torch.ones(1, dtype=torch.complex128)},
            "tensor 'a' must have a dtype of safetensors; got torch.complex128",
        ),
    ],
)
def test_tensors_that_cannot_be_written_are_named_and_nothing_is_written(
    tmp_path, tensors, message
):
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        save(tmp_path / "s", Snapshot(tensors, {}))
    assert not list(tmp_path.iterdir())


def test_a_save_leaves_the_folder_alone_and_nothing_beside_it(tmp_path):
    for value in (1.0, 2.0):
        save(tmp_path / "new" / "parents" / "s", example(value))
    assert value_of(load(tmp_path / "new" / "parents" / "s")) == 2.0
    assert [child.name for child in (tmp_path / "new" / "parents").iterdir()] == ["s"]
    assert sorted(child.name for child in (tmp_path / "new" / "parents" / "s").iterdir()) == sorted(
        EVERY_FILE
    )


def test_only_snapshots_are_replaced(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").write_text("mine")
    for name in ("file", "folder"):
        with pytest.raises(ValueError, match="exists and is not a snapshot"):
            save(tmp_path / name, example())
    assert (tmp_path / "folder" / "thesis.tex").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    save(tmp_path / "empty", example())
    (tmp_path / "empty" / STATE).write_text("damaged")
    save(tmp_path / "empty", example(3.0))
    assert value_of(load(tmp_path / "empty")) == 3.0


def test_a_symbolic_link_stays_a_link(tmp_path):
    save(tmp_path / "target", example(1.0))
    (tmp_path / "link").symlink_to("target")
    save(tmp_path / "link", example(2.0))
    assert (tmp_path / "link").is_symlink()
    assert value_of(load(tmp_path / "target")) == value_of(load(tmp_path / "link")) == 2.0


@pytest.mark.parametrize("name", EVERY_FILE)
def test_a_flipped_bit_is_found_and_its_file_named(tmp_path, name):
    save(tmp_path / "s", example())
    file = tmp_path / "s" / name
    intact = file.read_bytes()
    for index in range(
        0, len(intact), 5
    ):  # of another parity than bytes have bits: every bit's turn comes
        damaged = bytearray(intact)
        damaged[index] ^= 1 << index % 8
        file.write_bytes(damaged)
        with pytest.raises(SnapshotError, match=name):
            load(tmp_path / "s")
    file.write_bytes(intact)
    assert value_of(load(tmp_path / "s")) == 1.0


DAMAGE = {
    "missing": lambda file: file.unlink(),
    "empty": lambda file: file.write_bytes(b""),
    "truncated": lambda file: file.write_bytes(file.read_bytes()[:-1]),
    "zero_tail": lambda file: file.write_bytes(file.read_bytes()[:-20] + bytes(20)),
    "zeros": lambda file: file.write_bytes(bytes(len(file.read_bytes()))),
    "garbage_appended": lambda file: file.write_bytes(file.read_bytes() + b" "),
    "not_text": lambda file: file.write_bytes(b"\xff\xfe" * 50),
    "other_json": lambda file: file.write_bytes(b"[1, 2]"),
    "deep_json": lambda file: file.write_bytes(b"[" * 100_000),
    "a_folder": lambda file: (file.unlink(), file.mkdir()),
}


@pytest.mark.parametrize("name", EVERY_FILE)
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_named(tmp_path, name, damage):
    save(tmp_path / "s", example())
    DAMAGE[damage](tmp_path / "s" / name)
    with pytest.raises(SnapshotError, match=name):
        load(tmp_path / "s")


def test_files_of_two_snapshots_do_not_mix(tmp_path):
    save(tmp_path / "a", example(1.0))
    save(tmp_path / "b", example(2.0))
    for name in EVERY_FILE:
        shutil.copytree(tmp_path / "a", tmp_path / "c", dirs_exist_ok=True)
        shutil.copy(tmp_path / "b" / name, tmp_path / "c" / name)
        with pytest.raises(SnapshotError):
            load(tmp_path / "c")


@pytest.mark.parametrize(
    "name", [".DS_Store", "Thumbs.db", "desktop.ini", "._state.json", ".directory"]
)
def test_files_that_a_desktop_leaves_are_no_obstacle(tmp_path, name):
    save(tmp_path / "s", example(1.0))
    for folder in (tmp_path, tmp_path / "s"):
        (folder / name).write_bytes(b"x")
    assert value_of(load(tmp_path / "s")) == 1.0 and latest(tmp_path) == tmp_path / "s"
    save(tmp_path / "s", example(2.0))
    assert value_of(load(tmp_path / "s")) == 2.0


def test_a_file_of_somebody_elses_is_not_read_and_not_deleted(tmp_path):
    save(tmp_path / "s", example(1.0))
    (tmp_path / "s" / "notes.txt").write_text("mine")
    assert value_of(load(tmp_path / "s")) == 1.0
    with pytest.raises(
        ValueError,
        match=r"not a snapshot: it holds \['notes.txt'\], which would be deleted; expected",
    ):
        save(tmp_path / "s", example(2.0))
    assert (
        value_of(load(tmp_path / "s")) == 1.0
        and (tmp_path / "s" / "notes.txt").read_text() == "mine"
    )


def test_a_place_below_a_file_is_refused_with_the_file(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(
        ValueError, match=r"must lie in a folder; '.*file' is a file; give another path"
    ):
        save(tmp_path / "file" / "deep" / "s", example())
    for place in (tmp_path / "file", tmp_path / "file" / "s"):
        with pytest.raises(SnapshotError, match="file"):
            load(place)


def rewritten(folder, **contents):
    """Puts other contents into a snapshot's files, under a manifest that agrees with them."""
    body = json.loads((folder / MANIFEST).read_text())
    del body["sha256_of_the_above"]
    for name, content in (("state", STATE), ("tensors", TENSORS)):
        if name in contents:
            (folder / content).write_bytes(contents[name])
            entry = {
                "size": len(contents[name]),
                "sha256": hashlib.sha256(contents[name]).hexdigest(),
            }
            body["files"][content] = entry
    (folder / MANIFEST).write_bytes(snapshots._sign(body | contents.get("manifest", {})))


ENTRY = {"size": 1, "sha256": ""}


@pytest.mark.parametrize(
    "manifest",
    [
        {"files": 5}, {"files": None}, {"files": []}, {"files": {STATE: ENTRY}},
        {"files": dict.fromkeys(FILES, 3)},
        {"files": {STATE: ENTRY, TENSORS: {"size": 1}}},
        {"files": dict.fromkeys(FILES, ENTRY | {"mode": 7})},
        {"files": {STATE: {"size": 10**40, "sha256": 7}, TENSORS: ENTRY}},
        {"files": dict.fromkeys((*FILES, "x"), ENTRY)},
        {"saved_unix_ns": "now"}, {"saved_unix_ns": None}, {"saved_unix_ns": 1.5}, {"more": 1},
        {"format": ["x"]},
        {"version": "1"},
    ],
    ids=str,
)  # fmt: skip
def test_a_manifest_that_is_signed_but_is_none_is_named(tmp_path, manifest):
    save(tmp_path / "s", example())
    rewritten(tmp_path / "s", manifest=manifest)
    with pytest.raises(SnapshotError, match=rf"{MANIFEST}|{STATE} is damaged|{TENSORS} is damaged"):
        load(tmp_path / "s")
    with pytest.warns(UserWarning, match="skipped a snapshot"):
        assert latest(tmp_path) is None


@pytest.mark.parametrize(
    "state",
    [
        b"", b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"tensors": [], "metadata": {}}',
        b'{"tensors": 5, "metadata": {}}',
        b'{"tensors": ["w", 3], "metadata": {}}',
        b'{"tensors": ["w", "w", "step"], "metadata": {}}',
        b'{"tensors": ["w", "step"], "metadata": []}',
        b'{"tensors": ["w", "step"], "metadata": {}, "more": 1}',
        b'{"tensors": ["w", "step"], "metadata": {"a": NaN}}',
        b'{"tensors": ["w", "step"], "metadata": {"a": 1e999}}',
    ],
    ids=lambda state: str(state[:50]),
)  # fmt: skip
def test_a_state_that_is_signed_but_is_none_is_named(tmp_path, state):
    save(tmp_path / "s", example())
    rewritten(tmp_path / "s", state=state)
    with pytest.raises(SnapshotError, match=rf"{STATE} is damaged: .*take another snapshot"):
        load(tmp_path / "s")


@pytest.mark.parametrize(
    "tensors", [b"", b"x" * 9, bytes(8), (10**15).to_bytes(8, "little") + b"{}"], ids=str
)
def test_tensors_that_are_signed_but_are_none_are_named(tmp_path, tensors):
    save(tmp_path / "s", example())
    rewritten(tmp_path / "s", tensors=tensors)
    with pytest.raises(SnapshotError, match=rf"{TENSORS} is damaged: .*take another snapshot"):
        load(tmp_path / "s")


def test_a_missing_snapshot_is_named(tmp_path):
    for name in ("nowhere", "no/where"):
        with pytest.raises(SnapshotError, match=f"no snapshot at .*{name}"):
            load(tmp_path / name)


def test_another_version_is_refused_with_both(tmp_path, monkeypatch):
    monkeypatch.setattr(snapshots, "VERSION", 2)
    save(tmp_path / "s", example())
    monkeypatch.undo()
    with pytest.raises(
        SnapshotError, match=r"'hpenv.snapshot', 2\).* expected \('hpenv.snapshot', 1\)"
    ):
        load(tmp_path / "s")


def test_the_manifest_states_size_and_digest_of_each_file(tmp_path):
    save(tmp_path / "s", example())
    manifest = json.loads((tmp_path / "s" / MANIFEST).read_text())
    assert {name: entry["size"] for name, entry in manifest["files"].items()} == {
        name: (tmp_path / "s" / name).stat().st_size for name in (TENSORS, STATE)
    }


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
    """Saves in a child that dies before the effect of this number; True if it came to its end."""
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


def test_names_that_look_alike_keep_apart(tmp_path):
    for name in ("a", "a.old-b", "a.old-00000000", ".a"):
        save(tmp_path / name, example(float(len(name))))
    save(tmp_path / "a", example(1.0))
    for name in ("a", "a.old-b", "a.old-00000000", ".a"):
        assert value_of(load(tmp_path / name)) == len(name)


def test_the_newest_of_several_leftovers_is_read(tmp_path):
    for value, token in ((1.0, "ffffffff"), (2.0, "00000000")):
        save(tmp_path / "x", example(value))
        os.rename(tmp_path / "x", tmp_path / f".x.old-{token}")
    (tmp_path / ".x.old-11111111").mkdir()
    assert value_of(load(tmp_path / "x")) == 2.0
    assert latest(tmp_path) == tmp_path / "x"


def test_latest_is_the_one_saved_last_whatever_its_name_and_file_time(tmp_path):
    for name in ("step-10", "step-9", "b", "a"):
        save(tmp_path / name, example())
        assert latest(tmp_path) == tmp_path / name
    shutil.copytree(tmp_path, tmp_path.with_name("copy"))
    os.utime(tmp_path.with_name("copy") / "b" / MANIFEST)
    assert latest(tmp_path.with_name("copy")) == tmp_path.with_name("copy") / "a"


def test_latest_skips_damaged_ones_with_a_warning_and_others_in_silence(tmp_path):
    assert latest(tmp_path / "nowhere") is None
    (tmp_path / "logs").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / ".s.new-01234567").mkdir()
    (tmp_path / ".s.new-01234567" / TENSORS).write_bytes(b"")
    assert latest(tmp_path) is None
    for name in ("a", "b", "c"):
        save(tmp_path / name, example())
    (tmp_path / "c" / TENSORS).write_bytes(b"")
    with pytest.warns(UserWarning, match=rf"skipped a snapshot: .*c/{TENSORS} is damaged"):
        assert latest(tmp_path) == tmp_path / "b"
    (tmp_path / "b" / MANIFEST).unlink()
    with pytest.warns(UserWarning, match="skipped a snapshot") as warned:
        assert latest(tmp_path) == tmp_path / "a"
    assert sorted(str(w.message).rsplit("/", 2)[1] for w in warned) == ["b", "c"]
