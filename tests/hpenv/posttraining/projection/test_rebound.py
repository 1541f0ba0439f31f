"""Rebound: the two penalties by hand, one-sided, within the group, and nothing at alpha 0."""

import math

import pytest
import torch

from hpenv.posttraining.projection.rebound import (
    FORMS,
    concept_direction,
    concept_scores,
    rebound,
    standardize,
)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_scores_are_standardized_within_their_group_with_a_floor_under_the_spread():
    scores = torch.tensor([[[1.0, 3.0], [10.0, 10.1]]])
    # (1, 3): mean 2, std 1. (10, 10.1): std 0.05, taken as 0.1.
    off = (
        3 * 2.0**-24 * 10.1 / 0.1
    )  # 10.1, the mean and the difference are rounded, then divided by 0.1
    torch.testing.assert_close(
        standardize(scores), torch.tensor([[[-1.0, 1.0], [-0.5, 0.5]]]), atol=off, rtol=0
    )


def test_both_forms_by_hand():
    rewards, scores = (
        torch.tensor([[[3.5, 0.5]], [[3.5, 3.5]]]),
        torch.tensor([[[3.0, 1.0]], [[1.0, 3.0]]]),
    )
    alpha = torch.tensor([2.0, 0.5])  # z is +1 and -1 in the first run, -1 and +1 in the second
    added = rebound(rewards, scores, alpha, "additive")
    torch.testing.assert_close(added, torch.tensor([[[1.5, 0.5]], [[3.5, 3.0]]]))
    sigmoid = 1 / (1 + math.exp(-1))
    multiplied = rebound(rewards, scores, alpha, "multiplicative")
    expected = torch.tensor([[[3.5 * (1 - 2 * sigmoid), 0.5]], [[3.5, 3.5 * (1 - 0.5 * sigmoid)]]])
    torch.testing.assert_close(multiplied, expected)


@pytest.mark.parametrize("form", FORMS)
def test_a_run_of_alpha_zero_keeps_its_rewards_bit_for_bit(form):
    rewards, scores = randn(3, 4, 6).abs(), randn(3, 4, 6, seed=1)
    rewards[1, 0, 0], scores[1, 2, 2] = -0.0, torch.nan
    result = rebound(rewards, scores, torch.tensor([1.0, 0.0, 2.0]), form)
    assert torch.equal(result[1].view(torch.int32), rewards[1].view(torch.int32))
    assert not torch.equal(result[0], rewards[0]) and not torch.equal(result[2], rewards[2])


@pytest.mark.parametrize("form", FORMS)
def test_only_scores_above_the_mean_of_the_group_are_penalized(form):
    rewards, scores = randn(2, 5, 8).abs() + 0.1, randn(2, 5, 8, seed=1)
    result = rebound(rewards, scores, torch.full((2,), 1.5), form)
    above = scores > scores.mean(2, keepdim=True)
    assert torch.equal(result[~above], rewards[~above]) and (result[above] < rewards[above]).all()


@pytest.mark.parametrize("form", FORMS)
def test_what_all_scores_of_a_group_share_and_their_scale_do_not_matter(form):
    rewards, scores = randn(2, 5, 8).abs(), randn(2, 5, 8, seed=1)
    shift = 3.0 * randn(2, 5, 1, seed=2)
    alpha = torch.tensor([0.5, 2.0])
    expected = rebound(rewards, scores, alpha, form)
    torch.testing.assert_close(
        rebound(rewards, 4.0 * scores + shift, alpha, form), expected, atol=1e-4, rtol=1e-4
    )


def test_the_concept_is_the_mean_difference_and_scores_the_hacks_higher():
    hack = torch.tensor([[[2.0, 1.0], [4.0, 1.0]]])
    clean = torch.tensor([[[1.0, 1.0], [1.0, 3.0]]])
    direction = concept_direction(hack, clean)
    torch.testing.assert_close(direction, torch.tensor([[2.0, -1.0]]))
    states = torch.stack([hack, clean], 1).transpose(1, 2)  # (1, pairs, hack and clean, 2)
    scores = concept_scores(states, direction)
    torch.testing.assert_close(scores, torch.tensor([[[3.0, 1.0], [7.0, -1.0]]]))


def test_what_cannot_be_penalized_is_refused():
    rewards = torch.zeros(2, 3, 4)
    with pytest.raises(
        ValueError, match=r"unknown form 'add' of Rebound; expected one of \['additive'"
    ):
        rebound(rewards, rewards, torch.ones(2), "add")
    with pytest.raises(ValueError, match=r"must have the same shape \(N, P, G\); got .* \(2, 3\)"):
        rebound(rewards, rewards[..., 0], torch.ones(2))
    with pytest.raises(
        ValueError, match=r"alpha must be a number >= 0 for each of 2 runs; got \[1.0, -1.0\]"
    ):
        rebound(rewards, rewards, torch.tensor([1.0, -1.0]))
    with pytest.raises(ValueError, match=r"the same shape \(N, pairs, C\); got"):
        concept_direction(rewards, rewards[:1])
    with pytest.raises(ValueError, match=r"shapes \(N, P, G, C\) and \(N, C\); got"):
        concept_scores(rewards, rewards[0])
