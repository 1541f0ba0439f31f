"""Episodes, autoreset, rewards and snapshots.

Where the training does not matter, the plant has a closed form.

Past the usual length, because a module's tests stand in one file.
"""

import copy
import math
import pickle
from unittest.mock import patch

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import TimeLimit

from hpenv import branching
from hpenv.env import TrainLoopVectorEnv
from hpenv.envs.single import TrainLoopEnv
from hpenv.plant.protocol import DIVERGENCE_REASONS
from hpenv.telemetry.features import FEATURES
from hpenv.telemetry.rewards import REWARD_TERMS, measured_terms
from tests.fake_plant import GROUPS, INITIAL_LOSS, MEASUREMENTS, FakePlant

MODES = ("NEXT_STEP", "SAME_STEP", "DISABLED")
EVERYTHING = {
    "features": list(FEATURES),
    "reward": dict.fromkeys(REWARD_TERMS, 1.0),
    "num_registers": 3,
}


def make(num_envs=3, diverges=None, mode="NEXT_STEP", **arguments):
    arguments = {"interval": 10, "num_steps": 23} | arguments
    return TrainLoopVectorEnv(FakePlant(num_envs, diverges), autoreset_mode=mode, **arguments)


def single(**arguments):
    return TrainLoopEnv(make(1, mode="DISABLED", **arguments))


def still(env):
    return np.zeros(env.action_space.shape, dtype=np.float32)


def steps(env):
    return env.plant.steps.tolist()


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


def test_next_step_spends_one_call_on_the_new_episode_and_ignores_its_action():
    env = make(3, {1: 13}, "NEXT_STEP")
    env.reset(seed=7)
    env.step(still(env))
    obs, rewards, terminated, truncated, infos = env.step(still(env))
    assert terminated.tolist() == [False, True, False] and not truncated.any()
    assert steps(env) == [20, 13, 20] and infos["divergence"].tolist() == [0, 1, 0]
    assert DIVERGENCE_REASONS[1] == "loss_nonfinite" and obs[1, 0] == np.float32(13 / 23)
    obs, rewards, terminated, _, infos = env.step(still(env) + 0.5)
    assert steps(env) == [23, 0, 23] and terminated.tolist() == [True, False, True]
    assert rewards[1] == 0.0 and obs[1, 0] == 0.0 and not infos["divergence"].any()
    assert infos["panel/lr"].tolist() == pytest.approx([10.0, 1.0, 10.0])
    obs, rewards, terminated, _, _ = env.step(still(env) + 0.5)
    assert steps(env) == [0, 10, 0] and terminated.tolist() == [False] * 3
    assert rewards[[0, 2]].tolist() == [0.0, 0.0] and rewards[1] > 0
    env.step(still(env))
    assert steps(env) == [10, 20, 10]  # from here on the rows stand at different clocks
    assert env.step(still(env))[2].tolist() == [False, True, False] and steps(env) == [20, 23, 20]


def test_same_step_hands_over_the_end_and_the_beginning_together():
    env = make(3, {1: 13}, "SAME_STEP")
    env.reset(seed=7)
    _, earned, _, _, infos = env.step(still(env))
    assert "final_obs" not in infos and "final_info" not in infos
    obs, rewards, terminated, _, infos = env.step(still(env))
    assert terminated.tolist() == [False, True, False] and steps(env) == [20, 0, 20]
    assert infos["_final_obs"].tolist() == infos["_final_info"].tolist() == [False, True, False]
    assert infos["final_obs"][1].tolist() == [np.float32(13 / 23)] and infos["final_obs"][0] is None
    assert infos["final_obs"].dtype == object
    assert obs[:, 0].tolist() == [np.float32(20 / 23), 0.0, np.float32(20 / 23)]
    assert rewards[1] == pytest.approx(-1.0 - earned[1])
    final = infos["final_info"]
    assert final["step"][1] == 13 and final["_step"].tolist() == [False, True, False]
    assert final["divergence"][1] == DIVERGENCE_REASONS.index("loss_nonfinite")
    assert final["reward_terms/divergence"][1] == -1.0
    assert infos["step"].tolist() == [20, 0, 20] and infos["_step"].all()
    assert (
        infos["_gradient_norm"].tolist()
        == infos["_reward_terms/progress"].tolist()
        == [True, False, True]
    )
    assert (
        infos["gradient_norm"][1] == infos["reward_terms/divergence"][1] == 0.0
        and not infos["divergence"].any()
    )
    assert env.step(still(env))[2].tolist() == [True, False, True] and steps(env) == [0, 10, 0]


