"""The plant of language-model pretraining: a population of runs and one panel.

Every run has its own step count. Weights and data order of a row depend on the seed of that row
alone. A run diverges if its loss or gradient is not finite, or if its loss exceeds a multiple of
the loss of a uniform guess. A diverged run stops where it is: the optimizer never sees that
gradient. The other rows do not change.

The module is longer than usual because dynamics and measurement share every attribute.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpenv.arrays import BoolArray, FloatArray, IntArray
from hpenv.checks import check_count
from hpenv.control.channels import CHANNELS
from hpenv.control.panel import Panel, TensorSite
from hpenv.lm import model
from hpenv.lm.data import Corpus, batch_starts, gather, load_corpus, require_length
from hpenv.optim.rules import Rates, Rule, optimizer_rules, rule_description
from hpenv.plant.measurements import Measurement
from hpenv.plant.population import Runs
from hpenv.plant.protocol import Score
from hpenv.plant.seeds import DROPOUT, step_generator
from hpenv.pretraining.config import DTYPES, PretrainingConfig
from hpenv.pretraining.gradient_channels import (
    apply_gradient_channels,
    gradient_sizes,
)

#: Sequences per forward pass of a measurement. Bounds its memory.
MEASURE_SEQUENCES = 64

#: Forward channels with one number per layer, by their names in model.Dials.
LAYER_DIALS = (
    "attention_temperature",
    "attention_gain",
    "feed_forward_gain",
    "residual_gain",
    "state_norm_cap",
    "dropout",
)
#: A gradient of this norm counts as not finite: scaled by ten, its square would overflow float32.
LARGEST_NORM = 1e17
#: Measurements of a pretraining run. Gradients are those before the optimizer.
MEASUREMENTS = (
    Measurement("train_loss", "nats/token", "training loss", over="mean"),
    Measurement("probe_loss", "nats/token", "loss on the fixed probe batches", group="probe"),
    Measurement("gradient_norm", "1", "global L2 norm of the gradient"),
    Measurement("momentum_norm", "1", "global L2 norm of the first moments", group="momentum"),
    Measurement(
        "same_batch_loss",
        "nats/token",
        "loss of the last batch after the update on that batch",
        group="same_batch",
    ),
    Measurement("layer_gradient_norm", "1", "L2 norm of the layer's gradient", per="layer"),
    Measurement(
        "layer_gradient_max",
        "1",
        "largest magnitude of the layer's gradient",
        per="layer",
        group="gradient_max",
    ),
    Measurement(
        "layer_activation_mean",
        "1",
        "mean of the residual stream after the layer",
        per="layer",
        group="activations",
    ),
    Measurement(
        "layer_activation_variance",
        "1",
        "variance of the residual stream after the layer",
        per="layer",
        group="activations",
    ),
    Measurement(
        "layer_saturation",
        "1",
        "fraction of the layer's feed-forward units that are saturated",
        per="layer",
        group="activations",
    ),
)
#: Fields of Rates that are multipliers. The others have a base value and a schedule.
MULTIPLIERS = ("beta1", "beta2", "eps")


def _without_dropout(dials: model.Dials | None) -> model.Dials | None:
    """Returns the dials of a measurement, which has no dropout."""
    return None if dials is None else dials._replace(dropout=None)


def _device(name: str) -> torch.device:
    """Returns the device of this name, after writing and reading a tensor on it.

    Raises:
        ValueError: if the device is not available.
    """
    try:
        torch.zeros(1, device=name).item()
    except (AssertionError, ImportError, RuntimeError) as error:
        raise ValueError(
            f"device {name!r} is not available (no such hardware, or torch was built without it); "
            "try device='cpu'"
        ) from error
    return torch.device(name)


def _finite(values: FloatArray) -> FloatArray:
    """Returns values with NaN as 0 and infinities as the largest float32.

    Only runs that have diverged have such values.
    """
    limit = float(np.finfo(np.float32).max)
    return np.nan_to_num(values, nan=0.0, posinf=limit, neginf=-limit)


@lru_cache(maxsize=1)
def _compile_mean_losses() -> Callable[..., Tensor]:
    return torch.compile(model.mean_losses)


def _compiled_losses(*arguments: Any) -> Tensor:
    """Calls the compiled `model.mean_losses`, which all plants share.

    Unlike the compiled function, this one can be pickled with a plant.
    """
    return _compile_mean_losses()(*arguments)


class PretrainingPlant(Runs):
    """N runs of `config`, trained together.

    Attributes:
        config: hyperparameters of the runs.
        corpus: the text and its slices.
        corpus_digest: sha256 of the text.
        model_config: shape of the model.
        weights: name -> (N, ...) float32.
        optimizer_state: name -> slot -> (N, ...).
    """

    Config = PretrainingConfig
    kind = "pretraining"
    measurements = MEASUREMENTS
    score = Score("bpb", "held-out bits per byte", "nats/token")
    stacked = True

    def __init__(
        self,
        config: PretrainingConfig,
        num_rows: int = 1,
        channels: Sequence[tuple[str, str]] = (("lr", "run"), ("weight_decay", "run")),
        corpus: Corpus | None = None,
    ) -> None:
        """Loads the corpus, unless it is given, and builds N runs with the seeds 0 .. N - 1.

        Raises:
            ValueError: for an unknown preset, optimizer, channel or group, a device that is not
                available, or a corpus that is too short.
        """
        check_count("num_rows", num_rows)
        self.device = _device(config.device)
        self.config, self.channels = config, tuple(channels)

        self.corpus: Corpus = (
            load_corpus(config.data, config.tokenizer) if corpus is None else corpus
        )
        needed = config.batch_tokens + config.sequence_length
        for part, tokens in (
            ("train", needed),
            ("probe", needed),
            ("validation", config.sequence_length + 1),
        ):
            require_length(self.corpus, part, tokens)
        self.corpus_digest = self.corpus.sha256

        self.model_config = model.preset(config.preset, self.corpus.vocab_size)
        self._rules = optimizer_rules(config.optimizer)
        self._groups = {
            name: model.parameter_kind(name) for name in model.parameter_shapes(self.model_config)
        }
        self._check_groups()

        sites = {
            name: TensorSite(
                group,
                self._rules[group].optimizer,
                int(name.split(".")[1]) if "." in name else None,
            )
            for name, group in self._groups.items()
        }
        self._keep(
            Panel(self.channels, sites, num_rows, self.kind), num_rows, self.model_config.n_layer
        )

        self._in_layer = (
            self.panel.layers[:, None] == np.arange(self.model_config.n_layer)
        ).astype(np.float64)  # (K, L)
        self._members = {
            group: np.array([k for k, name in enumerate(sites) if self._groups[name] == group])
            for group in dict.fromkeys(self._groups.values())
        }

        self._rates: dict[str, tuple[Tensor, ...]] = {}
        self._window_dials: model.Dials | None = None
        self._window_step = 0

        self._rope = model.rope_tables(self.model_config, config.sequence_length, self.device)
        self._tokens = {
            part: getattr(self.corpus, part).to(self.device)
            for part in ("train", "probe", "validation")
        }
        self._loss = _compiled_losses if config.compile else model.mean_losses

        self.weights = model.init_parameters(self.model_config, list(range(num_rows)), self.device)
        self.optimizer_state = {
            name: self._rule(name).init(weight) for name, weight in self.weights.items()
        }

    def spawn(self, num_rows: int) -> PretrainingPlant:
        """Returns a new plant of the same configuration with another number of rows."""
        plant = PretrainingPlant(self.config, num_rows, self.channels, self.corpus)
        plant.measure(self.measured_groups)
        return plant

    def _rule(self, name: str) -> Rule:
        return self._rules[self._groups[name]]

    def _check_groups(self) -> None:
        groups = sorted(set(self._groups.values()))
        for name in ("base_lr", "base_weight_decay", "lr_schedule", "weight_decay_schedule"):
            given = getattr(self.config, name)
            if isinstance(given, Mapping) and set(given) != set(groups):
                raise ValueError(
                    f"{name} must have one value, or one for each of the groups {groups} of "
                    f"{self.config.preset!r}; got the groups {sorted(given)}"
                )

    def reset(self, seeds: Sequence[int], rows: Sequence[int] | None = None) -> None:
        """Starts new runs in the given rows: new weights, new data order, panel at neutral.

        Args:
            seeds: one per row that is reset.
            rows: indices of the rows. None: all rows.
        """
        chosen = self._begin(seeds, rows)

        index = torch.as_tensor(chosen, device=self.device)
        fresh = model.init_parameters(self.model_config, [int(seed) for seed in seeds], self.device)
        for name, weight in self.weights.items():
            weight[index] = fresh[name]
            for slot, value in self._rule(name).init(fresh[name]).items():
                self.optimizer_state[name][slot][index] = value

    def _begin_window(self, num_steps: int) -> None:
        """Reads the panel. See Runs."""
        self._rates, self._window_dials = self._window_rates(num_steps), self._dials()
        self._window_step = 0

    def _end_window(self, rows: IntArray, probed: BoolArray) -> dict[str, FloatArray]:
        """Measures probe loss and momentum norm. See Runs."""
        alive = self.divergence == 0
        measures_momentum = "momentum" in self.measured_groups
        momentum = self._momentum_norm() if measures_momentum else np.zeros(self.num_rows)
        probe = self._probe() if probed.any() else np.zeros(self.num_rows)

        self._mark_diverged(probed, probe, momentum)
        self._mark_diverged(alive & (self.divergence == 0), np.zeros(self.num_rows), momentum)
        return {"probe_loss": probe, "momentum_norm": momentum}

    def _window_rates(self, num_steps: int) -> dict[str, tuple[Tensor, ...]]:
        """Returns the optimizer's rates of the next S steps: group -> fields of `Rates`.

        Each field is (S, N, K): base rate x base schedule x the panel's multiplier. The multiplier
        is exactly 1 at neutral.
        """
        steps = self.steps + np.arange(num_steps)[:, None]  # (S, N)
        tables = {name: self.panel.table(name) for name in Rates._fields}

        rates = {}
        for group, members in self._members.items():
            fields = np.ones((len(tables), num_steps, self.num_rows, len(members)))
            for field, (name, table) in zip(fields, tables.items(), strict=True):
                if name not in MULTIPLIERS:
                    field *= self._base(f"base_{name}", f"{name}_schedule", group, steps)[
                        :, :, None
                    ]
                if table is not None:
                    field *= table[:, members]
            rates[group] = torch.as_tensor(fields).to(self.device).unbind(0)

        return rates

    def _dials(self) -> model.Dials | None:
        """Returns the panel's values for the forward pass, or None if all are at neutral."""
        moved = {name: self.panel.per_layer(name) for name in LAYER_DIALS}
        moved |= {name: self.panel.per_run(name) for name in ("embedding_gain", "logit_softcap")}

        cap, softcap = moved["state_norm_cap"], moved["logit_softcap"]
        if cap is not None:
            moved["state_norm_cap"] = np.where(
                cap < CHANNELS["state_norm_cap"].neutral, cap, model.DORMANT_CAP
            )
        if softcap is not None:
            moved["logit_softcap"] = self.model_config.logit_softcap * softcap

        given: dict[str, Any] = {
            name: torch.as_tensor(value, dtype=torch.float32).to(self.device)
            for name, value in moved.items()
            if value is not None
        }
        return model.NEUTRAL._replace(**given) if given else None

    def _base(self, rate: str, schedule: str, group: str, steps: IntArray) -> FloatArray:
        rates, schedules = getattr(self.config, rate), getattr(self.config, schedule)
        multiplier = (schedules[group] if isinstance(schedules, Mapping) else schedules)(steps)
        return float(rates[group] if isinstance(rates, Mapping) else rates) * multiplier

    def _step(self, rows: IntArray) -> dict[str, FloatArray]:
        """Takes one optimizer step of these rows. See Runs.

        Every measurement comes from this forward and backward pass, except `same_batch_loss`, which
        needs a second forward pass. All rows are computed, and only these rows move.
        """
        active = np.zeros(self.num_rows, dtype=bool)
        active[rows] = True
        dials = self._window_dials
        rates = {
            group: Rates(*(field[self._window_step] for field in table))
            for group, table in self._rates.items()
        }
        self._window_step += 1

        inputs, targets = self._batch()
        leaves = {name: weight.detach().requires_grad_() for name, weight in self.weights.items()}
        gauges: list[Tensor] | None = [] if "activations" in self.measured_groups else None
        rope, step_dials = self._cast_rope(), self._with_generators(dials)

        with torch.enable_grad():
            losses = self._loss(
                self._cast(leaves), self.model_config, inputs, targets, rope, step_dials, gauges
            )
            gradients = torch.autograd.grad(losses.sum(), list(leaves.values()))

        squares, maxima = gradient_sizes(gradients, "gradient_max" in self.measured_groups)
        loss, norm = losses.detach().double().cpu().numpy(), np.sqrt(squares.sum(1))
        self._mark_diverged(active, loss, norm)
        moving = active & (self.divergence == 0)
        values = {"train_loss": loss, "gradient_norm": norm} | self._layer_gauges(
            squares, maxima, gauges
        )

        if moving.any():
            given = dict(zip(leaves, gradients, strict=True))
            momenta = {
                name: s["momentum"] for name, s in self.optimizer_state.items() if "momentum" in s
            }
            given = dict(
                apply_gradient_channels(
                    given, momenta, squares, self.panel, self.seeds, self.steps, moving
                )
            )
            self._update(given, rates, moving)

        if "same_batch" in self.measured_groups:
            after = self._same_batch_loss(inputs, targets, dials)
            values["same_batch_loss"] = np.where(np.isfinite(after), after, loss)

        self.steps[moving] += 1
        return {name: value[rows] for name, value in values.items()}

    def _with_generators(self, dials: model.Dials | None) -> model.Dials | None:
        """Returns the dials with new generators of this step, if dropout needs them."""
        if dials is None or dials.dropout is None:
            return dials
        return dials._replace(
            generators=[
                step_generator(s, t, DROPOUT) for s, t in zip(self.seeds, self.steps, strict=True)
            ]
        )

    @torch.no_grad()
    def _same_batch_loss(
        self, inputs: Tensor, targets: Tensor, dials: model.Dials | None
    ) -> FloatArray:
        """Returns the loss of a step's batch after its update, (N,).

        Dials and random numbers are those of the step. Only the weights differ.
        """
        weights, rope = self._cast(self.weights), self._cast_rope()
        losses = self._loss(
            weights, self.model_config, inputs, targets, rope, self._with_generators(dials), None
        )
        return losses.double().cpu().numpy()

    @torch.no_grad()
    def _layer_gauges(
        self, squares: FloatArray, maxima: FloatArray | None, gauges: Sequence[Tensor] | None
    ) -> dict[str, FloatArray]:
        """Returns statistics of each layer, (N, L) each, finite."""
        values = {"layer_gradient_norm": np.sqrt(_finite(squares) @ self._in_layer)}
        if maxima is not None:
            values["layer_gradient_max"] = (_finite(maxima)[:, :, None] * self._in_layer).max(1)
        if gauges is not None:
            activations = _finite(torch.stack(list(gauges), -1).double().cpu().numpy())  # (3, N, L)
            names = ("layer_activation_mean", "layer_activation_variance", "layer_saturation")
            values |= dict(zip(names, activations, strict=True))
        return values

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
        return (
            weights
            if dtype == torch.float32
            else {name: weight.to(dtype) for name, weight in weights.items()}
        )

    def _cast_rope(self) -> tuple[Tensor, Tensor]:
        dtype = DTYPES[self.config.dtype]
        return self._rope[0].to(dtype), self._rope[1].to(dtype)

    def _mark_diverged(self, active: BoolArray, loss: FloatArray, norm: FloatArray) -> None:
        limit = self.config.divergence_multiple * math.log(self.model_config.vocab_size)
        broken = ~(norm < LARGEST_NORM)  # also True for NaN
        reasons = np.select([~np.isfinite(loss), broken, loss > limit], [1, 2, 3], default=0)
        self.divergence = np.where(active, reasons, self.divergence)

    @torch.no_grad()
    def _update(
        self, gradients: Mapping[str, Tensor], rates: Mapping[str, Rates], moving: BoolArray
    ) -> None:
        """Applies every group's rule to all rows, then restores the rows that must not move."""
        frozen = torch.as_tensor(np.flatnonzero(~moving), device=self.device)
        state = self._tensors().values() if len(frozen) else ()
        copies = [value[frozen].clone() for value in state]

        for group in dict.fromkeys(self._groups.values()):
            names = [name for name, member_of in self._groups.items() if member_of == group]
            self._rules[group].update(
                [self.weights[name] for name in names],
                [gradients[name] for name in names],
                [self.optimizer_state[name] for name in names],
                rates[group],
                self.steps,
            )

        for value, copy in zip(state, copies, strict=True):
            value[frozen] = copy

    def _tensors(self) -> dict[str, Tensor]:
        """Returns weights and optimizer state. See Runs."""
        tensors = {f"weights/{name}": weight for name, weight in self.weights.items()}
        for name, slots in self.optimizer_state.items():
            tensors |= {f"optimizer/{name}/{slot}": value for slot, value in slots.items()}
        return tensors

    @torch.no_grad()
    def _evaluation_weights(self) -> Mapping[str, Tensor]:
        return self._cast(
            {
                name: self._rule(name).evaluation_weights(weight, self.optimizer_state[name])
                for name, weight in self.weights.items()
            }
        )

    @torch.no_grad()
    def _probe(self) -> FloatArray:
        """Returns each run's loss on fixed sequences of the probe slice, (N,) [nats per token]."""
        count = self.config.num_probe_batches * self.config.batch_size
        starts = batch_starts(len(self._tokens["probe"]), 0, 0, count, self.config.sequence_length)
        weights, dials, total = self._evaluation_weights(), self._dials(), np.zeros(self.num_rows)

        for first in range(0, count, MEASURE_SEQUENCES):
            part = starts[first : first + MEASURE_SEQUENCES]
            inputs, targets = gather(
                self._tokens["probe"],
                np.tile(part, (self.num_rows, 1)),
                self.config.sequence_length,
            )
            total += self._mean_losses(weights, inputs, targets, dials) * len(part)

        return total / count

    @torch.no_grad()
    def _mean_losses(
        self,
        weights: Mapping[str, Tensor],
        inputs: Tensor,
        targets: Tensor,
        dials: model.Dials | None,
    ) -> FloatArray:
        """Returns each run's mean loss, without gradient and dropout, (N,) [nats per token]."""
        losses = model.mean_losses(
            weights, self.model_config, inputs, targets, self._cast_rope(), _without_dropout(dials)
        )
        return losses.double().cpu().numpy()

    @torch.no_grad()
    def evaluate(self) -> FloatArray:
        """Returns held-out bits per byte of every run, (N,).

        The sequences are evenly spaced in the validation slice. The forward channels are part of
        the model and keep the panel's values. Dropout is off. The score is finite unless the
        weights of the run are not.
        """
        T = self.config.sequence_length
        tokens = self._tokens["validation"]
        count = min(max(1, self.config.eval_tokens // T), (len(tokens) - 1) // T)
        starts = np.linspace(0, len(tokens) - T - 1, count).astype(np.int64)

        weights, nats, size = self._evaluation_weights(), np.zeros(self.num_rows), 0.0
        dials = _without_dropout(self._dials())
        bytes_of = self.corpus.token_bytes.to(self.device)

        for first in range(0, count, MEASURE_SEQUENCES):
            part = np.tile(starts[first : first + MEASURE_SEQUENCES], (self.num_rows, 1))
            inputs, targets = gather(tokens, part, T)
            losses = model.token_losses(
                weights, self.model_config, inputs, targets, self._cast_rope(), dials
            )
            # Tokens that stand for no byte add neither nats nor bytes.
            counted = bytes_of[targets[0].flatten()]
            nats += (losses.double() * (counted > 0)).sum(1).cpu().numpy()
            size += float(counted.double().sum())

        return nats / (math.log(2.0) * size)

    def report(self) -> dict[str, FloatArray]:
        """Returns the score under its key."""
        return {self.score.key: self.evaluate()}

    def _momentum_norm(self) -> FloatArray:
        moments = [
            state["momentum"] for state in self.optimizer_state.values() if "momentum" in state
        ]
        if not moments:
            return np.zeros(self.num_rows)
        norms = torch.stack([torch.linalg.vector_norm(m.flatten(1), dim=1) for m in moments]).norm(
            dim=0
        )
        return norms.double().cpu().numpy()

    def description(self) -> dict[str, object]:
        """Returns configuration, channels, digests and rules. See Runs."""
        shape = {f"model_{name}": value for name, value in asdict(self.model_config).items()}
        return (
            self.config.description()
            | {"channels": [list(pair) for pair in self.channels]}
            | {"corpus": self.corpus.sha256, "tokens": self.corpus.digest}
            | {f"rule_{group}": rule_description(rule) for group, rule in self._rules.items()}
            | shape
        )
