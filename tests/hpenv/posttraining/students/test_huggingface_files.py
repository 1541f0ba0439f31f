"""Models are loaded from their folder, and damaged ones are refused by name."""

import json
import shutil

import pytest
import safetensors.torch
import torch

import hpenv  # noqa: F401  registers the ids
from hpenv.posttraining.students import registry as students
from hpenv.posttraining.students.adapter import weights_digest
from hpenv.posttraining.students.huggingface import HuggingFaceConfig, HuggingFaceStudent
from tests.hpenv.posttraining.students.tiny_huggingface import (
    PROMPTS,
    generators,
    some_knobs,
    student,
    zeros,
)
from tests.tiny_qwen3 import byte_tokenizer, qwen3


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with a model and its tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    qwen3().save_pretrained(folder)
    byte_tokenizer(chat=True).save_pretrained(folder)
    return folder


def test_a_saved_model_is_loaded_from_its_folder(saved, monkeypatch):
    monkeypatch.setenv("HOME", str(saved.parent))
    monkeypatch.chdir(saved)
    own = student(chat=True, max_tokens=5)
    for place in (saved, ".", f"~/{saved.name}"):
        loaded = HuggingFaceStudent.load(place, config=HuggingFaceConfig(max_tokens=5))
        assert loaded.digest == own.digest and loaded.ranks == own.ranks
    rollouts = [
        each.sample(some_knobs(own), PROMPTS, 2, generators(0, 1)) for each in (loaded, own)
    ]
    assert rollouts[0].texts == rollouts[1].texts


def test_a_loaded_model_no_longer_follows_its_files(saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "own")
    loaded = HuggingFaceStudent.load(folder)
    with open(folder / "model.safetensors", "r+b") as file:
        size = file.seek(0, 2)
        file.seek(0)
        file.write(b"\xff" * size)
    assert weights_digest({"": loaded.model.lm_head.weight}) == weights_digest(
        {"": qwen3().lm_head.weight}
    )
    assert all(weight.data_ptr() % 64 == 0 for weight in loaded.model.parameters()), (
        "aligned, as computed"
    )


def test_a_student_is_what_lies_in_its_folder(saved, tmp_path, monkeypatch):
    folder = shutil.copytree(saved, tmp_path / "own")
    first = students.student(f"hf:{saved}")
    assert students.student(f"hf:{folder}") is first
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert students.student("hf:own") is students.student("hf:~/own") is first
    qwen3(seed=1).save_pretrained(folder)
    assert students.student("hf:own").digest != first.digest
    shutil.rmtree(folder)
    with pytest.raises(ValueError, match=r"no 'config.json' in 'own'"):
        students.student("hf:own")


def test_what_the_caller_has_set_in_torch_changes_no_student(saved):
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            loaded = HuggingFaceStudent.load(saved, config=HuggingFaceConfig(max_tokens=5))
    finally:
        torch.set_default_dtype(torch.float32)
    own = student(chat=True, max_tokens=5)
    assert loaded.digest == own.digest
    knobs = {name: knob.requires_grad_() for name, knob in some_knobs(own).items()}
    rollouts = own.rollouts_from_texts(PROMPTS, [["a", "b"]] * 2)
    expected, found = (each.log_probabilities(knobs, rollouts) for each in (own, loaded))
    assert torch.equal(expected, found)
    found.sum().backward()


def put(name, content):
    """Writes a file, or puts a folder or a link to nothing in its place."""

    def change(folder):
        path = folder / name
        path.unlink(missing_ok=True)
        if content is None:
            path.mkdir()
        elif content == "link":
            path.symlink_to("/nowhere")
        else:
            path.write_bytes(content)

    return change


def cut(name, size):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def set_in(name, **values):
    return lambda folder: (folder / name).write_text(
        json.dumps(json.loads((folder / name).read_text()) | values)
    )


def removed(*names):
    return lambda folder: [(folder / name).unlink() for name in names]


