"""Statistics of the weights of runs: of a tensor, their correlation with a dial, and of two runs.

Pure functions of arrays, except `forensics`, `body` and `compare_runs`, which take final states of
runs.

References:
    "Reward-Driven Training Control", sections 5.4 (which static property predicts the policy's
    choice) and 5.5 (its effect on the weights); Roy & Vetterli 2007 (effective rank).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from hpenv.arrays import FloatArray
from hpenv.benchmark.results import Rows, read_result
from hpenv.plant import snapshots
from hpenv.plant.protocol import Snapshot
from train_agents.outputs import checkpoints

#: A weight counts as zero below this fraction of its tensor's largest.
SPARSE_FRACTION = 1e-3
#: Keys of `static_statistics`, in the order of the paper's section 5.4.
STATISTICS = ("frobenius_norm", "std", "max_abs", "sparsity", "first_moment", "second_moment")


class Tensor(NamedTuple):
    """One tensor of one run at its end."""

    weight: FloatArray
    first_moment: FloatArray
    second_moment: FloatArray


def static_statistics(tensor: Tensor) -> dict[str, float]:
    """Returns statistics of a tensor that need no run of the model.

    Returns:
        `frobenius_norm`; `std`; `max_abs`; `sparsity`, the fraction of weights whose magnitude is
        below 1e-3 of the largest; `first_moment` and `second_moment`, means of the magnitudes of
        AdamW's moments.
    """
    weight = np.asarray(tensor.weight, dtype=np.float64)
    largest = float(np.abs(weight).max())
    return {
        "frobenius_norm": float(np.linalg.norm(weight)),
        "std": float(weight.std()),
        "max_abs": largest,
        "sparsity": float(np.mean(np.abs(weight) < SPARSE_FRACTION * largest)),
        "first_moment": float(np.abs(tensor.first_moment).mean()),
        "second_moment": float(np.abs(tensor.second_moment).mean()),
    }


def pearson(x: ArrayLike, y: ArrayLike) -> float | None:
    """Returns Pearson's correlation of two samples (n,). None where one of them is constant."""
    first, second = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 1 or first.size < 2:
        raise ValueError(
            f"x and y must have one shape (n,) with n >= 2; got {first.shape} and {second.shape}"
        )
    a, b = first - first.mean(), second - second.mean()
    scale = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(np.clip(a @ b / scale, -1.0, 1.0)) if scale > 0.0 else None


def correlations(
    choices: ArrayLike, statistics: Sequence[Mapping[str, float]]
) -> dict[str, float | None]:
    """Returns the correlations of a dial's final value per tensor (n,) with static statistics."""
    return {key: pearson(choices, [entry[key] for entry in statistics]) for key in STATISTICS}


def effective_rank(matrix: ArrayLike) -> float:
    """Returns exp(-sum p ln p) over the singular values, normalized to a sum of 1.

    It is from 1 to the rank, and 0 of a zero matrix.
    """
    values = np.linalg.svd(np.asarray(matrix, dtype=np.float64), compute_uv=False)
    total = float(values.sum())
    if total <= 0.0:
        return 0.0
    p = values[values > 0.0] / total
    return float(np.exp(-(p * np.log(p)).sum()))


def comparison(weight: ArrayLike, reference: ArrayLike) -> dict[str, float | None]:
    """Returns the differences of a tensor from the same tensor of another run.

    Returns:
        `cosine`; `relative_difference`, ||w - r|| / ||r||; `norm_loss`, 1 - ||w|| / ||r||;
        `max_abs_loss`, the same of the largest magnitudes; `effective_rank` and
        `reference_effective_rank`. None where a norm is 0.
    """
    w, r = (np.asarray(values, dtype=np.float64) for values in (weight, reference))
    if w.shape != r.shape:
        raise ValueError(
            f"weight and reference must be the same tensor of two runs; got {w.shape} and {r.shape}"
        )
    norm, other = float(np.linalg.norm(w)), float(np.linalg.norm(r))
    return {
        "cosine": float((w * r).sum() / (norm * other)) if norm * other > 0.0 else None,
        "relative_difference": float(np.linalg.norm(w - r)) / other if other > 0.0 else None,
        "norm_loss": 1.0 - norm / other if other > 0.0 else None,
        "max_abs_loss": 1.0 - float(np.abs(w).max() / np.abs(r).max()) if other > 0.0 else None,
        "effective_rank": effective_rank(w),
        "reference_effective_rank": effective_rank(r),
    }


