"""Windows, rewards and registers of an environment whose plant has a closed form."""

import math

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from hpenv import branching
from hpenv.envs.single import TrainLoopEnv
from hpenv.pretraining.measurements import EFFECT_MEMORIES
from hpenv.telemetry.rewards import measured_terms
from tests.fake_plant import GROUPS, INITIAL_LOSS, MEASUREMENTS
from tests.hpenv.closed_form import EVERYTHING, MODES, make, single, steps, still


def test_561_steps_are_12_decisions_the_last_of_11_steps_and_13_measurements():
    env = make(2, num_steps=561, interval=50)
    assert env.num_decisions == 12
    env.reset(seed=0)
    seen = []
    for decision in range(12):
        obs, _, terminated, truncated, infos = env.step(still(env))
        seen.append(infos["step"].tolist())
        assert obs[:, 0] == pytest.approx(infos["step"] / 561)
        assert terminated.tolist() == [decision == 11] * 2 and not truncated.any()
    assert seen == [[step] * 2 for step in [*range(50, 551, 50), 561]]
    assert env.plant.num_measured == 13


@pytest.mark.parametrize(
    ("num_steps", "interval", "decisions"), [(23, 23, 1), (23, 1, 23), (20, 10, 2), (21, 10, 3)]
)
def test_decisions_are_the_windows_that_the_budget_holds(num_steps, interval, decisions):
    env = single(num_steps=num_steps, interval=interval)
    env.reset(seed=0)
    taken, terminated = 0, False
    while not terminated:
        taken += 1
        _, _, terminated, _, info = env.step(np.zeros(2, dtype=np.float32))
    assert taken == decisions == env.vector.num_decisions and info["step"] == num_steps


def test_the_action_controls_the_window_that_follows_it():
    env = single()
    env.reset(seed=0)
    loss = env.plant.losses[0]
    for position in (0.0, 0.5, -0.5):
        num_steps = min(10, 23 - env.plant.steps[0])
        _, reward, _, _, info = env.step(np.array([position, 0.0], dtype=np.float32))
        after = loss * (1 - 0.01 * 100**position) ** num_steps
        assert reward == pytest.approx(loss - after) and info["probe_loss"] == pytest.approx(after)
        assert (
            info["panel/lr"] == pytest.approx(100**position) and info["panel/weight_decay"] == 1.0
        )
        loss = after


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("diverges", [None, {1: 13}])
def test_rewards_add_up_to_the_decrease_of_the_probe_loss(mode, diverges):
    env = make(3, diverges, mode)
    _, infos = env.reset(seed=7)
    initial, total, last, alive = (
        infos["probe_loss"],
        np.zeros(3),
        np.zeros(3),
        np.ones(3, dtype=bool),
    )
    for _ in range(3):
        _, rewards, terminated, _, infos = env.step(still(env) + 0.25)
        last = np.where(terminated & alive, infos.get("final_info", infos)["probe_loss"], last)
        total += np.where(alive, rewards, 0.0)
        alive &= ~terminated
    expected = initial - last
    if diverges:
        expected[1] = -1.0  # all that it had earned is taken back, and 1
    assert total == pytest.approx(expected, abs=1e-12)


def test_penalties_by_hand():
    env = single(reward={"progress": 1.0, "gradient_norm": 0.5, "smoothness": 2.0})
    env.reset(seed=0)
    previous, loss = None, env.plant.losses[0]
    for action in ([0.5, -0.5], [0.25, 0.0], [0.25, 0.0]):
        _, reward, _, _, info = env.step(np.array(action))
        after = info["probe_loss"]
        jump = 0.0 if previous is None else float(np.square(np.subtract(action, previous)).sum())
        assert reward == pytest.approx(loss - after - 0.5 * after / 10 - 2.0 * jump)
        assert info["reward_terms/smoothness"] == pytest.approx(-jump)
        loss, previous = after, action


