"""One sampled action of every channel of post-training, traced to the exact change of the knobs.

The trace begins at the rollouts.

From what was sampled and what was paid for it, everything is computed again for one run at a time,
in float64: the student by a plain forward pass of whole texts, the loss' gradient by autograd, the
projection and AdamW as they are written in their papers. The chain is checked link by link, the
norm of each layer's gradient first, because AdamW hides the size of a gradient: each of the faults
injected at the end of this file must break every channel's trace.
"""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import torch

from hpenv.control.channels import CHANNELS as ALL_CHANNELS
from hpenv.plant.seeds import REFRESH, step_generator
from hpenv.posttraining import intervention as intervention_module
from hpenv.posttraining import plant as plant_module
from hpenv.posttraining.grading.grader import Submission
from hpenv.posttraining.students.vocabulary import END
from tests.test_embedded import plain_of_text
from tests.tiny_student import (
    CHANNELS,
    EVERY_PAIR,
    SHORT,
    advance,
    make,
    recorded,
    short_pairs,
    verdict,
    vocabulary,
)

N, P, G = 2, 2, 3
LR, DECAY, KL_WEIGHT, CLIP, HEAT = 0.1, 0.05, 0.2, 0.52, 0.8
BETA1, BETA2, EPS = 0.9, 0.99, 1e-8
FIRST_SEED = 140  # of the rows
WARM_STEPS = 1  # so that there are moments, and a distance to the reference


def one(position):
    """The part of the way of a one-sided channel."""
    return max(0.0, (position - 0.1) / 0.9)


#: Position -> value, as the channels' documentation has it.
VALUES = {
    "lr": lambda u: 100.0**u,
    "kl_weight": lambda u: 100.0**u,
    "projection_strength": one,
    "magnitude_preservation": one,
    "direction_refresh": one,
    "rebound_weight": lambda u: 5.0 * one(u),
}
#: Channels that are felt only where something is projected.
NEEDS_PROJECTION = ("magnitude_preservation", "direction_refresh")


