"""Controllers on a list of optimizers behind one object: `python -m examples.deploy_optimizers`.

Trainers in the style of torchtitan keep several optimizers in a container, which is an optimizer
itself. Its groups have no rate, so a controller is attached to each of the optimizers within. Here
Muon has the matrices, and AdamW has the other tensors. The model and the text are those of
`examples.deploy_nanogpt_loop`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from examples.deploy_nanogpt_loop import GPT, batch, text
from hpenv.deploy import Attachment, attach
from hpenv.policies import UpdateRatio


class Optimizers(torch.optim.Optimizer):
    """Several optimizers with one `step`. Its one group has all parameters and no rate."""

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self.optimizers = list(optimizers)
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        super().__init__([p for group in groups for p in group["params"]], {})

    def __iter__(self) -> Iterator[torch.optim.Optimizer]:
        return iter(self.optimizers)

    def step(self) -> None:
        """Takes a step of every optimizer."""
        for optimizer in self.optimizers:
            optimizer.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Removes the gradients."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none)


def main(
    folder: str | Path = "runs/optimizers",
    num_steps: int = 200,
    batch_size: int = 16,
    base_lr: float = 1e-4,
) -> tuple[float, dict[str, Attachment]]:
    """Trains, and returns the held-out loss [nats/byte] and the controllers at work."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    data = text()
    cut = len(data) * 9 // 10
    model = GPT()

    matrices = [p for p in model.blocks.parameters() if p.ndim == 2]
    held = set(map(id, matrices))
    others = [p for p in model.parameters() if id(p) not in held]
    container = Optimizers(
        [torch.optim.Muon(matrices, lr=base_lr), torch.optim.AdamW(others, lr=base_lr)]
    )
    attachments = {
        type(optimizer).__name__: attach(
            optimizer,
            UpdateRatio(target=3e-3, interval=10),
            total_steps=num_steps,
            bounds={"lr": (0.1, 30.0)},
        )
        for optimizer in container
    }
    schedulers = [torch.optim.lr_scheduler.CosineAnnealingLR(each, num_steps) for each in container]

    for _ in range(num_steps):
        loss = model(*batch(data[:cut], batch_size, 64, generator))
        for attachment in attachments.values():
            attachment.observe(loss)  # both read the same loss
        loss.backward()
        container.step()
        container.zero_grad()
        for scheduler in schedulers:
            scheduler.step()

    checkpoint: dict[str, Any] = {
        "model": model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in container],
        "controllers": {name: own.state_dict() for name, own in attachments.items()},
    }
    Path(folder).mkdir(parents=True, exist_ok=True)
    torch.save(checkpoint, Path(folder) / "checkpoint.pt")

    with torch.no_grad():
        held_out = [model(*batch(data[cut:], 32, 64, generator)).item() for _ in range(8)]
    return sum(held_out) / len(held_out), attachments


if __name__ == "__main__":
    loss, attachments = main()
    print(f"held-out loss {loss:.3f} nats/byte")
    for name, attachment in attachments.items():
        print(f"{name}: applied in the last step: {attachment.effective}")
