"""Rebound: lowers the rewards of rollouts whose hidden states look like hacking.

It is the method that projection is compared with. The score s of a rollout is the product of its
hidden state and a concept direction. z = (s - mean) / max(std, 0.1) within the group of its prompt.
Before advantages are computed, the reward r becomes

    additive        r - alpha max(z, 0)
    multiplicative  r (1 - alpha sigmoid(z) 1[z > 0])

The penalty is one-sided, since a bonus for low scores would teach the model to hide the concept.
The state is read at the end of the completion. The source reads it at the prompt's last token,
which is the same for all rollouts of a group and would give z = 0. A score that sees the hack
itself is close to an oracle, which flatters this method. Results must say so.

References:
    Wu and Tang, 2026, arXiv 2604.01476: hidden states averaged over the layers at 60-75 % of the
    depth, alpha = 2. The experiment on gradient projection that cites it has alpha = 0.5 and
    another formula. Neither is in that paper.

Departures: The states are those of the pairs of programs that the gradient's direction is made of,
not of 80 general sentences. std is the population's, which the source does not say. The source
divides advantages by the standard deviation of the remaining rewards of a group, which a run here
does not by default (Dr.GRPO).
"""

from __future__ import annotations

import torch
from torch import Tensor

SMALLEST_STD = 0.1
FORMS = ("additive", "multiplicative")


def concept_direction(hack: Tensor, clean: Tensor) -> Tensor:
    """Returns the mean over pairs of hack - clean, not normalized: (N, pairs, C) -> (N, C)."""
    if hack.ndim != 3 or hack.shape != clean.shape or 0 in hack.shape:
        raise ValueError(
            "hack and clean must be states of the same shape (N, pairs, C); got "
            f"{tuple(hack.shape)} and {tuple(clean.shape)}"
        )
    return (hack - clean).mean(1)


def concept_scores(states: Tensor, direction: Tensor) -> Tensor:
    """Returns the product of each rollout's state with its run's direction.

    Args:
        states: (N, P, G, C).
        direction: (N, C).

    Returns:
        Scores, (N, P, G).
    """
    if states.ndim != 4 or direction.shape != (states.shape[0], states.shape[3]):
        raise ValueError(
            "states and direction must have shapes (N, P, G, C) and (N, C); got "
            f"{tuple(states.shape)} and {tuple(direction.shape)}"
        )
    return torch.einsum("npgc,nc->npg", states, direction)


def standardize(scores: Tensor) -> Tensor:
    """Returns z of scores (N, P, G) within each group, the last axis, with std at least 0.1."""
    centered = scores - scores.mean(-1, keepdim=True)
    return centered / scores.std(-1, correction=0, keepdim=True).clamp_min(SMALLEST_STD)


def rebound(rewards: Tensor, scores: Tensor, alpha: Tensor, form: str = "additive") -> Tensor:
    """Returns the rewards minus the penalty.

    Args:
        rewards: (N, P, G) [reward].
        scores: scores of the same rollouts, (N, P, G). Only their order and spread within a group
            matter.
        alpha: weight of each run, (N,), at least 0. At 0 the rewards are returned bit for bit.
        form: `additive` or `multiplicative`.

    Returns:
        Rewards, (N, P, G), never above those given. In the multiplicative form this holds for
        rewards that are not negative.

    Raises:
        ValueError: for an unknown form, or wrong shapes or weights.
    """
    if form not in FORMS:
        raise ValueError(f"unknown form {form!r} of Rebound; expected one of {sorted(FORMS)}")
    if rewards.ndim != 3 or scores.shape != rewards.shape:
        raise ValueError(
            "rewards and scores must have the same shape (N, P, G); got "
            f"{tuple(rewards.shape)} and {tuple(scores.shape)}"
        )
    if alpha.shape != rewards.shape[:1] or not bool((alpha >= 0).all()):
        raise ValueError(
            f"alpha must be a number >= 0 for each of {len(rewards)} runs; got {alpha.tolist()}"
        )

    weight, z = alpha[:, None, None], standardize(scores)
    if form == "additive":
        result = rewards - weight * z.clamp_min(0.0)
    else:
        result = rewards * (1.0 - weight * torch.sigmoid(z) * (z > 0))

    return torch.where(weight == 0, rewards, result)
