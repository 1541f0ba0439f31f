"""Tokenization: byte-level vocabularies, and the number of bytes of each token.

A vocabulary is trained on a text or read from a file.
"""

from __future__ import annotations

from itertools import accumulate, chain, pairwise, takewhile
from typing import Any

import torch

from hpenv.lm.sources import Content, import_optional

PIECE_CHARACTERS = 2**16  # length of the pieces of text that a tokenizer encodes [characters]
MOST_TOKENS = 2**20  # largest vocabulary, four times the largest published one


def whole_number(text: str, least: int, most: int, what: str) -> int:
    """Reads a whole number.

    Raises:
        ValueError: for other text, or a number out of range.
    """
    is_number = text.isascii() and text.isdecimal() and len(text) <= len(str(most))
    if not (is_number and least <= int(text) <= most):
        raise ValueError(f"{what} must be a whole number from {least} to {most}; got {text!r}")
    return int(text)


def train_bpe(pieces: list[str], tokenizer: str) -> Any:
    """Trains a byte-level BPE, `bpe:<vocabulary>`, on pieces of text."""
    vocab_size = whole_number(
        tokenizer.removeprefix("bpe:"), 256, MOST_TOKENS, f"vocabulary in tokenizer {tokenizer!r}"
    )

    library = import_optional("tokenizers")
    byte_level = library.pre_tokenizers.ByteLevel
    encoder = library.Tokenizer(library.models.BPE())
    encoder.pre_tokenizer = byte_level(add_prefix_space=False)
    encoder.decoder = library.decoders.ByteLevel()

    options = {
        "vocab_size": vocab_size,
        "initial_alphabet": byte_level.alphabet(),
        "show_progress": False,
    }
    encoder.train_from_iterator(pieces, library.trainers.BpeTrainer(**options))
    return encoder


def read_tokenizer(content: Content) -> Any:
    """Reads a tokenizer from the content of its file.

    Padding and truncation are switched off, so that it encodes all of a text and nothing else.

    Raises:
        ValueError: if it is not a tokenizer, or is one whose tokens depend on chance.
    """
    library = import_optional("tokenizers")
    try:
        encoder = library.Tokenizer.from_str(content.text())
    except Exception as error:  # the library raises no narrower one
        raise ValueError(
            f"tokenizer must be a file that `tokenizers` saved; got {content.name!r}, which cannot "
            f"be read ({error})"
        ) from error

    if getattr(encoder.model, "dropout", None):
        raise ValueError(
            f"tokenizer {content.name!r} must have no dropout; got {encoder.model.dropout}; "
            "set it to null"
        )

    encoder.encode_special_tokens = True  # "<|endoftext|>" in a text is read as text
    encoder.no_padding()
    encoder.no_truncation()
    return encoder


def split_pieces(text: str) -> list[str]:
    """Divides a text into pieces that end with a line. A tokenizer encodes them in parallel."""
    ends = [0]
    while ends[-1] < len(text):
        ends.append(text.find("\n", ends[-1] + PIECE_CHARACTERS) + 1 or len(text))
    return [text[start:end] for start, end in pairwise(ends)]


def encode_slices(
    text: str, slice_characters: list[int], tokenizer: str | Content
) -> tuple[list[list[int]], torch.Tensor]:
    """Encodes each slice of a text separately, so that no token reaches across two slices.

    Args:
        text: all slices, one after the other.
        slice_characters: lengths of the slices [characters].
        tokenizer: `bpe:<vocabulary>`, trained on the first slice, or the content of a tokenizer's
            file.

    Returns:
        The tokens of each slice, and the bytes that each id stands for, (V,).

    Raises:
        ValueError: if the tokenizer is not byte-level, or its tokens decode to another text.
    """
    ends = list(accumulate(slice_characters, initial=0))
    slices = [split_pieces(text[start:end]) for start, end in pairwise(ends)]
    encoder = (
        train_bpe(slices[0], tokenizer) if isinstance(tokenizer, str) else read_tokenizer(tokenizer)
    )
    name = tokenizer if isinstance(tokenizer, str) else tokenizer.name
    sizes = token_bytes(encoder, name)
    encoded = [encoder.encode_batch(pieces, add_special_tokens=False) for pieces in slices]

    if not isinstance(tokenizer, str):  # a vocabulary trained here cannot change a text
        for pieces, encodings in zip(slices, encoded, strict=True):
            ids = [encoding.ids for encoding in encodings]
            decoded = encoder.decode_batch(ids, skip_special_tokens=False)
            _check_same_text(pieces, decoded, name)

    tokens: list[list[int]] = []
    for encodings in encoded:
        tokens.append(list(chain.from_iterable(encoding.ids for encoding in encodings)))
    return tokens, sizes


def _check_same_text(pieces: list[str], decoded: list[str], name: str) -> None:
    """Checks that the tokens of a tokenizer decode to the text that they were made of.

    Raises:
        ValueError: if not. It shows where the texts begin to differ.
    """
    for original, copy in zip(pieces, decoded, strict=True):
        if original == copy:
            continue

        same = (ours == theirs for ours, theirs in zip(original, copy, strict=False))
        place = sum(takewhile(bool, same))
        start, end = max(0, place - 10), place + 10
        raise ValueError(
            f"tokenizer {name!r} changes the text: {original[start:end]!r} became "
            f"{copy[start:end]!r}; give a tokenizer with a token for every byte, without a "
            "normalizer, and without a space that is added in front"
        )


def token_bytes(encoder: Any, name: str) -> torch.Tensor:
    """Returns the bytes of text that each id stands for, (V,) float32, 0 for special tokens.

    In a byte-level vocabulary a token has one character per byte.

    Raises:
        ValueError: if the tokenizer is not byte-level, or has no tokens or too many.
    """
    if type(encoder.decoder).__name__ != "ByteLevel":
        raise ValueError(
            f"tokenizer {name!r} must be byte-level: only then do its tokens have a length in bytes"
        )

    lengths = {index: len(token) for token, index in encoder.get_vocab().items()}
    for index, added in encoder.get_added_tokens_decoder().items():
        lengths[index] = 0 if added.special else len(added.content.encode())

    if not lengths or max(lengths) >= MOST_TOKENS:
        found = f"the id {max(lengths)}" if lengths else "no tokens"
        raise ValueError(
            f"tokenizer {name!r} must have tokens with ids below {MOST_TOKENS}; got {found}"
        )

    sizes = [lengths.get(index, 0) for index in range(max(lengths) + 1)]
    return torch.tensor(sizes, dtype=torch.float32)
