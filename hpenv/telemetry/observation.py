"""The observation: the columns of its features, side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hpenv.arrays import FloatArray
from hpenv.telemetry.features import FEATURES
from hpenv.telemetry.reading import Layout, Reading


class Observation:
    """F columns, those of some features in the order given.

    Attributes:
        names: name of each column.
        low: smallest value of each column, (F,).
        high: largest value of each column, (F,).
    """

    def __init__(self, features: Sequence[str], layout: Layout) -> None:
        """Lays out the columns of these keys of FEATURES."""
        # Names, because the functions in FEATURES cannot be pickled.
        self._features = tuple(features)

        names, low, high = list[str](), list[float](), list[float]()
        for name in features:
            feature = FEATURES[name]
            columns = [name]
            if feature.columns is not None:
                columns = [f"{name}/{suffix}" for suffix in feature.columns(layout)]
            names += columns
            low += [feature.low] * len(columns)
            high += [feature.high] * len(columns)

        self.names = tuple(names)
        self.low: FloatArray = np.array(low)
        self.high: FloatArray = np.array(high)

    def read(self, reading: Reading) -> FloatArray:
        """Returns the features, concatenated and clipped to their bounds, (N, F)."""
        values = [FEATURES[name].read(reading) for name in self._features]
        # One clip for all features: a decision may be every step, and each numpy call takes time.
        return np.minimum(np.maximum(np.concatenate(values, axis=1), self.low), self.high)
