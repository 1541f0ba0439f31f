"""Samples tokens with random numbers from the run's CPU generator.

The numbers are drawn on the CPU, one per text. The tokens that they stand for are computed on the
device of the model. So a generator's stream depends neither on the device nor on the size of the
vocabulary. The global generators are never touched.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class SamplingConfig:
    """Configuration of the sampling of completions."""

    max_tokens: int  # longest completion, its end included [tokens]
    pad: int  # number of the token that follows an end
    temperature: float = 1.0  # divides the log-probabilities (0 takes the likeliest token)
    top_k: int = 0  # only this many of the likeliest tokens are sampled (0: all)
    top_p: float = 1.0  # only the fewest tokens that together are this likely are sampled


class SampledTokens(NamedTuple):
    """Completions of B texts.

    Attributes:
        tokens: (B, T) int64.
        mask: True up to and including the token that ends a completion, (B, T) bool.
        logp: log-probability of each token in the whole distribution at temperature 1, (B, T)
            [nats].
        entropy: mean entropy of that distribution over the tokens, () [nats per token].
        ended: True if the completion ended by itself, (B,) bool.
    """

    tokens: Tensor
    mask: Tensor
    logp: Tensor
    entropy: Tensor
    ended: Tensor


def sample_tokens(
    logp: Tensor, numbers: Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0
) -> Tensor:
    """Returns the tokens that uniform numbers select, by the inverse cumulative distribution.

    Args:
        logp: log-probabilities, (B, V) [nats].
        numbers: uniform in [0, 1), (B,).
        temperature: divides the log-probabilities. 0 takes the likeliest token and reads no number.
        top_k: keeps this many of the likeliest tokens, and tokens as likely as the last of them. 0
            keeps all.
        top_p: of the kept tokens, keeps the likeliest whose predecessors sum to less than this.

    Returns:
        Token numbers, (B,) int64.
    """
    if temperature == 0.0:
        return logp.argmax(-1)
    heights = sampling_weights(logp.double() / temperature, top_k, top_p).cumsum(-1)
    levels = numbers.to(heights)[:, None] * heights[:, -1:]
    return torch.searchsorted(heights, levels, right=True)[:, 0].clamp_max(logp.shape[1] - 1)


def sampling_weights(scaled: Tensor, top_k: int, top_p: float) -> Tensor:
    """Returns weights proportional to the chance of each token, (B, V).

    Tokens that top_k and top_p leave out have weight 0.

    Args:
        scaled: log-probabilities or logits, divided by the temperature, (B, V).
        top_k: see `sample_tokens`.
        top_p: see `sample_tokens`.
    """
    if 0 < top_k < scaled.shape[1]:
        least = scaled.topk(top_k).values[:, -1:]
        scaled = scaled.masked_fill(scaled < least, -torch.inf)
    weights = scaled.softmax(-1)
    if top_p < 1.0:
        falling, order = weights.sort(descending=True, stable=True)
        dropped = falling.cumsum(-1) - falling >= top_p
        weights = weights.scatter(1, order, falling.masked_fill(dropped, 0.0))
    return weights


def sample_completions(
    logits: Tensor,
    following: Callable[[Tensor, Tensor], Tensor],
    ends: Tensor,
    generator: torch.Generator,
    drawing: SamplingConfig,
) -> SampledTokens:
    """Samples token after token, until all texts have ended or reach the longest length.

    Args:
        logits: of the first token, (B, V).
        following: returns the next token's logits (B, V) from the last tokens (B, 1) and the mask
            (B, 1) of those that belong to their text.
        ends: tokens that end a text.
        generator: on the CPU. It gives B numbers for every token, even for texts that have ended.
        drawing: the configuration.
    """
    open_ = torch.ones(len(logits), dtype=torch.bool, device=logits.device)
    tokens, masks, logps, entropies = list[Tensor](), list[Tensor](), list[Tensor](), list[Tensor]()
    while True:
        logp = logits.float().log_softmax(-1)  # (B, V)
        numbers = torch.rand(len(logp), generator=generator, dtype=torch.float64)
        token = sample_tokens(logp, numbers, drawing.temperature, drawing.top_k, drawing.top_p)
        tokens.append(torch.where(open_, token, drawing.pad))
        masks.append(open_)
        logps.append(logp.gather(1, token[:, None])[:, 0].masked_fill(~open_, 0.0))
        entropies.append(torch.special.entr(logp.exp()).sum(1).masked_fill(~open_, 0.0))

        open_ = open_ & ~torch.isin(token, ends)
        if len(tokens) == drawing.max_tokens or not open_.any():
            break
        logits = following(tokens[-1][:, None], masks[-1][:, None])

    mask = torch.stack(masks, 1)
    entropy = torch.stack(entropies).sum() / mask.sum()
    return SampledTokens(torch.stack(tokens, 1), mask, torch.stack(logps, 1), entropy, ~open_)
