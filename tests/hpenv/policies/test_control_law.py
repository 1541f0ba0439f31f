"""The control law: the paper's formulas by hand, its bounds and reflexes, and the controller."""

import math

import numpy as np
import pytest

from hpenv.benchmark.environments import columns_of, make_population
from hpenv.benchmark.evaluate import evaluate_controller
from hpenv.control.channels import CHANNELS
from hpenv.policies.control_law import (
    AdaptiveRL,
    Law,
    logit,
    move_momentum_logit,
    move_noise,
    move_rate,
    next_gain,
)
from hpenv.policies.controller import begin, check_controller
from hpenv.policies.store import load_policy, save_policy

ADAPTIVE, JEL = "TrainLoop-Adaptive-v0", "TrainLoop-JEL-v0"
TINY = {
    "data": "synthetic",
    "batch_tokens": 64,
    "sequence_length": 32,
    "eval_tokens": 256,
    "num_steps": 60,
}
EXTREMES = np.array([-1.0, -1e-300, 0.0, 1e-300, 0.3, 1.0])


def one(*values):
    return np.array(values, dtype=np.float64)


# The formulas of section 2, by hand


@pytest.mark.parametrize(
    ("loss", "reward", "change"),
    [
        (0.5, -0.5, 0.04 * -0.5 - 0.06 * 0.5),
        (-0.5, 0.5, 0.04 * 0.5),
        (1.0, 1.0, 0.04 - 0.06),
        (0.0, 0.0, 0.0),
    ],
)
def test_the_laws_of_rate_and_momentum_by_hand(loss, reward, change):
    law = Law(rate_reward=0.04, rate_loss=0.06, momentum_reward=0.02, momentum_loss=0.03)
    rate = move_rate(one(0.7), one(loss), one(reward), law)
    momentum = move_momentum_logit(one(2.5), one(loss), one(reward), law)
    assert rate[0] == pytest.approx(0.7 + change)
    assert momentum[0] == pytest.approx(2.5 + change / 2)


@pytest.mark.parametrize(
    ("plateau", "reward", "change"),
    [(0.5, 0.5, 0.5 * 0.1 - 0.5 * 0.04), (0.5, -0.5, 0.05), (0.0, 1.0, -0.04), (1.0, 0.0, 0.1)],
)
def test_the_law_of_the_noise_by_hand(plateau, reward, change):
    law = Law(noise_plateau=0.1, noise_reward=0.04)
    noise = move_noise(one(math.log(0.05)), one(plateau), one(reward), law)
    assert noise[0] == pytest.approx(math.log(0.05) + change)


def test_a_decision_changes_the_rate_by_its_caps_at_most():
    law = Law(rate_reward=5.0, rate_loss=5.0)
    moved = move_rate(one(0.0, 0.0), one(-1.0, 1.0), one(1.0, -1.0), law)
    assert np.exp(moved) == pytest.approx([1.2, 0.9])
    tight = move_rate(one(0.0), one(-1.0), one(1.0), Law(rate_reward=5.0, rate_caps=(0.95, 1.05)))
    assert np.exp(tight) == pytest.approx([1.05])


def test_bounds_hold_from_anywhere_and_for_any_input():
    generator, law = np.random.default_rng(0), Law(rate_bounds=(0.5, 3.0))
    for _ in range(500):
        trends = generator.choice(EXTREMES, (2, 20))
        plateau = np.abs(generator.choice(EXTREMES, 20))
        start = generator.choice([-1e300, -5.0, -1e-300, 0.0, 0.4, 7.0, 1e300], 20)
        for moved, (low, high) in (
            (np.exp(move_rate(start, *trends, law)), law.rate_bounds),
            (1 / (1 + np.exp(-move_momentum_logit(start, *trends, law))), law.momentum_bounds),
            (np.exp(move_noise(start, plateau, trends[1], law)), law.noise_bounds),
        ):
            assert np.isfinite(moved).all()
            assert moved.min() >= low * (1 - 1e-12) and moved.max() <= high * (1 + 1e-12)


