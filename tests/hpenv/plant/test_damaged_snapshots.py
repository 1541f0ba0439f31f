"""A damaged or forged snapshot is refused by name."""

import hashlib
import json
import shutil

import pytest

from hpenv.plant import snapshots
from hpenv.plant.snapshots import FILES, MANIFEST, STATE, TENSORS, SnapshotError, latest, load, save
from tests.hpenv.plant.small_snapshots import EVERY_FILE, example, value_of


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
