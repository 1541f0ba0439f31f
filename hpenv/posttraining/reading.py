"""Reading texts with a frozen causal language model that is opened at the knobs of one run.

A prompt is read once, for all of its completions, and these continue from its keys and values; the
same with and without gradients. The knobs are put in their places for the length of one pass, and
are differentiable there. All texts share one set of knobs, (r,) each, or every text has its own,
(B, 1, r).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from hpenv.posttraining.draws import kept_weights
from hpenv.posttraining.embedded import CONCEPT_DEPTH

#: Name of an adapted layer -> its knob.
RowKnobs = Mapping[str, Tensor]


class Prompts(NamedTuple):
    """Prompts that were read, each once for every completion that it has.

    Attributes:
        memory: their keys and values, which `continued` adds to.
        seen: which places of the memory are text, (B, L) bool.
        logits: of the token behind each, (B, 1, V).
    """

    memory: Any
    seen: Tensor
    logits: Tensor


def read(
    model: nn.Module, knobs: RowKnobs, tokens: Tensor, seen: Tensor, num_samples: int
) -> Prompts:
    """Reads prompts, tokens (P, L) that are filled up from their left, each for num_samples completions."""
    places = (seen.cumsum(1) - 1).clamp_min(0)
    output = _called(
        model,
        knobs,
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


def continued(
    model: nn.Module, knobs: RowKnobs, prompts: Prompts, tokens: Tensor, mask: Tensor, **extra: Any
) -> tuple[Any, Prompts]:
    """The output for tokens (B, T), of which those of the mask (B, T) are text, and what may be continued further."""
    places = prompts.seen.sum(1, keepdim=True) + torch.arange(tokens.shape[1], device=tokens.device)
    seen = torch.cat([prompts.seen, mask], 1)
    name = _memory_name(type(model).forward)
    arguments = {
        "input_ids": tokens,
        "attention_mask": seen.long(),
        "position_ids": places,
        name: prompts.memory,
    }
    output = _called(model, knobs, **arguments, **extra)
    return output, Prompts(output[name], seen, output.logits[:, -1:])


def log_probabilities(
    model: nn.Module,
    knobs: RowKnobs,
    prompts: Prompts,
    tokens: Tensor,
    mask: Tensor,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> Tensor:
    """Of each token of the completions, (B, T) [nats], in the distribution that is drawn from.

    Anything outside the mask. With top_k or top_p the distribution is over the tokens that are
    kept. A token that was drawn by other knobs, and is none of these now, counts among them.
    """
    logits = prompts.logits
    if tokens.shape[1] > 1:
        output, _ = continued(model, knobs, prompts, tokens[:, :-1], mask[:, :-1])
        logits = torch.cat([logits, output.logits], 1)
    logits = logits.float().flatten(0, 1) / temperature
    if top_k or top_p < 1.0:
        is_kept = kept_weights(logits.detach().double(), top_k, top_p) > 0.0
        logits = logits.masked_fill(
            ~is_kept.scatter(1, tokens.flatten()[:, None], True), -torch.inf
        )
    return -F.cross_entropy(logits, tokens.flatten(), reduction="none").view(tokens.shape)


def concept_states(
    model: nn.Module, knobs: RowKnobs, prompts: Prompts, tokens: Tensor, mask: Tensor
) -> Tensor:
    """The residual stream at each completion's last token, mean of the layers that tell its
    concept, (B, C).

    Of a model with few layers, in which none lies at that depth, it is one of the middle.
    """
    extra = {"output_hidden_states": True, "logits_to_keep": 1}
    output, _ = continued(model, knobs, prompts, tokens, mask, **extra)
    streams: Sequence[Tensor] = output.hidden_states[1:]  # the first is the embedding
    depth, (low, high) = len(streams), CONCEPT_DEPTH
    layers = [x for i, x in enumerate(streams, 1) if low <= i / depth <= high]
    mean = torch.stack(layers or [streams[2 * depth // 3 - 1]]).float().mean(0)  # (B, T, C)
    return mean[torch.arange(len(mask), device=mask.device), mask.sum(1) - 1]


def _called(model: nn.Module, knobs: RowKnobs, **arguments: Any) -> Any:
    """The model's output with these knobs."""
    places = {f"{name}.knob": knob for name, knob in knobs.items()}
    return functional_call(model, places, (), {**arguments, "use_cache": True})


@lru_cache
def _memory_name(forward: Callable[..., Any]) -> str:
    """Returns what a model calls keys and values: `past_key_values`, or `cache` in newer transformers."""
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"