def test_long_sequences_of_any_trends_stay_within_bounds():
    generator, law = np.random.default_rng(1), Law()
    rate, momentum = np.zeros(50), np.full(50, logit(0.9))
    noise = np.full(50, math.log(0.01))
    drift = generator.uniform(-1, 1, 50)
    for _ in range(500):
        trends = np.clip(drift + generator.normal(0, 1, (2, 50)), -1, 1)
        before = rate
        rate = move_rate(rate, *trends, law)
        momentum = move_momentum_logit(momentum, *trends, law)
        noise = move_noise(noise, generator.random(50), trends[1], law)
        assert np.exp(rate - before).max() <= 1.2 + 1e-12
        assert np.exp(rate - before).min() >= 0.9 - 1e-12
    for values, bounds in ((np.exp(rate), law.rate_bounds), (np.exp(noise), law.noise_bounds)):
        assert (values >= bounds[0] - 1e-12).all() and (values <= bounds[1] + 1e-9).all()


def test_the_reflexes_are_monotone():
    """Section 3: a better reward raises the rate and lowers the noise, a worse loss cools both."""
    law, grid = Law(), np.linspace(-1, 1, 41)
    zeros = np.zeros_like(grid)
    middle, noise = zeros + logit(0.93), zeros + math.log(0.05)
    assert (np.diff(move_rate(zeros, zeros, grid, law)) > 0).all()
    assert (np.diff(move_momentum_logit(middle, zeros, grid, law)) > 0).all()
    assert (np.diff(move_rate(zeros, grid, zeros, law)) <= 0).all()
    assert (np.diff(move_momentum_logit(middle, grid, zeros, law)) <= 0).all()
    worse = grid > 0
    assert (move_rate(zeros, grid, zeros, law)[worse] < 0).all()
    assert (move_momentum_logit(middle, grid, zeros, law)[worse] < logit(0.93)).all()
    assert (move_rate(zeros, grid, zeros, law)[~worse] == 0).all()
    assert (np.diff(move_noise(noise, zeros, grid, law)) <= 0).all()
    assert (move_noise(noise, zeros, grid, law)[worse] < math.log(0.05)).all()
    assert (np.diff(move_noise(noise, (grid + 1) / 2, zeros, law)) > 0).all()


def test_damping_by_hand():
    law = Law(damping=0.5, recovery=1.5, least_gain=0.2)
    gain, signs = (
        np.ones(4),
        np.array([[1, 1, 1, 0], [-1, 1, 0, 0], [1, 1, -1, 1], [-1, -1, -1, 1]]),
    )
    previous, found = np.zeros(4), []
    for sign in signs.astype(float):
        gain = next_gain(gain, sign, previous, law)
        previous = np.where(sign == 0, previous, sign)
        found.append(gain)
    assert np.array(found) == pytest.approx(
        np.array([[1, 1, 1, 1], [0.5, 1, 1, 1], [0.25, 1, 0.5, 1], [0.2, 0.5, 0.75, 1]])
    )
    for _ in range(10):
        gain = next_gain(gain, np.ones(4), np.ones(4), law)
    assert gain.tolist() == [1.0] * 4


# The controller


def observations_of(law_inputs, positions):
    """Rows of progress, loss trend, reward trend, plateau, and positions."""
    return np.array([[*inputs, *positions] for inputs in law_inputs], dtype=np.float32)


