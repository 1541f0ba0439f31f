"""What a student is: a frozen language model whose knobs, one number per singular axis and run, are
what is trained.

A student holds no state of a run: whoever trains it passes the knobs, so that one model serves a
whole population.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

#: Module name -> (N, r): what is added to the module's r singular values in each run.
Knobs = Mapping[str, Tensor]


class Rollouts(NamedTuple):
    """Completions that N runs sampled: G of each of P prompts, those of one prompt side by side.

    Attributes:
        prompts: N lists of P texts.
        texts: N lists of P G completions.
        tokens: (N, P G, T) int64.
        mask: True up to the token that ends a completion, that one included, (N, P G, T) bool.
        logp: log-probability of each token when it was sampled, at temperature 1, (N, P G, T)
            [nats].
        entropy: mean over the sampled tokens of the policy's entropy at temperature 1, (N,) [nats
            per token].
        ended: whether the completion ended by itself, (N, P G) bool.
    """

    prompts: list[list[str]]
    texts: list[list[str]]
    tokens: Tensor
    mask: Tensor
    logp: Tensor
    entropy: Tensor
    ended: Tensor

    @property
    def num_samples(self) -> int:
        """G, the completions of a prompt."""
        return self.tokens.shape[1] // len(self.prompts[0])


class Student(Protocol):
    """A frozen language model with an adapter that is open at N sets of knobs.

    Attributes:
        ranks: module name -> r, in the order of the model.
        digest: sha256 of the weights.
        settings: all else that decides what it says, such as lengths, vocabulary and sampling, as
            JSON-able values; a run goes on under the same ones alone.
        stacked: whether runs are computed together; else one after the other.
        max_tokens: longest completion [tokens].
    """

    ranks: dict[str, int]
    digest: str
    settings: dict[str, object]
    stacked: bool
    max_tokens: int

    def __hash__(self) -> int:
        """A student is what it is by identity: it never changes."""

    def refusal(self, prompt: str, completion: str = "") -> str:
        """Why it cannot read a prompt, or a completion of it; empty if it can."""

    def sample(
        self,
        knobs: Knobs,
        prompts: Sequence[Sequence[str]],
        num_samples: int,
        generators: Sequence[torch.Generator],
        temperature: float = 1.0,
    ) -> Rollouts:
        """Completions of each run's own prompts, N lists of P; temperature 0 takes the likeliest token."""

    def log_probabilities(
        self, knobs: Knobs, rollouts: Rollouts, temperature: float = 1.0
    ) -> Tensor:
        """Of each token of the rollouts, (N, P G, T) [nats], differentiable in the knobs; 0 outside
        the mask.

        They are of the distribution that is sampled at this temperature, above 0.
        """

    def completion_gradients(
        self, knobs: Knobs, prompts: Sequence[str], completions: Sequence[str]
    ) -> dict[str, Tensor]:
        """Gradient in the knobs of each completion's mean negative log-likelihood: name -> (N, texts, r)."""

    def given(
        self, prompts: Sequence[Sequence[str]], completions: Sequence[Sequence[str]]
    ) -> Rollouts:
        """Texts as if they had been sampled, N lists of P prompts and of P completions; entropies and logp are 0."""

    def states(self, knobs: Knobs, rollouts: Rollouts) -> Tensor:
        """The residual stream at each completion's last token, mean of the layers at 60 to 75 % of
        the depth.

        (N, P G, C) (Wu & Tang 2026, section 3.2).
        """