def reweighed(change):
    """Changes the tensors of the weights' file."""

    def apply(folder):
        tensors = safetensors.torch.load((folder / "model.safetensors").read_bytes())
        safetensors.torch.save_file(change(tensors), folder / "model.safetensors", {"format": "pt"})

    return apply


NAME, NORM = "model.layers.0.self_attn.q_proj.weight", "model.norm.weight"
DAMAGES = {
    "weights cut off": (cut("model.safetensors", -100),
                        r"whole safetensors files; got '.*model\.safetensors'"),
    "weights empty": (cut("model.safetensors", 0),
                      r"whole safetensors files; got '.*model\.safetensors'"),
    "weights gone": (removed("model.safetensors"),
                     "`transformers` reads; got .* no file named model.safetensors"),
    "weights a folder": (put("model.safetensors", None),
                         r"got '.*model\.safetensors', which is a folder"),
    "a weight missing": (reweighed(lambda t: {k: t[k] for k in t if k != NAME}),
                         rf"missing_keys are \['{NAME}'\]"),
    "a weight too many": (reweighed(lambda t: t | {"x": torch.ones(1)}),
                          r"unexpected_keys are \['x'\], 1 in all"),
    "a weight of another size": (reweighed(lambda t: t | {NAME: torch.ones(2, 2)}),
                                 "`transformers` reads; got"),
    "a weight not a number": (reweighed(lambda t: t | {NORM: t[NORM] * torch.nan}),
                              "the weight 'model.norm.weight' must be finite; got .* not finite"),
    "whole numbers": (reweighed(lambda t: {k: v.to(torch.int8) for k, v in t.items()}),
                      r"holds \['I8'\] alone"),
    "no tokenizer": (removed("tokenizer.json", "tokenizer_config.json"),
                     r"no tokenizer in '.*'; expected one of"),
    "no vocabulary": (removed("tokenizer.json"), "`transformers` reads; got"),
    "tokenizer empty": (cut("tokenizer.json", 0), r"must be a JSON file; got '.*tokenizer\.json'"),
    "tokenizer cut off": (cut("tokenizer.json", 300),
                          r"must be a JSON file; got '.*tokenizer\.json'"),
    "tokenizer a folder": (put("tokenizer.json", None),
                           r"got '.*tokenizer\.json', which is a folder"),
    "config not UTF-8": (put("config.json", b"\xff\xfe{"),
                         r"must be a JSON file; got '.*config\.json'"),
    "config a list": (put("config.json", b"[]"),
                      r"must hold a JSON object; got '.*config\.json', which holds a list"),
    "config deep": (put("config.json", b"[" * 99_999),
                    r"must be a JSON file; got '.*config\.json'"),
    "another type": (set_in("config.json", hidden_size="32"), "`transformers` reads; got"),
    "another size": (set_in("config.json", vocab_size=10**15), "`transformers` reads; got"),
    "no heads": (set_in("config.json", num_attention_heads=0), "`transformers` reads; got"),
    "another kind": (set_in("config.json", model_type="vit"), "`transformers` reads; got"),
    "no known kind": (set_in("config.json", model_type="x"), "`transformers` reads; got"),
    "generation_config empty": (cut("generation_config.json", 0),
                                r"a JSON file; got '.*generation_config\.json'"),
    "generation_config a folder": (put("generation_config.json", None),
                                   r"generation_config\.json', which is a folder"),
    "an end that is no token": (set_in("generation_config.json", eos_token_id=999),
                                "the end token must be .* number 999"),
    "an end that is text": (set_in("generation_config.json", eos_token_id="x"),
                            "must be a number or a list of them"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_folder_that_holds_no_whole_model_is_refused_by_name(saved, tmp_path, damage):
    change, message = DAMAGES[damage]
    change(shutil.copytree(saved, tmp_path / "own"))
    with pytest.raises(ValueError, match=message) as refused:
        HuggingFaceStudent.load(tmp_path / "own")
    assert (
        str(tmp_path / "own") in str(refused.value)
        or "not finite" in message
        or "end token" in message
    )


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_link_to_nothing_is_named(saved, tmp_path, name):
    put(name, "link")(shutil.copytree(saved, tmp_path / "own"))
    with pytest.raises(FileNotFoundError, match=rf"must be a file that exists; got '.*{name}'"):
        HuggingFaceStudent.load(tmp_path / "own")


@pytest.mark.parametrize("content", [b"", b"GGUF" + b"\1" * 200, b"no GGUF"])
def test_a_file_that_is_no_gguf_is_named(tmp_path, content):
    pytest.importorskip("gguf")
    (tmp_path / "a.gguf").write_bytes(content)
    with pytest.raises(ValueError, match=r"`transformers` reads; got '.*a\.gguf' \(\w+: "):
        HuggingFaceStudent.load(tmp_path, "a.gguf")


def test_what_cannot_be_loaded_or_sampled_is_refused(tmp_path):
    with pytest.raises(
        ValueError,
        match=r"no 'config.json' in 'HuggingFaceTB/SmolLM2'.*no such folder.*hf download",
    ):
        HuggingFaceStudent.load("HuggingFaceTB/SmolLM2")
    (tmp_path / "a.gguf").touch()
    with pytest.raises(ValueError, match=r"no 'b.gguf'.*\['a.gguf'\]"):
        HuggingFaceStudent.load(tmp_path, "b.gguf")
    for argument, message in (
        ({"max_tokens": 0}, "max_tokens must be an integer >= 1; got 0"),
        ({"top_p": 0.0}, r"top_p must be a number in \(0, 1\]; got 0.0"),
        ({"dtype": "int8"}, "unknown dtype 'int8'; expected one of"),
        ({"top_k": -1}, "top_k must be an integer >= 0; got -1"),
        ({"max_tokens": "12"}, "max_tokens must be an integer >= 1; got '12'"),
        ({"texts_per_pass": True}, "texts_per_pass must be an integer >= 1; got True"),
        ({"top_p": "all"}, "top_p must be a number .* got 'all'"),
        ({"top_p": float("nan")}, "top_p must be a number .* got nan"),
        ({"dtype": ["float32"]}, r"unknown dtype \['float32'\]"),
        ({"targets": "q_proj"}, "targets must be a tuple of layer names; got 'q_proj'"),
        ({"message": None}, "message must be text; got None"),
        ({"cache_dir": 3}, "cache_dir must be a folder or None; got 3"),
        ({"device": "meta"}, "device must be one that torch has here; got 'meta'"),
        ({"device": "gpu"}, "device must be one that torch has here; got 'gpu'"),
    ):
        with pytest.raises(ValueError, match=message):
            HuggingFaceConfig(**argument)
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    model = qwen3()
    model.generation_config.eos_token_id = None
    with pytest.raises(ValueError, match="no eos_token"):
        HuggingFaceStudent(model, tokenizer)
    with pytest.raises(ValueError, match="unknown form 'lora'"):
        student(form="lora")
    for place, file in ((3, None), (None, None), (tmp_path, 3)):
        with pytest.raises(ValueError, match="folder and gguf_file must be a path and a name; got"):
            HuggingFaceStudent.load(place, file)
    with pytest.raises(
        ValueError, match=r"message must be empty or have \{prompt\} in it; got 'Write it\.'"
    ):
        student(message="Write it.")
    own = student()
    with pytest.raises(ValueError, match="a prompt must have at least one token; got ''"):
        own.sample(zeros(own, 1), [["# a\n", ""]], 1, generators(0))
    with pytest.raises(ValueError, match=r"coefficients must have the modules .*; got \['other'\]"):
        own.sample({"other": torch.zeros(1, 3)}, [["# a\n"]], 1, generators(0))
