"""Small arenas of odd sizes, filled with random numbers, and float64 references of their steps."""

import math

import numpy as np
import torch

from hpenv.optim.fused.arena import AdamWArena, Statistics
from hpenv.optim.fused.layout import BLOCK, Layout
from hpenv.optim.muon import JORDAN

#: A scalar, one entry, an empty tensor, one block and a bit more than two of them.
SHAPES = {
    "scalar": (),
    "one": (1,),
    "empty": (0, 3),
    "odd": (5, 7),
    "matrix": (48, 16),
    "block": (BLOCK,),
    "long": (2 * BLOCK + 3,),
}
MATRICES = {"tall": (9, 5), "wide": (4, 11), "square": (16, 16), "other": (9, 5), "one": (1, 1)}
#: Rates of a random arena: largest value of each field.
SCALES = {
    "lr": 0.1,
    "weight_decay": 0.5,
    "beta1_complement": 0.9,
    "beta2_complement": 0.9,
    "eps": 1e-3,
    "momentum": 1.0,
    "momentum_complement": 0.9,
}


def fill_gradients(arena, step, seed=0):
    """Writes the gradients of a step, of sizes that differ from tensor to tensor."""
    generator = torch.Generator().manual_seed(1000 * seed + step)
    for k, view in enumerate(arena.views["gradients"].values()):
        view.copy_(torch.randn(view.shape, generator=generator) * 10.0 ** (k % 5 - 2))


def random_arena(kind=AdamWArena, shapes=None, num_runs=3, cap_cells=None, seed=0):
    """An arena of random weights and rates, with gates that are open and caps that are infinite."""
    shapes = shapes or (SHAPES if kind is AdamWArena else MATRICES)
    arena = kind.empty(Layout(shapes, num_runs), cap_cells=cap_cells)
    generator = torch.Generator().manual_seed(7 + seed)
    for view in arena.views["weights"].values():
        view.copy_(torch.randn(view.shape, generator=generator))
    for field, values in zip(arena.rates._fields, arena.rates, strict=True):
        if field in SCALES:
            uniform = torch.rand(values.shape, generator=generator, dtype=torch.float64)
            values.copy_(SCALES[field] * (0.1 + 0.9 * uniform))
    fill_gradients(arena, 0, seed)
    return arena


def copy_of(arena, cap_cells=None):
    """An arena with the same numbers in other buffers."""
    cells = arena.cap_cells.tolist() if cap_cells is None and arena.cap_cells is not None else None
    other = type(arena).empty(arena.layout, cap_cells=cap_cells or cells)
    for target, source in zip(buffers(other).values(), buffers(arena).values(), strict=True):
        target.copy_(source)
    return other


def buffers(arena):
    """Every tensor that a step writes or reads: name -> tensor."""
    products = {"beta_products": arena.beta_products} if isinstance(arena, AdamWArena) else {}
    rates = {f"rates/{field}": values for field, values in arena.rates._asdict().items()}
    return arena.flat | rates | arena.statistics._asdict() | products


def assert_same(left, right, but=()):
    """Asserts that two arenas are equal, bit for bit."""
    pairs = zip(buffers(left).items(), buffers(right).values(), strict=True)
    different = [n for (n, a), b in pairs if n not in but and not torch.equal(a, b)]
    assert different == []