@dataclass(repr=False)  # a failing assertion would print every knob
class Trace:
    """One update of one run: what stood before, what was sampled and paid, what stands after.

    Attributes:
        plant: for its configuration, its student and the names of its modules.
        row: which run.
        values: channel -> value for each module, (K,).
        prompts: P texts.
        tokens: of each completion up to its end, P G lists.
        paid: what the grader paid, (P, G).
        before: knobs, quarantines, moments, axes and moments of the components before the update.
        after: the same after it.
        layer_norms: of each layer's gradient, as the plant measured them, (L,).
    """

    plant: object
    row: int
    seed: int
    step: int
    values: dict
    prompts: list
    tokens: list
    paid: torch.Tensor
    before: dict
    after: dict
    layer_norms: np.ndarray

    def of(self, channel, module=0):
        neutral = ALL_CHANNELS[channel].neutral
        return float(self.values[channel][module]) if channel in self.values else neutral

    def leaves(self, quarantine=True):
        names = self.plant.names
        return {
            name: (
                self.before[f"trained/{name}"].double()
                + (self.before[f"trained/quarantine/{name}"].double() if quarantine else 0.0)
            )[None].requires_grad_()
            for name in names
        }

    def zeros(self):
        return {
            name: torch.zeros(1, r, dtype=torch.float64)
            for name, r in self.plant.student.ranks.items()
        }

    def text(self, knobs, prompt, numbers):
        return plain_of_text(self.plant.student, knobs, 0, prompt, numbers)

    def heated(self, knobs, m):
        """Log-probabilities (T,) of a completion's tokens.

        The distribution is the one that they were sampled from.
        """
        _, ahead, _ = self.text(knobs, self.prompts[m // G], self.tokens[m])
        return (ahead / HEAT).log_softmax(-1).gather(1, torch.tensor(self.tokens[m])[:, None])[:, 0]

    def rewards(self):
        """What is left of what was paid after Rebound."""
        alpha = self.of("rebound_weight")
        if alpha == 0.0:
            return self.paid
        axis = torch.zeros(self.plant.student.config.gpt.n_embd, dtype=torch.float64)
        fitted = [pair for pair in short_pairs() if not pair.held_out]
        for pair in fitted:
            for text, sign in ((pair.hack, 1.0), (pair.clean, -1.0)):
                _, _, streams = self.text(
                    self.zeros(), pair.prompt, [*vocabulary().encode(text), END]
                )
                axis += sign * streams[0][-1] / len(fitted)
        with torch.no_grad():
            states = [
                self.text(self.leaves(), self.prompts[m // G], numbers)[2]
                for m, numbers in enumerate(self.tokens)
            ]
        scores = torch.stack([streams[0][-1] @ axis for streams in states]).view(P, G)
        spread = (scores - scores.mean(1, keepdim=True)).square().mean(1, keepdim=True).sqrt()
        z = (scores - scores.mean(1, keepdim=True)) / spread.clamp_min(0.1)
        return self.paid - alpha * z.clamp_min(0.0)

    def gradients(self):
        """Of the loss in the knobs; checks the norms of the layers by them."""
        rewards = self.rewards()
        advantage = rewards - rewards.mean(1, keepdim=True)
        knobs, loss = self.leaves(), torch.zeros((), dtype=torch.float64)
        for m in range(P * G):
            p, g = divmod(m, G)
            if rewards[p].max() - rewards[p].min() < 1e-4:
                continue  # a flat group teaches nothing, not even to stay
            logp, reference = self.heated(knobs, m), self.heated(self.zeros(), m)
            distance = (reference - logp).exp() - (reference - logp) - 1.0
            ratio = (logp - logp.detach()).exp()  # 1: the clip does not bind
            kl_weight = KL_WEIGHT * self.of("kl_weight")
            loss = loss + (kl_weight * distance - advantage[p, g] * ratio).sum() / (P * G * SHORT)
        assert loss.requires_grad, "every group is flat: nothing would be traced"
        found = dict(zip(knobs, torch.autograd.grad(loss, list(knobs.values())), strict=True))
        gradients = {name: gradient[0] for name, gradient in found.items()}
        for i, measured in enumerate(self.layer_norms):
            own = [g for name, g in gradients.items() if name.startswith(f"layer.{i}.")]
            assert measured == pytest.approx(torch.cat(own).norm().item(), rel=1e-4), (
                "norm of a layer's gradient"
            )
        return gradients

    def axes(self):
        """Directions of each module, (k, r): those of before, or new ones of the student."""
        chance = self.of("direction_refresh")
        drawn = (
            chance > 0
            and torch.rand((), generator=step_generator(self.seed, self.step, REFRESH)).item()
            < chance
        )
        if not drawn:
            return {name: self.before[f"direction/{name}"].double() for name in self.plant.names}
        knobs, loss = self.leaves(quarantine=False), torch.zeros((), dtype=torch.float64)
        for pair in short_pairs():
            for text, sign in ((pair.hack, 1.0), (pair.clean, -1.0)):
                if not pair.held_out:
                    logp, _, _ = self.text(knobs, pair.prompt, [*vocabulary().encode(text), END])
                    loss = loss - sign * logp.mean()
        found = torch.autograd.grad(loss, list(knobs.values()))
        return {name: g / g.norm() for name, g in zip(knobs, found, strict=True)}

    def projected(self, vectors, deviations=None):
        """What is kept and what is removed, by the rule of the configuration."""
        kept, removed, axes = {}, {}, self.axes()
        for k, (name, g) in enumerate(vectors.items()):
            c = axes[name] @ g
            amount = {
                "one_sided": lambda c=c: c.clamp_min(0.0),
                "two_sided": lambda c=c: c,
                "reverse": lambda c=c: 2.0 * c,
                "drift": lambda c=c, name=name: c + 0.4 * deviations[name],
            }[self.plant.config.rule]()
            removed[name] = self.of("projection_strength", k) * (axes[name].T @ amount)
            rest, m = g - removed[name], self.of("magnitude_preservation")
            is_touched = bool(removed[name].any())
            kept[name] = (
                rest * ((1.0 - m) + m * g.norm() / (rest.norm() + 1e-8)) if is_touched else g
            )
        return kept, removed

    def deviations(self, vectors):
        """Running standard deviation of the components along the axes, this update's included."""
        result, axes = {}, self.axes()
        weight = 0.95 * self.before["spread"].item() + 0.05
        for name, g in vectors.items():
            c = axes[name] @ g
            mean = 0.95 * self.before[f"mean/{name}"].double() + 0.05 * c
            square = 0.95 * self.before[f"square/{name}"].double() + 0.05 * c.square()
            result[name] = (square / weight - (mean / weight).square()).clamp_min(0.0).sqrt()
            close(self.after[f"mean/{name}"], mean, f"{name} mean component")
        return result

    def check(self):
        """The state after is that of this update."""
        config, gradients = self.plant.config, self.gradients()
        on_gradient = config.target == "grad"
        norm = torch.cat(list(gradients.values())).norm().item()
        factor = min(1.0, CLIP / norm)
        given, removed = gradients, {}
        if on_gradient:
            deviations = self.deviations(gradients) if config.rule == "drift" else None
            given, removed = self.projected(gradients, deviations)
        steps = {}
        for k, name in enumerate(self.plant.names):
            steps[name] = self.stepped(name, factor * given[name], self.of("lr", k))
            if config.route:
                steps[f"quarantine/{name}"] = self.stepped(
                    f"quarantine/{name}", factor * removed[name], self.of("lr", k)
                )
        if not on_gradient:
            of_knobs = {name: steps[name] for name in self.plant.names}
            deviations = self.deviations(of_knobs) if config.rule == "drift" else None
            steps |= self.projected(of_knobs, deviations)[0]
        for name, step in steps.items():
            expected = self.before[f"trained/{name}"].double() - step
            bound = 1e-4 * step.abs().max().item() + 1e-6
            torch.testing.assert_close(
                self.after[f"trained/{name}"].double(), expected, rtol=0, atol=bound
            )
            assert step.any() or name.startswith("quarantine"), name

    def stepped(self, name, g, multiplier):
        """What AdamW takes off; checks the moments, from which it is computed as they stand."""
        slots = {
            when: {
                slot: state[f"optimizer/{name}/{slot}"].double()
                for slot in ("momentum", "second_moment")
            }
            for when, state in (("before", self.before), ("after", self.after))
        }
        old, new, t = slots["before"], slots["after"], self.step + 1
        close(new["momentum"], BETA1 * old["momentum"] + (1 - BETA1) * g, f"{name} first moment")
        close(
            new["second_moment"],
            BETA2 * old["second_moment"] + (1 - BETA2) * g.square(),
            f"{name} second moment",
        )
        m, v = new["momentum"] / (1 - BETA1**t), new["second_moment"] / (1 - BETA2**t)
        lr = LR * multiplier
        return lr * m / (v.sqrt() + EPS) + lr * DECAY * self.before[f"trained/{name}"].double()


def close(actual, expected, what):
    """Equal to a few ten-thousandths of the largest magnitude. The plant computes in float32."""
    worst = (actual.double() - expected).abs().max() / expected.abs().max().clamp_min(1e-12)
    assert worst < 5e-4, f"{what}: off by {worst:.3g} of its size"


def sampled(name, generator, shape):
    """Positions as a policy would sample them.

    Where they must move something, they are on the side where they do.
    """
    if (
        name == "direction_refresh"
    ):  # a chance a little above and a little below what the run will draw
        drawn = [
            torch.rand((), generator=step_generator(FIRST_SEED + row, WARM_STEPS, REFRESH)).item()
            for row in range(N)
        ]
        return np.array(
            [[0.1 + 0.9 * (u + shift)] for u, shift in zip(drawn, (0.05, -0.05), strict=True)]
        )
    if not CHANNELS[name].one_sided:
        return generator.uniform(-0.5, 0.5, shape)
    positions = generator.uniform(0.4, 0.9, shape)
    if shape[1] > 1:
        positions[0, 0] = -0.5  # and one cell at neutral
    return positions


@cache
def warm(pairs, changes):
    """A plant after WARM_STEPS updates, its student, and its snapshot.

    Every trace begins from the snapshot.
    """
    arguments = {
        "base_lr": LR,
        "weight_decay": DECAY,
        "kl_weight": KL_WEIGHT,
        "max_gradient_norm": CLIP,
    }
    arguments["temperature"] = HEAT
    plant = make(N, pairs, **arguments | dict(changes))
    plant.set_measured_groups(())
    plant.reset(list(range(FIRST_SEED, FIRST_SEED + N)))
    if (
        dict(changes).get("route") or dict(changes).get("rule") == "drift"
    ):  # a past of quarantine and components
        plant.panel.positions[:] = 1.0
    advance(plant, WARM_STEPS)
    return plant, plant.student, plant.snapshot()


def traces(pairs, at=None, **changes):
    """One update with sampled positions, or with those given, after WARM_STEPS updates at neutral.

    Returns one Trace per run.
    """
    plant, plant.student, past = warm(pairs, tuple(sorted(changes.items())))
    plant.restore(past)
    generator, columns = np.random.default_rng(3), []
    for (name, _), bank in plant.panel.banks.items():
        shape = (N, len(bank.cells))
        columns.append(
            np.full(shape, at[name]) if at and name in at else sampled(name, generator, shape)
        )
    plant.panel.positions[:] = np.concatenate(columns, 1)
    values = {
        name: VALUES_OF[name](plant.panel.positions[:, bank.columns])[:, bank.index]
        for (name, _), bank in plant.panel.banks.items()
    }
    played = recorded(plant)
    before = plant.snapshot().tensors
    window = advance(plant, 1)
    after = plant.snapshot().tensors
    assert plant.steps.tolist() == [WARM_STEPS + 1] * N
    rollouts, paid = played[0], []
    for texts, seed in zip(rollouts.texts, plant.seeds, strict=True):
        tasks = [task for task in plant._curriculum.tasks_at(seed, WARM_STEPS) for _ in range(G)]
        verdicts = [
            verdict(Submission(task, text)) for task, text in zip(tasks, texts, strict=True)
        ]
        paid.append([0.5 * v.compiles + 3.0 * (v.correct or v.used_loophole) for v in verdicts])
    return [
        Trace(
            plant,
            row,
            int(plant.seeds[row]),
            WARM_STEPS,
            {name: table[row] for name, table in values.items()},
            rollouts.prompts[row],
            [
                numbers[kept].tolist()
                for numbers, kept in zip(rollouts.tokens[row], rollouts.mask[row], strict=True)
            ],
            torch.tensor(paid[row], dtype=torch.float64).view(P, G),
            {name: tensor[row] for name, tensor in before.items()},
            {name: tensor[row] for name, tensor in after.items()},
            window["layer_gradient_norm"][row],
        )
        for row in range(N)
    ]


VALUES_OF = {name: np.vectorize(formula) for name, formula in VALUES.items()}


def of_channel(name, scope):
    """What a plant has for a channel to be felt, and where the companion stands."""
    if name in NEEDS_PROJECTION:
        return ((name, scope), ("projection_strength", "run")), {"projection_strength": 1.0}
    return ((name, scope),), None


EVERY_CHANNEL = pytest.mark.parametrize(
    ("name", "scope"), [(n, CHANNELS[n].scopes[-1]) for n in CHANNELS]
)


def test_every_channel_has_a_formula():
    assert VALUES.keys() == CHANNELS.keys()


@pytest.mark.parametrize(("name", "scope"), EVERY_PAIR)
def test_a_sampled_action_arrives_at_the_knobs(name, scope):
    for trace in traces(*of_channel(name, scope)):
        trace.check()


STRENGTH = (("projection_strength", "tensor"), ("magnitude_preservation", "run"))


@pytest.mark.parametrize(
    "changes",
    [
        {"rule": "two_sided"},
        {"rule": "reverse"},
        {"rule": "drift"},
        {"target": "update"},
        {"target": "update", "rule": "drift"},
        {"route": True},
        {"route": True, "rule": "two_sided"},
        {"direction_method": "svd", "num_axes": 3, "noise_floor": 0.25},
        {"direction": "random"},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_every_rule_and_target_arrives_at_the_knobs(changes):
    channels = STRENGTH[:1] if changes.get("route") else STRENGTH
    for trace in traces(channels, **changes):
        trace.check()


@EVERY_CHANNEL
def test_the_trace_of_another_value_fails(name, scope):
    """The check can fail: had the action been another, the state after would be another.

    Two-sided where something is projected: along the direction there may be nothing that one side
    would take out.
    """
    is_projected = name in ("projection_strength", *NEEDS_PROJECTION)
    for trace in traces(
        *of_channel(name, scope), **({"rule": "two_sided"} if is_projected else {})
    ):
        value = trace.values[name]
        trace.values[name] = {"direction_refresh": np.full_like(value, trace.row)}.get(
            name, 0.7 * value
        )
        with pytest.raises(AssertionError):
            trace.check()


# Faults on purpose: a gradient that is accumulated twice


def doubled_leaf(monkeypatch):
    """The gradients of the last layer's knobs arrive doubled."""
    original = torch.autograd.grad

    def grad(outputs, inputs, *more, **keywords):
        result = original(outputs, inputs, *more, **keywords)
        return tuple(g * 2 if k >= len(result) // 2 else g for k, g in enumerate(result))

    monkeypatch.setattr(plant_module.torch.autograd, "grad", grad)


def doubled_on_the_way(monkeypatch):
    """The gradients are doubled between their measurement and the optimizer."""
    original = intervention_module.project

    def project(*arguments):
        kept, removed = original(*arguments)
        return {name: g * 2 for name, g in kept.items()}, removed

    monkeypatch.setattr(intervention_module, "project", project)


FAULTS = {doubled_leaf: "norm of a layer's gradient", doubled_on_the_way: "first moment: off by"}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
@EVERY_CHANNEL
def test_a_gradient_that_is_accumulated_twice_breaks_the_trace(name, scope, fault, monkeypatch):
    fault(monkeypatch)
    broken = traces(*of_channel(name, scope))
    monkeypatch.undo()
    for trace in broken:
        with pytest.raises(AssertionError, match=FAULTS[fault]):
            trace.check()


def test_what_is_clipped_is_the_whole_gradient_before_it_is_projected():
    """One run of the traces is clipped and one is not, so that both ways have been taken."""
    norms = [math.sqrt((trace.layer_norms**2).sum()) for trace in traces((("lr", "run"),))]
    assert min(norms) < CLIP < max(norms)
