"""A single run's forward pass, written without the population axis."""

import zlib

import torch
import torch.nn.functional as F

from hpenv.lm import architecture
from hpenv.lm.architecture import GPTConfig

SMALL = {"n_layer": 3, "n_head": 2, "n_embd": 64, "vocab_size": 50}
CONFIGS = {
    "plain": GPTConfig(**SMALL),
    "swiglu": GPTConfig(**SMALL, feed_forward="swiglu"),
    "value_embeddings": GPTConfig(**SMALL, value_embeddings=True),
    "residual_lambdas": GPTConfig(**SMALL, residual_lambdas=True),
    "windows": GPTConfig(**SMALL, window_pattern="SL"),
    "low_softcap": GPTConfig(**SMALL, logit_softcap=0.5),
    "everything": GPTConfig(
        **SMALL,
        feed_forward="swiglu",
        value_embeddings=True,
        residual_lambdas=True,
        window_pattern="SSL",
        hidden_size=96,
    ),
}
BATCH = (2, 12)  # (B, T)


def random_parameters(config, num_rows):
    """Weights none of which is zero, unlike those at initialization.

    A tensor's weights depend on its name and shape alone.
    """
    scales = {
        "embedding": 1.0,
        "value_embedding": 1.0,
        "residual_lambdas": 0.5,
        "embedding_lambdas": 0.5,
    }
    params = {}
    for name, shape in architecture.parameter_shapes(config).items():
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        scale = scales.get(name.rsplit(".", 1)[-1], 0.15)
        params[name] = torch.randn(num_rows, *shape, generator=generator) * scale
    return params


def random_batch(config, num_rows, shape=BATCH, seed=1):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(
        config.vocab_size, (num_rows, shape[0], shape[1] + 1), generator=generator
    )
    return tokens[..., :-1].contiguous(), tokens[..., 1:].contiguous()


def norm(x):
    return F.rms_norm(x, x.shape[-1:])


def rotate(x, base):
    """Pairs (d, d + half) of (B, H, T, D) as complex numbers.

    They are turned by minus the position times the frequency.
    """
    half = x.shape[-1] // 2
    angles = torch.arange(x.shape[-2])[:, None] * base ** (
        -torch.arange(half, dtype=torch.float64) / half
    )
    turned = (
        torch.complex(x[..., :half], x[..., half:])
        * torch.polar(torch.ones_like(angles), -angles).cfloat()
    )
    return torch.cat([turned.real, turned.imag], -1)
