"""Vocabulary of Python pieces: words, digits and runs of punctuation, each with the space before.

Every printable text is encoded and decoded without loss. Frequent pieces of the texts that a
vocabulary was made of have one token. Everything else is spelled character by character.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

#: Pads a prompt on its left. A model sees it as it sees any other token.
PAD = 0
#: Ends a completion.
END = 1
NUM_SPECIAL = 2

#: Letters, a digit or a run of punctuation, with one space before it, or a line break with the
#: indentation of the next line.
_PIECE = re.compile(r"\n *| ?[A-Za-z_]+| ?[0-9]| ?[^\sA-Za-z0-9_]+| ")
CHARACTERS = ("\n", *(chr(code) for code in range(32, 127)))


class Vocabulary:
    """Pieces and their numbers.

    Attributes:
        pieces: text of each token after PAD and END. Every character is among them.
    """

    def __init__(self, pieces: Sequence[str]) -> None:
        """Numbers the pieces in their order.

        Raises:
            ValueError: if a piece is not a text or is repeated, or a character is missing.
        """
        if isinstance(pieces, str) or not all(isinstance(piece, str) for piece in pieces):
            raise ValueError(f"pieces must be a list of texts; got {pieces!r:.80}")

        missing = sorted(set(CHARACTERS) - set(pieces))
        if missing or len(set(pieces)) < len(pieces):
            raise ValueError(
                f"pieces must be different and hold every printable character; missing: {missing}"
            )
        self.pieces = tuple(pieces)
        self._numbers = {piece: number for number, piece in enumerate(self.pieces, NUM_SPECIAL)}

    def __len__(self) -> int:
        """Number of tokens, including PAD and END."""
        return NUM_SPECIAL + len(self.pieces)

    @staticmethod
    def of(texts: Iterable[str], size: int) -> Vocabulary:
        """Makes a vocabulary of `size` tokens: the characters and the most frequent pieces."""
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(piece for piece in _PIECE.findall(text) if piece not in CHARACTERS)
        ordered = sorted(counts, key=lambda piece: (-counts[piece], piece))
        return Vocabulary((*CHARACTERS, *ordered[: max(0, size - NUM_SPECIAL - len(CHARACTERS))]))

    def encode(self, text: str) -> list[int]:
        """Returns the numbers of a text's tokens.

        Raises:
            ValueError: for a character that is neither printable ASCII nor a line break.
        """
        strange = sorted(set(text) - set(CHARACTERS))
        if strange:
            raise ValueError(
                f"characters {strange} cannot be encoded; expected printable ASCII and line breaks"
            )

        numbers: list[int] = []
        for piece in _PIECE.findall(text):
            whole = self._numbers.get(piece)
            numbers += (
                [self._numbers[character] for character in piece] if whole is None else [whole]
            )

        return numbers

    def decode(self, numbers: Iterable[int]) -> str:
        """Returns the text of the tokens up to the first END. PAD has no text."""
        pieces: list[str] = []
        for number in numbers:
            if number == END:
                break
            if number != PAD:
                pieces.append(self.pieces[number - NUM_SPECIAL])
        return "".join(pieces)
