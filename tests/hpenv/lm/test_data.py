"""Corpora: their text, disjoint slices, and a batch that is a pure function of seed and step."""

import hashlib
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from hpenv.lm import data, synthetic
from hpenv.lm.data import SLICES, batch_starts, gather, load_corpus, require_length
from hpenv.lm.tokenization import train_bpe
from hpenv.pretraining.config import PretrainingConfig
from hpenv.pretraining.plant import PretrainingPlant

TEXT = "".join(f"línea {i}: the quick brown fox {i * i} jumps\n" for i in range(400))


def write(path, content):
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def conditional_entropy(context, symbol):
    """Plug-in estimate of H(symbol | context) [nats]."""
    joint, marginal = np.bincount(context * 256 + symbol), np.bincount(context)
    terms = [
        np.sum(counts[counts > 0] * np.log(counts[counts > 0])) for counts in (joint, marginal)
    ]
    return (terms[1] - terms[0]) / len(symbol)


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """Corpora of every kind that needs no optional package."""
    folder, tokens = tmp_path_factory.mktemp("cases"), np.arange(1000, dtype="<u2") * 60
    arguments = [("stdlib",), ("synthetic",), (write(folder / "a.txt", TEXT),)]
    return [load_corpus(*a) for a in arguments] + [
        load_corpus(write(folder / "a.bin", tokens.tobytes()))
    ]


def test_slices_are_disjoint_views_that_cover_the_corpus(cases):
    for corpus in cases:
        slices = [corpus.train, corpus.probe, corpus.validation]
        assert torch.equal(torch.cat(slices), corpus.tokens)
        start = corpus.tokens.data_ptr()
        for part in slices:
            assert part.data_ptr() == start
            start += part.numel() * part.element_size()
        sizes = [part.numel() / corpus.tokens.numel() for part in slices]
        assert sizes == pytest.approx([0.9, 0.05, 0.05], abs=0.01)


def test_every_token_is_in_the_vocabulary(cases):
    for corpus in cases:
        assert corpus.token_bytes.shape == (corpus.vocab_size,)
        assert corpus.token_bytes.dtype == torch.float32
        assert int(corpus.tokens.long().max()) < corpus.vocab_size


def test_the_digest_is_of_the_raw_bytes(tmp_path):
    path = write(tmp_path / "a.txt", TEXT)
    expected = hashlib.sha256(TEXT.encode()).hexdigest()
    assert load_corpus(path).sha256 == expected
    assert load_corpus(path, "bpe:300").sha256 == expected
    assert bytes(load_corpus(path).tokens.tolist()) == TEXT.encode()


def test_the_standard_library_is_source_text_without_tests_and_other_packages():
    corpus = load_corpus()
    assert 5e6 < corpus.tokens.numel() < 20e6
    raw = corpus.tokens.numpy().tobytes()
    assert hashlib.sha256(raw).hexdigest() == corpus.sha256
    assert b"class OrderedDict(dict):" in raw
    assert b"def test_basic" not in raw
    assert b"class DataFrame" not in raw and b"torch.nn" not in raw
    assert load_corpus("stdlib").tokens is corpus.tokens


def test_slices_of_the_standard_library_are_alike():
    corpus = load_corpus("stdlib")
    counts = [
        torch.bincount(part, minlength=256).double() + 1
        for part in (corpus.train, corpus.probe, corpus.validation)
    ]
    train, *others = [c / c.sum() for c in counts]
    for other in others:
        assert (
            float((other * (other / train).log()).sum()) < 0.02
        )  # [nats]; 0.048 in the order of the paths


def test_the_synthetic_source_has_the_entropy_rate_it_states():
    corpus = load_corpus("synthetic")
    symbols = corpus.tokens.numpy().astype(np.int64)
    two_back, one_back, now = symbols[:-2], symbols[1:-1], symbols[2:]
    assert corpus.entropy_rate_nats == pytest.approx(
        conditional_entropy(two_back % 4 * 256 + one_back, now), abs=0.003
    )
    # Less context must cost something at each step, or there would be little to learn.
    assert conditional_entropy(one_back, now) > corpus.entropy_rate_nats + 0.5
    assert conditional_entropy(np.zeros_like(now), now) > corpus.entropy_rate_nats + 2


