"""Forward passes of a frozen Hugging Face model with the adapter coefficients of one run.

A prompt is read once for all of its completions, which continue from its keys and values. This is
the same with and without gradients. The coefficients replace the model's for one pass, and the
output is differentiable in them. All texts share one set of coefficients, (r,) each, or every text
has its own, (B, 1, r).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from hpenv.posttraining.students.sampling import sampling_weights
from hpenv.posttraining.students.student import concept_stream

#: Name of an adapted layer -> its coefficients.
RowCoefficients = Mapping[str, Tensor]


class Prompts(NamedTuple):
    """Prompts after their forward pass, repeated for every completion.

    Attributes:
        memory: keys and values, which `decode` extends.
        seen: True where the memory holds text, (B, L) bool.
        logits: logits of the token after each prompt, (B, 1, V).
    """

    memory: Any
    seen: Tensor
    logits: Tensor


def prefill(
    model: nn.Module, coefficients: RowCoefficients, tokens: Tensor, seen: Tensor, num_samples: int
) -> Prompts:
    """Computes the forward pass of prompts, and repeats it for num_samples completions of each.

    Args:
        model: with adapters.
        coefficients: coefficients.
        tokens: prompts, padded on the left, (P, L).
        seen: True where the tokens are text, (P, L) bool.
        num_samples: completions of each prompt.
    """
    places = (seen.cumsum(1) - 1).clamp_min(0)
    output = _call(
        model,
        coefficients,
        input_ids=tokens,
        attention_mask=seen.long(),
        position_ids=places,
        logits_to_keep=1,
    )

    memory = output[_memory_name(type(model).forward)]
    if num_samples > 1:
        memory.batch_repeat_interleave(num_samples)

    logits = output.logits[:, -1:]
    return Prompts(
        memory, seen.repeat_interleave(num_samples, 0), logits.repeat_interleave(num_samples, 0)
    )


def decode(
    model: nn.Module,
    coefficients: RowCoefficients,
    prompts: Prompts,
    tokens: Tensor,
    mask: Tensor,
    **extra: Any,
) -> tuple[Any, Prompts]:
    """Continues the prompts with tokens.

    Args:
        model: with adapters.
        coefficients: coefficients.
        prompts: what `prefill` or `decode` returned.
        tokens: (B, T).
        mask: True where the tokens are text, (B, T) bool.
        extra: further arguments of the model.

    Returns:
        The model's output, and the texts, which can be continued further.
    """
    places = prompts.seen.sum(1, keepdim=True) + torch.arange(tokens.shape[1], device=tokens.device)
    seen = torch.cat([prompts.seen, mask], 1)
    name = _memory_name(type(model).forward)
    arguments = {
        "input_ids": tokens,
        "attention_mask": seen.long(),
        "position_ids": places,
        name: prompts.memory,
    }
    output = _call(model, coefficients, **arguments, **extra)
    return output, Prompts(output[name], seen, output.logits[:, -1:])


class RunDecoder:
    """Continues the texts of one run. See Decoder."""

    def __init__(self, model: nn.Module, coefficients: RowCoefficients, texts: Prompts) -> None:
        """Begins after the prompts."""
        self._model, self._coefficients, self._texts = model, coefficients, texts

    def logits(self) -> Tensor:
        """See Decoder."""
        return self._texts.logits[None, :, 0]

    def append(self, tokens: Tensor, mask: Tensor) -> None:
        """See Decoder."""
        _, self._texts = decode(
            self._model, self._coefficients, self._texts, tokens[0][:, None], mask[0][:, None]
        )

    def compact(self, open_: Tensor) -> None:
        """Keeps all texts. See Decoder."""


def log_probabilities(
    model: nn.Module,
    coefficients: RowCoefficients,
    prompts: Prompts,
    tokens: Tensor,
    mask: Tensor,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> Tensor:
    """Returns the log-probability of each token of the completions, (B, T) [nats].

    The distribution is the one that is sampled. With top_k or top_p it is over the tokens that
    these keep, and over the given token, which other coefficients may have sampled. Values outside
    the mask have no meaning.
    """
    logits = prompts.logits
    if tokens.shape[1] > 1:
        output, _ = decode(model, coefficients, prompts, tokens[:, :-1], mask[:, :-1])
        logits = torch.cat([logits, output.logits], 1)

    logits = logits.float().flatten(0, 1) / temperature
    if top_k or top_p < 1.0:
        is_kept = sampling_weights(logits.detach().double(), top_k, top_p) > 0.0
        logits = logits.masked_fill(
            ~is_kept.scatter(1, tokens.flatten()[:, None], True), -torch.inf
        )

    return -F.cross_entropy(logits, tokens.flatten(), reduction="none").view(tokens.shape)


def concept_states(
    model: nn.Module, coefficients: RowCoefficients, prompts: Prompts, tokens: Tensor, mask: Tensor
) -> Tensor:
    """Returns the residual stream at each completion's last token, (B, C).

    See `concept_stream`.
    """
    extra = {"output_hidden_states": True, "logits_to_keep": 1}
    output, _ = decode(model, coefficients, prompts, tokens, mask, **extra)
    mean = concept_stream(output.hidden_states[1:])  # (B, T, C); the first is the embedding
    return mean[torch.arange(len(mask), device=mask.device), mask.sum(1) - 1]


def _call(model: nn.Module, coefficients: RowCoefficients, **arguments: Any) -> Any:
    """Returns the model's output with these coefficients."""
    places = {f"{name}.coefficients": value for name, value in coefficients.items()}
    return functional_call(model, places, (), {**arguments, "use_cache": True})


@lru_cache
def _memory_name(forward: Callable[..., Any]) -> str:
    """Returns the model's name for keys and values: `past_key_values`, or `cache` in newer ones."""
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"
