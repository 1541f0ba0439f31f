"""The REINFORCE Sidecar: a small network per run that moves every channel and learns from the loss.

Every decision samples each cell's position from a Gaussian. When the rewards that the decision
affects have arrived, the credit minus a baseline is the decision's advantage, and the policy
gradient moves mean and standard deviation. N runs have N sidecars, stacked like the runs. No
weight, number or random draw of one sidecar reaches another, except with the baseline `population`,
which compares rows. A sidecar learns while its run trains, and ends with it: that is the controller
`Sidecar`. The agent also learns from whole episodes, as every agent does, with one network for all
runs.

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

The ratio's denominator is the density per cell under the weights at the start of `update`, computed
from the stored observations. Those weights took the decisions: the contract of a Rollout says so,
and online training (one update per decision) always meets it. `Rollout.log_prob` is a sum over
cells and cannot be split. The agent can learn from a rollout of an older version, but as if this
version had taken the decisions. `train/staleness` reports the difference.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import numpy as np
import torch

from agents.base import (
    BoolArray,
    Decision,
    Float32Array,
    FloatArray,
    Rollout,
    check_counters,
    check_identity,
    check_rollout,
    config_json,
    episode_metrics,
)
from agents.credits import Advantages, CreditStream, Evidence
from agents.losses import clipped_surrogate, gaussian_log_density, scale_gradient
from agents.sidecar_config import INITIAL_STD, SidecarConfig, check_columns, initial_means
from hpenv.policies.cells import CellMLP
from hpenv.policies.controller import Columns, ControllerSpec
from hpenv.policies.neutral import Neutral
from hpenv.policies.store import load_state, save_state


class SidecarAgent:
    """N sidecars, one per row, or one sidecar of N rows. Each has a private random generator.

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
        check_columns(kinds, immediate, names, self.config)
        if self.config.baseline == "population" and num_rows < 2:
            raise ValueError(
                f"num_rows must be >= 2 with baseline 'population'; got {num_rows}; "
                "give more rows, or baseline 'own'"
            )

        channels = [name.split("/")[0] for name in names] if self.config.common else []
        groups = list(dict.fromkeys(channels))
        first = [channels.index(group) for group in groups]  # a cell of each group
        # The Gaussians of a cell and of its channel together have the requested variance.
        share = 1.0 / math.sqrt(2.0) if groups else 1.0
        stds = [(INITIAL_STD | dict(self.config.initial_std))[kind] * share for kind in kinds]

        # Two streams per network, or the first noise would repeat the initial weights.
        num_networks = 1 if shared else num_rows
        words = [
            np.random.SeedSequence([seed, first_row + row]).generate_state(2)
            for row in range(num_networks)
        ]
        self._cells = CellMLP(
            num_networks,
            observation_size,
            len(kinds),
            self.config.hidden_size,
            [*initial_means(names, len(kinds), self.config.initial_mean), *[0.0] * len(groups)],
            [*stds, *(stds[cell] for cell in first)],
            self.config.std_bounds,
            [groups.index(channel) for channel in channels],
            [int(weights_seed) for weights_seed, _ in words],
        )
        self._neutral = Neutral(len(kinds))

        self._generators = [
            torch.Generator().manual_seed(int(draws_seed)) for _, draws_seed in words
        ]
        self._parameters = list(self._cells.parameters())
        self._optimizer = torch.optim.SGD(self._parameters, lr=self.config.learning_rate)

        self._credits = CreditStream(
            num_rows,
            [*immediate, *(immediate[cell] for cell in first)],
            self.config.delay,
            self.config.horizon,
            self.config.gamma,
            self.config.baseline,
            self.config.baseline_decay,
            self.config.scale_decay,
            self.config.advantage_clip,
        )
        G, N, F, M = num_networks, num_rows, observation_size, self._cells.output_size
        # Of means and of standard deviations.
        self._evidence = Evidence((G, 2, M), self.config.evidence_decay)
        self._num_rows = num_rows

        # Decisions whose credit is not complete: obs, raw, log density and (raw - mean) / std,
        # (N, F + 3 M).
        self._pending: list[torch.Tensor] = []
        # Decisions with a credit: obs, raw, log density and advantages.
        self._replay = torch.zeros(N, self.config.replay_size, F + 3 * M)
        self._splits = (F, M, M, M)
        self._num_replayed = 0  # decisions that entered the replay so far
        self._ended = np.zeros(num_rows, dtype=bool)
        self.num_decisions = 0
        self.num_updates = 0

        self._names = names
        self._kinds = {
            kind: torch.tensor([k == kind for k in kinds]) for kind in dict.fromkeys(kinds)
        }
        self._columns = {
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
        if not continues:
            self._begin()
        if (alive & self._ended).any():
            rows = np.flatnonzero((alive & self._ended).any(axis=0)).tolist()
            raise ValueError(
                f"rollout.alive must stay False after a run's end; got True again in rows {rows}; "
                "a sidecar ends with its run"
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

        last = int(np.flatnonzero(alive.any(axis=1))[-1])
        metrics |= self._kind_metrics(mean[:, last][alive[last]], log_std[:, last][alive[last]])

        for t in range(last + 1):
            metrics |= self._take(decisions[:, t], rewards[t], alive[t])

        if not continues:  # after the end every reward is 0, and completes the last credits
            for _ in range(len(self._pending)):
                metrics |= self._take(decisions[:, last], 0.0 * rewards[last], alive[last])
        return metrics

    def _begin(self) -> None:
        """Begins new runs. Weights, replay, baselines and evidence stay."""
        self._pending = []
        self._ended = np.zeros(self._num_rows, dtype=bool)
        self._credits.restart()

    def _per_network(self, array: torch.Tensor) -> torch.Tensor:
        """Returns an array of rows (N, T, X) as (G, N / G T, X)."""
        return array.reshape(self._cells.num_rows, -1, array.shape[-1])

    def _take(
        self, decision: torch.Tensor, rewards: FloatArray, alive: BoolArray
    ) -> dict[str, float]:
        """Adds one decision, and learns from the earlier one whose credit its reward completes."""
        self._pending.append(decision)
        self.num_decisions += 1
        advantages = self._credits.push(rewards, alive)
        if advantages is None:
            return {}

        values = torch.from_numpy(advantages.values.astype(np.float32))
        slot = self._num_replayed % self.config.replay_size
        *known, noise = self._pending.pop(0).split(self._splits, dim=-1)
        self._replay[:, slot] = torch.cat([*known, values], dim=-1)
        # Of mean and of log std.
        scores = torch.stack([noise, (noise.square() - 1.0) / math.sqrt(2.0)], dim=1)
        products = (scores * values[:, None]).double().numpy()  # (N, 2, M)
        per_network = alive.reshape(self._cells.num_rows, -1)  # (G, N / G)
        networks: BoolArray = np.any(per_network, axis=1)
        self._evidence.push(
            products.reshape(*per_network.shape, *scores.shape[1:]).mean(1), networks
        )
        self._num_replayed += 1

        if self.num_decisions % self.config.update_interval:
            return {}
        return self._step(networks) | _credit_metrics(advantages, alive)

    def _step(self, alive: BoolArray) -> dict[str, float]:
        """Takes one step on the replay. Networks whose rows have all ended do not change."""
        filled = min(self._num_replayed, self.config.replay_size)
        samples = self._per_network(self._replay[:, :filled])
        obs, raw, old, advantages = samples.split(self._splits, dim=-1)
        mean, log_std = self._cells(obs)
        gates = torch.from_numpy(self._evidence.gates(self.config.evidence)).float()
        gates = gates[:, :, None]  # (G, 2, 1, M)
        mean = scale_gradient(mean, gates[:, 0] * torch.exp(2.0 * log_std.detach()))
        log_std = scale_gradient(log_std, 0.5 * gates[:, 1] * self.config.learn_std)

        log_density = gaussian_log_density(raw, mean, log_std)  # (G, samples, M)
        objective = clipped_surrogate(
            log_density.flatten(), old.flatten(), advantages.flatten(), self.config.clip_range
        ).view_as(old)
        losses = -objective.sum(dim=-1).mean(dim=-1)  # (G,)

        self._optimizer.zero_grad()
        losses.sum().backward()
        norms = self._bound_gradients()
        self._move(alive)
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
    def _bound_gradients(self) -> torch.Tensor:
        """Scales each network's gradient to `max_grad_norm` at most. Returns norms before, (G,)."""
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        per_tensor = [torch.linalg.vector_norm(g, dim=(1, 2)) for g in gradients]
        norms = torch.stack(per_tensor).norm(dim=0)

        if self.config.max_grad_norm is not None:
            factors = (self.config.max_grad_norm / (norms + 1e-6)).clamp(max=1.0)[:, None, None]
            for gradient in gradients:
                gradient.mul_(factors)
        return norms

    @torch.no_grad()
    def _move(self, alive: BoolArray) -> None:
        """Takes an optimizer step, with a gradient of zero for networks that have ended."""
        ended = torch.from_numpy(np.flatnonzero(~alive))
        for parameter in self._parameters if len(ended) else ():
            if parameter.grad is not None:
                parameter.grad[ended] = 0.0
        self._optimizer.step()

    def _kind_metrics(self, mean: torch.Tensor, log_std: torch.Tensor) -> dict[str, float]:
        """Returns standard deviation and distance of the mean from neutral, per kind of cell.

        Both arguments are of rows, (., M).
        """
        A = self._cells.action_size
        variance = torch.exp(2.0 * log_std)
        of_cells = variance[:, :A]
        if self._cells.common:
            of_cells = of_cells + variance[:, A:][:, list(self._cells.common)]
        std = of_cells.sqrt().mean(dim=0)  # (A,)
        distance = self._cells.positions(mean).abs().mean(dim=0)  # (A,)

        metrics = {}
        for kind, cells in self._kinds.items():
            metrics[f"train/std/{kind}"] = std[cells].mean().item()
            metrics[f"train/mean_abs_position/{kind}"] = distance[cells].mean().item()

        return metrics

    def _identity(self) -> dict[str, object]:
        """Returns the metadata that must be equal in a saved agent and in the one that loads it."""
        return {
            "agent": "sidecar",
            "num_rows": self._num_rows,
            "num_networks": self._cells.num_rows,
            "observation_size": self._cells.observation_size,
            **self._columns,
            "config": config_json(self.config),
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes weights, generators, replay, evidence, credits, baselines and counters."""
        tensors = self._tensors()
        tensors |= {f"pending.{index}": decision for index, decision in enumerate(self._pending)}
        counters = {
            "num_decisions": self.num_decisions,
            "num_updates": self.num_updates,
            "num_replayed": self._num_replayed,
            "num_pending": len(self._pending),
        }
        save_state(path, "agent", tensors, {**self._identity(), **counters})

    def _tensors(self) -> dict[str, torch.Tensor]:
        """Returns all tensors that `save` writes, except the pending decisions."""
        tensors = {f"policy.{name}": tensor for name, tensor in self._cells.tensors().items()}
        tensors |= {
            f"evidence.{name}": torch.from_numpy(array)
            for name, array in self._evidence.arrays().items()
        }
        tensors |= {
            f"credits.{name}": torch.from_numpy(array)
            for name, array in self._credits.arrays().items()
        }

        tensors["generators"] = torch.stack(
            [generator.get_state() for generator in self._generators]
        )
        return tensors | {"replay": self._replay, "ended": torch.from_numpy(self._ended)}

    def load(self, path: str | os.PathLike[str]) -> None:
        """Continues bitwise from the saved agent's state.

        Raises:
            ValueError: the folder is damaged, or its agent has other sizes, other columns or
                another configuration.
        """
        tensors, metadata = load_state(path, "agent")
        check_identity(metadata, self._identity(), path)
        check_counters(
            metadata, ("num_decisions", "num_updates", "num_replayed", "num_pending"), path
        )

        pending = [f"pending.{index}" for index in range(metadata["num_pending"])]
        expected = {*self._tensors(), *pending}
        if set(tensors) != expected:
            raise ValueError(
                f"{path} must hold the tensors {sorted(expected)}; got {sorted(tensors)}"
            )

        self._cells.load_state_dict(
            {name: tensors[f"policy.{name}"] for name in self._cells.state_dict()}
        )
        self._evidence.restore(
            {name: tensors[f"evidence.{name}"].numpy() for name in self._evidence.arrays()}
        )
        self._credits.restore(
            {name: tensors[f"credits.{name}"].numpy() for name in self._credits.arrays()}
        )

        for generator, state in zip(self._generators, tensors["generators"], strict=True):
            generator.set_state(state.clone())  # it reads past the end of a view

        self._replay = tensors["replay"].clone()
        self._ended = tensors["ended"].numpy().copy()
        self._pending = [tensors[name].clone() for name in pending]

        self.num_decisions = metadata["num_decisions"]
        self.num_updates = metadata["num_updates"]
        self._num_replayed = metadata["num_replayed"]


class Sidecar:
    """The controller that learns within the runs that it controls, with one network for each run.

    Args:
        config: hyperparameters.
        seed: seed of weights and samples.
        spec: what it asks of an environment.

    Attributes:
        agent: the networks, new at every reset.
    """

    agent: SidecarAgent

    def __init__(
        self,
        config: SidecarConfig | None = None,
        seed: int = 0,
        spec: ControllerSpec | None = None,
    ) -> None:
        self.config, self.seed = config, seed
        self.spec = ControllerSpec() if spec is None else spec

    def reset(self, columns: Columns) -> None:
        """Begins new runs with new networks."""
        self.agent = SidecarAgent(
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

    def learn(self, rewards: FloatArray, alive: BoolArray) -> dict[str, float]:
        """Learns from the rewards (N,) of the last decision. Returns the agent's metrics."""
        _, raw, log_prob = self._decision
        rollout = Rollout(
            self._observations[None], raw[None], log_prob[None], rewards[None], alive[None]
        )
        return self.agent.update(rollout, continues=True)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes everything that the next decision depends on to a folder, after `learn`."""
        self.agent.save(path)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Continues bitwise from a folder of `save`, after `reset` with the same columns."""
        self.agent.load(path)


def _per_row(array: np.ndarray, alive: BoolArray) -> torch.Tensor:
    """Returns a rollout's array (T, N, X) as (N, T, X) float32, with 0 where not alive."""
    taken = np.where(alive[..., None], array, 0.0).astype(np.float32)
    return torch.from_numpy(np.ascontiguousarray(taken.swapaxes(0, 1)))


def _credit_metrics(advantages: Advantages, alive: BoolArray) -> dict[str, float]:
    return {
        "train/credit": float(advantages.credits[alive].mean()),
        "train/baseline": float(advantages.baseline[alive].mean()),
        "train/advantage_rms": float(advantages.rms[alive].mean()),
    }
