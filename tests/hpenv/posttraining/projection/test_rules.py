"""The projection: every rule by hand, and what it leaves along the direction."""

import pytest
import torch

from hpenv.posttraining.projection.direction import Direction
from hpenv.posttraining.projection.rules import (
    DRIFT,
    RULES,
    coordinates,
    erase_direction,
    measure,
    project,
)
from tests.hpenv.posttraining.projection.small_directions import ONE, RANKS, TWO, N, full, generator


def direction_of(k=2, seed=0):
    axes = {}
    for i, (name, r) in enumerate(RANKS.items()):
        q, _ = torch.linalg.qr(torch.randn(N, r, k, generator=generator(seed + i)))
        axes[name] = q.transpose(1, 2).contiguous()
    return Direction(axes, {name: torch.ones(N, k) for name in RANKS})


def gradients_of(seed=10):
    return {
        name: torch.randn(N, r, generator=generator(seed + i))
        for i, (name, r) in enumerate(RANKS.items())
    }


def rounding(name, k=2, passes=1):
    """Bound on the error of a number along an axis, after so many projections of gradients_of.

    With the unit roundoff u and a vector g: a product of length r is off by r u |g|, and there are
    three for each projection and one for looking at the result; axes from QR are off from
    orthonormal by r u; a sum over k axes is off by k u |g|; and what is removed is up to twice as
    long as g.
    """
    longest = gradients_of()[name].norm(dim=1).max().item()
    return 2.0**-24 * 2 * longest * passes * (4 * RANKS[name] + k)


def deviations_of(k=2):
    return {name: torch.rand(N, k, generator=generator(50)) + 0.5 for name in RANKS}


BY_HAND = [
    ("one_sided", ONE, [3.0, 1.0, 2.0], 1.0, [1.44, -1.08, 2.0]),  # minus 2.6 (0.6, 0.8, 0)
    ("one_sided", ONE, [3.0, 1.0, 2.0], 0.5, [2.22, -0.04, 2.0]),
    ("one_sided", ONE, [-3.0, -1.0, -2.0], 1.0, [-3.0, -1.0, -2.0]),
    ("two_sided", ONE, [-3.0, -1.0, -2.0], 1.0, [-1.44, 1.08, -2.0]),
    ("reverse", ONE, [3.0, 1.0, 2.0], 1.0, [-0.12, -3.16, 2.0]),  # minus 5.2 (0.6, 0.8, 0)
    ("drift", ONE, [3.0, 1.0, 2.0], 1.0, [0.96, -1.72, 2.0]),  # minus (2.6 + 0.4 * 2) (0.6, 0.8, 0)
    (
        "one_sided",
        TWO,
        [-3.0, 1.0, 2.0],
        1.0,
        [-3.0, 0.0, 2.0],
    ),  # gated by axis: only the second fires
    ("two_sided", TWO, [-3.0, 1.0, 2.0], 1.0, [0.0, 0.0, 2.0]),
    ("two_sided", TWO, [-3.0, 1.0, 2.0], 0.25, [-2.25, 0.75, 2.0]),
    ("reverse", TWO, [-3.0, 1.0, 2.0], 1.0, [3.0, -1.0, 2.0]),
    ("drift", TWO, [-3.0, 1.0, 2.0], 1.0, [-0.8, -0.8, 2.0]),
    ("drift", TWO, [-3.0, 1.0, 2.0], 0.5, [-1.9, 0.1, 2.0]),
]


@pytest.mark.parametrize(("rule", "axes", "g", "strength", "expected"), BY_HAND)
def test_rules_by_hand(rule, axes, g, strength, expected):
    direction = Direction({"m": axes}, {"m": torch.ones(axes.shape[:2])})
    deviations = {"m": torch.full(axes.shape[:2], 2.0)}
    given = {"m": torch.tensor([g])}
    kept, removed = project(given, direction, rule, full(strength, 1), full(0.0, 1), deviations)
    torch.testing.assert_close(kept["m"], torch.tensor([expected]))
    torch.testing.assert_close(kept["m"] + removed["m"], given["m"])


def test_every_rule_is_tried_by_hand():
    assert {rule for rule, *_ in BY_HAND} == set(RULES)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("magnitude", [0.0, 1.0])
