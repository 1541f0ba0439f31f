"""The twin against float64 formulas, the rules of `hpenv.optim`, and numbers by hand."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hpenv.optim.adamw import AdamW
from hpenv.optim.fused.arena import AdamWArena, MuonArena, Statistics, fill_caps
from hpenv.optim.fused.layout import Layout
from hpenv.optim.fused.twin import step_adamw, step_muon
from hpenv.optim.muon import Muon
from hpenv.optim.rules import Rates
from tests.hpenv.optim.fused.arenas import (
    MATRICES,
    SHAPES,
    Reference,
    assert_same,
    buffers,
    copy_of,
    fill_gradients,
    random_arena,
)

STEPS = {AdamWArena: step_adamw, MuonArena: step_muon}
RULES = {AdamWArena: AdamW(0.8, 0.95, 1e-10), MuonArena: Muon()}
KINDS = pytest.mark.parametrize("kind", STEPS, ids=lambda kind: kind.__name__)


@KINDS
@pytest.mark.parametrize("with_caps", [False, True])
def test_every_size_follows_the_float64_formulas(kind, with_caps):
    cells = [k % 2 for k in range(len(SHAPES if kind is AdamWArena else MATRICES))]
    arena = random_arena(kind, cap_cells=cells if with_caps else None)
    arena.rates.gate[1, 3] = 0.0
    arena.rates.cap[0], arena.rates.cap[1, 2:] = 0.5, 1e3
    reference = Reference(arena)
    for step in range(4):
        fill_gradients(arena, step)
        reference.step(arena)
        STEPS[kind](arena)
        assert reference.error(arena) < 2e-6
        assert reference.statistics_error(arena) < 1e-5
    if kind is AdamWArena:
        assert arena.beta_products.numpy() == pytest.approx(reference.products)


@KINDS
def test_the_arithmetic_is_that_of_the_rule(kind):
    """With rates that move, and caps that are infinite. Bit for bit."""
    arena = random_arena(kind, cap_cells=[0] * len(SHAPES if kind is AdamWArena else MATRICES))
    rule, step = RULES[kind], STEPS[kind]
    weights = {n: w.clone() for n, w in arena.views["weights"].items()}
    names = [name for name, w in weights.items() if w.numel()]  # the rule knows no empty tensor
    states = [rule.init(weights[name]) for name in names]
    present = [arena.layout.names.index(name) for name in names]
    for t in range(4):
        fill_gradients(arena, t)
        generator = torch.Generator().manual_seed(t)
        shape = len(Rates._fields), *arena.rates.lr.shape
        rates = Rates(*(0.1 + torch.rand(shape, generator=generator, dtype=torch.float64)))
        rates = rates._replace(lr=0.01 * rates.lr)

        arena.fill(rule, rates)
        step(arena)
        rule.update(
            [weights[name] for name in names],
            [arena.views["gradients"][name].clone() for name in names],
            states,
            Rates(*(field[:, present] for field in rates)),
            None,
        )
    for name, state in zip(names, states, strict=True):
        assert torch.equal(arena.views["weights"][name], weights[name]), name
        assert torch.equal(arena.views["momentum"][name], state["momentum"]), name


@KINDS
def test_multipliers_of_one_change_no_bit(kind):
    """A panel at neutral gives what base rates give."""
    rule = RULES[kind]
    neutral, base = random_arena(kind), random_arena(kind)
    lr = torch.full_like(base.rates.lr, 3e-3)
    neutral.fill(rule, Rates.of(lr, 0.1 * torch.ones_like(lr)))
    base.rates.lr.fill_(3e-3)
    base.rates.weight_decay.fill_(0.1)
    if kind is AdamWArena:
        base.rates.beta1_complement.fill_(1.0 - rule.beta1)
        base.rates.beta2_complement.fill_(1.0 - rule.beta2)
        base.rates.eps.fill_(rule.eps)
    else:
        base.rates.momentum.fill_(rule.momentum)
        base.rates.momentum_complement.fill_(1.0 - rule.momentum)
    assert_same(neutral, base)
    for arena in (neutral, base):
        STEPS[kind](arena)
    assert_same(neutral, base)


def test_statistics_by_hand():
    """lr 1, beta1 = beta2 = 0 and eps 0: an update is minus the sign of the gradient.

    Run 1 halves its weights as well.
    """
    arena = AdamWArena.empty(Layout({"w": (3,)}, 2))
    arena.views["weights"]["w"].copy_(torch.tensor([[1.0, 2.0, -4.0], [1.0, 2.0, -4.0]]))
    arena.views["gradients"]["w"].copy_(torch.tensor([[2.0, -3.0, 0.5]]).expand(2, 3))
    for field in (arena.rates.lr, arena.rates.beta1_complement, arena.rates.beta2_complement):
        field.fill_(1.0)
    arena.rates.weight_decay[1] = 0.5
    step_adamw(arena)
    assert arena.views["weights"]["w"].tolist() == [[0.0, 3.0, -5.0], [-0.5, 2.0, -3.0]]
    # u = (-1, 1, -1) and (-1.5, 0, 1).
    by_hand = {
        "gradient_square": [4 + 9 + 0.25] * 2,
        "weight_square": [0 + 9 + 25, 0.25 + 4 + 9],
        "update_square": [3.0, 2.25 + 0 + 1],
        "weight_update": [0 + 3 + 5, 0.75 + 0 - 3],
        "gradient_update": [-2 - 3 - 0.5, -3 + 0 + 0.5],
        "gradient_max": [3.0, 3.0],
    }
    assert {f: v[:, 0].tolist() for f, v in arena.statistics._asdict().items()} == by_hand


@KINDS
def test_a_closed_gate_leaves_a_tensor_as_it_is_and_keeps_nan_out(kind):
    name = "matrix" if kind is AdamWArena else "square"
    arena, other = random_arena(kind), random_arena(kind)
    k = arena.layout.names.index(name)
    STEPS[kind](arena)
    STEPS[kind](other)
    before = copy_of(arena)
    arena.rates.gate[1, k] = 0.0
    arena.views["gradients"][name][1, 0, 0] = torch.nan
    STEPS[kind](arena)
    STEPS[kind](other)
    state = [slot for slot in arena.flat if slot not in ("gradients", "direction")]
    for slot in state:
        for tensor in arena.layout.names:
            view, old = arena.views[slot][tensor], before.views[slot][tensor]
            rest = other.views[slot][tensor]
            for n in range(3):
                closed = (n, tensor) == (1, name)
                assert torch.equal(view[n], old[n] if closed else rest[n]), (slot, tensor, n)
    if kind is AdamWArena:
        assert torch.equal(arena.beta_products[:, 1, k], before.beta_products[:, 1, k])
    found = {field: values[1, k].item() for field, values in arena.statistics._asdict().items()}
    squares = arena.views["weights"][name][1].double().square().sum().item()
    assert found["weight_square"] == pytest.approx(squares)
    assert found["update_square"] == found["weight_update"] == 0.0
    assert math.isnan(found["gradient_square"]) and math.isnan(found["gradient_max"])


def test_a_cap_bounds_the_norm_of_its_cell():
    """Cell 0 has (3, 0) and (4,): norm 5, and cap 1. Cell 1 has (0.5,), below its cap."""
    arena = AdamWArena.empty(Layout({"a": (2,), "b": (1,), "c": (1,)}, 1), cap_cells=[0, 0, 1])
    for name, values in {"a": [3.0, 0.0], "b": [4.0], "c": [0.5]}.items():
        arena.views["gradients"][name].copy_(torch.tensor([values]))
    arena.rates.beta1_complement.fill_(1.0)
    arena.rates.cap.fill_(1.0)
    step_adamw(arena)
    momentum = {name: view[0].tolist() for name, view in arena.views["momentum"].items()}
    assert momentum["a"] == pytest.approx([0.6, 0.0]) and momentum["b"] == pytest.approx([0.8])
    assert momentum["c"] == [0.5]
    assert arena.statistics.gradient_square.tolist() == [[9.0, 16.0, 0.25]], "before the cap"


@KINDS
def test_dormant_caps_change_no_bit(kind):
    plain = random_arena(kind)
    capped = copy_of(plain, cap_cells=[0] * plain.layout.num_tensors)
    fill_caps(capped.rates.cap, torch.full_like(capped.rates.cap, 10_000.0), neutral=10_000.0)
    for arena in (plain, capped):
        arena.flat["gradients"].mul_(1e9)  # far above the cap, were it not dormant
        STEPS[kind](arena)
    assert_same(plain, capped)


@KINDS
def test_a_repeated_step_gives_the_same_bits(kind):
    first = random_arena(kind, cap_cells=[0] * len(SHAPES if kind is AdamWArena else MATRICES))
    first.rates.cap.fill_(1.0)
    second = copy_of(first)
    for arena in (first, second):
        for step in range(2):
            fill_gradients(arena, step)
            STEPS[kind](arena)
    assert_same(first, second)


class Operations(TorchDispatchMode):
    """Names of the operations of torch that run."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.names.add(operation.name())
        return operation(*args, **(kwargs or {}))


