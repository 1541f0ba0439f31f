"""Tokenizers, where their package is installed."""

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from hpenv.lm import data
from hpenv.lm.data import SLICES, load_corpus
from hpenv.lm.tokenization import train_bpe
from tests.hpenv.lm.small_corpora import TEXT, write


def copied_to(folder, source, **changes):
    """A copy of a tokenizer's file with other values."""
    value = json.loads(Path(source).read_text()) | changes
    return write(folder / "changed.json", json.dumps(value))


def test_bpe_tokens_stand_for_every_byte_of_their_slice(tmp_path):
    pytest.importorskip("tokenizers")
    path = write(tmp_path / "a.txt", TEXT)
    corpus = load_corpus(path, "bpe:400")
    assert corpus.tokens.dtype == torch.int32
    assert corpus.vocab_size == corpus.token_bytes.numel() == 400
    sizes = [corpus.token_bytes[getattr(corpus, name)].sum().item() for name in SLICES]
    assert sum(sizes) == len(TEXT.encode())
    assert sizes[0] == len(TEXT[: len(TEXT) * 90 // 100].encode())
    assert corpus.tokens.numel() < len(TEXT) / 2


def test_bpe_is_deterministic_and_sees_only_the_train_slice(tmp_path):
    pytest.importorskip("tokenizers")
    cut = len(TEXT) * 90 // 100
    changed = TEXT[:cut] + "#" * (len(TEXT) - cut)
    first = load_corpus(write(tmp_path / "a.txt", TEXT), "bpe:400")
    second = load_corpus(write(tmp_path / "b.txt", changed), "bpe:400")
    assert torch.equal(first.train, second.train)
    assert torch.equal(first.token_bytes, second.token_bytes)
    again = data.read_file("data", first.name), "bpe:400"
    assert torch.equal(data._tokenize.__wrapped__(*again).tokens, first.tokens)


def test_a_saved_tokenizer_gives_the_tokens_and_bytes_of_a_token_file(tmp_path):
    pytest.importorskip("tokenizers")
    path = write(tmp_path / "a.txt", TEXT)
    encoder = train_bpe([TEXT], "bpe:400")
    encoder.add_special_tokens(["<|endoftext|>"])
    encoder.save(str(tmp_path / "tokenizer.json"))
    text = load_corpus(path, str(tmp_path / "tokenizer.json"))
    assert text.vocab_size == 401
    assert text.token_bytes[400] == 0
    ids = encoder.encode(TEXT).ids
    binary = load_corpus(
        write(tmp_path / "a.bin", np.array([400, *ids], "<u2").tobytes()),
        str(tmp_path / "tokenizer.json"),
    )
    assert binary.vocab_size == 401
    assert binary.token_bytes[binary.tokens.long()].sum() == len(TEXT.encode())
    with pytest.raises(ValueError, match=r"got .* with 401 tokens, but the file holds token 401"):
        load_corpus(
            write(tmp_path / "b.bin", np.full(50, 401, "<u2").tobytes()),
            str(tmp_path / "tokenizer.json"),
        )
    spelled = load_corpus(
        write(tmp_path / "b.txt", TEXT + "<|endoftext|>"), str(tmp_path / "tokenizer.json")
    )
    assert not (spelled.tokens == 400).any()


def test_a_tokenizer_that_loses_text_is_refused(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    encoder = train_bpe([TEXT], "bpe:300")
    encoder.normalizer = tokenizers.normalizers.Replace(" ", "")
    encoder.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="changes the text"):
        load_corpus(write(tmp_path / "a.txt", TEXT), str(tmp_path / "tokenizer.json"))
    encoder.decoder = tokenizers.decoders.WordPiece()
    encoder.save(str(tmp_path / "words.json"))
    with pytest.raises(ValueError, match="must be byte-level"):
        load_corpus(str(tmp_path / "a.txt"), str(tmp_path / "words.json"))
    other = write(tmp_path / "other.json", '{"model_type": "llama"}')
    with pytest.raises(
        ValueError,
        match=r"must be a file that `tokenizers` saved; got .*other.json', which cannot be",
    ):
        load_corpus(str(tmp_path / "a.txt"), other)


def test_a_tokenizer_that_writes_other_text_of_as_many_bytes_is_refused(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    path, own = (
        write(tmp_path / "a.txt", TEXT.replace("the", "The")),
        str(tmp_path / "tokenizer.json"),
    )
    encoder = train_bpe([TEXT], "bpe:300")
    encoder.normalizer = tokenizers.normalizers.Lowercase()
    encoder.save(own)
    with pytest.raises(
        ValueError,
        match=r"tokenizer '.*json' changes the text: 'línea 0: The.*' became '.*: the",
    ):
        load_corpus(path, own)
    assert load_corpus(write(tmp_path / "lower.txt", TEXT), own).tokens.numel()


def test_a_tokenizer_that_adds_a_space_is_refused(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    encoder = train_bpe([TEXT], "bpe:300")
    encoder.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
    encoder.save(own := str(tmp_path / "tokenizer.json"))
    with pytest.raises(
        ValueError, match=r"changes the text: .*without a space that is added in front"
    ):
        load_corpus(write(tmp_path / "a.txt", TEXT), own)


@pytest.mark.parametrize("normalizer", ["NFD", "NFKC", "StripAccents", "Strip", "BertNormalizer"])
def test_a_normalizer_that_writes_another_text_is_refused_by_name(normalizer, tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    given = ["e\u0301 caf\u00e9 \ufb01ne 1\n", "another Line\n"]
    encoder = train_bpe(given, "bpe:256")
    encoder.normalizer = getattr(tokenizers.normalizers, normalizer)()
    encoder.save(own := str(tmp_path / "own.json"))
    with pytest.raises(
        ValueError, match=r"tokenizer '.*own.json' changes the text: '.*' became '.*'; give a"
    ):
        load_corpus(write(tmp_path / "a.txt", "".join(given * 20)), own)


@pytest.mark.parametrize("unknown", ["<unk>", None])
def test_a_tokenizer_without_a_token_for_a_byte_of_the_text_is_refused(unknown, tmp_path):
    """The byte becomes the unknown token, or nothing at all."""
    tokenizers = pytest.importorskip("tokenizers")
    letters = [*sorted(set(tokenizers.pre_tokenizers.ByteLevel.alphabet()) - {"q"}), "<unk>"]
    vocabulary = {letter: number for number, letter in enumerate(letters)}
    encoder = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, merges=[], unk_token=unknown))
    encoder.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    encoder.decoder = tokenizers.decoders.ByteLevel()
    encoder.save(own := str(tmp_path / "own.json"))
    made = f"a {unknown or ''}uick"
    with pytest.raises(
        ValueError,
        match=f"'a quick.*' became '{made}.*'; give a tokenizer with a token for every",
    ):
        load_corpus(write(tmp_path / "a.txt", "a quick test\n" * 50), own)


@pytest.mark.parametrize("normalizer", ["NFC", "ByteLevel"])
def test_a_normalizer_that_loses_nothing_is_accepted(tmp_path, normalizer):
    tokenizers = pytest.importorskip("tokenizers")
    encoder = train_bpe([TEXT], "bpe:300")
    if (
        normalizer == "ByteLevel"
    ):  # writes every byte as a character, in the place of the pre-tokenizer
        encoder.pre_tokenizer = tokenizers.pre_tokenizers.Split("\n", "isolated")
    encoder.normalizer = getattr(tokenizers.normalizers, normalizer)()
    encoder.save(own := str(tmp_path / "tokenizer.json"))
    corpus = load_corpus(write(tmp_path / "a.txt", TEXT), own)
    assert corpus.token_bytes[corpus.tokens.long()].sum() == len(TEXT.encode())


def test_a_tokenizer_is_its_content(tmp_path):
    pytest.importorskip("tokenizers")
    path, own = write(tmp_path / "a.txt", TEXT), str(tmp_path / "tokenizer.json")
    digests = []
    for size in (300, 400, 300):
        train_bpe([TEXT], f"bpe:{size}").save(own)
        os.utime(own, ns=(10**18, 10**18))
        digests.append(load_corpus(path, own).digest)
    assert digests[0] == digests[2] != digests[1]
    other = shutil.copy(own, tmp_path / "other.json")
    assert load_corpus(path, other).tokens is load_corpus(path, own).tokens
    tokens = write(tmp_path / "a.bin", b"\1\0" * 100)
    assert (
        load_corpus(tokens, own).digest
        == load_corpus(tokens, other).digest
        != load_corpus(tokens).digest
    )


def test_a_tokenizer_gives_all_of_a_text_and_nothing_else(tmp_path):
    pytest.importorskip("tokenizers")
    path, encoder = write(tmp_path / "a.txt", TEXT), train_bpe([TEXT], "bpe:300")
    encoder.save(str(tmp_path / "tokenizer.json"))
    plain = load_corpus(path, tmp_path / "tokenizer.json")
    encoder.enable_truncation(8)
    encoder.enable_padding(length=99_999)
    encoder.save(str(tmp_path / "cut.json"))
    assert torch.equal(load_corpus(path, tmp_path / "cut.json").tokens, plain.tokens)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dropout": 0.1}, "must have no dropout; got 0.1"),
        (
            {"vocab": {"a": 2**31}, "merges": []},
            r"must have tokens with ids below 1048576; got the id 2147483648",
        ),
        ({"vocab": {}, "merges": []}, "must have tokens with ids below 1048576; got no tokens"),
        ({"vocab": {"a": -1}, "merges": []}, "cannot be read"),
        ({"vocab": {"a": "1"}, "merges": []}, "cannot be read"),
        ({"merges": [["zz", "zzz"]]}, "cannot be read"),
        ({"vocab": None}, "cannot be read"),
    ],
)
def test_a_tokenizer_of_impossible_values_is_named(tmp_path, changes, message):
    pytest.importorskip("tokenizers")
    train_bpe([TEXT], "bpe:300").save(str(tmp_path / "tokenizer.json"))
    model = json.loads((tmp_path / "tokenizer.json").read_text())["model"] | changes
    changed = copied_to(tmp_path, tmp_path / "tokenizer.json", model=model)
    with pytest.raises(ValueError, match=rf"^tokenizer .*'.*changed\.json'.* {message}"):
        load_corpus(write(tmp_path / "a.txt", TEXT), changed)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[]", b"null", b"{}", b"[" * 100_000])
def test_a_file_that_is_no_tokenizer_is_named(tmp_path, content):
    pytest.importorskip("tokenizers")
    with pytest.raises(
        ValueError,
        match=r"^tokenizer must be a file .* got '.*own\.json', which cannot be read",
    ):
        load_corpus(write(tmp_path / "a.txt", TEXT), write(tmp_path / "own.json", content))


@pytest.mark.parametrize("size", ["255", "1048577", "9" * 5000, "-1", "3e2", "٣٠٠", ""])
def test_a_vocabulary_that_cannot_be_trained_is_refused(tmp_path, size):
    pytest.importorskip("tokenizers")
    with pytest.raises(ValueError, match="must be a whole number from 256 to 1048576; got"):
        load_corpus(write(tmp_path / "a.txt", TEXT), f"bpe:{size}")


def test_bad_tokenizers_are_named(tmp_path):
    pytest.importorskip("tokenizers")
    path = write(tmp_path / "a.txt", TEXT)
    with pytest.raises(
        ValueError, match="vocabulary in tokenizer 'bpe:255' must be a whole number from 256"
    ):
        load_corpus(path, "bpe:255")
    with pytest.raises(ValueError, match=r"tokenizer must be 'bytes', .*; got 'words'"):
        load_corpus(path, "words")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json"):
        load_corpus(path, str(tmp_path / "nowhere.json"))
    with pytest.raises(ValueError, match="must be UTF-8 text"):
        load_corpus(write(tmp_path / "b.txt", b"\xff" * 100), "bpe:300")


@pytest.mark.parametrize("package", ["datasets", "tokenizers", "pyarrow.parquet"])
def test_a_missing_package_is_named_with_its_extra(folder, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    arguments = {
        "datasets": (f"hf:{folder}:train:text",),
        "tokenizers": (write(folder / "a.txt", TEXT), "bpe:301"),
        "pyarrow.parquet": (str(folder / "train.parquet"),),
    }[package]
    with pytest.raises(
        ImportError,
        match=rf"{package.split('.')[0]} is not installed: pip install hpenv\[data\]",
    ):
        load_corpus(*arguments)
