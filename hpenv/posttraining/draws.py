"""Drawing tokens from a model's distribution, with numbers that come from elsewhere.

The numbers are drawn on the CPU, one per text, from the generator of the run; what they stand for is computed where the
model is. So a generator's stream depends neither on the device nor on the size of the vocabulary, and the global
generators are never touched.
"""

from __future__ import annotations

import torch
from torch import Tensor


def drawn(logp: Tensor, numbers: Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """The tokens that numbers between 0 and 1 stand for, by the inverse of the cumulative distribution.

    Args:
        logp: log-probabilities, (B, V) [nats].
        numbers: uniform in [0, 1), (B,).
        temperature: divides the log-probabilities; 0 takes the likeliest token and reads no number.
        top_k: keeps this many of the likeliest tokens, and those as likely as the last of them; 0 keeps all.
        top_p: of these keeps the likeliest whose predecessors add up to less than this.

    Returns:
        Token numbers, (B,) int64.
    """
    if temperature == 0.0:
        return logp.argmax(-1)
    scaled = logp.double() / temperature
    if 0 < top_k < scaled.shape[1]:
        least = scaled.topk(top_k).values[:, -1:]
        scaled = scaled.masked_fill(scaled < least, -torch.inf)
    weights = scaled.softmax(-1)
    if top_p < 1.0:
        falling, order = weights.sort(descending=True, stable=True)
        dropped = falling.cumsum(-1) - falling >= top_p
        weights = weights.scatter(1, order, falling.masked_fill(dropped, 0.0))
    heights = weights.cumsum(-1)
    levels = numbers.to(heights)[:, None] * heights[:, -1:]
    return torch.searchsorted(heights, levels, right=True)[:, 0].clamp_max(logp.shape[1] - 1)
