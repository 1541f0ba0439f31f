"""A snapshot on disk comes back bit for bit."""

import itertools
import math
import os
import shutil

import numpy as np
import pytest
import torch

from hpenv.plant.protocol import Snapshot
from hpenv.plant.snapshots import MANIFEST, STATE, TENSORS, latest, load, save
from tests.hpenv.plant.small_snapshots import EVERY_FILE, example, same_bits, value_of

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