@KINDS
def test_no_number_travels_from_the_device(kind):
    arena = random_arena(kind, cap_cells=[0] * len(SHAPES if kind is AdamWArena else MATRICES))
    with Operations() as operations:
        STEPS[kind](arena)
    waits = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal"}
    assert operations.names and not operations.names & waits


@KINDS
def test_a_step_writes_nothing_but_the_state_and_the_statistics(kind):
    """Every buffer keeps its place. Rates, gradients and unused entries keep their values."""
    arena = random_arena(kind)
    before, places = copy_of(arena), {n: t.data_ptr() for n, t in buffers(arena).items()}
    STEPS[kind](arena)
    written = {*arena.flat, "beta_products", *Statistics._fields} - {"gradients"}
    assert_same(arena, before, but=written)
    assert places == {n: t.data_ptr() for n, t in buffers(arena).items()}
    for slot, flat in arena.flat.items():
        used = torch.zeros_like(flat)
        for view in arena.layout.views(used).values():
            view.fill_(1.0)
        assert not flat[used == 0].any(), slot


def test_muon_refuses_what_is_no_matrix():
    with pytest.raises(ValueError, match=r"must be matrices; got 'b' of shape \(3,\)"):
        MuonArena.empty(Layout({"a": (2, 2), "b": (3,)}, 1))


def test_cap_cells_of_another_length_are_refused():
    with pytest.raises(ValueError, match="one cell for each of the 7 tensors; got 2"):
        AdamWArena.empty(Layout(SHAPES, 1), cap_cells=[0, 1])
