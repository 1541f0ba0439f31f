"""A saved student is the same student, and damaged files are refused by name."""

import copy
import json
import shutil

import pytest
import torch

from hpenv.posttraining.students import registry as students
from hpenv.posttraining.students.embedded import EmbeddedStudent
from tests import tiny_student
from tests.hpenv.posttraining.students.plain_student import knobs_of, sampled


def test_a_saved_student_is_the_same_student(student, tmp_path):
    student.save(tmp_path / "mine", {"steps": 3})
    loaded = EmbeddedStudent.load(tmp_path / "mine")
    assert (loaded.digest, loaded.ranks, loaded.config) == (
        student.digest,
        student.ranks,
        student.config,
    )
    assert loaded.vocabulary.pieces == student.vocabulary.pieces
    assert EmbeddedStudent.load(str(tmp_path / "mine")).digest == student.digest
    knobs, rollouts = knobs_of(student), sampled(student)
    assert torch.equal(
        loaded.log_probabilities(knobs, rollouts), student.log_probabilities(knobs, rollouts)
    )
    description = json.loads((tmp_path / "mine" / "student.json").read_text())
    assert description["notes"] == {"steps": 3} and len(description["digest"]) == 64


def test_weights_that_are_not_those_described_are_refused(tmp_path):
    for seed, name in ((0, "one"), (1, "other")):
        tiny_student.student(seed=seed).save(tmp_path / name, {})
    (tmp_path / "one" / "student.safetensors").replace(tmp_path / "other" / "student.safetensors")
    with pytest.raises(
        ValueError,
        match=r"student.safetensors must be the file that student.json describes; got .* digest",
    ):
        EmbeddedStudent.load(tmp_path / "other")


@pytest.mark.parametrize("folder", ["giant", "./giant"])
def test_a_student_that_is_not_there_is_refused(folder):
    with pytest.raises(
        ValueError,
        match=r"no student in .*giant; expected one of \['nano'\], a folder .*'hf:<folder>'",
    ):
        EmbeddedStudent.load(folder)


