"""Loss of GRPO: advantages within each prompt's group, clipped ratio, and KL to the reference.

    A = R - mean(R)          (Dr.GRPO, with scale "std" also divided by std(R) + 1e-4)
    L = sum over tokens of [-min(rho A, clip(rho, 1 - e, 1 + e) A) + beta k3] / (P G max_tokens)

rho = pi / pi_old of a token, k3 = exp(d) - d - 1, and d = log pi_ref - log pi. GRPO divides by each
completion's length, which favors short right answers and long wrong ones. Dr.GRPO divides by a
constant. It also omits the standard deviation, which favors prompts that are nearly always or
nearly never solved.

References:
    Shao et al., 2024, arXiv 2402.03300 (GRPO, and k3 in its loss). Liu et al., 2025, arXiv
    2503.20783 (Dr.GRPO). Schulman, 2020, "Approximating KL divergence" (k3: not negative, and
    unbiased for samples of pi).

Departures: Groups whose rewards are nearly equal have advantages of exactly 0. `skipped` also
removes their KL term from the loss, as lsdefine's simple_GRPO does. The divisor stays the same.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

SCALES = ("none", "std")

#: Added to the standard deviation that divides the advantages (simple_GRPO).
STD_EPSILON = 1e-4


class PolicyMetrics(NamedTuple):
    """Components of the loss, each (N,), over the tokens of a run, detached.

    Attributes:
        policy_loss: the loss without the KL term.
        kl: mean of k3 [nats per token]. Skipped groups are included.
        clipped_fraction: fraction of the tokens whose ratio is clipped where the gradient vanishes.
        mean_ratio: mean of rho. It is 1 at the policy that sampled, up to the rounding of its
            log-probabilities.
    """

    policy_loss: Tensor
    kl: Tensor
    clipped_fraction: Tensor
    mean_ratio: Tensor


def advantages(
    rewards: Tensor, scale: str = "none", min_spread: float = 1e-4
) -> tuple[Tensor, Tensor]:
    """Computes the advantages within each group, and finds the flat groups.

    Args:
        rewards: (N, P, G) [reward], with at least two rollouts in a group.
        scale: `none` (Dr.GRPO), or `std`: divide by the sample standard deviation of the group
            plus 1e-4.
        min_spread: a group is flat if its largest and smallest reward differ by less [reward].

    Returns:
        Advantages, (N, P, G), which sum to 0 over a group and are exactly 0 in a flat group.
        Flat groups, (N, P) bool.

    Raises:
        ValueError: for an unknown scale, or rewards of a wrong shape.
    """
    if scale not in SCALES:
        raise ValueError(f"unknown scale {scale!r} of advantages; expected one of {sorted(SCALES)}")
    if rewards.ndim != 3 or rewards.shape[2] < 2:
        raise ValueError(
            "rewards must have shape (N, P, G) with G of at least 2; got a tensor of shape "
            f"{tuple(rewards.shape)}"
        )

    flat = rewards.amax(2) - rewards.amin(2) < min_spread  # (N, P)
    result = rewards - rewards.mean(2, keepdim=True)
    if scale == "std":
        result = result / (rewards.std(2, keepdim=True) + STD_EPSILON)
    return torch.where(flat[..., None], 0.0, result), flat


def k3(logp: Tensor, reference_logp: Tensor) -> Tensor:
    """Returns Schulman's estimate of KL(pi | pi_ref) at each token sampled from pi [nats]."""
    difference = reference_logp - logp
    # expm1, because exp(d) - 1 loses all digits where the policies agree.
    return torch.expm1(difference) - difference


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
    """Computes each run's loss.

    Runs share nothing, so the sum over runs can be differentiated at once.

    Args:
        logp: log-probabilities of the sampled tokens, (N, P G, T) [nats], with a gradient.
        old_logp: under the policy that sampled, (N, P G, T), at the same temperature as `logp`.
        reference_logp: under the reference, (N, P G, T).
        mask: tokens that count, (N, P G, T) bool. Values at other tokens are never used.
        advantages: (N, P, G).
        kl_weight: beta, (N,).
        clip: epsilon of the clipped objective.
        max_tokens: longest possible completion [tokens]. The loss is divided by it.
        skipped: groups left out of the loss, (N, P) bool. None leaves out none.

    Returns:
        The loss, (N,), and its components.

    Raises:
        ValueError: if the shapes do not fit together.
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
            "log-probabilities and mask must have shape (N, P G, T), advantages (N, P, G) and "
            f"kl_weight (N,); got {shapes}, {(N, P, G)} and {tuple(kl_weight.shape)}"
        )
    if max_tokens < 1 or logp.shape[2] > max_tokens:
        raise ValueError(
            "max_tokens must be at least the length of the completions, "
            f"{logp.shape[2]} tokens; got {max_tokens}"
        )

    # Masked before exp, not after: a padding token's ratio may overflow, and 0 times the gradient
    # of inf is nan.
    logp = torch.where(mask, logp, 0.0)
    ratio = torch.exp(logp - torch.where(mask, old_logp, 0.0))
    distance = k3(logp, torch.where(mask, reference_logp, 0.0))
    gain = advantages.flatten(1)[..., None]  # (N, P G, 1)
    clipped_gain = torch.minimum(ratio * gain, ratio.clamp(1.0 - clip, 1.0 + clip) * gain)

    counted = mask if skipped is None else mask & ~skipped.repeat_interleave(G, dim=1)[..., None]
    divisor = P * G * max_tokens
    policy = -torch.where(counted, clipped_gain, 0.0).sum((1, 2)) / divisor  # (N,)
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
