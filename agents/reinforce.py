"""REINFORCE with a credit per cell: small networks that move every channel, one per run or shared.

Every decision samples each cell's position from a Gaussian. When the rewards that the decision
affects have arrived, the credit minus a baseline is the decision's advantage, and the policy
gradient moves mean and standard deviation. N networks are stacked like their N runs. No weight,
number or random draw of one reaches another, except with the baseline `population`, which compares
rows. A shared network decides all rows and learns from them all.

The ratio's denominator is the density per cell under the weights at the start of `update`, computed
from the stored observations. Those weights took the decisions: the contract of a Rollout says so,
and online training (one update per decision) always meets it. `Rollout.log_prob` is a sum over
cells and cannot be split. The agent learns from a rollout of an older version as if this one had
taken the decisions: `train/staleness` reports the difference. The module is long, as one class.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from agents.base import (
    BoolArray,
    Decision,
    FloatArray,
    Rollout,
    check_counters,
    check_identity,
    check_rollout,
    config_json,
    episode_metrics,
)
from agents.cell_networks import kind_metrics, make_networks, outputs_of_cells
from agents.credits import Evidence, LinearPart
from agents.estimates import STREAMS, linear_parts
from agents.losses import bound_norms, clipped_surrogate, gaussian_log_density, scale_gradient
from agents.replay import Replay
from agents.sidecar_config import SidecarConfig
from hpenv.policies.cells import CellMLP
from hpenv.policies.neutral import Neutral
from hpenv.policies.store import load_state, save_state

#: Names of the counters in a saved agent's metadata.
COUNTERS = ("num_decisions", "num_updates")


class ReinforceAgent:
    """N networks, one per row, or one network of N rows. Each has a private random generator.

    `Decision.raw` is (N, M) and `Rollout.raw` is (T, N, M). M counts A cells and, with
    `config.common`, K channels.

    Args:
        num_rows: N.
        observation_size: F.
        action_kinds: kind of every cell, (A,).
        action_immediate: True for cells whose effect shows in the reward of the same decision,
            (A,). See `returns.credit_weights`.
        config: hyperparameters.
        seed: row n draws from np.random.SeedSequence([seed, first_row + n]).
        action_names: names of the cells, (A,), `channel/...`. `initial_mean` and `common` need
            them.
        first_row: number of the first row. It allows one row of a population to be made alone.
        shared: one network decides all rows, and learns from them all.

    Attributes:
        num_decisions: number of decisions so far, learned from or waiting for their credit.
        num_updates: number of steps of the optimizer so far.
    """

    def __init__(
        self,
        num_rows: int,
        observation_size: int,
        action_kinds: Sequence[str],
        action_immediate: Sequence[bool],
        config: SidecarConfig | None = None,
        seed: int = 0,
        action_names: Sequence[str] = (),
        first_row: int = 0,
        shared: bool = False,
    ) -> None:
        self.config = SidecarConfig() if config is None else config
        kinds, names = list(action_kinds), list(action_names)
        immediate = [bool(flag) for flag in action_immediate]
        if self.config.baseline == "population" and num_rows < 2:
            raise ValueError(
                f"num_rows must be >= 2 with baseline 'population'; got {num_rows}; "
                "give more rows, or baseline 'own'"
            )

        # Two streams per network, or the first noise would repeat the initial weights.
        num_networks = 1 if shared else num_rows
        words = [
            np.random.SeedSequence([seed, first_row + row]).generate_state(2)
            for row in range(num_networks)
        ]
        self._cells = make_networks(
            [int(weights_seed) for weights_seed, _ in words],
            observation_size,
            kinds,
            names,
            self.config,
        )
        if len(immediate) != len(kinds):
            raise ValueError(
                f"action_immediate must have {len(kinds)} flags, one per cell; got {len(immediate)}"
            )
        self._neutral = Neutral(len(kinds))

        self._generators = [
            torch.Generator().manual_seed(int(draws_seed)) for _, draws_seed in words
        ]
        self._parameters = list(self._cells.parameters())
        self._optimizer = torch.optim.SGD(self._parameters, lr=self.config.learning_rate)

        outputs = outputs_of_cells(self._cells, immediate)
        self._credits = STREAMS[self.config.credit](num_rows, outputs, self.config)
        num_outputs = len(outputs)
        # Of means and of standard deviations.
        self._evidence = Evidence((num_networks, 2, num_outputs), self.config.evidence_decay)
        sizes = (num_rows, observation_size, num_outputs, self.config.replay_size)
        self._replay = Replay(*sizes, has_slopes=self.config.credit != "reward")
        self._num_rows = num_rows
        self._ended = np.zeros(num_rows, dtype=bool)
        self.num_decisions = 0
        self.num_updates = 0

        self._columns: dict[str, list[Any]] = {
            "action_kinds": kinds,
            "action_immediate": immediate,
            "action_names": names,
        }

    @property
    def policy(self) -> CellMLP | Neutral:
        """The networks, or the neutral policy if they are detached."""
        return self._cells if self.config.attached else self._neutral

    @torch.no_grad()
    def sample(self, observations: np.ndarray) -> Decision:
        """Samples raw ~ N(mean, std) for each cell and returns the action clip(raw, -1, 1).

        Args:
            observations: (N, F).
        """
        batch = self._cells.as_rows(observations)  # (G, N / G, F)
        num_rows, M = len(observations), self._cells.output_size
        if not self.config.attached:
            zeros = np.zeros((num_rows, M), dtype=np.float32)
            return Decision(self._neutral.act(observations), zeros, zeros[:, 0].copy())

        mean, log_std = self._cells(batch)
        noise = torch.stack(
            [torch.randn(batch.shape[1], M, generator=generator) for generator in self._generators]
        )
        raw = mean + torch.exp(log_std) * noise
        log_prob = gaussian_log_density(raw, mean, log_std).sum(-1)

        raw = raw.reshape(num_rows, M)
        return Decision(
            self._cells.positions(raw).numpy(), raw.numpy(), log_prob.reshape(num_rows).numpy()
        )

    def update(self, rollout: Rollout, continues: bool = False) -> dict[str, float]:
        """Learns from T decisions in order, with a step on the replay after each complete credit.

        A row that is not alive has ended, and its weights do not change.

        Args:
            rollout: whole episodes of N runs.
            continues: the rollout's runs are those of the last one. T is 1 in online training.

        Returns:
            Metrics under stable-baselines3's tags, as means over the rows that are alive.

            - rollout/reward: over all T decisions.
            - train/std/<kind> and train/mean_abs_position/<kind>: of the last decision's
              distribution and of its mean.
            - train/staleness: mean difference per cell between the recorded log density and the one
              at the start of this update [nats]. It is 0 up to rounding if these weights took the
              decisions.
            - After the first complete credit, as of the last step: train/evidence, the mean gate of
              the means in [0, 1], train/policy_gradient_loss, train/clip_fraction,
              train/gradient_norm before its bound, and train/credit, train/baseline and
              train/advantage_rms [reward].

        Raises:
            ValueError: the rollout's shapes disagree, it holds a NaN or no decision, or a row that
                ended is alive.
        """
        check_rollout(rollout, self._cells.observation_size, self._cells.output_size)
        alive = rollout.alive
        if alive.shape[1] != self._num_rows:
            raise ValueError(f"rollout must have {self._num_rows} rows; got {alive.shape[1]}")
        if not continues:  # new runs: weights, replay, baselines and evidence stay
            self._ended = np.zeros(self._num_rows, dtype=bool)
            self._replay.restart()
            self._credits.restart()
        if (alive & self._ended).any():
            rows = np.flatnonzero((alive & self._ended).any(axis=0)).tolist()
            raise ValueError(
                f"rollout.alive must stay False after a run's end; got True again in rows {rows}; "
                "a network ends with its run"
            )

        self._ended = self._ended | ~alive[-1]
        rewards = np.where(alive, np.asarray(rollout.rewards, dtype=np.float64), 0.0)
        metrics = {"rollout/reward": float(rewards.sum() / alive.sum())}
        if not continues:
            metrics |= episode_metrics(rollout)
        if not self.config.attached:
            return metrics

        obs = _per_row(rollout.observations, alive)  # (N, T, F)
        raw = _per_row(rollout.raw, alive)  # (N, T, M)

        with torch.no_grad():
            mean, log_std = (
                part.reshape(raw.shape) for part in self._cells(self._per_network(obs))
            )
            log_density = gaussian_log_density(raw, mean, log_std)
            noise = (raw - mean) * torch.exp(-log_std)
            decisions = torch.cat([obs, raw, log_density, noise], dim=-1)

        recorded = np.where(alive, rollout.log_prob, 0.0)
        difference = np.abs(log_density.sum(-1).numpy().T - recorded)[alive]
        metrics["train/staleness"] = float(difference.mean() / self._cells.output_size)

        parts = linear_parts(rollout, noise, log_std, self._cells.common, self.config.credit)
        last = int(np.flatnonzero(alive.any(axis=1))[-1])
        metrics |= kind_metrics(
            self._cells,
            self._columns["action_kinds"],
            mean[:, last][alive[last]],
            log_std[:, last][alive[last]],
        )

        if continues:
            for t in range(last + 1):
                metrics |= self._take(decisions[:, t], rewards[t], alive[t], parts[t])
            return metrics

        # A decision is credited if it was taken. After the end of a run its rewards are 0.
        span = self._credits.span  # from a decision to its last reward
        for t in range(last + 1 + span):
            earned = rewards[t] if t <= last else np.zeros(self._num_rows)
            credited = alive[max(t - span, 0)]
            metrics |= self._take(decisions[:, min(t, last)], earned, credited, parts[min(t, last)])
        return metrics

    def _per_network(self, array: torch.Tensor) -> torch.Tensor:
        """Returns an array of rows (N, T, X) as (G, N / G T, X)."""
        return array.reshape(self._cells.num_rows, -1, array.shape[-1])

    def _take(
        self, decision: torch.Tensor, rewards: FloatArray, alive: BoolArray, part: LinearPart | None
    ) -> dict[str, float]:
        """Adds one decision, and learns from the earlier one whose credit its reward completes."""
        self._replay.add(decision)
        self.num_decisions += 1
        advantages = self._credits.push(rewards, alive, part)
        if advantages is None:
            return {}

        values = torch.from_numpy(advantages.values.astype(np.float32))
        slopes = (torch.from_numpy(s.astype(np.float32)) for s in advantages.slopes)
        noise = self._replay.complete(values, *slopes)
        # Of mean and of log std.
        scores = torch.stack([noise, (noise.square() - 1.0) / math.sqrt(2.0)], dim=1)
        products = (scores * values[:, None]).double().numpy()  # (N, 2, M)
        products[:, 0] += sum(advantages.slopes)
        per_network = alive.reshape(self._cells.num_rows, -1)  # (G, N / G)
        networks: BoolArray = np.any(per_network, axis=1)
        self._evidence.push(
            products.reshape(*per_network.shape, *scores.shape[1:]).mean(1), networks
        )

        if self.num_decisions % self.config.update_interval:
            return {}
        return self._step(networks) | advantages.metrics(alive)

    def _step(self, alive: BoolArray) -> dict[str, float]:
        """Takes one step on the replay. Networks whose rows have all ended do not change."""
        samples = self._per_network(self._replay.samples())
        obs, raw, old, advantages, *slopes = self._replay.parts(samples)
        mean, log_std = self._cells(obs)
        gates = torch.from_numpy(self._evidence.gates(self.config.evidence)).float()
        gates = gates[:, :, None]  # (G, 2, 1, M)
        mean = scale_gradient(mean, gates[:, 0] * torch.exp(2.0 * log_std.detach()))
        log_std = scale_gradient(log_std, 0.5 * gates[:, 1] * self.config.learn_std)

        log_density = gaussian_log_density(raw, mean, log_std)  # (G, samples, M)
        objective = clipped_surrogate(
            log_density.flatten(), old.flatten(), advantages.flatten(), self.config.clip_range
        ).view_as(old)
        for slope in slopes:  # in units of the standard deviation, as advantage x noise
            objective = objective + slope * mean * torch.exp(-log_std.detach())
        losses = -objective.sum(dim=-1).mean(dim=-1)  # (G,)

        self._optimizer.zero_grad()
        losses.sum().backward()
        norms = self._move(alive)
        self.num_updates += 1

        with torch.no_grad():
            rows = torch.from_numpy(alive)
            outside = (torch.exp(log_density - old) - 1.0).abs() > self.config.clip_range
            return {
                "train/evidence": gates[rows, 0].mean().item(),
                "train/policy_gradient_loss": losses[rows].mean().item(),
                "train/clip_fraction": outside[rows].float().mean().item(),
                "train/gradient_norm": norms[rows].mean().item(),
                "train/n_updates": float(self.num_updates),
            }

    @torch.no_grad()
    def _move(self, alive: BoolArray) -> torch.Tensor:
        """Takes an optimizer step with bounded gradients, of networks that are alive.

        Returns their norms before the bound, (G,).
        """
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        norms = bound_norms(gradients, self.config.max_grad_norm)
        for gradient in gradients:
            gradient[torch.from_numpy(~alive)] = 0.0
        self._optimizer.step()
        return norms

    def _identity(self) -> dict[str, object]:
        """Returns the metadata that must be equal in a saved agent and in the one that loads it."""
        return {
            "agent": "reinforce",
            "num_rows": self._num_rows,
            "num_networks": self._cells.num_rows,
            "observation_size": self._cells.observation_size,
            **self._columns,
            "config": config_json(self.config),
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes weights, generators, replay, evidence, credits, baselines and counters."""
        counters = {name: getattr(self, name) for name in COUNTERS}
        save_state(path, "agent", self._tensors(), {**self._identity(), **counters})

    def _tensors(self) -> dict[str, torch.Tensor]:
        """Returns all tensors that the next decision depends on."""
        parts: dict[str, Mapping[str, Any]] = {
            "policy": self._cells.tensors(),
            "evidence": self._evidence.arrays(),
            "credits": self._credits.arrays(),
            "replay": self._replay.arrays(),
        }
        generators = [generator.get_state() for generator in self._generators]
        tensors = {"generators": torch.stack(generators), "ended": torch.from_numpy(self._ended)}
        for part, values in parts.items():
            for name, value in values.items():
                tensors[f"{part}.{name}"] = torch.as_tensor(value)
        return tensors

    def load(self, path: str | os.PathLike[str]) -> None:
        """Continues bitwise from the saved agent's state.

        Raises:
            ValueError: the folder is damaged, or its agent has other sizes, other columns or
                another configuration.
        """
        tensors, metadata = load_state(path, "agent")
        check_identity(metadata, self._identity(), path)
        check_counters(metadata, COUNTERS, path)
        if set(tensors) != set(self._tensors()):
            raise ValueError(
                f"{path} must hold the tensors {sorted(self._tensors())}; got {sorted(tensors)}"
            )

        parts: dict[str, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            prefix, _, rest = name.partition(".")
            parts.setdefault(prefix, {})[rest] = tensor

        self._cells.load_state_dict(parts["policy"])
        self._evidence.restore({name: t.numpy() for name, t in parts["evidence"].items()})
        self._credits.restore({name: t.numpy() for name, t in parts["credits"].items()})
        self._replay.restore(parts["replay"])
        for generator, state in zip(self._generators, tensors["generators"], strict=True):
            generator.set_state(state.clone())  # it reads past the end of a view

        self._ended = tensors["ended"].numpy().copy()
        for name in COUNTERS:
            setattr(self, name, metadata[name])


def _per_row(array: np.ndarray, alive: BoolArray) -> torch.Tensor:
    """Returns a rollout's array (T, N, X) as (N, T, X) float32, with 0 where not alive."""
    taken = np.where(alive[..., None], array, 0.0).astype(np.float32)
    return torch.from_numpy(np.ascontiguousarray(taken.swapaxes(0, 1)))
