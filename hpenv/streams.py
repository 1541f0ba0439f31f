"""Streams of seeds: every row of a population draws the seeds of its runs from a stream of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from hpenv.plant import BoolArray

SEED_MODES = ("independent", "grouped")


class SeedStreams:
    """N streams of seeds; the e-th episode of a row is the run of its stream's e-th seed.

    Attributes:
        mode: `independent`: row i of seed s has the stream of seed s + i; `grouped`: all rows have
            that of seed s, so that their e-th episodes are the same run, whenever each begins.
    """

    def __init__(self, num_rows: int, mode: str) -> None:
        """Begins N streams, which nobody has seeded.

        Raises:
            ValueError: for an unknown mode.
        """
        if mode not in SEED_MODES:
            raise ValueError(f"unknown seed_mode {mode!r}; expected one of {list(SEED_MODES)}")
        self.mode = mode
        self._seeded = False
        self._streams = [np.random.default_rng(i) for i in range(num_rows)]

    def seed(self, seed: int | Sequence[int | None] | None, rows: BoolArray) -> int | None:
        """Begins the streams of these rows anew.

        Args:
            seed: of the first row, the next ones counting on from it, or one per row. None lets the
                streams go on; if nobody has seeded them, it takes a seed from the operating system.
            rows: (N,); grouped rows all take the first seed that is given.

        Returns:
            The first row's seed.

        Raises:
            ValueError: for a seed that is not a whole number of at least 0, a list of N of them, or
                None.
        """
        if seed is None:
            if not self._seeded:
                entropy = np.random.SeedSequence().spawn(len(self._streams))
                children = entropy[:1] * len(self._streams) if self.mode == "grouped" else entropy
                self._streams = [np.random.default_rng(child) for child in children]
            self._seeded = True
            return None
        seeds = self._per_row(seed)
        self._seeded = True
        given = {row: own for row, own in enumerate(seeds) if rows[row] and own is not None}
        if (
            self.mode == "grouped" and given
        ):  # all streams, or later episodes of the rows would differ
            given = dict.fromkeys(range(len(self._streams)), next(iter(given.values())))
        for row, own in given.items():
            self._streams[row] = np.random.default_rng(own)
        return None if seeds[0] is None else int(seeds[0])

    def _per_row(self, seed: int | Sequence[int | None]) -> list[int | None]:
        if isinstance(seed, int | np.integer):
            apart = self.mode != "grouped"
            seeds: list[int | None] = [int(seed) + i * apart for i in range(len(self._streams))]
        elif isinstance(seed, Sequence | np.ndarray) and not isinstance(seed, str):
            seeds = list(seed)
        else:
            raise ValueError(
                f"seed {seed!r}; expected a whole number, a list of them, one per row, or None"
            )
        if len(seeds) != len(self._streams):
            raise ValueError(f"got {len(seeds)} seeds for {len(self._streams)} rows")
        for own in seeds:
            if not (own is None or (isinstance(own, int | np.integer) and own >= 0)):
                raise ValueError(
                    f"seed {own!r}; expected a whole number of at least 0, a list of them, or None"
                )
        return seeds

    def draw(self, rows: Iterable[int]) -> list[int]:
        """Draws the seed of the next run of each of these rows."""
        return [int(self._streams[row].integers(2**62)) for row in rows]

    def states(self) -> list[Mapping[str, Any]]:
        """Returns where every stream stands, JSON-able."""
        return [stream.bit_generator.state for stream in self._streams]

    def restore(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Puts every stream to where it stood."""
        for stream, state in zip(self._streams, states, strict=True):
            stream.bit_generator.state = state
        self._seeded = True
