"""The direction: planted and found, oriented, floored globally, and tested on other pairs.

Input that gives no direction is refused.
"""

import json
import math
import os

import pytest
import safetensors.torch
import torch

from hpenv.posttraining.loss import advantages, policy_loss
from hpenv.posttraining.projection.direction import (
    METHODS,
    Direction,
    extract,
    random_direction,
    validate,
)
from hpenv.posttraining.projection.direction_files import Provenance, load_direction, save_direction
from hpenv.posttraining.projection.rules import coordinates
from hpenv.posttraining.students.adapter import adapted_weight, decompose, weights_digest
from train_agents.experiments.contrasts import clean_against_clean, shuffle_labels

RANKS = {"q": 24, "up": 40}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def unit(*shape, seed):
    return torch.nn.functional.normalize(torch.randn(*shape, generator=generator(seed)), dim=-1)


def planted(num_pairs=20, N=2, noise=0.1, signal=1.0, seed=0):
    """Gradients of pairs that differ by `signal` along one axis per run and module.

    The axes (N, r) are returned, too.
    """
    axes = {name: unit(N, r, seed=seed + i) for i, (name, r) in enumerate(RANKS.items())}
    hack, clean = {}, {}
    for i, (name, r) in enumerate(RANKS.items()):
        noises = torch.randn(2, N, num_pairs, r, generator=generator(100 + seed + i)) * noise
        clean[name] = noises[0]
        hack[name] = noises[1] + signal * axes[name][:, None]
    return hack, clean, axes


def alignment(direction, axes):
    """Cosine of the first axis with the planted one, (N, modules)."""
    return torch.stack([(direction.axes[name][:, 0] * axes[name]).sum(1) for name in axes], 1)


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


def test_shuffled_labels_leave_nothing_of_the_mean_difference():
    hack, clean, axes = planted(num_pairs=21)
    mixed = shuffle_labels(hack, clean, generator())
    assert mixed[0]["q"].shape == (2, 20, RANKS["q"])
    assert (alignment(extract(*mixed, "mean_difference", 1), axes).abs() < 0.5).all()
    means = [(mixed[0][name] - mixed[1][name]).mean(1).norm(dim=1) for name in RANKS]
    assert all((mean < 0.3).all() for mean in means)  # 1 before


def test_shuffling_swaps_half_of_the_pairs_alike_in_all_modules():
    numbers = torch.arange(8.0)[None, :, None].expand(2, 8, 3)
    hack = {
        "a": numbers + 100,
        "b": numbers + 200,
    }  # a completion's number tells its pair, its hundreds its side
    clean = {"a": numbers, "b": numbers}
    left, right = shuffle_labels(hack, clean, generator())
    for name in hack:
        assert torch.equal(left[name] % 100, right[name] % 100)
        assert ((left[name] >= 100) != (right[name] >= 100)).all()
        assert (left[name][..., 0] >= 100).sum(1).tolist() == [4, 4]
        assert torch.equal((left[name][..., 0] % 100).sort(1).values, numbers[..., 0])
    assert torch.equal(left["a"] >= 100, left["b"] >= 100)
    assert torch.equal(left["a"] % 100, left["b"] % 100)
    assert not torch.equal(left["a"][0], left["a"][1])


def test_clean_against_clean_has_no_hack_in_it():
    _, clean, axes = planted()
    left, right = clean_against_clean(clean, generator())
    for name in RANKS:
        halves = torch.cat([left[name], right[name]], 1)
        assert torch.equal(halves.sort(1).values, clean[name].sort(1).values)
    assert (alignment(extract(left, right, "svd", 2), axes).abs() < 0.7).all()


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


def test_a_direction_is_read_as_it_was_written_and_only_on_its_weights(tmp_path):
    hack, clean, _ = planted()
    direction, digest = extract(hack, clean, "svd", 3), weights_digest({"q": torch.ones(2, 2)})
    made = Provenance(digest, "pairs", "svd", 3, 0.25, 20)
    path = tmp_path / "folder" / "direction.safetensors"
    save_direction(path, direction, made)
    read, provenance = load_direction(path, digest)
    assert provenance == made and list(read.axes) == list(direction.axes)
    for name in RANKS:
        assert torch.equal(read.axes[name], direction.axes[name])
        assert torch.equal(read.strengths[name], direction.strengths[name])
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    with pytest.raises(ValueError, match=r"belongs to other model weights .* this model: 0000"):
        load_direction(path, "0000")


