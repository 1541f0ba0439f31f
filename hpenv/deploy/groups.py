"""Values of an optimizer's groups: those that a controller multiplies during a step.

A value is a float, or a live tensor that a captured graph or a compiled step reads. A float is
replaced, a tensor is multiplied in place. A multiplier of exactly 1 writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hpenv.arrays import FloatArray
from hpenv.checks import is_number, suggestion
from hpenv.control.panel import Panel, TensorSite

#: Scopes that every optimizer has.
SCOPES = ("run", "optimizer", "group")


@dataclass(frozen=True)
class Dial:
    """Place of a channel's value in an optimizer's group.

    Attributes:
        key: key of the group.
        index: index within a tuple of values. None: the value itself.
        is_rest: True if the channel multiplies 1 minus the value.
    """

    key: str
    index: int | None = None
    is_rest: bool = False


#: Channel -> the value that it multiplies.
DIALS = {
    "lr": Dial("lr"),
    "weight_decay": Dial("weight_decay"),
    "beta1": Dial("betas", 0, is_rest=True),
    "beta2": Dial("betas", 1, is_rest=True),
    "eps": Dial("eps"),
}

#: All keys of a group that a controller may be allowed to multiply.
KEYS = tuple(dict.fromkeys(dial.key for dial in DIALS.values()))

Groups = Sequence[dict[str, Any]]


def group_names(groups: Groups) -> tuple[str, ...]:
    """Returns the `name` of each group, or its index.

    Raises:
        ValueError: two groups have the same name.
    """
    names = tuple(str(group.get("name", index)) for index, group in enumerate(groups))
    if len(set(names)) < len(names):
        raise ValueError(f"names of groups must differ; got {list(names)}")
    return names


def lay_out_panel(
    optimizer: torch.optim.Optimizer, channels: Sequence[tuple[str, str]], keys: Sequence[str]
) -> Panel:
    """Returns the cells of one run: a panel in which every group of the optimizer is one tensor.

    A group with `betas` counts as trained by `adamw`, because it has the same dials. Any other
    group counts as trained by the optimizer's class, as `sgd` or `muon`.

    Args:
        optimizer: the optimizer that trains the run.
        channels: (channel, scope) pairs.
        keys: keys of a group that may be multiplied.

    Raises:
        ValueError: the optimizer has no such channel, scope or key. The message names all three.
    """
    unknown = sorted(set(keys) - set(KEYS))
    if unknown:
        raise ValueError(f"keys must be some of {list(KEYS)}; got {unknown}")
    groups = optimizer.param_groups
    for name, scope in channels:
        _check_channel(name, scope, groups, keys)

    kind = type(optimizer).__name__.lower()
    sites = {
        name: TensorSite(name, "adamw" if "betas" in group else kind)
        for name, group in zip(group_names(groups), groups, strict=True)
    }
    return Panel(channels, sites, 1, "pretraining")


def _check_channel(name: str, scope: str, groups: Groups, keys: Sequence[str]) -> None:
    if name not in DIALS:
        raise ValueError(
            f"the controller sets the channel {name!r}, which an optimizer does not have; expected "
            f"some of {list(DIALS)}{suggestion(name, DIALS)}; train a controller with "
            "channels=[['lr', 'run']], for example"
        )
    if scope not in SCOPES:
        raise ValueError(
            f"the controller sets the channel {name!r} at the scope {scope!r}, but the groups of "
            f"an optimizer are no layers; expected one of {list(SCOPES)}; train a controller with "
            f"channels=[[{name!r}, 'group']], for example"
        )

    key = DIALS[name].key
    if key not in keys:
        raise ValueError(f"keys must have {key!r}, which {name!r} multiplies; got {list(keys)}")
    if not any(key in group for group in groups):
        found = sorted({own for group in groups for own in group} - {"params"})
        raise ValueError(
            f"the controller sets the channel {name!r}, but no group has the key {key!r}; got "
            f"groups with {found}; attach to the optimizer that has it, not to a wrapper"
        )

    tensors = [group[key] for group in groups if isinstance(group.get(key), Tensor)]
    if scope != "run" and len({id(value) for value in tensors}) < len(tensors):
        raise ValueError(
            f"each group must have its own tensor {key!r} at the scope {scope!r}; got one tensor "
            "in several groups; give every group a clone of it"
        )


class Changes:
    """Multiplied values of an optimizer's groups, until they are restored. False if there are none.

    An optimizer that writes one of these values within its step loses what it wrote.
    """

    def __init__(self) -> None:
        self._saved: list[tuple[dict[str, Any], str, Any, Tensor | None]] = []

    def __bool__(self) -> bool:
        return bool(self._saved)

    @torch.no_grad()
    def apply(self, groups: Groups, multipliers: Mapping[str, FloatArray]) -> None:
        """Multiplies the values of the groups.

        Args:
            groups: G groups of an optimizer.
            multipliers: channel -> multiplier of each group, (G,). A group without the channel's
                key stays as it is.
        """
        seen: set[int] = set()  # one tensor may be the value of several groups
        for name, factors in multipliers.items():
            dial = DIALS[name]
            for group, factor in zip(groups, factors.tolist(), strict=True):
                if factor != 1.0 and dial.key in group:
                    self._multiply(group, dial, factor, seen)

    def _multiply(self, group: dict[str, Any], dial: Dial, factor: float, seen: set[int]) -> None:
        whole = group[dial.key]
        value = whole if dial.index is None else whole[dial.index]

        if isinstance(value, Tensor):
            if id(value) not in seen:
                seen.add(id(value))
                self._saved.append((group, dial.key, value, value.clone()))
                if dial.is_rest:
                    value.neg_().add_(1.0).mul_(factor).neg_().add_(1.0).clamp_(min=0.0)
                else:
                    value.mul_(factor)
            return

        self._saved.append((group, dial.key, whole, None))
        new = max(0.0, 1.0 - (1.0 - value) * factor) if dial.is_rest else value * factor
        if dial.index is None:
            group[dial.key] = new
        else:
            parts = list(whole)
            parts[dial.index] = new
            group[dial.key] = type(whole)(parts)

    @torch.no_grad()
    def restore(self) -> None:
        """Gives every value back: the same object, with the same bits."""
        while self._saved:
            group, key, value, copy = self._saved.pop()
            if copy is not None:
                value.copy_(copy)
            else:
                group[key] = value


def current_values(groups: Groups) -> list[dict[str, Any]]:
    """Returns the values of every group as they are now: key -> value. Tensors are copied."""
    return [
        {key: _copy(group[key]) for key in KEYS if key in group and group[key] is not None}
        for group in groups
    ]


def _copy(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    return tuple(map(_copy, value)) if isinstance(value, tuple | list) else value


def as_floats(values: Any) -> Any:
    """Returns values of groups with numbers as Python's floats. It waits for a tensor's device."""
    if isinstance(values, Mapping):
        return {key: as_floats(value) for key, value in values.items()}
    if isinstance(values, tuple | list):
        return [as_floats(value) for value in values]
    return float(values) if isinstance(values, Tensor) or is_number(values) else values
