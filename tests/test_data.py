"""Corpora are what they say, slices are disjoint, and a batch is a pure function of seed and step."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest
import torch

from hpenv import data
from hpenv.data import SLICES, batch_starts, gather, load_corpus, require_length

TEXT = "".join(f"línea {i}: the quick brown fox {i * i} jumps\n" for i in range(400))


def write(path, content):
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def conditional_entropy(context, symbol):
    """Plug-in estimate of H(symbol | context) [nats]."""
    joint, marginal = np.bincount(context * 256 + symbol), np.bincount(context)
    terms = [np.sum(counts[counts > 0] * np.log(counts[counts > 0])) for counts in (joint, marginal)]
    return (terms[1] - terms[0]) / len(symbol)


@pytest.fixture
def cases(tmp_path):
    """Corpora of every kind that needs no optional package."""
    tokens = np.arange(1000, dtype="<u2") * 60
    arguments = [("stdlib",), ("synthetic",), (write(tmp_path / "a.txt", TEXT),)]
    return [load_corpus(*a) for a in arguments] + [load_corpus(write(tmp_path / "a.bin", tokens.tobytes()))]


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
    assert load_corpus("stdlib") is load_corpus("stdlib")


def test_slices_of_the_standard_library_are_alike():
    corpus = load_corpus("stdlib")
    counts = [
        torch.bincount(part, minlength=256).double() + 1 for part in (corpus.train, corpus.probe, corpus.validation)
    ]
    train, *others = [c / c.sum() for c in counts]
    for other in others:
        assert float((other * (other / train).log()).sum()) < 0.02  # [nats]; 0.048 in the order of the paths


def test_the_synthetic_source_has_the_entropy_rate_it_states():
    corpus = load_corpus("synthetic")
    symbols = corpus.tokens.numpy().astype(np.int64)
    two_back, one_back, now = symbols[:-2], symbols[1:-1], symbols[2:]
    assert corpus.entropy_rate_nats == pytest.approx(conditional_entropy(two_back % 4 * 256 + one_back, now), abs=0.003)
    # Less context must cost something at each step, or there would be little to learn.
    assert conditional_entropy(one_back, now) > corpus.entropy_rate_nats + 0.5
    assert conditional_entropy(np.zeros_like(now), now) > corpus.entropy_rate_nats + 2


def test_the_synthetic_floor_holds_on_each_slice():
    corpus = load_corpus("synthetic")
    context_of = {}
    for name in SLICES:
        symbols = getattr(corpus, name).numpy().astype(np.int64)
        counts = np.bincount((symbols[:-2] % 4 * 256 + symbols[1:-1]) * 256 + symbols[2:], minlength=2**18).reshape(
            -1, 256
        )
        context_of[name] = counts
    train = context_of["train"]
    probabilities = (train + 1e-3) / (train + 1e-3).sum(axis=1, keepdims=True)
    for counts in context_of.values():
        loss = -(counts * np.log(probabilities)).sum() / counts.sum()
        assert loss == pytest.approx(corpus.entropy_rate_nats, abs=0.015)


def test_the_synthetic_source_is_the_same_on_every_machine():
    assert load_corpus("synthetic") is load_corpus("synthetic")
    assert load_corpus("synthetic").tokens[:12].tolist() == [10, 83, 134, 59, 118, 55, 32, 62, 20, 1, 28, 84]
    assert load_corpus("synthetic").sha256.startswith("34279ca3e0667662")
    assert not torch.equal(load_corpus("synthetic:1").tokens, load_corpus("synthetic:0").tokens)


def test_the_synthetic_source_has_as_many_symbols_as_asked():
    corpus = load_corpus("synthetic:3", vocab_size=16)
    assert corpus.vocab_size == 16
    assert len(torch.unique(corpus.tokens)) == 16


def test_batch_starts_are_known_numbers():
    assert batch_starts(10_000, 7, 0, 4, 64).tolist() == [480, 8171, 930, 1028]
    assert batch_starts(10_000, 7, 10**12, 4, 64).tolist() == [3823, 134, 4307, 3737]


def test_batch_starts_are_the_same_in_another_process():
    arguments = "(123_457, 2**63 + 11, step, 5, 32)"
    code = f"from hpenv.data import batch_starts; print([batch_starts{arguments}.tolist() for step in range(250, 260)])"
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert there.strip() == str([batch_starts(123_457, 2**63 + 11, step, 5, 32).tolist() for step in range(250, 260)])


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
    assert set(np.concatenate([batch_starts(17, 0, step, 8, 16) for step in range(10)]).tolist()) == {0}


def test_batch_starts_are_uniform_and_seeds_are_unrelated():
    def sample(seed):
        return np.concatenate([batch_starts(1064, seed, step, 16, 64) for step in range(1000)])

    histogram = np.bincount(sample(0) // 100, minlength=10)
    expected = 1600
    assert ((histogram - expected) ** 2 / expected).sum() < 27.9  # chi-squared, 9 degrees of freedom, p = 0.001
    for other in (1, 2**32, 2**64):
        assert abs(np.corrcoef(sample(0), sample(other))[0, 1]) < 0.03


def test_consecutive_blocks_do_not_overlap():
    blocks = [np.concatenate([batch_starts(2**40, 0, b * 256 + s, 2, 8) for s in range(256)]) for b in range(3)]
    assert len(set(np.concatenate(blocks).tolist())) == 3 * 512


def test_global_generators_are_untouched():
    before = torch.get_rng_state(), str(np.random.get_state())  # noqa: NPY002
    load_corpus.__wrapped__("synthetic:2")
    batch_starts(5000, 12345, 7, 4, 16)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert str(np.random.get_state()) == before[1]  # noqa: NPY002


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int32])
def test_gather_reads_sequences_and_the_same_one_later(dtype):
    values = torch.arange(500) % 256 * (257 if dtype == torch.uint16 else 1)  # 65535 does not fit an int16
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


@pytest.mark.parametrize(("suffix", "content", "found"), [("txt", b"", "0 tokens"), ("txt", b"x" * 39, "39 tokens")])
def test_a_short_text_is_refused_with_both_numbers(tmp_path, suffix, content, found):
    with pytest.raises(ValueError, match=f"has {found}, at least 40 are needed"):
        load_corpus(write(tmp_path / f"a.{suffix}", content))


@pytest.mark.parametrize(
    ("content", "found"), [(b"", "0 tokens"), (b"x" * 78, "39 tokens"), (b"x" * 101, "50.5 tokens")]
)
def test_a_short_or_odd_token_file_is_refused_with_both_numbers(tmp_path, content, found):
    with pytest.raises(ValueError, match=f"{found} of uint16; a whole number of at least 40"):
        load_corpus(write(tmp_path / "a.bin", content))


@pytest.mark.parametrize("suffix", ["txt", "bin", "parquet"])
def test_a_missing_file_is_named(tmp_path, suffix):
    with pytest.raises(FileNotFoundError, match=rf"nowhere.{suffix}.*0 tokens, at least 40"):
        load_corpus(str(tmp_path / f"nowhere.{suffix}"))


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("stdlb",), {}, "unknown data 'stdlb'; expected one of 'stdlib'"),
        (("stdlib:3",), {}, "unknown data 'stdlib:3'"),
        (("notes.md",), {}, "unknown data 'notes.md'"),
        (("synthetic:x",), {}, "seed in data 'synthetic:x' must be an integer of at least 0, not 'x'"),
        (("synthetic:-1",), {}, "not '-1'"),
        (("synthetic",), {"vocab_size": 7}, "from 8 to 256, not 7"),
        (("synthetic",), {"vocab_size": 257}, "from 8 to 256, not 257"),
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
    with pytest.raises(ValueError, match=r"probe slice of corpus .*a\.txt': 50 tokens, 51 are needed"):
        require_length(corpus, "probe", 51)
    with pytest.raises(ValueError, match="unknown slice 'test'; expected one of"):
        require_length(corpus, "test", 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((16, 0, 0, 4, 16), "16 tokens is too short, 17 are needed"),
        ((100, -1, 0, 4, 16), "seed must be at least 0, not -1"),
        ((100, 0, -1, 4, 16), "step must be at least 0, not -1"),
        ((100, 0, 0, 0, 16), "must be at least 1, not 0 and 16"),
    ],
)
def test_bad_batches_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        batch_starts(*arguments)


class TestOptionalPackages:
    """Parquet, datasets and tokenizers, where they are installed."""

    @pytest.fixture
    def folder(self, tmp_path, monkeypatch):
        parquet = pytest.importorskip("pyarrow.parquet")
        import pyarrow

        datasets = pytest.importorskip("datasets")
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        (tmp_path / "corpus").mkdir()
        table = pyarrow.table(
            {"text": ["alpha " * 20, None, "βeta " * 20], "number": [1, 2, 3], "code": ["x" * 50] * 3}
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

    def test_a_missing_column_is_named_with_those_there_are(self, folder):
        with pytest.raises(ValueError, match=r"no column 'body'; it has \['text', 'number', 'code'\]"):
            load_corpus(f"hf:{folder}:train:body")

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
        assert torch.equal(load_corpus.__wrapped__(first.name, "bpe:400").tokens, first.tokens)

    def test_a_saved_tokenizer_gives_the_tokens_and_bytes_of_a_token_file(self, tmp_path):
        pytest.importorskip("tokenizers")
        path = write(tmp_path / "a.txt", TEXT)
        encoder = data._train_bpe([TEXT], "bpe:400")
        encoder.add_special_tokens(["<|endoftext|>"])
        encoder.save(str(tmp_path / "tokenizer.json"))
        text = load_corpus(path, str(tmp_path / "tokenizer.json"))
        assert text.vocab_size == 401
        assert text.token_bytes[400] == 0
        ids = encoder.encode(TEXT).ids
        binary = load_corpus(
            write(tmp_path / "a.bin", np.array([400, *ids], "<u2").tobytes()), str(tmp_path / "tokenizer.json")
        )
        assert binary.vocab_size == 401
        assert binary.token_bytes[binary.tokens.long()].sum() == len(TEXT.encode())
        with pytest.raises(ValueError, match=r"holds token 401, but .* has only 401 tokens"):
            load_corpus(write(tmp_path / "b.bin", np.full(50, 401, "<u2").tobytes()), str(tmp_path / "tokenizer.json"))
        spelled = load_corpus(write(tmp_path / "b.txt", TEXT + "<|endoftext|>"), str(tmp_path / "tokenizer.json"))
        assert not (spelled.tokens == 400).any()

    def test_a_tokenizer_that_loses_text_is_refused(self, tmp_path):
        tokenizers = pytest.importorskip("tokenizers")
        encoder = data._train_bpe([TEXT], "bpe:300")
        encoder.normalizer = tokenizers.normalizers.Replace(" ", "")
        encoder.save(str(tmp_path / "tokenizer.json"))
        with pytest.raises(ValueError, match="changes the text"):
            load_corpus(write(tmp_path / "a.txt", TEXT), str(tmp_path / "tokenizer.json"))
        encoder.decoder = tokenizers.decoders.WordPiece()
        encoder.save(str(tmp_path / "words.json"))
        with pytest.raises(ValueError, match="must be byte-level"):
            load_corpus(str(tmp_path / "a.txt"), str(tmp_path / "words.json"))
        other = write(tmp_path / "other.json", '{"model_type": "llama"}')
        with pytest.raises(ValueError, match=r"other.json' cannot be read .*expected a file that `tokenizers` saved"):
            load_corpus(str(tmp_path / "a.txt"), other)

    def test_bad_tokenizers_are_named(self, tmp_path):
        pytest.importorskip("tokenizers")
        path = write(tmp_path / "a.txt", TEXT)
        with pytest.raises(ValueError, match="vocabulary in tokenizer 'bpe:255' must be an integer of at least 256"):
            load_corpus(path, "bpe:255")
        with pytest.raises(ValueError, match="tokenizer 'words' does not fit; expected 'bytes'"):
            load_corpus(path, "words")
        with pytest.raises(FileNotFoundError, match=r"nowhere\.json"):
            load_corpus(path, str(tmp_path / "nowhere.json"))
        with pytest.raises(ValueError, match="not UTF-8"):
            load_corpus(write(tmp_path / "b.txt", b"\xff" * 100), "bpe:300")

    @pytest.mark.parametrize("package", ["datasets", "tokenizers", "pyarrow.parquet"])
    def test_a_missing_package_is_named_with_its_extra(self, folder, monkeypatch, package):
        monkeypatch.setitem(sys.modules, package, None)
        arguments = {
            "datasets": (f"hf:{folder}:train:text",),
            "tokenizers": (write(folder / "a.txt", TEXT), "bpe:301"),
            "pyarrow.parquet": (str(folder / "train.parquet"),),
        }[package]
        with pytest.raises(ImportError, match=rf"{package.split('.')[0]} is not installed: pip install hpenv\[data\]"):
            load_corpus(*arguments)
