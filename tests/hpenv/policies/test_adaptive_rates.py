"""Controllers that adapt the rate by a law: they find it from far below and far above."""

import numpy as np
import pytest

from hpenv.benchmark.environments import columns_of, make_population
from hpenv.benchmark.evaluate import evaluate_controller
from hpenv.policies.adaptive_rates import AdaLRS, Hypergradient, UpdateRatio
from hpenv.policies.controller import (
    Columns,
    begin,
    check_controller,
    restore_state,
    state_of,
)
from hpenv.policies.neutral import Neutral

JEL = "TrainLoop-JEL-v0"
TINY = {
    "batch_tokens": 128,
    "sequence_length": 32,
    "eval_tokens": 1024,
    "schedule": "none",
    "optimizer": "adamw",
    "num_steps": 150,
}


def panel_of(controller, base_lr, **changes):
    """Multipliers of the base rate in force at each decision: cell -> (K,)."""
    (row,) = evaluate_controller(controller, JEL, TINY | {"base_lr": base_lr} | changes, [7])
    assert np.isfinite(row["bpb"]) and row["divergence_reason"] is None
    return {name: np.array(values) for name, values in row["panel"].items()}


@pytest.mark.parametrize("base_lr", [1e-3 / 30, 1e-3, 1e-3 * 30])
@pytest.mark.parametrize("scope", ["group", "layer"])
def test_update_ratio_reaches_its_target_from_a_rate_thirty_times_off(base_lr, scope):
    """Within 10 decisions, up to a factor of two, whatever the base rate was."""
    controller = UpdateRatio(0.005, scope, warmdown=0.0)
    rates = base_lr
    if scope == "group":  # about the rates that have the target, times the same factor
        factor = base_lr / 1e-3
        rates = {"embedding": 4e-2, "matrix": 4e-4, "unembedding": 4e-4}
        rates = {name: rate * factor for name, rate in rates.items()}
    arguments = TINY | {"base_lr": rates}
    env = make_population(JEL, 2, controller.spec.arguments() | arguments)
    observations, _ = env.reset(seed=[1, 2])
    begin(controller, columns_of(env))
    for _ in range(10):
        observations, *_ = env.step(controller.act(observations))
    ratios = 10.0 ** (8.0 * observations[:, 1:])
    assert (np.abs(np.log2(ratios / 0.005)) < 1.0).all(), ratios


def test_the_warmdown_of_a_target_ends_near_zero():
    found = panel_of(UpdateRatio(0.005, warmdown=0.4), 1e-3)
    assert (found["lr/matrix"][-1] < 0.5 * found["lr/matrix"][len(found["lr/matrix"]) // 2]).all()


def test_hypergradient_raises_a_rate_that_is_far_too_low_and_lowers_one_that_is_far_too_high():
    low, high = (panel_of(Hypergradient(), lr, num_steps=200) for lr in (1e-5, 0.1))
    for cell in low:
        assert low[cell][-1] > 3.0, cell
    # The rows of an embedding that a batch has no token of have no gradient.
    assert high["lr/matrix"][-1] < 0.8 and high["lr/unembedding"][-1] < 0.5


def test_adalrs_raises_a_rate_that_is_far_too_low():
    assert panel_of(AdaLRS(), 3e-5, num_steps=150)["lr"][-1] > 3.0


def test_adalrs_by_hand():
    """Three windows a trial: the base rate, then three times that, which is kept or not."""
    controller = AdaLRS(factor=3.0, shrink=0.5, search=0.9)
    env = make_population(JEL, 2, controller.spec.arguments() | TINY)
    begin(controller, columns_of(env))
    positions = [controller.act(np.array([[0.0, 1.0], [0.0, 1.0]]))]
    for k in range(1, 8):  # the loss of the second run rises in the second trial
        losses = (0.9**k, 0.9 ** (k if k < 4 else 7 - k))
        positions.append(controller.act(np.array([[0.1, loss] for loss in losses])))
    found = np.exp(np.array(positions)[:, :, 0] * np.log(100.0))
    assert found[:3] == pytest.approx(1.0)
    assert found[3:6] == pytest.approx(3.0)
    assert found[6] == pytest.approx([9.0, 3.0**-0.5])
    last = np.exp(controller.act(np.array([[0.95, 1.0], [0.95, 1.0]]))[:, 0] * np.log(100.0))
    assert last == pytest.approx([3.0, 1.0])


@pytest.mark.parametrize("make", [UpdateRatio, Hypergradient, AdaLRS])
def test_a_law_is_a_controller_and_starts_at_the_base_rates(make):
    controller = make()
    check_controller(controller)
    env = make_population(JEL, 2, controller.spec.arguments() | TINY)
    observations, _ = env.reset(seed=[0, 1])
    begin(controller, columns_of(env))
    positions = controller.act(observations)
    assert positions.dtype == np.float32 and positions.shape == (2, len(env.action_names))
    assert (positions == 0).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: UpdateRatio(0.0), "target must be a number above 0; got 0.0"),
        (lambda: UpdateRatio(scope="run"), "scope must be 'group' or 'layer'"),
        (lambda: Hypergradient(interval=1), "interval must be at least 2; got 1"),
        (lambda: AdaLRS(windows=2), "windows at least 3"),
    ],
)
def test_what_is_impossible_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("kind", [UpdateRatio, Hypergradient, AdaLRS])
def test_a_law_that_continues_from_its_state_acts_as_one_that_never_stopped(kind):
    columns = Columns(2, 30, (), ("a",), ("scale",), (False,))
    observations = np.random.default_rng(0).uniform(0.1, 1.0, (30, 2, 2)).astype(np.float32)
    observations[:, :, 0] = np.linspace(0, 1, 30)[:, None]

    straight, stopped = kind(), kind()
    for each in (straight, stopped):
        begin(each, columns)
    expected = [straight.act(batch) for batch in observations]
    found = []
    for batch in observations:
        state = state_of(stopped)
        stopped = kind()
        begin(stopped, columns)
        restore_state(stopped, state)
        found.append(stopped.act(batch))
    assert np.array_equal(expected, found) and np.std(expected) > 0


def test_a_controller_without_a_state_has_none_to_restore():
    assert state_of(Neutral(1)) == {}
    restore_state(Neutral(1), {})
    with pytest.raises(ValueError, match=r"must have `set_state\(arrays\)`.*\['logs'\].*Neutral"):
        restore_state(Neutral(1), {"logs": np.zeros(1)})
