"""The controller interface: what it asks of an environment, and how it acts on the runs there.

Networks, tables, control laws, models of stable-baselines3 and learners are all controllers. The
programs that train, score and deploy a controller need nothing else of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from hpenv.arrays import BoolArray, FloatArray

#: Fields of a spec that are arguments of an environment.
ARGUMENTS = (
    "channels",
    "observation",
    "interval",
    "num_registers",
    "mapping",
    "max_moves",
    "estimators",
)

#: Field of a spec that older files do not have -> its value there.
LATER_FIELDS: dict[str, Any] = {"mapping": "position", "max_moves": None, "estimators": None}


@dataclass(frozen=True)
class ControllerSpec:
    """Demands of a controller on its environment. An empty field accepts what the id has.

    Attributes:
        channels: the id's argument `channels`: a channel set, names or (name, scope) pairs.
        observation: the id's argument `observation`: a name or a list of features.
        interval: steps per decision [steps].
        num_registers: the id's argument `num_registers`.
        observation_names: columns of the observation, (F,). Empty: any.
        action_names: cells of the action, (A,). Empty: any.
        mapping: the id's argument `mapping`: `position` or `move`.
        max_moves: the id's argument `max_moves`: channel -> largest changes of its position.
        estimators: the id's argument `estimators`: a name, or constants of the trends.
    """

    channels: str | Sequence[str | Sequence[str]] | Mapping[str, str] | None = None
    observation: str | Sequence[str] | None = None
    interval: int | None = None
    num_registers: int | None = None
    observation_names: Sequence[str] = ()
    action_names: Sequence[str] = ()
    mapping: str | None = None
    max_moves: Mapping[str, Sequence[float]] | None = None
    estimators: str | Mapping[str, Any] | None = None

    def arguments(self) -> dict[str, Any]:
        """Returns the keyword arguments of an environment that the controller asks for."""
        values = {name: getattr(self, name) for name in ARGUMENTS}
        return {name: value for name, value in values.items() if value is not None}

    def check(self, columns: Columns) -> None:
        """Checks that an environment has the controller's columns.

        Raises:
            ValueError: naming both.
        """
        for key in ("observation_names", "action_names"):
            own, given = list(getattr(self, key)), list(getattr(columns, key))
            if own and own != given:
                raise ValueError(
                    f"the controller was made for the {key} {own}; the environment has {given}; "
                    "give it the arguments of the controller's training"
                )

    def values(self) -> dict[str, Any]:
        """Returns the fields in JSON's types: tuples become lists."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Self:
        """Returns the spec with these `values`.

        Specs that were saved before a field of LATER_FIELDS was added do not have it. It then has
        the value that all environments had at the time.

        Raises:
            ValueError: a field is missing or unknown.
        """
        whole = LATER_FIELDS | dict(values)
        if set(whole) != set(cls.__dataclass_fields__):
            raise ValueError(
                f"a spec must have the fields {list(cls.__dataclass_fields__)}; got {list(values)}"
            )
        return cls(**whole)


class Columns(NamedTuple):
    """The runs that a controller is about to control, and the columns of its arrays.

    Attributes:
        num_runs: N.
        num_decisions: decisions of a run.
        observation_names: columns of an observation, (F,).
        action_names: cells, (A,).
        action_kinds: kind of each cell, as `hpenv.control.channels.Channel.kind`, (A,).
        action_immediate: True for cells that change the loss of a decision's first step, (A,).
    """

    num_runs: int
    num_decisions: int
    observation_names: tuple[str, ...]
    action_names: tuple[str, ...]
    action_kinds: tuple[str, ...]
    action_immediate: tuple[bool, ...]


@runtime_checkable
class Controller(Protocol):
    """A controller of N runs.

    A controller may have further methods. `reset(columns)` is called before the first decision of
    new runs. `learn(rewards, alive)` is called after each decision with the rewards (N,) of its
    window, and True for the runs that took it, (N,), and with the measurements that its
    attribute `reads` names, if it has one. `state()` returns all that changes within a
    run, as named arrays, and `set_state(arrays)` continues from them. `hpenv.deploy` saves them.
    """

    @property
    def spec(self) -> ControllerSpec:
        """Demands of the controller on its environment."""

    def act(self, observations: np.ndarray) -> NDArray[np.float32]:
        """Returns positions in [-1, 1], (N, A) float32, at observations (N, F)."""


def check_controller(controller: object) -> None:
    """Checks that an object is a controller.

    Raises:
        ValueError: naming the members that a controller has.
    """
    if not isinstance(controller, Controller) or not isinstance(controller.spec, ControllerSpec):
        raise ValueError(
            "a controller must have `spec`, a hpenv.policies.ControllerSpec, and "
            "`act(observations)`, (N, F) -> positions (N, A) in [-1, 1]; "
            f"got {_described(controller)}"
        )


def _described(controller: object) -> str:
    """Returns the class of an object, and for a class how to make an instance."""
    if isinstance(controller, type):
        name = controller.__name__
        return f"the class {name}, which is no instance; give {name}()"
    return type(controller).__name__


def begin(controller: object, columns: Columns) -> None:
    """Tells a controller that new runs begin, if it wants to know."""
    reset = getattr(controller, "reset", None)
    if reset is not None:
        reset(columns)


def state_of(controller: object) -> dict[str, np.ndarray]:
    """Returns copies of the arrays that change within a run. Empty for a controller without any."""
    state = getattr(controller, "state", None)
    return {} if state is None else {name: np.array(value) for name, value in state().items()}


def restore_state(controller: object, arrays: Mapping[str, np.ndarray]) -> None:
    """Sets the arrays that `state_of` returned.

    Raises:
        ValueError: the controller has no `set_state`, and there are arrays.
    """
    set_state = getattr(controller, "set_state", None)
    if set_state is not None:
        set_state(dict(arrays))
    elif arrays:
        raise ValueError(
            f"the controller must have `set_state(arrays)` to continue from {sorted(arrays)}; "
            f"got {type(controller).__name__}, which has none"
        )


def reads_of(controller: object) -> tuple[str, ...]:
    """Returns the per-cell measurements that a controller learns from, its attribute `reads`."""
    return tuple(getattr(controller, "reads", ()))


def teach(
    controller: object,
    rewards: FloatArray,
    alive: BoolArray,
    measured: Mapping[str, FloatArray] | None = None,
) -> dict[str, float]:
    """Gives a controller the rewards of its last decision, if it learns. Returns its metrics.

    A controller with `reads` also gets the measurements that it names, (N, A) each.

    Raises:
        ValueError: the controller reads measurements that are not given.
    """
    learn = getattr(controller, "learn", None)
    if learn is None:
        return {}
    missing = sorted(set(reads_of(controller)) - set(measured or {}))
    if missing:
        raise ValueError(f"measured must have what the controller reads; got nothing of {missing}")
    more = (measured,) if reads_of(controller) else ()
    return learn(rewards, alive, *more) or {}