def test_the_moves_take_every_dial_where_the_law_says():
    law = Law(damping=1.0)
    controller = AdaptiveRL(law)
    positions = [CHANNELS["lr"].position(2.0), CHANNELS["momentum"].position(1.5)]
    positions.append(CHANNELS["exploration"].position(0.05))
    inputs = [[0.5, 0.4, -0.4, 0.9], [0.5, -0.4, 0.4, 0.1], [0.5, 0.0, 0.0, 0.0]]
    moves = controller.act(observations_of(inputs, positions))
    assert moves.dtype == np.float32 and np.abs(moves).max() <= 1.0
    largest = np.array(list(controller.spec.max_moves.values()))  # (A, 2)
    change = np.where(moves < 0, largest[:, 0], largest[:, 1]) * moves
    for row, (_, loss, reward, plateau) in enumerate(inputs):
        values = [
            CHANNELS[name].values(np.array([position + change[row, k]]))[0]
            for k, (name, position) in enumerate(
                zip(("lr", "momentum", "exploration"), positions, strict=True)
            )
        ]
        trends = one(loss), one(reward)
        base = logit(0.9)
        expected = [
            np.exp(move_rate(one(math.log(2.0)), *trends, law)[0]),
            np.exp(move_momentum_logit(one(base + math.log(1.5)), *trends, law)[0] - base),
            np.exp(move_noise(one(math.log(0.05)), one(plateau), trends[1], law)[0]),
        ]
        assert values == pytest.approx(expected, rel=1e-5), row


def test_the_law_writes_in_the_env_what_its_formulas_say():
    """Recomputed from the trends of every decision, in float64 and without the controller."""
    controller = AdaptiveRL({"damping": 1.0})
    env = make_population(ADAPTIVE, 2, controller.spec.arguments() | TINY)
    observations, _ = env.reset(seed=[1, 2])
    begin(controller, columns_of(env))
    law = Law(damping=1.0)
    rate, momentum, noise = np.zeros(2), np.full(2, logit(0.9)), np.full(2, math.log(0.01))
    names = list(env.observation_names)
    moved = 0
    for _ in range(6):
        loss, reward, plateau = (
            observations[:, names.index(name)].astype(np.float64)
            for name in ("loss_trend", "reward_trend", "plateau")
        )
        rate = move_rate(rate, loss, reward, law)
        momentum = move_momentum_logit(momentum, loss, reward, law)
        noise = move_noise(noise, plateau, reward, law)
        observations, *_, infos = env.step(controller.act(observations))
        assert infos["panel/lr"] == pytest.approx(np.exp(rate), rel=1e-5)
        assert infos["panel/momentum"] == pytest.approx(np.exp(momentum - logit(0.9)), rel=1e-5)
        shown = np.maximum(infos["panel/exploration"], 0.01)
        assert shown == pytest.approx(np.exp(noise), rel=1e-4)
        moved += int((rate != 0).all())
    assert moved >= 4


def test_a_run_alone_and_a_row_of_a_population_are_moved_alike():
    together = evaluate_controller(AdaptiveRL(), ADAPTIVE, TINY, [1, 2, 3])
    for row, seed in enumerate((1, 2, 3)):
        (alone,) = evaluate_controller(AdaptiveRL(), ADAPTIVE, TINY, [seed])
        for name, values in alone["panel"].items():
            assert values == pytest.approx(together[row]["panel"][name], rel=1e-3, abs=1e-4), name


def test_hunting_reduces_the_moves_of_the_rate_and_a_new_run_forgets_it():
    controller, moves = AdaptiveRL(), []
    for number in range(30):
        trend = 1.0 if number % 2 else -1.0
        moves.append(controller.act(observations_of([[0.5, trend, -trend, 0.0]], [0.0, 0.0, 0.0])))
    moves = np.array(moves)[:, 0, 0]
    assert abs(moves[-1]) == pytest.approx(0.1 * abs(moves[1]), rel=1e-4)
    fresh = controller.act(observations_of([[0.0, 1.0, -1.0, 0.0]], [0.0, 0.0, 0.0]))
    assert fresh[0, 0] == pytest.approx(moves[1])


