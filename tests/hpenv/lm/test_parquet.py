"""Parquet files and datasets, where their packages are installed."""

import os

import numpy as np
import pytest

from hpenv.lm.data import load_corpus
from tests.hpenv.lm.small_corpora import TEXT, write


def parquet_of(table=None, **columns):
    """The bytes of a parquet file."""
    import pyarrow
    from pyarrow import parquet

    buffer = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.table(columns) if table is None else table, buffer)
    return buffer.getvalue().to_pybytes()


def test_a_parquet_file_is_its_text_column_joined_by_newlines(folder):
    corpus = load_corpus(str(folder / "train.parquet"))
    assert bytes(corpus.tokens.tolist()).decode() == "alpha " * 20 + "\n" + "βeta " * 20


@pytest.mark.parametrize("name", ["", "/train.parquet"])
def test_a_local_folder_or_file_loads_as_a_dataset(folder, name):
    corpus = load_corpus(f"hf:{folder}{name}")
    assert corpus.sha256 == load_corpus(str(folder / "train.parquet")).sha256
    other = load_corpus(f"hf:{folder}{name}:train:code")
    assert bytes(other.tokens.tolist()).decode() == "\n".join(["x" * 50] * 3)


def test_a_column_that_is_missing_or_holds_no_text_is_named(folder):
    with pytest.raises(
        ValueError, match=r"one column 'body'; got no such .*\['text', 'number', 'code'\]"
    ):
        load_corpus(f"hf:{folder}:train:body")
    with pytest.raises(ValueError, match=r"column 'number' of 'hf:.*' must hold text; got int64"):
        load_corpus(f"hf:{folder}:train:number")


@pytest.mark.parametrize("form", ["{}", "hf:{}"])
def test_a_dataset_that_is_written_anew_is_read_anew(tmp_path, form):
    pytest.importorskip("datasets")
    path, texts = tmp_path / "a.parquet", []
    for text in ("ab" * 50, "ba" * 50):
        tmp_path.joinpath("new").write_bytes(parquet_of(text=[text]))
        os.utime(tmp_path / "new", ns=(10**18, 10**18))  # what a copy that keeps times leaves
        (tmp_path / "new").replace(path)
        texts.append(bytes(load_corpus(form.format(path)).tokens.tolist()).decode())
    assert texts == ["ab" * 50, "ba" * 50]


def test_the_home_folder_is_expanded_behind_hf(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert load_corpus("hf:~/corpus").sha256 == load_corpus(f"hf:{folder}").sha256


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere", "~nobody/x", "nowhere.parquet"])
def test_a_dataset_that_is_not_there_is_refused_without_asking_the_network(name):
    pytest.importorskip("datasets")
    with pytest.raises(
        FileNotFoundError, match=r"data must name a folder or file that exists; got 'hf:"
    ):
        load_corpus(f"hf:{name}")


def test_a_dataset_that_cannot_be_read_is_named(folder):
    (folder.parent / "empty").mkdir()
    write(folder.parent / "cut.parquet", (folder / "train.parquet").read_bytes()[:-9])
    for name in (f"{folder}:trein", f"{folder.parent}/empty", f"{folder.parent}/cut.parquet"):
        with pytest.raises(
            ValueError,
            match=rf"must be a dataset that `datasets` reads; got 'hf:{name}' \(\w+: ",
        ):
            load_corpus(f"hf:{name}")


@pytest.mark.parametrize("content", [b"", b"PAR1", TEXT.encode(), "cut", "latin"])
def test_a_parquet_file_that_cannot_be_read_is_named(tmp_path, content):
    pyarrow = pytest.importorskip("pyarrow")
    if content == "cut":
        content = parquet_of(text=[TEXT])[:-9]
    elif content == "latin":
        data = pyarrow.py_buffer(b"caf\xe9" * 20)
        offsets = pyarrow.py_buffer(np.array([0, 80], "<i4").tobytes())
        content = parquet_of(text=pyarrow.StringArray.from_buffers(1, offsets, data))
    with pytest.raises(
        ValueError, match=r"must be a parquet file; got '.*a\.parquet', which cannot be read"
    ):
        load_corpus(write(tmp_path / "a.parquet", content))


def test_a_parquet_column_that_holds_no_text_or_stands_twice_is_named(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    with pytest.raises(
        ValueError, match=r"column 'text' of '.*a\.parquet' must hold text; got binary"
    ):
        load_corpus(write(tmp_path / "a.parquet", parquet_of(text=[b"x" * 90])))
    twice = pyarrow.table([["x" * 90], ["y" * 90]], names=["text", "text"])
    with pytest.raises(ValueError, match="must have one column 'text'; got more than one"):
        load_corpus(write(tmp_path / "a.parquet", parquet_of(twice)))


def test_a_folder_that_looks_like_a_partition_adds_no_column(tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / "text=en").mkdir()
    corpus = load_corpus(write(tmp_path / "text=en" / "a.parquet", parquet_of(text=[TEXT])))
    assert bytes(corpus.tokens.tolist()).decode() == TEXT
