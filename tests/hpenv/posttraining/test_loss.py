"""The objective: advantages and the clipped loss by hand, and its gradient against REINFORCE."""

import math

import pytest
import torch

from hpenv.posttraining.loss import SCALES, advantages, k3, policy_loss

N, P, G, T = 2, 3, 4, 5


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def mask_of(seed=7):
    """Completions of 1 to T tokens."""
    lengths = torch.randint(1, T + 1, (N, P * G), generator=torch.Generator().manual_seed(seed))
    return torch.arange(T) < lengths[..., None]


def batch(seed=0):
    logp = -randn(N, P * G, T, seed=seed).abs() - 0.1
    return logp, advantages(randn(N, P, G, seed=seed + 1))[0], mask_of()


def test_advantages_by_hand():
    rewards = torch.tensor([[[3.5, 0.5, 0.5, 0.5], [0.5, 0.5, 0.5, 0.5]]])
    result, flat = advantages(rewards)
    torch.testing.assert_close(result, torch.tensor([[[2.25, -0.75, -0.75, -0.75], [0.0] * 4]]))
    assert flat.tolist() == [[False, True]]
    scaled, _ = advantages(rewards, "std")  # squares 5.0625 + 3 * 0.5625 = 6.75, over 3: std 1.5
    expected = torch.tensor([[[2.25, -0.75, -0.75, -0.75], [0.0] * 4]]) / 1.5001
    torch.testing.assert_close(scaled, expected)


@pytest.mark.parametrize("scale", SCALES)
def test_advantages_sum_to_zero_over_a_group_and_ignore_a_shift(scale):
    rewards = randn(N, P, G)
    result, flat = advantages(rewards, scale)
    assert not flat.any()
    torch.testing.assert_close(result.sum(2), torch.zeros(N, P), atol=1e-5, rtol=0)
    torch.testing.assert_close(advantages(rewards + 2.0, scale)[0], result, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("scale", SCALES)
def test_a_flat_group_has_advantages_of_exactly_zero(scale):
    rewards = torch.full((1, 2, 3), 0.1)
    rewards[0, 0, 0] += 5e-5
    rewards[0, 1, 0] += 5e-4
    result, flat = advantages(rewards, scale)
    assert flat.tolist() == [[True, False]]
    assert torch.equal(result[0, 0], torch.zeros(3)) and result[0, 1].any()


def test_k3_by_hand_is_not_negative_and_zero_at_equality():
    assert k3(torch.tensor(-1.0), torch.tensor(-1.5)).item() == pytest.approx(
        math.exp(-0.5) + 0.5 - 1
    )
    logp, reference = randn(10_000), randn(10_000, seed=1)
    assert (k3(logp, reference) >= 0).all() and torch.equal(k3(logp, logp), torch.zeros(10_000))
    near = k3(logp, logp + 1e-4 * reference)
    assert (near >= 0).all()
    step = (logp + 1e-4 * reference) - logp  # as float32 has it
    largest = (
        step.abs().max().item()
    )  # expm1 and the difference are rounded; the series goes on with d / 3
    torch.testing.assert_close(near, step.square() / 2, atol=4 * 2.0**-24 * largest, rtol=largest)


def test_k3_averages_to_the_divergence():
    p, q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.4, 0.4, 0.2])
    expected = (p * (p / q).log()).sum()
    torch.testing.assert_close((p * k3(p.log(), q.log())).sum(), expected)


def test_the_loss_by_hand():
    # One run, one prompt, two completions of 2 and 1 tokens, at most 4: divided by 1 * 2 * 4 = 8.
    ratios = torch.tensor([[[1.5, 0.5], [0.5, 9.0]]])
    mask = torch.tensor([[[True, True], [True, False]]])
    gain = torch.tensor([[[1.0, -2.0]]])
    zeros = torch.zeros(1, 2, 2)
    loss, metrics = policy_loss(
        ratios.log(), zeros, ratios.log(), mask, gain, torch.zeros(1), max_tokens=4
    )
    # A = 1: min(1.5, 1.2) + min(0.5, 0.8); A = -2: min(-1.0, -1.6).
    off = (
        6 * 2.0**-24 * (1.2 + 0.5 + 1.6) / 8
    )  # each term is a logarithm, an exponential, a product and two sums
    assert loss.item() == pytest.approx(-(1.2 + 0.5 - 1.6) / 8, abs=off)
    assert metrics.clipped_fraction.item() == pytest.approx(2 / 3)
    assert metrics.mean_ratio.item() == pytest.approx(2.5 / 3)
    assert metrics.kl.item() == 0.0
    # The reference at half of each probability: k3 = 0.5 + ln 2 - 1 at each of three tokens.
    distance = 0.5 + math.log(2) - 1
    reference = ratios.log() - math.log(2)
    with_kl, metrics = policy_loss(
        ratios.log(), zeros, reference, mask, gain, torch.full((1,), 0.3), max_tokens=4
    )
    assert with_kl.item() == pytest.approx(loss.item() + 0.3 * 3 * distance / 8, abs=off)
    assert metrics.kl.item() == pytest.approx(distance)
    assert metrics.policy_loss.item() == pytest.approx(loss.item(), abs=off)


def test_at_ratio_one_the_gradient_is_that_of_reinforce():
    logp, gain, mask = batch()
    logp.requires_grad_()
    loss, metrics = policy_loss(
        logp, logp.detach(), logp.detach(), mask, gain, torch.ones(N), max_tokens=T
    )
    (ours,) = torch.autograd.grad(loss.sum(), logp)
    reinforce = -(gain.flatten(1)[..., None] * logp * mask).sum() / (P * G * T)
    (expected,) = torch.autograd.grad(reinforce, logp)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(metrics.mean_ratio, torch.ones(N))
    assert metrics.clipped_fraction.tolist() == [0.0, 0.0]


