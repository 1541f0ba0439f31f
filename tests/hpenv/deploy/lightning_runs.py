"""Small runs in the Trainer of `lightning` or of `pytorch_lightning`."""

import logging
import warnings

import pytest
import torch

from tests.hpenv.deploy.loops import losses, model

PACKAGES = ("lightning.pytorch", "pytorch_lightning")
STEPS = 8


@pytest.fixture(params=PACKAGES)
def lightning(request):
    """Each of the packages, with the Trainer's advice switched off."""
    package = request.param.split(".")[0]
    found = pytest.importorskip(request.param, reason=f"needs {package}")
    for name in (package, request.param):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=package)
        warnings.filterwarnings("ignore", message=".*(num_workers|isinstance.treespec)")
        yield found


def automatic(package):
    """A model with one optimizer and a cosine. The batch is a function of its number."""

    class Automatic(package.LightningModule):
        def __init__(self):
            super().__init__()
            self.net, self.seen, self.losses = model(), [], []

        def training_step(self, batch, batch_idx):
            (loss,) = losses(self.net, batch_idx)
            self.seen.append(self.trainer.optimizers[0].param_groups[0]["lr"])
            self.losses.append(loss.item())
            return loss

        def configure_optimizers(self):
            first, *others = self.net.parameters()
            optimizer = torch.optim.AdamW([{"params": [first]}, {"params": others}], lr=0.01)
            scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
            }

    return Automatic()


def manual(package):
    """A model of two networks with an optimizer each, and a third without a controller."""

    class Manual(package.LightningModule):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False
            self.nets = torch.nn.ModuleList([model() for _ in range(3)])
            self.losses = []

        def training_step(self, batch, batch_idx):
            for number, (net, optimizer) in enumerate(
                zip(self.nets, self.optimizers(), strict=True)
            ):
                (loss,) = losses(net, 100 * number + batch_idx)
                self.losses.append(loss.item())
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()

        def configure_optimizers(self):
            return [torch.optim.SGD(net.parameters(), lr=0.05) for net in self.nets]

    return Manual()


def fit(package, module, folder, callbacks, steps=STEPS, resumed=None, save=None, **arguments):
    """Trains, and returns the Trainer. Batches are numbers, so that a resumed run has the same."""
    if save is not None:
        callbacks = [
            *callbacks,
            package.callbacks.ModelCheckpoint(
                folder, filename="at-{step}", every_n_train_steps=save, save_top_k=-1
            ),
        ]
    trainer = package.Trainer(
        **(
            {
                "default_root_dir": folder,
                "max_steps": steps,
                "callbacks": callbacks,
                "enable_checkpointing": save is not None,
                "accelerator": "cpu",
                "logger": False,
                "enable_progress_bar": False,
                "enable_model_summary": False,
                "log_every_n_steps": 1,
            }
            | arguments
        )
    )
    data = torch.utils.data.DataLoader(list(range(64)), batch_size=1)
    trainer.fit(module, data, ckpt_path=resumed)
    return trainer


def weights(module):
    """Returns copies of the weights."""
    return {name: p.detach().clone() for name, p in module.named_parameters()}
