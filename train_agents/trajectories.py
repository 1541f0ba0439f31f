"""Finds better past actions of a run: the second pass of the non-causal optimizer of schedules.

The first pass records a run. The second pass looks at all of it. It goes through the windows of
decisions from the first to the last, once per sweep. At a window it forks the run where it stood,
tries some changes of the positions, plays every copy to the end of the run, and keeps the change
with the lowest final loss, if that is lower than the best so far. So the loss never rises, and no
horizon is too short: a change is judged by the run's end. All copies see the batches that the run
saw. A change lasts from the window to the end, which mends a rate that is wrong everywhere, or
stands in the window alone. Lasting changes by themselves get stuck: a better window may need the
opposite change after it.

The cost is counted in run equivalents: decisions that were played over those of a run. A sweep of K
changes at W windows costs at most K (W + 1) / 2 of them.

References:
    "AdaptiveRL: a control-theoretic scheduler for alpha, mu, sigma", section 9: two-pass smoothing,
    or hypergradients, of past schedules. A hypergradient of the final loss would need the second
    derivatives of every step of the run. The search needs the environment alone, so that it holds
    for every channel, and its prefixes are shared.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from hpenv.arrays import BoolArray, FloatArray
from hpenv.control.channel import DEAD_ZONE
from hpenv.control.moves import largest_moves, move_positions
from hpenv.env import TrainLoopVectorEnv


@dataclass(frozen=True)
class Dials:
    """The mapping between positions and actions of an environment.

    Attributes:
        moves: True if an action is a change of the positions.
        largest: largest moves down and up, (2, A).
        one_sided: True for cells of one-sided channels, (A,).
    """

    moves: bool
    largest: FloatArray
    one_sided: BoolArray

    @staticmethod
    def of(env: TrainLoopVectorEnv) -> Dials:
        """Returns the mapping of an environment."""
        panel = env.plant.panel
        largest = largest_moves(panel.channel_names, env.arguments["max_moves"])
        return Dials(env.moves, largest, panel.one_sided)

    def actions(self, positions: FloatArray, wanted: FloatArray) -> FloatArray:
        """Returns the actions that lead from positions (N, A) towards the wanted ones, (N, A)."""
        if not self.moves:
            return np.clip(wanted, -1.0, 1.0)
        lowest = np.where(self.one_sided, DEAD_ZONE, -1.0)
        gap = np.clip(wanted, lowest, 1.0) - np.maximum(positions, lowest)
        limit = np.maximum(np.where(gap < 0, self.largest[0], self.largest[1]), 1e-12)
        held = (wanted == positions) | (self.largest.max(axis=0) == 0)
        return np.where(held, 0.0, np.clip(gap / limit, -1.0, 1.0))

    def follow(self, wanted: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Returns the positions and actions of runs that go after wanted positions from neutral.

        Args:
            wanted: positions after every decision, (D, N, A).

        Returns:
            Positions after every decision, within the largest moves, and actions, (D, N, A) each.
        """
        positions, reached, actions = np.zeros(wanted.shape[1:]), [], []
        for each in wanted:
            action = self.actions(positions, each).astype(np.float32).astype(np.float64)
            positions = (
                move_positions(positions, action, self.largest, self.one_sided)
                if self.moves
                else action
            )
            reached.append(positions)
            actions.append(action)
        return np.stack(reached), np.stack(actions)


class Sweep(NamedTuple):
    """One pass over all windows.

    Attributes:
        changes: changes of a position that are tried at every window.
        lasting: True if a change lasts to the end of the run, False if it stands in its window.
    """

    changes: tuple[float, ...]
    lasting: bool = True


class Playing(NamedTuple):
    """Runs that were played to their end.

    Attributes:
        losses: final losses, (K,), infinite for a run that diverged.
        states: row -> the states of its run before each later window.
    """

    losses: FloatArray
    states: Callable[[int], tuple[Any, ...]]


class Runs(Protocol):
    """A training run that can be played again from any of its windows."""

    @property
    def windows(self) -> Sequence[slice]:
        """Decisions of every window. Together they are all decisions of a run."""

    def begin(self) -> Any:
        """Returns the state before the first decision."""

    def play(self, state: Any, window: int, actions: FloatArray) -> Playing:
        """Plays K copies of a run from a state to the end.

        Args:
            state: state before a window.
            window: number of that window.
            actions: actions of all decisions from there on, (K, decisions, A).
        """


