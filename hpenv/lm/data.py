"""Corpora, and seeded batches that can be rewound.

A corpus is one tensor of tokens with three disjoint slices. Batches come from `train`, and the
reward's probe from `probe`. Only held-out evaluation reads `validation`. Where the sequences of a
batch start is a pure function of (seed, step), so the position in the data is the step count. To
save it is to save an int, and to rewind it is to ask for a smaller one.

A corpus is defined by its content. The source is read at every call, and results are cached by the
digest of the bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from hpenv.isolation import with_torch_defaults
from hpenv.lm.sources import Content, check_file, read_file, text_content
from hpenv.lm.synthetic import BATCH_STREAM, random_words, synthetic_symbols, uniform_numbers
from hpenv.lm.tokenization import encode_slices, read_tokenizer, token_bytes, whole_number

SLICES = ("train", "probe", "validation")
TRAIN_PERCENT, PROBE_PERCENT = 90, 5  # the rest is the validation slice
MINIMUM_TOKENS = 40  # below it the probe or the validation slice holds no pair of input and target

MOST_SEED = 2**64 - 1  # largest seed of `synthetic`

#: First numbers (int32) of the token files of llm.c and its kin, which have a header of
#: HEADER_BYTES.
HEADER_MAGICS, HEADER_BYTES = (20240520, 20240801), 1024

# Steps drawn at once, because setting up a generator costs more than drawing from it.
STEPS_PER_BLOCK = 256
CACHED_BLOCKS = 256  # at least the number of runs of a population, which take turns


@dataclass(frozen=True, eq=False)
class Corpus:
    """Tokens, their slices, and the bytes that each token stands for.

    Attributes:
        name: `data` as given to `load_corpus`.
        sha256: hex digest of the raw bytes, before any tokenizer.
        digest: hex digest of tokens, slices and token_bytes: everything that a run sees of a
            corpus.
        tokens: all tokens, 1-D: uint8 for bytes, uint16 for a `.bin` file, int32 for BPE.
        vocab_size: number of token ids.
        token_bytes: bytes of text that each id stands for, (vocab_size,) float32, 0 for special
            tokens.
        entropy_rate_nats: lowest expected loss of any model [nats per token], known for `synthetic`
            alone.
        train: view of the first 90 %.
        probe: view of the next 5 %.
        validation: view of the last 5 %.
    """

    name: str
    sha256: str
    digest: str
    tokens: torch.Tensor
    vocab_size: int
    token_bytes: torch.Tensor
    entropy_rate_nats: float | None
    train: torch.Tensor
    probe: torch.Tensor
    validation: torch.Tensor


@with_torch_defaults
def load_corpus(
    data: str | os.PathLike[str] = "stdlib",
    tokenizer: str | os.PathLike[str] = "bytes",
    *,
    vocab_size: int = 256,
) -> Corpus:
    """Loads a corpus.

    The source is read again at every call. Corpora of the same content share their tokens.

    `data` is one of
      - `stdlib`: the source text of the running Python's standard library, about 11 MB. Files stand
        in the order of a seeded digest of their path. This permutation is the same everywhere and
        makes the slices similar.
      - `synthetic` or `synthetic:<seed>`: 2**22 symbols of a random source, identical on every
        machine. The next symbol is one of eight, of fixed probabilities. The last symbol and two
        bits of the one before determine which eight. Every context has the same probabilities, so
        the entropy rate is exactly their entropy, from any state.
      - `package:<name>[:<suffix>]`: the files of an installed package with a suffix, `.py` by
        default, in such an order: `package:numpy`, `package:pydoc_data` (Python's manual, English
        text), `package:torch:.h` (C++).
      - `hf:<name>[:<split>[:<column>]]`: a dataset of the Hugging Face hub, or a local folder or
        parquet file, read by `datasets`. Split `train` and column `text` by default.
      - a path: `.txt`, `.parquet` (column `text`), or `.bin` (uint16 tokens without a header, as
        nanoGPT writes them). Rows of a dataset or parquet file are joined by newlines. A `.bin`
        file is mapped into memory, not read. While a run uses it, put a new file in its place
        instead of writing into it.
      - one of the texts above with `@<k>/<n>`: the k-th of n equal parts of its bytes, as
        `stdlib@1/2`. Each part has slices of its own.

    Args:
        data: see above. `~` stands for the home folder.
        tokenizer: `bytes`, or `bpe:<vocabulary>`, a byte-level BPE trained on the train slice, or
            the path of a byte-level tokenizer in the JSON format of `tokenizers`. A `.bin` file
            holds tokens already. A path then names the tokenizer that made them. With `bytes` each
            token counts as one byte, so that bits per byte means bits per token.
        vocab_size: number of symbols of `synthetic`, 8 to 256. All other data determine their
            vocabulary and accept 256 alone.

    Raises:
        FileNotFoundError: for a file that does not exist.
        ValueError: for an unknown name, a file that is too short or damaged, or arguments that
            exclude each other.
        ImportError: if an optional package is missing. The message names the extra.
    """
    data, tokenizer = _expand_path("data", data), _expand_path("tokenizer", tokenizer)
    if not isinstance(vocab_size, int) or isinstance(vocab_size, bool):
        raise ValueError(f"vocab_size must be a whole number; got {vocab_size!r}")

    source, _, argument = data.partition(":")
    if source == "synthetic" and tokenizer == "bytes":
        seed = whole_number(argument or "0", 0, MOST_SEED, f"seed in data {data!r}")
        return replace(_synthetic_corpus(seed, vocab_size), name=data)
    if source == "synthetic" or vocab_size != 256:
        raise ValueError(
            f"tokenizer and vocab_size must fit data {data!r}; got {tokenizer!r} and {vocab_size}; "
            "'synthetic' accepts tokenizer 'bytes' alone, all other data vocab_size 256 alone"
        )

    if data.endswith(".bin"):
        return _binary(data, _content_of(tokenizer, accepts_bpe=False))

    return replace(_tokenize(text_content(data), _content_of(tokenizer)), name=data)


def require_length(corpus: Corpus, slice_name: str, needed: int) -> None:
    """Checks that a slice has at least `needed` tokens.

    One sequence takes `sequence_length + 1` tokens: its targets are its inputs moved by one.

    Raises:
        ValueError: with both numbers, if the slice is too short, or for an unknown slice.
    """
    if slice_name not in SLICES:
        raise ValueError(f"unknown slice {slice_name!r}; expected one of {list(SLICES)}")
    slices = dict(zip(SLICES, (corpus.train, corpus.probe, corpus.validation), strict=True))
    length = slices[slice_name].numel()
    if length < needed:
        raise ValueError(
            f"{slice_name} slice of corpus {corpus.name!r} must have at least {needed} tokens; "
            f"got {length}; take a longer corpus, or fewer or shorter sequences"
        )


def batch_starts(
    length: int, seed: int, step: int, batch_size: int, sequence_length: int
) -> NDArray[np.int64]:
    """Returns where the sequences of a step's batch start: uniform, with replacement.

    The result depends on the arguments alone. Philox is a counter-based generator (Salmon et al.,
    "Parallel random numbers: as easy as 1, 2, 3", SC 2011). Its key is a hash of the seed, its
    counter the block of steps, so step 10**9 costs what step 0 does. Only its raw integers are
    used: numpy keeps them the same from release to release, but not its distributions (NEP 19).

    Args:
        length: number of tokens of the slice.
        seed: seed of the run, any integer >= 0.
        step: index of the step, >= 0. It is the whole position in the data.
        batch_size: B, sequences per step.
        sequence_length: T, tokens per sequence. One more is read, for the targets.

    Returns:
        Starts in [0, length - T - 1], (B,), a new array.
    """
    if step < 0:
        raise ValueError(f"step must be at least 0; got {step}")
    block, row = divmod(step, STEPS_PER_BLOCK)
    return _starts_of_block(length, seed, block, batch_size, sequence_length)[row].copy()


@lru_cache(maxsize=CACHED_BLOCKS)
def _starts_of_block(
    length: int, seed: int, block: int, batch_size: int, sequence_length: int
) -> NDArray[np.int64]:
    if batch_size < 1 or sequence_length < 1:
        raise ValueError(
            "batch_size and sequence_length must be at least 1; "
            f"got {batch_size} and {sequence_length}"
        )
    if length <= sequence_length:
        raise ValueError(
            f"length must be at least {sequence_length + 1}, the tokens of one sequence; "
            f"got {length}"
        )

    uniform = uniform_numbers(random_words(seed, BATCH_STREAM, block, STEPS_PER_BLOCK * batch_size))
    starts = (uniform * (length - sequence_length)).astype(np.int64)
    return starts.reshape(STEPS_PER_BLOCK, batch_size)


def gather(
    tokens: torch.Tensor, starts: NDArray[np.int64] | torch.Tensor, sequence_length: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Reads the sequences that begin at `starts`, on the device of the tokens.

    Args:
        tokens: a slice of a corpus, (length,).
        starts: (..., B), for example (N, B).
        sequence_length: T.

    Returns:
        Inputs and targets, each (..., B, T) int64. Targets are the inputs one token later.
    """
    first = torch.as_tensor(starts, dtype=torch.int64, device=tokens.device)
    offsets = torch.arange(sequence_length + 1, device=tokens.device)
    index = first.unsqueeze(-1) + offsets  # (..., B, T + 1)
    # Not every device indexes uint16: read the same bits as int16 and undo the sign.
    if tokens.dtype == torch.uint16:
        window = tokens.view(torch.int16)[index].to(torch.int64) & 0xFFFF
    else:
        window = tokens[index].to(torch.int64)
    return window[..., :-1].contiguous(), window[..., 1:].contiguous()


