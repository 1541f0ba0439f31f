"""Callback that projects gradients in the Trainer of `transformers` and the Trainers of `trl`.

After the gradients are clipped and before the optimizer's step, the callback removes the hacking
direction from them, as in `hpenv.posttraining.projection.rules` with N = 1. A projected parameter
is either the coefficients of an `AntiPaSTOLinear`, named in the direction by its layer, or
any other parameter, named as in the model. The gradient of the latter is read as one row. This
makes sense only if the parameter's axes keep their meaning: one factor of a low-rank adapter turns
with the other factor, unless that one is frozen.

    adapters = attach(model)                                   # or parameters of your own
    direction = extract(hack, clean, method="mean_difference", k=1)
    trainer = GRPOTrainer(model, ..., callbacks=[ProjectionCallback(direction)])

The callback adds the means of its measures since the last log to the Trainer's logs. Reporters of
`report_to` are called before all other callbacks and do not see the means, unless the callback is
put first: `trainer.callback_handler.callbacks.insert(0, callback)`. The Trainer's `grad_norm` is
from before the projection.

A checkpoint of the Trainer holds the running moments of the rule `drift`. A run that is resumed
from it continues bit for bit like one that was never interrupted. This does not need
`restore_callback_states_from_checkpoint`, which would replace the callback by another one.

The module is longer than usual because the events of a Trainer share their state.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from hpenv.posttraining.projection.direction import Direction, check_direction
from hpenv.posttraining.projection.rules import (
    RULES,
    TARGETS,
    Measures,
    RunningMoments,
    coordinates,
    measure,
    moments_from_record,
    moments_record,
    project,
    update_moments,
    zero_moments,
)
from hpenv.posttraining.students.adapter import AntiPaSTOLinear, weights_digest

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

#: Kinds of distributed training in which `parameter.grad` does not hold the whole gradient of any
#: process when the callback is called.
_SHARDED = (DistributedType.DEEPSPEED, DistributedType.FSDP, DistributedType.MEGATRON_LM)


class ProjectionCallback(TrainerCallback):
    """Removes a direction from the gradients of a Trainer's model, or from the optimizer's update.

    A layer with a quarantine is routed: the component that is removed from the gradient of its
    coefficients becomes the gradient of the quarantine.

    Attributes:
        measures: measures of the last step, name -> value, at any strength. See `Measures`.
    """

    def __init__(
        self,
        direction: Direction,
        rule: str = "one_sided",
        strength: float = 1.0,
        magnitude: float = 0.0,
        target: str = "grad",
    ) -> None:
        """Sets rule, target, direction and strengths.

        Args:
            direction: direction of one run, N = 1.
            rule: key of `RULES`.
            strength: fraction of the component that is removed, in [0, 1].
            magnitude: fraction of the lost length that is given back, in [0, 1].
            target: `grad` projects the gradients. An adaptive optimizer may bring some of the
                direction back. `update` projects what the optimizer subtracts, weight decay
                included.

        Raises:
            ValueError: for an unknown rule or target, a number out of range, or a direction of
                another number of runs.
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
        """Fraction of the component that is removed, in [0, 1].

        It may be changed at any time. At 0 gradients keep every bit.
        """
        return self._strength

    @strength.setter
    def strength(self, value: float) -> None:
        self._strength = _fraction("strength", value)

    @property
    def magnitude(self) -> float:
        """Fraction of the lost length that is given back, in [0, 1].

        It may be changed at any time.
        """
        return self._magnitude

    @magnitude.setter
    def magnitude(self, value: float) -> None:
        self._magnitude = _fraction("magnitude", value)

    @property
    def direction(self) -> Direction:
        """Direction of one run. It may be replaced by one for the same parameters.

        Replacing it resets the running moments of the rule `drift`.
        """
        return self._direction

    @direction.setter
    def direction(self, value: Direction) -> None:
        check_direction(value)
        if (N := len(next(iter(value.axes.values())))) != 1:
            raise ValueError(
                f"direction must be of one run, because a Trainer trains one; got {N} runs"
            )

        self._direction = value
        self._spread = zero_moments(value)
        self._axes_digest = weights_digest(value.axes)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Finds the parameters and, in a resumed run, loads the running moments of `drift`.

        Raises:
            ValueError: if a parameter is missing, ambiguous or of another size, if distributed
                training hides gradients, or if the checkpoint does not hold the moments.
        """
        self._remove_hooks()  # of a run that has failed
        self._spread = zero_moments(self.direction)
        if self._rule == "drift" and state.global_step > 0:
            self._spread = self._load_spread(state)

        optimizer = kwargs["optimizer"]
        _check_gradients_are_whole(args, optimizer)
        self._parameters, self._quarantines = _find_parameters(kwargs["model"], self.direction)

        if self._target == "update":
            if self._quarantines:
                raise ValueError("target must be 'grad' for layers with a quarantine; got 'update'")
            inner = (
                optimizer.optimizer if isinstance(optimizer, AcceleratedOptimizer) else optimizer
            )
            self._hooks = [
                inner.register_step_pre_hook(self._copy_parameters),
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
        kept, removed = self._project(present)

        for name, gradient in present.items():
            if removed[name].any():
                gradient.copy_(kept[name].view(gradient.shape))
            if name in self._quarantines:
                self._quarantines[name].grad = removed[name].view(gradient.shape).to(gradient)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Puts the running moments of `drift` into the state that a checkpoint saves."""
        if self._rule == "drift":
            saved = cast(dict[str, Any], state.stateful_callbacks)
            saved.pop(self._saved_as, None)
            self._saved_as = self._name()
            saved[self._saved_as] = moments_record(self._spread)

    def _name(self) -> str:
        """Returns the key of the saved moments, which differs by direction and target."""
        return f"hpenv.ProjectionCallback {self._target} {self._axes_digest}"

    def _load_spread(self, state: TrainerState) -> RunningMoments:
        """Reads the running moments that `on_step_end` put into the state."""
        name = self._name()
        where = f"trainer_state.json of the checkpoint at step {state.global_step}"
        record = cast(dict[str, Any], state.stateful_callbacks).get(name)
        if record is None:
            raise ValueError(
                f"{where} must hold the running moments of the rule 'drift' along this direction, "
                f"as {name!r}; got none; resume from a checkpoint of a run with the same direction "
                "and target, or start a new run"
            )

        try:
            spread = moments_from_record(record, self._spread)
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
        """Adds the means of the measures since the last log to `logs` and `state.log_history`."""
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
        """Removes the hooks from the optimizer."""
        self._remove_hooks()

    def _remove_hooks(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._before = [], {}

    def _copy_parameters(self, *_: Any) -> None:
        self._before = {
            name: parameter.detach().clone() for name, parameter in self._parameters.items()
        }

    def _project_update(self, *_: Any) -> None:
        """Projects the optimizer's update.

        A parameter whose update loses no component keeps every bit.
        """
        updates = {
            name: self._before[name] - parameter.detach()
            for name, parameter in self._parameters.items()
        }
        kept, removed = self._project(updates)

        with torch.no_grad():
            for name, parameter in self._parameters.items():
                if removed[name].any():
                    parameter.copy_(
                        self._before[name] - kept[name].view(parameter.shape).to(parameter)
                    )
        self._before = {}

    def _project(self, vectors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Splits each vector into a kept and a removed component, (1, r) each.

        The components are on the device of the direction. Missing vectors count as zeros. If a
        vector is not finite, nothing is removed: the Trainer handles such steps.
        """
        axes = self.direction.axes
        rows = {
            name: vectors[name].detach().reshape(1, -1).to(axis.device, axis.dtype)
            if name in vectors
            else axis.new_zeros(1, axis.shape[2])
            for name, axis in axes.items()
        }
        if not all(bool(torch.isfinite(row).all()) for row in rows.values()):
            return rows, {name: torch.zeros_like(row) for name, row in rows.items()}

        self._spread = update_moments(self._spread, coordinates(rows, self.direction))
        strength, magnitude = (
            next(iter(rows.values())).new_tensor([value])
            for value in (self.strength, self.magnitude)
        )
        deviations = self._spread.deviations() if self._rule == "drift" else None
        kept, removed = project(rows, self.direction, self._rule, strength, magnitude, deviations)

        measures = measure(rows, self.direction)
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
    engines = [name for name, set_ in (("deepspeed", args.deepspeed), ("fsdp", args.fsdp)) if set_]
    if (
        isinstance(optimizer, AcceleratedOptimizer)
        and optimizer.accelerator_state.distributed_type in _SHARDED
    ):
        engines.append(str(optimizer.accelerator_state.distributed_type))

    if engines:
        raise ValueError(
            f"the Trainer must run in one process or with DDP; got {', '.join(engines)}: DeepSpeed "
            "steps inside its backward pass, and FSDP leaves each process a piece of every "
            "gradient, so there is no whole gradient to project"
        )
    if args.fp16 and not args.max_grad_norm:
        raise ValueError(
            "max_grad_norm must be above 0 with fp16; got "
            f"{args.max_grad_norm}: without clipping the gradients still "
            "carry the loss scale here; use bf16, or set max_grad_norm"
        )


def _find_parameters(
    model: nn.Module, direction: Direction
) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
    """Returns the parameters that the direction names, and the quarantines among their layers."""
    adapters = {
        name: layer for name, layer in model.named_modules() if isinstance(layer, AntiPaSTOLinear)
    }
    places: dict[str, nn.Parameter] = dict(model.named_parameters())
    places |= {name: adapter.coefficients for name, adapter in adapters.items()}

    parameters, quarantines = {}, {}
    for wanted, axes in direction.axes.items():
        # Wrappers add a prefix, as in `base_model.model.` or `module.`.
        names = [name for name in places if name == wanted or name.endswith(f".{wanted}")]
        if len(names) != 1:
            raise ValueError(
                f"the model must have exactly one {wanted!r}, which the direction names; "
                f"got {names}: expected an AntiPaSTOLinear (here: {list(adapters)[:3]}...) or a "
                "parameter"
            )

        parameter = places[names[0]]
        if parameter.numel() != axes.shape[2] or not parameter.requires_grad:
            raise ValueError(
                f"{names[0]!r} must have {axes.shape[2]} trained numbers, as the direction has; "
                f"got {parameter.numel()} numbers and requires_grad={parameter.requires_grad}"
            )

        parameters[wanted] = parameter
        if names[0] in adapters and (quarantine := adapters[names[0]].quarantine) is not None:
            quarantines[wanted] = quarantine

    return parameters, quarantines
