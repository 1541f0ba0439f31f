"""Online training that was interrupted goes on bitwise."""

import shutil
import warnings

import gymnasium as gym
import pytest

import hpenv
from tests.train_agents.short_online import ENV, progress, tiny
from train_agents.online import run_online
from train_agents.outputs import checkpoints

gym.register_envs(hpenv)


def stop_at(last):
    def on_step(step):
        if step == last:
            raise KeyboardInterrupt

    return on_step


def logs(folder):
    """Returns the lines of the logs without clocks."""
    found = {name: (folder / name).read_text() for name in ("curves.jsonl", "trace.jsonl")}
    clocks = ("time/fps", "time/time_elapsed")
    return found | {
        "progress": [
            {k: v for k, v in line.items() if k not in clocks} for line in progress(folder)
        ]
    }


@pytest.mark.parametrize(
    "last", [3, 5, 9, 11]
)  # before the first checkpoint, at it, beyond it, at the end
def test_a_run_that_was_interrupted_continues_bitwise(tmp_path, whole, last):
    rows, extra, folder = whole
    with pytest.raises(KeyboardInterrupt):
        run_online(tiny(tmp_path), ENV, stop_at(last))
    with open(tmp_path / "trace.jsonl", "a") as file:
        file.write('{"step": 99, "torn')
    again, more = run_online(tiny(tmp_path), ENV)
    assert again == rows
    kept = ("trace", "final_mean", "advantage_rms", "evidence")
    assert [more[key] for key in kept] == [extra[key] for key in kept]
    assert logs(tmp_path) == logs(folder)


def tear(checkpoint, part="env"):
    (checkpoint / part / "state.json").write_text("{}")


def test_a_damaged_checkpoint_is_passed_over(tmp_path, whole):
    with pytest.raises(KeyboardInterrupt):
        run_online(tiny(tmp_path), ENV, stop_at(10))
    tear(checkpoints(tmp_path, "step")[-1])
    with pytest.warns(
        UserWarning, match=r"skipped a checkpoint, now step-0000010.damaged: .* starts from step 5"
    ):
        rows, _ = run_online(tiny(tmp_path), ENV)
    assert rows == whole[0]


@pytest.mark.parametrize("part", ["env", "controller", "program"])
def test_after_damaged_checkpoints_the_new_ones_are_kept_although_their_steps_are_earlier(
    tmp_path, whole, part
):
    with pytest.raises(KeyboardInterrupt):
        run_online(tiny(tmp_path), ENV, stop_at(11))
    for checkpoint in checkpoints(tmp_path, "step"):
        tear(checkpoint, part)
    shutil.copytree(
        checkpoints(tmp_path, "step")[0], tmp_path / "checkpoints" / "step-0000010.damaged"
    )  # of an earlier time
    with (
        pytest.warns(UserWarning, match="training starts from step 0") as caught,
        pytest.raises(KeyboardInterrupt),
    ):
        run_online(tiny(tmp_path), ENV, stop_at(6))
    assert (
        len([warning for warning in caught if "skipped a checkpoint" in str(warning.message)]) == 2
    )
    assert [path.name for path in checkpoints(tmp_path, "step")] == ["step-0000005"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run_online(tiny(tmp_path), ENV)[0] == whole[0]
    assert [path.name for path in checkpoints(tmp_path, "step")] == ["step-0000010", "step-0000011"]
    assert logs(tmp_path) == logs(whole[2])


def test_what_is_no_checkpoint_by_its_name_is_neither_resumed_from_nor_deleted(tmp_path, whole):
    with pytest.raises(KeyboardInterrupt):
        run_online(tiny(tmp_path), ENV, stop_at(6))
    others = [
        tmp_path / "checkpoints" / name
        for name in ("step-0000005.bak", "step-", "step-9x", "old-step-0000009")
    ]
    for other in others:
        shutil.copytree(checkpoints(tmp_path, "step")[-1], other)
    assert run_online(tiny(tmp_path), ENV)[0] == whole[0]
    assert all((other / "env" / "state.json").exists() for other in others)


@pytest.mark.parametrize(
    "changes",
    [
        {"controller": "hpenv.policies.adaptive_rates:Hypergradient"},
        {"sidecar": {"credit": "estimate", "effects": {"cell_effect_16": 4, "cell_effect": 0}}},
        {"sidecar": {"credit": "control_variate", "delay": 0}},
    ],
)
def test_a_law_and_estimated_credits_continue_bitwise(tmp_path, changes):
    env = ENV if "sidecar" in changes else {**ENV, "interval": 2, "num_registers": 0}
    rows, extra = run_online(tiny(tmp_path / "whole", **changes), env)
    with pytest.raises(KeyboardInterrupt):
        run_online(tiny(tmp_path / "again", **changes), env, stop_at(8))
    assert checkpoints(tmp_path / "again", "step")
    again, more = run_online(tiny(tmp_path / "again", **changes), env)
    assert again == rows and more["trace"] == extra["trace"]
    assert any(any(row) for row in extra["final_mean"]) or "sidecar" in changes
