"""The environment: an action sets the panel, the plant trains, features and terms are computed.

N runs are stepped together, and each run is one episode. `hpenv.envs.single.TrainLoopEnv` is the
same environment with N = 1. `hpenv.branching` takes snapshots, forks and counterfactuals. The
module is one class, and longer than usual for that reason.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from hpenv.arrays import BoolArray, FloatArray, IntArray
from hpenv.checks import as_python, autoreset_mode_of, check_count, check_interval
from hpenv.control.moves import MaxMoves, check_mapping, largest_moves, move_positions
from hpenv.infos import Info, decision_infos, infos_of_restart, row_value, with_masks
from hpenv.isolation import with_torch_defaults
from hpenv.plant.measurements import Window
from hpenv.plant.protocol import Plant
from hpenv.render import METADATA, check_render_mode, draw, summarize
from hpenv.telemetry.episodes import Episodes
from hpenv.telemetry.estimators import estimation_of, estimation_values
from hpenv.telemetry.features import FEATURES, check_features
from hpenv.telemetry.observation import Observation
from hpenv.telemetry.reading import Layout, Reading, groups_read
from hpenv.telemetry.registers import accumulate, check_registers
from hpenv.telemetry.rewards import REWARD_TERMS, check_weights, measured_terms, reward_terms


class TrainLoopVectorEnv(gym.vector.VectorEnv):
    """N training runs as one vector environment.

    Attributes:
        plant: the plant that trains the N runs.
        arguments: arguments that a snapshot must match.
        evaluate_at_end: True if the last info of an episode has the run's held-out score.
        episodes: state of the N episodes that is not the plant's.
        action_names: name of each column of the action: the panel's cells, then the registers.
        action_kinds: kind of each column's channel, `register` for a register.
        action_immediate: True for a column that changes the loss of a decision's first step
            already.
        observation_names: name of each column of the observation.
        autoreset_mode: what happens to a row whose episode has ended.
        corpus_digest: sha256 of the training data, or of the student that the runs begin with.
        moves: True if an action is a change of the positions.
    """

    def __init__(
        self,
        plant: Plant,
        *,
        features: Sequence[str] = ("progress",),
        reward: Mapping[str, float] | None = None,
        interval: int = 50,
        num_steps: int = 561,
        num_registers: int = 0,
        register_leak: float = 0.9,
        seed_mode: str = "independent",
        mapping: str = "position",
        max_moves: MaxMoves | None = None,
        estimators: str | Mapping[str, Any] = "stepwise",
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
            num_steps: steps of an episode [steps].
            num_registers: number of accumulators. Further columns of the action write them, and the
                feature `registers` reads them.
            register_leak: fraction of a register that a decision keeps, in [0, 1).
            seed_mode: `independent`: row i of seed s draws the seeds of its runs from the stream
                of s + i. `grouped`: all rows draw from the stream of s.
            mapping: `position`: an action is the position of each cell. `move`: it is a fraction of
                the largest change of the position. 0 then holds the cell.
            max_moves: channel -> largest changes of its position per decision, down and up. Other
                channels have `hpenv.control.moves.DEFAULT_MOVE`.
            estimators: key of `hpenv.telemetry.estimators.ESTIMATIONS`, or fields of Estimation.
            autoreset_mode: an AutoresetMode, its name or its value.
            render_mode: None, `rgb_array` or `ansi`.
            evaluate_at_end: the last info of an episode has the run's held-out score as `held_out`.
                Whenever a row ends, all rows are evaluated.
            max_episode_steps: number of decisions after which an episode is truncated, as
                Gymnasium's TimeLimit does [decisions].

        Raises:
            ValueError: for an argument that does not fit, with what is accepted.
        """
        self._weights = {"progress": 1.0, "divergence": 1.0} if reward is None else dict(reward)
        check_features(features, plant.measurements)
        check_weights(self._weights, plant.measurements)
        check_registers(num_registers, register_leak)
        check_interval(interval, num_steps)
        check_render_mode(render_mode)
        if not isinstance(evaluate_at_end, bool):
            raise ValueError(f"evaluate_at_end must be True or False; got {evaluate_at_end!r}")
        if max_episode_steps is not None:
            check_count("max_episode_steps", max_episode_steps)

        self.arguments: dict[str, Any] = as_python(
            {
                "interval": interval,
                "num_steps": num_steps,
                "features": list(features),
                "reward": self._weights,
                "num_registers": num_registers,
                "register_leak": register_leak,
                "seed_mode": seed_mode,
                "mapping": mapping,
                "max_moves": check_mapping(mapping, max_moves),
                "estimators": estimation_values(estimators),
                "max_episode_steps": max_episode_steps,
            }
        )
        self.plant, self.num_envs = plant, plant.num_rows
        self.corpus_digest = plant.corpus_digest
        self.interval, self.num_steps, self.seed_mode = interval, num_steps, seed_mode
        self.autoreset_mode = mode = autoreset_mode_of(autoreset_mode)
        self.render_mode = render_mode
        self._limit = math.inf if max_episode_steps is None else max_episode_steps
        # stacked: True if all rows are trained as one population, False if one after the other.
        self.metadata = METADATA | {"autoreset_mode": mode, "stacked": plant.stacked}

        self.evaluate_at_end = evaluate_at_end
        paid = [REWARD_TERMS[name] for name, weight in self._weights.items() if weight]
        seen = [FEATURES[name] for name in features]
        groups = groups_read([*seen, *paid], plant.measurements)
        plant.set_measured_groups(groups)
        self._probes, self._terms = "probe" in groups, measured_terms(plant.measurements, groups)

        cells = plant.panel
        self._estimation = estimation_of(estimators)
        self.moves = mapping == "move"
        self._largest = largest_moves(cells.channel_names, self.arguments["max_moves"])
        self._layout = Layout(
            cells.names, cells.kinds, plant.num_layers, num_registers, cells.groups
        )
        self._observation = columns = Observation(features, self._layout)
        self.action_names = cells.names + tuple(f"register/{i}" for i in range(num_registers))
        self.action_kinds = cells.kinds + ("register",) * num_registers
        self.action_immediate = cells.immediate + (False,) * num_registers
        self.observation_names = columns.names

        low, high = columns.low.astype(np.float32), columns.high.astype(np.float32)
        self.single_observation_space = gym.spaces.Box(low, high)
        self.single_action_space = gym.spaces.Box(-1.0, 1.0, (len(self.action_names),), np.float32)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

        sizes = (self.num_envs, plant.num_layers, len(cells.groups))
        window = Window.empty(*sizes, plant.measurements, len(cells.names))
        numbers = (len(cells.names), len(columns.names), num_registers)
        self.episodes = Episodes.empty(window, *numbers, seed_mode, seen)

    @property
    def steps(self) -> IntArray:
        """Optimizer steps that each run has taken, (N,)."""
        return self.episodes.window.steps.copy()

    @property
    def features(self) -> tuple[str, ...]:
        """Observed features, keys of FEATURES."""
        return tuple(self.arguments["features"])

    @property
    def num_decisions(self) -> int:
        """Number of decisions of an episode. The last window may be shorter than the interval."""
        return int(min(-(-self.num_steps // self.interval), self._limit))

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
        if not (self.episodes.begun or rows.all()):
            raise ValueError(
                "the first reset must be of all rows; got a reset_mask with at least one False"
            )

        super().reset(seed=self.episodes.streams.seed(seed, rows))
        self._begin(rows)
        no_rows = np.zeros_like(rows)
        reading = self._advance(no_rows, rows)
        return self._results(reading, no_rows, rows, dict.fromkeys(self._terms, no_rows * 0.0))

    @with_torch_defaults
    def step(
        self, actions: NDArray[np.floating]
    ) -> tuple[NDArray[np.float32], FloatArray, BoolArray, BoolArray, Info]:
        """Sets the panel and advances every run by one interval.

        Args:
            actions: (N, A) floating point. 0 is neutral, or holds the cell if actions are moves.
                Values outside [-1, 1] are clipped.

        Returns:
            Observations (N, F), rewards (N,), terminated (N,), truncated (N,) and infos.

        Raises:
            ValueError: for actions of the wrong shape or dtype, or with NaN.
            gymnasium.error.ResetNeeded: before the first reset.
            gymnasium.error.ClosedEnvironmentError: after close().
        """
        self._check_open("step")
        self.episodes.require_reset("step")
        positions = self._check_actions(actions)
        episodes, cells = self.episodes, len(self._layout.cell_names)

        moving = ~episodes.ended
        restarting = episodes.ended & (self.autoreset_mode == AutoresetMode.NEXT_STEP)
        if restarting.any():
            self._begin(restarting)

        panel, wanted = self.plant.panel, positions[:, :cells]
        if self.moves:
            wanted = move_positions(panel.positions, wanted, self._largest, panel.one_sided)
        panel.move(wanted, moving)
        episodes.registers[moving] = accumulate(
            episodes.registers, positions[:, cells:], self.arguments["register_leak"]
        )[moving]
        reading = self._advance(moving, restarting)
        terms = reward_terms(self._terms, reading)
        total = np.sum(
            [weight * terms[name] for name, weight in self._weights.items() if weight], axis=0
        )

        window = episodes.window
        finished = (window.steps >= self.num_steps) | (window.divergence > 0)
        at_limit = -(-window.steps // self.interval) >= self._limit
        episodes.ended = np.where(moving, finished | at_limit, episodes.ended)
        terminated, truncated = episodes.ended & finished, episodes.ended & at_limit

        observations, infos = self._results(reading, moving, moving | restarting, terms)
        episodes.previous_positions[moving] = self.plant.panel.positions[moving]
        if self.autoreset_mode == AutoresetMode.SAME_STEP and episodes.ended.any():
            ended, last_observations = episodes.ended.copy(), observations
            observations, fresh = self.reset(options={"reset_mask": ended})
            infos = infos_of_restart(infos, fresh, last_observations, ended)
        return observations, np.where(moving, total, 0.0), terminated, truncated, infos

    def _check_open(self, name: str) -> None:
        if self.closed:
            raise gym.error.ClosedEnvironmentError(
                f"cannot {name}() after close(); make a new environment"
            )

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

    def _begin(self, rows: BoolArray) -> None:
        """Gives these rows new weights, a new data order, a neutral panel and empty registers."""
        self.plant.reset(self.episodes.begin(rows), np.flatnonzero(rows).tolist())

    def _advance(self, moving: BoolArray, fresh: BoolArray) -> Reading:
        """Trains the moving rows for one interval, and measures them and the rows just reset."""
        episodes, panel = self.episodes, self.plant.panel
        left = np.minimum(self.interval, self.num_steps - episodes.window.steps)
        window = self.plant.advance(np.where(moving, left, 0))
        common = (self.num_steps, panel.positions, self._layout, self._estimation)
        return episodes.add_window(window, moving, fresh, self._probes, *common)

    def _results(
        self, reading: Reading, moved: BoolArray, rows: BoolArray, terms: Mapping[str, FloatArray]
    ) -> tuple[NDArray[np.float32], Info]:
        """Returns observations (N, F) and infos, and records the history for `render()`.

        Args:
            reading: measurements of the decision.
            moved: rows that were trained. The others have no measurements of training.
            rows: rows that were trained or reset. The others repeat their last observation.
            terms: reward terms without their weights.
        """
        episodes, window, panel = self.episodes, reading.window, self.plant.panel
        observed = self._observation.read(reading).astype(np.float32)
        episodes.observations[rows] = observed[rows]

        infos = decision_infos(
            window, self.plant.measurements, panel, terms, moved, rows, self._probes
        )
        if self.evaluate_at_end:
            # Only bits per byte can be too large for float32.
            ended, largest = moved & episodes.ended, float(np.finfo(np.float32).max)
            scores = self.plant.evaluate() if ended.any() else np.zeros(self.num_envs)
            scores = np.nan_to_num(np.where(ended, scores, 0.0), nan=largest, posinf=largest)
            infos |= with_masks({"held_out": scores}, ended)

        # Without a render_mode nothing is recorded, because a history grows with every decision.
        if self.render_mode is not None:
            episodes.record(rows, "probe_loss" if self._probes else "train_loss", panel)
        return episodes.observations.copy(), infos

    @with_torch_defaults
    def evaluate(self) -> FloatArray:
        """Returns the held-out score of every run, (N,), as `plant.score` describes it.

        Only this method, `report` and `evaluate_at_end=True` use held-out data.

        Raises:
            gym.error.ResetNeeded: before the first reset(), when there is no run yet.
        """
        self.episodes.require_reset("evaluate")
        return self.plant.evaluate()

    def render(self) -> tuple[NDArray[np.uint8] | str, ...] | None:
        """Returns one picture or one line of text per run so far. None without a `render_mode`."""
        if self.render_mode is None:
            return None

        paint = draw if self.render_mode == "rgb_array" else summarize
        cells, unit = self.plant.panel, self.plant.score.loss_unit
        loss = f"{'probe' if self._probes else 'training'} loss [{unit}]"
        return tuple(
            paint(history, cells.names, cells.neutral, self.num_steps, loss)
            for history in self.episodes.histories
        )

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Calls a method once, or reads an attribute, and returns one result per row.

        SyncVectorEnv does the same. A result with one entry per row, as of `evaluate` and `render`,
        is divided among the rows. Any other result is returned for all of them.
        """
        value = self.get_attr(name)[0]
        if not callable(value):
            return (value,) * self.num_envs

        result = value(*args, **kwargs)
        return tuple(row_value(result, row, self.num_envs) for row in range(self.num_envs))

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """Returns an attribute once for every row. A space is that of a single row."""
        single = f"single_{name}" if name in ("observation_space", "action_space") else name
        return (getattr(self, single),) * self.num_envs

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