def _expand_path(argument: str, given: object) -> str:
    """Returns a name or path as text, with `~` replaced by the home folder."""
    path = os.fspath(given) if isinstance(given, os.PathLike) else given
    if not isinstance(path, str):
        raise ValueError(
            f"{argument} must be a name or a path (see hpenv.lm.data.load_corpus); got {given!r}"
        )
    return os.path.expanduser(path)


def _content_of(tokenizer: str, accepts_bpe: bool = True) -> str | Content:
    """Returns the content of a tokenizer's file, or the tokenizer's name if it has no file."""
    if tokenizer == "bytes" or (accepts_bpe and tokenizer.startswith("bpe:")):
        return tokenizer
    if not tokenizer.endswith(".json"):
        raise ValueError(
            "tokenizer must be 'bytes', 'bpe:<vocabulary>' for text, or a .json path; "
            f"got {tokenizer!r}"
        )
    return read_file("tokenizer", tokenizer)


def _corpus(
    name: str,
    sha256: str,
    tokens: torch.Tensor,
    sizes: torch.Tensor,
    entropy_rate_nats: float | None = None,
    slice_lengths: list[int] | None = None,
    tokens_sha256: str = "",
) -> Corpus:
    """Divides tokens into slices.

    `tokens_sha256` is the digest of the tokens if they are not the raw bytes.
    """
    if (total := tokens.numel()) < MINIMUM_TOKENS:
        raise ValueError(
            f"corpus {name!r} must have at least {MINIMUM_TOKENS} tokens; got {total}; "
            "take a longer corpus"
        )

    lengths = slice_lengths or _slice_lengths(total)
    identity = [str(tokens.dtype), lengths, tokens_sha256 or sha256, _sha256(sizes)]
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()

    train, probe, validation = torch.split(tokens, lengths)
    return Corpus(
        name,
        sha256,
        digest,
        tokens,
        sizes.numel(),
        sizes,
        entropy_rate_nats,
        train,
        probe,
        validation,
    )


