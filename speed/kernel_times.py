"""Times of the update of an arena and of torch's fused AdamW with passes for the norms."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hpenv.optim.adamw import AdamW
from hpenv.optim.fused.arena import AdamWArena
from hpenv.optim.fused.layout import Layout
from hpenv.optim.rules import Rates
from speed.kernel_checks import Stepper, record
from speed.timing import alternate, ratio

#: Bytes that AdamW in float32 moves for a parameter: 16 that are read and 12 that are written.
BYTES_PER_PARAMETER = 28


def filled_arena(
    shapes: Mapping[str, tuple[int, ...]], num_runs: int, device: torch.device
) -> AdamWArena:
    """Returns an arena with random weights and gradients, and rates of AdamW."""
    arena = AdamWArena.empty(Layout(shapes, num_runs), device)
    generator = torch.Generator(device).manual_seed(0)
    for slot in ("weights", "gradients"):
        for view in arena.views[slot].values():
            view.normal_(generator=generator)
    lr = torch.full((num_runs, len(shapes)), 1e-4, dtype=torch.float64)
    arena.fill(AdamW(), Rates.of(lr, 0.1 * torch.ones_like(lr)))
    return arena


class TorchUpdate:
    """torch's fused AdamW on stacked tensors with one rate, and the norms that a controller needs.

    Args:
        arena: source of weights and gradients, which are copied.
    """

    def __init__(self, arena: AdamWArena) -> None:
        pairs = zip(arena.views["weights"].values(), arena.views["gradients"].values(), strict=True)
        self._parameters: list[Tensor] = []
        self._gradients: list[Tensor] = []
        for weight, gradient in pairs:
            parameter = torch.nn.Parameter(weight.clone())
            parameter.grad = gradient.clone()
            self._parameters.append(parameter)
            self._gradients.append(parameter.grad)
        rule = AdamW()
        self._optimizer = torch.optim.AdamW(
            self._parameters, lr=1e-4, weight_decay=0.1, betas=(rule.beta1, rule.beta2),
            eps=rule.eps, fused=True, capturable=arena.rates.lr.is_cuda,
        )  # fmt: skip
        self._kept = [torch.empty_like(parameter) for parameter in self._parameters]

    def update(self) -> None:
        """Takes a step."""
        self._optimizer.step()

    def norms(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Returns the norms of tensors: of each run, if there are several."""
        if len(tensors[0]) == 1:
            return list(torch._foreach_norm(list(tensors)))
        return [torch.linalg.vector_norm(t.flatten(1), dim=1) for t in tensors]

    @torch.no_grad()
    def update_and_read(self) -> None:
        """Takes a step, then reads three buffers for their norms, as if the update were at hand."""
        self.update()
        for tensors in (self._gradients, self._parameters, self._kept):
            self.norms(tensors)

    @torch.no_grad()
    def update_and_measure(self) -> None:
        """Takes a step between a copy of the weights and their difference, then reads the norms."""
        torch._foreach_copy_(self._kept, self._parameters)
        self.update()
        torch._foreach_sub_(self._kept, self._parameters)
        for tensors in (self._gradients, self._parameters, self._kept):
            self.norms(tensors)


def repetition(
    step: Callable[[], object], repeats: int, device: torch.device
) -> Callable[[], None]:
    """Returns a function that takes steps and waits for the device."""

    def run() -> None:
        for _ in range(repeats):
            step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return run


def update_times(
    shapes: Mapping[str, tuple[int, ...]],
    num_runs: int,
    device: torch.device,
    stepper: Stepper,
    rounds: int,
    repeats: int,
) -> dict[str, Any]:
    """Times the update of an arena with its statistics, and torch's fused AdamW with norm passes.

    Args:
        shapes: of the tensors of one run.
        num_runs: N.
        device: of all tensors. On a GPU every contestant is launched, and recorded as a CUDA graph.
        stepper: the update of the arena.
        rounds: alternating rounds.
        repeats: updates of a round.
    """
    arena = filled_arena(shapes, num_runs, device)
    by_torch, other = TorchUpdate(arena), torch.empty_like(arena.flat["weights"])
    steps: dict[str, Callable[[], object]] = {
        "arena": stepper(arena),
        "torch": by_torch.update,
        "torch, norms": by_torch.update_and_read,
        "torch, copies, norms": by_torch.update_and_measure,
    }
    if device.type == "cuda":
        steps |= {f"{name}, recorded": record(step) for name, step in steps.items()}
    steps["copy"] = lambda: other.copy_(arena.flat["weights"])  # reads 4 bytes and writes 4
    functions = {name: repetition(step, repeats, device) for name, step in steps.items()}
    times = alternate(functions, rounds)
    per_update = {n: statistics.median(t) / repeats for n, t in times.items()}

    count = num_runs * sum(math.prod(shape) for shape in shapes.values())
    bytes_per_second = BYTES_PER_PARAMETER * count / per_update["arena"]
    ways = ["", ", recorded"] if device.type == "cuda" else [""]
    ratios = {
        f"{name}{way} / arena{way}": ratio(times, f"{name}{way}", f"arena{way}")
        for name in ("torch", "torch, norms", "torch, copies, norms")
        for way in ways
    }
    return ratios | {
        "parameters": count,
        "microseconds per update": {name: 1e6 * t for name, t in per_update.items()},
        "gigabytes per second": bytes_per_second / 1e9,
        "fraction of the rate of a copy": bytes_per_second / (8 * count / per_update["copy"]),
        "goal": "torch, norms / arena >= 1.25",
    }
