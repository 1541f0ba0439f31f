"""One sampled action of every channel of post-training, traced to the exact change of the knobs."""

import math
from functools import cache

import numpy as np
import pytest
import torch

from hpenv.plant.seeds import REFRESH, step_generator
from hpenv.posttraining import intervention as intervention_module
from hpenv.posttraining import plant as plant_module
from hpenv.posttraining.grading.grader import Submission
from tests.hpenv.posttraining.reference_trace import (
    CLIP,
    DECAY,
    HEAT,
    KL_WEIGHT,
    LR,
    VALUES,
    G,
    N,
    P,
    Trace,
)
from tests.tiny_student import CHANNELS, EVERY_PAIR, advance, make, recorded, verdict

FIRST_SEED = 140  # of the rows
WARM_STEPS = 1  # so that there are moments, and a distance to the reference
#: Channels that are felt only where something is projected.
NEEDS_PROJECTION = ("magnitude_preservation", "direction_refresh")


def sampled(name, generator, shape):
    """Positions as a policy would sample them.

    Where they must move something, they are on the side where they do.
    """
    if (
        name == "direction_refresh"
    ):  # a chance a little above and a little below what the run will draw
        drawn = [
            torch.rand((), generator=step_generator(FIRST_SEED + row, WARM_STEPS, REFRESH)).item()
            for row in range(N)
        ]
        return np.array(
            [[0.1 + 0.9 * (u + shift)] for u, shift in zip(drawn, (0.05, -0.05), strict=True)]
        )
    if not CHANNELS[name].one_sided:
        return generator.uniform(-0.5, 0.5, shape)
    positions = generator.uniform(0.4, 0.9, shape)
    if shape[1] > 1:
        positions[0, 0] = -0.5  # and one cell at neutral
    return positions


@cache
def warm(pairs, changes):
    """A plant after WARM_STEPS updates, its student, and its snapshot.

    Every trace begins from the snapshot.
    """
    arguments = {
        "base_lr": LR,
        "weight_decay": DECAY,
        "kl_weight": KL_WEIGHT,
        "max_gradient_norm": CLIP,
    }
    arguments["temperature"] = HEAT
    plant = make(N, pairs, **arguments | dict(changes))
    plant.set_measured_groups(())
    plant.reset(list(range(FIRST_SEED, FIRST_SEED + N)))
    if (
        dict(changes).get("route") or dict(changes).get("rule") == "drift"
    ):  # a past of quarantine and components
        plant.panel.positions[:] = 1.0
    advance(plant, WARM_STEPS)
    return plant, plant.student, plant.snapshot()


def traces(pairs, at=None, **changes):
    """One update with sampled positions, or with those given, after WARM_STEPS updates at neutral.

    Returns one Trace per run.
    """
    plant, plant.student, past = warm(pairs, tuple(sorted(changes.items())))
    plant.restore(past)
    generator, columns = np.random.default_rng(3), []
    for (name, _), bank in plant.panel.banks.items():
        shape = (N, len(bank.cells))
        columns.append(
            np.full(shape, at[name]) if at and name in at else sampled(name, generator, shape)
        )
    plant.panel.positions[:] = np.concatenate(columns, 1)
    values = {
        name: VALUES_OF[name](plant.panel.positions[:, bank.columns])[:, bank.index]
        for (name, _), bank in plant.panel.banks.items()
    }
    played = recorded(plant)
    before = plant.snapshot().tensors
    window = advance(plant, 1)
    after = plant.snapshot().tensors
    assert plant.steps.tolist() == [WARM_STEPS + 1] * N
    rollouts, paid = played[0], []
    for texts, seed in zip(rollouts.texts, plant.seeds, strict=True):
        tasks = [task for task in plant._curriculum.tasks_at(seed, WARM_STEPS) for _ in range(G)]
        verdicts = [
            verdict(Submission(task, text)) for task, text in zip(tasks, texts, strict=True)
        ]
        paid.append([0.5 * v.compiles + 3.0 * (v.correct or v.used_loophole) for v in verdicts])
    return [
        Trace(
            plant,
            row,
            int(plant.seeds[row]),
            WARM_STEPS,
            {name: table[row] for name, table in values.items()},
            rollouts.prompts[row],
            [
                numbers[kept].tolist()
                for numbers, kept in zip(rollouts.tokens[row], rollouts.mask[row], strict=True)
            ],
            torch.tensor(paid[row], dtype=torch.float64).view(P, G),
            {name: tensor[row] for name, tensor in before.items()},
            {name: tensor[row] for name, tensor in after.items()},
            window["layer_gradient_norm"][row],
        )
        for row in range(N)
    ]


