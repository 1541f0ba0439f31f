"""Corpora, tokenizers, and seeded batches that can be rewound.

A corpus is one tensor of tokens with three disjoint slices: batches come from `train`, the reward's probe from `probe`,
and held-out evaluation alone reads `validation`. Where the sequences of a batch start is a pure function of (seed,
step), so the position in the data is the step count: saving it is saving an int, rewinding it is asking for a smaller.

Over 300 lines, because every source and both ways to tokenize it stand behind one function and nobody else uses them.
"""

from __future__ import annotations

import hashlib
import importlib
import math
import os
import sysconfig
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

SLICES = ("train", "probe", "validation")
TRAIN_PERCENT, PROBE_PERCENT = 90, 5  # what is left is the validation slice
MINIMUM_TOKENS = 40  # below it the probe or the validation slice holds no pair of input and target

STDLIB_SEED = 10  # of the order of its files; of 60 tried on Python 3.11 to 3.13, the one whose slices are most alike
# Folders of the standard library left out: tests (not installed everywhere), other people's packages, and `pydoc_data`,
# whose one generated file is larger than the probe slice.
SKIPPED_FOLDERS = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages", "pydoc_data"})

SYNTHETIC_TOKENS = 2**22
SYNTHETIC_WEIGHTS = (96, 64, 32, 24, 16, 12, 8, 4)  # in 256ths, so that one random byte draws the next symbol exactly
SYNTHETIC_CLASSES = 4  # what the source remembers of the symbol before the last: its two low bits

STEPS_PER_BLOCK = 256  # drawn at once, because setting up a generator costs more than drawing from it
CACHED_BLOCKS = 256  # at least the runs of a population, which take turns
BATCH_STREAM, SYNTHETIC_STREAM = 0, 1  # one seed gives unrelated numbers to each use
PIECE_CHARACTERS = 2**16  # of text handed to a tokenizer at once


@dataclass(frozen=True, eq=False)
class Corpus:
    """Tokens and what they stand for.

    Attributes:
        name: what `load_corpus` was given as `data`.
        sha256: hex digest of the raw bytes, before any tokenizer.
        tokens: all tokens, 1-D; uint8 for bytes, uint16 for a `.bin` file, int32 for BPE.
        vocab_size: number of token ids.
        token_bytes: bytes of text that each id stands for, (vocab_size,) float32; 0 for special tokens.
        entropy_rate_nats: expected loss that no model can go below [nats per token]; known for `synthetic` alone.
        train: view of the first 90 %.
        probe: view of the next 5 %.
        validation: view of the last 5 %.
    """

    name: str
    sha256: str
    tokens: torch.Tensor
    vocab_size: int
    token_bytes: torch.Tensor
    entropy_rate_nats: float | None
    train: torch.Tensor
    probe: torch.Tensor
    validation: torch.Tensor


