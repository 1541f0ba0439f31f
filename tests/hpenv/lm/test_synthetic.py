"""The synthetic corpus has the entropy that it states."""

import numpy as np
import pytest
import torch

from hpenv.lm import data, synthetic
from hpenv.lm.data import SLICES, load_corpus


def conditional_entropy(context, symbol):
    """Plug-in estimate of H(symbol | context) [nats]."""
    joint, marginal = np.bincount(context * 256 + symbol), np.bincount(context)
    terms = [
        np.sum(counts[counts > 0] * np.log(counts[counts > 0])) for counts in (joint, marginal)
    ]
    return (terms[1] - terms[0]) / len(symbol)


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
