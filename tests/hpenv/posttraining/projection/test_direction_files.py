"""A direction is read as it was written, and damage is refused."""

import json
import os

import pytest
import safetensors.torch
import torch

from hpenv.posttraining.projection.direction import Direction, extract
from hpenv.posttraining.projection.direction_files import Provenance, load_direction, save_direction
from hpenv.posttraining.students.adapter import weights_digest
from tests.hpenv.posttraining.projection.planted import RANKS, planted


def test_a_direction_is_read_as_it_was_written_and_only_on_its_weights(tmp_path):
    hack, clean, _ = planted()
    direction, digest = extract(hack, clean, "svd", 3), weights_digest({"q": torch.ones(2, 2)})
    made = Provenance(digest, "pairs", "svd", 3, 0.25, 20)
    path = tmp_path / "folder" / "direction.safetensors"
    save_direction(path, direction, made)
    read, provenance = load_direction(path, digest)
    assert provenance == made and list(read.axes) == list(direction.axes)
    for name in RANKS:
        assert torch.equal(read.axes[name], direction.axes[name])
        assert torch.equal(read.strengths[name], direction.strengths[name])
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    with pytest.raises(ValueError, match=r"belongs to other model weights .* this model: 0000"):
        load_direction(path, "0000")


@pytest.fixture
def stored(tmp_path):
    """A direction file, and a function that writes it again.

    The function replaces its tensors and its header.
    """
    hack, clean, _ = planted()
    path = tmp_path / "direction.safetensors"
    save_direction(path, extract(hack, clean, "svd", 3), Provenance("0", "1", "svd", 3, 0.25, 20))
    with safetensors.safe_open(path, "pt") as file:
        tensors, header = (
            {name: file.get_tensor(name).clone() for name in file.keys()},
            file.metadata(),
        )

    def rewrite(tensor_changes, header_changes):
        content = {
            name: value for name, value in (tensors | tensor_changes).items() if value is not None
        }
        metadata = {
            name: value for name, value in (header | header_changes).items() if value is not None
        }
        safetensors.torch.save_file(content, path, metadata)

    return path, rewrite


@pytest.mark.parametrize(
    ("tensors", "header", "message"),
    [
        ({"axes/q": None}, {}, "must be those of the header"),
        ({"axes/other": torch.ones(1)}, {}, "must be those of the header"),
        ({"axes/q": torch.ones(2, 3)}, {}, r"q: axes must be \(N, k, r\)"),
        (
            {"axes/q": torch.zeros(2, 3, 24, dtype=torch.int64)},
            {},
            "q: axes and strengths must be finite",
        ),
        ({"axes/q": torch.full((2, 3, 24), torch.nan)}, {}, "q: axes and strengths must be finite"),
        ({"axes/q": torch.ones(2, 3, 24)}, {}, "q: axes must be orthogonal, of length 1 or 0"),
        ({"strengths/q": torch.ones(2, 2)}, {}, r"strengths \(N, k\)"),
        (
            {"strengths/up": torch.full((2, 3), torch.inf)},
            {},
            "up: axes and strengths must be finite",
        ),
        ({}, {"modules": None}, "KeyError"),
        ({}, {"modules": "3"}, "TypeError"),
        ({}, {"modules": "[3]"}, "must be those of the header"),
        ({}, {"provenance": "[" * 10_000}, "Recursion"),
        ({}, {"provenance": "[]"}, "TypeError"),
        ({}, {"provenance": json.dumps({"k": 3})}, "missing 5 required"),
        (
            {},
            {"provenance": json.dumps(dict.fromkeys(Provenance.__dataclass_fields__, 3))},
            "weights_digest must be of",
        ),
    ],
)
def test_a_file_that_holds_another_thing_is_refused(stored, tensors, header, message):
    path, rewrite = stored
    rewrite(tensors, header)
    with pytest.raises(
        ValueError,
        match=rf"saved by `save_direction`; got '.*direction\.safetensors' .*{message}",
    ):
        load_direction(path)


def test_a_file_that_is_damaged_or_no_file_is_refused_by_name(stored, tmp_path):
    path, _ = stored
    whole = path.read_bytes()
    for content in (b"", whole[:4], whole[:100], whole[:-5], b"\xff" * 8 + whole[8:]):
        path.write_bytes(content)
        with pytest.raises(
            ValueError, match=r"must be a whole safetensors file; got '.*direction\.safetensors'"
        ):
            load_direction(path)
    with pytest.raises(
        FileNotFoundError, match=r"path must be a file that exists; got '.*nowhere'"
    ):
        load_direction(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"path must be a file; got .* which is a folder"):
        load_direction(tmp_path)


def test_a_direction_that_cannot_be_written_says_where(stored, tmp_path):
    hack, clean, _ = planted()
    made = Provenance("0", "1", "svd", 3, 0.25, 20)
    direction = extract(hack, clean, "svd", 3)
    for place in (
        stored[0] / "in a file",
        tmp_path,
        *([] if os.name == "nt" else ["/proc/own/direction"]),
    ):
        with pytest.raises(ValueError, match=r"must be a (file|folder) that can be written"):
            save_direction(place, direction, made)
    with pytest.raises(ValueError, match="q: axes must be orthogonal"):
        save_direction(
            tmp_path / "a", Direction({"q": torch.ones(1, 1, 3)}, {"q": torch.ones(1, 1)}), made
        )
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [stored[0].name]