def test_tokens_past_the_clip_have_no_gradient_and_come_back_when_they_went_the_wrong_way():
    old = torch.zeros(1, 2, 2)
    logp = torch.tensor([[[0.5, -0.5], [0.5, -0.5]]], requires_grad=True)
    mask = torch.ones(1, 2, 2, dtype=torch.bool)
    gain = torch.tensor([[[1.0, -1.0]]])
    loss, metrics = policy_loss(logp, old, logp.detach(), mask, gain, torch.zeros(1), max_tokens=2)
    (gradient,) = torch.autograd.grad(loss.sum(), logp)
    assert (gradient != 0).tolist() == [[[False, True], [True, False]]]
    assert metrics.clipped_fraction.item() == 0.5


def test_the_divergence_pulls_towards_the_reference():
    logp, gain, mask = batch()
    reference = logp + randn(N, P * G, T, seed=5)
    logp.requires_grad_()
    loss, _ = policy_loss(
        logp, logp.detach(), reference, mask, 0 * gain, torch.ones(N), max_tokens=T
    )
    (gradient,) = torch.autograd.grad(loss.sum(), logp)
    assert torch.equal(torch.sign(gradient)[mask], torch.sign(logp - reference).detach()[mask])


def test_what_is_masked_changes_nothing_whatever_it_holds():
    logp, gain, mask = batch()
    reference, old = logp + 0.1, logp - 0.1
    garbage = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e30, 0.0])  # by position
    results = []
    for broken in (False, True):
        given = [
            torch.where(mask | (not broken), t, garbage).requires_grad_()
            for t in (logp, old, reference)
        ]
        loss, metrics = policy_loss(*given, mask, gain, torch.full((N,), 0.1), max_tokens=T)
        results.append((loss, *metrics, torch.autograd.grad(loss.sum(), given[0])[0]))
    assert (~mask).any(1).any()
    for clean, dirty in zip(*results, strict=True):
        assert torch.equal(clean, dirty) and torch.isfinite(dirty).all()


def test_runs_share_nothing():
    logp, gain, mask = batch()
    weights = torch.tensor([0.0, 0.5])
    together, metrics = policy_loss(logp, logp - 0.1, logp + 0.1, mask, gain, weights, max_tokens=T)
    for n in range(N):
        one = slice(n, n + 1)
        parts = (logp[one], logp[one] - 0.1, logp[one] + 0.1, mask[one], gain[one], weights[one])
        alone, own = policy_loss(*parts, max_tokens=T)
        torch.testing.assert_close(together[one], alone)
        torch.testing.assert_close(torch.stack(metrics)[:, one], torch.stack(own))


def test_the_loss_is_divided_by_a_constant_and_not_by_lengths():
    logp, gain, mask = batch()
    loss, _ = policy_loss(logp, logp, logp, mask, gain, torch.zeros(N), max_tokens=T)
    longer, _ = policy_loss(logp, logp, logp, mask, gain, torch.zeros(N), max_tokens=2 * T)
    torch.testing.assert_close(longer, loss / 2)
    torch.testing.assert_close(loss, -(gain.flatten(1) * mask.sum(2)).sum(1) / (P * G * T))


def test_skipped_groups_leave_the_loss_and_its_gradient_and_not_the_metrics():
    logp, gain, mask = batch()
    logp.requires_grad_()
    skipped = torch.zeros(N, P, dtype=torch.bool)
    skipped[0, 1] = True
    parts = (logp, logp.detach() - 0.1, logp.detach() + 0.1)
    loss, metrics = policy_loss(*parts, mask, gain, torch.ones(N), max_tokens=T, skipped=skipped)
    (gradient,) = torch.autograd.grad(loss.sum(), logp)
    full, expected = policy_loss(*parts, mask, gain, torch.ones(N), max_tokens=T)
    (all_of_it,) = torch.autograd.grad(full.sum(), logp)
    assert not gradient[0, G : 2 * G].any()
    left = torch.ones(N, P * G, dtype=torch.bool)
    left[0, G : 2 * G] = False
    assert torch.equal(gradient[left], all_of_it[left]) and all_of_it[~left].any()
    assert (
        torch.equal(metrics.kl, expected.kl)
        and torch.equal(loss[1], full[1])
        and loss[0] != full[0]
    )


def test_a_run_without_tokens_has_a_loss_of_zero():
    logp, gain, mask = batch()
    mask[0] = False
    loss, metrics = policy_loss(logp, logp, logp, mask, gain, torch.ones(N), max_tokens=T)
    assert loss[0] == 0 and all(torch.isfinite(value).all() for value in metrics)


def test_what_does_not_belong_together_is_refused():
    logp, gain, mask = batch()
    weights = torch.zeros(N)
    with pytest.raises(
        ValueError, match=r"unknown scale 'mean' of advantages; expected one of \['none', 'std'\]"
    ):
        advantages(torch.zeros(1, 2, 3), "mean")
    with pytest.raises(
        ValueError, match=r"shape \(N, P, G\) with G of at least 2; got .* \(1, 2, 1\)"
    ):
        advantages(torch.zeros(1, 2, 1))
    with pytest.raises(ValueError, match=r"mask must have shape \(N, P G, T\)"):
        policy_loss(logp[:, 1:], logp, logp, mask, gain, weights, max_tokens=T)
    with pytest.raises(ValueError, match=r"kl_weight \(N,\); got .* and \(1,\)"):
        policy_loss(logp, logp, logp, mask, gain, weights[:1], max_tokens=T)
    with pytest.raises(
        ValueError, match=r"max_tokens must be at least .* completions, 5 tokens; got 4"
    ):
        policy_loss(logp, logp, logp, mask, gain, weights, max_tokens=4)
