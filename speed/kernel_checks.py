"""Checks of an arena's updates on a device: error, repetition, panel, gate, CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from hpenv.optim.adamw import AdamW
from hpenv.optim.fused.arena import AdamWArena, MuonArena
from hpenv.optim.fused.layout import BLOCK, Layout
from hpenv.optim.muon import Muon
from hpenv.optim.rules import Rates

Arena = AdamWArena | MuonArena
#: Function from an arena to the function that takes a step of it.
Stepper = Callable[[Any], Callable[[], None]]

NUM_RUNS, NUM_STEPS = 3, 10
#: Odd sizes: a number, one entry, no entry, and a part of a block beyond whole ones.
VECTORS: dict[str, tuple[int, ...]] = {
    "scalar": (), "one": (1,), "empty": (0, 3), "odd": (5, 7), "long": (70 * BLOCK + 3,),
}  # fmt: skip
MATRICES: dict[str, tuple[int, ...]] = {
    "tall": (130, 65), "wide": (64, 256), "square": (128, 128), "again": (130, 65),
}  # fmt: skip
RULES: dict[type, tuple[AdamW | Muon, dict[str, tuple[int, ...]]]] = {
    AdamWArena: (AdamW(), VECTORS),
    MuonArena: (Muon(newton_schulz_dtype="float32"), MATRICES),
}
#: Largest accepted error of Muon: that of float32 products in ten iterations, over 1.
MUON_TOLERANCE = 1e-4
#: Largest accepted error of AdamW, over that of torch's fused AdamW. Both are mostly rounding.
ADAMW_TOLERANCE = 1.01


def base_rates(num_tensors: int) -> Rates:
    """Returns rates that differ from run to run, (N, K)."""
    lr = torch.tensor([[1e-3], [3e-3], [1e-2]], dtype=torch.float64).repeat(1, num_tensors)
    return Rates.of(lr, 0.1 * torch.ones_like(lr))


def gradients_of_step(shapes: Mapping[str, tuple[int, ...]], step: int) -> dict[str, Tensor]:
    """Returns random gradients, (N, ...) each, the same on every device."""
    generator = torch.Generator().manual_seed(step)
    return {
        name: torch.randn((NUM_RUNS, *shape), generator=generator) for name, shape in shapes.items()
    }


def new_arena(kind: type, device: torch.device, cap_cells: list[int] | None = None) -> Any:
    """Returns an arena with random weights and base rates."""
    rule, shapes = RULES[kind]
    arena = kind.empty(Layout(shapes, NUM_RUNS), device, cap_cells)  # type: ignore[attr-defined]
    for name, weights in gradients_of_step(shapes, 1000).items():
        arena.views["weights"][name].copy_(weights)
    arena.fill(rule, base_rates(len(shapes)))
    return arena


def run(arena: Any, step: Callable[[], object], num_steps: int = NUM_STEPS) -> None:
    """Takes steps with the gradients of their numbers."""
    shapes = dict(zip(arena.layout.names, arena.layout.shapes, strict=True))
    for number in range(num_steps):
        for name, gradient in gradients_of_step(shapes, number).items():
            arena.views["gradients"][name].copy_(gradient)
        step()


def exact_weights(kind: type) -> dict[str, Tensor]:
    """Returns the weights after all steps of the rule of `hpenv.optim`, in float64 on the CPU."""
    rule, shapes = RULES[kind]
    rule = Muon() if isinstance(rule, Muon) else rule  # in the dtype of the weights
    kept = {name: shape for name, shape in shapes.items() if name != "empty"}
    drawn = gradients_of_step(shapes, 1000)
    weights = {name: drawn[name].double() for name in kept}
    states = [rule.init(weight) for weight in weights.values()]
    for number in range(NUM_STEPS):
        drawn = gradients_of_step(shapes, number)
        gradients = [drawn[name].double() for name in kept]
        rule.update(list(weights.values()), gradients, states, base_rates(len(kept)), None)
    return weights


def torch_weights(device: torch.device) -> dict[str, Tensor]:
    """Returns the weights after all steps of torch's fused AdamW, in float32 on a device."""
    rule, shapes = AdamW(), VECTORS
    kept = [name for name in shapes if name != "empty"]
    drawn, rates = gradients_of_step(shapes, 1000), base_rates(len(shapes))
    weights = {name: drawn[name].to(device) for name in kept}
    parameters = [[torch.nn.Parameter(weights[name][n]) for name in kept] for n in range(NUM_RUNS)]
    groups = [
        {"params": own, "lr": lr.item(), "weight_decay": decay.item()}
        for own, lr, decay in zip(parameters, rates.lr[:, 0], rates.weight_decay[:, 0], strict=True)
    ]
    betas = rule.beta1, rule.beta2
    optimizer = torch.optim.AdamW(groups, betas=betas, eps=rule.eps, fused=True)
    for number in range(NUM_STEPS):
        drawn = gradients_of_step(shapes, number)
        for n, own in enumerate(parameters):
            for name, parameter in zip(kept, own, strict=True):
                parameter.grad = drawn[name][n].to(device)
        optimizer.step()
    return {
        name: torch.stack([own[k].detach() for own in parameters]) for k, name in enumerate(kept)
    }


