"""Attaches a controller to the optimizer of somebody else's training loop.

The values of the optimizer's groups are multiplied while `optimizer.step()` runs, and at no other
time. A scheduler, a logger and a checkpoint see the values that they would see without a
controller. `step` is not replaced: the hooks of `register_step_pre_hook` and
`register_step_post_hook` do the work.

torch calls no post hook if `step` raises. The pre hook therefore hands `step` a mapping of keyword
arguments that nobody else holds, and a weak reference to it. The mapping dies with the call of
`step`, and the values are restored: at the end of the `except` clause that caught the exception.
Whoever keeps the exception keeps the call alive. For that case the values are restored before the
next step, and before `optimizer.state_dict()` and `load_state_dict()`. `Attachment.restore` does so
at once.

The module is longer than usual because the hooks share their state.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpenv.deploy.closures import wrap_closure
from hpenv.deploy.contract import Contract, Pairs, agree
from hpenv.deploy.groups import KEYS, Changes, as_floats, current_values
from hpenv.deploy.meter import Meter, parameters_of
from hpenv.deploy.pilot import ControllerWarning, Decision, Pilot
from hpenv.deploy.rails import Rails, bounds_of
from hpenv.deploy.readings import Readings
from hpenv.policies.controller import Controller
from hpenv.policies.store import load_policy

#: Optimizers that have a controller.
_attached: weakref.WeakSet[torch.optim.Optimizer] = weakref.WeakSet()


def attach(
    optimizer: torch.optim.Optimizer,
    controller: Controller | str | os.PathLike[str],
    *,
    total_steps: int,
    every: int | None = None,
    channels: Pairs | None = None,
    observation: Sequence[str] | None = None,
    bounds: Mapping[str, tuple[float, float]] | None = None,
    keys: Sequence[str] = KEYS,
    probe: Callable[[], float | Tensor] | None = None,
    rails: Rails | None = None,
    dry_run: bool = False,
) -> Attachment:
    """Attaches a controller to an optimizer.

    Channels are `lr`, `weight_decay`, `beta1`, `beta2`, `eps` and `momentum`, at the scopes `run`,
    `optimizer` and `group`. The observation may have `progress`, all features of the training loss
    with its trends and exponent, `gradient_norm`, `gradient_norm_spread`, `gradient_agreement`,
    `momentum_norm`, `update_ratio`, `update_alignment`, `position`, and, with `probe`, those of the
    probe loss. An action is a position or, as the controller's `mapping` says, a move.

    One group of the optimizer is one cell of the scope `group`, and one column of a feature per
    group. A cell is named by `group["name"]`, or else by the group's index. A saved policy has
    fixed names. It fits if the groups have the names and the order of its training: `embedding`,
    `matrix`, `scalar` and `unembedding` are those of hpenv's models. Otherwise it is refused. A
    policy at the scope `run` fits any optimizer, and so do control laws like
    `hpenv.policies.UpdateRatio`, with any number of groups. There are no rewards here, so `learn`
    of a controller is not called.

    Args:
        optimizer: the optimizer that takes the steps. With accelerate, `wrapped.optimizer`.
        controller: a controller, or the folder of a saved policy or of a training run.
        total_steps: steps of the run. Afterwards the last multipliers stay [steps].
        every: steps per decision. None: those of the controller's training [steps].
        channels: (channel, scope) pairs of a controller that names none. None: `lr` at `run`.
        observation: features of a controller that names none. None: `progress`.
        bounds: key of a group -> smallest and largest multiplier, as {"lr": (0.2, 5.0)}. None:
            those of the channels. For `betas` it is a multiplier of 1 - beta, and for `momentum`
            one of the odds. Moves end at the bounds.
        keys: keys of a group that may be multiplied.
        probe: function that returns the loss on fixed data. It is called before a decision, within
            `torch.no_grad()`, and must neither draw random numbers nor leave the model in another
            mode.
        rails: limits of the controller. See `Rails`.
        dry_run: True makes decisions, and applies none.

    Raises:
        ValueError: the optimizer has not what the controller asks for, or has a controller already.
    """
    if isinstance(controller, str | os.PathLike):
        controller = load_policy(controller)
    contract = agree(
        optimizer, controller, total_steps, every, channels, observation, keys, probe is not None
    )
    rails = Rails() if rails is None else rails
    limits = bounds_of(dict.fromkeys(name for name, _ in contract.panel.banks), bounds)
    if optimizer in _attached:
        raise ValueError("optimizer must have one controller; detach() the other one first")

    readings = Readings(
        contract.features,
        contract.layout,
        contract.total_steps,
        probe is not None,
        contract.estimation,
    )
    pilot = Pilot(controller, contract, rails, limits, readings)
    return Attachment(optimizer, contract, pilot, probe, dry_run)


class _Call(dict[str, Any]):
    """Keyword arguments of one call of `step`. A plain dict cannot be referenced weakly."""


class Attachment:
    """A controller at work on an optimizer. `attach` makes it.

    Attributes:
        contract: cells, observation and steps per decision.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        contract: Contract,
        pilot: Pilot,
        probe: Callable[[], float | Tensor] | None,
        dry_run: bool,
    ) -> None:
        self._optimizer, self.contract, self._pilot = optimizer, contract, pilot
        self._probe, self._dry_run = probe, dry_run
        # The loss is cheap and the rails read it, so it is measured in any case.
        self._meter = Meter(contract.wanted | {"train_loss"})

        self._changes = Changes()
        self._applied: list[dict[str, Any]] | None = None
        self._keep: Tensor | None = None
        self._steps, self._next = 0, 0
        self._skipped: Tensor | None = None  # steps among `_steps` that a GradScaler skipped
        self._is_inside, self._is_early, self._is_prepared = False, False, False
        self._guards = True
        self._guard: weakref.ref[_Call] | None = None

        _attached.add(optimizer)
        self._handles: list[Any] = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
            optimizer.register_state_dict_pre_hook(lambda *_: self.restore()),
            optimizer.register_load_state_dict_pre_hook(lambda *_: self.restore()),
        ]

    @property
    def steps(self) -> int:
        """Steps of the run, without those that a GradScaler skipped. It may wait for the device."""
        if self._skipped is not None:
            self._steps -= int(self._skipped)
            self._skipped = None
        return self._steps

    @property
    def history(self) -> list[Decision]:
        """All decisions."""
        return list(self._pilot.history)

    @property
    def fault(self) -> str:
        """Reason for which the controller was switched off. Empty: none."""
        return self._pilot.fault

    @property
    def effective(self) -> dict[str, dict[str, Any]]:
        """Values that the last step was taken with: name of a group -> key -> value.

        Before the first step they are the optimizer's. A monitor of the learning rate shows the
        value of the scheduler instead.
        """
        groups = self._optimizer.param_groups
        values = current_values(groups) if self._applied is None else self._applied
        names = self.contract.panel.groups
        return {name: as_floats(own) for name, own in zip(names, values, strict=False)}

    def observe(self, loss: float | Tensor) -> None:
        """Adds a loss of the coming step. Call it before `optimizer.step()`.

        With gradient accumulation, call it for every part, with the loss before its division. Over
        several processes, give all the same number, such as the mean.

        Raises:
            ValueError: the loss is a tensor of several numbers.
        """
        if not self._meter.observe(loss):
            self._pilot.alarm("a loss is not finite")

    def restore(self) -> None:
        """Gives the optimizer its own values back.

        Needed only after `step` has raised an exception that is still being handled or kept, and
        before a scheduler's step.
        """
        if self._changes:
            self._changes.restore()
            self._is_early = True

    def detach(self) -> None:
        """Removes the hooks. The optimizer is as if it had never had a controller."""
        self._changes.restore()
        for handle in self._handles:
            handle.remove()
        self._handles = []
        _attached.discard(self._optimizer)

    def _before_step(
        self, optimizer: torch.optim.Optimizer, args: Any, kwargs: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]] | None:
        """Multiplies the values. Called before the optimizer's step.

        A step that is still open has raised, or is an outer `step` that calls this one. With a
        closure the gradients do not exist yet, so the step is prepared after its first evaluation.
        An optimizer that reads its values before it calls its closure (LBFGS) gets those of a
        decision one step later.
        """
        self._changes.restore()
        self._is_inside, self._is_early, self._is_prepared = True, False, False
        self._keep = _kept(optimizer)
        given = wrap_closure(
            args, kwargs, self._changes.restore, lambda: self._attempt(self._resume, optimizer)
        )
        self._attempt(self._apply if given else self._prepare, optimizer)

        if not self._guards or not (self._changes or given):
            return given
        args, kwargs = given or (args, kwargs)
        call = _Call(kwargs)
        self._guard = weakref.ref(call, lambda _: self.restore())
        return args, call

    def _attempt(
        self, part: Callable[[torch.optim.Optimizer], None], optimizer: torch.optim.Optimizer
    ) -> None:
        """Does a part of a step. If it raises, the controller is switched off."""
        try:
            part(optimizer)
        except Exception as error:
            self._changes.restore()
            self._applied = current_values(optimizer.param_groups)
            if isinstance(error, ControllerWarning):
                raise  # whoever runs it has made warnings errors
            self._pilot.fail(error)

    def _apply(self, optimizer: torch.optim.Optimizer) -> None:
        """Multiplies the values by the current multipliers."""
        self._changes.restore()
        if not self._dry_run:
            self._changes.apply(optimizer.param_groups, self._pilot.multipliers)

    def _resume(self, optimizer: torch.optim.Optimizer) -> None:
        """Continues a step after an evaluation of its closure."""
        (self._apply if self._is_prepared else self._prepare)(optimizer)

    def _prepare(self, optimizer: torch.optim.Optimizer) -> None:
        """Makes the decision if one is due, measures the gradients, and multiplies the values."""
        self._is_prepared, self._is_early = True, False
        pilot, groups = self._pilot, optimizer.param_groups
        decision = None
        if not pilot.fault:
            if len(groups) != len(self.contract.panel.groups):
                raise ValueError(
                    f"the optimizer must keep its {len(self.contract.panel.groups)} groups; "
                    f"got {len(groups)}; detach() and attach again after adding a group"
                )
            if self._is_due():
                decision = pilot.decide(self._steps, self._measured())
                self._next = self._steps + self.contract.every
            self._meter.start_step(
                parameters_of(optimizer),
                self._keep,
                getattr(optimizer, "grad_scale", None),
                self._next - self._steps,
            )

        self._apply(optimizer)
        self._applied = current_values(groups)
        if decision is not None:
            pilot.record(self._steps, decision, as_floats(self._applied))

    def _is_due(self) -> bool:
        """Returns True for the first step after a window.

        Steps that a GradScaler skipped are counted on the device, and subtracted only where a
        decision may be due.
        """
        due = self._steps >= self._next and self.steps >= self._next
        return due and self._steps < self.contract.total_steps

    def _measured(self) -> dict[str, np.ndarray]:
        """Returns the measurements of the window that ends, or of the run before its first step."""
        if self._steps == 0:
            pending = self._meter.pending_loss
            found = {} if pending is None else {"train_loss": np.array(pending)}
        else:
            found = self._meter.read(self._optimizer)
        if self._probe is not None:
            with torch.no_grad():
                found["probe_loss"] = np.array(float(self._probe()))
        return found

    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """Restores the values. Called after the optimizer's step, unless that has raised."""
        if not self._is_inside:
            return  # the outer of two calls, one within the other
        self._is_inside = False
        self._changes.restore()
        if self._is_early:  # another hook has replaced the keyword arguments, so they died at once
            self._guards, self._applied = False, current_values(optimizer.param_groups)

        try:
            if not self._pilot.fault:
                self._meter.finish_step(parameters_of(optimizer), self._keep)
        except Exception as error:
            self._pilot.fail(error)
        self._steps += 1
        if self._keep is not None:
            skipped = 1.0 - self._keep
            self._skipped = skipped if self._skipped is None else self._skipped + skipped

    def state_dict(self) -> dict[str, Any]:
        """Returns all that a resumed run needs: tensors, numbers and texts.

        `torch.save` writes it, and `torch.load(..., weights_only=True)` reads it.
        """
        contract = self.contract
        return {
            "cells": list(contract.panel.names),
            "groups": list(contract.panel.groups),
            "every": contract.every,
            "total_steps": contract.total_steps,
            "steps": self.steps,
            "next": self._next,
            "meter": self._meter.state(),
            "pilot": self._pilot.state(),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continues from a state: the run is, bit for bit, as if it had never stopped.

        Raises:
            ValueError: it is the state of another controller or optimizer.
        """
        contract = self.contract
        own = {
            "cells": list(contract.panel.names),
            "groups": list(contract.panel.groups),
            "every": contract.every,
            "total_steps": contract.total_steps,
        }
        for name, value in own.items():
            if state_dict.get(name) != value:
                raise ValueError(
                    f"{name} of the state must be {value}; got {state_dict.get(name)}; attach the "
                    "controller with the arguments of the run that is resumed"
                )
        self._changes.restore()
        self._steps, self._next = int(state_dict["steps"]), int(state_dict["next"])
        self._skipped = self._applied = None
        self._meter.set_state(state_dict["meter"], parameters_of(self._optimizer))
        self._pilot.set_state(state_dict["pilot"])


def _kept(optimizer: torch.optim.Optimizer) -> Tensor | None:
    """Returns 1, or 0 if a GradScaler skips the coming step, without reading it. None: no scaler.

    A fused optimizer is called in any case, and finds out on the device.
    """
    found = getattr(optimizer, "found_inf", None)
    return (found == 0).double().reshape(()) if isinstance(found, Tensor) else None