@lru_cache(maxsize=8)
def load_corpus(data: str = "stdlib", tokenizer: str = "bytes", *, vocab_size: int = 256) -> Corpus:
    """Loads a corpus; the same arguments give the same object, so a file that changes later is not read again.

    `data` is one of
      - `stdlib`: the source text of the running Python's standard library, about 11 MB. Files stand in the order of a
        seeded digest of their path: a permutation that is the same everywhere and makes the slices alike;
      - `synthetic` or `synthetic:<seed>`: 2**22 symbols of a random source, identical on every machine. The next symbol
        is one of eight, of fixed probabilities; which eight depends on the last symbol and two bits of the one before.
        Every context has the same probabilities, so the entropy rate is their entropy, exactly, from any state;
      - `hf:<name>[:<split>[:<column>]]`: a dataset of the Hugging Face hub, or a local folder or parquet file, read by
        `datasets`; split `train` and column `text` by default;
      - a path: `.txt`, `.parquet` (column `text`), or `.bin` (uint16 tokens without a header, as nanoGPT writes them;
        memory-mapped). Rows of a dataset or parquet file are joined by newlines.

    Args:
        data: see above.
        tokenizer: `bytes`; `bpe:<vocabulary>`, a byte-level BPE trained on the train slice; or the path of a byte-level
            tokenizer in the JSON format of `tokenizers`. A `.bin` file is tokens already: a path then says what they
            stand for, and with `bytes` each counts as one byte, so that bits per byte reads bits per token.
        vocab_size: symbols of `synthetic`, 8 to 256; all others imply their own and accept 256 alone.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an unknown name, a file that is too short or damaged, or arguments that exclude each other.
        ImportError: an optional package is missing; the message names the extra.
    """
    for name, given in (("data", data), ("tokenizer", tokenizer)):
        if not isinstance(given, str | os.PathLike):
            raise ValueError(f"{name}={given!r}; expected a name or a path (see hpenv.data.load_corpus)")
    data, tokenizer = os.path.expanduser(data), os.path.expanduser(tokenizer)
    source, _, argument = data.partition(":")
    if source == "synthetic" and tokenizer == "bytes":
        seed = _integer(argument or "0", 0, f"seed in data {data!r}")
        symbols, entropy_rate_nats = _synthetic(seed, vocab_size)
        return _corpus(data, symbols.tobytes(), torch.from_numpy(symbols), torch.ones(vocab_size), entropy_rate_nats)
    if source == "synthetic" or vocab_size != 256:
        wrong = f"tokenizer {tokenizer!r} and vocab_size {vocab_size} do not go with data {data!r}"
        raise ValueError(f"{wrong}: 'synthetic' accepts tokenizer 'bytes' alone, all others vocab_size 256 alone")
    if data == "stdlib":
        raw = _stdlib_text()
    elif source == "hf":
        raw = _dataset_text(data)
    elif not data.endswith((".txt", ".bin", ".parquet")):
        accepted = (
            "'stdlib', 'synthetic[:<seed>]', 'hf:<name>[:<split>[:<column>]]', a path to a .txt, .bin or .parquet"
        )
        raise ValueError(f"unknown data {data!r}; expected one of {accepted}")
    elif not os.path.isfile(data):
        raise FileNotFoundError(f"no file {data!r}: 0 tokens, at least {MINIMUM_TOKENS} are needed")
    elif data.endswith(".bin"):
        return _binary(data, tokenizer)
    elif data.endswith(".parquet"):
        raw = _joined(data, _optional("pyarrow.parquet").read_table(data), "text")
    else:
        raw = Path(data).read_bytes()
    if tokenizer == "bytes":  # copied, because torch warns about memory that it may not write
        return _corpus(data, raw, torch.from_numpy(np.frombuffer(raw, dtype=np.uint8).copy()), torch.ones(256))
    return _tokenized(data, raw, tokenizer)


def require_length(corpus: Corpus, slice_name: str, needed: int) -> None:
    """Raises ValueError, with both numbers, unless a slice has the tokens that are needed.

    One sequence takes `sequence_length + 1` tokens: its targets are its inputs moved by one.
    """
    if slice_name not in SLICES:
        raise ValueError(f"unknown slice {slice_name!r}; expected one of {list(SLICES)}")
    length = dict(zip(SLICES, (corpus.train, corpus.probe, corpus.validation), strict=True))[slice_name].numel()
    if length < needed:
        cure = "take a longer corpus, or fewer or shorter sequences"
        raise ValueError(f"{slice_name} slice of corpus {corpus.name!r}: {length} tokens, {needed} are needed; {cure}")


def batch_starts(length: int, seed: int, step: int, batch_size: int, sequence_length: int) -> NDArray[np.int64]:
    """Where the sequences of one step's batch start: uniform, with replacement, a pure function of the arguments.

    Philox is a counter-based generator (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011). Its key
    is a hash of the seed, its counter the block of steps, so step 10**9 costs what step 0 does. Only its raw integers
    are used: numpy keeps them the same from release to release, but not its distributions (NEP 19).

    Args:
        length: tokens of the slice.
        seed: of the run, any integer >= 0.
        step: >= 0; the whole position in the data.
        batch_size: B, sequences per step.
        sequence_length: T, tokens per sequence; one more is read, for the targets.

    Returns:
        Starts in [0, length - T - 1], (B,); a fresh array.
    """
    if step < 0:
        raise ValueError(f"step must be at least 0, not {step}")
    block, row = divmod(step, STEPS_PER_BLOCK)
    return _starts_of_block(length, seed, block, batch_size, sequence_length)[row].copy()


