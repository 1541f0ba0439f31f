"""The loss of GRPO: advantages within the group of a prompt, the clipped ratio, and the distance to
the reference.

    A = R - mean(R)                              Dr.GRPO; with scale "std" also divided by std(R) +
    1e-4 L = sum over tokens of -min(rho A, clip(rho, 1 - e, 1 + e) A) + beta k3,   divided by P G
    max_tokens

with rho = pi / pi_old of a token, k3 = exp(d) - d - 1 and d = log pi_ref - log pi. Dr.GRPO divides
by a constant where GRPO divides by each completion's length, which favors short right answers and
long wrong ones, and leaves out the standard deviation, which favors prompts that are nearly always
or nearly never solved.

References:
    Shao et al., 2024, arXiv 2402.03300 (GRPO, and k3 in its loss). Liu et al., 2025, arXiv
    2503.20783 (Dr.GRPO). Schulman, 2020, "Approximating KL divergence" (k3: not negative, and
    unbiased for samples of pi).

Departures: a group whose rewards are all but equal has advantages of exactly 0; `skipped` also
takes its distance to the reference out of the loss, as lsdefine's simple_GRPO does, without
changing what the loss is divided by.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

SCALES = ("none", "std")

#: Added to the standard deviation that advantages are divided by (simple_GRPO).
STD_EPSILON = 1e-4


class PolicyMetrics(NamedTuple):
    """What a loss was made of; each (N,), over the tokens of a run, detached.

    Attributes:
        policy_loss: the loss without the distance to the reference.
        kl: mean of k3 [nats per token], also over groups that were skipped.
        clipped_fraction: part of the tokens whose ratio left the clip on the side where the
            gradient vanishes.
        mean_ratio: mean of rho; exactly 1 at the policy that sampled, up to how its
            log-probabilities were rounded.
    """

    policy_loss: Tensor
    kl: Tensor
    clipped_fraction: Tensor
    mean_ratio: Tensor


def advantages(
    rewards: Tensor, scale: str = "none", min_spread: float = 1e-4
) -> tuple[Tensor, Tensor]:
    """Advantages within each group, and which groups teach nothing.

    Args:
        rewards: (N, P, G) [reward], with at least two rollouts in a group.
        scale: `none` (Dr.GRPO), or `std`, divided by the sample standard deviation of the group
            plus 1e-4.
        min_spread: a group whose largest and smallest reward differ by less is flat [reward].

    Returns:
        Advantages, (N, P, G), which sum to 0 over a group and are exactly 0 in a flat one; flat
        groups, (N, P) bool.

    Raises:
        ValueError: for an unknown scale, or rewards of another shape.
    """
    if scale not in SCALES:
        raise ValueError(f"unknown scale {scale!r} of advantages; expected one of {sorted(SCALES)}")
    if rewards.ndim != 3 or rewards.shape[2] < 2:
        raise ValueError(
            f"got rewards of shape {tuple(rewards.shape)}; expected (N, P, G) with G of at least 2"
        )
    flat = rewards.amax(2) - rewards.amin(2) < min_spread  # (N, P)
    result = rewards - rewards.mean(2, keepdim=True)
    if scale == "std":
        result = result / (rewards.std(2, keepdim=True) + STD_EPSILON)
    return torch.where(flat[..., None], 0.0, result), flat


def k3(logp: Tensor, reference_logp: Tensor) -> Tensor:
    """Schulman's estimate of KL(pi | pi_ref) at tokens sampled from pi [nats], of their two log-probabilities."""
    difference = reference_logp - logp
    return (
        torch.expm1(difference) - difference
    )  # expm1: exp(d) - 1 loses all digits where the policies agree


def policy_loss(
    logp: Tensor,
    old_logp: Tensor,
    reference_logp: Tensor,
    mask: Tensor,
    advantages: Tensor,
    kl_weight: Tensor,
    clip: float = 0.2,
    *,
    max_tokens: int,
    skipped: Tensor | None = None,
) -> tuple[Tensor, PolicyMetrics]:
    """Each run's loss; runs share nothing, so the sum over runs can be differentiated at once.

    Args:
        logp: log-probabilities of the sampled tokens, (N, P G, T) [nats], with a gradient.
        old_logp: under the policy that sampled, (N, P G, T), at the same temperature as `logp`.
        reference_logp: under the reference, (N, P G, T).
        mask: the tokens that count, (N, P G, T) bool; what the others hold is never used.
        advantages: (N, P, G).
        kl_weight: beta, (N,).
        clip: e, how far a ratio pays.
        max_tokens: the most tokens a completion may have: the constant that stands for its length.
        skipped: groups left out of the loss altogether, (N, P) bool; None leaves out none.

    Returns:
        The loss, (N,), and what it was made of.

    Raises:
        ValueError: if shapes do not belong together.
    """
    N, P, G = advantages.shape
    shapes = [tuple(t.shape) for t in (logp, old_logp, reference_logp, mask)]
    if (
        len(set(shapes)) > 1
        or logp.ndim != 3
        or logp.shape[:2] != (N, P * G)
        or kl_weight.shape != (N,)
    ):
        raise ValueError(
            f"got log-probabilities and mask {shapes}, advantages {(N, P, G)} and kl_weight {tuple(kl_weight.shape)}; "
            f"expected (N, P G, T) four times, (N, P, G) and (N,)"
        )
    if max_tokens < 1 or logp.shape[2] > max_tokens:
        raise ValueError(
            f"got max_tokens={max_tokens} for completions of {logp.shape[2]} tokens; expected no fewer"
        )
    # Masked before exp, not after: a padding token's ratio may overflow, and 0 times the gradient
    # of inf is nan.
    logp = torch.where(mask, logp, 0.0)
    ratio = torch.exp(logp - torch.where(mask, old_logp, 0.0))
    distance = k3(logp, torch.where(mask, reference_logp, 0.0))
    gain = advantages.flatten(1)[..., None]  # (N, P G, 1)
    gained = torch.minimum(ratio * gain, ratio.clamp(1.0 - clip, 1.0 + clip) * gain)
    counted = mask if skipped is None else mask & ~skipped.repeat_interleave(G, dim=1)[..., None]
    divisor = P * G * max_tokens
    policy = -torch.where(counted, gained, 0.0).sum((1, 2)) / divisor  # (N,)
    penalty = torch.where(counted, distance, 0.0).sum((1, 2)) / divisor
    with torch.no_grad():
        num_tokens = mask.sum((1, 2)).clamp_min(1)
        beyond = mask & (((ratio > 1.0 + clip) & (gain > 0)) | ((ratio < 1.0 - clip) & (gain < 0)))
        metrics = PolicyMetrics(
            policy_loss=policy.detach(),
            kl=distance.sum((1, 2)) / num_tokens,
            clipped_fraction=beyond.sum((1, 2)) / num_tokens,
            mean_ratio=torch.where(mask, ratio, 0.0).sum((1, 2)) / num_tokens,
        )
    return policy + kl_weight * penalty, metrics