def test_disabled_lets_the_finished_wait_until_they_are_reset():
    env = make(3, {1: 13}, "DISABLED")
    env.reset(seed=7)
    env.step(still(env))
    last, _, _, _, _ = env.step(still(env))
    for _ in range(2):
        obs, rewards, terminated, _, infos = env.step(still(env) + 0.9)
        assert terminated.tolist() == [True] * 3 and steps(env) == [23, 13, 23]
        assert rewards[1] == 0.0 and obs[1].tolist() == last[1].tolist() and not infos["_step"][1]
        assert not infos["_probe_loss"][1] and infos["panel/lr"][1] == 1.0
    assert rewards.tolist() == [0.0] * 3
    obs, infos = env.reset(options={"reset_mask": np.array([False, True, False])})
    assert steps(env) == [23, 0, 23] and obs[:, 0].tolist() == [1.0, 0.0, 1.0]
    assert infos["_step"].tolist() == [False, True, False]
    _, _, terminated, _, _ = env.step(still(env))
    assert steps(env) == [23, 10, 23] and terminated.tolist() == [True, False, True]


@pytest.mark.parametrize("mode", MODES)
def test_every_episode_is_measured_against_its_own_beginning(mode):
    env = make(3, {1: 13}, mode, features=["progress", "probe_loss"])
    env.reset(seed=7)
    for _ in range(3 if mode == "NEXT_STEP" else 2):
        obs, _, terminated, _, infos = env.step(still(env))
    if mode == "DISABLED":
        obs, infos = env.reset(options={"reset_mask": terminated})
    assert obs[1].tolist() == [0.0, 1.0]
    earlier, _, _, _, infos = env.step(still(env))
    assert earlier[1, 1] == pytest.approx(
        infos["probe_loss"][1] / (INITIAL_LOSS + env.plant.seeds[1] % 1000 / 1000)
    )


def test_a_seed_beside_a_mask_reaches_the_masked_rows_alone():
    env, whole = make(3, mode="DISABLED"), make(3, mode="DISABLED")
    env.reset(seed=7)
    before = list(env.plant.seeds)
    env.reset(seed=[50, 51, 52], options={"reset_mask": np.array([False, True, False])})
    whole.reset(seed=[50, 51, 52])
    assert env.plant.seeds == [before[0], whole.plant.seeds[1], before[2]]


@pytest.mark.parametrize(
    "mask", [[True, False], np.array([1, 0, 1]), np.zeros(3, dtype=bool), np.ones(4, dtype=bool)]
)
def test_a_mask_that_does_not_fit_is_refused(mask):
    env = make(3, mode="DISABLED")
    env.reset(seed=7)
    with pytest.raises(
        ValueError, match=r"reset_mask must be .* of shape \(3,\) with at least one True; got"
    ):
        env.reset(options={"reset_mask": mask})


def test_rows_are_seeded_one_by_one():
    env = make(4)
    env.reset(seed=20)
    counted = list(env.plant.seeds)
    assert len(set(counted)) == 4
    env.reset(seed=[23, 22, 21, 20])
    assert env.plant.seeds == counted[::-1]
    for row in range(4):
        alone = single()
        alone.reset(seed=20 + row)
        assert alone.plant.seeds == [counted[row]]


def test_a_reset_without_seed_goes_on_with_new_runs():
    env, twin, unseeded, other = make(2), make(2), make(2), make(2)
    runs = []
    for each in (env, twin):
        each.reset(seed=1)
        runs.append(
            [each.plant.seeds[:], *(each.reset() and each.plant.seeds[:] for _ in range(2))]
        )
    assert runs[0] == runs[1] and len({seed for pair in runs[0] for seed in pair}) == 6
    for each in (unseeded, other):
        each.reset()
    assert len({*unseeded.plant.seeds, *other.plant.seeds}) == 4


