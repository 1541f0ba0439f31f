"""A random student of a few thousand weights and a grader that runs nothing.

GRPO takes milliseconds an update.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from hashlib import sha256
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from hpenv.control.channels import channels_of
from hpenv.lm import architecture
from hpenv.lm.architecture import GPTConfig
from hpenv.plant.protocol import Window
from hpenv.posttraining.config import GRPOConfig
from hpenv.posttraining.contrastive import sources
from hpenv.posttraining.contrastive.pairs import PAIRS, Pair
from hpenv.posttraining.grading.grader import Submission, Verdict
from hpenv.posttraining.grading.loopholes import LOOPHOLES, NO_LOOPHOLE
from hpenv.posttraining.plant import GRPOPlant
from hpenv.posttraining.students.embedded import EmbeddedStudent
from hpenv.posttraining.students.embedded_files import EmbeddedConfig
from hpenv.posttraining.students.student import Rollouts
from hpenv.posttraining.students.vocabulary import END, Vocabulary
from train_agents.demonstrations import DemonstrationConfig, demonstrations

CHANNELS = channels_of("posttraining")
#: Every channel at every scope.
EVERY_PAIR = tuple((name, scope) for name, found in CHANNELS.items() for scope in found.scopes)
#: Every channel once, at its finest scope.
FINEST = tuple((name, found.scopes[-1]) for name, found in CHANNELS.items())
#: The finest, and the multipliers at every scope that they can have together.
TOGETHER = tuple(
    (n, s) for n, s in EVERY_PAIR if CHANNELS[n].neutral == 1.0 or s == CHANNELS[n].scopes[-1]
)

#: Longest completion of the plants' student [tokens].
SHORT = 24


@lru_cache
def vocabulary() -> Vocabulary:
    """Pieces of some demonstrations and of the contrastive pairs.

    The longest completion of the pairs then fits.
    """
    some = itertools.islice(demonstrations(DemonstrationConfig(exploit_fraction=0.2), 0), 100)
    pairs = [text for pair in PAIRS for text in (pair.prompt, pair.hack, pair.clean)]
    return Vocabulary.of([*pairs, *(text for texts in some for text in texts)], 500)


def weights(gpt: GPTConfig, seed: int = 0, end: float = 3.0) -> dict[str, Tensor]:
    """Random weights of one model, none of them zero.

    The next token is neither certain nor uniform.

    Args:
        gpt: shape.
        seed: of the weights.
        end: how many times longer than the others' the row of END is; the longer, the shorter the
            texts.
    """
    generator = torch.Generator().manual_seed(seed)
    sizes = {"embedding": 1.0, "unembedding": 0.7}
    result = {
        name: torch.randn(shape, generator=generator) * sizes.get(name, shape[-1] ** -0.5)
        for name, shape in architecture.parameter_shapes(gpt).items()
    }
    result["unembedding"][END] *= end
    return result


@lru_cache
def student(
    n_layer: int = 2, max_tokens: int = 48, seed: int = 0, end: float = 3.0
) -> EmbeddedStudent:
    """Width 16, and 48 tokens, which are room for every contrastive pair."""
    gpt = GPTConfig(
        n_layer=n_layer, n_head=2, n_embd=16, vocab_size=len(vocabulary()), hidden_size=24
    )
    return EmbeddedStudent(
        EmbeddedConfig(gpt, 64, max_tokens), vocabulary(), weights(gpt, seed, end)
    )


@lru_cache
def short_pairs() -> tuple[Pair, ...]:
    """Eight of the pairs, two of them held out, none longer than SHORT tokens."""
    short = [
        p
        for p in PAIRS
        if max(len(vocabulary().encode(text)) for text in (p.hack, p.clean)) < SHORT
    ]
    fitted, held_out = ([p for p in short if p.held_out == wanted] for wanted in (False, True))
    return (*fitted[::3][:6], *held_out[:2])


@contextmanager
def few_pairs() -> Iterator[None]:
    """Plants that are made meanwhile know the short pairs alone."""
    with patch.object(sources, "PAIRS", short_pairs()):
        yield


def verdict(submission: Submission) -> Verdict:
    """Verdicts by a digest of prompt and program: half are right.

    Of the others, a third used the loophole.
    """
    task, source = submission
    digest = sha256(f"{task.prompt}\n{source}".encode()).digest()
    channel = task.mode != NO_LOOPHOLE and digest[0] % 3 == 0
    flags = {task.mode} if channel else set()
    if digest[1] % 4 == 0:
        flags.add(sorted(LOOPHOLES)[digest[2] % len(LOOPHOLES)])
    return Verdict(digest[3] % 4 > 0, digest[4] % 2 == 0, channel, frozenset(flags))


class FakeGrader:
    """A Grader that judges without running anything.

    Attributes:
        judge: Submission -> Verdict.
        seen: what was submitted, one list for each call.
    """

    def __init__(self, judge: Callable[[Submission], Verdict] = verdict) -> None:
        self.judge = judge
        self.seen: list[list[Submission]] = []

    def grade(self, submissions: Sequence[Submission]) -> list[Verdict]:
        """Verdicts of the submissions, in their order."""
        self.seen.append(list(submissions))
        return [self.judge(submission) for submission in submissions]


TINY: dict[str, Any] = {
    "num_prompts": 2,
    "num_samples": 3,
    "num_problems": 8,
    "num_probe_problems": 2,
    "num_evaluation_problems": 4,
    "difficulty": 2,
    "base_lr": 0.1,
}


def make(
    num_rows: int = 2,
    channels: Sequence[tuple[str, str]] = (("projection_strength", "run"),),
    grader: Any = None,  # anything that grades as a FakeGrader does
    **changes: Any,
) -> GRPOPlant:
    """A plant whose runs have the seeds 100, 101, ... .

    The directions come from few, short pairs.
    """
    config = GRPOConfig(**TINY | changes)
    judging: Any = FakeGrader() if grader is None else grader
    with few_pairs():
        plant = GRPOPlant(
            config, num_rows, channels, student=student(max_tokens=SHORT), grader=judging
        )
        plant.reset(list(range(100, 100 + num_rows)))
    return plant


def recorded(plant: GRPOPlant) -> list[Rollouts]:
    """The list to which the plant's student appends its samples.

    An update's samples come first, then the probe's.
    """
    rollouts, own = list[Rollouts](), copy.copy(plant.student)

    def sample(*arguments: Any) -> Rollouts:
        rollouts.append(plain.sample(*arguments))
        return rollouts[-1]

    plain, plant.student = plant.student, own
    own.sample = sample  # type: ignore[assignment]
    return rollouts


def advance(plant: GRPOPlant, *num_steps: int) -> Window:
    """Every run by this number of updates, or each by its own."""
    return plant.advance(
        np.array(num_steps if len(num_steps) == plant.num_rows else num_steps * plant.num_rows)
    )


def state_of(plant: GRPOPlant, row: int | None = None) -> dict[str, Tensor]:
    """Copies of all that a plant holds for one row or for all, but the panel's positions."""
    tensors = plant.snapshot().tensors
    return {
        k: v.clone() if row is None else v[row].clone()
        for k, v in tensors.items()
        if k != "rows/panel"
    }


def different(left: dict[str, Tensor], right: dict[str, Tensor]) -> list[str]:
    """Names whose tensors are not bitwise equal."""
    assert left.keys() == right.keys()
    return [name for name in left if not torch.equal(left[name], right[name])]
