"""Discounted Thompson sampling over presets of gains of AdaptiveRL's control law.

Every window of decisions, a run draws one preset (an arm) from its own posterior, and the control
law acts with that preset's gains, caps and pace. `agents.thompson` has the formulas.

References:
    "AdaptiveRL: a control-theoretic scheduler for alpha, mu, sigma", section 9: the presets of
    gain, cap and `update_every`, the window, the normalized loss drop, discounted Thompson
    sampling. The presets and the length of the window are ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from agents.base import BoolArray, Float32Array, FloatArray
from agents.thompson import (
    BanditConfig,
    add_reward,
    posterior,
    standardize_reward,
    thompson_arms,
)
from hpenv.policies.control_law import AdaptiveRL
from hpenv.policies.controller import Columns, ControllerSpec

#: Bounds of the rate's factor in the mode that is relative to a base schedule: around 1 (ours).
RELATIVE_BOUNDS = (0.2, 5.0)


class Preset(NamedTuple):
    """One arm.

    Attributes:
        law: changes of the fields of `hpenv.policies.control_law.Law`.
        every: the law acts at every so many decisions, and holds the dials in between.
    """

    law: Mapping[str, Any]
    every: int = 1


_NO_MOMENTUM = {"momentum_reward": 0.0, "momentum_loss": 0.0}
_NO_NOISE = {"noise_plateau": 0.0, "noise_reward": 0.0}

#: Name -> arm. `published` is the middle of the ranges of AdaptiveRL, section 6. `careful` has the
#: smallest gains of these ranges, and the caps for production, at every second decision. The others
#: are ours: they can climb or cool by far in a short run, or stay.
PRESETS: dict[str, Preset] = {
    "hold": Preset({"rate_reward": 0.0, "rate_loss": 0.0, **_NO_MOMENTUM, **_NO_NOISE}),
    "careful": Preset(
        {
            "rate_reward": 0.02,
            "rate_loss": 0.02,
            "momentum_reward": 0.01,
            "momentum_loss": 0.02,
            "rate_caps": (0.95, 1.05),
        },
        every=2,
    ),
    "published": Preset({}),
    "climb": Preset(
        {"rate_reward": 0.4, "rate_loss": 0.0, "rate_caps": (0.7, 1.4), **_NO_MOMENTUM}
    ),
    "cool": Preset({"rate_reward": 0.0, "rate_loss": 0.4, "rate_caps": (0.7, 1.4), **_NO_MOMENTUM}),
}


class ThompsonSampling:
    """N runs with a bandit each, which learns from the run's own rewards and ends with it.

    The draws of a run are a function of the seed, the run's row and the number of its window. The
    damping of the law belongs to the run: it goes on when the arm changes.

    With a base schedule (the id's argument `schedule`), the factor of the rate multiplies it.
    `modulating_bandit` keeps the factor near 1, as AdaptiveRL's section 9 has it.

    Args:
        presets: name -> arm.
        config: constants of the bandit.
        interval: steps per decision [steps].
        noise: channel of the exploration noise, or None. See `AdaptiveRL`.
        rate_bounds: bounds of the rate's factor, of all arms.
        seed: seed of the draws.

    Raises:
        ValueError: there are fewer than two presets, or one of them is not valid.
    """

    def __init__(
        self,
        presets: Mapping[str, Preset] | None = None,
        config: BanditConfig | None = None,
        interval: int = 10,
        noise: str | None = "exploration",
        rate_bounds: Sequence[float] = (0.01, 100.0),
        seed: int = 0,
    ) -> None:
        presets = PRESETS if presets is None else presets
        if len(presets) < 2:
            raise ValueError(f"presets must be at least two; got {list(presets)}")
        if bad := [name for name, preset in presets.items() if preset.every < 1]:
            raise ValueError(f"every must be at least 1; got less in {bad}")

        self.config = BanditConfig() if config is None else config
        self.names, self._seed = tuple(presets), seed
        self._every = np.array([preset.every for preset in presets.values()])
        common = {"rate_bounds": tuple(rate_bounds)}
        self._laws = [
            AdaptiveRL({**preset.law, **common}, interval=interval, noise=noise)
            for preset in presets.values()
        ]

        first = self._laws[0].spec
        channels = [bank[0] for bank in first.channels or ()]
        moves = np.array(
            [[(law.spec.max_moves or {})[name] for name in channels] for law in self._laws]
        )
        self._moves = moves  # largest moves of the arms, (K, A, 2)
        self._largest = moves.max(axis=0)
        self.spec = ControllerSpec(
            channels=first.channels,
            observation=first.observation,
            interval=interval,
            mapping="move",
            max_moves=dict(zip(channels, self._largest.tolist(), strict=True)),
            estimators=first.estimators,
        )
        self._start(0)

    def _start(self, num_runs: int) -> None:
        shape = (num_runs, len(self._laws))
        self._counts, self._sums = np.zeros(shape), np.zeros(shape)
        self._moments = np.zeros((3, num_runs))
        self._earned = np.zeros(num_runs)
        self._arms = np.zeros(num_runs, dtype=np.int64)
        self._decision = 0
        self._law_state = {"gain": np.ones(num_runs), "sign": np.zeros(num_runs)}

    def reset(self, columns: Columns) -> None:
        """Begins new runs with the prior."""
        self._start(columns.num_runs)
        for law in self._laws:
            law.reset(columns)

    @property
    def arms(self) -> np.ndarray:
        """The arm that each run plays, an index into `names`, (N,)."""
        return self._arms.copy()

    def posterior(self) -> tuple[FloatArray, FloatArray]:
        """Returns mean and standard deviation of every arm's mean reward, (N, K) each."""
        config = self.config
        return posterior(
            self._counts, self._sums, config.prior_mean, config.prior_count, config.noise
        )

    def act(self, observations: np.ndarray) -> Float32Array:
        """Returns moves (N, A) at observations (N, F). At the start of a window it draws arms."""
        if len(observations) != len(self._arms):
            self._start(len(observations))
        window, place = divmod(self._decision, self.config.window)
        if place == 0:
            normals = [
                np.random.default_rng([self._seed, row, window]).standard_normal(len(self._laws))
                for row in range(len(self._arms))
            ]
            self._arms = thompson_arms(*self.posterior(), np.stack(normals))

        moves = np.zeros((len(self._arms), len(self._largest)), dtype=np.float32)
        state = {name: array.copy() for name, array in self._law_state.items()}
        for arm, law in enumerate(self._laws):
            rows = (self._arms == arm) & (self._decision % self._every[arm] == 0)
            if rows.any():
                law.set_state(self._law_state)
                moves[rows] = self._scale(arm, law.act(observations))[rows]
                for name, array in law.state().items():
                    state[name][rows] = array[rows]
        self._law_state = state
        self._decision += 1
        return moves

    def _scale(self, arm: int, moves: Float32Array) -> Float32Array:
        """Returns an arm's moves as fractions of the largest moves of all arms."""
        down, up = (
            self._moves[arm, :, side] / np.maximum(self._largest[:, side], 1e-12) for side in (0, 1)
        )
        return np.where(moves < 0, moves * down, moves * up).astype(np.float32)

    def learn(self, rewards: FloatArray, alive: BoolArray) -> dict[str, float]:
        """Adds the rewards (N,) of a decision, and at a window's end learns from their sum.

        Returns:
            At a window's end `train/arm/<name>`, the fraction of the runs that played it, and
            `train/value/<name>`, the mean of its posterior means. Else nothing.
        """
        self._earned = self._earned + np.where(alive, rewards, 0.0)
        if self._decision % self.config.window:
            return {}

        discount = self.config.discount
        scores, self._moments = standardize_reward(self._moments, self._earned, alive, discount)
        self._counts, self._sums = add_reward(
            self._counts, self._sums, self._arms, scores, alive, discount
        )
        self._earned = np.zeros_like(self._earned)

        means, _ = self.posterior()
        metrics = {}
        for arm, name in enumerate(self.names):
            metrics[f"train/arm/{name}"] = float(np.mean(self._arms == arm))
            metrics[f"train/value/{name}"] = float(means[:, arm].mean())
        return metrics

    def state(self) -> dict[str, np.ndarray]:
        """Returns all that changes within a run, as arrays."""
        return {
            "counts": self._counts,
            "sums": self._sums,
            "moments": self._moments,
            "earned": self._earned,
            "arms": self._arms,
            "decision": np.array(self._decision),
        } | self._law_state

    def set_state(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Continues from the arrays of `state`."""
        for name in ("counts", "sums", "moments", "earned", "arms"):
            setattr(self, f"_{name}", np.array(arrays[name]))
        self._decision = int(arrays["decision"])
        self._law_state = {name: np.array(arrays[name]) for name in ("gain", "sign")}


def modulating_bandit() -> ThompsonSampling:
    """Returns the bandit for runs with a base schedule, whose factor of the rate stays near 1."""
    return ThompsonSampling(rate_bounds=RELATIVE_BOUNDS)
