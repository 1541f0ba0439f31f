"""From hyperparameters and an environment's cells to the networks that move them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from agents.sidecar_config import INITIAL_STD, SidecarConfig
from hpenv.policies.cells import CellMLP


def make_networks(
    seeds: Sequence[int],
    observation_size: int,
    kinds: Sequence[str],
    names: Sequence[str],
    config: SidecarConfig,
) -> CellMLP:
    """Makes one network per seed, with an output per cell and, with `config.common`, per channel.

    Args:
        seeds: seeds of the initial weights, (G,).
        observation_size: F.
        kinds: kind of every cell, (A,).
        names: names of the cells, (A,), `channel/...`, or none. `config.initial_mean` and
            `config.common` need them.
        config: initial means and standard deviations, their bounds, and the hidden size.

    Raises:
        ValueError: kinds, names and configuration do not describe the same cells.
    """
    _check_cells(kinds, names, config)
    channels = [name.split("/")[0] for name in names] if config.common else []
    groups = list(dict.fromkeys(channels))
    first = [channels.index(group) for group in groups]  # a cell of each group
    # The Gaussians of a cell and of its channel together have the requested variance.
    share = 1.0 / math.sqrt(2.0) if groups else 1.0
    stds = [(INITIAL_STD | dict(config.initial_std))[kind] * share for kind in kinds]

    return CellMLP(
        len(seeds),
        observation_size,
        len(kinds),
        config.hidden_size,
        [*_initial_means(names, len(kinds), config.initial_mean), *[0.0] * len(groups)],
        [*stds, *(stds[cell] for cell in first)],
        config.std_bounds,
        [groups.index(channel) for channel in channels],
        seeds,
    )


def outputs_of_cells(networks: CellMLP, values: Sequence[bool]) -> list[bool]:
    """Returns the value of every output, (M,): those of the cells, (A,), then one per group.

    A group has the value of its first cell.
    """
    groups = range(networks.output_size - networks.action_size)
    return [*values, *(values[networks.common.index(group)] for group in groups)]


def kind_metrics(
    networks: CellMLP, kinds: Sequence[str], mean: torch.Tensor, log_std: torch.Tensor
) -> dict[str, float]:
    """Returns standard deviation and distance of the mean from neutral, per kind of cell.

    Args:
        networks: the networks of both.
        kinds: kind of every cell, (A,).
        mean: means of some rows, (., M).
        log_std: logarithms of the standard deviations of the same rows, (., M).
    """
    A = networks.action_size
    variance = torch.exp(2.0 * log_std)
    of_cells = variance[:, :A]
    if networks.common:
        of_cells = of_cells + variance[:, A:][:, list(networks.common)]
    std = of_cells.sqrt().mean(dim=0)  # (A,)
    distance = networks.positions(mean).abs().mean(dim=0)  # (A,)

    metrics = {}
    for kind in dict.fromkeys(kinds):
        cells = torch.tensor([other == kind for other in kinds])
        metrics[f"train/std/{kind}"] = std[cells].mean().item()
        metrics[f"train/mean_abs_position/{kind}"] = distance[cells].mean().item()
    return metrics


def _check_cells(kinds: Sequence[str], names: Sequence[str], config: SidecarConfig) -> None:
    unknown = sorted(set(kinds) - set(INITIAL_STD))
    if unknown:
        raise ValueError(
            f"action_kinds must be of {list(INITIAL_STD)}; got unknown kinds {unknown}"
        )
    if names and len(names) != len(kinds):
        raise ValueError(
            f"action_names must have {len(kinds)} names, one per cell; got {len(names)}"
        )
    if not names and (config.common or config.initial_mean):
        raise ValueError("action_names must be given with `common` and `initial_mean`; got none")


def _initial_means(
    names: Sequence[str], num_cells: int, wanted: Mapping[str, float]
) -> list[float]:
    """Returns the initial means of the cells [position].

    An entry of `wanted` applies to a cell or to all cells of a channel. The longest entry wins.
    """
    means = [0.0] * num_cells
    for prefix in sorted(wanted, key=len):
        cells = [index for index, name in enumerate(names) if f"{name}/".startswith(f"{prefix}/")]
        if not cells:
            raise ValueError(
                f"initial_mean must have names of cells; got {prefix!r}; "
                f"the cells are {sorted(names)}"
            )
        for cell in cells:
            means[cell] = wanted[prefix]
    return means
