"""A decoder-only transformer over a population of N runs.

Every weight is (N, ...), and every linear layer is one batched product.

The architecture is that of `hpenv.lm.architecture`. Parameters are a plain dict `name -> (N, ...)`.
The forward pass is a pure function of it. Row i of a population is the single run with the same
seed, up to the order in which a batched product adds.

References:
    nanochat, nanochat/gpt.py at commit 8630d32.
    Su et al. 2021 (rotary), Shazeer 2020 (SwiGLU), So et al. 2021 (squared ReLU).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hpenv.lm.architecture import GATE_CHANNELS, GPTConfig
from hpenv.lm.kernels import (
    mean_softcapped_cross_entropy,
    softcapped_cross_entropy,
    squared_relu_feed_forward,
)
from hpenv.lm.kv_cache import KVCache

#: Number of a run's tokens on which activations are measured. It gives a standard error of a few
#: per cent.
MEASURED_TOKENS = 32

#: A SwiGLU gate beyond this is saturated: its sigmoid is within 5 % of 0 or 1.
SATURATED_GATE = 3.0


class Dials(NamedTuple):
    """Values of the channels that act in the forward pass.

    A field is None where no run moves the channel, so that nothing is computed for it.

    Attributes:
        attention_temperature: (N, L).
        attention_gain: multiplier of the attention branch, (N, L).
        feed_forward_gain: multiplier of the feed-forward branch, (N, L).
        residual_gain: multiplier of the stream that enters a layer, (N, L).
        state_norm_cap: largest root mean square of a token's stream after a layer, (N, L).
        dropout: probability that a unit of a branch's output is left out, (N, L).
        embedding_gain: multiplier of the normed embedding, (N,).
        logit_softcap: the cap itself, (N,).
        generators: one per run, from which dropout draws.
        share: index and number of the shares of a batch that is divided. The tokens are those of
            this share. Dropout and activations are those of the whole batch.
    """

    attention_temperature: Tensor | None = None
    attention_gain: Tensor | None = None
    feed_forward_gain: Tensor | None = None
    residual_gain: Tensor | None = None
    state_norm_cap: Tensor | None = None
    dropout: Tensor | None = None
    embedding_gain: Tensor | None = None
    logit_softcap: Tensor | None = None
    generators: Sequence[torch.Generator] = ()
    share: tuple[int, int] = (0, 1)


def rope_tables(
    config: GPTConfig, sequence_length: int, device: torch.device | str
) -> tuple[Tensor, Tensor]:
    """Returns cosines and signed sines of the rotary embedding, (T, 1, C / n_head) each.

    Pairs are (d, d + half).
    """
    half = config.n_embd // config.n_head // 2
    frequencies = config.rope_base ** (
        -torch.arange(half, dtype=torch.float64, device=device) / half
    )
    positions = torch.arange(sequence_length, dtype=torch.float64, device=device)
    angles = positions[:, None] * frequencies  # (T, half)
    cosines, sines = angles.cos(), angles.sin()
    return (
        torch.cat([cosines, cosines], -1).float()[:, None],
        torch.cat([sines, -sines], -1).float()[:, None],
    )


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """Returns x (N, M, in) times weight (N, out, in), transposed: (N, M, out)."""
    return torch.bmm(x, weight.transpose(1, 2))


def rms_norm(x: Tensor) -> Tensor:
    """Returns x / sqrt(mean(x^2) + eps) over the last dimension, without gain."""
    return F.rms_norm(x, (x.shape[-1],))


def embed(table: Tensor, tokens: Tensor) -> Tensor:
    """Looks up tokens (N, M) in each run's table (N, V, C): (N, M, C)."""
    N, V, C = table.shape
    offsets = torch.arange(N, device=tokens.device)[:, None] * V
    return F.embedding(tokens + offsets, table.reshape(N * V, C))


