"""Values of an optimizer's groups: those that a controller multiplies during a step.

A value is a float, or a live tensor that a captured graph or a compiled step reads. A float is
replaced, a tensor is multiplied in place. A multiplier of exactly 1 writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

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
        of: number that the channel multiplies: the value v, its `rest` 1 - v, or its `odds`
            v / (1 - v).
    """

    key: str
    index: int | None = None
    of: Literal["value", "rest", "odds"] = "value"


#: Channel -> the values that it may multiply. In a group it is the first one whose key is there.
#: Channels of the same value are applied in this order, as in `hpenv.optim`.
DIALS: dict[str, tuple[Dial, ...]] = {
    "lr": (Dial("lr"),),
    "weight_decay": (Dial("weight_decay"),),
    "beta1": (Dial("betas", 0, "rest"),),
    "beta2": (Dial("betas", 1, "rest"),),
    "eps": (Dial("eps"),),
    "momentum": (Dial("momentum", None, "odds"), Dial("betas", 0, "odds")),
}

#: All keys of a group that a controller may be allowed to multiply.
KEYS = tuple(dict.fromkeys(dial.key for dials in DIALS.values() for dial in dials))

Groups = Sequence[dict[str, Any]]


def dial_of(name: str, group: Mapping[str, Any]) -> Dial | None:
    """Returns the place of a channel's value in a group. None: the group has no such value."""
    return next((dial for dial in DIALS[name] if dial.key in group), None)


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
            f"some of {list(DIALS)}{suggestion(name, DIALS)}; use a controller of these alone, as "
            "with channels=[['lr', 'run']] or noise=None"
        )
    if scope not in SCOPES:
        raise ValueError(
            f"the controller sets the channel {name!r} at the scope {scope!r}, but the groups of "
            f"an optimizer are no layers; expected one of {list(SCOPES)}; train a controller with "
            f"channels=[[{name!r}, 'group']], for example"
        )

    places = [(group, dial) for group in groups if (dial := dial_of(name, group)) is not None]
    for key in (dial.key for _, dial in places):
        if key not in keys:
            raise ValueError(f"keys must have {key!r}, which {name!r} multiplies; got {list(keys)}")
    if not places:
        found = sorted({own for group in groups for own in group} - {"params"})
        accepted = " or ".join(repr(dial.key) for dial in DIALS[name])
        raise ValueError(
            f"the controller sets the channel {name!r}, but no group has the key {accepted}; got "
            f"groups with {found}; attach to the optimizer that has it, not to a wrapper"
        )
    if name == "momentum":
        _check_momentum(places)

    values = [_value(group, dial) for group, dial in places]
    tensors = [value for value in values if isinstance(value, Tensor)]
    if scope != "run" and len({id(value) for value in tensors}) < len(tensors):
        raise ValueError(
            f"each group must have its own tensor {places[0][1].key!r} at the scope {scope!r}; got "
            "one tensor in several groups; give every group a clone of it"
        )


def _check_momentum(places: Sequence[tuple[dict[str, Any], Dial]]) -> None:
    """Checks that the odds of the momentum can be multiplied.

    Raises:
        ValueError: all momenta are 0, or an optimizer computes its weights from the momentum.
    """
    if any("train_mode" in group for group, _ in places):
        raise ValueError(
            "the controller sets the channel 'momentum', but a schedule-free optimizer computes "
            "its weights from a momentum that stays the same; attach to another optimizer"
        )
    if not any(float(_value(group, dial)) > 0.0 for group, dial in places):
        raise ValueError(
            "the controller sets the channel 'momentum', but the momentum of all groups is 0, "
            "whose odds stay 0; give the optimizer a momentum, such as 0.9"
        )


def _value(group: Mapping[str, Any], dial: Dial) -> Any:
    whole = group[dial.key]
    return whole if dial.index is None else whole[dial.index]


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
        for name in DIALS:
            if name not in multipliers:
                continue
            seen: set[int] = set()  # one tensor may be the value of several groups
            for group, factor in zip(groups, multipliers[name].tolist(), strict=True):
                dial = dial_of(name, group)
                if factor != 1.0 and dial is not None:
                    self._multiply(group, dial, factor, seen)

    def _multiply(self, group: dict[str, Any], dial: Dial, factor: float, seen: set[int]) -> None:
        whole, value = group[dial.key], _value(group, dial)
        if isinstance(value, Tensor):
            if id(value) not in seen:
                seen.add(id(value))
                self._saved.append((group, dial.key, value, value.clone()))
                value.copy_(_multiplied(value, dial, factor))
            return

        self._saved.append((group, dial.key, whole, None))
        new = _multiplied(value, dial, factor)
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


def _multiplied(value: Any, dial: Dial, factor: float) -> Any:
    """Returns a value, a number or a tensor, whose number `dial.of` is multiplied."""
    if dial.of == "rest":
        rest = 1.0 - (1.0 - value) * factor
        return rest.clamp(min=0.0) if isinstance(rest, Tensor) else max(0.0, rest)
    if dial.of == "odds":
        return value * factor / (1.0 + value * (factor - 1.0))
    return value * factor


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
