"""Branches of running episodes: snapshot, restore, fork and counterfactual of an environment.

Each function takes a TrainLoopVectorEnv or a TrainLoopEnv, also one that is wrapped.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from hpenv.arrays import FloatArray
from hpenv.checks import is_count
from hpenv.env import TrainLoopVectorEnv
from hpenv.envs.single import TrainLoopEnv
from hpenv.isolation import with_torch_defaults
from hpenv.plant.protocol import Snapshot, check_tensors
from hpenv.telemetry.episodes import Episodes

Env = gym.Env[Any, Any] | gym.vector.VectorEnv[Any, Any, Any]


def _vector(env: Env) -> TrainLoopVectorEnv:
    inner = env.unwrapped
    vector = inner.vector if isinstance(inner, TrainLoopEnv) else inner
    if not isinstance(vector, TrainLoopVectorEnv):
        raise TypeError(
            "env must be a TrainLoopEnv or a TrainLoopVectorEnv, wrapped or not; "
            f"got a {type(inner).__name__}"
        )
    return vector


@with_torch_defaults
def snapshot(env: Env) -> Snapshot:
    """Returns everything that the next step depends on.

    That is the plant, the reward and autoreset state, and each row's stream of seeds.

    Raises:
        gymnasium.error.ResetNeeded: before the first reset.
    """
    vector = _vector(env)
    vector.episodes.require_reset("save")

    inner = vector.plant.snapshot()
    tensors = {f"plant/{name}": tensor for name, tensor in inner.tensors.items()}
    for name, value in vector.episodes.arrays().items():
        tensors[name] = torch.as_tensor(value.copy())
    metadata = {
        "plant": inner.metadata,
        "env": dict(vector.arguments),
        "rows": vector.episodes.rows(),
    }
    return Snapshot(tensors, metadata)


@with_torch_defaults
def restore(env: Env, snapshot: Snapshot, keep_panel: bool = False) -> NDArray[np.float32]:
    """Continues from a snapshot, bitwise.

    A wrapper that counts decisions, as the TimeLimit of `max_episode_steps`, does not notice. Its
    step() raises TypeError until the wrapped env has been reset once. Call `env.reset()` before
    `restore(env, ...)`.

    Args:
        env: the environment, which takes on the state of the snapshot.
        snapshot: a snapshot of an environment of the same configuration and number of rows.
        keep_panel: True: the panel keeps its present values.

    Returns:
        The observations that the next decision is taken on: (N, F), or (F,) of a TrainLoopEnv.

    Raises:
        TypeError: if `snapshot` is not a Snapshot.
        ValueError: if the snapshot is not of an environment, or is of another configuration or
            number of rows.
    """
    vector = _vector(env)
    _check_metadata(snapshot, vector)

    tensors: dict[str, dict[str, torch.Tensor]] = {"plant": {}, "env": {}}
    for name, tensor in snapshot.tensors.items():
        if name.startswith("plant/"):
            tensors["plant"][name.removeprefix("plant/")] = tensor
        else:
            tensors["env"][name] = tensor
    expected = vector.episodes.arrays()
    check_tensors(tensors["env"], {k: torch.as_tensor(v) for k, v in expected.items()})
    try:
        episodes = Episodes.of(
            {name: tensor.numpy() for name, tensor in tensors["env"].items()},
            snapshot.metadata["rows"],
            vector.seed_mode,
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"rows of the snapshot must hold a stream of seeds and a history each; got {error!r} "
            f"of {snapshot.metadata['rows']!r:.200}; restore another snapshot"
        ) from error

    vector.plant.restore(Snapshot(tensors["plant"], snapshot.metadata["plant"]), keep_panel)
    vector.episodes = episodes
    observations = episodes.observations.copy()
    return observations[0] if isinstance(env.unwrapped, TrainLoopEnv) else observations


def _check_metadata(snapshot: Snapshot, vector: TrainLoopVectorEnv) -> None:
    """Checks that a snapshot is of an environment of the same arguments and number of rows."""
    if not isinstance(snapshot, Snapshot):
        raise TypeError(
            f"snapshot must be a Snapshot, as snapshot(env) returns it; got a "
            f"{type(snapshot).__name__}; read one on disk with hpenv.plant.snapshots.load(path)"
        )
    if not all(isinstance(snapshot.metadata.get(part), dict) for part in ("env", "plant")):
        raise ValueError(
            "snapshot must be an environment snapshot; got one whose metadata has the keys "
            f"{sorted(snapshot.metadata)}"
        )

    ours, theirs = vector.arguments, snapshot.metadata["env"]
    different = {
        key: (theirs.get(key), ours.get(key))
        for key in ours | theirs
        if theirs.get(key) != ours.get(key)
    }
    if different:
        raise ValueError(
            "snapshot must be of an environment with these settings; got other ones, as "
            f"(snapshot, here): {different}"
        )

    rows = snapshot.metadata.get("rows")
    if not (isinstance(rows, list) and len(rows) == vector.num_envs):
        found = f"{len(rows)} rows" if isinstance(rows, list) else f"{rows!r:.200}"
        raise ValueError(
            f"snapshot must have the {vector.num_envs} rows of this environment; got {found}"
        )


def copy_rows(snapshot: Snapshot, row: int, k: int) -> Snapshot:
    """Returns the snapshot of an environment of k rows, each a copy of one row of another snapshot.

    Args:
        snapshot: a snapshot of an environment, which does not change.
        row: index of the row.
        k: number of copies.
    """
    index = torch.full((k,), row)
    tensors = {name: tensor[index.to(tensor.device)] for name, tensor in snapshot.tensors.items()}
    rows = [snapshot.metadata["rows"][row]] * k
    return Snapshot(tensors, snapshot.metadata | {"rows": rows})


@with_torch_defaults
def fork(env: Env, k: int, row: int = 0) -> TrainLoopVectorEnv:
    """Returns a new vector env of k rows, each a copy of one row where it stands.

    The given env does not change.

    Raises:
        ValueError: for k < 1 or a row that does not exist.
    """
    vector = _vector(env)
    mode, render_mode = vector.autoreset_mode, vector.render_mode
    return _copy_row(vector, k, row, mode, render_mode, vector.evaluate_at_end)


def _copy_row(
    vector: TrainLoopVectorEnv,
    k: int,
    row: int,
    mode: AutoresetMode,
    render_mode: str | None,
    evaluate_at_end: bool,
) -> TrainLoopVectorEnv:
    if not (is_count(k) and is_count(row, least=0) and row < vector.num_envs):
        raise ValueError(
            "k must be a whole number of at least 1, and row one from 0 to "
            f"{vector.num_envs - 1}; got k={k!r} and row={row!r}"
        )

    copies = TrainLoopVectorEnv(
        vector.plant.spawn(k),
        **vector.arguments,
        autoreset_mode=mode,
        render_mode=render_mode,
        evaluate_at_end=evaluate_at_end,
    )
    copies.plant.set_measured_groups(vector.plant.measured_groups)
    restore(copies, copy_rows(snapshot(vector), row, k))
    return copies


@with_torch_defaults
def counterfactual(
    env: Env,
    actions: NDArray[np.floating],
    num_decisions: int,
    row: int = 0,
    hold: bool = False,
) -> FloatArray:
    """Estimates the reward of k candidate actions by playing each on a copy of the run.

    The run itself does not advance. The copies train on the same batches, so that their rewards
    differ by the actions alone. Each copy rebuilds the plant, so this costs far more than a step.
    At one step per decision a training loss responds to an update one decision later. With
    `loss_change`, 2 decisions are therefore the fewest that see the effect on the weights.

    Args:
        env: the environment.
        actions: one candidate per copy, (k, A) floating point, clipped to [-1, 1].
        num_decisions: number of decisions to play. A copy that ends earlier earns nothing more.
        row: index of the run.
        hold: True: play the candidate at every decision. False: play it at the first decision
            alone. Then the cells return to where they are now, or, if actions are moves, stay where
            the candidate has put them.

    Returns:
        Sums of the rewards, (k,).

    Raises:
        ValueError: for actions of the wrong shape or dtype or with NaN, num_decisions < 1 or a row
            that does not exist.
        gymnasium.error.ResetNeeded: before the first reset, or if the run has ended.
    """
    vector = _vector(env)
    array = np.asarray(actions)
    fits = array.ndim == 2 and array.shape[1] == len(vector.action_names) and len(array) > 0
    if not (fits and is_count(num_decisions)):
        raise ValueError(
            f"actions must be of shape (k, {len(vector.action_names)}) with k >= 1, and "
            f"num_decisions a whole number >= 1; got shape {array.shape} and {num_decisions!r}"
        )
    exists = is_count(row, least=0) and row < vector.num_envs
    if not vector.episodes.begun or (exists and vector.episodes.ended[row]):
        raise gym.error.ResetNeeded(f"run {row} has not begun, or has ended; call reset() first")

    copies = _copy_row(vector, len(array), row, AutoresetMode.DISABLED, None, False)
    after = array
    if not hold:
        positions = vector.plant.panel.positions[row]
        after = np.zeros(array.shape)
        if not vector.moves:
            after[:, : len(positions)] = positions

    total = copies.step(array)[1]
    for _ in range(num_decisions - 1):
        if copies.episodes.ended.all():
            break
        total += copies.step(after)[1]
    return total