@lru_cache(maxsize=CACHED_BLOCKS)
def _starts_of_block(length: int, seed: int, block: int, batch_size: int, sequence_length: int) -> NDArray[np.int64]:
    if batch_size < 1 or sequence_length < 1:
        raise ValueError(f"batch_size and sequence_length must be at least 1, not {batch_size} and {sequence_length}")
    if length <= sequence_length:
        raise ValueError(f"a slice of {length} tokens is too short, {sequence_length + 1} are needed for one sequence")
    uniform = _uniform(_random_words(seed, BATCH_STREAM, block, STEPS_PER_BLOCK * batch_size))
    return (uniform * (length - sequence_length)).astype(np.int64).reshape(STEPS_PER_BLOCK, batch_size)


def gather(
    tokens: torch.Tensor, starts: NDArray[np.int64] | torch.Tensor, sequence_length: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Reads the sequences that begin at `starts`, on whatever device the tokens are.

    Args:
        tokens: a slice of a corpus, (length,).
        starts: (..., B), for example (N, B).
        sequence_length: T.

    Returns:
        Inputs and targets, each (..., B, T) int64; targets are the inputs one token later.
    """
    first = torch.as_tensor(starts, dtype=torch.int64, device=tokens.device)
    index = first.unsqueeze(-1) + torch.arange(sequence_length + 1, device=tokens.device)  # (..., B, T + 1)
    if tokens.dtype == torch.uint16:  # not every device indexes it: read the same bits as int16 and undo the sign
        window = tokens.view(torch.int16)[index].to(torch.int64) & 0xFFFF
    else:
        window = tokens[index].to(torch.int64)
    return window[..., :-1].contiguous(), window[..., 1:].contiguous()


def _random_words(seed: int, stream: int, block: int, count: int) -> NDArray[np.uint64]:
    if seed < 0:
        raise ValueError(f"seed must be at least 0, not {seed}")
    key = np.random.SeedSequence(seed, spawn_key=(stream,)).generate_state(2, np.uint64)
    return np.random.Philox(key=key, counter=np.array([0, block, 0, 0], dtype=np.uint64)).random_raw(count)


def _uniform(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Multiples of 2**-53 in [0, 1); the product with an n below 2**53, rounded down, is below n."""
    return np.multiply(words >> np.uint64(11), 2.0**-53, dtype=np.float64)


def _corpus(
    name: str,
    raw: bytes | str,  # the raw bytes, or their digest
    tokens: torch.Tensor,
    token_bytes: torch.Tensor,
    entropy_rate_nats: float | None = None,
    slice_lengths: list[int] | None = None,
) -> Corpus:
    if (total := tokens.numel()) < MINIMUM_TOKENS:
        raise ValueError(f"corpus {name!r} has {total} tokens, at least {MINIMUM_TOKENS} are needed")
    sha256 = raw if isinstance(raw, str) else hashlib.sha256(raw).hexdigest()
    train, probe, validation = torch.split(tokens, slice_lengths or _slice_lengths(total))
    return Corpus(name, sha256, tokens, token_bytes.numel(), token_bytes, entropy_rate_nats, train, probe, validation)


def _slice_lengths(total: int) -> list[int]:
    train, probe = total * TRAIN_PERCENT // 100, total * PROBE_PERCENT // 100
    return [train, probe, total - train - probe]


def _stdlib_text() -> bytes:
    root = Path(sysconfig.get_paths()["stdlib"])
    # `_sysconfigdata*` holds the paths of the machine that built this Python.
    names = [path.relative_to(root) for path in root.rglob("*.py") if not path.name.startswith("_sysconfigdata")]
    names = [name for name in names if SKIPPED_FOLDERS.isdisjoint(name.parts)]
    names.sort(key=lambda name: hashlib.sha256(f"{STDLIB_SEED}:{name.as_posix()}".encode()).digest())
    return b"".join((root / name).read_bytes() for name in names)


def _synthetic(seed: int, vocab_size: int) -> tuple[NDArray[np.uint8], float]:
    fan_out = len(SYNTHETIC_WEIGHTS)
    if not fan_out <= vocab_size <= 256:
        raise ValueError(f"vocab_size of 'synthetic' must be from {fan_out} to 256, not {vocab_size}")
    # Products of two uniforms make low symbols frequent, as few symbols are most of a text. They are the same on every
    # machine, which a logarithm need not be. A context is (class of the symbol before) * vocab_size + last symbol.
    shape = (2, SYNTHETIC_CLASSES * vocab_size, 64)
    uniform = _uniform(_random_words(seed, SYNTHETIC_STREAM, 0, math.prod(shape))).reshape(shape)
    table = []  # table[context][random byte] is the next context
    for context, row in enumerate((uniform.prod(axis=0) * vocab_size).astype(np.int64).tolist()):
        successors = list(dict.fromkeys([*row, *range(vocab_size)]))[:fan_out]
        following = context % vocab_size % SYNTHETIC_CLASSES * vocab_size + np.array(successors)
        table.append(np.repeat(following, SYNTHETIC_WEIGHTS).tolist())
    draws = _random_words(seed, SYNTHETIC_STREAM, 1, SYNTHETIC_TOKENS // 8).astype("<u8").tobytes()
    path = accumulate(draws, lambda context, draw: table[context][draw], initial=0)
    contexts = np.fromiter(path, dtype=np.int64, count=SYNTHETIC_TOKENS + 1)[1:]
    entropy_rate_nats = -math.fsum(weight / 256 * math.log(weight / 256) for weight in SYNTHETIC_WEIGHTS)
    return (contexts % vocab_size).astype(np.uint8), entropy_rate_nats


def _dataset_text(data: str) -> bytes:
    name, split, column, *rest = [*data.split(":")[1:], "", ""]
    if not name or any(rest):
        raise ValueError(f"data {data!r} must have the form 'hf:<name>[:<split>[:<column>]]'")
    location = {"path": "parquet", "data_files": name} if name.endswith(".parquet") else {"path": name}
    dataset = _optional("datasets").load_dataset(**location, split=split or "train")
    return _joined(data, dataset.with_format("arrow")[:], column or "text")


def _joined(name: str, table: Any, column: str) -> bytes:
    if column not in table.column_names:
        cure = "'hf:<name or path>:<split>:<column>' reads another column"
        raise ValueError(f"{name!r} has no column {column!r}; it has {table.column_names}; {cure}")
    return "\n".join(row for row in table[column].to_pylist() if row is not None).encode()


def _binary(path: str, tokenizer: str) -> Corpus:
    if (size := os.path.getsize(path)) % 2 or size < 2 * MINIMUM_TOKENS:
        needed = f"a whole number of at least {MINIMUM_TOKENS} is needed"
        raise ValueError(f"{path!r} has {size} bytes, which are {size / 2:g} tokens of uint16; {needed}")
    # "c" maps the file copy-on-write: torch wants memory that it may write, and the file must stay as it is.
    tokens = np.memmap(path, dtype="<u2", mode="c")
    largest = int(tokens.max())
    is_decoded = tokenizer != "bytes"
    token_bytes = _token_bytes(_open_tokenizer(tokenizer), tokenizer) if is_decoded else torch.ones(largest + 1)
    if largest >= token_bytes.numel():
        raise ValueError(f"{path!r} holds token {largest}, but {tokenizer!r} has only {token_bytes.numel()} tokens")
    with open(path, "rb") as file:
        return _corpus(path, hashlib.file_digest(file, "sha256").hexdigest(), torch.from_numpy(tokens), token_bytes)


def _tokenized(name: str, raw: bytes, tokenizer: str) -> Corpus:
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"corpus {name!r} is not UTF-8 ({error}); only tokenizer 'bytes' reads it") from error
    ends = list(accumulate(_slice_lengths(len(text)), initial=0))
    # The text of each slice in pieces, so that no token reaches from one slice into the next.
    slices = [_pieces(text[start:end]) for start, end in pairwise(ends)]
    encoder = _train_bpe(slices[0], tokenizer) if tokenizer.startswith("bpe:") else _open_tokenizer(tokenizer)
    ids = [[i for e in encoder.encode_batch(part, add_special_tokens=False) for i in e.ids] for part in slices]
    tokens = torch.tensor([*ids[0], *ids[1], *ids[2]], dtype=torch.int32)
    token_bytes = _token_bytes(encoder, tokenizer)
    if (covered := int(token_bytes[tokens].sum(dtype=torch.float64))) != len(raw):
        raise ValueError(f"tokenizer {tokenizer!r} changes the text: {len(raw)} bytes became {covered}")
    return _corpus(name, raw, tokens, token_bytes, slice_lengths=[len(part) for part in ids])


def _pieces(text: str) -> list[str]:
    """Pieces that end with a line, which a tokenizer encodes in parallel."""
    ends = [0]
    while ends[-1] < len(text):
        ends.append(text.find("\n", ends[-1] + PIECE_CHARACTERS) + 1 or len(text))
    return [text[start:end] for start, end in pairwise(ends)]


def _train_bpe(pieces: list[str], tokenizer: str) -> Any:
    vocab_size = _integer(tokenizer.removeprefix("bpe:"), 256, f"vocabulary in tokenizer {tokenizer!r}")
    library = _optional("tokenizers")
    byte_level = library.pre_tokenizers.ByteLevel
    encoder = library.Tokenizer(library.models.BPE())
    encoder.pre_tokenizer, encoder.decoder = byte_level(add_prefix_space=False), library.decoders.ByteLevel()
    options = {"vocab_size": vocab_size, "initial_alphabet": byte_level.alphabet(), "show_progress": False}
    encoder.train_from_iterator(pieces, library.trainers.BpeTrainer(**options))
    return encoder


def _open_tokenizer(path: str) -> Any:
    if not path.endswith(".json"):
        raise ValueError(
            f"tokenizer {path!r} does not fit; expected 'bytes', 'bpe:<vocabulary>' for text, or a .json path"
        )
    if not os.path.isfile(path):
        raise FileNotFoundError(f"no tokenizer file {path!r}")
    library = _optional("tokenizers")
    try:
        encoder = library.Tokenizer.from_file(path)
    except Exception as error:  # the library raises no narrower one
        raise ValueError(
            f"tokenizer {path!r} cannot be read ({error}); expected a file that `tokenizers` saved"
        ) from error
    encoder.encode_special_tokens = True  # "<|endoftext|>" spelled out in a text is text
    return encoder


def _token_bytes(encoder: Any, name: str) -> torch.Tensor:
    """Bytes that each id stands for, (V,): in a byte-level vocabulary a token has one character per byte."""
    if type(encoder.decoder).__name__ != "ByteLevel":
        raise ValueError(f"tokenizer {name!r} must be byte-level: only then do its tokens have a length in bytes")
    lengths = {index: len(token) for token, index in encoder.get_vocab().items()}
    for index, added in encoder.get_added_tokens_decoder().items():
        lengths[index] = 0 if added.special else len(added.content.encode())
    return torch.tensor([lengths.get(index, 0) for index in range(max(lengths) + 1)], dtype=torch.float32)


def _optional(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{module.partition('.')[0]} is not installed: pip install hpenv[data]") from error


def _integer(text: str, minimum: int, what: str) -> int:
    if not text.isdecimal() or int(text) < minimum:
        raise ValueError(f"{what} must be an integer of at least {minimum}, not {text!r}")
    return int(text)
