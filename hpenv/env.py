"""The environment: an action sets the panel, the plant trains, features and terms are computed.

`TrainLoopVectorEnv` holds the dynamics: N runs are stepped together, and each run is one episode.
`TrainLoopEnv` is the same environment with N = 1 and numpy scalars in its info. Both classes stand
in one module, past its usual length, because the second only forwards to the first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from hpenv.arrays import BoolArray, FloatArray, IntArray
from hpenv.checks import as_python, check_count
from hpenv.infos import Info, columns, mask_rows, only_row, overwrite_rows, row_value, with_masks
from hpenv.isolation import with_torch_defaults
from hpenv.plant.measurements import Window
from hpenv.plant.protocol import Plant, Snapshot, check_tensors
from hpenv.plant.seeds import SeedStreams
from hpenv.render import RENDER_FPS, RENDER_MODES, History, draw, summarize
from hpenv.telemetry.features import (
    Layout,
    Reading,
    bounds,
    check_features,
    column_names,
    feature_groups,
    observe,
)
from hpenv.telemetry.registers import Registers
from hpenv.telemetry.rewards import check_weights, measured_terms, reward_groups, reward_terms
from hpenv.telemetry.trajectory import Trajectory


class TrainLoopVectorEnv(gym.vector.VectorEnv):
    """N training runs as one vector environment.

    Attributes:
        plant: the plant that trains the N runs.
        action_names: name of each column of the action: the panel's cells, then the registers.
        action_kinds: kind of each column's channel, `register` for a register.
        action_immediate: True for a column that changes the loss of a decision's first step
            already.
        observation_names: name of each column of the observation.
        autoreset_mode: what happens to a row whose episode has ended.
        corpus_digest: sha256 of the training data, or of the student that the runs begin with.
    """

    def __init__(
        self,
        plant: Plant,
        *,
        features: Sequence[str] = ("progress",),
        reward: Mapping[str, float] | None = None,
        interval: int = 50,
        horizon: int = 561,
        num_registers: int = 0,
        register_leak: float = 0.9,
        seed_mode: str = "independent",
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
        evaluate_at_end: bool = False,
        max_episode_steps: int | None = None,
    ) -> None:
        """Combines a plant with features, reward terms and an episode length.

        Args:
            plant: N runs. Its panel's cells are the action.
            features: keys of FEATURES. Their columns are concatenated.
            reward: key of REWARD_TERMS -> weight. Default: progress and divergence, 1 each.
            interval: steps per decision [steps].
            horizon: steps of an episode [steps].
            num_registers: number of accumulators. Further columns of the action write them, and the
                feature `registers` reads them.
            register_leak: fraction of a register that a decision keeps, in [0, 1).
            seed_mode: `independent`: row i of seed s is the run of seed s + i. `grouped`: all rows
                are the run of seed s.
            autoreset_mode: an AutoresetMode, its name or its value.
            render_mode: None, `rgb_array` or `ansi`.
            evaluate_at_end: the last info of an episode has the run's held-out score as `held_out`.
                Whenever a row ends, all rows are evaluated.
            max_episode_steps: number of decisions after which an episode is truncated, as
                Gymnasium's TimeLimit does [decisions].

        Raises:
            ValueError: for an argument that does not fit, with what is accepted.
        """
        check_features(features, plant.measurements)
        self._weights = (
            dict.fromkeys(("progress", "divergence"), 1.0) if reward is None else dict(reward)
        )
        check_weights(self._weights, plant.measurements)

        if not (isinstance(interval, int | np.integer) and 1 <= interval <= horizon):
            raise ValueError(
                f"interval must be a whole number between 1 and the {horizon} steps of the run; "
                f"got {interval!r}"
            )

        if render_mode is not None and render_mode not in RENDER_MODES:
            raise ValueError(
                f"unknown render_mode {render_mode!r}; expected None or one of "
                f"{list(RENDER_MODES)}; gym.make adds 'human' and the '_list' modes, gym.make_vec "
                "has none of them"
            )

        if not isinstance(evaluate_at_end, bool):
            raise ValueError(f"evaluate_at_end must be True or False; got {evaluate_at_end!r}")
        if max_episode_steps is not None:
            check_count("max_episode_steps", max_episode_steps)

        self.plant, self.num_envs = plant, plant.num_rows
        self.corpus_digest = plant.corpus_digest
        self.interval, self.horizon, self.seed_mode = interval, horizon, seed_mode
        self.autoreset_mode, self.render_mode = _autoreset_mode(autoreset_mode), render_mode
        self._limit = math.inf if max_episode_steps is None else max_episode_steps
        self.metadata = {
            "render_modes": list(RENDER_MODES),
            "render_fps": RENDER_FPS,
            "autoreset_mode": self.autoreset_mode,
            # True: all rows are trained as one stacked population. False: one after the other.
            "stacked": plant.stacked,
        }
        self._features, self._evaluate_at_end = tuple(features), evaluate_at_end
        groups = feature_groups(self._features, plant.measurements)
        groups |= reward_groups(self._weights, plant.measurements)
        plant.measure(groups)
        self._probes, self._terms = "probe" in groups, measured_terms(plant.measurements, groups)

        self._streams = SeedStreams(self.num_envs, seed_mode)
        self._registers = Registers(self.num_envs, num_registers, register_leak)

        self._layout = Layout(plant.panel.names, plant.panel.kinds, plant.num_layers, num_registers)

        self.action_names = self._layout.cell_names + self._registers.names
        self.action_kinds = self._layout.cell_kinds + ("register",) * num_registers
        self.action_immediate = plant.panel.immediate + (False,) * num_registers
        self.observation_names = column_names(self._features, self._layout)

        low, high = bounds(self._features, self._layout)
        self.single_observation_space = gym.spaces.Box(
            low.astype(np.float32), high.astype(np.float32)
        )
        self.single_action_space = gym.spaces.Box(-1.0, 1.0, (len(self.action_names),), np.float32)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

        self._ended: BoolArray = np.ones(self.num_envs, dtype=bool)
        self._initial: FloatArray = np.zeros(self.num_envs)
        self._previous_positions: FloatArray = np.zeros_like(plant.panel.positions)
        self._trajectory = Trajectory.empty(self.num_envs)
        self._observations = np.zeros(
            (self.num_envs, len(self.observation_names)), dtype=np.float32
        )
        self._window: Window | None = None
        self._history = [History() for _ in range(self.num_envs)]

    @property
    def steps(self) -> IntArray:
        """Optimizer steps that each run has taken, (N,)."""
        if self._window is None:
            return np.zeros(self.num_envs, dtype=np.int64)
        return self._window.steps.copy()

    @property
    def features(self) -> tuple[str, ...]:
        """Observed features, keys of FEATURES."""
        return self._features

    @property
    def num_decisions(self) -> int:
        """Number of decisions of an episode. The last window may be shorter than the interval."""
        return int(min(-(-self.horizon // self.interval), self._limit))

    @with_torch_defaults
    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[NDArray[np.float32], Info]:
        """Begins new episodes.

        Args:
            seed: seed of the first row, from which the next rows count on, or one seed per row.
                None continues each row's stream of seeds. Grouped rows are one run, and all take
                the first seed that is given.
            options: `reset_mask` (N,) bool: the rows to reset. The other rows stay where they are.

        Returns:
            Observations (N, F) and infos.

        Raises:
            ValueError: for a seed or a mask that does not fit.
            gymnasium.error.ClosedEnvironmentError: after close().
        """
        self._check_open("reset")

        rows = np.ones(self.num_envs, dtype=bool)
        if options is not None and "reset_mask" in options:
            rows = np.asarray(options["reset_mask"])
            if rows.shape != (self.num_envs,) or rows.dtype != np.bool_ or not rows.any():
                raise ValueError(
                    f"reset_mask must be a boolean array of shape ({self.num_envs},) with at least "
                    f"one True; got {rows.dtype} of shape {rows.shape}: {rows}"
                )
        if self._window is None and not rows.all():
            raise ValueError(
                "the first reset must be of all rows; got a reset_mask with at least one False"
            )

        super().reset(seed=self._streams.seed(seed, rows))
        self._begin(rows)
        self._window = self.plant.advance(np.zeros(self.num_envs, dtype=np.int64))
        self._remember(np.zeros_like(rows), rows)
        self._record(rows)

        terms = dict.fromkeys(self._terms, np.zeros(self.num_envs))
        infos = self._infos(self._window, np.zeros_like(rows), rows, terms)
        infos |= self._held_out_scores(np.zeros_like(rows))
        return self._observe(self._reading(self._window, rows), rows), infos

    def _begin(self, rows: BoolArray) -> None:
        """Gives these rows new weights, a new data order and a neutral panel.

        Each row draws the seed of its run from its stream of seeds.
        """
        chosen = np.flatnonzero(rows).tolist()
        self.plant.reset(self._streams.draw(chosen), chosen)
        self._ended[rows], self._previous_positions[rows] = False, 0.0
        self._registers.clear(rows)
        self._trajectory = self._trajectory.with_reset(rows)

        for row in chosen:
            self._history[row] = History()

    @with_torch_defaults
    def step(
        self, actions: NDArray[np.floating]
    ) -> tuple[NDArray[np.float32], FloatArray, BoolArray, BoolArray, Info]:
        """Sets the panel and advances every run by one interval.

        Args:
            actions: (N, A) floating point. 0 is neutral. Values outside [-1, 1] are clipped.

        Returns:
            Observations (N, F), rewards (N,), terminated (N,), truncated (N,) and infos.

        Raises:
            ValueError: for actions of the wrong shape or dtype, or with NaN.
            gymnasium.error.ResetNeeded: before the first reset.
            gymnasium.error.ClosedEnvironmentError: after close().
        """
        self._check_open("step")
        if self._window is None:
            raise gym.error.ResetNeeded("call reset() before the first step()")
        positions = self._check_actions(actions)
        cells = len(self._layout.cell_names)

        moving = ~self._ended
        restarting = (
            self._ended.copy()
            if self.autoreset_mode == AutoresetMode.NEXT_STEP
            else np.zeros_like(moving)
        )
        if restarting.any():
            self._begin(restarting)

        steps = np.where(moving, np.minimum(self.interval, self.horizon - self._window.steps), 0)
        previous = self._window
        self.plant.panel.move(positions[:, :cells], moving)
        self._registers.write(positions[:, cells:], moving)
        self._window = self.plant.advance(steps)
        self._remember(moving, restarting)

        reading = self._reading(previous, restarting)
        terms = reward_terms(self._terms, reading)
        total = np.sum(
            [weight * terms[name] for name, weight in self._weights.items() if weight], axis=0
        )
        rewards = np.where(moving, total, 0.0)

        finished = (self._window.steps >= self.horizon) | (self._window.divergence > 0)
        at_limit = -(-self._window.steps // self.interval) >= self._limit
        self._ended = np.where(moving, finished | at_limit, self._ended & ~restarting)
        terminated, truncated = self._ended & finished, self._ended & at_limit

        observations = self._observe(reading, moving | restarting)
        infos = self._infos(self._window, moving, moving | restarting, terms)
        infos |= self._held_out_scores(moving & self._ended)
        self._previous_positions[moving] = self.plant.panel.positions[moving]
        self._record(moving | restarting)

        if self.autoreset_mode == AutoresetMode.SAME_STEP and self._ended.any():
            observations, infos = self._restart_within_step(observations, infos)
        return observations, rewards, terminated, truncated, infos

    def _check_open(self, name: str) -> None:
        if self.closed:
            raise gym.error.ClosedEnvironmentError(
                f"cannot {name}() after close(); make a new environment"
            )

    def _restart_within_step(
        self, observations: NDArray[np.float32], infos: Info
    ) -> tuple[NDArray[np.float32], Info]:
        ended = self._ended.copy()

        final_observations = np.empty(self.num_envs, dtype=object)
        for row in np.flatnonzero(ended):
            final_observations[row] = observations[row].copy()
        final: Info = {"final_obs": final_observations, "_final_obs": ended.copy()}
        final |= {"final_info": mask_rows(infos, ended), "_final_info": ended.copy()}

        observations, fresh = self.reset(options={"reset_mask": ended})
        return observations, overwrite_rows(infos, fresh, ended) | final

    def _check_actions(self, actions: NDArray[np.floating]) -> FloatArray:
        array = np.asarray(actions)
        wanted = (self.num_envs, len(self.action_names))
        if array.shape != wanted or not np.issubdtype(array.dtype, np.floating):
            raise ValueError(
                f"actions must be floating point of shape {wanted}, one column per "
                f"{list(self.action_names)}; got {array.dtype} of shape {array.shape}"
            )
        if not np.isfinite(array).all():
            raise ValueError(f"actions must be finite numbers; got {array.tolist()}")
        return array.astype(np.float64)

    def _remember(self, moved: BoolArray, fresh: BoolArray) -> None:
        """Appends the losses of rows that moved, and stores the initial loss of rows just reset."""
        assert self._window is not None
        self._initial[fresh] = self._window["probe_loss"][fresh]
        self._trajectory = self._trajectory.with_losses(moved, self._window["train_loss"])
        if self._probes:
            self._trajectory = self._trajectory.with_probe_losses(
                moved | fresh, self._window["probe_loss"]
            )

    def _reading(self, previous: Window, fresh: BoolArray) -> Reading:
        """Returns the measurements of this decision with those of the previous one.

        A row that was just reset is compared with itself.
        """
        assert self._window is not None
        return Reading(
            window=self._window,
            trajectory=self._trajectory,
            previous_train_loss=np.where(fresh, self._window["train_loss"], previous["train_loss"]),
            previous_probe_loss=np.where(fresh, self._window["probe_loss"], previous["probe_loss"]),
            initial_probe_loss=self._initial,
            progress=self._window.steps / self.horizon,
            positions=self.plant.panel.positions,
            previous_positions=self._previous_positions,
            registers=self._registers.values,
            first=fresh | (previous.steps == 0),
            layout=self._layout,
        )

    def _observe(self, reading: Reading, rows: BoolArray) -> NDArray[np.float32]:
        """Returns observations (N, F). Rows neither stepped nor reset repeat their previous one."""
        self._observations[rows] = observe(self._features, reading)[rows].astype(np.float32)
        return self._observations.copy()

    def _infos(
        self, window: Window, moved: BoolArray, rows: BoolArray, terms: Mapping[str, FloatArray]
    ) -> Info:
        """Returns the state of these rows, and training measurements of those that moved.

        The keys are the same at every call. Measurements of training are 0 for a row that did not
        move.
        """
        state: Info = {
            "step": window.steps.copy(),
            "train_loss": window["train_loss"].copy(),
            "divergence": window.divergence.copy(),
        }
        if self._probes:
            state["probe_loss"] = window["probe_loss"].copy()
        state |= columns("panel", self._layout.cell_names, self.plant.panel.values())

        trained: Info = {
            "gradient_norm": np.minimum(window["gradient_norm"], np.finfo(np.float32).max)
        }
        unweighted = np.array(list(terms.values())).reshape(-1, len(rows)).T + 0.0
        trained |= columns("reward_terms", tuple(terms), unweighted)
        for own in self.plant.measurements:
            if own.in_info or own.privileged:
                prefix = "privileged" if own.privileged else "gauges"
                trained[f"{prefix}/{own.name}"] = window[own.name].copy()

        for value in trained.values():
            value[~moved] = 0.0
        return with_masks(state, rows) | with_masks(trained, moved)

    def _held_out_scores(self, ended: BoolArray) -> Info:
        """Returns the held-out score of each row whose episode has just ended, 0 for the others.

        The result is empty without `evaluate_at_end`. A score that is not finite becomes the
        largest number of float32. Only bits per byte can be that large.
        """
        if not self._evaluate_at_end:
            return {}

        scores, largest = np.zeros(self.num_envs), float(np.finfo(np.float32).max)
        if ended.any():
            scores[ended] = np.nan_to_num(self.plant.evaluate()[ended], nan=largest, posinf=largest)
        return with_masks({"held_out": scores}, ended)

    def _record(self, rows: BoolArray) -> None:
        """Records the history for `render()`.

        Without a `render_mode` nothing is recorded, because the history grows with every action.
        """
        assert self._window is not None
        if self.render_mode is None:
            return

        values = self.plant.panel.values()
        losses = self._window["probe_loss"] if self._probes else self._window["train_loss"]
        for row in np.flatnonzero(rows):
            self._history[row].append(
                int(self._window.steps[row]),
                float(losses[row]),
                self.plant.panel.positions[row],
                values[row],
            )

    @with_torch_defaults
    def evaluate(self) -> FloatArray:
        """Returns the held-out score of every run, (N,), as `plant.score` describes it.

        No other method reads the validation slice.

        Raises:
            gym.error.ResetNeeded: before the first reset(), when there is no run yet.
        """
        if self._window is None:
            raise gym.error.ResetNeeded("nothing to evaluate before the first reset()")
        return self.plant.evaluate()

    @with_torch_defaults
    def snapshot(self) -> Snapshot:
        """Returns everything that the next step depends on.

        That is the plant, the reward and autoreset state, and each row's stream of seeds.
        """
        if self._window is None:
            raise gym.error.ResetNeeded("nothing to save before the first reset()")

        inner = self.plant.snapshot()
        tensors = {f"plant/{name}": tensor for name, tensor in inner.tensors.items()}
        tensors |= {
            name: torch.as_tensor(value.copy())
            for name, value in self._arrays(self._window).items()
        }

        rows = [
            {"random": stream, "history": history.state()}
            for stream, history in zip(self._streams.states(), self._history, strict=True)
        ]
        return Snapshot(
            tensors, {"plant": inner.metadata, "env": self._description(), "rows": rows}
        )

    def _arrays(self, window: Window) -> dict[str, NDArray[Any]]:
        """Returns the arrays of a snapshot that are not the plant's, without copying them."""
        arrays: dict[str, NDArray[Any]] = {
            "env/ended": self._ended,
            "env/initial": self._initial,
            "env/previous_positions": self._previous_positions,
            "env/observations": self._observations,
            "env/registers": self._registers.values,
        }
        arrays |= {f"window/{name}": value for name, value in window.arrays().items()}
        arrays |= {f"trajectory/{name}": value for name, value in vars(self._trajectory).items()}
        return arrays

    def _description(self) -> dict[str, object]:
        description: dict[str, object] = as_python(
            {
                "interval": self.interval,
                "horizon": self.horizon,
                "features": list(self._features),
                "reward": self._weights,
                "num_registers": self._layout.num_registers,
                "register_leak": self._registers.leak,
                "seed_mode": self.seed_mode,
                "max_episode_steps": None if math.isinf(self._limit) else self._limit,
            }
        )
        return description

    @with_torch_defaults
    def restore(self, snapshot: Snapshot, keep_panel: bool = False) -> NDArray[np.float32]:
        """Continues from a snapshot, bitwise.

        Args:
            snapshot: a snapshot of an environment of the same configuration and number of rows.
            keep_panel: True: the panel keeps its present values.

        Returns:
            The observations that the next decision is taken on, (N, F).

        Raises:
            TypeError: if `snapshot` is not a Snapshot.
            ValueError: if the snapshot is not of an environment, or is of another configuration or
                number of rows.
        """
        if not isinstance(snapshot, Snapshot):
            raise TypeError(
                f"snapshot must be a Snapshot, as snapshot() returns it; got a "
                f"{type(snapshot).__name__}; read one on disk with hpenv.plant.snapshots.load(path)"
            )

        if not all(isinstance(snapshot.metadata.get(part), dict) for part in ("env", "plant")):
            raise ValueError(
                "snapshot must be an environment snapshot; got one whose metadata has the keys "
                f"{sorted(snapshot.metadata)}"
            )

        ours, theirs = self._description(), snapshot.metadata["env"]
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

        tensors = snapshot.tensors
        streams, histories = _read_rows(snapshot, self.seed_mode)
        if len(histories) != self.num_envs:
            raise ValueError(
                f"snapshot must have the {self.num_envs} rows of this environment; "
                f"got {len(histories)} rows"
            )

        empty = Window.empty(self.num_envs, self.plant.num_layers, self.plant.measurements)
        expected = self._arrays(empty)
        others = {name: tensor for name, tensor in tensors.items() if not name.startswith("plant/")}
        check_tensors(others, {name: torch.as_tensor(value) for name, value in expected.items()})
        self.plant.restore(
            Snapshot(_without_prefix("plant/", tensors), snapshot.metadata["plant"]), keep_panel
        )

        self._ended = tensors["env/ended"].numpy().copy()
        self._initial = tensors["env/initial"].numpy().copy()
        self._previous_positions = tensors["env/previous_positions"].numpy().copy()
        self._observations = tensors["env/observations"].numpy().copy()
        self._registers.values = tensors["env/registers"].numpy().copy()
        self._window = Window.of_arrays(
            {k: t.numpy().copy() for k, t in _without_prefix("window/", tensors).items()}
        )
        self._trajectory = Trajectory(
            **{k: t.numpy().copy() for k, t in _without_prefix("trajectory/", tensors).items()}
        )
        self._streams, self._history = streams, histories
        return self._observations.copy()

    @with_torch_defaults
    def fork(self, k: int, row: int = 0) -> TrainLoopVectorEnv:
        """Returns a new vector env of k rows, each a copy of one row where it stands.

        This env does not change.

        Raises:
            ValueError: for k < 1 or a row that does not exist.
        """
        return self._copies(k, row, self.autoreset_mode, self.render_mode, self._evaluate_at_end)

    def _copies(
        self, k: int, row: int, mode: AutoresetMode, render_mode: str | None, evaluate_at_end: bool
    ) -> TrainLoopVectorEnv:
        whole_numbers = isinstance(k, int | np.integer) and isinstance(row, int | np.integer)
        if not whole_numbers or k < 1 or not 0 <= row < self.num_envs:
            raise ValueError(
                "k must be a whole number of at least 1, and row one from 0 to "
                f"{self.num_envs - 1}; got k={k!r} and row={row!r}"
            )

        snapshot = self.snapshot()
        index = torch.full((k,), row)
        tensors = {
            name: tensor[index.to(tensor.device)] for name, tensor in snapshot.tensors.items()
        }

        copy = TrainLoopVectorEnv(
            self.plant.spawn(k),
            features=self._features,
            reward=self._weights,
            interval=self.interval,
            horizon=self.horizon,
            num_registers=self._layout.num_registers,
            register_leak=self._registers.leak,
            seed_mode=self.seed_mode,
            autoreset_mode=mode,
            render_mode=render_mode,
            evaluate_at_end=evaluate_at_end,
            max_episode_steps=None if math.isinf(self._limit) else int(self._limit),
        )
        rows = [snapshot.metadata["rows"][row]] * k
        copy.restore(Snapshot(tensors, snapshot.metadata | {"rows": rows}))
        return copy

    @with_torch_defaults
    def counterfactual(
        self, actions: NDArray[np.floating], horizon: int, row: int = 0, hold: bool = False
    ) -> FloatArray:
        """Estimates the reward of k candidate actions by playing each on a copy of the run.

        The run itself does not advance. The copies train on the same batches, so that their rewards
        differ by the actions alone. Each copy rebuilds the plant, so this costs far more than a
        step. At one step per decision a training loss responds to an update one decision later.
        With `loss_change`, horizon 2 is therefore the smallest that sees the effect on the weights.

        Args:
            actions: one candidate per copy, (k, A) floating point, clipped to [-1, 1].
            horizon: number of decisions to play [decisions]. A copy that ends earlier earns nothing
                more.
            row: index of the run.
            hold: True: play the candidate at every decision. False: play it at the first decision
                alone. Then the cells return to where they are now.

        Returns:
            Sums of the rewards, (k,).

        Raises:
            ValueError: for actions of the wrong shape or dtype or with NaN, a horizon < 1 or a row
                that does not exist.
            gymnasium.error.ResetNeeded: before the first reset, or if the run has ended.
        """
        array = np.asarray(actions)
        fits = array.ndim == 2 and array.shape[1] == len(self.action_names) and len(array) > 0
        if not (fits and isinstance(horizon, int | np.integer) and horizon >= 1):
            raise ValueError(
                f"actions must be of shape (k, {len(self.action_names)}) with k >= 1, and horizon "
                f"a whole number >= 1; got shape {array.shape} and {horizon!r}"
            )
        if self._window is None or (
            isinstance(row, int) and 0 <= row < self.num_envs and self._ended[row]
        ):
            raise gym.error.ResetNeeded(
                f"run {row} has not begun, or has ended; call reset() first"
            )

        copies = self._copies(len(array), row, AutoresetMode.DISABLED, None, False)
        after = np.zeros(array.shape) if not hold else array
        if not hold:
            after[:, : len(self._layout.cell_names)] = self.plant.panel.positions[row]

        total = copies.step(array)[1]
        for _ in range(horizon - 1):
            if copies._ended.all():
                break
            total += copies.step(after)[1]
        return total

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Calls a method once, or reads an attribute, and returns one result per row.

        SyncVectorEnv does the same. A result with one entry per row, as of `evaluate` and `render`,
        is divided among the rows. Any other result is returned for all of them.
        """
        value = self._attribute(name)
        if not callable(value):
            return (value,) * self.num_envs

        result = value(*args, **kwargs)
        return tuple(row_value(result, row, self.num_envs) for row in range(self.num_envs))

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """Returns an attribute once for every row. A space is that of a single row."""
        return (self._attribute(name),) * self.num_envs

    def set_attr(self, name: str, values: Any) -> None:
        """Sets an attribute of the env, which all rows share.

        Args:
            name: name of the attribute.
            values: value of the attribute. A list or tuple is read as one value for every row.

        Raises:
            ValueError: for a number of values other than N, or values that differ.
        """
        rows = list(values) if isinstance(values, list | tuple) else [values] * self.num_envs
        if len(rows) != self.num_envs or any(value != rows[0] for value in rows):
            raise ValueError(
                f"values of {name!r} must be one value, or {self.num_envs} equal ones, because all "
                f"rows share it; got {values!r}"
            )
        setattr(self, name, rows[0])

    def _attribute(self, name: str) -> Any:
        return getattr(
            self, f"single_{name}" if name in ("observation_space", "action_space") else name
        )

    def render(self) -> tuple[NDArray[np.uint8] | str, ...] | None:
        """Returns one picture or one line of text per run so far. None without a `render_mode`."""
        if self.render_mode is None:
            return None

        paint = draw if self.render_mode == "rgb_array" else summarize
        cells, unit = self.plant.panel, self.plant.score.loss_unit
        loss = f"{'probe' if self._probes else 'training'} loss [{unit}]"
        return tuple(
            paint(history, cells.names, cells.neutral, self.horizon, loss)
            for history in self._history
        )


def _autoreset_mode(given: str | AutoresetMode) -> AutoresetMode:
    """Returns the mode of this name or value.

    Gymnasium's vector envs accept the value too: `NextStep` for `NEXT_STEP`.
    """
    names = {mode.name: mode for mode in AutoresetMode}
    spellings = names | {mode.value: mode for mode in AutoresetMode}
    name = given.name if isinstance(given, AutoresetMode) else given
    if not (isinstance(name, str) and name in spellings):
        raise ValueError(f"unknown autoreset_mode {given!r}; expected one of {sorted(names)}")
    return spellings[name]


def _read_rows(snapshot: Snapshot, seed_mode: str) -> tuple[SeedStreams, list[History]]:
    """Returns the streams of seeds and the histories of a snapshot's rows.

    Raises:
        ValueError: if the snapshot has none, or damaged ones.
    """
    try:
        rows = list(snapshot.metadata["rows"])
        streams = SeedStreams(len(rows), seed_mode)
        streams.restore([row["random"] for row in rows])
        return streams, [History(row["history"]) for row in rows]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"rows of the snapshot must hold a stream of seeds and a history each; got {error!r} "
            f"of {snapshot.metadata.get('rows')!r:.200}; restore another snapshot"
        ) from error


def _without_prefix(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


class TrainLoopEnv(gym.Env):
    """One training run: TrainLoopVectorEnv with N = 1.

    Attributes:
        vector: the vector env of one row.
    """

    def __init__(self, vector: TrainLoopVectorEnv) -> None:
        """Wraps a vector env of one row, made with autoreset_mode DISABLED.

        Raises:
            ValueError: for more than one row, or another autoreset mode.
        """
        if vector.num_envs != 1 or vector.autoreset_mode != AutoresetMode.DISABLED:
            raise ValueError(
                "vector must have one row and autoreset_mode DISABLED; "
                f"got {vector.num_envs} rows and {vector.autoreset_mode}"
            )

        self.vector, self.render_mode = vector, vector.render_mode
        self.metadata = {
            "render_modes": list(RENDER_MODES),
            "render_fps": RENDER_FPS,
            "stacked": vector.plant.stacked,
        }

        self.observation_space = vector.single_observation_space
        self.action_space = vector.single_action_space
        self.action_names, self.action_kinds = vector.action_names, vector.action_kinds
        self.action_immediate = vector.action_immediate
        self.observation_names, self.corpus_digest = vector.observation_names, vector.corpus_digest

    @property
    def plant(self) -> Plant:
        """The plant that trains the run."""
        return self.vector.plant

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], Info]:
        """Begins a new run. Returns the observation (F,) and the info."""
        super().reset(seed=seed)
        observations, infos = self.vector.reset(seed=seed)
        return observations[0], only_row(infos)

    def step(
        self, action: NDArray[np.floating]
    ) -> tuple[NDArray[np.float32], float, bool, bool, Info]:
        """Sets the panel and advances the run by one interval.

        Returns:
            Observation (F,), reward, terminated, truncated and info.

        Raises:
            ValueError: for an action of the wrong shape or dtype, or with NaN.
            gymnasium.error.ResetNeeded: before the first reset, and after the run has ended.
        """
        if self.vector._window is not None and self.vector._ended[0]:
            raise gym.error.ResetNeeded("the run has ended; call reset() before the next step()")
        array = np.asarray(action)
        if array.shape != self.action_space.shape:
            raise ValueError(
                f"action must be of shape {self.action_space.shape}, one number per "
                f"{list(self.action_names)}; got shape {array.shape}"
            )

        observations, rewards, terminated, truncated, infos = self.vector.step(array[None])
        return (
            observations[0],
            float(rewards[0]),
            bool(terminated[0]),
            bool(truncated[0]),
            only_row(infos),
        )

    def evaluate(self) -> float:
        """Returns the held-out score. No other method reads the validation slice."""
        return float(self.vector.evaluate()[0])

    def snapshot(self) -> Snapshot:
        """Returns everything that the next step depends on."""
        return self.vector.snapshot()

    def restore(self, snapshot: Snapshot, keep_panel: bool = False) -> NDArray[np.float32]:
        """Continues from a snapshot, bitwise, and returns the observation (F,).

        See TrainLoopVectorEnv. A wrapper that counts decisions, as the TimeLimit of
        `max_episode_steps`, does not notice. Its step() raises TypeError until the wrapped env has
        been reset once. Call `env.reset()` before `env.unwrapped.restore(...)`.
        """
        return self.vector.restore(snapshot, keep_panel)[0]

    def fork(self, k: int) -> TrainLoopVectorEnv:
        """Returns a new vector env of k copies of this run where it stands."""
        return self.vector.fork(k)

    def counterfactual(
        self, actions: NDArray[np.floating], horizon: int, hold: bool = False
    ) -> FloatArray:
        """Estimates the reward of k candidate actions within `horizon` decisions, (k,).

        See TrainLoopVectorEnv.
        """
        return self.vector.counterfactual(actions, horizon, 0, hold)

    def close(self) -> None:
        """Closes the env. Then reset() and step() raise gymnasium.error.ClosedEnvironmentError."""
        self.vector.close()

    def render(self) -> NDArray[np.uint8] | str | None:
        """Returns a picture, or a line of text, of the run so far."""
        pictures = self.vector.render()
        return None if pictures is None else pictures[0]
