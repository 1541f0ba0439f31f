"""The Sidecar: a controller that learns within the run that it controls, and ends with it.

A small network per run moves every channel and learns from the run's own loss by REINFORCE, one
decision at a time (`agents.reinforce`).

Choices where the paper (000, sections 2.3 and 5.1) is silent:

- Its "short history used to stabilize REINFORCE" is a replay of the last decisions with PPO's
  clipped ratio, per cell.
- Advantages are divided by their running root mean square, so that the unit of the reward does not
  matter.
- Cells of the forward pass are also credited with the reward of the same decision, twice
  (`returns.credit_weights`).
- Sizes, rates and standard deviations are ours.

The noise of a batch is a hundred times the effect of one cell, so a policy's cost depends on its
response to noise. Each cell's gradient is the natural gradient (sigma^2 for the mean, 1/2 for log
sigma: a step of the mean is rate x advantage x (sample - mean)). It is multiplied by a gate of
evidence, max(0, 1 - (z / t)^2), the positive-part shrinkage of James and Stein. t is the cell's
t-statistic over its past (`credits.Evidence`). Adam moves as far for noise as for a signal. An
earlier version with Adam, without this gate and with other rates and deviations, ended 2.7 % [1.7,
3.7] above its default in bits per byte. The means of `cell11` had wandered by 0.1 in 3000 steps. It
is not known which of these differences was the cause. No effect of the gate alone has been shown.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np

from agents.base import BoolArray, Float32Array, FloatArray, Rollout
from agents.reinforce import ReinforceAgent
from agents.sidecar_config import SidecarConfig
from hpenv.policies.controller import Columns, ControllerSpec

#: Between two measurements of effects in `SidecarConfig.effects`: the second is subtracted.
LESS = " - "
#: In place of a measurement: cells whose effects are short-sighted are left where they are.
HOLD = "none"


class Sidecar:
    """N runs with one network each, which learn while their runs train.

    Args:
        config: hyperparameters.
        seed: seed of weights and samples.
        spec: what it asks of an environment.

    Attributes:
        agent: the networks, new at every reset.
    """

    agent: ReinforceAgent

    def __init__(
        self,
        config: SidecarConfig | None = None,
        seed: int = 0,
        spec: ControllerSpec | None = None,
    ) -> None:
        self.config, self.seed = config, seed
        self.spec = ControllerSpec() if spec is None else spec

    @property
    def reads(self) -> tuple[str, ...]:
        """Measurements of the cells' effects that `learn` reads."""
        config = SidecarConfig() if self.config is None else self.config
        if not config.attached or config.credit == "reward":
            return ()
        names = (name for pair in config.effects for name in pair.split(LESS) if name != HOLD)
        return tuple(dict.fromkeys(names))

    def reset(self, columns: Columns) -> None:
        """Begins new runs with new networks."""
        self._num_decisions = columns.num_decisions
        self._is_immediate = np.array(columns.action_immediate, dtype=bool)
        self.agent = ReinforceAgent(
            columns.num_runs,
            len(columns.observation_names),
            columns.action_kinds,
            columns.action_immediate,
            self.config,
            self.seed,
            columns.action_names,
        )

    def act(self, observations: np.ndarray) -> Float32Array:
        """Returns sampled positions, (N, A), at observations (N, F)."""
        self._observations, self._decision = observations, self.agent.sample(observations)
        return self._decision.action

    def mean(self, observations: np.ndarray) -> Float32Array:
        """Returns positions without exploration, (N, A), at observations (N, F)."""
        return self.agent.policy.act(observations)

    def learn(
        self,
        rewards: FloatArray,
        alive: BoolArray,
        measured: Mapping[str, FloatArray] | None = None,
    ) -> dict[str, float]:
        """Learns from the rewards (N,) of the last decision. Returns the agent's metrics.

        Args:
            rewards: (N,).
            alive: True for runs that took the decision, (N,).
            measured: the measurements of `reads`, (N, cells of the panel) each.
        """
        _, raw, log_prob = self._decision
        effects = self._effects(measured or {}) if self.reads else None
        rollout = Rollout(
            self._observations[None],
            raw[None],
            log_prob[None],
            rewards[None],
            alive[None],
            effects,
        )
        return self.agent.update(rollout, continues=True)

    def _effects(self, measured: Mapping[str, FloatArray]) -> FloatArray:
        """Returns the effects for the part of the run that is left, (1, N, A). 0 of registers."""
        left = self._num_decisions - self.agent.num_decisions
        name = next(name for name, least in self.agent.config.effects.items() if least <= left)
        result = np.zeros((1, *self._decision.action.shape))
        if name == HOLD:  # the effect of a dial is not that of its past
            name, is_held = list(self.agent.config.effects)[-1], ~self._is_immediate
        else:
            is_held = np.zeros(len(self._is_immediate), dtype=bool)
        slow, *fast = (measured[part] for part in name.split(LESS))
        cells = slice(0, slow.shape[1])
        result[0, :, cells] = np.where(is_held[cells], 0.0, slow)
        for part in fast:  # nor does a dial have a memory
            result[0, :, cells] -= np.where(self._is_immediate[cells], 0.0, part)
        return result

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes everything that the next decision depends on to a folder, after `learn`."""
        self.agent.save(path)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Continues bitwise from a folder of `save`, after `reset` with the same columns."""
        self.agent.load(path)
