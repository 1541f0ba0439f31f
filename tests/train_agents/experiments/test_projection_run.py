"""Arms are runs that resume bitwise, and what is recorded of them is measured."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from hpenv.control.channels import CHANNELS
from hpenv.plant.seeds import first_run_seed
from hpenv.plant.snapshots import load
from hpenv.posttraining import plant
from hpenv.posttraining.students import registry as students
from tests import tiny_student
from tests.train_agents.experiments.short_arms import ARM, GRPO
from train_agents.experiments.contrasts import grpo_config
from train_agents.experiments.measures.directions import DIRECTIONS, validate_directions
from train_agents.experiments.projection_arms import ARMS, MAIN, PANEL, VANILLA
from train_agents.experiments.projection_claims import arm_scores
from train_agents.experiments.projection_run import MEANS, along, deploy, run_arm, schedule


def ran(tmp_path, folder, name=MAIN, num_updates=4, **changes):
    arm = ARM[name]
    arguments = {
        "grpo": GRPO | {"student": folder} | dict(arm.grpo), "positions": arm.positions,
        "seeds": [1000, 1001],
        "num_updates": num_updates, "report_interval": 2, "folder": str(tmp_path / name),
        "cache": "",
        "erases": arm.erases, "grader": tiny_student.FakeGrader(),
    }  # fmt: skip
    return run_arm(**arguments | changes)[0]


@pytest.mark.parametrize("arm", [arm for arm in ARMS if arm.values], ids=lambda arm: arm.name)
def test_positions_have_the_values_asked_for(arm):
    for name, position in arm.positions.items():
        assert CHANNELS[name].values(np.array(position)) == pytest.approx(
            arm.values[name], rel=1e-12
        )


def test_values_out_of_bounds_are_refused():
    with pytest.raises(ValueError, match=r"rebound_weight must be from 0.0 to 5.0; got 6.0"):
        replace(ARM["plain"], values={"rebound_weight": 6.0}).positions  # noqa: B018


# runs


def test_an_arm_that_was_interrupted_ends_bitwise_as_one_that_was_not(tmp_path, folder):
    name = "refresh_rarely"
    whole = ran(tmp_path / "whole", folder, name, num_updates=5)

    class Interrupted(tiny_student.FakeGrader):
        def grade(self, submissions):
            if len(self.seen) == 13:  # in the middle of an update after the second report
                raise KeyboardInterrupt
            return super().grade(submissions)

    with pytest.raises(KeyboardInterrupt):
        ran(tmp_path, folder, name, num_updates=5, grader=Interrupted())
    assert [
        record["step"] for record in load(tmp_path / name / "checkpoint").metadata["records"]
    ] == [0, 2]
    again = tiny_student.FakeGrader()
    assert ran(tmp_path, folder, name, num_updates=5, grader=again) == whole
    assert whole[0]["steps"] == [0, 2, 4, 5]
    ends = [load(path / name / "checkpoint").tensors for path in (tmp_path, tmp_path / "whole")]
    assert all(torch.equal(value, ends[1][key]) for key, value in ends[0].items())
    asked = len(again.seen)
    assert (
        ran(tmp_path, folder, name, num_updates=5, grader=again) == whole
        and len(again.seen) == asked
    )


def test_a_checkpoint_of_other_runs_is_refused(tmp_path, folder):
    ran(tmp_path, folder, num_updates=2)
    with pytest.raises(ValueError, match="move it away"):
        ran(tmp_path, folder, num_updates=2, seeds=[1000, 1002])
    with pytest.raises(ValueError, match="move it away"):
        ran(tmp_path, folder, num_updates=2, positions={})
    with pytest.raises(ValueError, match="configuration differs"):
        ran(tmp_path, folder, num_updates=3)


def test_what_is_recorded_of_an_arm_is_what_its_plant_measures(tmp_path, folder):
    first, second = ran(tmp_path, folder)
    own = tiny_student.make(2, PANEL, base_lr=0.5, divergence_kl=1e6, lr_schedule=schedule(4))
    own.reset([first_run_seed(1000), first_run_seed(1001)])
    own.panel.move(np.array([[1.0, 1.0, 0.0, 0.0]] * 2), np.ones(2, dtype=bool))
    before = own.report()
    windows = [tiny_student.advance(own, 1) for _ in range(4)]
    after = own.report()
    for row, entry in enumerate((first, second)):
        assert entry["seed"] == 1000 + row and entry["corpus"] == own.corpus_digest
        assert set(entry["means"]) == set(MEANS) and entry["divergence_reason"] is None
        for name in after:
            assert (entry["reports"][name][0], entry["reports"][name][-1]) == (
                before[name][row],
                after[name][row],
            )
        for name in ("mean_cos", "kl"):
            late = [window[name][row] for window in windows[2:]]
            assert entry["means"][name][-1] == pytest.approx(np.mean(late), rel=1e-12)
        modules = [values[-1] for values in entry["module_cos"].values()]
        assert (
            np.mean(modules) == pytest.approx(entry["means"]["mean_cos"][-1], rel=1e-4)
            and np.std(modules) > 0.0
        )
        hacks = [window["hack"][row] for window in windows[:2]]
        assert entry["means"]["train_hack"][0] == pytest.approx(np.mean(hacks), rel=1e-12)
        assert entry["probe_pass"][-1] == 1.0 - windows[-1]["probe_loss"][row]
    assert first["means"] != second["means"]


def test_arms_under_neutral_panels_are_vanilla_and_others_are_not(tmp_path, folder):
    plain = ran(tmp_path / "a", folder, VANILLA, 2)
    assert [row.pop("erased") is not None for row in plain] == [True, True]
    assert ran(tmp_path / "b", folder, MAIN, 2, positions={"projection_strength": 0.1}) == plain
    for name in ("projection", "rebound_additive_2"):
        assert (
            ran(tmp_path, folder, name, 2)[0]["means"]["coefficient_norm"]
            != plain[0]["means"]["coefficient_norm"]
        )


def test_a_routed_arm_is_reported_with_and_without_its_quarantine(tmp_path, folder):
    rows = ran(
        tmp_path,
        folder,
        "route",
        grpo=GRPO | {"student": folder, "route": True, "num_evaluation_problems": 24},
    )
    assert rows[0]["quarantine_on"]["kl"][0] == rows[0]["reports"]["kl"][0] == 0.0
    assert rows[0]["quarantine_on"]["kl"][-1] != rows[0]["reports"]["kl"][-1]
    assert arm_scores({"route": {"rows": rows}}).keys() == {"route", "route_on"}


def test_knobs_are_erased_along_the_direction_after_training(tmp_path, folder):
    rows = ran(
        tmp_path, folder, VANILLA, grpo=GRPO | {"student": folder, "num_evaluation_problems": 24}
    )
    assert 0.0 < rows[0]["erased"]["kl"] != rows[0]["reports"]["kl"][-1]
    assert set(rows[0]["erased"]) == set(rows[0]["reports"])


def test_a_run_that_diverges_keeps_its_last_means_and_the_others_go_on(tmp_path, folder):
    wild = GRPO | {"student": folder, "divergence_kl": 1e-9}
    rows = ran(tmp_path, folder, VANILLA, grpo=wild)
    assert {row["divergence_reason"] for row in rows} == {"kl_above_limit"}
    assert all(np.isfinite(list(row["means"].values())).all() for row in rows)
    assert all(values[0] == values[1] for values in rows[0]["means"].values())


# before training, and beside the arms


def test_directions_are_validated_and_controls_are_near_zero(roomy):
    rows, extra = validate_directions(
        GRPO | {"student": roomy}, [1000, 1001], "", tiny_student.FakeGrader()
    )
    assert [row["direction"] for row in rows] == list(DIRECTIONS)
    found = {row["direction"]: row for row in rows}
    assert np.mean(found["pairs"]["mean"]) > 0.2 > abs(np.mean(found["random"]["mean"]))
    assert all(found["pairs"]["passed"]) and len(found["pairs"]["cosines"]) == len(
        tiny_student.student().ranks
    )
    assert (
        found["random"]["mean"][0] != found["random"]["mean"][1]
        and len(set(found["pairs"]["mean"])) == 1
    )
    assert (
        0.0 <= extra["memorizing_pass_rate"] <= 1.0 and extra["pairs"] > extra["held_out_pairs"] > 0
    )


@pytest.mark.parametrize(("position", "name"), [(0.0, VANILLA), (1.0, "plain")])
def test_a_controller_that_never_moves_is_the_arm_of_that_strength(
    position, name, tmp_path, folder, monkeypatch
):
    # Real programs of a random student do not even compile, and would teach it nothing.
    monkeypatch.setattr(plant, "Grader", lambda *arguments: tiny_student.FakeGrader())

    class Still:
        def act(self, observations):
            return np.full((len(observations), 1), position, dtype=np.float32)

    grpo = GRPO | {"student": folder, "num_evaluation_problems": 8}
    rows = ran(tmp_path, folder, name, grpo=grpo, erases=False)
    env = grpo | {"num_steps": 4, "interval": 1}
    for one, other in zip(deploy(Still(), env, [1000, 1001], 2), rows, strict=True):
        assert (one["seed"], one["steps"], one["reports"]) == (
            other["seed"],
            other["steps"],
            other["reports"],
        )
        assert one["reports"]["kl"][-1] > 0.0 and one["strengths"] == [position] * 4


def test_where_the_knobs_end_is_measured_along_the_direction(tmp_path, folder):
    """Knobs equal to the direction are at 1, those of the other sign at -1.

    Untrained knobs are nowhere.
    """
    grpo = grpo_config(GRPO | {"student": folder})
    runs = plant.GRPOPlant(
        grpo, 3, PANEL, student=students.student(folder), grader=tiny_student.FakeGrader()
    )
    for name, axes in runs.intervention.direction.axes.items():
        value = runs.coefficients.values[name]
        value[0], value[1] = 3.0 * axes[0, 0], -0.1 * axes[1, 0]
    np.testing.assert_allclose(along(runs), [1.0, -1.0, 0.0], atol=1e-6)


def test_a_quarantine_is_measured_beside_the_knobs(tmp_path, folder):
    kept, routed = ran(tmp_path, folder, MAIN), ran(tmp_path, folder, "route")
    assert all("quarantine_ratio" not in row for row in kept)
    ratios = np.array([row["quarantine_ratio"] for row in routed])
    assert (ratios > 0.0).all() and (ratios < 10.0).all()