def test_rows_of_strength_zero_keep_their_gradient_bit_for_bit(rule, magnitude):
    given = gradients_of()
    given["q"][1, 0] = -0.0
    strength = torch.tensor([1.0, 0.0, 1.0])
    kept, removed = project(given, direction_of(), rule, strength, full(magnitude), deviations_of())
    for name, g in given.items():
        assert torch.equal(kept[name][1].view(torch.int32), g[1].view(torch.int32))
        assert not removed[name][1].any()
    for row in (0, 2):
        assert any(not torch.equal(kept[name][row], g[row]) for name, g in given.items())


def test_strengths_may_differ_by_module():
    given, direction = gradients_of(), direction_of()
    strengths = {"q": full(0.0), "up": torch.tensor([0.0, 0.5, 1.0])}
    kept, _ = project(given, direction, "two_sided", strengths, full(0.0))
    assert torch.equal(kept["q"], given["q"]) and torch.equal(kept["up"][0], given["up"][0])
    before, after = (coordinates(g, direction)["up"] for g in (given, kept))
    torch.testing.assert_close(after[1], 0.5 * before[1], atol=rounding("up"), rtol=0)
    torch.testing.assert_close(after[2], torch.zeros(2), atol=rounding("up"), rtol=0)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_what_each_rule_leaves_along_the_direction(k):
    given, direction, deviations = gradients_of(), direction_of(k), deviations_of(k)
    before = coordinates(given, direction)
    left = {}
    for rule in RULES:
        kept, _ = project(given, direction, rule, full(1.0), full(0.0), deviations)
        left[rule] = coordinates(kept, direction)
    for name, c in before.items():
        assert (c > 0).any() and (c < 0).any()
        bound = rounding(name, k)
        torch.testing.assert_close(left["two_sided"][name], torch.zeros_like(c), atol=bound, rtol=0)
        torch.testing.assert_close(left["one_sided"][name], c.clamp_max(0.0), atol=bound, rtol=0)
        torch.testing.assert_close(left["reverse"][name], -c, atol=bound, rtol=0)
        torch.testing.assert_close(
            left["drift"][name], -DRIFT * deviations[name], atol=bound, rtol=0
        )


@pytest.mark.parametrize("rule", RULES)
def test_what_is_removed_lies_in_the_span_and_adds_up_with_what_is_kept(rule):
    given, direction = gradients_of(), direction_of()
    strength = torch.tensor([1.0, 0.3, 0.0])
    kept, removed = project(given, direction, rule, strength, full(0.0), deviations_of())
    outside = erase_direction(removed, direction)
    for name, g in given.items():
        torch.testing.assert_close(kept[name] + removed[name], g, atol=rounding(name), rtol=0)
        assert (outside[name].norm(dim=1) <= len(strength) * rounding(name, passes=2)).all()
    assert torch.cat(list(removed.values()), 1).any(1).tolist() == [True, True, False]


@pytest.mark.parametrize("rule", ["one_sided", "two_sided", "drift"])
def test_magnitude_gives_the_length_back_and_does_not_turn(rule):
    given, direction, deviations = gradients_of(), direction_of(), deviations_of()
    results = {
        m: project(given, direction, rule, full(1.0), full(m), deviations) for m in (0.0, 0.5, 1.0)
    }
    for name, g in given.items():
        plain, half, whole = (results[m][0][name] for m in (0.0, 0.5, 1.0))
        torch.testing.assert_close(whole.norm(dim=1), g.norm(dim=1))
        torch.testing.assert_close(half.norm(dim=1), (plain.norm(dim=1) + g.norm(dim=1)) / 2)
        torch.testing.assert_close(torch.cosine_similarity(plain, whole), torch.ones(N))
        assert torch.equal(results[0.0][1][name], results[1.0][1][name])


def test_a_gradient_that_does_not_fire_is_untouched_at_any_magnitude():
    given = {"m": 1e-4 * torch.tensor([[-3.0, -1.0, 2.0]])}
    direction = Direction({"m": TWO}, {"m": torch.ones(1, 2)})
    kept, removed = project(given, direction, "one_sided", full(1.0, 1), full(1.0, 1))
    measures = measure(given, direction)
    assert torch.equal(kept["m"], given["m"]) and not removed["m"].any()
    assert measures.frac_fired.item() == 0.0 and measures.removed_fraction.item() == 0.0