def test_grouped_rows_that_begin_anew_at_different_times_play_the_same_episodes():
    env = make(3, seed_mode="grouped")
    env.reset(seed=5)
    for row in (1, 0, 2):
        env.reset(options={"reset_mask": np.arange(3) == row})
    assert len(set(env.plant.seeds)) == 1


def test_nothing_is_saved_before_the_first_reset():
    with pytest.raises(gym.error.ResetNeeded, match="before the first reset"):
        branching.snapshot(make(1))


def test_nothing_is_evaluated_before_the_first_reset():
    with pytest.raises(gym.error.ResetNeeded, match="nothing to evaluate before the first reset"):
        make(1).evaluate()


def test_restoring_gives_the_observations_that_the_next_decision_is_taken_on():
    env, other = make(2), make(2)
    env.reset(seed=0)
    observations = env.step(np.full((2, 2), 0.5))[0]
    assert np.array_equal(branching.restore(other, branching.snapshot(env)), observations)


def test_grouped_rows_stay_one_run_however_they_are_seeded():
    env = make(3, seed_mode="grouped")
    env.reset(seed=0)
    for seed in ([None, 2, None], [4, 5, 6], 4):
        env.reset(seed=seed)
        assert len(set(env.plant.seeds)) == 1
    first = env.plant.seeds[0]
    env.reset(seed=[4, 5, 6])  # the first that is given is that of all
    assert list(env.plant.seeds) == [first] * 3
    env.reset(seed=7, options={"reset_mask": np.array([True, False, False])})
    first = env.plant.seeds[0]
    env.reset(options={"reset_mask": np.array([False, True, True])})
    assert list(env.plant.seeds) == [first] * 3


def test_seeds_may_be_an_array():
    env, twin = make(2), make(2)
    env.reset(seed=np.array([4, 9]))
    twin.reset(seed=[4, 9])
    assert list(env.plant.seeds) == list(twin.plant.seeds)


@pytest.mark.parametrize("seed", [1.5, "a", -1, [0, 1.5], [0, -1]])
def test_seeds_that_are_no_whole_numbers_are_refused(seed):
    with pytest.raises(ValueError, match=r"seed must be a whole number of at least 0, .*; got"):
        make(2).reset(seed=seed)


