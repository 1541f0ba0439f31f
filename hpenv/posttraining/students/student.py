"""Student: a frozen language model with trainable adapter coefficients.

There is one coefficient per singular axis and run. A student holds no state of a run. The trainer
passes the coefficients to it, so that one model serves a whole population.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

#: Module name -> (N, r): coefficients that are added to the module's r singular values in each run.
Coefficients = Mapping[str, Tensor]


#: Range of depths, as fractions, whose layers tell the concept of a text (Wu & Tang 2026, section
#: 3.2).
CONCEPT_DEPTH = (0.6, 0.75)


def concept_stream(streams: Sequence[Tensor]) -> Tensor:
    """Returns the mean of the layers in CONCEPT_DEPTH, given the residual stream after each layer.

    In a model with so few layers that none has this depth, it is the layer at two thirds of the
    depth.
    """
    depth, (low, high) = len(streams), CONCEPT_DEPTH
    layers = [x for i, x in enumerate(streams, 1) if low <= i / depth <= high]
    return torch.stack(layers or [streams[2 * depth // 3 - 1]]).float().mean(0)


class Rollouts(NamedTuple):
    """Completions that N runs sampled: G for each of P prompts, grouped by prompt.

    Attributes:
        prompts: N lists of P texts.
        texts: N lists of P G completions.
        tokens: (N, P G, T) int64.
        mask: True up to and including the token that ends a completion, (N, P G, T) bool.
        logp: log-probability of each token when it was sampled, at temperature 1, (N, P G, T)
            [nats].
        entropy: mean over the sampled tokens of the policy's entropy at temperature 1, (N,) [nats
            per token].
        ended: True if the completion ended by itself, (N, P G) bool.
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
        """Number G of completions of a prompt."""
        return self.tokens.shape[1] // len(self.prompts[0])


class Student(Protocol):
    """A frozen language model that computes with N sets of adapter coefficients.

    Attributes:
        ranks: module name -> r, in the order of the model.
        digest: sha256 of the weights.
        settings: everything else that decides its output, such as lengths, vocabulary and
            sampling, as JSON-able values. A run can only be continued under the same settings.
        stacked: True if runs are computed together, False if one after the other.
        max_tokens: longest completion [tokens].
    """

    ranks: dict[str, int]
    digest: str
    settings: dict[str, object]
    stacked: bool
    max_tokens: int

    def __hash__(self) -> int:
        """Hashes by identity, so that results can be cached per student."""

    def unreadable_reason(self, prompt: str, completion: str = "") -> str:
        """Returns why it cannot read a prompt or its completion, or an empty string if it can."""

    def sample(
        self,
        coefficients: Coefficients,
        prompts: Sequence[Sequence[str]],
        num_samples: int,
        generators: Sequence[torch.Generator],
        temperature: float = 1.0,
    ) -> Rollouts:
        """Samples completions of each run's prompts, N lists of P.

        Temperature 0 takes the likeliest token.
        """

    def log_probabilities(
        self, coefficients: Coefficients, rollouts: Rollouts, temperature: float = 1.0
    ) -> Tensor:
        """Returns the log-probability of each token of the rollouts, (N, P G, T) [nats].

        It is differentiable in the coefficients, and 0 outside the mask. The distribution is the
        one that is sampled at this temperature, which is above 0.
        """

    def completion_gradients(
        self, coefficients: Coefficients, prompts: Sequence[str], completions: Sequence[str]
    ) -> dict[str, Tensor]:
        """Returns the gradients of each completion's mean negative log-likelihood.

        The gradients are with respect to the coefficients: name -> (N, texts, r).
        """

    def rollouts_from_texts(
        self, prompts: Sequence[Sequence[str]], completions: Sequence[Sequence[str]]
    ) -> Rollouts:
        """Returns texts as rollouts, as if they had been sampled.

        Entropies and log-probabilities are 0.

        Args:
            prompts: N lists of P texts.
            completions: N lists of P texts.
        """

    def states(self, coefficients: Coefficients, rollouts: Rollouts) -> Tensor:
        """Returns the residual stream at each completion's last token, (N, P G, C).

        It is the mean of the layers at 60 to 75 % of the depth (Wu & Tang 2026, section 3.2).
        """
