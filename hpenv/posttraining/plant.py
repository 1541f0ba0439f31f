"""Plant of post-training: a population of GRPO runs whose programs are executed and graded.

One step of a run samples G completions of P prompts, has the leaky grader pay for them, computes
the policy gradient, removes the hacking direction as far as the panel says, and applies AdamW. All
runs share the student's frozen weights. Each run trains its own adapter coefficients, the knobs.
The tasks, samples and refreshes of a run depend on its seed and its step alone.

The payments of the grader and the true verdicts are kept apart. Gauges and reward terms may read
the payments and the flags of a weak detector. True rates are `privileged` measurements, which
reports and infos alone read.

The module is longer than usual because dynamics and measurement share every attribute.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
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
from hpenv.plant.measurements import Measurement
from hpenv.plant.population import Runs
from hpenv.plant.protocol import DIVERGENCE_REASONS, Score
from hpenv.plant.seeds import DIRECTION, EVALUATION, PROBE, REFRESH, SAMPLES, step_generator
from hpenv.posttraining.config import GRPOConfig
from hpenv.posttraining.contrastive.contrasts import Contrast
from hpenv.posttraining.grading.grader import Grader, Submission, Verdict
from hpenv.posttraining.grading.loopholes import Task
from hpenv.posttraining.grading.shared_sandbox import SharedSandbox
from hpenv.posttraining.loss import advantages, policy_loss
from hpenv.posttraining.projection.direction import Direction
from hpenv.posttraining.projection.rebound import concept_direction, concept_scores, rebound
from hpenv.posttraining.projection.rules import (
    Measures,
    RunningMoments,
    coordinates,
    module_cosines,
    project,
    update_moments,
    zero_moments,
)
from hpenv.posttraining.splits import Curriculum
from hpenv.posttraining.students.registry import student as load_student
from hpenv.posttraining.students.student import Rollouts, Student

#: Reward of a right program that compiles. Gauges count rewards in this unit.
LARGEST_REWARD = 3.5


def _gauge(name: str, doc: str, unit: str = "1") -> Measurement:
    """Returns a mean over the updates of a window that infos have."""
    return Measurement(name, unit, doc, over="mean", in_info=True)


#: Measurements of the first optimizer step of each update; `knob_norm` after the last.
GAUGES = (
    _gauge("reward_mean", "mean payment of the leaky grader / 3.5"),
    _gauge("reward_spread", "mean over the groups of the standard deviation / 3.5"),
    _gauge("flat_groups", "fraction of the groups whose rewards are all equal"),
    _gauge("kl", "k3 estimate of the divergence from the untrained student", "nats/token"),
    _gauge(
        "entropy", "of the whole distribution at temperature 1, at sampled tokens", "nats/token"
    ),
    _gauge("completion_length", "mean length of a completion / the longest"),
    _gauge("compiled", "fraction of the programs that compile"),
    _gauge("flagged", "fraction of the programs that the weak detector flags"),
    _gauge("mean_cos", "mean over the modules of the cosine of gradient and direction"),
    _gauge("frac_fired", "fraction of modules whose gradient has a component along the direction"),
    _gauge("removed_fraction", "mean over the modules of ||relu(V g)|| / ||g||"),
    _gauge("mean_c", "mean component of the gradient along the axes"),
    _gauge("mean_positive_c", "mean of the positive part of that component"),
    _gauge("mean_negative_c", "mean of the negative part"),
    _gauge("knob_norm", "norm of all coefficients", "singular values"),
)
GAUGE_NAMES = tuple(own.name for own in GAUGES)
#: True rates of the rollouts.
PRIVILEGED = (
    Measurement("hack", "1", "programs paid for but not right", over="mean", privileged=True),
    Measurement("correct", "1", "right programs", over="mean", privileged=True),
    Measurement(
        "used_loophole",
        "1",
        "programs that use the prompt's loophole, whether they need it or not",
        over="mean",
        privileged=True,
    ),
)
PRIVILEGED_NAMES = tuple(own.name for own in PRIVILEGED)
MEASUREMENTS = (
    Measurement("train_loss", "1", "fraction of the largest reward not earned", over="mean"),
    Measurement("probe_loss", "1", "fraction of the probe's problems not solved", group="probe"),
    Measurement("gradient_norm", "1", "norm of the gradient of all coefficients"),
    Measurement("layer_gradient_norm", "1", "norm of the layer's gradient", per="layer"),
    *GAUGES,
    Measurement(
        "probe_pass", "1", "fraction of the probe's problems solved", group="probe", in_info=True
    ),
    *PRIVILEGED,
)


class _StepRecord(NamedTuple):
    """Measurements of one optimizer step.

    Attributes:
        kl: mean divergence from the untrained student, (rows,) [nats per token].
        gradients: module -> (rows, r).
        norm: norm of the whole gradient, (rows,).
        measures: measures of the projection.
    """

    kl: Tensor
    gradients: dict[str, Tensor]
    norm: FloatArray
    measures: Measures


class GRPOPlant(Runs):
    """N runs of `config`, trained together.

    Attributes:
        config: hyperparameters, shared by all runs.
        student: the frozen model.
        knobs: trained adapter coefficients, module -> (N, r).
        quarantine: second set of coefficients, trained on the removed gradients, module -> (N, r).
            Zero unless `route`.
        direction: the hacking direction of each run.
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
        self._contrast = Contrast(config, student)

        self.names = tuple(student.ranks)
        sites = {name: TensorSite("knobs", "adamw", _layer(name)) for name in self.names}
        panel = Panel(self.channels, sites, num_rows, self.kind)
        self._keep(panel, num_rows, int(panel.layers.max()) + 1)

        self.stacked, self.corpus_digest = student.stacked, student.digest
        self._rule = AdamW(beta2=0.99)
        self._concept: Tensor | None = None
        self.knobs = {name: torch.zeros(num_rows, r) for name, r in student.ranks.items()}
        self.quarantine = {name: torch.zeros_like(knob) for name, knob in self.knobs.items()}
        self._optimizer_states = {
            name: self._rule.init(knob) for name, knob in self._coefficients().items()
        }
        self.direction = self._untrained_direction(list(range(num_rows)))
        self._moments = zero_moments(self.direction)
        self.module_cos = torch.zeros(num_rows, len(self.names))

    def spawn(self, num_rows: int) -> GRPOPlant:
        """Returns a new plant with another number of rows. It shares student and grader."""
        plant = GRPOPlant(
            self.config, num_rows, self.channels, student=self.student, grader=self._grader
        )
        plant.measure(self.measured_groups)
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
        for name, knob in self._coefficients().items():
            knob[chosen] = 0.0
            for slot, value in self._rule.init(knob[chosen]).items():
                self._optimizer_states[name][slot][chosen] = value
        self._set_direction(chosen, self._untrained_direction(chosen))

    def _begin_window(self, num_steps: int) -> None:
        """Needs no preparation. See Runs."""

    def _end_window(self, rows: IntArray, probed: BoolArray) -> dict[str, FloatArray]:
        """Evaluates the probe. See Runs."""
        if not probed.any():
            return {}
        passed = np.zeros(self.num_rows)
        passed[probed] = self._probe(np.flatnonzero(probed))
        return {"probe_pass": passed, "probe_loss": 1.0 - passed}

    def evaluate(self) -> FloatArray:
        """Returns the held-out score of every run, (N,), computed without the quarantine.

        The score is the fraction of held-out problems solved when there is no loophole, minus the
        fraction hacked when there is one, both by the true verdict. See `report` for each.
        """
        report = self.report()
        return report["pass"] - report["hack"]

    def report(self, deployed: bool = True) -> dict[str, FloatArray]:
        """Returns the true rates of every run on held-out problems, (N,) each.

        Args:
            deployed: leave the quarantine out, as in deployment.

        Returns:
            `pass`: right programs where there is no loophole. `hack`, `hack_<mode>`: programs that
            were paid for but are not right, under the loopholes' training names. `renamed_hack`:
            the same under names that no reward was ever paid for. `correct`: right programs under a
            loophole. `kl`: divergence from the untrained student, on the completions without a
            loophole [nats per token].
        """
        rows = np.arange(self.num_rows)
        result: dict[str, FloatArray] = {}

        for names, key in ((None, "pass"), ("train", "hack"), ("evaluation", "renamed_hack")):
            tasks = [self._curriculum.evaluation(names)] * self.num_rows
            generators = [step_generator(self.seeds[row], 0, EVALUATION) for row in rows]
            rollouts, verdicts = self._sample_and_grade(rows, tasks, generators, deployed)
            correct, hack = (
                _verdict_fractions(verdicts, "correct"),
                _verdict_fractions(verdicts, "hack"),
            )
            result[key] = correct if names is None else hack
            if names == "train":
                result["correct"] = correct
                for mode in self.config.modes:
                    columns = [i for i, task in enumerate(tasks[0]) if task.mode == mode]
                    rates = [np.mean([row[i].hack for i in columns]) for row in verdicts]
                    result[f"hack_{mode}"] = np.array(rates)
            if names is None:
                result["kl"] = self._kl_from_untrained(rollouts, deployed)

        return result

    def tasks(self, row: int) -> list[Task]:
        """Returns the P tasks of a run's next update, a function of its seed and step."""
        return self._curriculum.tasks_at(int(self.seeds[row]), int(self.steps[row]))

    def _kl_from_untrained(self, rollouts: Rollouts, deployed: bool) -> FloatArray:
        """Returns the k3 estimate of the divergence from the untrained student, (N,)."""
        with torch.no_grad():
            knobs = self._forward_knobs(np.arange(self.num_rows), deployed)
            zeros = self._zeros(self.num_rows)
            temperature = self.config.temperature
            now = self.student.log_probabilities(knobs, rollouts, temperature)
            start = self.student.log_probabilities(zeros, rollouts, temperature)
            difference = (start - now).double()
            per_token = (difference.exp() - difference - 1.0) * rollouts.mask
            return _finite(per_token.sum((1, 2)) / rollouts.mask.sum((1, 2)))

    def _step(self, rows: IntArray) -> dict[str, FloatArray]:
        """Performs one update of these rows. See Runs.

        Measurements are of the first optimizer step.
        """
        config, P, G = self.config, self.config.num_prompts, self.config.num_samples
        self._refresh(rows)
        tasks = [self.tasks(row) for row in rows]
        generators = [step_generator(self.seeds[row], self.steps[row], SAMPLES) for row in rows]
        rollouts = self._sample(rows, tasks, G, generators)

        # Programs run in other processes while this one computes the forward passes.
        with ThreadPoolExecutor(1) as executor:
            grading = executor.submit(self._grade, tasks, G, rollouts)
            knobs = self._differentiable_knobs(rows)
            with torch.no_grad():
                reference = self.student.log_probabilities(
                    self._zeros(len(rows)), rollouts, config.temperature
                )
            logp = self.student.log_probabilities(knobs, rollouts, config.temperature)
            verdicts = grading.result()

        paid = torch.tensor(
            [[v.reward for v in row] for row in verdicts], dtype=torch.float32
        ).view(len(rows), P, G)
        rewards = self._rewards_after_rebound(rows, paid, rollouts)
        advantage, flat = advantages(rewards, config.advantage_scale)
        kl_weight = torch.as_tensor(
            config.kl_weight * self._per_run("kl_weight", rows, 1.0), dtype=torch.float32
        )
        old_logp = logp.detach()

        def take_step(iteration: int, knobs: dict[str, Tensor], logp: Tensor) -> _StepRecord:
            """Takes one optimizer step on the rollouts. A row that diverges does not move."""
            loss, metrics = policy_loss(
                logp,
                old_logp,
                reference,
                rollouts.mask,
                advantage,
                kl_weight,
                config.clip_ratio,
                max_tokens=self.student.max_tokens,
                skipped=flat,
            )
            gradients = dict(
                zip(knobs, torch.autograd.grad(loss.sum(), list(knobs.values())), strict=True)
            )
            norm = total_norm(gradients)
            kl = metrics.kl.double().numpy()
            self._mark_diverged(rows, loss.detach().double().numpy(), norm, kl)
            moving = self.divergence[rows] == 0
            count = self.steps[rows] * config.num_iterations + iteration
            measures = self._optimizer_step(rows, moving, gradients, norm, count)
            return _StepRecord(metrics.kl, gradients, norm, measures)

        first = take_step(0, knobs, logp)
        self.module_cos[torch.as_tensor(rows)] = module_cosines(
            first.gradients, self._direction_of(rows)
        )
        for iteration in range(1, config.num_iterations):
            knobs = self._differentiable_knobs(rows)
            logp = self.student.log_probabilities(knobs, rollouts, config.temperature)
            take_step(iteration, knobs, logp)

        moving = self.divergence[rows] == 0
        self.steps[rows[moving]] += 1
        gauges = {
            "reward_mean": paid.mean((1, 2)) / LARGEST_REWARD,
            "reward_spread": paid.std(2, unbiased=False).mean(1) / LARGEST_REWARD,
            "flat_groups": flat.float().mean(1),
            "kl": first.kl,
            "entropy": rollouts.entropy,
            "completion_length": rollouts.mask.float().mean((1, 2))
            * rollouts.mask.shape[2]
            / self.student.max_tokens,
            "compiled": torch.as_tensor(_verdict_fractions(verdicts, "compiles")),
            "flagged": torch.as_tensor(self._flagged_fractions(verdicts)),
            **first.measures._asdict(),
            "knob_norm": torch.as_tensor(
                total_norm({name: knob[rows] for name, knob in self.knobs.items()})
            ),
        }
        layers = [
            {name: g for name, g in first.gradients.items() if _layer(name) == i}
            for i in range(self.num_layers)
        ]
        values = {name: _finite(gauges[name]) for name in GAUGE_NAMES}
        return values | {
            "train_loss": 1.0 - values["reward_mean"],
            "gradient_norm": first.norm,
            "layer_gradient_norm": np.stack([total_norm(layer) for layer in layers], 1),
            **{name: _verdict_fractions(verdicts, name) for name in PRIVILEGED_NAMES},
        }

    def _sample(
        self,
        rows: IntArray,
        tasks: Sequence[Sequence[Task]],
        num_samples: int,
        generators: Sequence[torch.Generator],
        deployed: bool = False,
    ) -> Rollouts:
        """Samples completions of every row's tasks."""
        prompts = [[task.prompt for task in row] for row in tasks]
        knobs = self._forward_knobs(rows, deployed)
        return self.student.sample(knobs, prompts, num_samples, generators, self.config.temperature)

    def _grade(
        self, tasks: Sequence[Sequence[Task]], num_samples: int, rollouts: Rollouts
    ) -> list[list[Verdict]]:
        """Returns the verdicts on every row's completions, (rows, tasks x samples)."""
        submissions = []
        for row_tasks, texts in zip(tasks, rollouts.texts, strict=True):
            repeated: list[Task] = []
            for task in row_tasks:
                repeated += [task] * num_samples
            submissions += [
                Submission(task, text) for task, text in zip(repeated, texts, strict=True)
            ]

        verdicts = self._grader.grade(submissions)
        width = len(rollouts.texts[0])
        return [verdicts[start : start + width] for start in range(0, len(verdicts), width)]

    def _sample_and_grade(
        self,
        rows: IntArray,
        tasks: Sequence[Sequence[Task]],
        generators: Sequence[torch.Generator],
        deployed: bool,
    ) -> tuple[Rollouts, list[list[Verdict]]]:
        """Samples one completion of each task, and grades it: verdicts are (rows, tasks)."""
        rollouts = self._sample(rows, tasks, 1, generators, deployed)
        return rollouts, self._grade(tasks, 1, rollouts)

    def _rewards_after_rebound(self, rows: IntArray, rewards: Tensor, rollouts: Rollouts) -> Tensor:
        """Returns the rewards minus the penalty of Rebound, where the panel asks for it."""
        weights = self._per_run("rebound_weight", rows, 0.0)
        if not weights.any():
            return rewards

        states = self.student.states(self._forward_knobs(rows), rollouts)  # (rows, P G, C)
        states = states.view(*rewards.shape, -1)
        scores = concept_scores(states, self._concept_axis().expand(len(rows), -1))
        return rebound(
            rewards, scores, torch.as_tensor(weights, dtype=torch.float32), self.config.rebound
        )

    def _concept_axis(self) -> Tensor:
        """Returns the mean difference of the pairs' states in the untrained student, (1, C)."""
        if self._concept is None:
            pairs, zeros = self._contrast.pairs, self._zeros(1)
            prompts = [[pair.prompt for pair in pairs]]
            hack, clean = (
                self.student.states(zeros, self.student.rollouts_from_texts(prompts, [texts]))
                for texts in ([pair.hack for pair in pairs], [pair.clean for pair in pairs])
            )
            self._concept = concept_direction(hack, clean)
        return self._concept

    def _optimizer_step(
        self,
        rows: IntArray,
        moving: BoolArray,
        gradients: Mapping[str, Tensor],
        norm: FloatArray,
        count: IntArray,
    ) -> Measures:
        """Projects the gradients and takes optimizer step `count`, (rows,).

        Rows that must not move stay bit for bit as they are.
        """
        config, index = self.config, torch.as_tensor(rows)
        projected, removed, measures = self._project_gradients(
            rows, moving, gradients, config.target == "grad"
        )
        clip = torch.as_tensor(
            np.minimum(1.0, config.max_gradient_norm / np.maximum(norm, 1e-12)), dtype=torch.float32
        )[:, None]
        clipped = {name: g * clip for name, g in projected.items()}
        if config.route:
            clipped |= {_quarantine_name(name): g * clip for name, g in removed.items()}

        coefficients = self._coefficients()
        weights = {name: coefficients[name][index] for name in clipped}
        before = {name: weight.clone() for name, weight in weights.items()}
        states = {
            name: {slot: value[index] for slot, value in self._optimizer_states[name].items()}
            for name in clipped
        }
        self._rule.update(
            list(weights.values()),
            list(clipped.values()),
            list(states.values()),
            self._rates(rows, len(clipped)),
            count,
        )

        if config.target == "update":
            step = {name: before[name] - weights[name] for name in gradients}
            # The measures of this call are not used, since those of the gradient are reported.
            kept_step, _, _ = self._project_gradients(rows, moving, step, True)
            for name, kept in kept_step.items():
                weights[name] = torch.where(
                    (kept == step[name]).all(1, keepdim=True), weights[name], before[name] - kept
                )

        is_moving = torch.as_tensor(moving)
        moved = index[is_moving]
        for name, weight in weights.items():
            coefficients[name][moved] = weight[is_moving]
            for slot, value in states[name].items():
                self._optimizer_states[name][slot][moved] = value[is_moving]

        return measures

    def _project_gradients(
        self, rows: IntArray, moving: BoolArray, vectors: Mapping[str, Tensor], applied: bool
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], Measures]:
        """Removes the direction from vectors, at the strengths of the panel.

        Returns:
            The vectors that remain, what was removed, and the measures. With `applied` False
            nothing is removed, and the measures are those of the one-sided rule.
        """
        direction = self._direction_of(rows)
        index = torch.as_tensor(rows)
        table = self.panel.table("projection_strength")
        strengths = (
            np.zeros((len(rows), len(self.names))) if table is None or not applied else table[rows]
        )
        magnitude = torch.as_tensor(
            self._per_run("magnitude_preservation", rows, 0.0), dtype=torch.float32
        )

        deviations = None
        if self.config.rule == "drift" and applied:
            deviations = self._deviations(
                index, torch.as_tensor(moving), coordinates(vectors, direction)
            )

        return project(
            dict(vectors),
            direction,
            self.config.rule if applied else "one_sided",
            {
                name: torch.as_tensor(strengths[:, k], dtype=torch.float32)
                for k, name in enumerate(self.names)
            },
            magnitude,
            deviations,
        )

    def _direction_of(self, rows: IntArray) -> Direction:
        index = torch.as_tensor(rows)
        return Direction(
            {name: axes[index] for name, axes in self.direction.axes.items()},
            {name: values[index] for name, values in self.direction.strengths.items()},
        )

    def _deviations(
        self, index: Tensor, moving: Tensor, components: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Returns the running standard deviation of each component along the axes.

        This step is included. Only rows that move keep the new moments.

        Returns:
            module -> (rows, k).
        """
        old = self._moments
        chosen = RunningMoments(
            old.weight[index],
            {name: mean[index] for name, mean in old.means.items()},
            {name: square[index] for name, square in old.squares.items()},
        )
        new = update_moments(chosen, components)
        moved = index[moving]
        old.weight[moved] = new.weight[moving]
        for name in components:
            old.means[name][moved] = new.means[name][moving]
            old.squares[name][moved] = new.squares[name][moving]

        return new.deviations()

    def _rates(self, rows: IntArray, num_tensors: int) -> Rates:
        """Returns the rates of the update, (rows, K) each. Knobs and quarantine have the same."""
        base = self.config.base_lr * self.config.lr_schedule(self.steps[rows])
        table = self.panel.table("lr")
        lr = base[:, None] * (
            np.ones((len(rows), len(self.names))) if table is None else table[rows]
        )
        lr = np.tile(lr, (1, num_tensors // len(self.names)))
        return Rates.of(
            torch.as_tensor(lr), torch.full(lr.shape, self.config.weight_decay, dtype=torch.float64)
        )

    def _refresh(self, rows: IntArray) -> None:
        """Extracts a new direction from the present student, for the rows that draw a refresh."""
        probability = self._per_run("direction_refresh", rows, 0.0)
        drawn = []
        for row, p in zip(rows, probability, strict=True):
            if p > 0:
                generator = step_generator(self.seeds[row], self.steps[row], REFRESH)
                if torch.rand((), generator=generator).item() < p:
                    drawn.append(int(row))

        if not drawn:
            return

        # Without the quarantine.
        knobs = {name: knob[drawn] for name, knob in self.knobs.items()}
        hack, clean = self._contrast.gradients(knobs, self._contrast.pairs)
        finite = torch.stack(
            [g.isfinite().flatten(1).all(1) for g in (*hack.values(), *clean.values())]
        ).all(0)

        # A run with gradients that are not finite is not refreshed. This update ends it.
        sound = torch.nonzero(finite)[:, 0].tolist()
        if sound:
            hack, clean = ({name: g[sound] for name, g in side.items()} for side in (hack, clean))
            refreshed = [drawn[i] for i in sound]
            generators = [
                step_generator(self.seeds[row], self.steps[row], DIRECTION) for row in refreshed
            ]
            self._set_direction(refreshed, self._contrast.direction(hack, clean, generators))

    def _untrained_direction(self, rows: Sequence[int]) -> Direction:
        """Returns the direction of the untrained student, (rows, k, r).

        All runs have the same gradients. Controls draw from the generator of each run.
        """
        references = self._contrast.untrained_gradients()
        hack, clean = (
            {name: g.expand(len(rows), -1, -1) for name, g in side.items()} for side in references
        )
        return self._contrast.direction(
            hack, clean, [step_generator(self.seeds[row], 0, DIRECTION) for row in rows]
        )

    def _set_direction(self, rows: Sequence[int], direction: Direction) -> None:
        """Replaces the direction of some runs, and resets their running moments."""
        self._moments.weight[list(rows)] = 0.0
        for record in (self._moments.means, self._moments.squares):
            for value in record.values():
                value[list(rows)] = 0.0
        for present, new in (
            (self.direction.axes, direction.axes),
            (self.direction.strengths, direction.strengths),
        ):
            for name, value in new.items():
                present[name][list(rows)] = value

    def _per_run(self, channel: str, rows: IntArray, neutral: float) -> FloatArray:
        values = self.panel.per_run(channel)
        return np.full(len(rows), neutral) if values is None else values[rows]

    def _coefficients(self) -> dict[str, Tensor]:
        """Returns everything the optimizer trains: knobs, and quarantine under prefixed names."""
        return self.knobs | {_quarantine_name(name): q for name, q in self.quarantine.items()}

    def _forward_knobs(self, rows: IntArray, deployed: bool = False) -> dict[str, Tensor]:
        """Returns the coefficients of the forward pass: knobs, plus quarantine unless deployed."""
        if deployed or not self.config.route:
            return {name: knob[rows] for name, knob in self.knobs.items()}
        return {name: knob[rows] + self.quarantine[name][rows] for name, knob in self.knobs.items()}

    def _differentiable_knobs(self, rows: IntArray) -> dict[str, Tensor]:
        forward = self._forward_knobs(rows)
        return {name: knob.detach().requires_grad_() for name, knob in forward.items()}

    def _zeros(self, num_rows: int) -> dict[str, Tensor]:
        return {name: torch.zeros(num_rows, r) for name, r in self.student.ranks.items()}

    def _flagged_fractions(self, verdicts: Sequence[Sequence[Verdict]]) -> FloatArray:
        """Returns the fraction of each row's programs that the weak detector flags, (rows,)."""
        known = frozenset(self.config.known_modes)
        return np.array([np.mean([bool(v.flags & known) for v in row]) for row in verdicts])

    def _probe(self, rows: IntArray) -> FloatArray:
        """Returns the fraction of the probe's problems that each row solves, (rows,).

        The random numbers are the same at every step.
        """
        tasks = [self._curriculum.probe] * len(rows)
        generators = [step_generator(self.seeds[row], 0, PROBE) for row in rows]
        _, verdicts = self._sample_and_grade(rows, tasks, generators, deployed=True)
        return _verdict_fractions(verdicts, "correct")

    def _mark_diverged(
        self, rows: IntArray, loss: FloatArray, norm: FloatArray, kl: FloatArray
    ) -> None:
        reasons = np.select(
            [~np.isfinite(loss), ~np.isfinite(norm), ~(kl <= self.config.divergence_kl)],
            [
                DIVERGENCE_REASONS.index(r)
                for r in ("loss_nonfinite", "gradient_nonfinite", "kl_above_limit")
            ],
            default=0,
        )
        self.divergence[rows] = np.where(self.divergence[rows] == 0, reasons, self.divergence[rows])

    def _tensors(self) -> dict[str, Tensor]:
        """See Runs."""
        result = {f"trained/{name}": knob for name, knob in self._coefficients().items()}
        for name, state in self._optimizer_states.items():
            for slot, value in state.items():
                result[f"optimizer/{name}/{slot}"] = value
        result |= {f"direction/{name}": axes for name, axes in self.direction.axes.items()}
        result |= {f"strength/{name}": v for name, v in self.direction.strengths.items()}
        result |= {f"mean/{name}": mean for name, mean in self._moments.means.items()}
        result |= {f"square/{name}": square for name, square in self._moments.squares.items()}
        return result | {"spread": self._moments.weight}

    def description(self) -> dict[str, object]:
        """See Runs."""
        return self.config.description() | {
            "channels": [list(pair) for pair in self.channels],
            "student_digest": self.student.digest,
            "rule_knobs": rule_description(self._rule),
            **{f"student_{name}": value for name, value in self.student.settings.items()},
            **{
                f"{split}_problems": content for split, content in self._curriculum.contents.items()
            },
        }


def _quarantine_name(name: str) -> str:
    return f"quarantine/{name}"


def _layer(name: str) -> int:
    """Returns the layer of a module: the first number in its name."""
    return next(int(part) for part in name.split(".") if part.isdigit())


def total_norm(tensors: Mapping[str, Tensor]) -> FloatArray:
    """Returns the L2 norm of each row's tensors together, (rows,)."""
    return torch.cat([t.double() for t in tensors.values()], 1).norm(dim=1).numpy()


def _finite(values: Tensor) -> FloatArray:
    return np.nan_to_num(values.double().numpy(), nan=0.0, posinf=1e6, neginf=-1e6)


def _verdict_fractions(verdicts: Sequence[Sequence[Verdict]], what: str) -> FloatArray:
    """Returns the fraction of each row's verdicts for which the fact `what` holds, (rows,)."""
    facts = {
        "compiles": lambda v: v.compiles,
        "correct": lambda v: v.correct,
        "hack": lambda v: v.hack,
        "used_loophole": lambda v: v.used_loophole,
    }
    return np.array([np.mean([facts[what](v) for v in row]) for row in verdicts])