def test_grouped_rows_are_one_run_and_every_episode_another():
    env = make(3, seed_mode="grouped")
    seeds = []
    for seed in (5, None, None):
        env.reset(seed=seed)
        assert len(set(env.plant.seeds)) == 1
        seeds.append(env.plant.seeds[0])
    assert len(set(seeds)) == 3
    obs, rewards, _, _, infos = env.step(still(env))
    assert len(set(rewards)) == len(set(infos["probe_loss"])) == 1 and (obs == obs[0]).all()


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"features": ["progress", "speed"]}, r"unknown feature 'speed'; expected some of \['"),
        (
            {"reward": {"progess": 1.0}},
            r"unknown reward term 'progess'; expected some of \['budget', 'divergence'",
        ),
        (
            {"reward": {"smoothness": -1.0}},
            "weight of reward term 'smoothness' must be a number, .*; got -1.0",
        ),
        (
            {"interval": 0},
            r"interval must be a whole number of .*, from 1 to num_steps=23; got 0",
        ),
        (
            {"interval": 24},
            r"interval must be a whole number of .*, from 1 to num_steps=23; got 24",
        ),
        ({"num_registers": -1}, "num_registers must be a whole number of at least 0; got -1"),
        ({"register_leak": 1.0}, "register_leak must be at least 0 and below 1; got 1.0"),
        (
            {"seed_mode": "same"},
            r"unknown seed_mode 'same'; expected one of \['independent', 'grouped'\]",
        ),
        (
            {"render_mode": "human"},
            r"unknown render_mode 'human'; expected None or one of \['rgb_array', 'ansi'\]",
        ),
        ({"max_episode_steps": 0}, "max_episode_steps must be a whole number of at least 1; got 0"),
        ({"mode": ["NEXT_STEP"]}, r"unknown autoreset_mode \['NEXT_STEP'\]; expected one of"),
        (
            {"mode": "LATER"},
            r"unknown autoreset_mode 'LATER'; expected one of \['DISABLED', 'NEXT_STEP', "
            r"'SAME_STEP'\]",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        make(2, **arguments)


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


@pytest.mark.parametrize("diverges", [None, {0: 15}])
@pytest.mark.parametrize("reward", [{"progress": 1.0}, {"loss_change": 1.0}])
def test_the_info_of_one_run_is_flat_finite_and_has_the_same_keys_always(diverges, reward):
    env = single(diverges=diverges, reward=reward)
    _, info = env.reset(seed=0)
    keys = list(info)
    assert {
        "step",
        "train_loss",
        "divergence",
        "panel/lr",
        "gradient_norm",
        "privileged/truth",
    } < set(keys)
    assert ("probe_loss" in info) == ("progress" in reward)
    terms = measured_terms(MEASUREMENTS, {"probe"} if "progress" in reward else set())
    assert [key for key in keys if key.startswith("reward_terms/")] == [
        f"reward_terms/{term}" for term in terms
    ]
    trained = [
        key for key in keys if key.startswith(("gradient", "reward", "gauges", "privileged"))
    ]
    assert all(info[key] == 0.0 for key in trained), "nothing has been trained"
    terminated = False
    while not terminated:
        _, reward, terminated, truncated, info = env.step(np.zeros(2, dtype=np.float32))
        assert (type(reward), type(terminated), type(truncated)) == (float, bool, bool)
        assert list(info) == keys and all(
            type(value) in (np.int64, np.float64) for value in info.values()
        )
        assert np.isfinite(list(info.values())).all()
    assert DIVERGENCE_REASONS[info["divergence"]] == ("loss_nonfinite" if diverges else "")


@pytest.mark.parametrize("mode", MODES)
def test_the_infos_of_a_population_are_numbers_of_every_row_with_a_mask_at_every_call(mode):
    env = make(3, {1: 13}, mode)
    _, infos = env.reset(seed=7)
    keys = set(infos)
    assert keys == {f"_{key}" for key in keys if key[0] != "_"} | {
        key for key in keys if key[0] != "_"
    }
    for _ in range(5):
        infos = env.step(still(env))[4]
        final = infos.pop("final_info", infos)
        assert (
            set(infos) - {"final_obs", "_final_obs", "_final_info"}
            == set(final) - {"final_obs"}
            == keys
        )
        for key in keys:
            for value in (infos[key], final[key]):
                assert value.shape == (3,) and value.dtype == (
                    bool if key[0] == "_" else type(value[0])
                )
                assert np.isfinite(value).all()


@pytest.mark.parametrize("mode", MODES)
def test_what_is_returned_is_the_callers_to_write_into(mode):
    env, twin = make(3, {1: 13}, mode), make(3, {1: 13}, mode)
    env.reset(seed=7)
    twin.reset(seed=7)
    for _ in range(5):
        result, expected = env.step(still(env)), twin.step(still(twin))
        for left, right in zip(result[:4], expected[:4], strict=True):
            assert np.array_equal(left, right)
            left[:] = 0
        final = result[4].pop("final_info", {})
        for value in (*result[4].values(), *final.values()):
            value[:] = value[:1] if value.dtype.kind == "O" else 1


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("decision", range(4))
def test_a_restored_env_goes_on_as_if_it_had_never_stopped(mode, decision):
    """With rows at different steps, an ended episode, the streams of seeds, and all memory."""
    arguments = EVERYTHING | {"diverges": {1: 13}, "mode": mode}
    env, other = make(3, **arguments), make(3, **arguments)
    env.reset(seed=7)
    other.reset(seed=0)
    actions = (
        np.random.default_rng(0).uniform(-1, 1, (9, *env.action_space.shape)).astype(np.float32)
    )
    for action in actions[:decision]:
        env.step(action)
    snapshot = branching.snapshot(env)
    kept = copy.deepcopy(snapshot)
    expected = [env.step(action) for action in actions[decision:]]
    branching.restore(other, snapshot)
    assert snapshot.metadata == kept.metadata
    assert all(snapshot.tensors[name].equal(value) for name, value in kept.tensors.items())
    for wanted, action in zip(expected, actions[decision:], strict=True):
        found = other.step(action)
        for left, right in zip(wanted[:4], found[:4], strict=True):
            assert np.array_equal(left, right)
        assert repr(wanted[4]) == repr(found[4])


@pytest.mark.parametrize(
    "change",
    [
        {"interval": 5},
        {"num_steps": 24},
        {"reward": {"progress": 2.0}},
        {"seed_mode": "grouped"},
        {"num_registers": 1},
        {"register_leak": 0.5},
    ],
)
def test_a_snapshot_of_another_environment_is_refused(change):
    env = make(2)
    env.reset(seed=0)
    other = make(2, **change)
    with pytest.raises(
        ValueError,
        match=f"environment with these settings; got other ones, as .*{next(iter(change))}",
    ):
        branching.restore(other, branching.snapshot(env))


def test_what_is_no_snapshot_of_an_environment_is_refused_with_what_is_expected():
    env = make(2)
    env.reset(seed=0)
    with pytest.raises(
        TypeError, match=r"must be a Snapshot.*; got a str; .*hpenv.plant.snapshots.load\(path\)"
    ):
        branching.restore(env, "runs/snapshot")
    with pytest.raises(ValueError, match="must be an environment snapshot; got"):
        branching.restore(env, env.plant.snapshot())


@pytest.mark.parametrize("mode", MODES)
def test_forks_go_on_like_the_original_and_leave_it_alone(mode):
    env, twin = make(3, mode=mode, **EVERYTHING), make(3, mode=mode, **EVERYTHING)
    actions = np.random.default_rng(0).uniform(-1, 1, (6, *env.action_space.shape))
    for each in (env, twin):
        each.reset(seed=7)
        each.step(actions[0])
    fork = branching.fork(env, 4, row=1)
    assert fork.num_envs == 4 and fork.autoreset_mode == env.autoreset_mode
    for action in actions[1:]:
        expected = twin.step(action)
        copies = fork.step(np.repeat(action[1:2], 4, axis=0))
        untouched = env.step(action)
        for left, right, forked in zip(expected[:4], untouched[:4], copies[:4], strict=True):
            assert np.array_equal(left, right)
            assert np.array_equal(forked, np.repeat(left[1:2], 4, axis=0))


def test_forks_tell_what_other_actions_would_have_done():
    env = single()
    env.reset(seed=0)
    env.step(np.zeros(2))
    fork = branching.fork(env, 3)
    rewards = fork.step(np.array([[-0.5, 0.0], [0.0, 0.0], [0.5, 0.0]]))[1]
    assert rewards[0] < rewards[1] < rewards[2]
    assert rewards[1] == env.step(np.zeros(2))[1]


@pytest.mark.parametrize(("k", "row"), [(0, 0), (-1, 0), (2, 3), (2, -1)])
def test_forks_that_cannot_be_are_refused(k, row):
    env = make(3)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=f"and row one from 0 to 2; got k={k} and row={row}"):
        branching.fork(env, k, row)


