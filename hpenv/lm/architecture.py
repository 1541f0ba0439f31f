"""The architecture of the language model: shapes, presets, names and initial values of the weights.

The architecture is nanochat's: rotary positions, QK-norm, RMSNorm without gain, no biases, untied
embeddings, squared-ReLU or SwiGLU feed-forward, tanh softcap on the logits. Value embeddings,
residual lambdas and sliding windows are options.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

Parameters = dict[str, Tensor]

#: Channels of the normed block input that a value-embedding gate reads (nanochat).
GATE_CHANNELS = 32


@dataclass(frozen=True)
class GPTConfig:
    """Shape of the model. All runs of a population share it."""

    n_layer: int = 2
    n_head: int = 2
    n_embd: int = 64
    vocab_size: int = 256
    feed_forward: Literal["relu2", "swiglu"] = "relu2"
    # Of the feed-forward. None: 4 n_embd (relu2), 8/3 n_embd up to a multiple of 16 (swiglu).
    hidden_size: int | None = None
    # A (vocab_size, n_embd) table on every second layer, the last always.
    value_embeddings: bool = False
    # Learned scalars on the residual stream and on the first embedding, per layer.
    residual_lambdas: bool = False
    # Tiled over layers: S sees half the sequence, L all of it. The last layer is always L.
    window_pattern: str = "L"
    logit_softcap: float = 15.0  # logits are c tanh(z / c)
    rope_base: float = 10_000.0

    def __post_init__(self) -> None:
        """Checks that the shapes fit together."""
        if self.n_embd % self.n_head or (self.n_embd // self.n_head) % 2:
            raise ValueError(
                "n_embd must be an even multiple of n_head (rotary pairs); "
                f"got n_embd={self.n_embd} and n_head={self.n_head}"
            )
        if self.value_embeddings and self.n_embd < GATE_CHANNELS:
            raise ValueError(
                f"n_embd must be at least {GATE_CHANNELS}, the channels that gate value "
                f"embeddings; got {self.n_embd}"
            )
        if self.feed_forward not in ("relu2", "swiglu"):
            raise ValueError(
                f"unknown feed_forward {self.feed_forward!r}; expected one of ['relu2', 'swiglu']"
            )
        if not self.window_pattern or set(self.window_pattern) - set("SL"):
            raise ValueError(
                f"window_pattern must be made of 'S' and 'L'; got {self.window_pattern!r}"
            )

    @property
    def feed_forward_size(self) -> int:
        """Hidden width of the feed-forward."""
        if self.hidden_size is not None:
            return self.hidden_size
        if self.feed_forward == "relu2":
            return 4 * self.n_embd
        return 16 * math.ceil(8 * self.n_embd / 3 / 16)

    def window(self, layer: int, sequence_length: int) -> int:
        """Returns how far back a token of this layer sees [tokens]."""
        letter = self.window_pattern[layer % len(self.window_pattern)]
        short = letter == "S" and layer < self.n_layer - 1
        return max(1, sequence_length // 2) if short else sequence_length

    def has_value_embedding(self, layer: int) -> bool:
        """Returns True for every second layer, counted so that the last one has it."""
        return self.value_embeddings and layer % 2 == (self.n_layer - 1) % 2


PRESETS: dict[str, GPTConfig] = {
    "nano": GPTConfig(n_layer=2, n_head=2, n_embd=64),
    # Relatives of `nano` whose blocks have 4 times as many weights (wide, deep), and 16 times.
    "nano-wide": GPTConfig(n_layer=2, n_head=4, n_embd=128),
    "nano-deep": GPTConfig(n_layer=8, n_head=2, n_embd=64),
    "nano-16x": GPTConfig(n_layer=8, n_head=4, n_embd=128),
    "cell11": GPTConfig(n_layer=11, n_head=2, n_embd=64, feed_forward="swiglu"),
    "shakespeare": GPTConfig(n_layer=4, n_head=4, n_embd=128),
    "jel-73m": GPTConfig(
        n_layer=6,
        n_head=3,
        n_embd=384,
        vocab_size=32_768,
        value_embeddings=True,
        residual_lambdas=True,
        window_pattern="SSSL",
    ),
}


def preset(name: str, vocab_size: int | None = None) -> GPTConfig:
    """Returns the preset of this name, with the vocabulary of the corpus if that is larger.

    Raises:
        ValueError: for a name that is not in PRESETS.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; expected one of {sorted(PRESETS)}")
    config = PRESETS[name]
    if vocab_size is None:
        return config
    return replace(config, vocab_size=max(config.vocab_size, vocab_size))


def parameter_shapes(config: GPTConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of one run's weights, by name.

    They are in the order in which the weights are initialized. Matrices are (out, in).
    """
    C, V, H = config.n_embd, config.vocab_size, config.feed_forward_size
    shapes: dict[str, tuple[int, ...]] = {"embedding": (V, C)}
    for i in range(config.n_layer):
        shapes |= {f"layer.{i}.{name}": (C, C) for name in ("query", "key", "value", "output")}
        if config.has_value_embedding(i):
            shapes |= {
                f"layer.{i}.value_embedding": (V, C),
                f"layer.{i}.value_gate": (config.n_head, GATE_CHANNELS),
            }
        if config.feed_forward == "swiglu":
            shapes[f"layer.{i}.gate"] = (H, C)
        shapes |= {f"layer.{i}.up": (H, C), f"layer.{i}.down": (C, H)}

    if config.residual_lambdas:
        shapes |= {"residual_lambdas": (config.n_layer,), "embedding_lambdas": (config.n_layer,)}
    return shapes | {"unembedding": (V, C)}


def parameter_kind(name: str) -> str:
    """Returns the optimizer group of a tensor: `embedding`, `unembedding`, `scalar` or `matrix`."""
    leaf = name.rsplit(".", 1)[-1]
    if leaf in ("embedding", "value_embedding"):
        return "embedding"
    if leaf in ("residual_lambdas", "embedding_lambdas"):
        return "scalar"
    return "unembedding" if leaf == "unembedding" else "matrix"


def init_parameters(
    config: GPTConfig, seeds: Sequence[int], device: torch.device | str = "cpu"
) -> Parameters:
    """Returns initial weights of one run per seed: name -> (N, ...) float32.

    Each run draws from its generator. The distributions are nanochat's. The embedding is N(0, 1),
    the unembedding N(0, 0.001^2). Matrices are uniform with standard deviation 1 / sqrt(C). The two
    projections back to the residual stream, and the value gates, are 0. Residual lambdas are 1 and
    0.
    """
    rows = [_init_row(config, seed) for seed in seeds]
    return {name: torch.stack([row[name] for row in rows]).to(device) for name in rows[0]}


def _init_row(config: GPTConfig, seed: int) -> Parameters:
    generator = torch.Generator().manual_seed(seed)
    bound = math.sqrt(3.0 / config.n_embd)
    row: Parameters = {}

    for name, shape in parameter_shapes(config).items():
        leaf = name.rsplit(".", 1)[-1]
        if leaf == "embedding":
            row[name] = torch.randn(shape, generator=generator)
        elif leaf == "unembedding":
            row[name] = torch.randn(shape, generator=generator) * 0.001
        elif leaf == "residual_lambdas":
            row[name] = torch.ones(shape)
        elif leaf in ("output", "down", "value_gate", "embedding_lambdas"):
            row[name] = torch.zeros(shape)
        else:
            row[name] = (2.0 * torch.rand(shape, generator=generator) - 1.0) * bound

    return row
