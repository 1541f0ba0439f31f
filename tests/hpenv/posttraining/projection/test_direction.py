"""The direction: planted and found, oriented, floored globally, tested on other pairs."""

import math

import pytest
import torch

from hpenv.posttraining.loss import advantages, policy_loss
from hpenv.posttraining.projection.direction import (
    METHODS,
    Direction,
    extract,
    random_direction,
    validate,
)
from hpenv.posttraining.projection.rules import coordinates
from hpenv.posttraining.students.adapter import adapted_weight, decompose
from tests.hpenv.posttraining.projection.planted import RANKS, alignment, generator, planted
from train_agents.experiments.contrasts import clean_against_clean


def overlap(old, new):
    """Mean absolute cosine of the axes that two directions with the same axes kept have, (N,)."""
    products = [(axes * new.axes[name]).sum(2).abs() for name, axes in old.axes.items()]
    kept = [axes.any(2) for axes in old.axes.values()]
    return torch.cat(products, 1).sum(1) / torch.cat(kept, 1).sum(1)


def swap(pairs, order):
    return {name: gradients[:, order] for name, gradients in pairs.items()}


def test_a_mean_difference_by_hand():
    hack = {
        "m": torch.tensor([[[4.0, 1.0], [3.0, 4.0]]])
    }  # differences (3, 0) and (3, 8): mean (3, 4)
    clean = {"m": torch.tensor([[[1.0, 1.0], [0.0, -4.0]]])}
    axes, strengths = extract(hack, clean, "mean_difference", k=1)
    torch.testing.assert_close(axes["m"], torch.tensor([[[0.6, 0.8]]]))
    torch.testing.assert_close(strengths["m"], torch.tensor([[5.0]]))


def test_singular_axes_by_hand_are_turned_to_where_most_pairs_lie():
    # Along the first axis one long difference against two short ones: the mean says +, the vote
    # says -.
    differences = torch.tensor(
        [[[5.0, 0.0, 0.0], [-1.0, 0.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 2.0, 0.0]]]
    )
    axes, strengths = extract(
        {"m": differences}, {"m": torch.zeros_like(differences)}, "svd", k=2, noise_floor=0.0
    )
    torch.testing.assert_close(axes["m"], torch.tensor([[[-1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]]))
    torch.testing.assert_close(strengths["m"], torch.tensor([[math.sqrt(27.0), 2.0]]))


def test_a_tied_vote_is_decided_by_the_mean():
    differences = torch.tensor([[[-5.0, 0.0], [1.0, 0.0]]])
    axes, _ = extract({"m": differences}, {"m": torch.zeros_like(differences)}, "svd", k=1)
    torch.testing.assert_close(axes["m"], torch.tensor([[[-1.0, 0.0]]]))


@pytest.mark.parametrize(("method", "k"), [("mean_difference", 1), ("svd", 1), ("svd", 4)])
def test_a_planted_direction_is_found_in_noise_and_oriented_in_every_run(method, k):
    hack, clean, axes = planted()
    direction = extract(hack, clean, method, k, noise_floor=0.0)
    assert (alignment(direction, axes) > 0.95).all()
    turned = extract(clean, hack, method, k, noise_floor=0.0)
    assert (alignment(turned, axes) < -0.95).all()
    for name, r in RANKS.items():
        assert direction.axes[name].shape == (2, k, r) and direction.strengths[name].shape == (2, k)
        gram = direction.axes[name] @ direction.axes[name].transpose(1, 2)
        torch.testing.assert_close(gram, torch.eye(k).expand(2, k, k), atol=1e-5, rtol=0)


def test_a_population_is_its_runs_one_by_one():
    hack, clean, _ = planted()
    together = extract(hack, clean, "svd", 3)
    for n in range(2):
        alone = extract(
            *({name: g[n : n + 1] for name, g in side.items()} for side in (hack, clean)), "svd", 3
        )
        for name in RANKS:
            torch.testing.assert_close(together.axes[name][n], alone.axes[name][0])


def test_the_noise_floor_pools_all_modules():
    strong, weak = (
        torch.diag(torch.tensor([9.0, 8.0, 7.0, 6.0])),
        torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0])),
    )
    hack = {"strong": strong[None], "weak": weak[None]}
    clean = {name: torch.zeros_like(g) for name, g in hack.items()}

    def num_kept(noise_floor, k=4):
        direction = extract(hack, clean, "svd", k, noise_floor)
        return [int(direction.axes[name].any(2).sum()) for name in hack]

    assert num_kept(0.0) == [4, 4]
    assert num_kept(0.25) == [4, 2]  # a floor in each module would leave 3 and 3
    assert num_kept(0.5) == [4, 0]
    assert num_kept(0.25, k=2) == [2, 1]
    direction = extract(hack, clean, "svd", 4, 0.5)
    torch.testing.assert_close(direction.strengths["weak"], torch.tensor([[4.0, 3.0, 2.0, 1.0]]))


