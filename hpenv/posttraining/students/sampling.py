"""Samples tokens with random numbers from the run's CPU generator.

The numbers are drawn on the CPU, one per text. The tokens that they stand for are computed on the
device of the model. So a generator's stream depends neither on the device nor on the size of the
vocabulary. The global generators are never touched.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class SamplingConfig:
    """Configuration of the sampling of completions."""

    pad: int  # number of the token that follows an end
    temperature: float = 1.0  # divides the log-probabilities (0 takes the likeliest token)
    top_k: int = 0  # only this many of the likeliest tokens are sampled (0: all)
    top_p: float = 1.0  # only the fewest tokens that together are this likely are sampled


class Decoder(Protocol):
    """Continues M texts of each of N runs, token by token."""

    def logits(self) -> Tensor:
        """Returns the logits of each text's next token, (N, M, V)."""

    def append(self, tokens: Tensor, mask: Tensor) -> None:
        """Continues each text by a token, (N, M), where the mask is True."""

    def compact(self, open_: Tensor) -> Tensor | None:
        """May drop texts that have ended, where open_, (N, M), is False.

        Returns:
            Numbers of the texts that are kept in every run, (N, m). None if all are.
        """


class SampledTokens(NamedTuple):
    """Completions of N runs.

    Attributes:
        tokens: (N, M, T) int64.
        mask: True up to and including the token that ends a completion, (N, M, T) bool.
        logp: log-probability of each token in the whole distribution at temperature 1, (N, M, T)
            [nats].
        entropy: mean entropy of that distribution over the tokens, (N,) [nats per token].
        ended: True if the completion ended by itself, (N, M) bool.
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
    decoder: Decoder, numbers: Tensor, ends: Tensor, config: SamplingConfig
) -> SampledTokens:
    """Samples token after token, until all texts have ended or reach the longest length.

    Args:
        decoder: after the prompts.
        numbers: uniform in [0, 1), one per text and token, so that the length of a text changes no
            other text, (N, M, longest completion) float64.
        ends: tokens that end a text.
        config: of the sampling.
    """
    (N, M, T), device = numbers.shape, ends.device
    numbers = numbers.to(device)
    tokens = torch.full((N, M, T), config.pad, device=device)
    mask = torch.zeros(N, M, T, dtype=torch.bool, device=device)
    logps, entropies = (torch.zeros(N, M, T, device=device) for _ in range(2))
    followed = torch.arange(M, device=device).expand(N, M)  # numbers of the m followed texts
    open_ = torch.ones(N, M, dtype=torch.bool, device=device)  # True for those that go on, (N, m)

    for t in range(T):
        logp = decoder.logits().float().log_softmax(-1)  # (N, m, V)
        number = numbers[..., t].gather(1, followed).flatten()
        finite = logp.nan_to_num(nan=0.0).flatten(0, 1)  # a diverged run samples evenly
        token = sample_tokens(finite, number, config.temperature, config.top_k, config.top_p)
        token = torch.where(open_, token.view_as(followed), config.pad)

        for table, column in (
            (tokens, token),
            (mask, open_),
            (logps, logp.gather(-1, token[..., None])[..., 0].masked_fill(~open_, 0.0)),
            (entropies, torch.special.entr(logp.exp()).sum(-1).masked_fill(~open_, 0.0)),
        ):
            table[..., t].scatter_(1, followed, column)

        was_open, open_ = open_, open_ & ~torch.isin(token, ends)
        if t + 1 == T or not open_.any():
            break
        if (kept := decoder.compact(open_)) is not None:
            followed, open_, was_open, token = (
                x.gather(1, kept) for x in (followed, open_, was_open, token)
            )
        decoder.append(token, was_open)

    entropy = entropies.sum((1, 2)) / mask.sum((1, 2))
    ended = (torch.isin(tokens, ends) & mask).any(-1)
    length = t + 1
    return SampledTokens(
        tokens[..., :length], mask[..., :length], logps[..., :length], entropy, ended
    )
