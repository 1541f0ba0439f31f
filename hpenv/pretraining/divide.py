"""Divides the batches of a pretraining plant among the ranks of a program.

Rank 0 calls `divide`, and all others `follow`. Equal to the whole batch, up to the order in which
float32 numbers are added, are the training loss, the probe loss, the gradients, and all that is
computed from them. What is not is refused by its name.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch

from hpenv.arrays import FloatArray, IntArray
from hpenv.lm.model import MEASURED_TOKENS
from hpenv.plant.ranks import ALONE, Ranks
from hpenv.pretraining.plant import PretrainingPlant

#: Devices whose ranks can communicate. Every rank has a GPU of its own.
DEVICES = ("cpu", "cuda")


def divide(plant: object, ranks: Ranks) -> None:
    """Makes all ranks train a plant of rank 0, from the state that it is in.

    A plant that was divided before goes on alone. A process alone does nothing.

    Args:
        plant: a pretraining plant of rank 0.
        ranks: the processes of this program.

    Raises:
        ValueError: the plant cannot be divided, naming what stands against it.
    """
    if ranks.size == 1:
        return
    if not isinstance(plant, PretrainingPlant):
        raise ValueError(
            "only runs of pretraining can be divided among processes; got a plant of kind "
            f"{getattr(plant, 'kind', type(plant).__name__)!r}; start one process"
        )
    _check(plant, ranks.size)

    if ranks.divided is not None:
        ranks.divided.ranks = ALONE
    ranks.divided = plant
    made = plant.config, plant.num_rows, plant.channels, plant.measured_groups
    ranks.tell("make", *made, torch.get_num_threads())
    ranks.tell("restore", plant.snapshot())
    plant.ranks = ranks


def _check(plant: PretrainingPlant, size: int) -> None:
    config = plant.config
    if config.batch_size % size:
        raise ValueError(
            f"batch_tokens must be a multiple of {size * config.sequence_length}: sequences of "
            f"sequence_length={config.sequence_length} for {size} processes; got "
            f"{config.batch_tokens}, which are {config.batch_size} sequences"
        )
    stride = max(1, config.batch_tokens // MEASURED_TOKENS)
    if "activations" in plant.measured_groups and config.batch_tokens // size % stride:
        raise ValueError(
            f"the measurement group 'activations' needs a multiple of {stride} tokens in each "
            f"process; got {config.batch_tokens // size} for {size} processes; leave out the "
            "features layer_activation_mean, layer_activation_variance and layer_saturation, or "
            "start another number of processes"
        )
    if config.device not in DEVICES:
        raise ValueError(
            f"device must be one of {list(DEVICES)} in {size} processes; got {config.device!r}"
        )


def follow(ranks: Ranks) -> None:
    """Takes the steps of rank 0 until it tells to stop.

    Raises:
        ValueError: the text of this rank is not that of rank 0.
        RankError: rank 0 has ended.
    """
    plant: PretrainingPlant | None = None
    while True:
        order, arguments = ranks.hear()
        if order == "stop":
            return
        if order == "make":
            plant = _make(ranks, *arguments)
        else:
            assert plant is not None
            ORDERS[order](plant, *arguments)


def _make(
    ranks: Ranks, config: Any, num_rows: int, channels: Any, groups: Any, threads: int
) -> PretrainingPlant:
    torch.set_num_threads(threads)
    plant = PretrainingPlant(config, num_rows, channels)
    plant.set_measured_groups(groups)
    plant.ranks = ranks
    return plant


def _advance(plant: PretrainingPlant, positions: FloatArray, num_steps: IntArray) -> None:
    plant.panel.positions = positions
    plant.advance(num_steps)


def _measure(plant: PretrainingPlant, groups: Collection[str]) -> None:
    plant.set_measured_groups(groups)
    _check(plant, plant.ranks.size)  # groups that were measured when it was divided are not all


#: Order of rank 0 -> function of a follower's plant and the arguments.
ORDERS: dict[str, Callable[..., object]] = {
    "reset": PretrainingPlant.reset,
    "restore": PretrainingPlant.restore,
    "measure": _measure,
    "advance": _advance,
}