@pytest.fixture
def stored(tmp_path):
    """A direction file, and a function that writes it again.

    The function replaces its tensors and its header.
    """
    hack, clean, _ = planted()
    path = tmp_path / "direction.safetensors"
    save_direction(path, extract(hack, clean, "svd", 3), Provenance("0", "1", "svd", 3, 0.25, 20))
    with safetensors.safe_open(path, "pt") as file:
        tensors, header = (
            {name: file.get_tensor(name).clone() for name in file.keys()},
            file.metadata(),
        )

    def rewrite(tensor_changes, header_changes):
        content = {
            name: value for name, value in (tensors | tensor_changes).items() if value is not None
        }
        metadata = {
            name: value for name, value in (header | header_changes).items() if value is not None
        }
        safetensors.torch.save_file(content, path, metadata)

    return path, rewrite


@pytest.mark.parametrize(
    ("tensors", "header", "message"),
    [
        ({"axes/q": None}, {}, "must be those of the header"),
        ({"axes/other": torch.ones(1)}, {}, "must be those of the header"),
        ({"axes/q": torch.ones(2, 3)}, {}, r"q: axes must be \(N, k, r\)"),
        (
            {"axes/q": torch.zeros(2, 3, 24, dtype=torch.int64)},
            {},
            "q: axes and strengths must be finite",
        ),
        ({"axes/q": torch.full((2, 3, 24), torch.nan)}, {}, "q: axes and strengths must be finite"),
        ({"axes/q": torch.ones(2, 3, 24)}, {}, "q: axes must be orthogonal, of length 1 or 0"),
        ({"strengths/q": torch.ones(2, 2)}, {}, r"strengths \(N, k\)"),
        (
            {"strengths/up": torch.full((2, 3), torch.inf)},
            {},
            "up: axes and strengths must be finite",
        ),
        ({}, {"modules": None}, "KeyError"),
        ({}, {"modules": "3"}, "TypeError"),
        ({}, {"modules": "[3]"}, "must be those of the header"),
        ({}, {"provenance": "[" * 10_000}, "Recursion"),
        ({}, {"provenance": "[]"}, "TypeError"),
        ({}, {"provenance": json.dumps({"k": 3})}, "missing 5 required"),
        (
            {},
            {"provenance": json.dumps(dict.fromkeys(Provenance.__dataclass_fields__, 3))},
            "weights_digest must be of",
        ),
    ],
)
def test_a_file_that_holds_another_thing_is_refused(stored, tensors, header, message):
    path, rewrite = stored
    rewrite(tensors, header)
    with pytest.raises(
        ValueError,
        match=rf"saved by `save_direction`; got '.*direction\.safetensors' .*{message}",
    ):
        load_direction(path)


def test_a_file_that_is_damaged_or_no_file_is_refused_by_name(stored, tmp_path):
    path, _ = stored
    whole = path.read_bytes()
    for content in (b"", whole[:4], whole[:100], whole[:-5], b"\xff" * 8 + whole[8:]):
        path.write_bytes(content)
        with pytest.raises(
            ValueError, match=r"must be a whole safetensors file; got '.*direction\.safetensors'"
        ):
            load_direction(path)
    with pytest.raises(
        FileNotFoundError, match=r"path must be a file that exists; got '.*nowhere'"
    ):
        load_direction(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"path must be a file; got .* which is a folder"):
        load_direction(tmp_path)


def test_a_direction_that_cannot_be_written_says_where(stored, tmp_path):
    hack, clean, _ = planted()
    made = Provenance("0", "1", "svd", 3, 0.25, 20)
    direction = extract(hack, clean, "svd", 3)
    for place in (
        stored[0] / "in a file",
        tmp_path,
        *([] if os.name == "nt" else ["/proc/own/direction"]),
    ):
        with pytest.raises(ValueError, match=r"must be a (file|folder) that can be written"):
            save_direction(place, direction, made)
    with pytest.raises(ValueError, match="q: axes must be orthogonal"):
        save_direction(
            tmp_path / "a", Direction({"q": torch.ones(1, 1, 3)}, {"q": torch.ones(1, 1)}), made
        )
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [stored[0].name]


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
