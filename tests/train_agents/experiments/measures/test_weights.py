"""Forensics of weights: every number by hand."""

import math

import numpy as np
import pytest
import torch

from hpenv.plant.protocol import Snapshot
from train_agents.experiments.measures.weights import (
    STATISTICS,
    Tensor,
    body,
    compare_runs,
    comparison,
    correlations,
    differences,
    effective_rank,
    pearson,
    static_statistics,
)
from train_agents.experiments.sidecar_report import forensics


def tensor(weight, first=0.0, second=0.0):
    weight = np.asarray(weight, dtype=float)
    return Tensor(weight, np.full_like(weight, first), np.full_like(weight, second))


def test_statistics_of_a_tensor_by_hand():
    found = static_statistics(tensor([[3.0, -4.0], [0.0, 0.003]], first=-0.5, second=0.25))
    assert list(found) == list(STATISTICS)
    assert found["frobenius_norm"] == pytest.approx(math.sqrt(25.000009))
    assert found["std"] == pytest.approx(np.std([3.0, -4.0, 0.0, 0.003]))
    assert found["max_abs"] == 4.0
    assert found["sparsity"] == 0.5  # 0 and 0.003 are below 1e-3 of 4
    assert (found["first_moment"], found["second_moment"]) == (0.5, 0.25)


def test_correlation_by_hand():
    assert pearson([1.0, 2.0, 3.0], [2.0, 4.0, 6.0]) == pytest.approx(1.0)
    assert pearson([1.0, 2.0, 3.0], [3.0, 2.0, 1.0]) == pytest.approx(-1.0)
    assert pearson([0.0, 1.0, 2.0], [0.0, 2.0, 1.0]) == pytest.approx(0.5)  # 1 / 2
    assert pearson([1.0, 2.0], [5.0, 5.0]) is None
    with pytest.raises(ValueError, match=r"x and y must have one shape \(n,\)"):
        pearson([1.0, 2.0], [1.0, 2.0, 3.0])


def test_a_choice_that_follows_the_norm_is_found_out():
    statistics = [static_statistics(tensor(scale * np.eye(3))) for scale in (1.0, 2.0, 4.0)]
    found = correlations([0.1, 0.2, 0.4], statistics)
    assert found["frobenius_norm"] == pytest.approx(1.0) and found["sparsity"] is None


def test_effective_rank_is_the_rank_of_equal_singular_values():
    assert effective_rank(np.eye(4)) == pytest.approx(4.0)
    assert effective_rank(np.outer([1.0, 2.0], [3.0, 4.0])) == pytest.approx(1.0)
    # Singular values 3 and 1: exp(3/4 ln 4/3 + 1/4 ln 4).
    assert effective_rank(np.diag([3.0, 1.0])) == pytest.approx((4 / 3) ** 0.75 * 4**0.25)
    assert effective_rank(np.zeros((2, 2))) == 0.0


def test_two_tensors_are_compared_by_hand():
    found = comparison([[3.0, 0.0]], [[3.0, 4.0]])
    assert found["cosine"] == pytest.approx(0.6)
    assert found["relative_difference"] == pytest.approx(0.8)
    assert found["norm_loss"] == pytest.approx(0.4)
    assert found["max_abs_loss"] == pytest.approx(0.25)
    assert comparison([[1.0]], [[0.0]])["cosine"] is None
    with pytest.raises(ValueError, match="the same tensor of two runs"):
        comparison([[1.0]], [[1.0, 2.0]])


def test_the_body_is_the_matrices_of_the_layers_of_one_row():
    tensors = {}
    for name, shape in (("embedding", (4, 2)), ("layer.0.query", (2, 2)), ("layer.0.scale", (2,))):
        base = torch.arange(2.0).view(2, *[1] * len(shape)) * torch.ones(2, *shape)
        tensors |= {f"plant/weights/{name}": base, f"plant/optimizer/{name}/momentum": base + 10}
        tensors |= {f"plant/optimizer/{name}/second_moment": base + 20}
    found = body(Snapshot(tensors), row=1)
    assert list(found) == ["layer.0.query"]
    weight, first, second = found["layer.0.query"]
    assert (weight == 1.0).all() and (first == 11.0).all() and (second == 21.0).all()


def test_forensics_are_of_what_was_held_down_and_of_how_far_other_runs_are_apart():
    def entry(choice, cosine, norm_loss):
        return {"choice": choice, "cosine": cosine, "norm_loss": norm_loss, "effective_rank": 3.0,
                "reference_effective_rank": 4.0}  # fmt: skip

    means = {"mean_cosine": 0.5, "mean_relative_difference": 1.0, "above_095": 0}
    tensors = {
        "layer.0.key": entry(0.7, 0.9, 0.6),
        "layer.0.up": entry(-0.1, 0.1, -0.2),
        "layer.0.down": entry(0.0, None, 0.0),
    }
    control = means | {"mean_cosine": 0.25}
    found = forensics([means | {"tensors": tensors, "control": control}])
    assert found["mean_cosine"] == 0.5 and found["control.mean_cosine"] == 0.25
    assert found["control.mean_relative_difference"] == 1.0
    assert found["decayed.norm_loss"] == 60.0 and found["norm_loss"] == pytest.approx(20.0)
    assert found["effective_rank"] == 3.0 and found["reference_effective_rank"] == 4.0
    assert found["furthest"] == "up" and found["furthest.cosine"] == 0.1


def test_two_runs_are_compared_tensor_by_tensor():
    ours = {"layer.0.key": tensor([[1.0, 0.0]]), "layer.0.up": tensor([[0.0, 3.0]])}
    reference = {"layer.0.key": tensor([[2.0, 0.0]]), "layer.0.up": tensor([[3.0, 0.0]])}
    found = compare_runs(ours, reference, {"layer.0.key": 0.5, "layer.0.up": -0.5})
    assert found["mean_cosine"] == pytest.approx(0.5) and found["above_095"] == 1
    assert found["mean_relative_difference"] == pytest.approx((0.5 + math.sqrt(2)) / 2)
    assert found["correlations"]["frobenius_norm"] == pytest.approx(-1.0)
    assert found["tensors"]["layer.0.key"]["norm_loss"] == pytest.approx(0.5)
    assert differences(ours, reference) == {
        **{key: found[key] for key in ("mean_cosine", "above_095", "mean_relative_difference")},
        "tensors": {name: comparison(ours[name].weight, reference[name].weight) for name in ours},
    }
    with pytest.raises(ValueError, match=r"these are not: \['layer.0.up'\]"):
        compare_runs(ours, reference, {"layer.0.key": 0.5})
