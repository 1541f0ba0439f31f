"""Corpora: disjoint slices, and a batch that is a pure function of seed and step."""

import hashlib

import numpy as np
import pytest
import torch

from hpenv.lm import data, synthetic
from hpenv.lm.data import batch_starts, gather, load_corpus, require_length
from tests.hpenv.lm.small_corpora import TEXT, write


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
