"""The plant of language-model pretraining: a population of runs, each on its own clock, steered by one panel.

Row i with seed s draws its weights and its data order from s alone. A run whose loss or gradient is not finite, or
whose loss exceeds a stated multiple of that of a uniform guess, has diverged: it stops where it stands, the optimizer
never sees that gradient, and the other rows do not notice.

Configuration, dynamics and measurement stand in one module, past its usual length, because they share every attribute.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

import numpy as np
import torch
from torch import Tensor

from hpenv import model
from hpenv.data import Corpus, batch_starts, gather, load_corpus, require_length
from hpenv.optimizers import Rule, evaluation_weights, optimizer_rules
from hpenv.panel import Panel, Site
from hpenv.plant import BoolArray, FloatArray, IntArray, Snapshot, Window
from hpenv.schedules import Constant, Schedule

#: Sequences per forward pass of a measurement; bounds its memory.
MEASURE_SEQUENCES = 64

PerGroup = float | Mapping[str, float]
SchedulePerGroup = Schedule | Mapping[str, Schedule]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class PretrainingConfig:
    """What a run is; the same for every row of a population."""

    preset: str = "nano"  # a key of model.PRESETS
    data: str = "stdlib"  # see data.load_corpus
    tokenizer: str = "bytes"  # see data.load_corpus
    batch_tokens: int = 512  # tokens of one optimizer step [tokens]
    sequence_length: int = 64  # [tokens]
    optimizer: str = "adamw_muon"  # a key of optimizers.OPTIMIZERS
    base_lr: PerGroup = 1e-3  # one for all groups, or group -> rate (JEL: uniform 1e-3)
    base_weight_decay: PerGroup = 1e-2  # decoupled, multiplied by the learning rate (JEL: uniform 1e-2)
    lr_schedule: SchedulePerGroup = field(default_factory=Constant)  # step -> multiplier of base_lr
    weight_decay_schedule: SchedulePerGroup = field(default_factory=Constant)  # step -> multiplier of base_weight_decay
    num_probe_batches: int = 4  # fixed batches of batch_tokens that the reward may see (JEL, section 3.4)
    eval_tokens: int = 65_536  # of the validation slice [tokens]
    divergence_multiple: float = 3.0  # of ln(vocabulary); a loss above it ends the run
    device: str = "cpu"
    dtype: str = "float32"  # of forward and backward pass; weights and moments stay float32
    compile: bool = False  # torch.compile the loss

    def __post_init__(self) -> None:
        """Refuses what cannot be run."""
        for name in ("base_lr", "base_weight_decay"):
            rates = getattr(self, name)
            for rate in rates.values() if isinstance(rates, Mapping) else (rates,):
                if not (is_number(rate) and math.isfinite(rate) and rate >= 0):
                    raise ValueError(f"{name}={rates!r} must be finite and not negative")
        for name in ("lr_schedule", "weight_decay_schedule"):
            schedules = getattr(self, name)
            if not all(callable(s) for s in (schedules.values() if isinstance(schedules, Mapping) else (schedules,))):
                raise ValueError(f"{name}={schedules!r} must be a Schedule (see hpenv.schedules), or group -> Schedule")
        for name in ("batch_tokens", "sequence_length", "num_probe_batches", "eval_tokens"):
            check_count(name, getattr(self, name))
        if self.batch_tokens % self.sequence_length:
            raise ValueError(
                f"batch_tokens={self.batch_tokens} must be a multiple of sequence_length={self.sequence_length}"
            )
        if self.dtype not in DTYPES:
            raise ValueError(f"unknown dtype {self.dtype!r}; expected one of {sorted(DTYPES)}")
        if not self.divergence_multiple > 1:
            raise ValueError(f"divergence_multiple={self.divergence_multiple} must be above 1")
        try:
            torch.device(self.device)
        except RuntimeError as error:
            raise ValueError(
                f"unknown device {self.device!r}; expected one that torch knows, as 'cpu' or 'cuda'"
            ) from error

    @property
    def batch_size(self) -> int:
        """Sequences of one batch."""
        return self.batch_tokens // self.sequence_length

    def description(self) -> dict[str, object]:
        """The configuration as JSON-able values; schedules as their text."""
        return {field.name: _described(getattr(self, field.name)) for field in fields(self)}


def _described(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key): _described(entry) for key, entry in value.items()}
    if isinstance(value, np.generic):
        return value.item()
    return value if isinstance(value, int | float | str) else repr(value)


def is_number(value: object) -> bool:
    """Whether this is a real number, of Python or numpy; True and False are not."""
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def is_count(value: object) -> bool:
    """Whether this is a whole number of at least 1."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= 1)