def test_the_synthetic_floor_holds_on_each_slice():
    corpus = load_corpus("synthetic")
    context_of = {}
    for name in SLICES:
        symbols = getattr(corpus, name).numpy().astype(np.int64)
        counts = np.bincount(
            (symbols[:-2] % 4 * 256 + symbols[1:-1]) * 256 + symbols[2:], minlength=2**18
        ).reshape(-1, 256)
        context_of[name] = counts
    train = context_of["train"]
    probabilities = (train + 1e-3) / (train + 1e-3).sum(axis=1, keepdims=True)
    for counts in context_of.values():
        loss = -(counts * np.log(probabilities)).sum() / counts.sum()
        assert loss == pytest.approx(corpus.entropy_rate_nats, abs=0.015)


def test_the_synthetic_source_is_the_same_on_every_machine():
    corpus = load_corpus("synthetic")
    assert corpus.tokens[:12].tolist() == [10, 83, 134, 59, 118, 55, 32, 62, 20, 1, 28, 84]
    assert corpus.sha256.startswith("34279ca3e0667662")
    assert load_corpus("synthetic:0").tokens is corpus.tokens
    assert load_corpus("synthetic:0").name == "synthetic:0"


def test_the_synthetic_source_has_the_seed_and_as_many_symbols_as_asked(monkeypatch):
    monkeypatch.setattr(synthetic, "SYNTHETIC_TOKENS", 2**12)
    few, other = (data._synthetic_corpus.__wrapped__(seed, 16) for seed in (3, 4))
    assert few.vocab_size == 16
    assert len(torch.unique(few.tokens)) == 16
    assert not torch.equal(few.tokens, other.tokens)
    assert few.digest != other.digest


def test_batch_starts_are_known_numbers_on_every_machine_and_in_every_process():
    assert batch_starts(10_000, 7, 0, 4, 64).tolist() == [480, 8171, 930, 1028]
    assert batch_starts(10_000, 7, 10**12, 4, 64).tolist() == [3823, 134, 4307, 3737]
    assert batch_starts(123_457, 2**63 + 11, 255, 5, 32).tolist() == [
        5759,
        85196,
        10214,
        23260,
        64638,
    ]


def test_rewinding_gives_the_same_batches_in_any_order():
    forward = [batch_starts(5000, 3, step, 4, 16) for step in range(600)]
    data._starts_of_block.cache_clear()
    for step in np.random.Generator(np.random.Philox(0)).permutation(600).tolist():
        assert np.array_equal(batch_starts(5000, 3, step, 4, 16), forward[step])


def test_a_changed_batch_changes_no_other():
    first = batch_starts(5000, 3, 0, 4, 16)
    expected = first.copy()
    first[:] = -1
    assert np.array_equal(batch_starts(5000, 3, 0, 4, 16), expected)


def test_batch_starts_reach_both_ends_and_never_pass_them():
    starts = np.concatenate([batch_starts(20, 0, step, 8, 16) for step in range(100)])
    assert set(starts.tolist()) == {0, 1, 2, 3}
    assert set(
        np.concatenate([batch_starts(17, 0, step, 8, 16) for step in range(10)]).tolist()
    ) == {0}