@pytest.mark.parametrize("mode", MODES)
def test_a_pickled_env_goes_on_alike(mode):
    env = make(3, {1: 13}, mode, **EVERYTHING)
    env.reset(seed=7)
    env.step(still(env))
    other = pickle.loads(pickle.dumps(env))
    for _ in range(4):
        left, right = env.step(still(env) + 0.1), other.step(still(env) + 0.1)
        assert all(np.array_equal(a, b) for a, b in zip(left[:4], right[:4], strict=True))


def test_pictures_are_rgb_and_change_as_the_run_goes():
    env = single(render_mode="rgb_array")
    env.reset(seed=0)
    pictures = [env.render()]
    for action in ([0.5, 0.0], [-0.5, 0.2], [0.0, 0.0]):
        env.step(np.array(action))
        pictures.append(env.render())
    for picture in pictures:
        assert picture.shape == (704, 800, 3) and picture.dtype == np.uint8
    assert len({picture.tobytes() for picture in pictures}) == 4
    assert env.render().tobytes() == pictures[-1].tobytes()


def test_lines_say_where_the_run_stands():
    env = make(2, render_mode="ansi")
    assert env.render() == ("step 0/23", "step 0/23")
    env.reset(seed=0)
    env.step(np.array([[0.5, 0.0], [0.0, -0.5]]))
    first, second = env.render()
    assert (
        first.startswith("step 10/23  probe ")
        and first.endswith("lr x10  weight_decay x1")
        and "\n" not in first
    )
    assert second.endswith("lr x1  weight_decay x0.1")
    assert make(2).render() is None


