"""A controller on a training loop that is not hpenv's: `python -m examples.deploy_nanogpt_loop`.

The loop has the form of nanoGPT's: plain torch, AdamW with a group without decay, warmup and
cosine, gradient accumulation, clipping. The text is the source of Python's standard library, one
token per byte. A control law holds the relative size of the updates, in `attach`. A saved policy's
folder may be given instead, as the first argument.

TensorBoard shows the rate of the scheduler, `lr/base`, beside the rate that was applied,
`lr/effective`: `tensorboard --logdir runs/deploy`.
"""

from __future__ import annotations

import math
import sys
import sysconfig
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from hpenv.deploy import Rails, attach
from hpenv.policies import UpdateRatio


class Block(nn.Module):
    """Attention and a feed-forward network, each on a residual branch."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Returns the residual stream (B, T, C) after the block."""
        B, T, C = x.shape
        parts = self.qkv(self.norms[0](x)).view(B, T, 3, self.heads, C // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(B, T, C))
        return x + self.mlp(self.norms[1](x))


class GPT(nn.Module):
    """A language model of bytes."""

    def __init__(self, width: int = 64, depth: int = 2, heads: int = 4, length: int = 64) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(256, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*[Block(width, heads) for _ in range(depth)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 256, bias=False)

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Returns the mean loss [nats/byte] of inputs (B, T)."""
        x = self.tokens(inputs) + self.places.weight[: inputs.shape[1]]
        logits = self.head(self.norm(self.blocks(x)))
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def text(limit: int = 2_000_000) -> Tensor:
    """Returns the first bytes of the standard library's modules, in the order of their names."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    raw = b"".join(file.read_bytes() for file in files)[:limit]
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8).long()


def batch(
    data: Tensor, size: int, length: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Returns random inputs and targets, (B, T) each."""
    starts = torch.randint(len(data) - length - 1, (size, 1), generator=generator)
    rows = data[starts + torch.arange(length + 1)]
    return rows[:, :-1], rows[:, 1:]


def main(
    controller: str | None = None,
    logs: str | Path = "runs/deploy",
    num_steps: int = 300,
    batch_size: int = 16,
    num_parts: int = 2,
    base_lr: float = 1e-4,
) -> float:
    """Trains, and returns the mean held-out loss [nats/byte] at the end."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    data, length = text(), 64
    cut = len(data) * 9 // 10
    model = GPT(length=length)

    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": 0.1, "name": "matrices"},
            {"params": vectors, "weight_decay": 0.0, "name": "vectors"},
        ],
        lr=base_lr,
        betas=(0.9, 0.95),
    )
    warmup = max(1, num_steps // 20)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda t: min((t + 1) / warmup, 0.55 + 0.45 * math.cos(math.pi * t / num_steps)),
    )

    attachment = attach(
        optimizer,
        controller or UpdateRatio(target=3e-3, interval=10),
        total_steps=num_steps,
        bounds={"lr": (0.1, 30.0)},
        rails=Rails(spike=1.5),
    )

    with SummaryWriter(str(logs)) as writer:
        for step in range(num_steps):
            for _ in range(num_parts):
                loss = model(*batch(data[:cut], batch_size, length, generator))
                attachment.observe(loss)
                (loss / num_parts).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

            for group in optimizer.param_groups:
                name = group["name"]
                writer.add_scalar(f"lr/base/{name}", group["lr"], step)
                writer.add_scalar(f"lr/effective/{name}", attachment.effective[name]["lr"], step)
            writer.add_scalar("loss/train", loss.item(), step)
            scheduler.step()

    with torch.no_grad():
        held_out = [model(*batch(data[cut:], 32, length, generator)).item() for _ in range(8)]
    return sum(held_out) / len(held_out)


if __name__ == "__main__":
    print(f"held-out loss {main(sys.argv[1] if sys.argv[1:] else None):.3f} nats/byte")