def test_batch_starts_are_uniform_and_seeds_are_unrelated():
    def sample(seed):
        return np.concatenate([batch_starts(1064, seed, step, 16, 64) for step in range(1000)])

    histogram = np.bincount(sample(0) // 100, minlength=10)
    expected = 1600
    assert (
        (histogram - expected) ** 2 / expected
    ).sum() < 27.9  # chi-squared, 9 degrees of freedom, p = 0.001
    for other in (1, 2**32, 2**64):
        assert abs(np.corrcoef(sample(0), sample(other))[0, 1]) < 0.03


def test_consecutive_blocks_do_not_overlap():
    blocks = [
        np.concatenate([batch_starts(2**40, 0, b * 256 + s, 2, 8) for s in range(256)])
        for b in range(3)
    ]
    assert len(set(np.concatenate(blocks).tolist())) == 3 * 512


def test_global_generators_are_untouched(monkeypatch):
    before = torch.get_rng_state(), str(np.random.get_state())  # noqa: NPY002
    monkeypatch.setattr(synthetic, "SYNTHETIC_TOKENS", 2**12)
    data._synthetic_corpus.__wrapped__(2, 256)
    batch_starts(5000, 12345, 7, 4, 16)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert str(np.random.get_state()) == before[1]  # noqa: NPY002


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int32])
def test_gather_reads_sequences_and_the_same_one_later(dtype):
    values = (
        torch.arange(500) % 256 * (257 if dtype == torch.uint16 else 1)
    )  # 65535 does not fit an int16
    tokens = values.to(dtype)
    starts = np.array([[0, 3, 3], [490, 200, 255]])
    inputs, targets = gather(tokens, starts, 9)
    assert inputs.shape == targets.shape == (2, 3, 9)
    assert inputs.dtype == targets.dtype == torch.int64
    assert inputs.is_contiguous() and targets.is_contiguous()
    for row in range(2):
        for column in range(3):
            start = starts[row, column]
            assert inputs[row, column].tolist() == values[start : start + 9].tolist()
            assert targets[row, column].tolist() == values[start + 1 : start + 10].tolist()


def test_gather_of_a_population_equals_gather_of_each_run(cases):
    tokens = cases[0].train
    starts = np.stack([batch_starts(tokens.numel(), seed, 5, 4, 16) for seed in range(3)])
    together = gather(tokens, starts, 16)
    for row in range(3):
        alone = gather(tokens, starts[row], 16)
        assert torch.equal(together[0][row], alone[0]) and torch.equal(together[1][row], alone[1])


def test_a_memory_mapped_file_is_not_copied_and_not_modified(tmp_path):
    values = (np.arange(100_000) % 65_536).astype("<u2")
    path = write(tmp_path / "tokens.bin", values.tobytes())
    corpus = load_corpus(path)
    assert corpus.tokens.dtype == torch.uint16
    assert corpus.vocab_size == 65_536
    assert corpus.sha256 == hashlib.sha256(values.tobytes()).hexdigest()
    inputs, _ = gather(corpus.validation, np.array([0]), 8)
    assert inputs[0].tolist() == values[95_000:95_008].tolist()
    corpus.tokens.view(torch.int16)[0] = 5
    assert (tmp_path / "tokens.bin").read_bytes() == values.tobytes()


@pytest.mark.parametrize(
    ("suffix", "content", "found"), [("txt", b"", "0"), ("txt", b"x" * 39, "39")]
)
def test_a_short_text_is_refused_with_both_numbers(tmp_path, suffix, content, found):
    with pytest.raises(ValueError, match=f"must have at least 40 tokens; got {found}"):
        load_corpus(write(tmp_path / f"a.{suffix}", content))


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


def test_a_slice_that_is_too_short_is_refused_with_both_numbers(tmp_path):
    corpus = load_corpus(write(tmp_path / "a.txt", b"x" * 1000))
    require_length(corpus, "probe", 50)
    with pytest.raises(
        ValueError, match=r"probe slice of corpus .*a\.txt' must have at least 51 tokens; got 50"
    ):
        require_length(corpus, "probe", 51)
    with pytest.raises(ValueError, match="unknown slice 'test'; expected one of"):
        require_length(corpus, "test", 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((16, 0, 0, 4, 16), "length must be at least 17, the tokens of one sequence; got 16"),
        ((100, -1, 0, 4, 16), "seed must be at least 0; got -1"),
        ((100, 0, -1, 4, 16), "step must be at least 0; got -1"),
        ((100, 0, 0, 0, 16), "must be at least 1; got 0 and 16"),
    ],
)
def test_bad_batches_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        batch_starts(*arguments)


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


