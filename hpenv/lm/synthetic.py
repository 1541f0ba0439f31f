"""The synthetic source, and counter-based random numbers for it and for the batches."""

from __future__ import annotations

import math
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

SYNTHETIC_TOKENS = 2**22
# Probabilities of the eight next symbols in 256ths, so that one random byte draws a symbol exactly.
SYNTHETIC_WEIGHTS = (96, 64, 32, 24, 16, 12, 8, 4)
# Classes of the symbol before the last that the source remembers: its two low bits.
SYNTHETIC_CLASSES = 4

BATCH_STREAM, SYNTHETIC_STREAM = 0, 1  # one seed gives unrelated numbers to each use


def random_words(seed: int, stream: int, block: int, count: int) -> NDArray[np.uint64]:
    """Returns `count` raw integers of Philox, a pure function of seed, stream and block.

    Raises:
        ValueError: for a seed below 0.
    """
    if seed < 0:
        raise ValueError(f"seed must be at least 0; got {seed}")
    key = np.random.SeedSequence(seed, spawn_key=(stream,)).generate_state(2, np.uint64)
    counter = np.array([0, block, 0, 0], dtype=np.uint64)
    return np.random.Philox(key=key, counter=counter).random_raw(count)


def uniform_numbers(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Returns multiples of 2**-53 in [0, 1).

    The product with an n below 2**53, rounded down, is below n.
    """
    return np.multiply(words >> np.uint64(11), 2.0**-53, dtype=np.float64)


def synthetic_symbols(seed: int, vocab_size: int) -> tuple[NDArray[np.uint8], float]:
    """Returns the symbols of the source that `load_corpus` describes, and its entropy rate [nats].

    Raises:
        ValueError: for a vocabulary that is too small or too large.
    """
    fan_out = len(SYNTHETIC_WEIGHTS)
    if not fan_out <= vocab_size <= 256:
        raise ValueError(
            f"vocab_size of 'synthetic' must be from {fan_out} to 256; got {vocab_size}"
        )

    # Products of two uniforms make low symbols frequent, as few symbols are most of a text. They
    # are the same on every machine, which a logarithm need not be. A context is
    # (class of the symbol before) * vocab_size + last symbol.
    shape = (2, SYNTHETIC_CLASSES * vocab_size, 64)
    words = random_words(seed, SYNTHETIC_STREAM, 0, math.prod(shape))
    uniform = uniform_numbers(words).reshape(shape)

    table = []  # table[context][random byte] is the next context
    for context, row in enumerate((uniform.prod(axis=0) * vocab_size).astype(np.int64).tolist()):
        successors = list(dict.fromkeys([*row, *range(vocab_size)]))[:fan_out]
        following = context % vocab_size % SYNTHETIC_CLASSES * vocab_size + np.array(successors)
        table.append(np.repeat(following, SYNTHETIC_WEIGHTS).tolist())

    draws = random_words(seed, SYNTHETIC_STREAM, 1, SYNTHETIC_TOKENS // 8).astype("<u8").tobytes()
    path = accumulate(draws, lambda context, draw: table[context][draw], initial=0)
    contexts = np.fromiter(path, dtype=np.int64, count=SYNTHETIC_TOKENS + 1)[1:]

    entropy_rate_nats = -math.fsum(
        weight / 256 * math.log(weight / 256) for weight in SYNTHETIC_WEIGHTS
    )
    return (contexts % vocab_size).astype(np.uint8), entropy_rate_nats
