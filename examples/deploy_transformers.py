"""A controller in a Trainer of transformers: `python -m examples.deploy_transformers`.

The model has the architecture of GPT-2 with random weights. The text is the source of Python's
standard library, one token per byte. Nothing is downloaded. The controller is a control law that
holds the relative size of the updates. The log of the Trainer has the rate that was applied,
`controller/lr_effective/<group>`, beside `learning_rate`, the rate of the scheduler.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from examples.deploy_nanogpt_loop import batch, text
from hpenv.deploy.trainer import ControllerCallback
from hpenv.policies import UpdateRatio


def main(
    folder: str | Path = "runs/transformers",
    num_steps: int = 200,
    batch_size: int = 16,
    base_lr: float = 1e-4,
) -> tuple[float, Trainer]:
    """Trains, and returns the held-out loss [nats/byte] and the Trainer."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    data = text()
    cut = len(data) * 9 // 10
    rows, _ = batch(data[:cut], num_steps * batch_size, 64, generator)

    config = GPT2Config(
        vocab_size=256, n_positions=64, n_embd=64, n_layer=2, n_head=4,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    callback = ControllerCallback(UpdateRatio(target=3e-3, interval=10), bounds={"lr": (0.1, 30.0)})
    trainer = Trainer(
        model,
        TrainingArguments(
            output_dir=str(folder),
            max_steps=num_steps,
            per_device_train_batch_size=batch_size,
            learning_rate=base_lr,
            lr_scheduler_type="cosine",
            logging_steps=20,
            save_strategy="steps",
            save_steps=num_steps,
            report_to="none",
            use_cpu=True,
        ),
        train_dataset=[{"input_ids": row, "labels": row} for row in rows],
        callbacks=[callback],
    )
    trainer.train()

    model.eval()
    with torch.no_grad():
        pieces = [batch(data[cut:], 32, 64, generator)[0] for _ in range(8)]
        held_out = [model(input_ids=piece, labels=piece).loss.item() for piece in pieces]
    return sum(held_out) / len(held_out), trainer


if __name__ == "__main__":
    print(f"held-out loss {main()[0]:.3f} nats/byte")