def check_count(name: str, value: object) -> None:
    """Refuses what is not a whole number of at least 1.

    Raises:
        ValueError: naming the argument and what was given.
    """
    if not is_count(value):
        raise ValueError(f"{name}={value!r} must be at least 1, a whole number")


class PretrainingPlant:
    """N runs of `config`, trained together.

    Attributes:
        config: what a run is.
        corpus: the text; its slices.
        corpus_digest: sha256 of the text.
        model_config: shape of the model.
        panel: current value of every cell.
        weights: name -> (N, ...) float32.
        optimizer_state: name -> slot -> (N, ...).
        steps: optimizer steps each run has taken, (N,).
        seeds: seed of each run, (N,).
        divergence: index into plant.DIVERGENCE_REASONS, (N,).
    """

    kind = "pretraining"

    def __init__(
        self,
        config: PretrainingConfig,
        num_rows: int = 1,
        channels: Sequence[tuple[str, str]] = (("lr", "run"), ("weight_decay", "run")),
    ) -> None:
        """Loads the corpus and builds N runs of seeds 0 .. N - 1.

        Raises:
            ValueError: for an unknown preset, optimizer, channel or group, or a corpus that is too short.
        """
        if num_rows < 1:
            raise ValueError(f"num_rows={num_rows} must be at least 1")
        self.config, self.num_rows, self.channels = config, num_rows, tuple(channels)
        self.corpus: Corpus = load_corpus(config.data, config.tokenizer)
        needed = config.batch_tokens + config.sequence_length
        for part, tokens in (("train", needed), ("probe", needed), ("validation", config.sequence_length + 1)):
            require_length(self.corpus, part, tokens)
        self.corpus_digest = self.corpus.sha256
        self.model_config = model.preset(config.preset, self.corpus.vocab_size)
        self._rules = optimizer_rules(config.optimizer)
        self._groups = {name: model.parameter_kind(name) for name in model.parameter_shapes(self.model_config)}
        self._check_groups()
        sites = {
            name: Site(group, self._rules[group].optimizer, int(name.split(".")[1]) if "." in name else None)
            for name, group in self._groups.items()
        }
        self.panel = Panel(self.channels, sites, num_rows, self.kind)
        self.device = torch.device(config.device)
        self._rope = model.rope_tables(self.model_config, config.sequence_length, self.device)
        self._tokens = {part: getattr(self.corpus, part).to(self.device) for part in ("train", "probe", "validation")}
        self._loss = torch.compile(model.mean_losses) if config.compile else model.mean_losses
        self.steps: IntArray = np.zeros(num_rows, dtype=np.int64)
        self.seeds: IntArray = np.arange(num_rows, dtype=np.int64)
        self.divergence: IntArray = np.zeros(num_rows, dtype=np.int64)
        zeros = np.zeros(num_rows)
        self._window = Window(self.steps.copy(), zeros, zeros, zeros, zeros, self.divergence.copy())
        self.weights = model.init_parameters(self.model_config, list(range(num_rows)), self.device)
        self.optimizer_state = {name: self._rule(name).init(weight) for name, weight in self.weights.items()}

    def spawn(self, num_rows: int) -> PretrainingPlant:
        """A new plant of the same configuration with another number of rows."""
        return PretrainingPlant(self.config, num_rows, self.channels)

    def _rule(self, name: str) -> Rule:
        return self._rules[self._groups[name]]

    def _check_groups(self) -> None:
        groups = sorted(set(self._groups.values()))
        for name in ("base_lr", "base_weight_decay", "lr_schedule", "weight_decay_schedule"):
            given = getattr(self.config, name)
            if isinstance(given, Mapping) and set(given) != set(groups):
                raise ValueError(f"{name} names the groups {sorted(given)}; {self.config.preset!r} has {groups}")

    def reset(self, seeds: Sequence[int], rows: Sequence[int] | None = None) -> None:
        """Gives all rows, or some, new weights and a new data order, and puts their panel at neutral.

        Args:
            seeds: one per row that is reset.
            rows: indices of the rows; None for all.
        """
        chosen = list(range(self.num_rows)) if rows is None else list(rows)
        if len(seeds) != len(chosen):
            raise ValueError(f"got {len(seeds)} seeds for {len(chosen)} rows")
        index = torch.as_tensor(chosen, device=self.device)
        fresh = model.init_parameters(self.model_config, [int(seed) for seed in seeds], self.device)
        for name, weight in self.weights.items():
            weight[index] = fresh[name]
            for slot, value in self._rule(name).init(fresh[name]).items():
                self.optimizer_state[name][slot][index] = value
        self.seeds[chosen], self.steps[chosen], self.divergence[chosen] = seeds, 0, 0
        self.panel.positions[chosen] = 0.0
        fresh_rows = np.isin(np.arange(self.num_rows), chosen)
        self._window = Window(**{key: np.where(fresh_rows, 0, value) for key, value in vars(self._window).items()})

    def advance(self, num_steps: IntArray) -> Window:
        """Trains row i for num_steps[i] steps, then measures; 0 only measures. A row that has diverged does not move.

        Args:
            num_steps: (N,) steps.

        Returns:
            What was measured, always finite: rows that took no step keep the training loss and norms of their last
            window (before the first, the training loss is that of the probe), rows that diverged also their last
            probe loss.
        """
        goal = np.where(self.divergence > 0, 0, np.asarray(num_steps, dtype=np.int64))
        longest = int(goal.max(initial=0))
        rates = self._window_rates(longest)
        losses, taken, norms = np.zeros(self.num_rows), np.zeros(self.num_rows), self._window.gradient_norm.copy()
        for step in range(longest):
            active = (goal > step) & (self.divergence == 0)
            if not active.any():
                break
            loss, norm = self._step(active, {name: (lr[step], wd[step]) for name, (lr, wd) in rates.items()})
            moved = active & (self.divergence == 0)
            losses[moved] += loss[moved]
            taken[moved] += 1
            norms[moved] = norm[moved]
        last, probe, momentum = self._window, self._probe(), self._momentum_norm()
        self._judge(self.divergence == 0, probe, momentum)
        alive = self.divergence == 0
        untrained = np.where((self.steps == 0) & alive, probe, last.train_loss)
        self._window = Window(
            steps=self.steps.copy(),
            train_loss=np.where(taken > 0, losses / np.maximum(taken, 1), untrained),
            probe_loss=np.where(alive, probe, last.probe_loss),
            gradient_norm=norms,
            momentum_norm=np.where(alive, momentum, last.momentum_norm),
            divergence=self.divergence.copy(),
        )
        return self._window

    def _window_rates(self, num_steps: int) -> dict[str, tuple[tuple[Tensor, ...], tuple[Tensor, ...]]]:
        """Learning rate and weight decay of every tensor, run and step ahead: name -> two of S times (N, 1, ...) [1].

        Base rate x base schedule x the panel's multiplier, which is exactly 1 at neutral.
        """
        steps = self.steps + np.arange(num_steps)[:, None]  # (S, N)
        base = {
            group: (
                self._base("base_lr", "lr_schedule", group, steps),
                self._base("base_weight_decay", "weight_decay_schedule", group, steps),
            )
            for group in set(self._groups.values())
        }
        rates = {}
        for name, weight in self.weights.items():
            pair = []
            for quantity, table in zip(("lr", "weight_decay"), base[self._groups[name]], strict=True):
                multiplier = self.panel.multiplier(quantity, name)
                value = torch.as_tensor(table if multiplier is None else table * multiplier, dtype=torch.float32)
                pair.append(value.view(*table.shape, *[1] * (weight.ndim - 1)).to(self.device).unbind(0))
            rates[name] = (pair[0], pair[1])
        return rates

    def _base(self, rate: str, schedule: str, group: str, steps: IntArray) -> FloatArray:
        rates, schedules = getattr(self.config, rate), getattr(self.config, schedule)
        multiplier = (schedules[group] if isinstance(schedules, Mapping) else schedules)(steps)
        return float(rates[group] if isinstance(rates, Mapping) else rates) * multiplier

    def _step(self, active: BoolArray, rates: Mapping[str, tuple[Tensor, Tensor]]) -> tuple[FloatArray, FloatArray]:
        """One optimizer step of the active rows; returns every row's loss (N,) [nats] and gradient norm (N,)."""
        inputs, targets = self._batch()
        leaves = {name: weight.detach().requires_grad_() for name, weight in self.weights.items()}
        with torch.enable_grad():
            losses = self._loss(self._cast(leaves), self.model_config, inputs, targets, self._cast_rope())
            gradients = torch.autograd.grad(losses.sum(), list(leaves.values()))
        norms = torch.stack([torch.linalg.vector_norm(g.flatten(1), dim=1) for g in gradients]).norm(dim=0)
        loss, norm = torch.stack([losses.detach().float(), norms]).double().cpu().numpy()
        self._judge(active, loss, norm)
        moving = active & (self.divergence == 0)
        if moving.any():
            self._update(dict(zip(leaves, gradients, strict=True)), rates, moving)
        self.steps[moving] += 1
        return loss, norm

    def _batch(self) -> tuple[Tensor, Tensor]:
        starts = np.stack(
            [
                batch_starts(
                    len(self._tokens["train"]),
                    int(seed),
                    int(step),
                    self.config.batch_size,
                    self.config.sequence_length,
                )
                for seed, step in zip(self.seeds, self.steps, strict=True)
            ]
        )
        return gather(self._tokens["train"], starts, self.config.sequence_length)

    def _cast(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        dtype = DTYPES[self.config.dtype]
        return weights if dtype == torch.float32 else {name: weight.to(dtype) for name, weight in weights.items()}

    def _cast_rope(self) -> tuple[Tensor, Tensor]:
        dtype = DTYPES[self.config.dtype]
        return self._rope[0].to(dtype), self._rope[1].to(dtype)

    def _judge(self, active: BoolArray, loss: FloatArray, norm: FloatArray) -> None:
        limit = self.config.divergence_multiple * math.log(self.model_config.vocab_size)
        reasons = np.select([~np.isfinite(loss), ~np.isfinite(norm), loss > limit], [1, 2, 3], default=0)
        self.divergence = np.where(active, reasons, self.divergence)

    @torch.no_grad()
    def _update(
        self, gradients: Mapping[str, Tensor], rates: Mapping[str, tuple[Tensor, Tensor]], moving: BoolArray
    ) -> None:
        """Steps every group's rule on all rows, then puts back the rows that must not move, bit for bit."""
        still = torch.as_tensor(np.flatnonzero(~moving), device=self.device)
        everything = self._tensors() if len(still) else []
        kept = [value[still].clone() for value in everything]
        for group in dict.fromkeys(self._groups.values()):
            names = [name for name, own in self._groups.items() if own == group]
            self._rules[group].update(
                [self.weights[name] for name in names],
                [gradients[name] for name in names],
                [self.optimizer_state[name] for name in names],
                [rates[name][0] for name in names],
                [rates[name][1] for name in names],
                self.steps,
            )
        for value, old in zip(everything, kept, strict=True):
            value[still] = old

    def _tensors(self) -> list[Tensor]:
        return [*self.weights.values(), *(v for state in self.optimizer_state.values() for v in state.values())]

    @torch.no_grad()
    def _evaluation_weights(self) -> Mapping[str, Tensor]:
        return self._cast(
            {
                name: evaluation_weights(self._rule(name), weight, self.optimizer_state[name])
                for name, weight in self.weights.items()
            }
        )

    @torch.no_grad()
    def _probe(self) -> FloatArray:
        """Loss on the same few sequences of the probe slice for every run, (N,) [nats per token]."""
        count = self.config.num_probe_batches * self.config.batch_size
        starts = batch_starts(len(self._tokens["probe"]), 0, 0, count, self.config.sequence_length)
        weights, total = self._evaluation_weights(), np.zeros(self.num_rows)
        for first in range(0, count, MEASURE_SEQUENCES):
            part = starts[first : first + MEASURE_SEQUENCES]
            inputs, targets = gather(
                self._tokens["probe"], np.tile(part, (self.num_rows, 1)), self.config.sequence_length
            )
            losses = model.mean_losses(weights, self.model_config, inputs, targets, self._cast_rope())
            total += losses.double().cpu().numpy() * len(part)
        return total / count

    @torch.no_grad()
    def evaluate(self) -> FloatArray:
        """Held-out bits per byte of every run, (N,), on evenly spaced sequences of the validation slice.

        Not finite only for a run whose weights are not.
        """
        T = self.config.sequence_length
        tokens = self._tokens["validation"]
        count = min(max(1, self.config.eval_tokens // T), (len(tokens) - 1) // T)
        starts = np.linspace(0, len(tokens) - T - 1, count).astype(np.int64)
        weights, nats, size = self._evaluation_weights(), np.zeros(self.num_rows), 0.0
        bytes_of = self.corpus.token_bytes.to(self.device)
        for first in range(0, count, MEASURE_SEQUENCES):
            part = np.tile(starts[first : first + MEASURE_SEQUENCES], (self.num_rows, 1))
            inputs, targets = gather(tokens, part, T)
            losses = model.token_losses(weights, self.model_config, inputs, targets, self._cast_rope())
            counted = bytes_of[targets[0].flatten()]  # tokens that stand for no byte count neither way
            nats += (losses.double() * (counted > 0)).sum(1).cpu().numpy()
            size += float(counted.double().sum())
        return nats / (math.log(2.0) * size)

    def _momentum_norm(self) -> FloatArray:
        moments = [state["momentum"] for state in self.optimizer_state.values() if "momentum" in state]
        if not moments:
            return np.zeros(self.num_rows)
        norms = torch.stack([torch.linalg.vector_norm(m.flatten(1), dim=1) for m in moments]).norm(dim=0)
        return norms.double().cpu().numpy()

    def snapshot(self) -> Snapshot:
        """Everything a run is, every tensor with the run as its first axis; the data cursor is the step counter."""
        window = {f"window/{key}": torch.as_tensor(value.copy()) for key, value in vars(self._window).items()}
        tensors = {f"weights/{name}": weight.clone() for name, weight in self.weights.items()}
        tensors |= {
            f"optimizer/{name}/{slot}": value.clone()
            for name, state in self.optimizer_state.items()
            for slot, value in state.items()
        }
        rows = {"steps": self.steps, "seeds": self.seeds, "divergence": self.divergence, "panel": self.panel.positions}
        tensors |= {f"rows/{key}": torch.as_tensor(value.copy()) for key, value in rows.items()}
        return Snapshot(tensors | window, {"configuration": self.description()})

    def description(self) -> dict[str, object]:
        """What a snapshot must agree with to be restored here."""
        return self.config.description() | {
            "channels": [list(pair) for pair in self.channels],
            "corpus": self.corpus.sha256,
        }

    def restore(self, snapshot: Snapshot, keep_panel: bool = False) -> None:
        """Continues from a snapshot, bitwise.

        Args:
            snapshot: of a plant of the same configuration and number of rows.
            keep_panel: leave the panel as it is now in force.

        Raises:
            ValueError: if the snapshot is of another configuration or number of rows.
        """
        ours, theirs = self.description(), snapshot.metadata["configuration"]
        different = {key: (theirs.get(key), ours[key]) for key in ours if theirs.get(key) != ours[key]}
        if different:
            raise ValueError(f"the snapshot's configuration differs, as (snapshot, here): {different}")
        tensors = snapshot.tensors
        if len(tensors["rows/steps"]) != self.num_rows:
            raise ValueError(f"the snapshot has {len(tensors['rows/steps'])} rows; this plant has {self.num_rows}")
        for name, weight in self.weights.items():
            weight.copy_(tensors[f"weights/{name}"])
            for slot, value in self.optimizer_state[name].items():
                value.copy_(tensors[f"optimizer/{name}/{slot}"])
        rows = {key: tensors[f"rows/{key}"].cpu().numpy().copy() for key in ("steps", "seeds", "divergence", "panel")}
        self.steps, self.seeds, self.divergence = rows["steps"], rows["seeds"], rows["divergence"]
        if not keep_panel:
            self.panel.positions = rows["panel"]
        self._window = Window(**{key: tensors[f"window/{key}"].cpu().numpy().copy() for key in vars(self._window)})