def test_the_noise_floor_is_each_runs_own():
    hack = {
        "a": torch.stack([torch.eye(2), 9 * torch.eye(2)]),
        "b": torch.stack([9 * torch.eye(2), torch.eye(2)]),
    }
    direction = extract(
        hack, {name: torch.zeros_like(g) for name, g in hack.items()}, "svd", 2, 0.5
    )
    assert direction.axes["a"].any(2).tolist() == [[False, False], [True, True]]
    assert direction.axes["b"].any(2).tolist() == [[True, True], [False, False]]


@pytest.mark.parametrize("method", METHODS)
def test_pairs_without_a_difference_have_no_direction(method):
    same = {"m": torch.randn(1, 4, 6, generator=generator())}
    assert not extract(same, same, method, k=1).axes["m"].any()


def test_an_axis_that_is_only_rounding_is_dropped_without_any_floor():
    line = torch.tensor([1.0, 2.0, 2.0]) / 3
    differences = torch.tensor([1.0, 2.0, 3.0])[None, :, None] * line
    direction = extract(
        {"m": differences}, {"m": torch.zeros_like(differences)}, "svd", k=2, noise_floor=0.0
    )
    assert direction.axes["m"].any(2).tolist() == [[True, False]]


def test_validation_by_hand():
    direction = Direction(
        {
            "a": torch.tensor([[[1.0, 0.0]]]),
            "b": torch.tensor([[[0.0, 1.0]]]),
            "c": torch.zeros(1, 1, 2),
        },
        {"a": torch.ones(1, 1), "b": torch.ones(1, 1), "c": torch.ones(1, 1)},
    )
    hack = {"a": torch.tensor([[[3.0, 5.0], [3.0, 3.0]]]), "b": torch.tensor([[[0.0, -2.0]] * 2])}
    hack["c"] = torch.ones(1, 2, 2)
    result = validate(direction, hack, {name: torch.zeros_like(g) for name, g in hack.items()})
    torch.testing.assert_close(result.cosines, torch.tensor([[0.6, -1.0, 0.0]]))
    assert result.kept.tolist() == [[True, True, False]]
    assert (
        result.positive_fraction.item() == 0.5 and not result.passed.item()
    )  # a half is not more than half
    torch.testing.assert_close(result.mean, torch.tensor([-0.2]))
    torch.testing.assert_close(result.median, torch.tensor([-0.2]))


@pytest.mark.parametrize(("method", "k"), [("mean_difference", 1), ("svd", 3)])
def test_held_out_pairs_pass_a_real_direction_and_fail_a_turned_one(method, k):
    hack, clean, _ = planted()
    train = [swap(side, slice(0, 14)) for side in (hack, clean)]
    held = [swap(side, slice(14, 20)) for side in (hack, clean)]
    result = validate(extract(*train, method, k, noise_floor=0.0), *held)
    assert result.passed.all() and (result.mean > 0.8).all() and (result.median > 0.8).all()
    turned = validate(extract(*reversed(train), method, k, noise_floor=0.0), *held)
    assert not turned.passed.any() and (turned.mean < -0.8).all()


def test_a_random_direction_is_orthonormal_reproducible_and_as_many_axes():
    hack, clean, axes = planted(noise=0.5)
    like = extract(hack, clean, "svd", 4, noise_floor=0.4)
    first, again = random_direction(like, generator(5)), random_direction(like, generator(5))
    other = random_direction(like, generator(6))
    for name in RANKS:
        assert torch.equal(first.axes[name], again.axes[name]) and not torch.equal(
            first.axes[name], other.axes[name]
        )
        kept = like.axes[name].any(2)
        assert torch.equal(first.axes[name].any(2), kept)
        gram = first.axes[name] @ first.axes[name].transpose(1, 2)
        torch.testing.assert_close(gram, torch.diag_embed(kept.float()), atol=1e-5, rtol=0)
    assert (alignment(first, axes).abs() < 0.7).all() and (overlap(like, first) < 0.35).all()
    single = Direction(*({n: t[:1] for n, t in part.items()} for part in like))
    for name, alone in random_direction(single, generator(5)).axes.items():
        assert torch.equal(alone[0], first.axes[name][0])