def test_a_student_is_what_lies_in_its_folder(student, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    student.save(tmp_path / "mine", {})
    first = students.student("./mine")
    assert students.student("~/mine") is students.student(f"{tmp_path}/mine") is first
    tiny_student.student(seed=1).save(tmp_path / "mine", {})
    assert students.student("./mine").digest != first.digest == student.digest
    for given in (3, None):
        with pytest.raises(
            ValueError, match="student must be the name of a shipped student or a folder; got"
        ):
            EmbeddedStudent.load(given)


def test_what_the_caller_has_set_in_torch_changes_no_student(student, tmp_path):
    student.save(tmp_path / "mine", {})
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            loaded = EmbeddedStudent.load(tmp_path / "mine")
    finally:
        torch.set_default_dtype(torch.float32)
    knobs, rollouts = knobs_of(student), sampled(student)
    expected, found = (each.log_probabilities(knobs, rollouts) for each in (student, loaded))
    assert loaded.digest == student.digest and torch.equal(found, expected)
    leaves = {name: knob.requires_grad_() for name, knob in knobs.items()}
    loaded.log_probabilities(leaves, rollouts).sum().backward()


def within(value, keys, new):
    """A JSON value in which what stands under these keys is new, or gone."""
    *outer, last = keys
    result = copy.deepcopy(value)
    inner = result
    for key in outer:
        inner = inner[key]
    if new is None:
        del inner[last]
    else:
        inner[last] = new
    return result


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder of a small student, and what its student.json says."""
    folder = tmp_path_factory.mktemp("student")
    tiny_student.student().save(folder, {})
    return folder, json.loads((folder / "student.json").read_text())


@pytest.mark.parametrize(
    ("keys", "new", "message"),
    [
        (["digest"], None, r"missing are \['digest'\], unknown \[\]"),
        (["digest"], 3, "digest must be of type str; got 3"),
        (["digests"], "", r"missing are \[\], unknown \['digests'\]"),
        (["config"], [], "config must be of type dict"),
        (["config", "gpt"], None, r"fields config.\* must be .*missing are \['gpt'\]"),
        (["config", "max_tokens"], "48", "config.max_tokens must be of type int; got '48'"),
        (["config", "max_tokens"], True, "config.max_tokens must be of type int; got True"),
        (["config", "max_tokens"], 0, "max_tokens must be an integer from 1 to 65536; got 0"),
        (
            ["config", "prompt_tokens"],
            10**15,
            "prompt_tokens must be an integer from 1 to 65536",
        ),
        (["config", "gpt", "n_heads"], 2, r"unknown fields \['n_heads'\]"),
        (["config", "gpt", "n_head"], 0, "n_head must be an integer from 1 to"),
        (
            ["config", "gpt", "n_head"],
            3,
            "an even multiple of n_head .*; got n_embd=16 and n_head=3",
        ),
        (["config", "gpt", "n_layer"], "2", "n_layer must be an integer from 1 to"),
        (["config", "gpt", "n_layer"], 10**12, "n_layer must be an integer from 1 to"),
        (["config", "gpt", "n_layer"], 10**6, "n_layer must fit the .* got 1000000"),
        (
            ["config", "gpt", "n_layer"],
            1,
            r"6 weights do not fit the shape, as name: \(given, expected\)",
        ),
        (["config", "gpt", "n_embd"], 32, r"do not fit the shape, as name: \(given, expected\)"),
        (
            ["config", "gpt", "rope_base"],
            float("nan"),
            "rope_base must be a number above 0; got nan",
        ),
        (["config", "gpt", "logit_softcap"], -1, "logit_softcap must be a number above 0; got -1"),
        (["config", "gpt", "feed_forward"], "relu", "unknown feed_forward 'relu'"),
        (["config", "gpt", "value_embeddings"], 1, "value_embeddings must be of type bool; got 1"),
        (["config", "gpt", "hidden_size"], 2.5, "hidden_size must be an integer from 1 to"),
        (["pieces"], "abc", "pieces must be of type list"),
        (["pieces"], [["a"]], r"pieces must be texts; got \['a'\]"),
        (["pieces"], ["a", "b"], "pieces must be different and hold every printable character"),
    ],
)
def test_a_description_of_no_student_is_refused_by_name(saved, tmp_path, keys, new, message):
    folder, description = saved
    shutil.copy(folder / "student.safetensors", tmp_path)
    (tmp_path / "student.json").write_text(json.dumps(within(description, keys, new)))
    with pytest.raises(ValueError, match=rf"student\.json.*{message}"):
        EmbeddedStudent.load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b"{" * 99_999])
def test_a_description_that_cannot_be_read_is_named(tmp_path, content):
    (tmp_path / "student.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"student must (be|hold) a JSON .* got '.*student\.json'"):
        EmbeddedStudent.load(tmp_path)


@pytest.mark.parametrize("size", [0, 8, 100, -1])
def test_weights_that_are_cut_off_are_named(saved, tmp_path, size):
    folder, _ = saved
    shutil.copy(folder / "student.json", tmp_path)
    (tmp_path / "student.safetensors").write_bytes(
        (folder / "student.safetensors").read_bytes()[:size]
    )
    with pytest.raises(
        ValueError, match=r"must be a whole safetensors file; got '.*student\.safetensors'"
    ):
        EmbeddedStudent.load(tmp_path)
    (tmp_path / "student.safetensors").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"must be a file that exists; got '.*student\.safetensors'"
    ):
        EmbeddedStudent.load(tmp_path)


def test_a_folder_that_cannot_be_written_to_is_refused(student, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        ValueError, match=r"folder must be a folder that can be written to; got '.*file'"
    ):
        student.save(tmp_path / "file", {})


def test_weights_shape_and_vocabulary_must_fit_together(student):
    config, shape = student.config, student.config.gpt
    lacking = {name: weight for name, weight in student.weights.items() if name != "layer.1.up"}
    with pytest.raises(
        ValueError,
        match=r"1 weights do not fit the shape, as .*: \{'layer.1.up': \(None, \(24, 16\)",
    ):
        EmbeddedStudent(config, student.vocabulary, lacking)
    smaller = type(student.vocabulary)(student.vocabulary.pieces[:-1])
    size = len(student.vocabulary)
    with pytest.raises(
        ValueError, match=rf"the vocabulary must have {size} tokens.*; got {size - 1} tokens"
    ):
        EmbeddedStudent(config, smaller, student.weights)
    short_sighted = type(config)(type(shape)(**vars(shape) | {"window_pattern": "SL"}))
    with pytest.raises(ValueError, match="layers that see all of the sequence"):
        EmbeddedStudent(short_sighted, student.vocabulary, student.weights)