@pytest.mark.parametrize(
    ("signals", "trends", "moves"),
    [
        ("loss", (0.5, -0.5), (-1, -1)),
        ("loss", (-0.5, 0.5), (0, 0)),
        ("reward", (0.5, 0.0), (0, 0)),
        ("reward", (-0.5, 0.5), (1, 1)),
        ("both", (0.5, 0.0), (-1, -1)),
    ],
)
def test_an_ablation_reads_one_signal_alone(signals, trends, moves):
    controller = AdaptiveRL(signals=signals)
    found = controller.act(observations_of([[0.5, *trends, 0.0]], [0.0, 0.0, 0.0]))
    assert np.sign(found[0, :2]).tolist() == list(moves)


def test_the_epochwise_law_has_an_interval_and_betas_of_its_own():
    controller = AdaptiveRL(pace="epochwise", interval=20)
    assert controller.spec.arguments()["estimators"] == "epochwise"
    (row,) = evaluate_controller(controller, ADAPTIVE, TINY, [1])
    assert row["steps"] == [0, 20, 40, 60] and len(set(row["panel"]["lr"])) >= 2


@pytest.mark.parametrize("schedule", ["none", "cosine"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "adamw_muon", "adamw_schedule_free"])
@pytest.mark.parametrize("noise", ["exploration", "weight_noise", None])
def test_the_law_controls_every_optimizer_with_momentum_on_any_id(optimizer, schedule, noise):
    arguments = TINY | {"optimizer": optimizer, "schedule": schedule, "num_steps": 30}
    (row,) = evaluate_controller(AdaptiveRL(noise=noise), JEL, arguments, [1])
    assert np.isfinite(row["bpb"]) and row["divergence_reason"] is None
    names = {"lr", "momentum"} | ({noise} if noise else set())
    assert set(row["panel"]) == names


def test_a_law_is_a_controller_and_is_the_same_after_saving(tmp_path):
    law = {"rate_reward": 0.08, "rate_bounds": [0.1, 50.0]}
    controller = AdaptiveRL(law, "epochwise", 20, "reward", "weight_noise")
    check_controller(controller)
    save_policy(controller, tmp_path / "policy")
    loaded = load_policy(tmp_path / "policy")
    assert isinstance(loaded, AdaptiveRL) and loaded.arguments() == controller.arguments()
    assert loaded.spec.values() == controller.spec.values()
    before, after = (
        evaluate_controller(each, ADAPTIVE, TINY, [1])[0] for each in (controller, loaded)
    )
    assert before["panel"] == after["panel"] and before["bpb"] == after["bpb"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Law(rate_reward=-1.0), "rate_reward must be a number of at least 0; got -1.0"),
        (lambda: Law(rate_bounds=(1.0,)), "rate_bounds must be two numbers above 0"),
        (lambda: Law(rate_bounds=(2.0, 1.0)), "rate_bounds must be two numbers above 0"),
        (lambda: Law(momentum_bounds=(0.95, 0.99)), "momentum_bounds must be below 1 and hold"),
        (lambda: Law(damping=0.0), r"damping and least_gain must be in \(0, 1\]"),
        (lambda: Law(rate_caps=(1.1, 1.2)), "rate_caps must have 1 between them"),
        (lambda: AdaptiveRL({"gain": 1.0}), "unknown field 'gain' of the law; expected some of"),
        (lambda: AdaptiveRL(pace="daily"), "pace must be one of"),
        (lambda: AdaptiveRL(signals="none"), "signals must be one of"),
        (lambda: AdaptiveRL(noise="dropout"), "noise must be one of"),
        (lambda: AdaptiveRL(interval=0), "interval must be a whole number of at least 1"),
        (lambda: AdaptiveRL({"rate_bounds": (1e-5, 1.0)}), "within those of the channel 'lr'"),
        (lambda: AdaptiveRL({"noise_bounds": (1e-5, 0.2)}), "of the channel 'exploration'"),
        (lambda: AdaptiveRL(Law(), noise="weight_noise"), "of the channel 'weight_noise'"),
    ],
)
def test_what_is_impossible_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