def test_the_rounding_that_is_left_of_a_gradient_along_the_direction_is_not_blown_up():
    axis = torch.nn.functional.normalize(torch.randn(1, 1, 50, generator=generator()), dim=2)
    kept, _ = project(
        {"m": 7.0 * axis[:, 0]},
        Direction({"m": axis}, {"m": torch.ones(1, 1)}),
        "two_sided",
        full(1, 1),
        full(1, 1),
    )
    assert kept["m"].norm() < 1e-5


def test_modules_without_an_axis_are_left_alone_and_not_counted():
    given = gradients_of()
    direction = direction_of()
    without = Direction(
        {**direction.axes, "up": torch.zeros_like(direction.axes["up"])}, direction.strengths
    )
    kept, removed = project(given, without, "drift", full(1.0), full(1.0), deviations_of())
    assert torch.equal(kept["up"], given["up"]) and not removed["up"].any()
    only = Direction({"q": direction.axes["q"]}, {"q": direction.strengths["q"]})
    expected = measure({"q": given["q"]}, only)
    for value, single in zip(measure(given, without), expected, strict=True):
        torch.testing.assert_close(value, single)


def test_a_broken_run_touches_no_other():
    given, broken = gradients_of(), gradients_of()
    broken["q"][0] = torch.nan
    for rule in RULES:
        expected, _ = project(given, direction_of(), rule, full(1.0), full(1.0), deviations_of())
        kept, _ = project(broken, direction_of(), rule, full(1.0), full(1.0), deviations_of())
        for name in RANKS:
            assert torch.equal(kept[name][1:], expected[name][1:])
    numbers, measures = (measure(g, direction_of()) for g in (given, broken))
    for value, number in zip(measures, numbers, strict=True):
        assert torch.equal(value[1:], number[1:])


def test_erasing_is_the_orthogonal_projection_of_the_knob():
    knobs, direction = gradients_of(), direction_of()
    once = erase_direction(knobs, direction)
    expected, _ = project(knobs, direction, "two_sided", full(1.0), full(0.0))
    twice = erase_direction(once, direction)
    for name in RANKS:
        torch.testing.assert_close(once[name], expected[name], atol=rounding(name), rtol=0)
        torch.testing.assert_close(twice[name], once[name], atol=rounding(name, passes=2), rtol=0)
    by_hand = erase_direction(
        {"m": torch.tensor([[3.0, 1.0, 2.0]])}, Direction({"m": ONE}, {"m": torch.ones(1, 1)})
    )
    torch.testing.assert_close(by_hand["m"], torch.tensor([[1.44, -1.08, 2.0]]))


def test_what_cannot_be_projected_is_refused():
    given, direction = gradients_of(), direction_of()
    with pytest.raises(
        ValueError, match=r"unknown rule 'onesided'; expected one of \['drift', 'one_sided'"
    ):
        project(given, direction, "onesided", full(1), full(0))
    with pytest.raises(ValueError, match="deviations must be given for the rule 'drift'; got None"):
        project(given, direction, "drift", full(1), full(0))
    with pytest.raises(ValueError, match=r"those of the direction, \['q', 'up'\]; got \['q'\]"):
        project({"q": given["q"]}, direction, "reverse", full(1), full(0))
    with pytest.raises(
        ValueError, match=r"q: shape must be \(N, r\) = \(3, 16\), .* got \(3, 15\)"
    ):
        project({**given, "q": given["q"][:, 1:]}, direction, "reverse", full(1), full(0))
    with pytest.raises(
        ValueError,
        match=r"strength must be a number in \[0, 1\] for each of 3 runs; got \[1.0, 1.0",
    ):
        project(given, direction, "reverse", full(1, 2), full(0))
    with pytest.raises(ValueError, match=r"strength up must be .* got \[2.0"):
        project(given, direction, "reverse", {"q": full(1), "up": full(2)}, full(0))
    with pytest.raises(ValueError, match=r"magnitude must be .* got \[-1.0"):
        project(given, direction, "reverse", full(1), full(-1))
    with pytest.raises(ValueError, match=r"strength must have the modules .*; got \['q'\]"):
        project(given, direction, "reverse", {"q": full(1)}, full(0))