def test_a_new_episode_begins_a_new_picture():
    env = make(2, {1: 13}, "NEXT_STEP", render_mode="ansi")
    env.reset(seed=0)
    for _ in range(3):
        env.step(still(env))
    assert [line.split("  ")[0] for line in env.render()] == ["step 23/23", "step 0/23"]


def test_evaluation_is_the_plants():
    env = make(3)
    env.reset(seed=1)
    assert (
        env.evaluate().tolist() == env.plant.losses.tolist()
        and env.evaluate().min() >= INITIAL_LOSS
    )
    alone = single()
    alone.reset(seed=1)
    assert type(alone.evaluate()) is float


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
        (EVERYTHING, set(GROUPS)),
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


def test_a_counterfactual_by_hand():
    env = single()
    env.reset(seed=0)
    env.step(np.array([0.25, 0.0]))
    loss, candidates = env.plant.losses[0], (-0.5, 0.0, 0.5)
    assert steps(env) == [10]
    actions = np.array([[position, 0.0] for position in candidates])
    for decisions, hold in ((1, False), (2, False), (2, True), (9, False)):
        expected = []
        for position in candidates:
            rest = position if hold else 0.25
            after = loss * (1 - 0.01 * 100**position) ** 10
            if decisions > 1:
                after *= (1 - 0.01 * 100**rest) ** 3  # the last window has 3 of the 23 steps
            expected.append(loss - after)
        assert branching.counterfactual(env, actions, decisions, hold=hold) == pytest.approx(
            np.array(expected)
        )


@pytest.mark.parametrize("mode", MODES)
def test_a_counterfactual_leaves_the_run_where_it_is(mode):
    env, twin = make(3, {1: 18}, mode, **EVERYTHING), make(3, {1: 18}, mode, **EVERYTHING)
    actions = np.random.default_rng(0).uniform(-1, 1, (4, *env.action_space.shape))
    for each in (env, twin):
        each.reset(seed=7)
    for decision, action in enumerate(actions):
        if not env.episodes.ended[1]:
            tried = branching.counterfactual(env, actions[:, 1], 5, row=1, hold=decision % 2 == 0)
            assert tried.shape == (4,) and np.isfinite(tried).all()
        for ours, theirs in zip(env.step(action)[:4], twin.step(action)[:4], strict=True):
            assert np.array_equal(ours, theirs)
    left, right = branching.snapshot(env), branching.snapshot(twin)
    assert left.metadata == right.metadata and left.tensors.keys() == right.tensors.keys()
    assert all(left.tensors[name].equal(right.tensors[name]) for name in left.tensors)


def test_a_counterfactual_is_what_then_happens():
    env = make(3, mode="DISABLED", **EVERYTHING)
    env.reset(seed=7)
    actions = np.random.default_rng(0).uniform(-1, 1, env.action_space.shape)
    env.step(-actions)
    expected = [
        branching.counterfactual(env, actions[[row]], 2, row=row, hold=True)[0] for row in range(3)
    ]
    earned = sum(env.step(actions)[1] for _ in range(2))
    assert earned == pytest.approx(expected)


def test_with_the_change_of_the_training_loss_the_second_decision_is_the_first_to_see_an_update():
    plant = FakePlant(1, before_update=True)
    env = TrainLoopVectorEnv(plant, interval=1, reward={"loss_change": 1.0}, num_steps=23)
    env.reset(seed=0)
    env.step(still(env))
    one, two = (
        branching.counterfactual(env, np.array([[0.0, 0.0], [0.5, 0.0]]), decisions)
        for decisions in (1, 2)
    )
    assert one[0] == one[1] and two[0] < two[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros((2, 3)), 1), r"actions must be of shape \(k, 2\).* got shape \(2, 3\) and 1"),
        (
            (np.zeros(2), 1),
            r"\(k, 2\) with k >= 1, and num_decisions a whole number >= 1; got shape \(2,\) and 1",
        ),
        ((np.zeros((2, 2)), 0), r"got shape \(2, 2\) and 0"),
        ((np.zeros((2, 2)), 2.0), r"got shape \(2, 2\) and 2.0"),
        ((np.zeros((0, 2)), 1), r"got shape \(0, 2\) and 1"),
        ((np.zeros((2, 2)), 1, 3), "row one from 0 to 2; got k=2 and row=3"),
        ((np.full((2, 2), math.nan), 1), "must be finite numbers"),
    ],
)
def test_counterfactuals_that_cannot_be_are_refused(arguments, message):
    env = make(3)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        branching.counterfactual(env, *arguments)


