"""Processes that share the batches of runs: averages over all of them, and orders of rank 0.

Rank 0 has the program: environment, controller, files. The other ranks have the same runs and
follow. Whatever changes the runs of rank 0 is told to them first, with the panel, so that every
rank takes the same steps. In a step, each rank computes the losses and gradients of its share of
the batch. All ranks then average them, and make the same update of the same weights.

A process alone has one rank. Nothing is then told or averaged, and every number is bitwise as if
there were no ranks. `hpenv.plant.torchrun` opens the ranks of a program that torchrun has started.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from hpenv.arrays import FloatArray
from hpenv.plant.protocol import Snapshot

Result = TypeVar("Result")


class RankError(RuntimeError):
    """Another rank has ended, hangs, or has other weights."""


class Divided(Protocol):
    """A plant whose batches are divided.

    Attributes:
        ranks: the processes that share its batches.
    """

    ranks: Ranks


class Ranks:
    """The processes of a program, seen from one of them.

    Attributes:
        rank: number of this process, 0 .. size - 1.
        size: number of processes.
        divided: on rank 0, the plant whose steps the other ranks take. There is one at a time.
    """

    def __init__(self, rank: int = 0, size: int = 1, orders: dist.ProcessGroup | None = None):
        """Describes the processes.

        Args:
            rank: number of this process.
            size: number of processes. More than one need torch.distributed.
            orders: group of the orders of rank 0. It has to wait for the next one without end.
        """
        self.rank, self.size, self._orders = rank, size, orders
        self.divided: Divided | None = None

    @property
    def follows(self) -> bool:
        """True for all ranks but 0."""
        return self.rank > 0

    def share(self, starts: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Returns this rank's share of the sequences of a batch.

        The shares are of equal size and follow each other, so that the mean over the ranks of
        their means is the mean over all tokens.

        Args:
            starts: one entry per sequence along the last axis, a multiple of the ranks.
        """
        count = starts.shape[-1] // self.size
        return starts[..., self.rank * count : (self.rank + 1) * count]

    def average(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Returns the means over the ranks of tensors of one dtype and device.

        They are summed in one message and then divided, because not every version of gloo has an
        average. All ranks get the same bits. A process alone gets its tensors.

        Raises:
            RankError: another rank has ended, or does not answer.
        """
        if self.size == 1:
            return list(tensors)
        joined = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
        _communicate(lambda: dist.all_reduce(joined, dist.ReduceOp.SUM))
        parts = joined.div_(self.size).split([tensor.numel() for tensor in tensors])
        return [part.view(like.shape) for part, like in zip(parts, tensors, strict=True)]

    def average_array(self, values: FloatArray) -> FloatArray:
        """Returns the mean over the ranks of an array. See `average`."""
        return values if self.size == 1 else self.average([torch.as_tensor(values)])[0].numpy()

    def check_equal(self, tensors: Sequence[Tensor]) -> None:
        """Compares the sum of the bits of float32 tensors on all ranks.

        Raises:
            RankError: the ranks have other bits, or one of them has ended.
        """
        if self.size == 1:
            return
        bits = [tensor.detach().view(torch.int32).sum(dtype=torch.int64) for tensor in tensors]
        joined = torch.stack(bits)
        largest = torch.cat([joined, -joined])
        _communicate(lambda: dist.all_reduce(largest, dist.ReduceOp.MAX))
        if not torch.equal(largest[: len(joined)], -largest[len(joined) :]):
            raise RankError(
                "the weights must be equal on all ranks, bit for bit, and are not; the ranks must "
                "have the same processor, number of threads and versions"
            )

    def tell(self, order: str, *arguments: object) -> None:
        """Sends an order of rank 0 to the other ranks. A follower tells nothing.

        Raises:
            RankError: another rank has ended.
        """
        if self.size > 1 and self.rank == 0:
            self._exchange([(order, tuple(map(_on_cpu, arguments)))])

    def hear(self) -> tuple[str, tuple[Any, ...]]:
        """Returns the next order of rank 0 and its arguments, and waits for it.

        Raises:
            RankError: rank 0 has ended.
        """
        return self._exchange([None])

    def _exchange(self, message: list[Any]) -> tuple[str, tuple[Any, ...]]:
        device = torch.device("cpu")
        _communicate(
            lambda: dist.broadcast_object_list(message, 0, group=self._orders, device=device)
        )
        return message[0]


def _on_cpu(argument: object) -> object:
    """Returns a snapshot on the CPU, since the GPU that it is on belongs to one rank."""
    if not isinstance(argument, Snapshot):
        return argument
    tensors = {name: tensor.cpu() for name, tensor in argument.tensors.items()}
    return Snapshot(tensors, argument.metadata)


def _communicate(call: Callable[[], Result]) -> Result:
    """Calls torch.distributed, and turns its errors into a RankError."""
    try:
        return call()
    except RuntimeError as error:
        raise RankError(f"a rank has ended, or does not answer ({error})") from error


#: The rank of a process that shares its batches with no other.
ALONE = Ranks()