def _sha256(values: torch.Tensor) -> str:
    return hashlib.sha256(values.numpy().data).hexdigest()


def _slice_lengths(total: int) -> list[int]:
    train, probe = total * TRAIN_PERCENT // 100, total * PROBE_PERCENT // 100
    return [train, probe, total - train - probe]


@lru_cache(maxsize=8)
def _tokenize(content: Content, tokenizer: str | Content) -> Corpus:
    name = content.name
    if tokenizer == "bytes":
        return _corpus(name, content.sha256, torch.from_numpy(content.raw), torch.ones(256))
    try:
        text = content.text()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"corpus {name!r} must be UTF-8 text; got other bytes ({error}); "
            "only tokenizer 'bytes' reads it"
        ) from error

    ids, sizes = encode_slices(text, _slice_lengths(len(text)), tokenizer)
    tokens = torch.tensor([*ids[0], *ids[1], *ids[2]], dtype=torch.int32)
    num_bytes = int(sizes[tokens].sum(dtype=torch.float64))
    if num_bytes != content.raw.size:
        label = tokenizer if isinstance(tokenizer, str) else tokenizer.name
        raise ValueError(
            f"tokenizer {label!r} changes the text: {content.raw.size} bytes became {num_bytes}"
        )

    lengths = [len(slice_ids) for slice_ids in ids]
    return _corpus(
        name, content.sha256, tokens, sizes, slice_lengths=lengths, tokens_sha256=_sha256(tokens)
    )


