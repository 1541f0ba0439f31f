"""The two widest parts of the model, computed in chunks that fit the cache.

They are the feed-forward and the output loss. A small model on a CPU is bound by memory, not by
arithmetic. The hidden layer of the feed-forward and the logits are its widest tensors, and each
pass over them costs as much as the products. Forward and backward passes therefore work in chunks
of one run and a few hundred tokens, each chunk while it is in the cache. On other devices, and
under `torch.compile`, the same mathematics runs as whole batched products. Measured on two cores of
an EPYC with `nano` at 8 x 256 tokens: a forward and backward pass of 33 ms instead of 40 ms (one
thread).

Every function is differentiable once. create_graph=True raises an error.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

#: Tokens of one chunk: 256 x 256 float32 is a quarter of a megabyte, which the second-level cache
#: holds.
CHUNK_TOKENS = 256

#: Largest cap of a chunk: exp of a logit at the cap, times a vocabulary, stays finite in float32.
LARGEST_CHUNKED_SOFTCAP = 60.0


def in_chunks(x: Tensor) -> bool:
    """Returns True where chunks are faster: on a CPU, outside `torch.compile`.

    `torch.compile` fuses by itself.
    """
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def _refuse_second_derivative() -> None:
    """Raises an error in a backward pass whose result is to be differentiated.

    The second derivative would miss the tensors that are saved here.
    """
    if torch.is_grad_enabled():
        raise RuntimeError(
            "the chunked feed-forward and output loss can be differentiated once; got "
            "create_graph=True; leave it out, or set kernels.in_chunks to a function that returns "
            "False"
        )


def _chunks(N: int, M: int) -> Iterator[tuple[int, slice]]:
    for row in range(N):
        for start in range(0, M, CHUNK_TOKENS):
            yield row, slice(start, min(M, start + CHUNK_TOKENS))


def squared_relu_feed_forward(x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """Returns relu(x up^T)^2 down^T: x (N, M, C), up (N, H, C), down (N, C, H) -> (N, M, C)."""
    if in_chunks(x):
        return _SquaredReLUFeedForward.apply(x, up, down)
    hidden = torch.bmm(x, up.transpose(1, 2))
    return torch.bmm(F.relu(hidden).square(), down.transpose(1, 2))


class _SquaredReLUFeedForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, up: Tensor, down: Tensor) -> Tensor:
        N, M, _ = x.shape
        hidden = x.new_empty(N, M, up.shape[1])
        result = torch.empty_like(x, memory_format=torch.contiguous_format)

        for n, tokens in _chunks(N, M):
            chunk = torch.mm(x[n, tokens], up[n].T, out=hidden[n, tokens]).clamp_min_(0.0)
            torch.mm(chunk * chunk, down[n].T, out=result[n, tokens])

        ctx.save_for_backward(x, up, down, hidden)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        _refuse_second_derivative()
        x, up, down, hidden = ctx.saved_tensors
        N, M, _ = x.shape
        d_x, d_up, d_down = torch.empty_like(x), torch.zeros_like(up), torch.zeros_like(down)

        for n, tokens in _chunks(N, M):
            g, h = gradient[n, tokens], hidden[n, tokens]
            d_down[n].addmm_(g.T, h * h)
            d_hidden = torch.mm(g, down[n]).mul_(h).mul_(2.0)
            d_up[n].addmm_(d_hidden.T, x[n, tokens])
            torch.mm(d_hidden, up[n], out=d_x[n, tokens])

        return d_x, d_up, d_down


def softcapped_cross_entropy(
    states: Tensor, weight: Tensor, targets: Tensor, softcap: float | Tensor
) -> Tensor:
    """Returns the cross-entropy of the logits c tanh(states weight^T / c), (N, M) [nats].

    States (N, M, C), weight (N, V, C), targets (N, M). The cap c is one number, or one per run,
    (N,). The loss is computed in float32 whatever the dtype of the states.
    """
    logits = torch.bmm(states, weight.transpose(1, 2)).float()
    cap = softcap.view(-1, 1, 1) if isinstance(softcap, Tensor) else softcap
    capped = cap * torch.tanh(logits / cap)
    losses = F.cross_entropy(capped.flatten(0, 1), targets.flatten(), reduction="none")
    return losses.view(targets.shape)


def mean_softcapped_cross_entropy(
    states: Tensor, weight: Tensor, targets: Tensor, softcap: float | Tensor
) -> Tensor:
    """Returns each run's mean of `softcapped_cross_entropy`, (N,) [nats per token]."""
    if in_chunks(states):
        caps = softcap.tolist() if isinstance(softcap, Tensor) else [softcap] * len(states)
        if max(caps) <= LARGEST_CHUNKED_SOFTCAP:
            return _MeanSoftcappedCrossEntropy.apply(states, weight, targets, caps)
    return softcapped_cross_entropy(states, weight, targets, softcap).mean(1)


class _MeanSoftcappedCrossEntropy(torch.autograd.Function):
    """Computes the gradient together with the loss, while the chunk's logits are in the cache.

    No wide tensor is stored or computed twice.
    """

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, weight: Tensor, targets: Tensor, caps: list[float]
    ) -> Tensor:
        N, M, _ = states.shape
        with_gradient = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        totals = torch.zeros(N, dtype=torch.float32)
        if with_gradient:
            d_states, d_weight = torch.empty_like(states), torch.zeros_like(weight)

        for n, tokens in _chunks(N, M):
            target, softcap = targets[n, tokens, None], caps[n]
            # tanh(u) = 2 sigmoid(2 u) - 1: six times faster on a CPU, and exact to 1e-7 of the cap.
            logits = torch.mm(states[n, tokens], weight[n].T).float()
            capped = logits.mul_(2.0 / softcap).sigmoid_().mul_(2.0).sub_(1.0)

            picked = capped.gather(1, target)
            # The cap bounds the exponents, so no running maximum is needed.
            exponentials = (capped * softcap).exp_()
            total = exponentials.sum(1, keepdim=True)
            totals[n] += (total.log() - softcap * picked).sum()

            if with_gradient:
                d_logits = exponentials.div_(total.mul_(M))
                d_logits.scatter_add_(1, target, torch.full_like(picked, -1.0 / M))
                d_logits.addcmul_(d_logits, capped.square_(), value=-1.0)  # d tanh = 1 - tanh^2
                d_logits = d_logits.to(weight.dtype)
                torch.mm(d_logits, weight[n], out=d_states[n, tokens])
                d_weight[n].addmm_(d_logits.T, states[n, tokens])

        if with_gradient:
            ctx.save_for_backward(d_states, d_weight)
        return totals / M

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        _refuse_second_derivative()
        d_states, d_weight = ctx.saved_tensors
        scale = gradient[:, None, None].to(d_states.dtype)
        return d_states * scale, d_weight * scale, None, None
