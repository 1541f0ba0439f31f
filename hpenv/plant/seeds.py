"""Seeds and random streams of runs.

Each row of a population draws the seeds of its runs from a stream. A run's random numbers are
functions of its seed and its step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from hpenv.arrays import BoolArray

SEED_MODES = ("independent", "grouped")

#: Random streams of a run. Those of the corpus are keyed by the seed without the step.
ROUTE, NOISE, DROPOUT, EXPLORATION = 1, 2, 3, 4
TASKS, SAMPLES, DIRECTION, REFRESH, PROBE, EVALUATION = 11, 12, 13, 14, 15, 16


def step_generator(seed: int, step: int, stream: int) -> torch.Generator:
    """Returns the generator of one stream of one run at one step."""
    sequence = np.random.SeedSequence(int(seed), spawn_key=(stream, int(step)))
    key = sequence.generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(key >> np.uint64(1)))


def first_run_seed(seed: int) -> int:
    """Returns the seed of the first run that an env of this seed begins in its first row."""
    return next_run_seed(np.random.default_rng(seed))


def next_run_seed(stream: np.random.Generator) -> int:
    """Returns the seed of a stream's next run."""
    return int(stream.integers(2**62))


class SeedStreams:
    """N streams of seeds. The e-th episode of a row is the run of its stream's e-th seed.

    Attributes:
        mode: `independent`: row i of seed s has the stream of seed s + i. `grouped`: all rows have
            the stream of seed s, so that their e-th episodes are the same run, whenever each
            begins.
    """

    def __init__(self, num_rows: int, mode: str) -> None:
        """Creates N streams that are not seeded yet.

        Raises:
            ValueError: for an unknown mode.
        """
        if mode not in SEED_MODES:
            raise ValueError(f"unknown seed_mode {mode!r}; expected one of {list(SEED_MODES)}")
        self.mode = mode
        self._seeded = False
        self._streams = [np.random.default_rng(i) for i in range(num_rows)]

    def seed(self, seed: int | Sequence[int | None] | None, rows: BoolArray) -> int | None:
        """Restarts the streams of these rows from new seeds.

        Args:
            seed: seed of the first row, from which the next rows count on, or one seed per row.
                None lets the streams go on. If they have not been seeded yet, None takes a seed
                from the operating system.
            rows: (N,) bool. Grouped rows all take the first seed that is given.

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
        new_seeds = {
            row: row_seed
            for row, row_seed in enumerate(seeds)
            if rows[row] and row_seed is not None
        }
        # All streams change, or later episodes of the rows would differ.
        if self.mode == "grouped" and new_seeds:
            new_seeds = dict.fromkeys(range(len(self._streams)), next(iter(new_seeds.values())))
        for row, row_seed in new_seeds.items():
            self._streams[row] = np.random.default_rng(row_seed)

        return None if seeds[0] is None else int(seeds[0])

    def _per_row(self, seed: int | Sequence[int | None]) -> list[int | None]:
        if isinstance(seed, int | np.integer):
            apart = self.mode != "grouped"
            seeds: list[int | None] = [int(seed) + i * apart for i in range(len(self._streams))]
        elif isinstance(seed, Sequence | np.ndarray) and not isinstance(seed, str):
            seeds = list(seed)
        else:
            raise ValueError(
                "seed must be a whole number of at least 0, a list of such numbers, one per row, "
                f"or None; got {seed!r}"
            )

        if len(seeds) != len(self._streams):
            raise ValueError(
                f"seed must be a list of {len(self._streams)} seeds, one per row; got {len(seeds)}"
            )
        for row_seed in seeds:
            if not (row_seed is None or (isinstance(row_seed, int | np.integer) and row_seed >= 0)):
                raise ValueError(
                    "seed must be a whole number of at least 0, a list of such numbers, or None; "
                    f"got {row_seed!r}"
                )
        return seeds

    def draw(self, rows: Iterable[int]) -> list[int]:
        """Draws the seed of the next run of each of these rows."""
        return [next_run_seed(self._streams[row]) for row in rows]

    def states(self) -> list[Mapping[str, Any]]:
        """Returns the state of every stream, JSON-able."""
        return [stream.bit_generator.state for stream in self._streams]

    def restore(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Sets every stream to a state that `states` returned."""
        for stream, state in zip(self._streams, states, strict=True):
            stream.bit_generator.state = state
        self._seeded = True
