"""Recording of a controller: in an environment, or from the history of an attachment."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hpenv.arrays import Float32Array, FloatArray
from hpenv.control.channels import CHANNELS
from hpenv.control.moves import check_mapping, largest_moves, move_positions
from hpenv.deploy.attachment import Attachment
from hpenv.policies.controller import Columns, Controller, begin
from hpenv.traces.trace import Trace


def trace_of(attachment: Attachment) -> Trace:
    """Returns the trace of an attachment. Decisions that were not made count as position 0.

    Raises:
        ValueError: there was no decision yet.
    """
    contract, history = attachment.contract, attachment.history
    if not history:
        raise ValueError("attachment must have made a decision; got an empty history")

    columns = contract.columns()
    positions = np.zeros((columns.num_decisions, len(columns.action_names)))
    factors = {
        f"{channel}/{group}": [1.0] * columns.num_decisions
        for channel in history[0].multipliers
        for group in contract.panel.groups
    }
    for decision in history:
        k = decision.step // contract.every
        positions[k] = decision.positions
        for channel, values in decision.multipliers.items():
            for group, value in zip(contract.panel.groups, values, strict=True):
                factors[f"{channel}/{group}"][k] = value
    return Trace(
        cells=columns.action_names,
        channels=tuple(contract.panel.banks),
        interval=contract.every,
        num_steps=contract.total_steps,
        positions=positions,
        multipliers=factors,
    )


class Recording:
    """A controller that acts as another one, and keeps its actions.

    It does not teach a controller that learns. The actions of a controller whose spec has the
    mapping `move` are added up to positions, from neutral.

    Args:
        controller: the controller to record.
    """

    def __init__(self, controller: Controller) -> None:
        self._controller, self.spec = controller, controller.spec
        self._columns: Columns | None = None
        self._actions: list[Float32Array] = []

    def reset(self, columns: Columns) -> None:
        """Begins a new record."""
        self._columns, self._actions = columns, []
        begin(self._controller, columns)

    def act(self, observations: np.ndarray) -> Float32Array:
        """Returns the actions of the controller, (N, A) float32."""
        actions = np.asarray(self._controller.act(observations), dtype=np.float32)
        self._actions.append(actions.copy())
        return actions

    def trace(self, num_steps: int, interval: int, run: int = 0) -> Trace:
        """Returns the trace of one of the runs. Decisions that were not made count as position 0.

        Args:
            num_steps: steps of a run [steps].
            interval: steps per decision [steps].
            run: index of the run.

        Raises:
            ValueError: there was no decision since the last `reset`, or more than a run has.
        """
        if self._columns is None or not self._actions:
            raise ValueError("Recording must have acted since reset(); got no decision")
        K, cells = -(-num_steps // interval), self._columns.action_names
        if len(self._actions) > K:
            raise ValueError(
                f"a run of {num_steps} steps has {K} decisions; got {len(self._actions)}; "
                "reset() the recording before each run"
            )
        positions = np.zeros((K, len(cells)))
        actions = np.array([batch[run] for batch in self._actions], dtype=np.float64)
        positions[: len(actions)] = self._positions(actions, cells)

        factors = {}
        for name, column in zip(cells, positions.T, strict=True):
            channel = CHANNELS.get(name.split("/", 1)[0])
            if channel is not None and channel.kind in ("scale", "shrink"):
                factors[name] = channel.values(column).tolist()
        pairs = self.spec.channels
        known = (
            pairs
            if isinstance(pairs, list | tuple) and not any(isinstance(pair, str) for pair in pairs)
            else ()
        )
        channels = tuple((str(name), str(scope)) for name, scope in known)
        return Trace(cells, channels, interval, num_steps, positions, factors)

    def _positions(self, actions: FloatArray, cells: Sequence[str]) -> FloatArray:
        """Returns the positions of a run after its actions, (K, A) both. Registers do not move."""
        if self.spec.mapping != "move":
            return np.clip(actions, -1.0, 1.0)
        channels = [name.split("/", 1)[0] for name in cells]
        largest = largest_moves(channels, check_mapping("move", self.spec.max_moves))
        is_cell = np.array([name in CHANNELS for name in channels])
        one_sided = [name in CHANNELS and CHANNELS[name].one_sided for name in channels]

        positions, own = [], np.zeros((1, len(cells)))
        for action in actions:
            moved = move_positions(own, action[None], largest, np.array(one_sided))
            own = np.where(is_cell, moved, np.clip(action, -1.0, 1.0))
            positions.append(own[0])
        return np.array(positions)