def test_actions_beyond_the_box_are_bounded_and_float64_is_taken():
    env, twin = make(2), make(2)
    env.reset(seed=0)
    twin.reset(seed=0)
    left, right = env.step(np.full((2, 2), 3.0)), twin.step(np.ones((2, 2), dtype=np.float32))
    assert left[1].tolist() == right[1].tolist()


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (
            np.zeros((2, 3), dtype=np.float32),
            r"shape \(2, 2\), one column per \['lr', 'weight_decay'\]; got float32 of",
        ),
        (np.zeros(2, dtype=np.float32), r"got float32 of shape \(2,\)"),
        (np.zeros((3, 2), dtype=np.float32), r"got float32 of shape \(3, 2\)"),
        (
            np.zeros((2, 2), dtype=np.int64),
            r"must be floating point .* got int64 of shape \(2, 2\)",
        ),
        (np.zeros((2, 2), dtype=bool), r"must be floating point .* got bool of shape \(2, 2\)"),
        (
            np.array([[0.0, math.nan], [0.0, 0.0]]),
            r"must be finite numbers; got \[\[0.0, nan\]",
        ),
        (
            np.array([[0.0, 0.0], [math.inf, 0.0]]),
            r"must be finite numbers; got .*inf",
        ),
        ("up", "must be floating point"),
    ],
)
def test_actions_that_do_not_fit_are_refused_and_nothing_moves(action, message):
    env = make(2)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        env.step(action)
    assert steps(env) == [0, 0] and env.plant.num_measured == 1


@pytest.mark.parametrize("seed", [[1, 2], [1, 2, 3, 4]])
def test_a_seed_per_row_is_counted(seed):
    with pytest.raises(
        ValueError, match=f"seed must be a list of 3 seeds, one per row; got {len(seed)}"
    ):
        make(3).reset(seed=seed)


def test_autoreset_modes_are_given_by_name_or_as_such():
    for mode in AutoresetMode:
        for given in (mode, mode.name, mode.value):
            env = make(2, mode=given)
            assert env.autoreset_mode is env.metadata["autoreset_mode"] is mode


def test_stepping_comes_after_resetting():
    with pytest.raises(gym.error.ResetNeeded, match=r"call reset\(\)"):
        make(2).step(np.zeros((2, 2)))
    env = single()
    with pytest.raises(gym.error.ResetNeeded, match=r"call reset\(\)"):
        env.step(np.zeros(2))
    env.reset(seed=0)
    for _ in range(3):
        env.step(np.zeros(2))
    with pytest.raises(gym.error.ResetNeeded, match="the run has ended"):
        env.step(np.zeros(2))
    with pytest.raises(ValueError, match="the first reset must be of all rows"):
        make(2, mode="DISABLED").reset(options={"reset_mask": np.array([True, False])})


def test_a_single_env_is_one_row_without_autoreset():
    for vector in (make(2, mode="DISABLED"), make(1)):
        with pytest.raises(ValueError, match="one row and autoreset_mode DISABLED; got"):
            TrainLoopEnv(vector)


@pytest.mark.parametrize(
    ("arguments", "groups"),
    [
        ({"features": ["progress"], "reward": {"divergence": 1.0}}, set()),
        ({}, {"probe"}),
        ({"reward": {"progress": 0.0, "loss_change": 1.0}}, set()),
        ({"reward": {"same_batch_change": 0.5}}, {"same_batch"}),
        (
            {"features": ["progress", "momentum_norm", "layer_saturation"], "reward": {}},
            {"momentum", "activations"},
        ),
        (EVERYTHING, set(GROUPS) - set(EFFECT_MEMORIES)),  # no feature reads a cell's effect
    ],
)
def test_only_what_is_asked_for_is_measured_and_every_term_that_is_measured_is_reported(
    arguments, groups
):
    env = make(2, **arguments)
    assert env.plant.measured_groups == groups
    env.reset(seed=0)
    infos = env.step(still(env))[4]
    assert {key for key in infos if key.startswith("reward_terms/")} == {
        f"reward_terms/{name}" for name in measured_terms(MEASUREMENTS, groups)
    }
    assert ("probe_loss" in infos) == ("probe" in groups)
    assert branching.fork(env, 1).plant.measured_groups == groups