def hidden_states(
    params: Mapping[str, Tensor],
    config: GPTConfig,
    tokens: Tensor,
    rope: tuple[Tensor, Tensor],
    dials: Dials | None = None,
    activations: list[Tensor] | None = None,
    memory: KVCache | None = None,
    streams: list[Tensor] | None = None,
) -> Tensor:
    """Returns the normed residual stream after the last layer: tokens (N, B, T) -> (N, B T, C).

    Args:
        params: name -> (N, ...).
        config: shape of the model.
        tokens: (N, B, T).
        rope: rotary tables of the positions of the tokens.
        dials: values of the channels that act in the forward pass.
        activations: a list that receives one (3, N) per layer: mean and variance of the stream
            after the layer, and the fraction of its feed-forward units that are saturated (squared
            ReLU: zero, SwiGLU: gate beyond SATURATED_GATE).
        memory: earlier positions. The tokens follow them, attend to them, and are added to them.
            `rope` is then that of the new positions.
        streams: a list that receives the stream after each layer.
    """
    N, B, T = tokens.shape
    dials = NEUTRAL if dials is None else dials
    flat = tokens.reshape(N, B * T)
    x = _scale(rms_norm(embed(params["embedding"], flat)), dials.embedding_gain)
    first, sampled = x, list[tuple[Tensor, Tensor]]()

    gains = {name: _by_layer(getattr(dials, name), config) for name in LAYER_GAINS}
    dropout = [None] * config.n_layer if dials.dropout is None else dials.dropout.T.tolist()
    caps: list[Tensor | None] = [None] * config.n_layer
    if dials.state_norm_cap is not None:
        is_active = (dials.state_norm_cap < DORMANT_CAP).any(0).tolist()
        by_layer = zip(dials.state_norm_cap.unbind(1), is_active, strict=True)
        caps = [cap if active else None for cap, active in by_layer]

    for i in range(config.n_layer):
        if config.residual_lambdas:
            x = (
                params["residual_lambdas"][:, i, None, None] * x
                + params["embedding_lambdas"][:, i, None, None] * first
            )
        x = _scale(x, gains["residual_gain"][i])

        layer = f"layer.{i}."
        values: Tensor | None = None
        if config.has_value_embedding(i):
            values = embed(params[layer + "value_embedding"], flat)
        branch = _attention(params, config, i, rms_norm(x), values, (N, B, T), rope, gains, memory)
        x = x + _apply_dropout(branch, dropout[i], dials.generators, dials.share)

        normed = rms_norm(x)
        branch = _feed_forward(params, config, layer, normed, gains["feed_forward_gain"][i])
        x = x + _apply_dropout(branch, dropout[i], dials.generators, dials.share)
        if (cap := caps[i]) is not None:
            x = _cap_norms(x, cap)

        if activations is not None:
            stride = max(1, B * T * dials.share[1] // MEASURED_TOKENS)
            sampled.append((x[:, ::stride].detach(), normed[:, ::stride].detach()))
        if streams is not None:
            streams.append(x)

    if activations is not None:
        activations.extend(_activation_statistics(params, config, sampled).unbind(0))
    if memory is not None:
        memory.length += T
    return rms_norm(x)


#: No channel is moved.
NEUTRAL = Dials()

#: Value of a cap at neutral when another run's is not. An infinity would make its gradient NaN.
DORMANT_CAP = 1e9
#: Dials that multiply by one number per layer.
LAYER_GAINS = ("attention_temperature", "attention_gain", "feed_forward_gain", "residual_gain")


def _by_layer(values: Tensor | None, config: GPTConfig) -> Sequence[Tensor | None]:
    """Returns a dial (N, L) as one multiplier (N, 1, 1) per layer.

    All views are made at once, because each small view costs as much as a product.
    """
    if values is None:
        return [None] * config.n_layer
    return values.T.contiguous()[:, :, None, None].unbind(0)


def _scale(x: Tensor, gain: Tensor | None) -> Tensor:
    """Multiplies x (N, ...) by one number per run, (N,) or (N, 1, 1)."""
    if gain is None:
        return x
    gain = gain if gain.ndim == x.ndim else gain.view(-1, *[1] * (x.ndim - 1))
    return x * gain.to(x.dtype)


def _cap_norms(x: Tensor, cap: Tensor) -> Tensor:
    """Scales down the tokens whose root mean square is above the cap of their run.

    x (N, M, C), cap (N,).
    """
    # The clamp gives a token of zeros a gradient.
    size = x.square().mean(-1, keepdim=True).clamp_min(1e-18).sqrt()
    return x * (cap.view(-1, 1, 1).to(x.dtype) / size).clamp(max=1.0)


def _apply_dropout(
    x: Tensor,
    probability: Sequence[float] | None,
    generators: Sequence[torch.Generator],
    share: tuple[int, int] = (0, 1),
) -> Tensor:
    """Leaves units out with each run's probability, and scales up the others.

    x (N, M, C), probability (N,). A share of a batch has its share of the batch's random numbers.
    """
    if probability is None or not any(probability):
        return x
    keep, (index, count) = torch.ones(x.shape, dtype=x.dtype), share
    for row, p in enumerate(probability):
        if p > 0:
            uniform = torch.rand((count, *x.shape[1:]), generator=generators[row])[index]
            keep[row] = (uniform >= p) / (1.0 - p)
    return x * keep.to(x.device)


@torch.no_grad()
def _activation_statistics(
    params: Mapping[str, Tensor], config: GPTConfig, sampled: Sequence[tuple[Tensor, Tensor]]
) -> Tensor:
    """Returns statistics of the activations of every layer, measured on some tokens: (L, 3, N).

    They are mean and variance of the stream, and saturation of the feed-forward.
    """
    # All layers at once: each small call costs microseconds.
    streams = torch.stack([stream for stream, _ in sampled]).float()
    mean = streams.mean((2, 3))
    # torch.var_mean is ten times slower on a CPU.
    variance = streams.square().mean((2, 3)) - mean.square()

    name = "up" if config.feed_forward == "relu2" else "gate"
    hidden = torch.stack(
        [linear(normed, params[f"layer.{i}.{name}"]) for i, (_, normed) in enumerate(sampled)]
    )
    saturated = hidden <= 0 if config.feed_forward == "relu2" else hidden.abs() > SATURATED_GATE
    fraction = saturated.sum((2, 3)) / (hidden.shape[2] * hidden.shape[3])
    return torch.stack([mean, variance.clamp_min(0.0), fraction], 1)


def _attention(
    params: Mapping[str, Tensor],
    config: GPTConfig,
    i: int,
    x: Tensor,
    extra_values: Tensor | None,
    shape: tuple[int, int, int],
    rope: tuple[Tensor, Tensor],
    gains: Mapping[str, Sequence[Tensor | None]],
    memory: KVCache | None,
) -> Tensor:
    N, B, T = shape
    layer, heads = f"layer.{i}.", config.n_head
    size = config.n_embd // heads
    query = _rotate(linear(x, params[layer + "query"]).view(N * B, T, heads, size), rope)
    key = _rotate(linear(x, params[layer + "key"]).view(N * B, T, heads, size), rope)
    value = linear(x, params[layer + "value"])
    if extra_values is not None:
        gate_logits = linear(x[..., :GATE_CHANNELS], params[layer + "value_gate"])
        gate = 2.0 * torch.sigmoid(gate_logits)  # (N, B T, heads)
        extra_values = extra_values.view(N, B * T, heads, size)
        value = (value.view(N, B * T, heads, size) + gate[..., None] * extra_values).flatten(2)

    query = rms_norm(query)
    temperature = gains["attention_temperature"][i]
    if temperature is not None:
        flat_query = query.view(N, B * T, config.n_embd)
        query = _scale(flat_query, 1.0 / temperature).view(N * B, T, heads, size)

    keys = rms_norm(key).transpose(1, 2)
    values = value.view(N * B, T, heads, size).transpose(1, 2).to(query.dtype)
    if memory is not None:
        keys, values = memory.extend(i, keys, values)
    mixed = causal_attention(query.transpose(1, 2), keys, values, config.window(i, keys.shape[2]))

    # The gain of the branch is applied to its last matrix, which is far smaller than its output.
    output = _scale(params[layer + "output"], gains["attention_gain"][i])
    return linear(mixed.transpose(1, 2).reshape(N, B * T, config.n_embd), output)


def causal_attention(query: Tensor, key: Tensor, value: Tensor, window: int) -> Tensor:
    """Applies softmax attention over the last `window` + 1 positions.

    The queries are of the last of the keys' positions. Query (rows, heads, T, size), key and value
    (rows, heads, S, size), S >= T.
    """
    T, S = query.shape[-2], key.shape[-2]
    if window >= S and (T == S or T == 1):
        return F.scaled_dot_product_attention(query, key, value, is_causal=T > 1)
    positions = torch.arange(S, device=query.device)
    distance = positions[S - T :, None] - positions
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=(distance >= 0) & (distance <= window)
    )