def parquet_of(table=None, **columns):
    """The bytes of a parquet file."""
    import pyarrow
    from pyarrow import parquet

    buffer = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.table(columns) if table is None else table, buffer)
    return buffer.getvalue().to_pybytes()


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


def test_what_the_caller_has_set_in_torch_changes_no_corpus(tmp_path):
    paths = [write(tmp_path / "a.txt", TEXT), write(tmp_path / "a.bin", b"\1\0" * 100)]
    plain = [load_corpus(path) for path in paths]
    data._tokenize.cache_clear()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"), torch.inference_mode():
            others = [load_corpus(path) for path in paths]
    finally:
        torch.set_default_dtype(torch.float32)
    for corpus, other in zip(plain, others, strict=True):
        assert torch.equal(corpus.tokens, other.tokens) and corpus.digest == other.digest
        assert other.token_bytes.dtype == torch.float32 and other.token_bytes.device.type == "cpu"
        inputs, _ = gather(other.train, np.array([0, 1]), 8)
        weight = torch.ones(256, 2, requires_grad=True)
        torch.nn.functional.embedding(inputs, weight).sum().backward()
        assert weight.grad.sum() == 2 * 2 * 8


def copied_to(folder, source, **changes):
    """A copy of a tokenizer's file with other values."""
    value = json.loads(Path(source).read_text()) | changes
    return write(folder / "changed.json", json.dumps(value))