class Best(NamedTuple):
    """The best trajectory so far.

    Attributes:
        positions: after every decision, (D, A).
        actions: (D, A).
        loss: final loss.
        states: state before each window.
    """

    positions: FloatArray
    actions: FloatArray
    loss: float
    states: tuple[Any, ...]


class Improvement(NamedTuple):
    """A trajectory, and how it came from the one that the search began with.

    Attributes:
        positions: after every decision, (D, A).
        actions: (D, A).
        loss: final loss.
        first_loss: final loss of the first pass.
        first_actions: actions of the first pass, (D, A).
        num_runs: cost of the search and of the first pass [runs].
        changes: (sweep, window, loss) of every change that was kept.
    """

    positions: FloatArray
    actions: FloatArray
    loss: float
    first_loss: float
    first_actions: FloatArray
    num_runs: float
    changes: tuple[tuple[int, int, float], ...]


def split_decisions(num_decisions: int, num_windows: int) -> list[slice]:
    """Returns windows of nearly equal length, in order.

    Raises:
        ValueError: there are fewer decisions than windows.
    """
    if not 1 <= num_windows <= num_decisions:
        raise ValueError(
            f"num_windows must be from 1 to the {num_decisions} decisions; got {num_windows}"
        )
    ends = np.linspace(0, num_decisions, num_windows + 1).round().astype(int).tolist()
    return [slice(first, last) for first, last in itertools.pairwise(ends)]


def candidates(
    positions: FloatArray, window: slice, sweep: Sweep, columns: Sequence[int]
) -> FloatArray:
    """Returns the trajectories that are tried at a window, (K, D, A).

    Each adds a change to the position of one cell. K is the number of changes times that of
    columns.
    """
    span = slice(window.start, len(positions) if sweep.lasting else window.stop)
    tried = []
    for column in columns:
        for change in sweep.changes:
            each = positions.copy()
            each[span, column] = np.clip(each[span, column] + change, -1.0, 1.0)
            tried.append(each)
    return np.stack(tried)


def improve(
    runs: Runs,
    dials: Dials,
    first: FloatArray,
    sweeps: Sequence[Sweep],
    columns: Sequence[int],
    on_progress: Callable[[float], object] | None = None,
) -> Improvement:
    """Improves the past positions of a run. See the module.

    Args:
        runs: the run.
        dials: the mapping between positions and actions.
        first: wanted positions of the first pass, (D, A).
        sweeps: passes over the windows, in order.
        columns: cells that are changed.
        on_progress: called after each play with its cost [runs].
    """
    count, cost = len(first), 0.0

    def play(state: Any, window: int, actions: FloatArray) -> Playing:
        nonlocal cost
        played = runs.play(state, window, actions)
        spent = actions.shape[0] * actions.shape[1] / count
        cost += spent
        if on_progress is not None:
            on_progress(spent)
        return played

    reached, actions = dials.follow(first[:, None])
    begun = runs.begin()
    played = play(begun, 0, actions.swapaxes(0, 1))
    first_loss = float(played.losses[0])
    first_actions = actions[:, 0]
    best = Best(reached[:, 0], first_actions, first_loss, (begun, *played.states(0)))

    kept = []
    for order, sweep in enumerate(sweeps):
        for number, window in enumerate(runs.windows):
            wanted = candidates(best.positions, window, sweep, columns)
            reached, actions = dials.follow(wanted.swapaxes(0, 1))  # (D, K, A)
            differs = (actions != best.actions[:, None]).any(axis=(0, 2))
            reached, actions = reached[:, differs], actions[:, differs]
            if not differs.any():
                continue
            played = play(best.states[number], number, actions[window.start :].swapaxes(0, 1))
            row = int(np.argmin(played.losses))
            if played.losses[row] < best.loss:
                states = (*best.states[: number + 1], *played.states(row))
                loss = float(played.losses[row])
                best = Best(reached[:, row], actions[:, row], loss, states)
                kept.append((order, number, loss))
    return Improvement(
        best.positions, best.actions, best.loss, first_loss, first_actions, cost, tuple(kept)
    )


def expected_cost(num_windows: int, sweeps: Sequence[Sweep], num_columns: int) -> float:
    """Returns the largest cost of a search with windows of equal length, and its first pass [runs].

    1 + sum over sweeps of K (W + 1) / 2, K the changes of all columns.
    """
    return 1.0 + sum(len(each.changes) * num_columns * (num_windows + 1) / 2.0 for each in sweeps)
