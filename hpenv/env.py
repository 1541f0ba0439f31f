"""The environment: an action sets the panel, the plant trains for one interval, features and terms
are read.

`TrainLoopVectorEnv` is the one copy of the dynamics: N runs, stepped together, each an episode of
its own. `TrainLoopEnv` is the same with N = 1 and numpy scalars in its info. The two stand in one
module, past its usual length, because the second is nothing without the first.
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

from hpenv.infos import Info, columns, merged, only_row, restricted, row_value, with_masks
from hpenv.isolation import isolated
from hpenv.plant import BoolArray, FloatArray, Plant, Snapshot, Window, check_tensors
from hpenv.registers import Registers
from hpenv.render import RENDER_FPS, RENDER_MODES, History, draw, summarize
from hpenv.rewards import check_weights, measured_terms, reward_terms, reward_tiers
from hpenv.streams import SeedStreams
from hpenv.telemetry import (
    Layout,
    Reading,
    bounds,
    check_features,
    column_names,
    feature_tiers,
    observe,
)
from hpenv.trajectory import Trajectory
from hpenv.values import as_python, check_count


class TrainLoopVectorEnv(gym.vector.VectorEnv):
    """N training runs as one vector environment.

    Attributes:
        plant: what is trained.
        action_names: name of each column of the action: the panel's cells, then the registers.
        action_kinds: kind of each column's channel; `register` for a register.
        action_immediate: whether the loss of a decision's first step already answers to the column.
        observation_names: name of each column of the observation.
        autoreset_mode: what happens to a row whose episode has ended.
        corpus_digest: sha256 of what the runs are trained on, or of the student that they begin
            with.
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
        """Joins a plant with what is asked of it.

        Args:
            plant: N runs; its panel's cells are the action.
            features: keys of FEATURES, side by side.
            reward: key of REWARD_TERMS -> weight; default progress and divergence, 1 each.
            interval: steps per decision [steps].
            horizon: steps of an episode [steps].
            num_registers: accumulators that further columns of the action write and the feature
                `registers` reads.
            register_leak: part of a register that a decision keeps, in [0, 1).
            seed_mode: `independent`: row i of seed s is the run of seed s + i; `grouped`: all rows
                are the run of seed s.
            autoreset_mode: an AutoresetMode, its name or its value.
            render_mode: None, `rgb_array` or `ansi`.
            evaluate_at_end: the last info of an episode has the run's held-out score as `held_out`.
                Whenever a row ends, all rows are evaluated.
            max_episode_steps: an episode of this many decisions is truncated, as by Gymnasium's
                TimeLimit [decisions].

        Raises:
            ValueError: for anything that does not fit, with what is accepted.
        """
        check_features(features, plant.gauge_names, plant.all_tiers)
        self._weights = (
            dict.fromkeys(("progress", "divergence"), 1.0) if reward is None else dict(reward)
        )
        check_weights(self._weights, plant.gauge_names, plant.all_tiers)
        if not (isinstance(interval, int | np.integer) and 1 <= interval <= horizon):
            raise ValueError(
                f"interval={interval} must be between 1 and the {horizon} steps of the run, a whole number"
            )
        if render_mode is not None and render_mode not in RENDER_MODES:
            raise ValueError(
                f"unknown render_mode {render_mode!r}; expected None or one of {list(RENDER_MODES)}; "
                "gym.make adds 'human' and the '_list' modes, gym.make_vec has none of them"
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
            "stacked": plant.stacked,  # rows are trained as one stacked population, or else one after the other
        }
        self._features, self._evaluate_at_end = tuple(features), evaluate_at_end
        tiers = feature_tiers(self._features) | reward_tiers(self._weights)
        plant.measure(tiers)
        self._probes, self._terms = "probe" in tiers, measured_terms(tiers, plant.gauge_names)
        self._streams = SeedStreams(self.num_envs, seed_mode)
        self._registers = Registers(self.num_envs, num_registers, register_leak)
        self._layout = Layout(
            plant.panel.names, plant.panel.kinds, plant.num_layers, num_registers, plant.gauge_names
        )
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
    def num_decisions(self) -> int:
        """Decisions of an episode; the last window may be shorter than the interval."""
        return int(min(-(-self.horizon // self.interval), self._limit))

    @isolated
    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[NDArray[np.float32], Info]:
        """Begins new episodes.

        Args:
            seed: of the first row, the next ones counting on from it, or one per row; None
                continues each row's stream. Grouped rows are one run, and all take the first one
                that is given.
            options: `reset_mask` (N,) bool: the rows to reset, the others stay where they are.

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
                    f"reset_mask must be ({self.num_envs},) bool with a True in it; got {rows.dtype} {rows}"
                )
        if self._window is None and not rows.all():
            raise ValueError(
                "the first reset must be of all rows; got a reset_mask with a False in it"
            )
        super().reset(seed=self._streams.seed(seed, rows))
        self._begin(rows)
        self._window = self.plant.advance(np.zeros(self.num_envs, dtype=np.int64))
        self._remember(np.zeros_like(rows), rows)
        self._record(rows)
        terms = dict.fromkeys(self._terms, np.zeros(self.num_envs))
        infos = self._infos(self._window, np.zeros_like(rows), rows, terms) | self._held_out(
            np.zeros_like(rows)
        )
        return self._observe(self._reading(self._window, rows), rows), infos

    def _begin(self, rows: BoolArray) -> None:
        """New weights, data order and neutral panel for these rows; each draws its run's seed from its own stream."""
        chosen = np.flatnonzero(rows).tolist()
        self.plant.reset(self._streams.draw(chosen), chosen)
        self._ended[rows], self._previous_positions[rows] = False, 0.0
        self._registers.clear(rows)
        self._trajectory = self._trajectory.cleared(rows)
        for row in chosen:
            self._history[row] = History()

    @isolated
    def step(
        self, actions: NDArray[np.floating]
    ) -> tuple[NDArray[np.float32], FloatArray, BoolArray, BoolArray, Info]:
        """Sets the panel and advances every run by one interval.

        Args:
            actions: (N, A) floating point in [-1, 1]; 0 is neutral.

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
        positions = self._checked(actions)
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
        last = self._window
        self.plant.panel.move(positions[:, :cells], moving)
        self._registers.write(positions[:, cells:], moving)
        self._window = self.plant.advance(steps)
        self._remember(moving, restarting)

        reading = self._reading(last, restarting)
        terms = reward_terms(self._terms, reading)
        total = np.sum(
            [weight * terms[name] for name, weight in self._weights.items() if weight], axis=0
        )
        rewards = np.where(moving, total, 0.0)
        over = (self._window.steps >= self.horizon) | (self._window.divergence > 0)
        late = -(-self._window.steps // self.interval) >= self._limit
        self._ended = np.where(moving, over | late, self._ended & ~restarting)
        terminated, truncated = self._ended & over, self._ended & late
        observations = self._observe(reading, moving | restarting)
        infos = self._infos(self._window, moving, moving | restarting, terms)
        infos |= self._held_out(moving & self._ended)
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
        final |= {"final_info": restricted(infos, ended), "_final_info": ended.copy()}
        observations, fresh = self.reset(options={"reset_mask": ended})
        return observations, merged(infos, fresh, ended) | final

    def _checked(self, actions: NDArray[np.floating]) -> FloatArray:
        array = np.asarray(actions)
        wanted = (self.num_envs, len(self.action_names))
        if array.shape != wanted or not np.issubdtype(array.dtype, np.floating):
            raise ValueError(
                f"actions must be floating point of shape {wanted}, one column per {list(self.action_names)}; "
                f"got {array.dtype} of shape {array.shape}"
            )
        if not np.isfinite(array).all():
            raise ValueError(f"actions must be finite numbers in [-1, 1]; got {array.tolist()}")
        return array.astype(np.float64)

    def _remember(self, moved: BoolArray, fresh: BoolArray) -> None:
        """Keeps the losses of the rows that moved, and what the loss of those that have just begun was."""
        assert self._window is not None
        self._initial[fresh] = self._window.probe_loss[fresh]
        self._trajectory = self._trajectory.with_losses(moved, self._window.train_loss)
        if self._probes:
            self._trajectory = self._trajectory.with_probe_losses(
                moved | fresh, self._window.probe_loss
            )

    def _reading(self, last: Window, fresh: BoolArray) -> Reading:
        """What was measured, against the window before; a row that has just begun has none but its own."""
        assert self._window is not None
        return Reading(
            window=self._window,
            trajectory=self._trajectory,
            previous_train_loss=np.where(fresh, self._window.train_loss, last.train_loss),
            previous_probe_loss=np.where(fresh, self._window.probe_loss, last.probe_loss),
            initial_probe_loss=self._initial,
            progress=self._window.steps / self.horizon,
            positions=self.plant.panel.positions,
            previous_positions=self._previous_positions,
            registers=self._registers.values,
            first=fresh | (last.steps == 0),
            layout=self._layout,
        )

    def _observe(self, reading: Reading, rows: BoolArray) -> NDArray[np.float32]:
        """Observations (N, F); rows that neither moved nor began anew repeat their last."""
        self._observations[rows] = observe(self._features, reading)[rows].astype(np.float32)
        return self._observations.copy()

    def _infos(
        self, window: Window, moved: BoolArray, rows: BoolArray, terms: Mapping[str, FloatArray]
    ) -> Info:
        """Returns what was measured of these rows, and what was measured of their training if they
        moved.

        The keys are the same at every call. What the training of a row would have measured is 0
        where it did not move.
        """
        state: Info = {
            "step": window.steps.copy(),
            "train_loss": window.train_loss.copy(),
            "divergence": window.divergence.copy(),
        }
        if self._probes:
            state["probe_loss"] = window.probe_loss.copy()
        state |= columns("panel", self._layout.cell_names, self.plant.panel.values())
        trained: Info = {
            "gradient_norm": np.minimum(window.gradient_norm, np.finfo(np.float32).max)
        }
        trained |= columns(
            "reward_terms",
            tuple(terms),
            np.array(list(terms.values())).reshape(-1, len(rows)).T + 0.0,
        )
        trained |= columns("gauges", self.plant.gauge_names, window.gauges)
        trained |= columns("privileged", self.plant.privileged_names, window.privileged)
        for value in trained.values():
            value[~moved] = 0.0
        return with_masks(state, rows) | with_masks(trained, moved)

    def _held_out(self, ended: BoolArray) -> Info:
        """Returns the held-out scores of the rows whose episode has just ended, 0 of the others, if
        asked for.

        A score that is not finite is the largest number of float32: only bits per byte can be that.
        """
        if not self._evaluate_at_end:
            return {}
        scores, largest = np.zeros(self.num_envs), float(np.finfo(np.float32).max)
        if ended.any():
            scores[ended] = np.nan_to_num(self.plant.evaluate()[ended], nan=largest, posinf=largest)
        return with_masks({"held_out": scores}, ended)

    def _record(self, rows: BoolArray) -> None:
        """Keeps what render() shows, which is of the size of an episode's actions, only where it is asked for."""
        assert self._window is not None
        if self.render_mode is None:
            return
        values, losses = (
            self.plant.panel.values(),
            self._window.probe_loss if self._probes else self._window.train_loss,
        )
        for row in np.flatnonzero(rows):
            self._history[row].append(
                int(self._window.steps[row]),
                float(losses[row]),
                self.plant.panel.positions[row],
                values[row],
            )

    @isolated
    def evaluate(self) -> FloatArray:
        """Held-out score of every run, (N,), as `plant.score` says; the only road to the validation
        slice.

        Raises:
            gym.error.ResetNeeded: before the first reset(), when there is no run yet.
        """
        if self._window is None:
            raise gym.error.ResetNeeded("nothing to evaluate before the first reset()")
        return self.plant.evaluate()

    @isolated
    def snapshot(self) -> Snapshot:
        """Everything the next step depends on: plant, reward and autoreset state, and each row's stream of seeds."""
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
        """What a snapshot holds beside the plant's tensors; no copy."""
        own = {
            "ended": self._ended,
            "initial": self._initial,
            "previous_positions": self._previous_positions,
        }
        own |= {"observations": self._observations, "registers": self._registers.values}
        records = (("env", own), ("window", vars(window)), ("trajectory", vars(self._trajectory)))
        return {
            f"{record}/{name}": value
            for record, values in records
            for name, value in values.items()
        }

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

    @isolated
    def restore(self, snapshot: Snapshot, keep_panel: bool = False) -> NDArray[np.float32]:
        """Continues from a snapshot, bitwise; `keep_panel` leaves the panel's present values in
        force.

        Returns:
            The observations that the next decision is taken on, (N, F).

        Raises:
            TypeError: for what is no snapshot.
            ValueError: if the snapshot is of another configuration or number of rows, or of no
                environment.
        """
        if not isinstance(snapshot, Snapshot):
            raise TypeError(
                f"a {type(snapshot).__name__} is no snapshot; expected what snapshot() returned, or "
                "hpenv.snapshots.load(path) for one on disk"
            )
        if not all(isinstance(snapshot.metadata.get(part), dict) for part in ("env", "plant")):
            raise ValueError(
                f"the snapshot is of no environment; it holds {sorted(snapshot.metadata)}"
            )
        ours, theirs = self._description(), snapshot.metadata["env"]
        different = {
            key: (theirs.get(key), ours.get(key))
            for key in ours | theirs
            if theirs.get(key) != ours.get(key)
        }
        if different:
            raise ValueError(
                f"the snapshot is of another environment, as (snapshot, here): {different}"
            )
        tensors = snapshot.tensors
        streams, histories = _rows(snapshot, self.seed_mode)
        if len(histories) != self.num_envs:
            raise ValueError(
                f"the snapshot has {len(histories)} rows; this environment has {self.num_envs}"
            )
        names = (
            self.plant.num_layers,
            len(self.plant.gauge_names),
            len(self.plant.privileged_names),
        )
        expected = self._arrays(Window.empty(self.num_envs, *names))
        others = {name: tensor for name, tensor in tensors.items() if not name.startswith("plant/")}
        check_tensors(others, {name: torch.as_tensor(value) for name, value in expected.items()})
        self.plant.restore(
            Snapshot(_under("plant/", tensors), snapshot.metadata["plant"]), keep_panel
        )
        self._ended = tensors["env/ended"].numpy().copy()
        self._initial = tensors["env/initial"].numpy().copy()
        self._previous_positions = tensors["env/previous_positions"].numpy().copy()
        self._observations = tensors["env/observations"].numpy().copy()
        self._registers.values = tensors["env/registers"].numpy().copy()
        self._window = Window(
            **{k: t.numpy().copy() for k, t in _under("window/", tensors).items()}
        )
        self._trajectory = Trajectory(
            **{k: t.numpy().copy() for k, t in _under("trajectory/", tensors).items()}
        )
        self._streams, self._history = streams, histories
        return self._observations.copy()

    @isolated
    def fork(self, k: int, row: int = 0) -> TrainLoopVectorEnv:
        """A new vector env of k rows, each a copy of one row where it stands; this env is left
        untouched.

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
                f"cannot fork {k} copies of row {row}; need k >= 1 and a row below {self.num_envs}"
            )
        whole = self.snapshot()
        index = torch.full((k,), row)
        tensors = {name: tensor[index.to(tensor.device)] for name, tensor in whole.tensors.items()}
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
        copy.restore(
            Snapshot(tensors, whole.metadata | {"rows": [whole.metadata["rows"][row]] * k})
        )
        return copy

    @isolated
    def counterfactual(
        self, actions: NDArray[np.floating], horizon: int, row: int = 0, hold: bool = False
    ) -> FloatArray:
        """What each of k actions would earn, were it the next one: played by copies, the run stays
        where it is.

        The copies train on the same batches, so that their difference is the actions' alone. Each
        rebuilds the plant, so this costs far more than a step. At one step per decision a training
        loss answers to an update one decision later: with `loss_change`, horizon 2 is the smallest
        that sees what the actions do to the weights.

        Args:
            actions: one candidate per copy, (k, A) floating point in [-1, 1].
            horizon: decisions that are played [decisions]; a copy that ends before earns nothing
                more.
            row: of which run.
            hold: play the candidate at every decision; otherwise at the first one alone, and then
                the cells return to where they are now.

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
                f"need actions (k, {len(self.action_names)}) and a whole number horizon >= 1; "
                f"got shape {array.shape} and {horizon!r}"
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
        """Calls a method once, or reads an attribute, and returns one result for every row, as
        SyncVectorEnv does.

        What a method returns per row, as `evaluate` and `render` do, is dealt out to the rows.
        Anything else is the same for all of them.
        """
        value = self._attribute(name)
        if not callable(value):
            return (value,) * self.num_envs
        result = value(*args, **kwargs)
        return tuple(row_value(result, row, self.num_envs) for row in range(self.num_envs))

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """Returns an attribute, once for every row; a space is that of a single row."""
        return (self._attribute(name),) * self.num_envs

    def set_attr(self, name: str, values: Any) -> None:
        """Sets an attribute of the env, which all rows share.

        Args:
            name: of the attribute.
            values: its value; a list or tuple is read as one value for every row.

        Raises:
            ValueError: for a number of values other than N, or values that differ.
        """
        rows = list(values) if isinstance(values, list | tuple) else [values] * self.num_envs
        if len(rows) != self.num_envs or any(value != rows[0] for value in rows):
            raise ValueError(
                f"values of {name!r} must be one value, or {self.num_envs} equal ones, since the rows share it; "
                f"got {values!r}"
            )
        setattr(self, name, rows[0])

    def _attribute(self, name: str) -> Any:
        return getattr(
            self, f"single_{name}" if name in ("observation_space", "action_space") else name
        )

    def render(self) -> tuple[NDArray[np.uint8] | str, ...] | None:
        """One picture, or one line, per run so far."""
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
    """Returns the mode of this name or value: `NEXT_STEP` or, as Gymnasium's own vector envs read it, `NextStep`."""
    names = {mode.name: mode for mode in AutoresetMode}
    spellings = names | {mode.value: mode for mode in AutoresetMode}
    name = given.name if isinstance(given, AutoresetMode) else given
    if not (isinstance(name, str) and name in spellings):
        raise ValueError(f"unknown autoreset_mode {given!r}; expected one of {sorted(names)}")
    return spellings[name]


def _rows(snapshot: Snapshot, seed_mode: str) -> tuple[SeedStreams, list[History]]:
    """The streams of seeds and the histories of a snapshot's rows.

    Raises:
        ValueError: if it has none, or damaged ones.
    """
    try:
        rows = list(snapshot.metadata["rows"])
        streams = SeedStreams(len(rows), seed_mode)
        streams.restore([row["random"] for row in rows])
        return streams, [History(row["history"]) for row in rows]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"rows of the snapshot must hold a stream of seeds and a history each; got {error!r} of "
            f"{snapshot.metadata.get('rows')!r:.200}: restore another snapshot"
        ) from error


def _under(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


class TrainLoopEnv(gym.Env):
    """One training run: TrainLoopVectorEnv with N = 1.

    Attributes:
        vector: the population of one that it is.
    """

    def __init__(self, vector: TrainLoopVectorEnv) -> None:
        """Wraps a vector env of one row, made with autoreset_mode DISABLED.

        Raises:
            ValueError: for more than one row, or another autoreset mode.
        """
        if vector.num_envs != 1 or vector.autoreset_mode != AutoresetMode.DISABLED:
            raise ValueError(
                f"a single env needs one row and autoreset DISABLED; got {vector.num_envs}, {vector.autoreset_mode}"
            )
        self.vector, self.render_mode = vector, vector.render_mode
        self.metadata = {
            "render_modes": list(RENDER_MODES),
            "render_fps": RENDER_FPS,
            "stacked": vector.plant.stacked,
        }
        self.observation_space, self.action_space = (
            vector.single_observation_space,
            vector.single_action_space,
        )
        self.action_names, self.action_kinds = vector.action_names, vector.action_kinds
        self.action_immediate = vector.action_immediate
        self.observation_names, self.corpus_digest = vector.observation_names, vector.corpus_digest

    @property
    def plant(self) -> Plant:
        """What is trained."""
        return self.vector.plant

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], Info]:
        """Begins a new run: observation (F,) and info."""
        super().reset(seed=seed)
        observations, infos = self.vector.reset(seed=seed)
        return observations[0], only_row(infos)

    def step(
        self, action: NDArray[np.floating]
    ) -> tuple[NDArray[np.float32], float, bool, bool, Info]:
        """Sets the panel and advances by one interval: observation (F,), reward, terminated,
        truncated and info.

        Raises:
            ValueError: for an action of the wrong shape or dtype, or with NaN.
            gymnasium.error.ResetNeeded: before the first reset, and after the run has ended.
        """
        if self.vector._window is not None and self.vector._ended[0]:
            raise gym.error.ResetNeeded("the run has ended; call reset() before the next step()")
        array = np.asarray(action)
        if array.shape != self.action_space.shape:
            raise ValueError(
                f"action must be of shape {self.action_space.shape}, one number per {list(self.action_names)}; "
                f"got shape {array.shape}"
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
        """Held-out score, as the plant has it; the only road to the validation slice."""
        return float(self.vector.evaluate()[0])

    def snapshot(self) -> Snapshot:
        """Everything the next step depends on."""
        return self.vector.snapshot()

    def restore(self, snapshot: Snapshot, keep_panel: bool = False) -> NDArray[np.float32]:
        """Continues from a snapshot, bitwise, and returns the observation (F,); see
        TrainLoopVectorEnv.

        A wrapper that counts decisions, as the TimeLimit of `max_episode_steps`, does not notice:
        its step() raises TypeError until the wrapped env has been reset once. Call `env.reset()`
        before `env.unwrapped.restore(...)`.
        """
        return self.vector.restore(snapshot, keep_panel)[0]

    def fork(self, k: int) -> TrainLoopVectorEnv:
        """A new vector env of k copies of this run where it stands."""
        return self.vector.fork(k)

    def counterfactual(
        self, actions: NDArray[np.floating], horizon: int, hold: bool = False
    ) -> FloatArray:
        """What each of k actions would earn within `horizon` decisions, (k,); see TrainLoopVectorEnv."""
        return self.vector.counterfactual(actions, horizon, 0, hold)

    def close(self) -> None:
        """Closes the env; a later reset() or step() raises gymnasium.error.ClosedEnvironmentError."""
        self.vector.close()

    def render(self) -> NDArray[np.uint8] | str | None:
        """A picture, or a line, of the run so far."""
        pictures = self.vector.render()
        return None if pictures is None else pictures[0]