def _binary(path: str, tokenizer: str | Content) -> Corpus:
    """Maps a token file into memory.

    The corpus is not cached, because the mapped tokens follow the file.
    """
    check_file("data", path)
    try:
        with open(path, "rb") as file:
            sha256, size = hashlib.file_digest(file, "sha256").hexdigest(), file.tell()
        if size % 2 or size < 2 * MINIMUM_TOKENS:
            raise ValueError(
                f"data must hold a whole number of at least {MINIMUM_TOKENS} uint16 tokens; got "
                f"{path!r}, which has {size} bytes, that is {size / 2:g} tokens"
            )
        # "c" maps the file copy-on-write: torch wants memory that it may write, and the file must
        # stay as it is.
        tokens = np.memmap(path, dtype="<u2", mode="c", shape=(size // 2,))
    except OSError as error:
        raise ValueError(f"data must be a file that can be read; got {path!r} ({error})") from error

    if int(tokens[:2].view("<i4")[0]) in HEADER_MAGICS:
        raise ValueError(
            f"data must be tokens without a header; got {path!r}, which has the header of llm.c; "
            f"leave out its first {HEADER_BYTES} bytes, as `tail -c +{HEADER_BYTES + 1}` does"
        )

    largest = int(tokens.max())
    if isinstance(tokenizer, str):
        sizes = torch.ones(largest + 1)
    else:
        sizes = token_bytes(read_tokenizer(tokenizer), tokenizer.name)
        if largest >= sizes.numel():
            raise ValueError(
                f"tokenizer must have every token of {path!r}; got {tokenizer.name!r} with "
                f"{sizes.numel()} tokens, but the file holds token {largest}"
            )
    return _corpus(path, sha256, torch.from_numpy(tokens), sizes)


@lru_cache(maxsize=8)
def _synthetic_corpus(seed: int, vocab_size: int) -> Corpus:
    symbols, entropy_rate_nats = synthetic_symbols(seed, vocab_size)
    digest = hashlib.sha256(symbols.data).hexdigest()
    return _corpus(
        f"synthetic:{seed}",
        digest,
        torch.from_numpy(symbols),
        torch.ones(vocab_size),
        entropy_rate_nats,
    )