class Reference:
    """A population in float64, stepped by formulas over one run and one tensor at a time."""

    def __init__(self, arena):
        self.layout, self.statistics = arena.layout, {}
        self.weights, self.momentum, self.second = {}, {}, {}
        for n in range(arena.layout.num_runs):
            for name, view in arena.views["weights"].items():
                self.weights[n, name] = view[n].double().numpy().copy()
                self.momentum[n, name] = np.zeros_like(self.weights[n, name])
                self.second[n, name] = np.zeros_like(self.weights[n, name])
        self.products = np.ones((2, arena.layout.num_runs, arena.layout.num_tensors))

    def step(self, arena):
        """Takes the step that the arena's gradients and rates describe."""
        gradients = {
            (n, name): view[n].double().numpy()
            for name, view in arena.views["gradients"].items()
            for n in range(self.layout.num_runs)
        }
        for n in range(self.layout.num_runs):
            for k, name in enumerate(self.layout.names):
                rates = {f: v[n, k].item() for f, v in arena.rates._asdict().items()}
                factor = self._cap_factor(arena, gradients, n, k, rates["cap"])
                before = self.weights[n, name]
                if rates["gate"]:
                    move = self._adamw if isinstance(arena, AdamWArena) else self._muon
                    self.weights[n, name] = move(n, k, gradients[n, name] * factor, rates)
                self._measure(n, k, gradients[n, name], before)

    def _cap_factor(self, arena, gradients, n, k, cap):
        if arena.cap_cells is None or math.isinf(cap):
            return 1.0
        cells = arena.cap_cells.tolist()
        members = [m for m, c in zip(self.layout.names, cells, strict=True) if c == cells[k]]
        norm = math.sqrt(sum(np.square(gradients[n, m]).sum() for m in members))
        return min(1.0, cap / max(norm, 1e-30))

    def _adamw(self, n, k, g, rates):
        name = self.layout.names[k]
        new1, new2 = rates["beta1_complement"], rates["beta2_complement"]
        self.products[:, n, k] *= 1 - new1, 1 - new2
        m = self.momentum[n, name] = (1 - new1) * self.momentum[n, name] + new1 * g
        v = self.second[n, name] = (1 - new2) * self.second[n, name] + new2 * g**2
        first, second = 1 - self.products[:, n, k]
        keep = min(1.0, max(0.0, 1 - rates["lr"] * rates["weight_decay"]))
        change = rates["lr"] * (m / first) / (np.sqrt(v / second) + rates["eps"])
        return self.weights[n, name] * keep - change

    def _muon(self, n, k, g, rates):
        name = self.layout.names[k]
        new, mu = rates["momentum_complement"], rates["momentum"]
        m = self.momentum[n, name] = (1 - new) * self.momentum[n, name] + new * g
        x = (1 - mu) * g + mu * m
        x = x / max(np.linalg.norm(x), 1e-7)
        for a, b, c in JORDAN:
            gram = x @ x.T
            x = a * x + (b * gram + c * gram @ gram) @ x
        keep = min(1.0, max(0.0, 1 - rates["lr"] * rates["weight_decay"]))
        return (
            self.weights[n, name] * keep - x * rates["lr"] * max(1, g.shape[0] / g.shape[1]) ** 0.5
        )

    def _measure(self, n, k, g, before):
        p = self.weights[n, self.layout.names[k]]
        u = p - before
        largest = np.abs(g).max() if g.size else 0.0
        sums = [np.sum(x) for x in (g * g, p * p, u * u, p * u, g * u)]
        for field, value in zip(Statistics._fields, [*sums, largest], strict=True):
            self.statistics[field, n, k] = value

    def statistics_error(self, arena):
        """Largest error of a statistic, over the product of the sizes of its two factors.

        An update is a difference of two float32 weights, so a tenth of theirs is added to its size.
        """
        errors = []
        for n, k in np.ndindex(self.layout.num_runs, self.layout.num_tensors):
            found = {f: self.statistics[f, n, k] for f in Statistics._fields}
            g, p, u = (
                math.sqrt(found[f"{name}_square"]) for name in ("gradient", "weight", "update")
            )
            u += 0.1 * p
            scales = dict(
                zip(Statistics._fields, (g * g, p * p, u * u, p * u, g * u, g), strict=True)
            )
            for field, value in found.items():
                error = abs(getattr(arena.statistics, field)[n, k].item() - value)
                errors.append(error / max(scales[field], 1e-12))
        return max(errors)

    def error(self, arena):
        """Largest error of a weight, over the larger of 1 and the weight."""
        errors = [
            np.abs(view[n].double().numpy() - self.weights[n, name])
            / np.maximum(1.0, np.abs(self.weights[n, name]))
            for name, view in arena.views["weights"].items()
            for n in range(self.layout.num_runs)
        ]
        return max(e.max() for e in errors if e.size)
