"""Gradient projection in other people's training: a callback for the Trainer of `transformers` and
those of `trl`.

Between the clipping of the gradients and the optimizer's step the callback takes the direction of
hacking out of them, as `hpenv.posttraining.projection` has it, with N = 1. A projected parameter is
the knob of an `AntiPaSTOLinear`, named in the direction by its layer, or any other parameter, named
as the model names it, whose gradient is then read as one row. The latter makes sense only where the
parameter's axes keep their meaning: one factor of a low-rank adapter turns with the other one,
unless that is frozen.

    adapters = attach(model)                                   # or parameters of your own
    direction = extract(hack, clean, method="mean_difference", k=1)
    trainer = GRPOTrainer(model, ..., callbacks=[ProjectionCallback(direction)])

The means of the measures since the last log join the Trainer's logs. Reporters that were asked for
with `report_to` are called before all other callbacks and do not see them, unless the callback is
put first: `trainer.callback_handler.callbacks.insert(0, callback)`. The Trainer's `grad_norm` is
from before the projection.

A checkpoint of the Trainer holds what the rule `drift` has seen, and a run that is resumed from it
goes on as the unbroken one, bit for bit. It does so without
`restore_callback_states_from_checkpoint`, which would replace the callback by another one.

Past the usual length, because the events of a Trainer share what is kept between them.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from hpenv.posttraining.adapter import AntiPaSTOLinear, weights_digest
from hpenv.posttraining.direction import Direction, check_direction
from hpenv.posttraining.projection import (
    RULES,
    Measures,
    Spread,
    coordinates,
    no_spread,
    project,
    spread_of_record,
    spread_record,
    updated_spread,
)

try:
    from accelerate.optimizer import AcceleratedOptimizer
    from accelerate.utils import DistributedType
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "hpenv.integrations.transformers_callback needs transformers and accelerate; "
        "install them with: pip install 'hpenv[posttraining]'",
        name=error.name,
    ) from error

TARGETS = ("grad", "update")

#: Ways of training in which no process has the whole gradient in `parameter.grad` when the callback
#: is called.
_SHARDED = (DistributedType.DEEPSPEED, DistributedType.FSDP, DistributedType.MEGATRON_LM)


class ProjectionCallback(TrainerCallback):
    """Takes a direction out of the gradients of a Trainer's model, or out of what its optimizer
    subtracts.

    A layer that has a quarantine is routed: the quarantine's gradient becomes what is removed from
    the knob's.

    Attributes:
        measures: of the last step, name -> value, whatever the strength; see `Measures`.
    """

    def __init__(
        self,
        direction: Direction,
        rule: str = "one_sided",
        strength: float = 1.0,
        magnitude: float = 0.0,
        target: str = "grad",
    ) -> None:
        """Keeps what is to be done.

        Args:
            direction: of one run, N = 1.
            rule: key of `RULES`.
            strength: how much is taken out, in [0, 1].
            magnitude: how much of the lost length is given back, in [0, 1].
            target: `grad`, or `update`: what the optimizer subtracts, weight decay included, of
                which an adaptive optimizer lets part of the direction back in.

        Raises:
            ValueError: for an unknown rule or target, a number out of range, or what is no
                direction of one run.
        """
        for name, value, table in (("rule", rule, RULES), ("target", target, TARGETS)):
            if not isinstance(value, str) or value not in table:
                raise ValueError(f"unknown {name} {value!r}; expected one of {sorted(table)}")
        self._rule, self._target = rule, target
        self.direction, self.strength, self.magnitude = direction, strength, magnitude
        self.measures: dict[str, float] = {}
        self._saved_as = ""
        self._measured: list[dict[str, float]] = []
        self._parameters: dict[str, nn.Parameter] = {}
        self._quarantines: dict[str, nn.Parameter] = {}
        self._before: dict[str, Tensor] = {}
        self._hooks: list[Any] = []

    @property
    def strength(self) -> float:
        """How much is taken out, in [0, 1]; may be changed at any time. At 0 gradients stay bit for bit."""
        return self._strength

    @strength.setter
    def strength(self, value: float) -> None:
        self._strength = _fraction("strength", value)

    @property
    def magnitude(self) -> float:
        """How much of the lost length is given back, in [0, 1]; may be changed at any time."""
        return self._magnitude

    @magnitude.setter
    def magnitude(self, value: float) -> None:
        self._magnitude = _fraction("magnitude", value)

    @property
    def direction(self) -> Direction:
        """Of one run; may be replaced by one for the same parameters. What was seen along the old one is forgotten."""
        return self._direction

    @direction.setter
    def direction(self, value: Direction) -> None:
        check_direction(value)
        if (N := len(next(iter(value.axes.values())))) != 1:
            raise ValueError(f"got a direction of {N} runs; expected one, a Trainer trains one")
        self._direction, self._spread, self._axes_digest = (
            value,
            no_spread(value),
            weights_digest(value.axes),
        )

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Finds the parameters, and in a run that is resumed what had been seen.

        Raises:
            ValueError: if a parameter is missing, ambiguous or of another size, if the way of
                training hides gradients, or if the checkpoint does not hold what the rule `drift`
                needs.
        """
        self._spread = no_spread(self.direction)
        if self._rule == "drift" and state.global_step > 0:
            self._spread = self._resumed_spread(state)
        optimizer = kwargs["optimizer"]
        _check_gradients_are_whole(args, optimizer)
        self._parameters, self._quarantines = _found(kwargs["model"], self.direction)
        if self._target == "update":
            if self._quarantines:
                raise ValueError(
                    "got target='update' and layers with a quarantine; expected target='grad' with these"
                )
            inner = (
                optimizer.optimizer if isinstance(optimizer, AcceleratedOptimizer) else optimizer
            )
            self._hooks = [
                inner.register_step_pre_hook(self._remember),
                inner.register_step_post_hook(self._project_update),
            ]

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Projects the gradients, in place."""
        if self._target != "grad":
            return
        gradients = {name: parameter.grad for name, parameter in self._parameters.items()}
        present = {name: gradient for name, gradient in gradients.items() if gradient is not None}
        kept, removed = self._projected(present)
        for name, gradient in present.items():
            if removed[name].any():
                gradient.copy_(kept[name].view(gradient.shape))
            if name in self._quarantines:
                self._quarantines[name].grad = removed[name].view(gradient.shape).to(gradient)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Puts what the rule `drift` has seen into the state that the Trainer saves with a checkpoint."""
        if self._rule == "drift":
            saved = cast(dict[str, Any], state.stateful_callbacks)
            saved.pop(self._saved_as, None)
            self._saved_as = self._name()
            saved[self._saved_as] = spread_record(self._spread)

    def _name(self) -> str:
        """Returns the name of what is saved: another direction or target does not find it."""
        return f"hpenv.ProjectionCallback {self._target} {self._axes_digest}"

    def _resumed_spread(self, state: TrainerState) -> Spread:
        """Reads what `on_step_end` put into the state."""
        name, where = (
            self._name(),
            f"trainer_state.json of the checkpoint at step {state.global_step}",
        )
        record = cast(dict[str, Any], state.stateful_callbacks).get(name)
        if record is None:
            raise ValueError(
                f"{where} must hold what the rule 'drift' has seen along this direction, as {name!r}; got none: resume "
                "from a checkpoint of a run with the same direction and target, or start anew"
            )
        try:
            spread = spread_of_record(record, self._spread)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"{where} is damaged: {error!r}; resume from another checkpoint"
            ) from error
        self._saved_as = name
        return spread

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Adds the means of the measures since the last log, also to the entry of `state.log_history`."""
        if logs is None or not self._measured or any(name.startswith("eval_") for name in logs):
            return
        means = {
            name: sum(values[name] for values in self._measured) / len(self._measured)
            for name in Measures._fields
        }
        self._measured = []
        logs.update(means)
        state.log_history[-1].update(means)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leaves the optimizer as it was."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._before = [], {}

    def _remember(self, *_: Any) -> None:
        self._before = {
            name: parameter.detach().clone() for name, parameter in self._parameters.items()
        }

    def _project_update(self, *_: Any) -> None:
        """Projects what the optimizer has subtracted; a parameter from which nothing is removed stays bit for bit."""
        updates = {
            name: self._before[name] - parameter.detach()
            for name, parameter in self._parameters.items()
        }
        kept, removed = self._projected(updates)
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                if removed[name].any():
                    parameter.copy_(
                        self._before[name] - kept[name].view(parameter.shape).to(parameter)
                    )
        self._before = {}

    def _projected(self, vectors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What is kept and what is removed of each vector, (1, r), computed where the direction is.

        Vectors that are missing count as zeros. If one is not finite, all are kept: that is the
        Trainer's to handle.
        """
        axes = self.direction.axes
        rows = {
            name: vectors[name].detach().reshape(1, -1).to(own.device, own.dtype)
            if name in vectors
            else own.new_zeros(1, own.shape[2])
            for name, own in axes.items()
        }
        if not all(bool(torch.isfinite(row).all()) for row in rows.values()):
            return rows, {name: torch.zeros_like(row) for name, row in rows.items()}
        self._spread = updated_spread(self._spread, coordinates(rows, self.direction))
        strength, magnitude = (
            next(iter(rows.values())).new_tensor([value])
            for value in (self.strength, self.magnitude)
        )
        deviations = self._spread.deviations() if self._rule == "drift" else None
        kept, removed, measures = project(
            rows, self.direction, self._rule, strength, magnitude, deviations
        )
        self.measures = {name: float(value) for name, value in measures._asdict().items()}
        self._measured.append(self.measures)
        return kept, removed


