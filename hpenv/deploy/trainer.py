"""Callback that attaches a controller in the Trainer of `transformers` and the Trainers of `trl`.

    callback = ControllerCallback("runs/jel", bounds={"lr": (0.2, 5.0)})
    trainer = Trainer(model, ..., callbacks=[callback])

This module imports neither transformers nor accelerate: a Trainer calls the events of a callback
by name, whatever its class.

The loss is read where the model returns it, from a hook of its forward pass. A trainer whose model
returns none (GRPO of trl) has no features of the loss. In several processes each one reads its own
loss, so use `progress` and features of the gradient there.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hpenv.deploy.attachment import Attachment, attach
from hpenv.policies.controller import Controller

#: File in the folder of a checkpoint.
FILE = "hpenv_controller.pt"


class ControllerCallback:
    """Controls the optimizer of a Trainer. `attach` has the arguments.

    Each log has `controller/lr_effective/<group>`, the rate that was applied in the last step. The
    Trainer's own `learning_rate` is that of the scheduler. Reporters of `report_to` see it if the
    callback is put first: `trainer.callback_handler.callbacks.insert(0, callback)`.

    Attributes:
        attachment: the controller at work. None before the training.
    """

    def __init__(
        self,
        controller: Controller | str | os.PathLike[str],
        resume_from: str | os.PathLike[str] | None = None,
        **arguments: Any,
    ) -> None:
        """Keeps the arguments of `attach`.

        Args:
            controller: a controller, or the folder of a saved policy.
            resume_from: folder of the checkpoint, if a run is resumed from a folder that is not in
                `output_dir`.
            arguments: further arguments of `attach`. `total_steps` is the Trainer's.
        """
        self._controller, self._resume_from = controller, resume_from
        self._arguments = arguments
        self._handle: Any = None
        self.attachment: Attachment | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Attaches the controller and, in a resumed run, loads its state.

        Raises:
            ValueError: the checkpoint of a resumed run has no state of the controller, or the
                controller does not fit the optimizer.
        """
        self._detach()  # from a run that has failed
        optimizer = kwargs["optimizer"]
        optimizer = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
        arguments = {"total_steps": state.max_steps} | self._arguments
        self.attachment = attach(optimizer, self._controller, **arguments)
        self._handle = kwargs["model"].register_forward_hook(self._observe)
        if state.global_step > 0:
            file = self._saved_file(args, state.global_step)
            self.attachment.load_state_dict(torch.load(file, weights_only=True))

    def _saved_file(self, args: Any, step: int) -> Path:
        given = [self._resume_from, getattr(args, "resume_from_checkpoint", None)]
        folders = [Path(folder) for folder in given if isinstance(folder, str | os.PathLike)]
        folders.append(_folder(args, step))
        for folder in folders:
            if (folder / FILE).is_file():
                return folder / FILE
        raise ValueError(
            f"the checkpoint of a resumed run must hold {FILE}; found none in "
            f"{[str(folder) for folder in folders]}; give its folder as `resume_from`, or start a "
            "new run"
        )

    def _observe(self, module: torch.nn.Module, inputs: Any, outputs: Any) -> None:
        """Adds the loss of a forward pass in training."""
        loss = outputs.get("loss") if isinstance(outputs, dict) else getattr(outputs, "loss", None)
        if (
            self.attachment is not None
            and module.training
            and isinstance(loss, Tensor)
            and loss.numel() == 1
        ):
            self.attachment.observe(loss)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Writes the state of the controller into the checkpoint, in the main process."""
        folder = _folder(args, state.global_step)
        if self.attachment is not None and state.is_world_process_zero and folder.is_dir():
            partial = folder / f"{FILE}.partial"
            torch.save(self.attachment.state_dict(), partial)
            partial.replace(folder / FILE)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Adds the applied rates to `logs` and to `state.log_history`."""
        if self.attachment is None or logs is None or "loss" not in logs:
            return
        rates = {
            f"controller/lr_effective/{name}": values["lr"]
            for name, values in self.attachment.effective.items()
        }
        logs.update(rates)
        state.log_history[-1].update(rates)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Removes all hooks. `attachment` keeps the history."""
        self._detach()

    def _detach(self) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        if self.attachment is not None:
            self.attachment.detach()

    def __getattr__(self, name: str) -> Callable[..., None]:
        """Returns a function that does nothing, for every other event of a Trainer."""
        if not name.startswith("on_"):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return _do_nothing


def _do_nothing(*_: Any, **__: Any) -> None:
    pass


def _folder(args: Any, step: int) -> Path:
    return Path(args.output_dir) / f"checkpoint-{step}"
