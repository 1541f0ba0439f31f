"""The control law of AdaptiveRL on planted losses, without a model: drift, and qualitative claims.

The losses do not answer to the dials. What is measured is the law alone: how far it drifts where
nothing happens, and which way it turns after a planted event (AdaptiveRL, section 7).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from hpenv.arrays import FloatArray
from hpenv.benchmark.results import Rows
from hpenv.control.channels import CHANNELS
from hpenv.control.moves import largest_moves, move_positions
from hpenv.policies.control_law import FEATURES, AdaptiveRL
from hpenv.policies.controller import Columns
from hpenv.telemetry.estimators import Estimates, Estimators, estimation_of

#: Steps of a decision.
INTERVAL = 10
#: Fraction of a stream's decisions after its event over which a dial's change is measured.
WINDOW = 0.1
#: Standard deviation of a step's loss. That of batches of 128 tokens on `nano` is about as large.
NOISE = 0.15


def _falling(steps: FloatArray, event: float) -> FloatArray:
    return 2.0 + 2.0 * np.exp(-steps / (0.4 * event))


def _stationary(steps: FloatArray, event: float) -> FloatArray:
    return np.full_like(steps, 3.0)


def _plateau(steps: FloatArray, event: float) -> FloatArray:
    return np.where(steps < event, 6.0 - 3.0 * steps / event, 3.0)


def _regression(steps: FloatArray, event: float) -> FloatArray:
    return _falling(steps, event) + 3.0 * np.maximum(steps - event, 0.0) / event


def _shift(steps: FloatArray, event: float) -> FloatArray:
    after = np.maximum(steps - event, 0.0) / event
    return _falling(steps, event) + np.where(steps >= event, 1.5 * np.exp(-after / 0.13), 0.0)


#: Name -> mean loss as a function of the steps and the event's step. The first has no event.
STREAMS: dict[str, Callable[[FloatArray, float], FloatArray]] = {
    "stationary": _stationary,
    "improvement": _falling,
    "plateau": _plateau,
    "regression": _regression,
    "shift": _shift,
}


def play(
    controller: AdaptiveRL, losses: FloatArray
) -> tuple[dict[str, FloatArray], dict[str, FloatArray]]:
    """Returns the dials and the estimates of the law on given losses.

    Args:
        controller: the law. Its interval divides the number of steps.
        losses: (S, N).

    Returns:
        Channel -> values, and estimate -> numbers at the decisions, (K, N) each.
    """
    settings = estimation_of(controller.spec.estimators or "stepwise")
    names = [bank[0] for bank in controller.spec.channels or ()]
    dials = [CHANNELS[name] for name in names]
    largest = largest_moves(names, controller.spec.max_moves or {})
    one_sided = np.array([dial.one_sided for dial in dials])
    interval, count = int(controller.spec.interval or 1), losses.shape[1]
    number = len(losses) // interval
    columns = (*FEATURES[:-1], *(f"position/{name}" for name in names))
    kinds, immediate = tuple(dial.kind for dial in dials), (False,) * len(names)
    controller.reset(Columns(count, number, columns, tuple(names), kinds, immediate))

    state, positions = Estimators.empty(count), np.zeros((count, len(names)))
    values: dict[str, list[FloatArray]] = {name: [] for name in names}
    seen: dict[str, list[FloatArray]] = {name: [] for name in Estimates._fields}
    for decision in range(number):
        state = state.with_losses(settings, losses[decision * interval : (decision + 1) * interval])
        found = state.estimates(settings)
        progress = np.full(count, (decision + 1) / (number + 1))
        observed = np.stack([progress, found.loss_trend, found.reward_trend, found.plateau], axis=1)
        moves = controller.act(np.concatenate([observed, positions], 1).astype(np.float32))
        positions = move_positions(positions, moves.astype(np.float64), largest, one_sided)
        for column, (name, dial) in enumerate(zip(names, dials, strict=True)):
            values[name].append(dial.values(positions[:, column]))
        for name in Estimates._fields:
            seen[name].append(getattr(found, name))
    return (
        {name: np.stack(each) for name, each in values.items()},
        {name: np.stack(each) for name, each in seen.items()},
    )


def measure_drift(num_runs: int, num_decisions: int, own_gains: Mapping[str, Any]) -> Rows:
    """Plays the law with the published gains, without damping, and with ours, on every stream.

    The event is in the middle of a stream.

    Returns:
        A row per stream and gains: `drift`, the mean change of log rate per decision over the
        second half, `expected_drift`, that of the formula without caps and damping at the trends
        that were seen, and for every channel its `before` (at the event), `after` (a WINDOW
        later), `lowest` and `highest` in between (means over runs).
    """
    steps = np.arange(num_decisions * INTERVAL, dtype=np.float64)
    noise = np.random.default_rng(0).normal(0.0, NOISE, (len(steps), num_runs))
    laws = {"published": {}, "undamped": {"damping": 1.0}, "ours": dict(own_gains)}
    rows = []
    for stream, mean in STREAMS.items():
        for gains, changes in laws.items():
            controller = AdaptiveRL(law=changes or None)
            values, seen = play(controller, mean(steps, len(steps) / 2)[:, None] + noise)
            rows.append(
                {"stream": stream, "gains": gains}
                | _drift(controller, values, seen)
                | {name: _around_event(each) for name, each in values.items()}
            )
    return rows, {"noise": NOISE, "num_runs": num_runs}


def _drift(
    controller: AdaptiveRL, values: Mapping[str, FloatArray], seen: Mapping[str, FloatArray]
) -> dict[str, float]:
    law, half = controller.arguments()["law"], len(values["lr"]) // 2
    logs = np.log(values["lr"][half:])
    pushed = law["rate_reward"] * seen["reward_trend"][half:]
    pulled = law["rate_loss"] * np.maximum(seen["loss_trend"][half:], 0.0)
    return {
        "drift": float((logs[-1] - logs[0]).mean() / (len(logs) - 1)),
        "expected_drift": float((pushed - pulled).mean()),
    }


def _around_event(values: FloatArray) -> dict[str, float]:
    """Returns the mean over runs of a dial at the event and after it, and its ends in between."""
    mean, event = values.mean(1), len(values) // 2
    between = mean[event : event + round(WINDOW * len(values)) + 1]
    return {
        "before": float(mean[event - 1]),
        "after": float(between[-1]),
        "lowest": float(between.min()),
        "highest": float(between.max()),
    }