VALUES_OF = {name: np.vectorize(formula) for name, formula in VALUES.items()}


def of_channel(name, scope):
    """What a plant has for a channel to be felt, and where the companion stands."""
    if name in NEEDS_PROJECTION:
        return ((name, scope), ("projection_strength", "run")), {"projection_strength": 1.0}
    return ((name, scope),), None


EVERY_CHANNEL = pytest.mark.parametrize(
    ("name", "scope"), [(n, CHANNELS[n].scopes[-1]) for n in CHANNELS]
)


def test_every_channel_has_a_formula():
    assert VALUES.keys() == CHANNELS.keys()


@pytest.mark.parametrize(("name", "scope"), EVERY_PAIR)
def test_a_sampled_action_arrives_at_the_knobs(name, scope):
    for trace in traces(*of_channel(name, scope)):
        trace.check()


STRENGTH = (("projection_strength", "tensor"), ("magnitude_preservation", "run"))


@pytest.mark.parametrize(
    "changes",
    [
        {"rule": "two_sided"},
        {"rule": "reverse"},
        {"rule": "drift"},
        {"target": "update"},
        {"target": "update", "rule": "drift"},
        {"route": True},
        {"route": True, "rule": "two_sided"},
        {"direction_method": "svd", "num_axes": 3, "noise_floor": 0.25},
        {"direction": "random"},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_every_rule_and_target_arrives_at_the_knobs(changes):
    channels = STRENGTH[:1] if changes.get("route") else STRENGTH
    for trace in traces(channels, **changes):
        trace.check()


@EVERY_CHANNEL
def test_the_trace_of_another_value_fails(name, scope):
    """The check can fail: had the action been another, the state after would be another.

    Two-sided where something is projected: along the direction there may be nothing that one side
    would take out.
    """
    is_projected = name in ("projection_strength", *NEEDS_PROJECTION)
    for trace in traces(
        *of_channel(name, scope), **({"rule": "two_sided"} if is_projected else {})
    ):
        value = trace.values[name]
        trace.values[name] = {"direction_refresh": np.full_like(value, trace.row)}.get(
            name, 0.7 * value
        )
        with pytest.raises(AssertionError):
            trace.check()


# Faults on purpose: a gradient that is accumulated twice


def doubled_leaf(monkeypatch):
    """The gradients of the last layer's knobs arrive doubled."""
    original = torch.autograd.grad

    def grad(outputs, inputs, *more, **keywords):
        result = original(outputs, inputs, *more, **keywords)
        return tuple(g * 2 if k >= len(result) // 2 else g for k, g in enumerate(result))

    monkeypatch.setattr(plant_module.torch.autograd, "grad", grad)


def doubled_on_the_way(monkeypatch):
    """The gradients are doubled between their measurement and the optimizer."""
    original = intervention_module.project

    def project(*arguments):
        kept, removed = original(*arguments)
        return {name: g * 2 for name, g in kept.items()}, removed

    monkeypatch.setattr(intervention_module, "project", project)


FAULTS = {doubled_leaf: "norm of a layer's gradient", doubled_on_the_way: "first moment: off by"}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
@EVERY_CHANNEL
def test_a_gradient_that_is_accumulated_twice_breaks_the_trace(name, scope, fault, monkeypatch):
    fault(monkeypatch)
    broken = traces(*of_channel(name, scope))
    monkeypatch.undo()
    for trace in broken:
        with pytest.raises(AssertionError, match=FAULTS[fault]):
            trace.check()


def test_what_is_clipped_is_the_whole_gradient_before_it_is_projected():
    """One run of the traces is clipped and one is not, so that both ways have been taken."""
    norms = [math.sqrt((trace.layer_norms**2).sum()) for trace in traces((("lr", "run"),))]
    assert min(norms) < CLIP < max(norms)
