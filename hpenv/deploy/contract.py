"""The agreement of a controller and an optimizer: cells, observation, and steps per decision.

Everything that a controller asks for and an optimizer does not have is refused by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hpenv.arrays import FloatArray
from hpenv.checks import check_count, is_count
from hpenv.control.moves import check_mapping, largest_moves
from hpenv.control.panel import Panel
from hpenv.deploy.groups import KEYS, lay_out_panel
from hpenv.deploy.meter import MEASUREMENTS
from hpenv.policies.controller import Columns, Controller, ControllerSpec, check_controller
from hpenv.telemetry.estimators import Estimation, estimation_of
from hpenv.telemetry.features import FEATURES, check_features
from hpenv.telemetry.observation import Observation
from hpenv.telemetry.reading import Layout

Pairs = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Contract:
    """Agreement of a controller and an optimizer.

    Attributes:
        panel: cells of the run, in which each group of the optimizer is one tensor.
        features: observed features.
        layout: names of the observation's columns.
        every: steps per decision [steps].
        total_steps: steps of the run [steps].
        wanted: names of the measurements that the features read.
        moves: largest moves down and up of each cell, (2, A), if an action is a move. None: an
            action is a position.
        estimation: constants of the estimators.
    """

    panel: Panel
    features: tuple[str, ...]
    layout: Layout
    every: int
    total_steps: int
    wanted: frozenset[str]
    moves: FloatArray | None
    estimation: Estimation

    def columns(self) -> Columns:
        """Returns the columns of the controller's arrays."""
        panel = self.panel
        return Columns(
            num_runs=1,
            num_decisions=-(-self.total_steps // self.every),
            observation_names=Observation(self.features, self.layout).names,
            action_names=panel.names,
            action_kinds=panel.kinds,
            action_immediate=panel.immediate,
        )


def agree(
    optimizer: torch.optim.Optimizer,
    controller: Controller,
    total_steps: int,
    every: int | None = None,
    channels: Pairs | None = None,
    observation: Sequence[str] | None = None,
    keys: Sequence[str] = KEYS,
    probes: bool = False,
) -> Contract:
    """Returns the agreement of a controller and an optimizer.

    Args:
        optimizer: the optimizer itself, not a wrapper.
        controller: spec and `act`.
        total_steps: steps of the run [steps].
        every: steps per decision [steps]. None: those of the spec.
        channels: (channel, scope) pairs, if the spec has none. None: `lr` at `run`.
        observation: features, if the spec has none. None: `progress`.
        keys: keys of a group that may be multiplied.
        probes: True if the probe loss can be measured.

    Raises:
        ValueError: the optimizer is a wrapper, or has not what the controller asks for.
    """
    check_controller(controller)
    check_optimizer(optimizer)
    spec = controller.spec
    check_count("total_steps", total_steps)
    pairs = _channels(spec, channels)
    features = _features(spec, observation, probes)
    steps = spec.interval if every is None else every
    if steps is None:
        raise ValueError(
            "every must be given, as every=10, or the controller's spec must have an interval; "
            "got None"
        )
    if not is_count(steps) or steps > total_steps:
        raise ValueError(
            f"every must be a whole number of steps per decision, from 1 to "
            f"total_steps={total_steps}; got {steps!r}"
        )
    if spec.num_registers:
        raise ValueError(
            f"num_registers of the controller must be 0 outside of hpenv; got {spec.num_registers};"
            " train a controller without registers"
        )

    panel = lay_out_panel(optimizer, pairs, keys)
    layout = Layout(panel.names, panel.kinds, 0, 0, panel.groups)
    wanted = frozenset(name for feature in features for name in FEATURES[feature].reads)
    mapping = "position" if spec.mapping is None else spec.mapping
    largest = largest_moves(panel.channel_names, check_mapping(mapping, spec.max_moves))
    contract = Contract(
        panel,
        features,
        layout,
        int(steps),
        int(total_steps),
        wanted,
        largest if mapping == "move" else None,
        estimation_of("stepwise" if spec.estimators is None else spec.estimators),
    )

    columns = contract.columns()
    try:
        spec.check(columns)
    except ValueError as error:
        raise ValueError(
            f"{error}; the groups of the optimizer are named by group['name'], or else by their "
            "index"
        ) from error
    size = getattr(controller, "action_size", None)
    if size is not None and size != len(columns.action_names):
        raise ValueError(
            f"the controller sets {size} cells; the optimizer has {len(columns.action_names)}: "
            f"{list(columns.action_names)}; give the channels of its training as `channels`"
        )
    return contract


def check_optimizer(optimizer: object) -> None:
    """Checks that an object is an optimizer of torch, and no wrapper around one.

    Raises:
        ValueError: naming the attribute that holds the optimizer.
    """
    kind = type(optimizer).__name__
    for name in ("optimizer", "optimizers"):
        if isinstance(inner := getattr(optimizer, name, None), torch.optim.Optimizer | list):
            place = name if isinstance(inner, torch.optim.Optimizer) else f"{name}[i]"
            raise ValueError(
                f"optimizer must be the one that takes the steps; got {kind}, a wrapper; attach to "
                f"its .{place}"
            )
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ValueError(f"optimizer must be a torch.optim.Optimizer; got {kind}")


def _channels(spec: ControllerSpec, given: Pairs | None) -> list[tuple[str, str]]:
    """Returns the (channel, scope) pairs of a spec, or else those that are given."""
    found = spec.channels
    if found is not None and given is not None:
        raise ValueError(
            f"channels must not be given: the controller asks for {found!r}; got {list(given)}"
        )
    if found is None:
        found = [("lr", "run")] if given is None else given
    entries = list(found.items()) if isinstance(found, dict) else found
    if isinstance(entries, str) or not all(
        isinstance(pair, Sequence) and not isinstance(pair, str) and len(pair) == 2
        for pair in entries
    ):
        raise ValueError(
            "channels of a controller must be (name, scope) pairs outside of hpenv, as "
            f"[['lr', 'group']], because names alone depend on the id; got {found!r}"
        )
    return [(str(name), str(scope)) for name, scope in entries]


def _features(spec: ControllerSpec, given: Sequence[str] | None, probes: bool) -> tuple[str, ...]:
    """Returns the features of a spec, or else those that are given."""
    found = spec.observation
    if found is not None and given is not None:
        raise ValueError(
            f"observation must not be given: the controller asks for {found!r}; got {list(given)}"
        )
    if found is None:
        found = ["progress"] if given is None else given
    if isinstance(found, str):
        raise ValueError(
            "observation of a controller must be a list of features outside of hpenv, as "
            f"['progress'], because a name alone depends on the id; got {found!r}"
        )

    if "registers" in found:
        raise ValueError("observation must not have 'registers' outside of hpenv")

    measurements = [own for own in MEASUREMENTS if probes or own.group != "probe"]
    features = {name: own for name, own in FEATURES.items() if name != "registers"}
    try:
        check_features(found, measurements, features)
    except ValueError as error:
        cure = "" if probes else "; features of the probe loss need the argument `probe`"
        raise ValueError(f"the controller cannot observe this optimizer: {error}{cure}") from error
    return tuple(found)
