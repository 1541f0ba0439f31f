"""The plant of language-model pretraining: a population of runs and one panel.

Every run has its own step count. Weights and data order of a row depend on the seed of that row
alone. A run diverges if its loss or gradient is not finite, or if its loss exceeds a multiple of
the loss of a uniform guess. A diverged run stops where it is: the optimizer never sees that
gradient. The other rows do not change. The module is one class, and longer than usual for that
reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial

import numpy as np
import torch
from torch import Tensor

from hpenv.arrays import BoolArray, FloatArray, IntArray
from hpenv.checks import check_count
from hpenv.control.panel import Panel
from hpenv.lm import architecture, model
from hpenv.lm.data import Corpus, load_corpus
from hpenv.optim.optimizers import optimizer_rules, rule_description
from hpenv.optim.rules import Rates, Rule
from hpenv.plant.population import Runs
from hpenv.plant.protocol import Score
from hpenv.plant.seeds import DROPOUT, step_generator
from hpenv.pretraining import batches
from hpenv.pretraining.config import DTYPES, PretrainingConfig, find_device
from hpenv.pretraining.distances import DistanceMeter
from hpenv.pretraining.effects import CellEffects, decay_fractions
from hpenv.pretraining.evaluation import Losses, bits_per_byte, compiled_losses, mean_loss
from hpenv.pretraining.exploration import explore_weights
from hpenv.pretraining.forward_channels import forward_dials
from hpenv.pretraining.gradient_channels import apply_gradient_channels
from hpenv.pretraining.measurements import (
    MEASUREMENTS,
    divergence_reasons,
    gradient_sizes,
    layer_statistics,
    momentum_norm,
)
from hpenv.pretraining.rates import rates_of_step, window_rates
from hpenv.pretraining.steps import (
    first_moments,
    loss_and_gradients,
    tensor_sites,
    tensors_of_rules,
    trained_tensors,
    update_weights,
)
from hpenv.pretraining.updates import UpdateMeter, gain


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
        self.device = find_device(config.device)
        self.config, self.channels = config, tuple(channels)

        self.corpus: Corpus = (
            load_corpus(config.data, config.tokenizer) if corpus is None else corpus
        )
        config.check_corpus(self.corpus)
        self.corpus_digest = self.corpus.sha256

        self.model_config = architecture.preset(config.preset, self.corpus.vocab_size)
        self._limit = config.divergence_multiple * math.log(self.model_config.vocab_size)
        self._rules = optimizer_rules(config.optimizer)
        self._groups = {
            name: architecture.parameter_kind(name)
            for name in architecture.parameter_shapes(self.model_config)
        }
        config.check_groups(set(self._groups.values()))

        sites = tensor_sites(self._groups, self._rules)
        self._keep(
            Panel(self.channels, sites, num_rows, self.kind), num_rows, self.model_config.n_layer
        )

        self._in_layer = (
            self.panel.layers[:, None] == np.arange(self.model_config.n_layer)
        ).astype(np.float64)  # (K, L)
        groups = np.array(list(self._groups.values()))
        tensors = tensors_of_rules(self._groups, self._rules)
        self._members = {rule: np.array(list(own.values())) for rule, own in tensors.items()}
        self._updater = partial(update_weights, {rule: list(own) for rule, own in tensors.items()})
        self._in_group = (groups[:, None] == np.array(self.panel.groups)).astype(np.float64)

        self._rates: dict[Rule, Tensor] = {}
        self._window_dials: model.Dials | None = None
        self._window_step = 0
        self._meter = UpdateMeter(self._in_group, self._in_layer)
        self._distance = DistanceMeter(self.model_config, self._in_group, self._in_layer)

        self._dtype = DTYPES[config.dtype]
        rope = model.rope_tables(self.model_config, config.sequence_length, self.device)
        self._rope = (rope[0].to(self._dtype), rope[1].to(self._dtype))
        self._tokens = {
            part: getattr(self.corpus, part).to(self.device)
            for part in ("train", "probe", "validation")
        }
        self._loss = compiled_losses if config.compile else model.mean_losses

        self.weights = architecture.init_parameters(
            self.model_config, list(range(num_rows)), self.device
        )
        self.optimizer_state = {
            name: self._rule(name).init(weight) for name, weight in self.weights.items()
        }
        self._effects = CellEffects(self.panel, self.weights)

    def spawn(self, num_rows: int) -> PretrainingPlant:
        """Returns a new plant of the same configuration with another number of rows."""
        plant = PretrainingPlant(self.config, num_rows, self.channels, self.corpus)
        plant.set_measured_groups(self.measured_groups)
        return plant

    def _rule(self, name: str) -> Rule:
        return self._rules[self._groups[name]]

    def reset(self, seeds: Sequence[int], rows: Sequence[int] | None = None) -> None:
        """Starts new runs in the given rows: new weights, new data order, panel at neutral.

        Args:
            seeds: one per row that is reset.
            rows: indices of the rows. None: all rows.
        """
        chosen = self._begin(seeds, rows)

        index = torch.as_tensor(chosen, device=self.device)
        fresh = architecture.init_parameters(
            self.model_config, [int(seed) for seed in seeds], self.device
        )
        for name, weight in self.weights.items():
            weight[index] = fresh[name]
            for slot, value in self._rule(name).init(fresh[name]).items():
                self.optimizer_state[name][slot][index] = value
        for trace in self._effects.traces(self.measured_groups).values():
            trace[index] = 0.0

    def _begin_window(self, num_steps: IntArray) -> None:
        """Reads the panel. See Runs."""
        steps = self.steps + np.arange(num_steps.max(initial=0))[:, None]  # (S, N)
        groups, members = list(self._groups.values()), self._members
        self._rates = window_rates(self.config, self.panel, groups, members, steps, self.device)
        self._window_dials, self._window_step = self._dials(), 0
        self._meter.begin(self.measured_groups, num_steps)
        self._effects.begin_window()

    def _dials(self) -> model.Dials | None:
        share = self.ranks.rank, self.ranks.size
        return forward_dials(self.panel, self.model_config.logit_softcap, self.device, share)

    def _end_window(self, rows: IntArray, probed: BoolArray) -> dict[str, FloatArray]:
        """Measures losses, norms, distances and effects of cells. See Runs."""
        self.ranks.check_equal(list(self.weights.values()))
        measures_momentum = "momentum" in self.measured_groups
        states = self.optimizer_state.values() if measures_momentum else ()
        momentum = momentum_norm(states, self.num_rows)
        probe = self._probe() if probed.any() else np.zeros(self.num_rows)

        loss = np.where(probed, probe, 0.0)
        self._mark_diverged(rows, divergence_reasons(loss[rows], momentum[rows], self._limit))
        found = {"probe_loss": probe, "momentum_norm": momentum}
        if "distance" in self.measured_groups:
            found["start_distance"] = self._distance.measure(self.weights, self.seeds)
        return found | self._cell_effects()

    def _cell_effects(self) -> dict[str, FloatArray]:
        """Estimates the effects of a window's steps on the probe loss, if they are measured."""
        if not (self._window_step and self._effects.are_measured(self.measured_groups)):
            return {}
        return self._effects.measure(
            self.measured_groups,
            partial(self._loss_of, model.token_losses),
            self._evaluation_weights(),
            self._probe_sequences(),
            self.model_config.logit_softcap,
            self.ranks,
        )

    def _step(self, rows: IntArray) -> dict[str, FloatArray]:
        """Takes one optimizer step of these rows. See Runs.

        Every measurement comes from this forward and backward pass, except those of `_same_batch`.
        All rows are computed, and only these rows move.
        """
        active = np.zeros(self.num_rows, dtype=bool)
        active[rows] = True
        rates = rates_of_step(self._rates, self._window_step)
        self._window_step += 1

        batch_loss = partial(self._batch_loss, *self._batch())
        activations: list[Tensor] | None = [] if "activations" in self.measured_groups else None
        losses, gradients = loss_and_gradients(
            partial(batch_loss, activations=activations), self.weights, self.ranks
        )

        squares, maxima = gradient_sizes(gradients, "gradient_max" in self.measured_groups)
        loss = losses.cpu().numpy().astype(np.float64)
        norm = np.sqrt(squares.sum(1))
        self._mark_diverged(rows, divergence_reasons(loss[rows], norm[rows], self._limit))
        moving = active & (self.divergence == 0)
        values = {"train_loss": loss, "gradient_norm": norm}
        values |= layer_statistics(squares, maxima, activations, self._in_layer, self.ranks)
        values |= self._meter.before_update(gradients, squares)

        if moving.any():
            given = dict(zip(self.weights, gradients, strict=True))
            blends = self.panel.moves(("momentum_blend",))
            momenta = first_moments(self.optimizer_state) if blends else {}
            given = dict(
                apply_gradient_channels(
                    given, momenta, squares, self.panel, self.seeds, self.steps, moving
                )
            )
            probed = None
            if "probe_gain" in self.measured_groups and self._meter.is_last:
                probed = loss_and_gradients(self._probe_batch_loss, self.weights, self.ranks)

            self._meter.start(self.weights)
            self._update(given, rates, moving)
            explore_weights(self.weights, self.panel, self.seeds, self.steps, moving)
            values |= self._meter.finish(self.weights)

            values |= self._same_batch(list(given.values()), batch_loss, loss)
            if probed is not None:
                (after,) = self.ranks.average([self._probe_batch_loss(self.weights)])
                decrease = probed.losses - after
                promise = self._meter.promise(probed.gradients)
                values["probe_gain"] = gain(decrease.double().cpu().numpy(), promise)

        self.steps += moving
        return {name: value[rows] for name, value in values.items()}

    @torch.no_grad()
    def _same_batch(
        self,
        gradients: Sequence[Tensor],
        batch_loss: Callable[[Mapping[str, Tensor]], Tensor],
        loss: FloatArray,
    ) -> dict[str, FloatArray]:
        """Measures what an update did to its own batch, with a second forward pass if asked for."""
        kept = "same_batch" in self.measured_groups
        gains = "gain" in self.measured_groups and self._meter.is_last
        if not (kept or gains):
            return {}
        after = self.ranks.average([batch_loss(self.weights)])[0].double().cpu().numpy()
        after = np.where(np.isfinite(after), after, loss)
        found = {"same_batch_loss": after} if kept else {}
        if gains:
            found["update_gain"] = gain(loss - after, self._meter.promise(gradients))
        return found

    def _probe_batch_loss(self, weights: Mapping[str, Tensor]) -> Tensor:
        """Returns each run's loss on one fixed batch of the probe slice, without dropout, (N,).

        Unlike that of `_probe`, it is a loss of the weights that are trained.
        """
        batch = batches.probe_batch(self._tokens["probe"], self.config, self.num_rows, self.ranks)
        return self._loss_of(self._loss, weights, self._dials())(*batch)

    def _batch_loss(
        self,
        inputs: Tensor,
        targets: Tensor,
        weights: Mapping[str, Tensor],
        activations: list[Tensor] | None = None,
    ) -> Tensor:
        """Returns each run's loss, with the dials of the window and the random numbers of its step.

        The random numbers are functions of seed and step, so a second call repeats them.
        """
        dials = self._window_dials
        if dials is not None and dials.dropout is not None:
            generators = [
                step_generator(s, t, DROPOUT) for s, t in zip(self.seeds, self.steps, strict=True)
            ]
            dials = dials._replace(generators=generators)

        cast = self._cast(weights)
        return self._loss(cast, self.model_config, inputs, targets, self._rope, dials, activations)

    def _batch(self) -> tuple[Tensor, Tensor]:
        tokens = self._tokens["train"]
        return batches.training_batch(tokens, self.config, self.seeds, self.steps, self.ranks)

    def _cast(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        if self._dtype == torch.float32:
            return weights
        return {name: weight.to(self._dtype) for name, weight in weights.items()}

    def _update(
        self, gradients: Mapping[str, Tensor], rates: Mapping[Rule, Rates], moving: BoolArray
    ) -> None:
        """Updates the weights, and adds their change to the traces of the cells' effects."""
        state = self.weights, self.optimizer_state
        update = partial(self._updater, *state, rates, self.steps, moving)
        if not self._effects.are_measured(self.measured_groups):
            update(gradients)
        else:
            decay = decay_fractions(rates, self._members, moving)
            moved = self.weights, trained_tensors(*state)
            self._effects.trace(self.measured_groups, update, gradients, *moved, decay, moving)

    def _tensors(self) -> dict[str, Tensor]:
        """Returns weights, optimizer state and traces. See Runs."""
        traces = self._effects.traces(self.measured_groups)
        return trained_tensors(self.weights, self.optimizer_state) | traces

    def _evaluation_weights(self) -> Mapping[str, Tensor]:
        return {
            name: self._rule(name).evaluation_weights(weight, self.optimizer_state[name])
            for name, weight in self.weights.items()
        }

    def _loss_of(
        self, loss: Callable[..., Tensor], weights: Mapping[str, Tensor], dials: model.Dials | None
    ) -> Losses:
        """Returns a loss of some weights as a function of inputs and targets, for a measurement.

        The forward channels are part of the model and keep their values. Dropout is off.
        """
        cast, rope = self._cast(weights), self._rope
        dials = None if dials is None else dials._replace(dropout=None)
        return lambda inputs, targets: loss(cast, self.model_config, inputs, targets, rope, dials)

    def _probe_sequences(self) -> tuple[Tensor, IntArray, int, int]:
        """Returns the probe slice, its fixed sequences' starts and length, and N."""
        tokens = self._tokens["probe"]
        starts = batches.probe_starts(len(tokens), self.config, self.ranks)
        return tokens, starts, self.config.sequence_length, self.num_rows

    @torch.no_grad()
    def _probe(self) -> FloatArray:
        """Returns each run's loss on fixed sequences of the probe slice, (N,) [nats per token]."""
        losses = self._loss_of(model.mean_losses, self._evaluation_weights(), self._dials())
        return self.ranks.average_array(mean_loss(losses, *self._probe_sequences()))

    @torch.no_grad()
    def evaluate(self) -> FloatArray:
        """Returns held-out bits per byte of every run, (N,).

        The sequences are evenly spaced in the validation slice. The score is finite unless the
        weights of the run are not.
        """
        T, tokens = self.config.sequence_length, self._tokens["validation"]
        starts = batches.held_out_starts(len(tokens), self.config)
        token_bytes = self.corpus.token_bytes.to(self.device)
        losses = self._loss_of(model.token_losses, self._evaluation_weights(), self._dials())
        return bits_per_byte(losses, tokens, starts, T, self.num_rows, token_bytes)

    def report(self) -> dict[str, FloatArray]:
        """Returns the score under its key."""
        return {self.score.key: self.evaluate()}

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