def root_mean_square(weights: Mapping[str, Tensor], exact: Mapping[str, Tensor]) -> float:
    """Returns the root mean square difference of weights from exact ones."""
    errors = [(weights[name].cpu().double() - w).flatten() for name, w in exact.items()]
    return torch.cat(errors).square().mean().sqrt().item()


def same(left: Arena, right: Arena) -> bool:
    """Returns True if buffers and statistics of two arenas are equal, bit for bit."""
    pairs = [*zip(left.flat.values(), right.flat.values(), strict=True)]
    pairs += [*zip(left.statistics, right.statistics, strict=True)]
    return all(torch.equal(a, b) for a, b in pairs)


def check_error(kind: type, device: torch.device, stepper: Stepper) -> dict[str, Any]:
    """Compares the error against float64 to that of torch's fused AdamW, or to a tolerance."""
    arena, exact = new_arena(kind, device), exact_weights(kind)
    run(arena, stepper(arena))
    error = root_mean_square(arena.views["weights"], exact)
    if kind is MuonArena:
        return {"error": error, "bound": MUON_TOLERANCE, "passed": error <= MUON_TOLERANCE}
    bound = root_mean_square(torch_weights(device), exact)
    return {
        "error": error,
        "error of torch's fused AdamW": bound,
        "passed": error <= ADAMW_TOLERANCE * bound,
    }


def check_repetition(kind: type, device: torch.device, stepper: Stepper) -> dict[str, Any]:
    """Compares two repetitions, with caps that bind, bit for bit."""
    arenas = [new_arena(kind, device, [0] * len(RULES[kind][1])) for _ in range(2)]
    for arena in arenas:
        arena.rates.cap.fill_(1.0)
        run(arena, stepper(arena))
    return {"passed": same(*arenas)}


def check_neutral(kind: type, device: torch.device, stepper: Stepper) -> dict[str, Any]:
    """Compares a panel at neutral, with dormant caps, to base rates without caps, bit for bit."""
    rule, shapes = RULES[kind]
    base, panel = new_arena(kind, device), new_arena(kind, device, [0] * len(shapes))
    step = stepper(panel)

    def decide() -> None:
        multiplier = torch.ones(NUM_RUNS, len(shapes), dtype=torch.float64)
        rates = base_rates(len(shapes))
        panel.fill(rule, Rates(*(field * multiplier for field in rates)))
        step()

    run(base, stepper(base))
    run(panel, decide)
    return {"passed": same(base, panel)}


def check_gate(kind: type, device: torch.device, stepper: Stepper) -> dict[str, Any]:
    """Closes the gate of run 1 and gives it NaN: its weights and state stay, the others do not."""
    arena = new_arena(kind, device)
    step = stepper(arena)
    run(arena, step, 2)
    before = {slot: flat.clone() for slot, flat in arena.flat.items()}
    arena.rates.gate[1] = 0.0
    for view in arena.views["gradients"].values():
        view[1] = torch.nan
    step()

    stays, moves = True, True
    for slot in set(arena.flat) - {"gradients", "direction"}:
        old = arena.layout.views(before[slot])
        for name, view in arena.views[slot].items():
            stays &= torch.equal(view[1], old[name][1])
            moves &= not view.numel() or not torch.equal(view[[0, 2]], old[name][[0, 2]])
            moves &= bool(torch.isfinite(view).all())
    return {"passed": stays and moves}


def check_graph(kind: type, device: torch.device, stepper: Stepper) -> dict[str, Any]:
    """Compares a recorded step, whose rates change between replays, to launched ones, bitwise."""
    arenas = [new_arena(kind, device) for _ in range(2)]
    launch, recorded = stepper(arenas[0]), stepper(arenas[1])
    kept = {slot: flat.clone() for slot, flat in arenas[1].flat.items()}
    replay = record(recorded)
    for slot, flat in arenas[1].flat.items():  # recording has taken steps
        flat.copy_(kept[slot])
    if kind is AdamWArena:
        arenas[1].beta_products.fill_(1.0)
    for factor in (1.0, 0.5):
        for arena, step in zip(arenas, (launch, replay), strict=True):
            arena.rates.lr.mul_(factor)
            run(arena, step, 2)
    return {"passed": same(*arenas)}


def record(step: Callable[[], object], num_warm: int = 3) -> Callable[[], None]:
    """Records a step as a CUDA graph, after steps on another stream. Returns the replay."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(num_warm):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def check_all(kind: type, device: torch.device, stepper: Stepper) -> dict[str, dict[str, Any]]:
    """Returns the results of all checks that a device has: check -> numbers, and `passed`."""
    checks = {
        "error against float64": check_error,
        "a repetition gives the same bits": check_repetition,
        "a neutral panel gives the bits of base rates": check_neutral,
        "a closed gate keeps a run": check_gate,
    }
    if device.type == "cuda":
        checks["a CUDA graph reads new rates"] = check_graph
    return {name: check(kind, device, stepper) for name, check in checks.items()}