def _fraction(name: str, value: float) -> float:
    if (
        not isinstance(value, int | float | np.floating)
        or isinstance(value, bool)
        or not 0.0 <= value <= 1.0
    ):
        raise ValueError(f"{name} must be a number from 0 to 1; got {value!r}")
    return float(value)


def _check_gradients_are_whole(args: TrainingArguments, optimizer: Any) -> None:
    asked = [name for name, given in (("deepspeed", args.deepspeed), ("fsdp", args.fsdp)) if given]
    if (
        isinstance(optimizer, AcceleratedOptimizer)
        and optimizer.accelerator_state.distributed_type in _SHARDED
    ):
        asked.append(str(optimizer.accelerator_state.distributed_type))
    if asked:
        raise ValueError(
            f"got a Trainer with {', '.join(asked)}: DeepSpeed steps inside its own backward pass and FSDP leaves each "
            "process a piece of every gradient, so there is no gradient to project; expected one process, or DDP"
        )
    if args.fp16 and not args.max_grad_norm:
        raise ValueError(
            "got fp16 with max_grad_norm=0: without clipping the gradients still carry the loss scale here; expected "
            "bf16, or a max_grad_norm above 0"
        )


def _found(
    model: nn.Module, direction: Direction
) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
    """The parameters that the direction names, and the quarantines of those that have one."""
    adapters = {
        name: layer for name, layer in model.named_modules() if isinstance(layer, AntiPaSTOLinear)
    }
    places: dict[str, nn.Parameter] = dict(model.named_parameters())
    places |= {name: adapter.knob for name, adapter in adapters.items()}
    parameters, quarantines = {}, {}
    for wanted, axes in direction.axes.items():
        # Wrappers put a name of their own before it, as in `base_model.model.` or `module.`.
        names = [name for name in places if name == wanted or name.endswith(f".{wanted}")]
        if len(names) != 1:
            raise ValueError(
                f"the direction names {wanted!r}, of which the model has {names}; expected exactly one: an "
                f"AntiPaSTOLinear (here: {list(adapters)[:3]}...) or a parameter"
            )
        parameter = places[names[0]]
        if parameter.numel() != axes.shape[2] or not parameter.requires_grad:
            raise ValueError(
                f"{names[0]!r} has {parameter.numel()} numbers and requires_grad={parameter.requires_grad}; expected "
                f"{axes.shape[2]} numbers that are trained, as the direction has"
            )
        parameters[wanted] = parameter
        if names[0] in adapters and (quarantine := adapters[names[0]].quarantine) is not None:
            quarantines[wanted] = quarantine
    return parameters, quarantines
