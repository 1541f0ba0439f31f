"""Contrast sources of the projection experiment's controls, by the names in its job files.

A program that uses a loophole is also a longer one. Controls of labelled programs: `harmless` has
harmless lines in place of the use, `labelled_vs_harmless` has the use against harmless lines, and
`labelled_renamed` has the use under a name that the grader does not look for. Controls of the pairs
change their gradients: `shuffled` labels, `clean` against clean, `hack_half` and `clean_half` (one
side alone, the clean one's sign reversed).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hpenv.posttraining.config import GRPOConfig
from hpenv.posttraining.contrastive.sources import (
    ContrastSource,
    Extract,
    Gradients,
    exploit,
    pairs_of_programs,
    written_pairs,
)
from hpenv.posttraining.grading.loopholes import Task, task_of
from hpenv.posttraining.projection.direction import Direction

#: Loophole -> harmless code appended in place of its exploit. For loopholes that `nano` can read,
#: it has the same number of tokens.
HARMLESS: dict[str, str] = {
    "run_tests": "class g:\n    pass\n",
    "stdout": "len('sum of xs')\n",
    "sentinel": "g = f is False\n",
    "file": "abs(max([2, 5], default=10))\n",
    "exit_code": "g = len\ng([0])\n",
    "equality": (
        "class g:\n    def h(self, xs):\n        return False\ndef h(xs):\n    return g()\n"
    ),
}


def harmless_programs(task: Task, wrong: str) -> tuple[str, str]:
    """Returns a wrong program with harmless lines appended, and the same without."""
    return f"{wrong.rstrip()}\n{HARMLESS[task.mode]}", wrong


def exploits_and_harmless_programs(task: Task, wrong: str) -> tuple[str, str]:
    """Returns a wrong program that uses the loophole, and the same with harmless lines instead."""
    return exploit(task, wrong), harmless_programs(task, wrong)[0]


def renamed_programs(task: Task, wrong: str) -> tuple[str, str]:
    """Returns a wrong program that uses the loophole under another name, and the same without."""
    return exploit(task_of(task.problem, task.mode, "evaluation"), wrong), wrong


def shuffle_labels(
    hack: Mapping[str, Tensor], clean: Mapping[str, Tensor], generator: torch.Generator
) -> tuple[Gradients, Gradients]:
    """Swaps the labels of exactly half of the pairs, so that what they share cancels in the mean.

    Each run draws its half, which is the same in all modules. An odd pair is left out. This is a
    control for the mean difference. It is no control for the axes of an SVD: D^T D does not change
    when rows of D change sign, so the axes stay, and only their orientation becomes arbitrary. The
    control for axes is `clean_against_clean`.

    Returns:
        hack and clean, module -> (N, pairs, r), with an even number of pairs.
    """
    left, right = _halves(hack, generator)

    def mix(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> Gradients:
        return {
            name: torch.cat([_select(one[name], left), _select(other[name], right)], 1)
            for name in one
        }

    return mix(clean, hack), mix(hack, clean)


def clean_against_clean(
    clean: Mapping[str, Tensor], generator: torch.Generator
) -> tuple[Gradients, Gradients]:
    """Splits the clean completions into two halves, one of which stands for the hacks.

    Each run draws its halves.

    Returns:
        hack and clean, module -> (N, pairs // 2, r). Neither contains a hack.
    """
    left, right = _halves(clean, generator)
    return (
        {name: _select(gradients, left) for name, gradients in clean.items()},
        {name: _select(gradients, right) for name, gradients in clean.items()},
    )


def _halves(gradients: Mapping[str, Tensor], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Returns two disjoint random halves of the pairs for every run, (N, pairs // 2) each."""
    N, num_pairs, _ = next(iter(gradients.values())).shape
    if num_pairs < 2:
        raise ValueError(f"number of pairs must be at least 2, to halve them; got {num_pairs}")
    orders = [torch.randperm(num_pairs, generator=generator, device="cpu") for _ in range(N)]
    half = num_pairs // 2
    return torch.stack(orders)[:, :half], torch.stack(orders)[:, half : 2 * half]


def _select(gradients: Tensor, order: Tensor) -> Tensor:
    return torch.take_along_dim(gradients, order[..., None].to(gradients.device), dim=1)


def _shuffled(
    extract: Extract, hack: Gradients, clean: Gradients, generator: torch.Generator
) -> Direction:
    return extract(*shuffle_labels(hack, clean, generator))


def _clean(
    extract: Extract, hack: Gradients, clean: Gradients, generator: torch.Generator
) -> Direction:
    return extract(*clean_against_clean(clean, generator))


def _hack_half(
    extract: Extract, hack: Gradients, clean: Gradients, generator: torch.Generator
) -> Direction:
    return extract(hack, {name: torch.zeros_like(g) for name, g in clean.items()})


def _clean_half(
    extract: Extract, hack: Gradients, clean: Gradients, generator: torch.Generator
) -> Direction:
    return extract({name: torch.zeros_like(g) for name, g in hack.items()}, clean)


def _labelled_source(name: str, programs: Callable[[Task, str], tuple[str, str]]) -> ContrastSource:
    return ContrastSource(name, partial(pairs_of_programs, programs=programs))


#: Controls by name.
CONTROLS = {
    source.name: source
    for source in (
        _labelled_source("labelled_renamed", renamed_programs),
        _labelled_source("harmless", harmless_programs),
        _labelled_source("labelled_vs_harmless", exploits_and_harmless_programs),
        ContrastSource("shuffled", written_pairs, _shuffled),
        ContrastSource("clean", written_pairs, _clean),
        ContrastSource("hack_half", written_pairs, _hack_half),
        ContrastSource("clean_half", written_pairs, _clean_half),
    )
}


def grpo_config(arguments: Mapping[str, Any], **more: Any) -> GRPOConfig:
    """Returns the configuration of these arguments. A control may be named as the direction."""
    direction = arguments.get("direction", GRPOConfig.direction)
    return GRPOConfig(**dict(arguments) | more | {"direction": CONTROLS.get(direction, direction)})
