"""A controller in a Trainer of Lightning: `python -m examples.deploy_lightning`.

It needs `lightning` (`pip install 'hpenv[lightning]'`). The model and the text are those of
`examples.deploy_nanogpt_loop`. The controller is a control law that holds the relative size of the
updates. A checkpoint has its state, so `trainer.fit(..., ckpt_path=...)` continues within a window.
"""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from examples.deploy_nanogpt_loop import GPT, batch, text
from hpenv.deploy.lightning import ControllerCallback
from hpenv.policies import UpdateRatio


class ByteModel(pl.LightningModule):
    """A language model of bytes, with AdamW and a cosine."""

    def __init__(self, num_steps: int, base_lr: float) -> None:
        super().__init__()
        self.num_steps, self.base_lr = num_steps, base_lr
        self.model = GPT()

    def training_step(self, rows: list[Tensor], batch_idx: int) -> Tensor:
        """Returns the mean loss of a batch [nats/byte]."""
        loss = self.model(*rows)
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> dict:
        """Returns the optimizer and its scheduler, as without a controller."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.base_lr)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.num_steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


def main(
    folder: str | Path = "runs/lightning",
    num_steps: int = 200,
    batch_size: int = 16,
    base_lr: float = 1e-4,
) -> tuple[float, ControllerCallback]:
    """Trains, and returns the held-out loss [nats/byte] and the callback."""
    pl.seed_everything(0, verbose=False)
    generator = torch.Generator().manual_seed(1)
    data = text()
    cut = len(data) * 9 // 10
    rows = batch(data[:cut], num_steps * batch_size, 64, generator)

    callback = ControllerCallback(UpdateRatio(target=3e-3, interval=10), bounds={"lr": (0.1, 30.0)})
    trainer = pl.Trainer(
        max_steps=num_steps,
        callbacks=[callback],
        default_root_dir=folder,
        accelerator="cpu",
        logger=pl.loggers.CSVLogger(folder),
        log_every_n_steps=10,
        enable_model_summary=False,
    )
    model = ByteModel(num_steps, base_lr)
    trainer.fit(model, DataLoader(TensorDataset(*rows), batch_size))

    with torch.no_grad():
        held_out = [model.model(*batch(data[cut:], 32, 64, generator)).item() for _ in range(8)]
    return sum(held_out) / len(held_out), callback


if __name__ == "__main__":
    loss, callback = main()
    print(f"held-out loss {loss:.3f} nats/byte")
    print("applied in the last step:", callback.attachments["optimizer"].effective)