def body(snapshot: Snapshot, row: int) -> dict[str, Tensor]:
    """Returns tensor name -> weight and AdamW's moments of every matrix of the layers.

    They are of one row of an env's snapshot.
    """
    weights, found = "plant/weights/", {}
    for key, tensor in snapshot.tensors.items():
        if key.startswith(f"{weights}layer.") and tensor.ndim == 3:  # (N, out, in)
            name = key.removeprefix(weights)
            moments = (f"plant/optimizer/{name}/{kind}" for kind in ("momentum", "second_moment"))
            tensors = [snapshot.tensors[each][row] for each in (key, *moments)]
            found[name] = Tensor(*(each.double().cpu().numpy() for each in tensors))
    return found


def differences(ours: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> dict[str, Any]:
    """Returns the differences of the tensors of two runs.

    Returns:
        `tensors`: name -> comparison; means over the tensors `mean_cosine` and
        `mean_relative_difference`; `above_095`, the number of tensors with a cosine above 0.95.
    """
    compared = {name: comparison(own.weight, reference[name].weight) for name, own in ours.items()}

    def numbers(key: str) -> list[float]:
        values = [entry[key] for entry in compared.values()]
        return [value for value in values if value is not None]

    cosines, distances = numbers("cosine"), numbers("relative_difference")
    return {
        "tensors": compared,
        "mean_cosine": float(np.mean(cosines)) if cosines else None,
        "above_095": int(np.sum(np.array(cosines) > 0.95)),
        "mean_relative_difference": float(np.mean(distances)) if distances else None,
    }


def compare_runs(
    ours: Mapping[str, Tensor], reference: Mapping[str, Tensor], choices: Mapping[str, float]
) -> dict[str, Any]:
    """Returns the numbers of sections 5.4 and 5.5 for one seed.

    Args:
        ours: tensors of the run whose dial was moved.
        reference: tensors of the run without the dial, of the same seed.
        choices: tensor name -> final position of its dial in [-1, 1]; the logarithm of its value,
            up to a factor.

    Returns:
        `tensors`: name -> `choice`, statistics and comparison; `correlations` (STATISTICS -> r);
        and the means of `differences`.

    Raises:
        ValueError: if the three do not name the same tensors.
    """
    every, common = {*ours, *reference, *choices}, set(ours) & set(reference) & set(choices)
    if differing := sorted(every - common):
        raise ValueError(
            f"both runs must have the same tensors and one choice each; these are not: {differing}"
        )

    statistics = {name: static_statistics(tensor) for name, tensor in ours.items()}
    found = differences(ours, reference)
    compared, tensors = found.pop("tensors"), {}
    for name in ours:
        tensors[name] = {"choice": float(choices[name])} | statistics[name] | compared[name]
    predicted = correlations([choices[name] for name in ours], list(statistics.values()))
    return {"tensors": tensors, "correlations": predicted} | found


def forensics(ours: str, reference: str, control: str, result: str, seeds: Sequence[int]) -> Rows:
    """Compares the final weights of two runs per seed, and correlates the dial's positions.

    `control` of every row compares two runs without the dial.

    Args:
        ours: folder of the run with a weight-decay cell per tensor.
        reference: folder of the run without.
        control: folder of another run without.
        result: result file of `ours`, which has the final positions.
        seeds: one per row.
    """
    folders = [Path(folder) for folder in (ours, reference, control)]
    states = [snapshots.load(checkpoints(folder, "step")[-1] / "env") for folder in folders]
    extra = read_result(result)["extra"]
    prefix = "weight_decay/"

    rows = []
    for row, seed in enumerate(seeds):
        cells = zip(extra["names"], extra["final_mean"][row], strict=True)
        positions = {name: value for name, value in cells if name.startswith(f"{prefix}layer.")}
        choices = {name.removeprefix(prefix): value for name, value in positions.items()}
        with_dial, without, other = (body(state, row) for state in states)
        apart = differences(without, other)
        apart.pop("tensors")
        rows.append({"seed": seed} | compare_runs(with_dial, without, choices) | {"control": apart})
    return rows, {"steps": [int(state.tensors["window/steps"].max()) for state in states]}
