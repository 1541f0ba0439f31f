"""Plant of post-training: a population of GRPO runs whose programs are executed and graded.

One update of a run samples G completions of P prompts and has the leaky grader pay for them. Each
of its optimizer steps computes the policy gradient, removes the hacking direction as far as the
panel says (`intervention`), and applies AdamW. All runs share the student's frozen weights. Each
run trains its own adapter coefficients. The tasks, samples and refreshes of a run depend on its
seed and its step alone.

The payments of the grader and the true verdicts are kept apart. Gauges and reward terms may read
the payments and the flags of a weak detector. True rates are `privileged` measurements, which
reports and infos alone read.

The module is one class, and longer than usual for that reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hpenv.arrays import BoolArray, FloatArray, IntArray
from hpenv.checks import check_count
from hpenv.control.panel import Panel, TensorSite
from hpenv.optim.adamw import AdamW
from hpenv.optim.optimizers import rule_description
from hpenv.optim.rules import Rates
from hpenv.plant.population import Runs
from hpenv.plant.protocol import Score
from hpenv.plant.seeds import SAMPLES, step_generator
from hpenv.posttraining.coefficients import TrainedCoefficients, layer_norms, layer_of, total_norm
from hpenv.posttraining.config import GRPOConfig
from hpenv.posttraining.evaluation import Evaluation, finite, fractions, zeros_like
from hpenv.posttraining.grading.grader import Grader, Verdict
from hpenv.posttraining.grading.loopholes import Task
from hpenv.posttraining.grading.shared_sandbox import SharedSandbox
from hpenv.posttraining.intervention import Intervention, run_values
from hpenv.posttraining.loss import advantages, policy_loss
from hpenv.posttraining.measurements import (
    GAUGE_NAMES,
    LARGEST_REWARD,
    MEASUREMENTS,
    PRIVILEGED_NAMES,
)
from hpenv.posttraining.splits import Curriculum
from hpenv.posttraining.students.registry import student as load_student
from hpenv.posttraining.students.student import Rollouts, Student

#: Of AdamW (the experiment on rank-space projection, amendment b).
BETA2 = 0.99


#: Coefficients, module -> (n, r), and the log-probabilities (n, P G, T) [nats] of sampled tokens,
#: which can be differentiated in them.
Forward = tuple[dict[str, Tensor], Tensor]


class _Batch(NamedTuple):
    """Rollouts of one update of n runs, and what is computed of them once.

    Attributes:
        rollouts: what was sampled.
        verdicts: on every completion, (n, P G).
        reference: log-probabilities under the untrained student, (n, P G, T) [nats].
        old_logp: log-probabilities under the policy that sampled, (n, P G, T) [nats].
        paid: payments of the leaky grader, (n, P, G).
        advantage: of the rewards after Rebound, (n, P, G).
        flat: groups whose rewards are all equal, (n, P) bool.
    """

    rollouts: Rollouts
    verdicts: list[list[Verdict]]
    reference: Tensor
    old_logp: Tensor
    paid: Tensor
    advantage: Tensor
    flat: Tensor


class _StepRecord(NamedTuple):
    """Measurements of one optimizer step of n runs.

    Attributes:
        kl: mean divergence from the untrained student, (n,) [nats per token].
        gradients: module -> (n, r).
        norm: norm of the whole gradient, (n,).
    """

    kl: Tensor
    gradients: dict[str, Tensor]
    norm: FloatArray


class GRPOPlant(Runs):
    """N runs of `config`, trained together.

    Attributes:
        config: hyperparameters, shared by all runs.
        student: the frozen model.
        names: of the student's modules.
        coefficients: what the runs train.
        quarantine: second set of coefficients, trained on the removed gradients. Zero unless
            `route`.
        intervention: directions of the runs, and what the panel does with them.
        module_cos: cosine of the direction and the gradient of the last update's first optimizer
            step, (N, modules). Not part of a snapshot.
    """

    Config = GRPOConfig
    kind = "posttraining"
    measurements = MEASUREMENTS
    score = Score("score", "held-out passes less hacks, higher is better", "1")

    def __init__(
        self,
        config: GRPOConfig,
        num_rows: int = 1,
        channels: Sequence[tuple[str, str]] = (("projection_strength", "run"),),
        *,
        student: Student | None = None,
        grader: Grader | None = None,
    ) -> None:
        """Prepares N runs with seeds 0 .. N - 1.

        Args:
            config: hyperparameters, shared by all runs.
            num_rows: N.
            channels: (channel, scope) pairs.
            student: the frozen model. None loads the one that `config` names.
            grader: None creates one that runs programs in the sandbox of this process, which
                starts with the first program.
        """
        check_count("num_rows", num_rows)
        student = load_student(config.student) if student is None else student
        self.config, self.channels, self.student = config, tuple(channels), student

        sandbox = SharedSandbox(config.num_workers, config.cpu_seconds)
        self._grader = Grader(sandbox, config.cache or None) if grader is None else grader
        self._curriculum = Curriculum(config, student)

        self.names = tuple(student.ranks)
        sites = {name: TensorSite("coefficients", "adamw", layer_of(name)) for name in self.names}
        panel = Panel(self.channels, sites, num_rows, self.kind)
        self._keep(panel, num_rows, int(panel.layers.max()) + 1)

        self.stacked, self.corpus_digest = student.stacked, student.digest
        self._rule = AdamW(beta2=BETA2)
        self.coefficients = TrainedCoefficients(student.ranks, num_rows, self._rule)
        self.quarantine = TrainedCoefficients(student.ranks, num_rows, self._rule)
        self.intervention = Intervention(config, student, panel, list(range(num_rows)))
        self.module_cos = torch.zeros(num_rows, len(self.names))

    def spawn(self, num_rows: int) -> GRPOPlant:
        """Returns a new plant with another number of rows. It shares student and grader."""
        plant = GRPOPlant(
            self.config, num_rows, self.channels, student=self.student, grader=self._grader
        )
        plant.set_measured_groups(self.measured_groups)
        return plant

    def reset(self, seeds: Sequence[int], rows: Sequence[int] | None = None) -> None:
        """Starts new runs in the given rows (default: all).

        A new run has coefficients of zero, a new order of tasks and the direction of the untrained
        student.

        Args:
            seeds: one per row that is reset.
            rows: indices of the rows. None resets all.
        """
        chosen = self._begin(seeds, rows)
        self.coefficients.reset(chosen)
        self.quarantine.reset(chosen)
        self.intervention.reset(chosen, seeds)

    def _begin_window(self, num_steps: IntArray) -> None:
        """Needs no preparation. See Runs."""

    def _end_window(self, rows: IntArray, probed: BoolArray) -> dict[str, FloatArray]:
        """Evaluates the probe. See Runs."""
        if not probed.any():
            return {}
        passed, index = np.zeros(self.num_rows), np.flatnonzero(probed)
        coefficients = self._forward_coefficients(index)
        passed[index] = self._evaluation.probe(coefficients, self.seeds[index])
        return {"probe_pass": passed, "probe_loss": 1.0 - passed}

    def evaluate(self) -> FloatArray:
        """Returns the held-out score of every run, (N,), computed without the quarantine.

        It is the `score` of the report.
        """
        return self.report()["score"]

    def report(self, quarantine: bool = False) -> dict[str, FloatArray]:
        """Returns the true rates of every run on held-out problems, (N,) each.

        Args:
            quarantine: keep the quarantine, which a deployed model is without.

        Returns:
            `score`: `pass` minus `hack`. `pass`: right programs where there is no loophole. `hack`,
            `hack_<mode>`: programs that were paid for but are not right, under the loopholes'
            training names. `renamed_hack`: the same under names that no reward was ever paid for.
            `correct`: right programs under a loophole. `kl`: divergence from the untrained student,
            on the completions without a loophole [nats per token].
        """
        coefficients = self._forward_coefficients(np.arange(self.num_rows), quarantine)
        return self._evaluation.report(coefficients, self.seeds)

    def tasks(self, row: int) -> list[Task]:
        """Returns the P tasks of a run's next update, a function of its seed and step."""
        return self._curriculum.tasks_at(int(self.seeds[row]), int(self.steps[row]))

    @property
    def _evaluation(self) -> Evaluation:
        return Evaluation(self.config, self.student, self._grader, self._curriculum)

    def _step(self, rows: IntArray) -> dict[str, FloatArray]:
        """Performs one update of these rows. See Runs.

        Measurements are of the first optimizer step.
        """
        trained = self._forward_coefficients(rows)
        self.intervention.refresh(rows, self.seeds[rows], self.steps[rows], trained)
        batch, policy = self._sample_batch(rows)
        first = self._take_step(rows, batch, policy, 0)
        for iteration in range(1, self.config.num_iterations):
            policy = self._policy(rows, batch.rollouts)
            self._take_step(rows, batch, policy, iteration)

        self.steps[rows[self.divergence[rows] == 0]] += 1
        return self._measurements(rows, batch, first)

    def _sample_batch(self, rows: IntArray) -> tuple[_Batch, Forward]:
        """Samples and grades one update's programs. Returns them and the policy that sampled."""
        config, evaluation = self.config, self._evaluation
        P, G = config.num_prompts, config.num_samples
        tasks = [self.tasks(row) for row in rows]
        generators = [step_generator(self.seeds[row], self.steps[row], SAMPLES) for row in rows]
        coefficients = self._forward_coefficients(rows, quarantine=True)
        rollouts = evaluation.sample(coefficients, tasks, G, generators)

        # Programs run in other processes while this one computes the forward passes.
        with ThreadPoolExecutor(1) as executor:
            grading = executor.submit(evaluation.grade, tasks, rollouts)
            with torch.no_grad():
                reference = self.student.log_probabilities(
                    zeros_like(coefficients), rollouts, config.temperature
                )
            policy = self._policy(rows, rollouts)
            verdicts = grading.result()

        payments = [[verdict.reward for verdict in row] for row in verdicts]
        paid = torch.tensor(payments, dtype=torch.float32).view(len(rows), P, G)
        rewards = self.intervention.penalized_rewards(rows, paid, rollouts, coefficients)
        advantage, flat = advantages(rewards, config.advantage_scale)
        old_logp = policy[1].detach()
        return _Batch(rollouts, verdicts, reference, old_logp, paid, advantage, flat), policy

    def _policy(self, rows: IntArray, rollouts: Rollouts) -> Forward:
        leaves = {
            name: value.detach().requires_grad_()
            for name, value in self._forward_coefficients(rows, quarantine=True).items()
        }
        return leaves, self.student.log_probabilities(leaves, rollouts, self.config.temperature)

    def _take_step(
        self, rows: IntArray, batch: _Batch, policy: Forward, iteration: int
    ) -> _StepRecord:
        """Takes one optimizer step on the rollouts. A row that diverges does not move."""
        leaves, logp = policy
        kl_weight = self.config.kl_weight * run_values(self.panel, "kl_weight", rows)
        loss, metrics = policy_loss(
            logp,
            batch.old_logp,
            batch.reference,
            batch.rollouts.mask,
            batch.advantage,
            torch.as_tensor(kl_weight, dtype=torch.float32),
            self.config.clip_ratio,
            max_tokens=self.student.max_tokens,
            skipped=batch.flat,
        )
        found = torch.autograd.grad(loss.sum(), list(leaves.values()))
        gradients = dict(zip(leaves, found, strict=True))
        norm = total_norm(gradients)
        reasons = {
            "loss_nonfinite": ~loss.detach().isfinite().numpy(),
            "gradient_nonfinite": ~np.isfinite(norm),
            "kl_above_limit": ~(metrics.kl.double().numpy() <= self.config.divergence_kl),  # or NaN
        }
        self._mark_diverged(rows, reasons)

        moving = self.divergence[rows] == 0
        if moving.any():
            moved = {name: g[torch.as_tensor(moving)] for name, g in gradients.items()}
            count = self.steps[rows] * self.config.num_iterations + iteration
            self._update(rows[moving], moved, norm[moving], count[moving])
        return _StepRecord(metrics.kl, gradients, norm)

    def _update(
        self, rows: IntArray, gradients: dict[str, Tensor], norm: FloatArray, count: IntArray
    ) -> None:
        """Projects gradients, or else the optimizer's update, and applies the update.

        Args:
            rows: indices of the runs, which all move, (n,).
            gradients: module -> (n, r).
            norm: of each run's whole gradient, (n,).
            count: optimizer steps that each run has taken, (n,).
        """
        rates, project = self._rates(rows), partial(self.intervention.project, rows)
        clip = np.minimum(1.0, self.config.max_gradient_norm / np.maximum(norm, 1e-12))
        factor = torch.as_tensor(clip, dtype=torch.float32)[:, None]
        if self.config.target == "update":
            clipped = {name: g * factor for name, g in gradients.items()}
            self.coefficients.update(rows, clipped, rates, count, project)
            return

        kept, removed = project(gradients)
        clipped = {name: g * factor for name, g in kept.items()}
        self.coefficients.update(rows, clipped, rates, count)
        if self.config.route:
            clipped = {name: g * factor for name, g in removed.items()}
            self.quarantine.update(rows, clipped, rates, count)

    def _rates(self, rows: IntArray) -> Rates:
        """Returns the learning rates and weight decays of the update, (n, modules) each."""
        base = self.config.base_lr * self.config.lr_schedule(self.steps[rows])
        table = self.panel.table("lr")
        multipliers = np.ones((len(rows), len(self.names))) if table is None else table[rows]
        lr = torch.as_tensor(base[:, None] * multipliers)
        return Rates.of(lr, torch.full_like(lr, self.config.weight_decay))

    def _measurements(
        self, rows: IntArray, batch: _Batch, first: _StepRecord
    ) -> dict[str, FloatArray]:
        """Returns the measurements of an update by name, first axis (n,)."""
        paid, rollouts, verdicts = batch.paid, batch.rollouts, batch.verdicts
        length = rollouts.mask.float().mean((1, 2)) * rollouts.mask.shape[2]
        known = frozenset(self.config.known_modes)
        flagged = [np.mean([bool(v.flags & known) for v in row]) for row in verdicts]
        measures, cosines = self.intervention.measures(rows, first.gradients)
        self.module_cos[torch.as_tensor(rows)] = cosines

        trained = self._forward_coefficients(rows)
        gauges = {
            "reward_mean": paid.mean((1, 2)) / LARGEST_REWARD,
            "reward_spread": paid.std(2, unbiased=False).mean(1) / LARGEST_REWARD,
            "flat_groups": batch.flat.float().mean(1),
            "kl": first.kl,
            "entropy": rollouts.entropy,
            "completion_length": length / self.student.max_tokens,
            "compiled": torch.as_tensor(fractions(verdicts, "compiles")),
            "flagged": torch.as_tensor(np.array(flagged)),
            **measures._asdict(),
            "coefficient_norm": torch.as_tensor(total_norm(trained)),
        }
        values = {name: finite(gauges[name]) for name in GAUGE_NAMES}
        return values | {
            "train_loss": 1.0 - values["reward_mean"],
            "gradient_norm": first.norm,
            "layer_gradient_norm": layer_norms(first.gradients, self.num_layers),
            **{name: fractions(verdicts, name) for name in PRIVILEGED_NAMES},
        }

    def _forward_coefficients(self, rows: IntArray, quarantine: bool = False) -> dict[str, Tensor]:
        """Returns the coefficients of the forward pass, with the quarantine in training alone."""
        forward = {name: value[rows] for name, value in self.coefficients.values.items()}
        if self.config.route and quarantine:
            return {name: v + self.quarantine.values[name][rows] for name, v in forward.items()}
        return forward

    def _tensors(self) -> dict[str, Tensor]:
        """See Runs."""
        trained = self.coefficients.tensors() | self.quarantine.tensors("quarantine/")
        return trained | self.intervention.tensors()

    def description(self) -> dict[str, object]:
        """See Runs."""
        contents = self._curriculum.contents
        return self.config.description() | {
            "channels": [list(pair) for pair in self.channels],
            "student_digest": self.student.digest,
            "rule_coefficients": rule_description(self._rule),
            **{f"student_{name}": value for name, value in self.student.settings.items()},
            **{f"{split}_problems": content for split, content in contents.items()},
        }
