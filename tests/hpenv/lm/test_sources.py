"""Sources of a text, and refusals of what cannot be read."""

import hashlib
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from hpenv.lm.data import load_corpus
from hpenv.pretraining.config import PretrainingConfig
from hpenv.pretraining.plant import PretrainingPlant
from tests.hpenv.lm.small_corpora import TEXT, write


@pytest.mark.parametrize(
    ("content", "found"), [(b"", "0 tokens"), (b"x" * 78, "39 tokens"), (b"x" * 101, "50.5 tokens")]
)
def test_a_short_or_odd_token_file_is_refused_with_both_numbers(tmp_path, content, found):
    with pytest.raises(
        ValueError, match=f"a whole number of at least 40 uint16 tokens; got .* is {found}"
    ):
        load_corpus(write(tmp_path / "a.bin", content))


@pytest.mark.parametrize("suffix", ["txt", "bin", "parquet"])
def test_a_missing_file_is_named(tmp_path, suffix):
    with pytest.raises(
        FileNotFoundError, match=rf"data must be a file that exists; got .*nowhere\.{suffix}"
    ):
        load_corpus(str(tmp_path / f"nowhere.{suffix}"))


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("stdlb",), {}, "unknown data 'stdlb'; expected one of 'stdlib'"),
        (("stdlib:3",), {}, "unknown data 'stdlib:3'"),
        (("notes.md",), {}, "unknown data 'notes.md'"),
        (
            ("synthetic:x",),
            {},
            "seed in data 'synthetic:x' must be a whole number from 0 to .*; got 'x'",
        ),
        (("synthetic:-1",), {}, "got '-1'"),
        (("synthetic",), {"vocab_size": 7}, "from 8 to 256; got 7"),
        (("synthetic",), {"vocab_size": 257}, "from 8 to 256; got 257"),
        (("synthetic", "bpe:300"), {}, "accepts tokenizer 'bytes' alone"),
        (("stdlib",), {"vocab_size": 300}, "vocab_size 256 alone"),
        (("hf:",), {}, "must have the form"),
        (("hf:a:b:c:d",), {}, "must have the form"),
    ],
)
def test_bad_arguments_are_named_with_what_is_accepted(arguments, options, message):
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        load_corpus(*arguments, **options)


def test_a_corpus_is_its_content_whatever_its_path(tmp_path, monkeypatch):
    first = load_corpus(write(tmp_path / "a.txt", TEXT))
    shutil.copy(first.name, tmp_path / "b.txt")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in (str(tmp_path / "b.txt"), "b.txt", Path("a.txt"), "~/a.txt"):
        again = load_corpus(path)
        assert again.tokens is first.tokens and (again.sha256, again.digest) == (
            first.sha256,
            first.digest,
        )
        assert again.name == os.path.expanduser(path)
    (tmp_path / "other").mkdir()
    write(tmp_path / "other" / "b.txt", TEXT.upper())
    monkeypatch.chdir("other")
    assert load_corpus("b.txt").digest != first.digest


