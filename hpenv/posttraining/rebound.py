"""Rebound: pays less for the rollouts of a group whose hidden states look like hacking.

The other way to act against hacks, to compare projection with: a rollout's score s is the product
of its hidden state with a concept direction; z = (s - mean) / max(std, 0.1) within the group of its
prompt; and before advantages are formed the reward becomes

    additive        r - alpha max(z, 0)
    multiplicative  r (1 - alpha sigmoid(z) 1[z > 0])

One-sided, since paying for a low score would teach to hide the concept. The state is read at the
end of the completion: the source speaks of the prompt's last token, which is the same for all
rollouts of a group and would give z = 0. A score that sees the hack itself is close to an oracle,
which flatters this method; say so beside its results.

References:
    Wu and Tang, 2026, arXiv 2604.01476: hidden states averaged over the layers at 60-75 % of the
    depth, alpha = 2. The experiment on gradient projection that cites it has alpha = 0.5 and
    another formula, which that paper does not.

Departures: states of the pairs of programs that the gradient's direction is made of, not of 80
general sentences; std is the population's, which the source does not say; and the source divides
advantages by the spread of what is left of a group's rewards, which a run here does not by default
(Dr.GRPO).
"""

from __future__ import annotations

import torch
from torch import Tensor

SMALLEST_STD = 0.1
FORMS = ("additive", "multiplicative")


def concept_direction(hack: Tensor, clean: Tensor) -> Tensor:
    """The mean over pairs of (hack - clean), (N, C), not normalized: (N, pairs, C) twice."""
    if hack.ndim != 3 or hack.shape != clean.shape or 0 in hack.shape:
        raise ValueError(
            f"got states of shapes {tuple(hack.shape)} and {tuple(clean.shape)}; expected (N, pairs, C)"
        )
    return (hack - clean).mean(1)


def concept_scores(states: Tensor, direction: Tensor) -> Tensor:
    """The product of every rollout's state with its run's direction: (N, P, G, C), (N, C) -> (N, P, G)."""
    if states.ndim != 4 or direction.shape != (states.shape[0], states.shape[3]):
        raise ValueError(
            f"got states {tuple(states.shape)} and a direction {tuple(direction.shape)}; expected (N, P, G, C), (N, C)"
        )
    return torch.einsum("npgc,nc->npg", states, direction)


def standardized(scores: Tensor) -> Tensor:
    """z of scores (N, P, G) within their group, the last axis; the spread is taken as 0.1 at least."""
    centered = scores - scores.mean(-1, keepdim=True)
    return centered / scores.std(-1, correction=0, keepdim=True).clamp_min(SMALLEST_STD)


def rebound(rewards: Tensor, scores: Tensor, alpha: Tensor, form: str = "additive") -> Tensor:
    """The rewards that remain.

    Args:
        rewards: (N, P, G) [reward].
        scores: of the same rollouts, (N, P, G); only their order and spread within a group matter.
        alpha: weight of each run, (N,), at least 0; where it is 0 the rewards are given back bit
            for bit.
        form: `additive` or `multiplicative`.

    Returns:
        Rewards, (N, P, G), not above those given, provided that these are not negative in the
        multiplicative form.

    Raises:
        ValueError: for an unknown form, or shapes or weights other than these.
    """
    if form not in FORMS:
        raise ValueError(f"unknown form {form!r} of Rebound; expected one of {sorted(FORMS)}")
    if rewards.ndim != 3 or scores.shape != rewards.shape:
        raise ValueError(
            f"got rewards {tuple(rewards.shape)} and scores {tuple(scores.shape)}; expected (N, P, G)"
        )
    if alpha.shape != rewards.shape[:1] or not bool((alpha >= 0).all()):
        raise ValueError(
            f"got alpha {alpha.tolist()}; expected a number of at least 0 for each of {len(rewards)} runs"
        )
    weight, z = alpha[:, None, None], standardized(scores)
    if form == "additive":
        result = rewards - weight * z.clamp_min(0.0)
    else:
        result = rewards * (1.0 - weight * torch.sigmoid(z) * (z > 0))
    return torch.where(weight == 0, rewards, result)
