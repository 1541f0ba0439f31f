"""An update of post-training, computed again for one run at a time in float64.

From what was sampled and what was paid for it: the student by a plain forward pass of whole texts,
the loss' gradient by autograd, the projection and AdamW as they are written in their papers. The
chain is checked link by link, the norm of each layer's gradient first, because AdamW hides the size
of a gradient.
"""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from hpenv.control.channels import CHANNELS as ALL_CHANNELS
from hpenv.plant.seeds import REFRESH, step_generator
from hpenv.posttraining.students.vocabulary import END
from tests.hpenv.posttraining.students.plain_student import plain_of_text
from tests.tiny_student import SHORT, short_pairs, vocabulary

N, P, G = 2, 2, 3
LR, DECAY, KL_WEIGHT, CLIP, HEAT = 0.1, 0.05, 0.2, 0.52, 0.8
BETA1, BETA2, EPS = 0.9, 0.99, 1e-8


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
        """Rest of the reward after Rebound."""
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
        """Of the loss in the knobs.

        Checks the norms of the layers by them.
        """
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
        """Update of AdamW.

        Checks the moments, from which it is computed as they stand.
        """
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
