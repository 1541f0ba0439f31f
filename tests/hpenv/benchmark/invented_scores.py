"""Scores of two invented methods, and the coverage of intervals."""

import numpy as np

K = np.arange(60)
X = ((37 * K % 101) / 67 - 0.2).reshape(6, 10)
Y = ((53 * K % 97) / 67 - 0.2).reshape(6, 10)
Y[2] = X[2]
Y[3, :4] = X[3, :4]


def coverage(intervals, truth):
    return np.mean([i.low <= truth <= i.high for i in intervals])