def test_a_counterfactual_needs_a_run_that_goes_on():
    env = make(2, {1: 13})
    with pytest.raises(gym.error.ResetNeeded, match="run 0 has not begun, or has ended"):
        branching.counterfactual(env, np.zeros((2, 2)), 1)
    env.reset(seed=0)
    for _ in range(2):
        env.step(still(env))
    branching.counterfactual(env, np.zeros((2, 2)), 1)
    with pytest.raises(gym.error.ResetNeeded, match="run 1 has not begun, or has ended"):
        branching.counterfactual(env, np.zeros((2, 2)), 1, row=1)


def test_lines_name_the_training_loss_where_there_is_no_probe_and_the_first_of_many_cells():
    plant = FakePlant(
        1,
        channels=[(name, "layer") for name in ("lr", "grad_scale", "grad_clip", "dropout", "eps")],
    )
    env = TrainLoopVectorEnv(
        plant, reward={"loss_change": 1.0}, render_mode="ansi", num_steps=23, interval=10
    )
    env.reset(seed=0)
    env.step(still(env))
    (line,) = env.render()
    assert line.startswith("step 10/23  training ") and line.endswith(
        "x1  grad_clip/layer.0 1e+04  grad_clip/layer.1 1e+04  dropout/layer.0 0  "
        "dropout/layer.1 0  and 2 more"
    )


@pytest.mark.parametrize("mode", MODES)
def test_the_last_info_of_a_run_has_its_held_out_score_if_asked_for(mode):
    env, plain = make(3, {1: 13}, mode, evaluate_at_end=True), make(3, {1: 13}, mode)
    _, infos = env.reset(seed=7)
    plain.reset(seed=7)
    assert infos["held_out"].tolist() == [0.0] * 3 and not infos["_held_out"].any()
    ends = []
    for _ in range(5):
        result, expected = env.step(still(env)), plain.step(still(env))
        assert all(
            np.array_equal(left, right)
            for left, right in zip(result[:4], expected[:4], strict=True)
        )
        assert "held_out" not in expected[4]
        infos = result[4].get("final_info", result[4])
        assert (infos["held_out"] > 0).tolist() == infos["_held_out"].tolist()
        if mode != "SAME_STEP":  # where the finished run is still there to be evaluated
            assert np.array_equal(
                infos["held_out"], np.where(infos["_held_out"], env.evaluate(), 0.0)
            )
        elif "final_info" in result[4]:
            assert not result[4]["held_out"].any() and not result[4]["_held_out"].any()
        ends.append(infos["_held_out"].tolist())
    first, others = [False, True, False], [True, False, True]
    later = {"NEXT_STEP": [[False] * 3, [False, False, False]], "SAME_STEP": [[False] * 3, first]}
    assert ends[1] == first and ends[2] == others
    assert ends[3:] == later.get(mode, [[False] * 3] * 2)


def test_the_held_out_score_of_one_run_is_what_evaluate_gives_at_its_end():
    env = single(evaluate_at_end=True)
    _, info = env.reset(seed=1)
    while True:
        assert info["held_out"] == 0.0
        _, _, terminated, _, info = env.step(np.zeros(2))
        if terminated:
            break
    assert info["held_out"] == env.evaluate() > 0.0


def test_a_held_out_score_that_is_not_finite_is_the_largest_number_of_float32():
    env = single(evaluate_at_end=True, diverges={0: 5})
    env.reset(seed=1)
    env.plant.evaluate = lambda: np.array([math.nan])
    assert env.step(np.zeros(2))[4]["held_out"] == np.finfo(np.float32).max