@pytest.mark.parametrize("mode", MODES)
def test_without_a_probe_the_loss_before_training_is_known_and_no_other_is_told(mode):
    env = make(3, {1: 13}, mode, reward={"loss_change": 1.0})
    _, infos = env.reset(seed=7)
    assert infos["_train_loss"].all() and infos["train_loss"].tolist() == env.plant.losses.tolist()
    for _ in range(3 if mode == "NEXT_STEP" else 2):  # row 1 diverges at the second decision
        infos = env.step(still(env))[4]
    if mode == "DISABLED":
        _, infos = env.reset(options={"reset_mask": np.array([False, True, False])})
    assert infos["train_loss"][1] == INITIAL_LOSS + env.plant.seeds[1] % 1000 / 1000
    assert "probe_loss" not in infos and "probe_loss" not in infos.get("final_info", {})


def test_the_default_of_a_decision_every_step_rewards_an_action_one_decision_later():
    env = single(interval=1, reward={"loss_change": 1.0})
    env.reset(seed=0)
    losses = []
    for position in (0.5, 0.0, 0.0):
        _, reward, _, _, info = env.step(np.array([position, 0.0]))
        losses.append(info["train_loss"])
        assert reward == pytest.approx(0.0 if len(losses) == 1 else losses[-2] - losses[-1])


def test_registers_follow_the_cells_and_come_back_in_the_next_observation():
    env = make(2, features=["registers", "progress"], num_registers=2, register_leak=0.75)
    assert env.action_names == ("lr", "weight_decay", "register/0", "register/1")
    assert env.action_kinds == ("scale", "shrink", "register", "register")
    assert env.action_immediate == (False,) * 4
    assert env.observation_names == ("registers/0", "registers/1", "progress")
    obs, _ = env.reset(seed=0)
    assert obs[:, :2].tolist() == [[0.0, 0.0]] * 2
    obs, *_ = env.step(np.array([[0.0, 0.0, 1.0, -1.0], [0.0, 0.0, 0.5, 3.0]]))
    assert obs[:, :2] == pytest.approx(np.array([[0.25, -0.25], [0.125, 0.25]]))
    obs, *_ = env.step(np.array([[0.0, 0.0, 0.0, -1.0], [0.0, 0.0, 0.0, 0.0]]))
    assert obs[:, :2] == pytest.approx(np.array([[0.1875, -0.4375], [0.09375, 0.1875]]))


@pytest.mark.parametrize("mode", MODES)
def test_a_new_run_begins_with_empty_registers_and_no_losses_and_the_others_keep_theirs(mode):
    env = make(3, {1: 13}, mode, **EVERYTHING)
    names = env.observation_names
    memory = [i for i, name in enumerate(names) if name.startswith(("registers", "loss_"))]
    env.reset(seed=7)
    for _ in range(2):
        obs, _, terminated, _, _ = env.step(still(env) + 0.5)
    if mode == "NEXT_STEP":
        obs, *_ = env.step(still(env) + 0.5)
    if mode == "DISABLED":
        obs, _ = env.reset(options={"reset_mask": terminated})
    assert (obs[1, memory] == 0.0).all()
    assert (obs[[0, 2]][:, names.index("registers/0")] > 0.0).all()
    assert (obs[[0, 2]][:, names.index("loss_slope")] < 0.0).all()


def test_a_finished_row_that_waits_writes_no_register_and_remembers_no_loss():
    env = make(2, {0: 13}, "DISABLED", **EVERYTHING)
    env.reset(seed=7)
    for _ in range(2):
        env.step(still(env) + 0.5)
    before = branching.snapshot(env).tensors
    env.step(still(env) - 0.5)
    after = branching.snapshot(env).tensors
    for name in (name for name in before if name.startswith(("trajectory/", "env/registers"))):
        assert before[name][0].equal(after[name][0]), name
    assert not before["env/registers"][1].equal(after["env/registers"][1])
