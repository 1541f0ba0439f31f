"""Densities and objectives of policy gradients as pure functions of tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

LOG_TWO_PI = math.log(2.0 * math.pi)


def gaussian_log_density(
    raw: torch.Tensor, mean: torch.Tensor, log_std: torch.Tensor
) -> torch.Tensor:
    """Returns the log density of independent Gaussians at `raw`, element by element.

    It is -((raw - mean) / std)^2 / 2 - ln std - ln(2 pi) / 2.

    Args:
        raw: points, (..., A).
        mean: means, (..., A).
        log_std: log of the standard deviations, (..., A).

    Returns:
        (..., A) [nats].
    """
    assert raw.shape == mean.shape == log_std.shape, (
        f"{raw.shape}, {mean.shape}, {log_std.shape} differ"
    )
    z = (raw - mean) * torch.exp(-log_std)
    return -0.5 * (z**2 + LOG_TWO_PI) - log_std


def gaussian_log_prob(raw: torch.Tensor, mean: torch.Tensor, log_std: torch.Tensor) -> torch.Tensor:
    """Returns the log density of a diagonal Gaussian, (...,) [nats].

    It is `gaussian_log_density` summed over the last axis. JEL's density is over raw actions. The
    Jacobian of tanh is left out on purpose: it is the same under the old and the new policy and
    cancels in their ratio.
    """
    return gaussian_log_density(raw, mean, log_std).sum(-1)


def gaussian_entropy(log_std: torch.Tensor) -> torch.Tensor:
    """Returns the differential entropy of a diagonal Gaussian.

    It is (1 + ln 2 pi) / 2 + log_std, summed over the last axis.

    Args:
        log_std: log of the standard deviations, (..., A).

    Returns:
        (...,) [nats]. It is 0.919 per dimension at JEL's initial log_std of -0.5.
    """
    return (0.5 * (1.0 + LOG_TWO_PI) + log_std).sum(-1)


def clipped_surrogate(
    log_prob: torch.Tensor, old_log_prob: torch.Tensor, advantages: torch.Tensor, clip_range: float
) -> torch.Tensor:
    """Returns PPO's clipped objective per sample, which is maximized.

    It is min(rho A, clip(rho, 1 - eps, 1 + eps) A) with rho = exp(log_prob - old_log_prob). Where
    rho is 1, its gradient is that of REINFORCE, A grad log pi.

    Args:
        log_prob: log density under the policy in training, (B,).
        old_log_prob: log density under the policy that took the decisions, (B,).
        advantages: A, (B,).
        clip_range: eps, 0.2 in JEL.

    Returns:
        (B,).

    References:
        Schulman et al. 2017, equation 7. JEL, equation 4.
    """
    assert log_prob.ndim == 1, f"expected (B,), got {log_prob.shape}"
    assert log_prob.shape == old_log_prob.shape == advantages.shape, (
        f"{log_prob.shape}, {old_log_prob.shape}, {advantages.shape} differ"
    )
    ratio = torch.exp(log_prob - old_log_prob)
    return torch.minimum(
        ratio * advantages, ratio.clamp(1.0 - clip_range, 1.0 + clip_range) * advantages
    )


def approximate_kl(log_prob: torch.Tensor, old_log_prob: torch.Tensor) -> torch.Tensor:
    """Estimates KL(old || new) from samples of old, () [nats].

    The estimate is the mean of (rho - 1) - log rho, which is never negative.

    References:
        John Schulman, "Approximating KL divergence", http://joschu.net/blog/kl-approx.html (the
        estimator k3).
    """
    assert log_prob.shape == old_log_prob.shape, f"{log_prob.shape}, {old_log_prob.shape} differ"
    log_ratio = log_prob - old_log_prob
    return (torch.expm1(log_ratio) - log_ratio).mean()


def scale_gradient(values: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Returns the values unchanged, with their gradient multiplied by a factor (broadcast)."""
    return values.detach() + factor * (values - values.detach())


@torch.no_grad()
def bound_norms(gradients: Sequence[torch.Tensor], bound: float | None) -> torch.Tensor:
    """Scales gradients of N networks in place, each to an L2 norm of at most `bound`.

    Args:
        gradients: of stacked weights, (N, ., .) each.
        bound: largest norm over all tensors of a network. None: unbounded.

    Returns:
        The norms before, (N,).
    """
    per_tensor = [torch.linalg.vector_norm(gradient, dim=(1, 2)) for gradient in gradients]
    norms = torch.stack(per_tensor).norm(dim=0)
    if bound is not None:
        factors = (bound / (norms + 1e-6)).clamp(max=1.0)[:, None, None]
        for gradient in gradients:
            gradient.mul_(factors)
    return norms