def _rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Rotates pairs (d, d + half) of x (rows, T, heads, size) by minus the position's angle."""
    cosines, sines = rope
    return x * cosines + x.roll(x.shape[-1] // 2, -1) * sines


def _feed_forward(
    params: Mapping[str, Tensor], config: GPTConfig, layer: str, x: Tensor, gain: Tensor | None
) -> Tensor:
    up, down = params[layer + "up"], _scale(params[layer + "down"], gain)
    if config.feed_forward == "relu2":
        return squared_relu_feed_forward(x, up, down)
    return linear(F.silu(linear(x, params[layer + "gate"])) * linear(x, up), down)


def token_losses(
    params: Mapping[str, Tensor],
    config: GPTConfig,
    inputs: Tensor,
    targets: Tensor,
    rope: tuple[Tensor, Tensor],
    dials: Dials | None = None,
) -> Tensor:
    """Returns the cross-entropy of every target: inputs, targets (N, B, T) -> (N, B T) [nats]."""
    states = hidden_states(params, config, inputs, rope, dials)
    return softcapped_cross_entropy(
        states, params["unembedding"], targets.flatten(1), _softcap(config, dials)
    )


def mean_losses(
    params: Mapping[str, Tensor],
    config: GPTConfig,
    inputs: Tensor,
    targets: Tensor,
    rope: tuple[Tensor, Tensor],
    dials: Dials | None = None,
    activations: list[Tensor] | None = None,
) -> Tensor:
    """Returns each run's mean cross-entropy: inputs, targets (N, B, T) -> (N,) [nats per token].

    Activations: see hidden_states.
    """
    states = hidden_states(params, config, inputs, rope, dials, activations)
    return mean_softcapped_cross_entropy(
        states, params["unembedding"], targets.flatten(1), _softcap(config, dials)
    )


def _softcap(config: GPTConfig, dials: Dials | None) -> float | Tensor:
    if dials is None or dials.logit_softcap is None:
        return config.logit_softcap
    return dials.logit_softcap
