"""Callback that attaches controllers in the Trainer of `lightning` or `pytorch_lightning`.

    callback = ControllerCallback("runs/jel", bounds={"lr": (0.2, 5.0)})
    trainer = Trainer(max_steps=1000, callbacks=[callback])

This module imports neither package: a Trainer calls the events of a callback by name, whatever its
class. Releases 2.6.2 and 2.6.3 of `lightning` were compromised, and the extra `lightning` excludes
them.

The loss is read before its backward pass. With several optimizers a loss belongs to the optimizer
that takes the next step. In several processes each one reads its own loss, so use `progress` and
features of the gradient there.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from hpenv.deploy.attachment import Attachment, attach
from hpenv.policies.controller import Controller

Source = Controller | str | os.PathLike[str]

#: Name of the only optimizer.
ONLY = "optimizer"


class ControllerCallback:
    """Controls the optimizers of a Trainer. `attach` has the arguments.

    The applied rates are logged as `controller/lr_effective/<group>`, or, of several optimizers,
    as `controller/<name>/lr_effective/<group>`. Schedulers and `LearningRateMonitor` see the values
    without a controller. A checkpoint of the Trainer holds the state of every controller.

    Attributes:
        attachments: name of an optimizer -> its controller at work. Empty before the training.
    """

    def __init__(self, controller: Source | Mapping[str, Source | None], **arguments: Any) -> None:
        """Keeps the arguments of `attach`.

        Args:
            controller: a controller, or the folder of a saved policy. For several optimizers
                (manual optimization): name -> controller, in the order of
                `configure_optimizers`, and None for an optimizer without one.
            arguments: further arguments of `attach`. `total_steps` is the Trainer's in automatic
                optimization, and must be given in manual optimization.
        """
        self._controllers: dict[str, Source | None] = (
            dict(controller) if isinstance(controller, Mapping) else {ONLY: controller}
        )
        self._arguments = arguments
        self._losses: list[Tensor] = []
        self._saved: dict[str, Any] | None = None
        self.attachments: dict[str, Attachment] = {}

    @property
    def state_key(self) -> str:
        """Key of the state in a checkpoint. One Trainer has one callback of this class."""
        return f"hpenv.{type(self).__name__}"

    @property
    def _legacy_state_key(self) -> str:
        return self.state_key

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Attaches the controllers and, in a resumed run, loads their states.

        Raises:
            ValueError: optimizers and controllers do not correspond, the number of steps is not
                known, the checkpoint has no state of the controllers, or a controller does not fit
                its optimizer.
        """
        self._detach()  # from a run that has failed
        optimizers = list(trainer.optimizers)
        if len(optimizers) != len(self._controllers):
            raise ValueError(
                f"controller must be a mapping with a name for each of {len(optimizers)} "
                f"optimizers, as {{'generator': controller, 'critic': None}}; "
                f"got {sorted(self._controllers)}"
            )
        if self._saved is None and trainer.ckpt_path and trainer.global_step > 0:
            raise ValueError(
                f"the checkpoint of a resumed run must hold {self.state_key!r}; got "
                f"{str(trainer.ckpt_path)!r} without it; start a new run"
            )

        arguments = {"total_steps": self._total_steps(trainer, pl_module)} | self._arguments
        self.attachments = {}
        for (name, controller), optimizer in zip(
            self._controllers.items(), optimizers, strict=True
        ):
            if controller is not None:
                self.attachments[name] = attach(optimizer, controller, **arguments)
                if self._saved is not None:
                    self.attachments[name].load_state_dict(self._saved[name])
        self._saved = None

    def _total_steps(self, trainer: Any, pl_module: Any) -> int:
        """Returns the number of steps that is given, or else that of the Trainer."""
        if "total_steps" in self._arguments:
            return int(self._arguments["total_steps"])
        steps = math.inf
        if pl_module.automatic_optimization:
            steps = trainer.estimated_stepping_batches
        if not 0 < steps < math.inf:
            raise ValueError(
                "total_steps must be given in manual optimization, and where the Trainer does not "
                f"know its number of steps; got none, and {steps} of the Trainer"
            )
        return int(steps)

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        """Keeps the loss of a backward pass, without the factors of the Trainer."""
        loss = loss.detach()
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None:
            loss = loss / scaler.scale(torch.ones_like(loss))
        if pl_module.automatic_optimization:
            loss = loss * trainer.accumulate_grad_batches
        if len(self._controllers) > 1:
            self._losses.append(loss)
            return
        for attachment in self.attachments.values():
            attachment.observe(loss)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Gives the losses since the last step to the optimizer that takes this one."""
        losses, self._losses = self._losses, []
        for name, own in zip(self._controllers, trainer.optimizers, strict=True):
            if own is optimizer and name in self.attachments:
                for loss in losses:
                    self.attachments[name].observe(loss)

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Logs the applied rates, at the steps at which the Trainer logs."""
        if pl_module.automatic_optimization and trainer.global_step % trainer.log_every_n_steps:
            return
        pl_module.log_dict(
            {
                "/".join(["controller", *name, "lr_effective", group]): values["lr"]
                for name, attachment in self._named()
                for group, values in attachment.effective.items()
            },
            on_step=True,
            on_epoch=False,
        )

    def _named(self) -> list[tuple[list[str], Attachment]]:
        """Returns the attachments with their names in a log. The only one has none."""
        several = len(self._controllers) > 1
        return [([name] if several else [], own) for name, own in self.attachments.items()]

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of every controller, for a checkpoint of the Trainer."""
        return {name: attachment.state_dict() for name, attachment in self.attachments.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps the states until the optimizers are there."""
        self._saved = dict(state_dict)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Removes all hooks. `attachments` keep the history."""
        self._detach()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Removes all hooks."""
        self._detach()

    def _detach(self) -> None:
        self._losses = []
        for attachment in self.attachments.values():
            attachment.detach()

    def __getattr__(self, name: str) -> Callable[..., None]:
        """Returns a function that does nothing, for every other event of a Trainer."""
        if not (name.startswith("on_") or name in ("setup", "teardown")):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return _do_nothing


def _do_nothing(*_: Any, **__: Any) -> None:
    pass