@pytest.mark.parametrize("suffix", ["txt", "bin"])
def test_a_file_that_is_written_anew_is_read_anew(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    digests = []
    for content in (b"ab" * 100, b"ba" * 100, b"ab" * 100):
        (tmp_path / "new").write_bytes(
            content
        )  # of the same size and time, as a copy that keeps them
        os.utime(tmp_path / "new", ns=(10**18, 10**18))
        (tmp_path / "new").replace(path)
        corpus = load_corpus(path)
        assert corpus.tokens.numpy().tobytes() == content
        assert corpus.sha256 == hashlib.sha256(content).hexdigest()
        digests.append(corpus.digest)
    assert digests[0] == digests[2] != digests[1]


def test_the_digest_tells_all_that_a_run_is_trained_on(tmp_path):
    bytes_of_text = load_corpus(write(tmp_path / "a.txt", b"\1\0" * 50))
    pairs_of_bytes = load_corpus(write(tmp_path / "a.bin", b"\1\0" * 50))
    assert (
        bytes_of_text.sha256 == pairs_of_bytes.sha256
        and bytes_of_text.digest != pairs_of_bytes.digest
    )
    assert len(bytes_of_text.digest) == 64


PLACES = {
    "folder": (lambda path: path.mkdir(), ValueError, "which is a folder; name a file"),
    "device": (lambda path: path.symlink_to("/dev/null"), ValueError, "which is no regular file"),
    "unreadable": (
        lambda path: path.symlink_to("/proc/self/mem"),
        ValueError,
        "cannot be read|can be read|has 0 bytes",
    ),
    "link to nothing": (
        lambda path: path.symlink_to("nowhere"),
        FileNotFoundError,
        "must be a file that exists",
    ),
    "link to itself": (
        lambda path: path.symlink_to(path),
        FileNotFoundError,
        "must be a file that exists",
    ),
}


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", ["a.txt", "a.bin", "a.parquet", "a.json"])
def test_a_place_that_is_no_file_to_read_is_refused_by_name(tmp_path, name, place):
    if name in ("a.parquet", "a.json"):
        pytest.importorskip("pyarrow" if name == "a.parquet" else "tokenizers")
    put, kind, message = PLACES[place]
    put(tmp_path / name)
    argument = "tokenizer" if name == "a.json" else "data"
    given = (
        (write(tmp_path / "text.txt", TEXT), tmp_path / name)
        if argument == "tokenizer"
        else (tmp_path / name,)
    )
    with pytest.raises(kind, match=message) as refused:
        load_corpus(*given)
    assert str(tmp_path / name) in str(refused.value) and str(refused.value).startswith(argument)


class BytesPath(os.PathLike):
    def __fspath__(self):
        return b"a.txt"


@pytest.mark.parametrize("given", [3, None, ["a.txt"], b"a.txt", BytesPath(), {}])
def test_what_is_no_name_or_path_is_refused(given):
    for arguments, name in (((given,), "data"), (("stdlib", given), "tokenizer")):
        with pytest.raises(
            ValueError,
            match=rf"{name} must be a name or a path \(see hpenv.lm.data.load_corpus\); got",
        ):
            load_corpus(*arguments)


@pytest.mark.parametrize("given", ["a\0.txt", "a" * 5000 + ".txt", "", "x.TXT"])
def test_a_path_that_cannot_be_is_refused(given):
    with pytest.raises(
        (FileNotFoundError, ValueError), match=r"must be a file that exists|unknown data"
    ):
        load_corpus(given)


@pytest.mark.parametrize("given", ["256", 16.0, True, None, [16]])
def test_a_vocabulary_that_is_no_number_is_refused(given):
    for source in ("synthetic", "stdlib"):
        with pytest.raises(ValueError, match="vocab_size must be a whole number; got"):
            load_corpus(source, vocab_size=given)


def test_a_token_file_with_a_header_is_refused(tmp_path):
    header = np.array([20240520, 1, 1000], "<i4").tobytes()
    with pytest.raises(
        ValueError, match=r"a\.bin', which has the header of llm\.c; leave out its first 1024 bytes"
    ):
        load_corpus(write(tmp_path / "a.bin", header.ljust(1024, b"\0") + b"\1\0" * 1000))


def test_the_copies_of_a_plant_train_on_its_corpus_wherever_the_process_stands(
    tmp_path, monkeypatch
):
    (tmp_path / "other").mkdir()
    write(tmp_path / "a.txt", TEXT)
    monkeypatch.chdir(tmp_path)
    plant = PretrainingPlant(PretrainingConfig(data="a.txt", batch_tokens=64, sequence_length=16))
    monkeypatch.chdir("other")
    assert plant.spawn(2).corpus is plant.corpus
    write(tmp_path / "other" / "a.txt", TEXT.upper())
    assert plant.spawn(2).corpus.digest == plant.corpus.digest