class TestOptionalPackages:
    """Parquet, datasets and tokenizers, where they are installed."""

    @pytest.fixture
    def folder(self, tmp_path):
        parquet = pytest.importorskip("pyarrow.parquet")
        import pyarrow

        pytest.importorskip("datasets")
        (tmp_path / "corpus").mkdir()
        table = pyarrow.table(
            {
                "text": ["alpha " * 20, None, "βeta " * 20],
                "number": [1, 2, 3],
                "code": ["x" * 50] * 3,
            }
        )
        parquet.write_table(table, tmp_path / "corpus" / "train.parquet")
        return tmp_path / "corpus"

    def test_a_parquet_file_is_its_text_column_joined_by_newlines(self, folder):
        corpus = load_corpus(str(folder / "train.parquet"))
        assert bytes(corpus.tokens.tolist()).decode() == "alpha " * 20 + "\n" + "βeta " * 20

    @pytest.mark.parametrize("name", ["", "/train.parquet"])
    def test_a_local_folder_or_file_loads_as_a_dataset(self, folder, name):
        corpus = load_corpus(f"hf:{folder}{name}")
        assert corpus.sha256 == load_corpus(str(folder / "train.parquet")).sha256
        other = load_corpus(f"hf:{folder}{name}:train:code")
        assert bytes(other.tokens.tolist()).decode() == "\n".join(["x" * 50] * 3)

    def test_a_column_that_is_missing_or_holds_no_text_is_named(self, folder):
        with pytest.raises(
            ValueError, match=r"one column 'body'; got no such .*\['text', 'number', 'code'\]"
        ):
            load_corpus(f"hf:{folder}:train:body")
        with pytest.raises(
            ValueError, match=r"column 'number' of 'hf:.*' must hold text; got int64"
        ):
            load_corpus(f"hf:{folder}:train:number")

    @pytest.mark.parametrize("form", ["{}", "hf:{}"])
    def test_a_dataset_that_is_written_anew_is_read_anew(self, tmp_path, form):
        pytest.importorskip("datasets")
        path, texts = tmp_path / "a.parquet", []
        for text in ("ab" * 50, "ba" * 50):
            tmp_path.joinpath("new").write_bytes(parquet_of(text=[text]))
            os.utime(tmp_path / "new", ns=(10**18, 10**18))  # what a copy that keeps times leaves
            (tmp_path / "new").replace(path)
            texts.append(bytes(load_corpus(form.format(path)).tokens.tolist()).decode())
        assert texts == ["ab" * 50, "ba" * 50]

    def test_the_home_folder_is_expanded_behind_hf(self, folder, monkeypatch):
        monkeypatch.setenv("HOME", str(folder.parent))
        assert load_corpus("hf:~/corpus").sha256 == load_corpus(f"hf:{folder}").sha256

    @pytest.mark.parametrize("name", ["./nowhere", "/nowhere", "~nobody/x", "nowhere.parquet"])
    def test_a_dataset_that_is_not_there_is_refused_without_asking_the_network(self, name):
        pytest.importorskip("datasets")
        with pytest.raises(
            FileNotFoundError, match=r"data must name a folder or file that exists; got 'hf:"
        ):
            load_corpus(f"hf:{name}")

    def test_a_dataset_that_cannot_be_read_is_named(self, folder):
        (folder.parent / "empty").mkdir()
        write(folder.parent / "cut.parquet", (folder / "train.parquet").read_bytes()[:-9])
        for name in (f"{folder}:trein", f"{folder.parent}/empty", f"{folder.parent}/cut.parquet"):
            with pytest.raises(
                ValueError,
                match=rf"must be a dataset that `datasets` reads; got 'hf:{name}' \(\w+: ",
            ):
                load_corpus(f"hf:{name}")

    @pytest.mark.parametrize("content", [b"", b"PAR1", TEXT.encode(), "cut", "latin"])
    def test_a_parquet_file_that_cannot_be_read_is_named(self, tmp_path, content):
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

    def test_a_parquet_column_that_holds_no_text_or_stands_twice_is_named(self, tmp_path):
        pyarrow = pytest.importorskip("pyarrow")
        with pytest.raises(
            ValueError, match=r"column 'text' of '.*a\.parquet' must hold text; got binary"
        ):
            load_corpus(write(tmp_path / "a.parquet", parquet_of(text=[b"x" * 90])))
        twice = pyarrow.table([["x" * 90], ["y" * 90]], names=["text", "text"])
        with pytest.raises(ValueError, match="must have one column 'text'; got more than one"):
            load_corpus(write(tmp_path / "a.parquet", parquet_of(twice)))

    def test_a_folder_that_looks_like_a_partition_adds_no_column(self, tmp_path):
        pytest.importorskip("pyarrow")
        (tmp_path / "text=en").mkdir()
        corpus = load_corpus(write(tmp_path / "text=en" / "a.parquet", parquet_of(text=[TEXT])))
        assert bytes(corpus.tokens.tolist()).decode() == TEXT

    def test_bpe_tokens_stand_for_every_byte_of_their_slice(self, tmp_path):
        pytest.importorskip("tokenizers")
        path = write(tmp_path / "a.txt", TEXT)
        corpus = load_corpus(path, "bpe:400")
        assert corpus.tokens.dtype == torch.int32
        assert corpus.vocab_size == corpus.token_bytes.numel() == 400
        sizes = [corpus.token_bytes[getattr(corpus, name)].sum().item() for name in SLICES]
        assert sum(sizes) == len(TEXT.encode())
        assert sizes[0] == len(TEXT[: len(TEXT) * 90 // 100].encode())
        assert corpus.tokens.numel() < len(TEXT) / 2

    def test_bpe_is_deterministic_and_sees_only_the_train_slice(self, tmp_path):
        pytest.importorskip("tokenizers")
        cut = len(TEXT) * 90 // 100
        changed = TEXT[:cut] + "#" * (len(TEXT) - cut)
        first = load_corpus(write(tmp_path / "a.txt", TEXT), "bpe:400")
        second = load_corpus(write(tmp_path / "b.txt", changed), "bpe:400")
        assert torch.equal(first.train, second.train)
        assert torch.equal(first.token_bytes, second.token_bytes)
        again = data.read_file("data", first.name), "bpe:400"
        assert torch.equal(data._tokenize.__wrapped__(*again).tokens, first.tokens)

    def test_a_saved_tokenizer_gives_the_tokens_and_bytes_of_a_token_file(self, tmp_path):
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
        with pytest.raises(
            ValueError, match=r"got .* with 401 tokens, but the file holds token 401"
        ):
            load_corpus(
                write(tmp_path / "b.bin", np.full(50, 401, "<u2").tobytes()),
                str(tmp_path / "tokenizer.json"),
            )
        spelled = load_corpus(
            write(tmp_path / "b.txt", TEXT + "<|endoftext|>"), str(tmp_path / "tokenizer.json")
        )
        assert not (spelled.tokens == 400).any()

    def test_a_tokenizer_that_loses_text_is_refused(self, tmp_path):
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

    def test_a_tokenizer_that_writes_other_text_of_as_many_bytes_is_refused(self, tmp_path):
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

    def test_a_tokenizer_that_adds_a_space_is_refused(self, tmp_path):
        tokenizers = pytest.importorskip("tokenizers")
        encoder = train_bpe([TEXT], "bpe:300")
        encoder.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
        encoder.save(own := str(tmp_path / "tokenizer.json"))
        with pytest.raises(
            ValueError, match=r"changes the text: .*without a space that is added in front"
        ):
            load_corpus(write(tmp_path / "a.txt", TEXT), own)

    @pytest.mark.parametrize(
        "normalizer", ["NFD", "NFKC", "StripAccents", "Strip", "BertNormalizer"]
    )
    def test_a_normalizer_that_writes_another_text_is_refused_by_name(self, normalizer, tmp_path):
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
    def test_a_tokenizer_without_a_token_for_a_byte_of_the_text_is_refused(self, unknown, tmp_path):
        """The byte becomes the unknown token, or nothing at all."""
        tokenizers = pytest.importorskip("tokenizers")
        letters = [*sorted(set(tokenizers.pre_tokenizers.ByteLevel.alphabet()) - {"q"}), "<unk>"]
        vocabulary = {letter: number for number, letter in enumerate(letters)}
        encoder = tokenizers.Tokenizer(
            tokenizers.models.BPE(vocabulary, merges=[], unk_token=unknown)
        )
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
    def test_a_normalizer_that_loses_nothing_is_accepted(self, tmp_path, normalizer):
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

    def test_a_tokenizer_is_its_content(self, tmp_path):
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

    def test_a_tokenizer_gives_all_of_a_text_and_nothing_else(self, tmp_path):
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
    def test_a_tokenizer_of_impossible_values_is_named(self, tmp_path, changes, message):
        pytest.importorskip("tokenizers")
        train_bpe([TEXT], "bpe:300").save(str(tmp_path / "tokenizer.json"))
        model = json.loads((tmp_path / "tokenizer.json").read_text())["model"] | changes
        changed = copied_to(tmp_path, tmp_path / "tokenizer.json", model=model)
        with pytest.raises(ValueError, match=rf"^tokenizer .*'.*changed\.json'.* {message}"):
            load_corpus(write(tmp_path / "a.txt", TEXT), changed)

    @pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[]", b"null", b"{}", b"[" * 100_000])
    def test_a_file_that_is_no_tokenizer_is_named(self, tmp_path, content):
        pytest.importorskip("tokenizers")
        with pytest.raises(
            ValueError,
            match=r"^tokenizer must be a file .* got '.*own\.json', which cannot be read",
        ):
            load_corpus(write(tmp_path / "a.txt", TEXT), write(tmp_path / "own.json", content))

    @pytest.mark.parametrize("size", ["255", "1048577", "9" * 5000, "-1", "3e2", "٣٠٠", ""])
    def test_a_vocabulary_that_cannot_be_trained_is_refused(self, tmp_path, size):
        pytest.importorskip("tokenizers")
        with pytest.raises(ValueError, match="must be a whole number from 256 to 1048576; got"):
            load_corpus(write(tmp_path / "a.txt", TEXT), f"bpe:{size}")

    def test_bad_tokenizers_are_named(self, tmp_path):
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
    def test_a_missing_package_is_named_with_its_extra(self, folder, monkeypatch, package):
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