def test_forks_score_their_ends_as_the_run_does_and_counterfactuals_score_none():
    env = make(2, evaluate_at_end=True)
    env.reset(seed=0)
    assert "held_out" in branching.fork(env, 1).step(still(env)[:1])[4]
    with patch.object(FakePlant, "evaluate", side_effect=AssertionError):
        branching.counterfactual(env, still(env), 3)
    with pytest.raises(ValueError, match="evaluate_at_end must be True or False; got 'yes'"):
        make(2, evaluate_at_end="yes")


@pytest.mark.parametrize("diverges", [None, {0: 13}])
@pytest.mark.parametrize("limit", [1, 2, 3, 4])
@pytest.mark.parametrize("mode", AutoresetMode)
def test_an_episode_is_truncated_where_gymnasiums_time_limit_truncates_it(mode, limit, diverges):
    """At 3 decisions an episode terminates by itself."""
    env = make(2, diverges and {0: 13, 1: 13}, mode, max_episode_steps=limit)
    twin = SyncVectorEnv(
        [lambda: TimeLimit(single(diverges=diverges), limit)] * 2, autoreset_mode=mode
    )
    assert env.num_decisions == min(limit, 3)
    assert np.array_equal(env.reset(seed=7)[0], twin.reset(seed=7)[0])
    for _ in range(7):
        ours, theirs = env.step(still(env)), twin.step(still(env))
        for left, right in zip(ours[:4], theirs[:4], strict=True):
            assert np.array_equal(left, right)
        assert ("final_info" in ours[4]) == ("final_info" in theirs[4])
        if mode == AutoresetMode.DISABLED and (ended := ours[2] | ours[3]).any():
            again = [each.reset(options={"reset_mask": ended.copy()})[0] for each in (env, twin)]
            assert np.array_equal(*again)


def test_a_truncated_run_waits_and_its_forks_and_snapshots_are_truncated_too():
    env = make(2, mode="DISABLED", max_episode_steps=2, evaluate_at_end=True)
    env.reset(seed=0)
    env.step(still(env))
    fork = branching.fork(env, 1)
    infos = env.step(still(env))[4]
    assert infos["_held_out"].all() and infos["held_out"].tolist() == env.plant.losses.tolist()
    other = make(2, mode="DISABLED", max_episode_steps=2, evaluate_at_end=True)
    branching.restore(other, branching.snapshot(env))
    for each in (env, other):
        terminated, truncated = each.step(still(env))[2:4]
        assert truncated.all() and not terminated.any() and steps(each) == [20, 20]
    assert fork.step(still(env)[:1])[3].tolist() == [True]


def test_after_close_nothing_is_stepped_or_reset():
    for env in (make(2), single()):
        env.reset(seed=0)
        env.close()
        env.close()
        for call in (env.reset, lambda env=env: env.step(np.zeros(env.action_space.shape))):
            with pytest.raises(
                gym.error.ClosedEnvironmentError, match=r"after close\(\); make a new environment"
            ):
                call()


def test_attributes_and_methods_are_had_for_every_row_as_from_a_sync_vector_env():
    env, twin = make(2, render_mode="ansi"), SyncVectorEnv([lambda: single(render_mode="ansi")] * 2)
    for each in (env, twin):
        each.reset(seed=3)
        each.step(still(env))
    for name in (
        "action_names",
        "observation_space",
        "action_space",
        "corpus_digest",
        "render_mode",
    ):
        assert env.get_attr(name) == twin.get_attr(name) == twin.call(name)
    for name in ("evaluate", "render", "corpus_digest"):
        assert env.call(name) == twin.call(name)
    for values in ("rgb_array", ["rgb_array"] * 2):
        env.set_attr("render_mode", values)
        assert env.render_mode == "rgb_array"
        env.render_mode = None
    for values in (["ansi"], ["ansi", None]):
        with pytest.raises(
            ValueError,
            match=r"values of 'render_mode' must be one value, or 2 equal ones.*; got \[",
        ):
            env.set_attr("render_mode", values)
    with pytest.raises(AttributeError, match="horizont"):
        env.get_attr("horizont")