def test_random_axes_are_uniform():
    like = Direction({"m": torch.ones(4000, 1, 3)}, {"m": torch.ones(4000, 1)})
    axes = random_direction(like, generator()).axes["m"][:, 0]
    assert (
        axes.mean(0).abs() < 4 / math.sqrt(3 * 4000)
    ).all()  # four standard errors of a coordinate's mean
    torch.testing.assert_close(axes.T @ axes / 4000, torch.eye(3) / 3, atol=0.03, rtol=0)


def test_a_rewarded_hack_steps_towards_hacks_and_a_punished_one_away():
    """A softmax over four words, where word 0 is the hack.

    <v, g> > 0 where a descent step makes the hack likelier.
    """
    weight = torch.randn(4, 6, generator=generator(1))
    decomposition, x = decompose(weight), torch.randn(6, generator=generator(2))

    def log_p(knob, inputs=x):
        return torch.log_softmax(adapted_weight(weight, decomposition, knob)[0] @ inputs, -1)

    def nll_gradient(word, inputs):
        knob = torch.zeros(1, 4, requires_grad=True)
        return torch.autograd.grad(-log_p(knob, inputs)[word], knob)[0]

    prompts = x + 0.3 * torch.randn(8, 6, generator=generator(3))
    sides = ({"m": torch.stack([nll_gradient(word, p) for p in prompts], 1)} for word in (0, 1))
    direction = extract(*sides, "mean_difference", 1, noise_floor=0.0)

    def step(rewards):
        """Returns c and how much likelier a small descent step makes hacks.

        The step is taken on a group of one hack and one clean rollout.
        """
        knob = torch.zeros(1, 4, requires_grad=True)
        logp = log_p(knob)[torch.tensor([0, 1])].view(1, 2, 1)
        gain, _ = advantages(torch.tensor([[rewards]]))
        mask = torch.ones(1, 2, 1, dtype=torch.bool)
        loss, _ = policy_loss(
            logp, logp.detach(), logp.detach(), mask, gain, torch.zeros(1), max_tokens=1
        )
        g = torch.autograd.grad(loss.sum(), knob)[0]
        change = log_p(-1e-2 * g)[0] - log_p(torch.zeros(1, 4))[0]
        return coordinates({"m": g}, direction)["m"].item(), change.item()

    assert all(value > 0 for value in step([3.5, 0.5]))
    assert all(value < 0 for value in step([0.5, 3.5]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "pca"}, r"unknown method 'pca'; expected one of \['mean_difference', 'svd'\]"),
        ({"k": 0}, "k must be from 1 to 20 .* got 0"),
        ({"k": 1.5}, "k must be from 1 to 20 .* got 1.5"),
        ({"k": "2"}, "k must be from 1 to 20 .* got '2'"),
        ({"noise_floor": None}, r"noise_floor must be a number in \[0, 1\); got None"),
        ({"k": 21}, "k must be from 1 to 20 with method='svd', 20 pairs and r=24; got 21"),
        ({"method": "mean_difference", "k": 2}, "k must be from 1 to 1"),
        ({"noise_floor": 1.0}, r"noise_floor must be a number in \[0, 1\); got 1.0"),
    ],
)
def test_what_cannot_be_extracted_is_refused(changes, message):
    hack, clean, _ = planted()
    with pytest.raises(ValueError, match=message):
        extract(hack, clean, **{"method": "svd", "k": 2, **changes})


def test_gradients_that_do_not_belong_together_are_refused():
    hack, clean, _ = planted()
    with pytest.raises(ValueError, match="must have the same non-empty set of modules"):
        extract(hack, {"q": clean["q"]})
    with pytest.raises(
        ValueError, match=r"q: hack and clean must be two arrays of shape \(N, pairs, r\)"
    ):
        extract(hack, {**clean, "q": clean["q"][:, :-1]})
    with pytest.raises(
        ValueError,
        match=r"all modules must have the same \(N, pairs\); got \[\(2, 19\), \(2, 20\)\]",
    ):
        extract({**hack, "q": hack["q"][:, :-1]}, {**clean, "q": clean["q"][:, :-1]})
    with pytest.raises(ValueError, match="up: gradients must be finite"):
        extract({**hack, "up": hack["up"] * torch.nan}, clean)
    with pytest.raises(ValueError, match=r"number of pairs must be at least 2, .* got 1"):
        clean_against_clean({name: g[:, :1] for name, g in clean.items()}, generator())
    with pytest.raises(ValueError, match=r"those of the direction, \['q', 'up'\]; got \['q'\]"):
        validate(extract(hack, clean), {"q": hack["q"]}, {"q": clean["q"]})
