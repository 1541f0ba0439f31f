"""Infos and held-out scores, of one run and of a population."""

import math

import numpy as np
import pytest
from gymnasium.vector import SyncVectorEnv

from hpenv.plant.protocol import DIVERGENCE_REASONS
from hpenv.telemetry.rewards import measured_terms
from tests.fake_plant import INITIAL_LOSS, MEASUREMENTS
from tests.hpenv.closed_form import MODES, make, single, still


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
