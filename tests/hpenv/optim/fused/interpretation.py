"""Runs the kernels in Triton's interpreter, on a CPU, beside the twin.

Run as a program with TRITON_INTERPRET=1, which has to be set before Triton is imported. It prints
the differences as JSON.
"""

import json

from hpenv.optim.fused.arena import AdamWArena, MuonArena
from hpenv.optim.fused.launches import FusedAdamW, FusedMuon
from hpenv.optim.fused.layout import BLOCK
from hpenv.optim.fused.twin import step_adamw, step_muon
from tests.hpenv.optim.fused.arenas import Reference, buffers, copy_of, fill_gradients, random_arena

#: Rule -> its arena, its kernels, its twin, shapes, and cells of the caps.
RULES = {
    "adamw": (
        AdamWArena,
        FusedAdamW,
        step_adamw,
        {"scalar": (), "one": (1,), "empty": (0, 3), "odd": (5, 7), "long": (BLOCK + 3,)},
        [0, 1, 1, 0, 0],
    ),
    "muon": (
        MuonArena,
        FusedMuon,
        step_muon,
        {"tall": (9, 5), "wide": (4, 11), "one": (1, 1)},
        [0, 1, 0],
    ),
}
NUM_STEPS = 2


def capped_arena(kind, shapes, cells):
    """An arena with one closed gate, and caps that bind, do not bind and are dormant.

    AdamW has no eps in run 0, which unused entries must survive.
    """
    arena = random_arena(kind, shapes, 2, cells)
    if kind is AdamWArena:
        arena.rates.eps[0] = 0.0
    arena.rates.gate[1, 0] = 0.0
    arena.rates.cap[0, :] = 0.5
    arena.rates.cap[1, 1] = 1e6
    return arena


def largest_unused(layout, flat):
    """Largest entry of a buffer that belongs to no tensor. NaN counts as infinite."""
    rest = flat.clone()
    for view in layout.views(rest).values():
        view.zero_()
    return rest.nan_to_num(nan=float("inf")).abs().max().item()


def difference(left, right):
    """Largest difference over the larger of 1 and the value, of each buffer."""
    pairs = zip(buffers(left).items(), buffers(right).values(), strict=True)
    found = {name: ((a - b).abs() / b.abs().clamp_min(1.0)) for (name, a), b in pairs}
    return {name: d.nan_to_num(nan=0.0).max().item() for name, d in found.items()}


def facts(rule):
    """Differences between kernels and twin, kernels and a repetition, and errors of both."""
    kind, fused, step, shapes, cells = RULES[rule]
    found = {}
    for with_caps in (False, True):
        arena = capped_arena(kind, shapes, cells if with_caps else None)
        twin, again, reference = copy_of(arena), copy_of(arena), Reference(arena)
        launches, repeated = fused(arena), fused(again)
        for t in range(NUM_STEPS):
            for each in (arena, twin, again):
                fill_gradients(each, t)
            reference.step(arena)
            launches.step()
            repeated.step()
            step(twin)
        found["with caps" if with_caps else "without caps"] = {
            "twin": difference(arena, twin),
            "again": difference(arena, again),
            "unused": sum(largest_unused(arena.layout, flat) for flat in arena.flat.values()),
            "error": reference.error(arena),
            "statistics_error": reference.statistics_error(arena),
        }
    return found


if __name__ == "__main__":
    print(json.dumps({rule: facts(rule) for rule in RULES}))
